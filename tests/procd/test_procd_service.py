"""procd with real processes at one account: who is found, what they used, how they are stopped."""

from __future__ import annotations

import os
import signal
import socket
import struct
import threading
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from pilot.rpc import RpcRefused
from procd.client import ProcdClient
from procd.proc import ProcReader
from tests.procd import world


def states(pids: list[int]) -> set[str]:
    reader = ProcReader()
    try:
        return {process.state for pid in pids if (process := reader.read(pid)) is not None}
    finally:
        reader.close()


async def grown(job: world.Job, count: int) -> None:
    await world.until(lambda: len(job.alive()) >= count, f"{count} processes expected")


async def test_a_family_is_stopped_and_proved_empty(tmp_path: Path) -> None:
    with world.job(world.SLEEP) as job:
        async with world.procd(tmp_path / "s") as client:
            await world.register(client, job)
            assert (await client.usage("job")).processes == 1
            stopped = await client.stop("job", deadline_s=60)
            assert (stopped.empty, stopped.survivors, stopped.route) == (True, (), "own")
            assert job.alive() == []
            again = await client.stop("job", deadline_s=60)
            assert (again.empty, again.route, again.switch_calls, again.usage) == (True, "none", 0, None)
            assert (await client.unregister("job")).processes == 0


@pytest.mark.parametrize("seed", range(6))
async def test_no_descendant_escapes(tmp_path: Path, seed: int) -> None:
    """Daemonised, double-forked, setsid'ed, re-parented, without environment, exec'ed: all are found."""
    with world.job(world.HIDE, str(seed), "5") as job:
        async with world.procd(tmp_path / "s") as client:
            await world.register(client, job)
            await grown(job, 2)
            assert (await client.stop("job", deadline_s=60)).empty
            assert job.alive() == []


async def test_a_fork_storm_is_stopped(tmp_path: Path) -> None:
    with world.job(world.STORM) as job:
        async with world.procd(tmp_path / "s") as client:
            await world.register(client, job)
            await world.storming(client)
            stopped = await client.stop("job", deadline_s=30)
            assert stopped.empty
            assert job.alive() == []


async def test_orphans_that_a_snapshot_never_saw_with_their_parent_are_members(tmp_path: Path) -> None:
    """Two forks and an exit within a moment: the orphan was never seen below the root."""
    with world.job(world.HIDE, "3", "3") as job:
        async with world.procd(tmp_path / "s") as client:
            await world.register(client, job)
            await grown(job, 8)  # what this seed's tree has in the end
            [family] = await client.families()
            usage = await client.usage("job")
            [family] = await client.families()
            assert {member.pid for member in family.members} >= set(job.alive())
            assert usage.processes >= len(job.alive())


async def test_suspend_and_resume(tmp_path: Path) -> None:
    with world.job(world.HIDE, "1", "3") as job:
        async with world.procd(tmp_path / "s") as client:
            await world.register(client, job)
            await grown(job, 2)
            await client.suspend("job")
            await world.until(lambda: states(job.alive()) == {"T"}, "all stopped")
            await client.resume("job")
            await world.until(lambda: "T" not in states(job.alive()), "none stopped")


async def test_a_soft_signal_goes_to_the_root_or_to_all(tmp_path: Path) -> None:
    program = "import os, signal\nos.fork(); os.fork()\nwhile True: signal.pause()"
    with world.job(program) as job:
        async with world.procd(tmp_path / "s") as client:
            await world.register(client, job)
            await grown(job, 4)
            await client.signal("job", signal.SIGTERM, "root")
            await world.until(lambda: len(job.alive()) == 3, "only the root is gone")
            assert job.pid not in job.alive()
            await client.signal("job", signal.SIGTERM, "root")  # nobody is the root now
            await client.signal("job", signal.SIGTERM, "all")
            await world.until(lambda: job.alive() == [], "all are gone")


async def test_cpu_of_children_that_were_never_seen_counts(tmp_path: Path) -> None:
    with world.job(world.BURN, "10") as job:
        async with world.procd(tmp_path / "s") as client:
            await world.register(client, job)

            async def burnt() -> float:
                usage = await client.usage("job")
                return usage.user_s + usage.system_s

            async def enough() -> bool:
                return await burnt() >= 0.45

            await world.until(enough, "CPU of the children")
            assert 0.45 <= await burnt() <= 0.8


async def test_cpu_of_a_root_that_has_ended_is_kept(tmp_path: Path) -> None:
    with world.job(world.BURN, "6", "end") as job:
        async with world.procd(tmp_path / "s") as client:
            await world.register(client, job)
            await world.until(lambda: job.alive() == [], "the job's end")
            usage = await client.unregister("job")
            assert 0.25 <= usage.user_s + usage.system_s <= 0.6
            assert usage.processes == 0


async def test_a_stop_forgets_an_empty_family_if_it_is_to_and_tells_its_last_usage(tmp_path: Path) -> None:
    with world.job(world.BURN, "6", "end") as job:
        async with world.procd(tmp_path / "s") as client:
            await world.register(client, job)
            await world.until(lambda: job.alive() == [], "the job's end")
            stopped = await client.stop("job", deadline_s=60, forget=True)
            assert stopped.empty
            assert stopped.usage is not None
            assert 0.25 <= stopped.usage.user_s + stopped.usage.system_s <= 0.6
            assert stopped.usage.processes == 0
            assert await client.families() == ()


async def test_a_family_that_two_are_ending_is_forgotten_by_the_last(tmp_path: Path) -> None:
    """The other one would not find it any more, and its answer is waited for."""
    with world.job(world.HIDE, "2", "4") as job:
        async with world.procd(tmp_path / "s") as client:
            await world.register(client, job)
            await grown(job, 2)
            told = []

            async def stop() -> None:
                told.append(await client.stop("job", deadline_s=60, forget=True))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(stop)
                nursery.start_soon(stop)
            assert [stopped.empty for stopped in told] == [True, True]
            assert [stopped.usage is not None for stopped in told] == [False, True]
            assert job.alive() == []
            assert await client.families() == ()


async def test_calls_one_after_another_have_one_connection_where_it_is_kept(tmp_path: Path) -> None:
    def connections() -> int:
        return Path("/proc/self/net/unix").read_text().count(f" {tmp_path}/")

    with world.job(world.SLEEP) as job:
        async with world.procd(tmp_path / "s") as client:
            await world.register(client, job)
            await world.until(lambda: connections() == 1, "the listener alone")
            async with trio.open_nursery() as nursery:
                await client.be_ready()
                assert connections() == 1, "one that nobody would close"
                await nursery.start(client.keep)
                for _ in range(2):
                    await client.be_ready()
                await world.until(lambda: connections() == 3, "one that tells of procd's end, and one for calls")
                await client.usage("job")
                assert connections() == 3
                for _ in range(3):
                    await client.usage("job")
                    assert connections() == 3
                with pytest.raises(RpcRefused):
                    await client.usage("nobody's")
                with trio.move_on_after(0):  # cancelled in mid-call: that connection is not used again
                    await client.usage("job")
                await client.usage("job")
                await world.until(lambda: connections() == 3, "one for calls")
                nursery.cancel_scope.cancel()
            await world.until(lambda: connections() == 1, "the listener alone")


async def test_a_sub_family_is_stopped_alone(tmp_path: Path) -> None:
    program = "import os, signal\nos.fork()\nwhile True: signal.pause()"
    with world.job(program) as job:
        async with world.procd(tmp_path / "s") as client:
            await world.register(client, job)
            await grown(job, 2)
            [inner] = [pid for pid in job.alive() if pid != job.pid]
            await client.register(
                "inner",
                root_pid=inner,
                root_ticks=world.ticks(inner),
                starter_pid=job.starter_pid,
                credential=None,
                audit_id="",
                control_fd=None,
            )
            assert [family.parent for family in await client.families()] == [None, "job"]
            assert (await client.usage("inner")).processes == 1
            assert (await client.usage("job")).processes == 2
            assert (await client.stop("inner", deadline_s=60)).empty
            assert job.alive() == [job.pid]


async def test_a_dead_starter_s_family_is_stopped_and_forgotten(tmp_path: Path) -> None:
    with world.job(world.HIDE, "2", "4") as job:
        async with world.procd(tmp_path / "s") as client:
            await world.register(client, job)
            await grown(job, 2)
            os.kill(job.starter_pid, signal.SIGKILL)
            await world.until(lambda: job.alive() == [], "the family's end")

            async def forgotten() -> bool:
                return await client.families() == ()

            await world.until(forgotten, "the family to be forgotten")


# --- the control socket -------------------------------------------------------------------------------------


class RootPart:
    """The far end of a control socket: kills a job's processes when told to, or is deaf."""

    def __init__(self, job: world.Job, *, deaf: bool = False) -> None:
        self.near, self._far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.heard: list[bytes] = []
        self._job = job
        self._deaf = deaf
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        while words := self._far.recv(512):
            self.heard.append(words)
            if b"kill-all" in words and not self._deaf:
                for pid in self._job.alive():
                    os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        self._far.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self.near.close()
        self._far.close()


async def test_who_is_killed_is_looked_at_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What they have used would be unknown else, where the kernel tells no events and nobody waits for them."""
    monkeypatch.setattr("procd.probe.connector_works", lambda: False)
    monkeypatch.setattr("procd.server.LOOK_EVERY_S", 3600.0)
    program = (
        "import os, signal, sys, time\n"
        "while not os.path.exists(sys.argv[1]): time.sleep(0.002)\n"
        "for _ in range(3): os.fork()\n"
        "signal.pause()"
    )
    go = tmp_path / "go"
    with world.job(program, str(go)) as job:
        far = RootPart(job)
        async with world.procd(tmp_path / "s") as client:
            await world.register(client, job, control_fd=far.near.fileno())
            go.touch()
            await world.until(lambda: len(job.alive()) == 8, "eight processes")
            assert (await client.stop("job", deadline_s=60)).route == "control"
            assert (await client.unregister("job")).processes_seen == 8
        far.close()


async def test_a_lingering_switch_is_told_to_stop_suspend_and_signal(tmp_path: Path) -> None:
    with world.job(world.SLEEP) as job:
        far = RootPart(job)
        async with world.procd(tmp_path / "s") as client:
            await world.register(client, job, control_fd=far.near.fileno())
            await client.suspend("job")
            await client.resume("job")
            await client.signal("job", 15, "root")
            stopped = await client.stop("job", deadline_s=60)
            assert (stopped.empty, stopped.route, stopped.switch_calls) == (True, "control", 0)
        assert far.heard == [
            b'{"do": "stop"}',
            b'{"do": "cont"}',
            b'{"do": "signal", "number": 15, "to": "root"}',
            b'{"do": "kill-all"}',
        ]
        far.close()


async def test_a_deaf_control_socket_is_not_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("procd.signaller.CONTROL_PATIENCE_S", 0.1)
    with world.job(world.SLEEP) as job:
        far = RootPart(job, deaf=True)
        async with world.procd(tmp_path / "s") as client:
            await world.register(client, job, control_fd=far.near.fileno())
            stopped = await client.stop("job", deadline_s=60)
            assert (stopped.empty, stopped.route) == (True, "control+own")
            assert job.alive() == []
        far.close()


async def test_a_control_socket_whose_far_end_is_gone_is_passed_over(tmp_path: Path) -> None:
    with world.job(world.SLEEP) as job:
        far = RootPart(job)
        async with world.procd(tmp_path / "s") as client:
            await world.register(client, job, control_fd=far.near.fileno())
            far.close()
            await client.suspend("job")
            await world.until(lambda: states(job.alive()) == {"T"}, "stopped by the next route")
            [family] = await client.families()
            assert not family.control
            assert (await client.stop("job", deadline_s=60)).route == "own"


# --- refusals -----------------------------------------------------------------------------------------------


async def test_refusals_change_nothing(tmp_path: Path) -> None:
    with world.job(world.SLEEP) as job, world.job(world.SLEEP) as other:
        async with world.procd(tmp_path / "s") as client:
            await world.register(client, job)
            before = [(each.family, each.root) for each in await client.families()]
            with pytest.raises(RpcRefused) as caught:
                await world.register(client, other)
            assert caught.value.code == "already-registered"
            with pytest.raises(RpcRefused) as caught:
                await client.register(
                    "more", root_pid=other.pid, root_ticks=other.ticks, starter_pid=job.starter_pid,
                    credential=None, audit_id="", control_fd=None,
                )  # fmt: skip
            assert caught.value.code == "no-such-process"
            with pytest.raises(RpcRefused) as caught:
                await client.stop("nobody", deadline_s=1)
            assert caught.value.code == "unknown-family"
            read_end, write_end = os.pipe()
            with pytest.raises(RpcRefused) as caught:
                await world.register(client, other, "third", control_fd=read_end)
            assert caught.value.code == "no-socket"
            os.close(read_end)
            os.close(write_end)
            assert [(each.family, each.root) for each in await client.families()] == before
            assert other.alive()


async def test_garbage_costs_its_own_connection_only(tmp_path: Path) -> None:
    async with world.procd(tmp_path / "s") as client:
        for garbage in (b"\xff" * 50, struct.pack("!I", 3) + b"abc", b"\0\0"):
            async with await trio.open_unix_socket(str(tmp_path / "s")) as stream:
                await stream.send_all(garbage)
                with suppress(trio.BrokenResourceError):  # closed with some of it unread
                    await stream.send_eof()
                    assert await stream.receive_some() == b""
        assert await client.families() == ()


async def test_nobody_answers_where_no_procd_is(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="closed"):
        await ProcdClient.connect(tmp_path / "none", patience_s=0.1)
