"""procd as a process: its lifeline, its death, its command."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from demo.accounts import Account
from pilot.rpc import ChannelClosed
from procd.client import ProcdClient
from procd.facts import Facts
from procd.families import Families
from procd.lookout import Lookout
from procd.messages import Identity, Register, Usage
from procd.proc import ProcReader
from procd.server import Service
from tests.procd import world


async def ended(process: subprocess.Popen[bytes]) -> int:
    await world.until(lambda: process.poll() is not None, "procd's end")
    assert process.returncode is not None
    return process.returncode


@pytest.mark.parametrize("how", ["lifeline", "SIGINT"])
async def test_the_end_of_the_startd_ends_everything(tmp_path: Path, how: str) -> None:
    with world.job(world.HIDE, "4", "3") as job, world.daemon(tmp_path / "s") as (process, lifeline):
        client = await ProcdClient.connect(tmp_path / "s")
        await world.register(client, job)
        process.send_signal(signal.SIGHUP)  # means nothing
        process.terminate()  # a batch system's, to all of a pilot: the startd says when
        await client.describe()
        if how == "lifeline":
            os.close(lifeline)
        else:
            process.send_signal(signal.SIGINT)
        assert await ended(process) == 0
        assert job.alive() == []
        assert not (tmp_path / "s").exists()
        client.close()


async def test_its_log_does_not_grow_without_an_end(tmp_path: Path) -> None:
    log = tmp_path / "ProcLog"
    with world.job(world.SLEEP) as job, world.daemon(tmp_path / "s", log=str(log), _CONDOR_MAX_PROCD_LOG="300"):
        client = await ProcdClient.connect(tmp_path / "s")
        for _ in range(5):
            await world.register(client, job)
            await client.unregister("job")
        client.close()
    assert 300 < (tmp_path / "ProcLog.old").stat().st_size < 600


async def test_a_node_of_many_cores_has_a_connection_for_each_job(tmp_path: Path) -> None:
    """Each starter keeps two; one that found none would wait for ever, and its job with it."""
    starters, soft_hard = 768, resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft_hard[1] != resource.RLIM_INFINITY and soft_hard[1] < 3 * starters:
        pytest.skip(f"this process may open only {soft_hard[1]} descriptors")
    with ExitStack() as kept, world.daemon(tmp_path / "s"):
        kept.callback(resource.setrlimit, resource.RLIMIT_NOFILE, soft_hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(3 * starters, soft_hard[0]), soft_hard[1]))
        client = await ProcdClient.connect(tmp_path / "s")
        with trio.fail_after(60):
            for _ in range(2 * starters):
                kept.callback((await client._connect()).close)
            await client.describe()


async def test_a_restarted_procd_kills_nobody_and_keeps_usage_and_orphans(tmp_path: Path) -> None:
    path = tmp_path / "s"
    usage = Usage()
    program = world.BURN.replace("while True: signal.pause()", world.HIDE.replace("sys.argv[1]", "'7'"))
    with world.job(program, "5", "4") as job:
        with world.daemon(path) as (first, _):
            client = await ProcdClient.connect(path)
            await world.register(client, job)

            async def busy() -> bool:
                nonlocal usage
                usage = await client.usage("job")
                return usage.user_s + usage.system_s >= 0.2 and usage.processes >= 3

            await world.until(busy, "a tree that has burnt")
            first.kill()
            await ended(first)
        with world.daemon(path):
            again = await client.usage("job")
            assert again.user_s >= usage.user_s
            assert again.system_s >= usage.system_s
            assert again.rss_peak_kb >= usage.rss_peak_kb
            [family] = await client.families()
            assert {member.pid for member in family.members} >= set(job.alive()) != set()
            assert (await client.stop("job", deadline_s=60)).empty
            assert job.alive() == []
            client.close()


async def test_keep_registers_again_without_being_asked(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with world.job(world.SLEEP) as job:
        async with trio.open_nursery() as nursery:
            with world.daemon(path) as (first, _):
                client = await ProcdClient.connect(path)
                await world.register(client, job)
                await nursery.start(client.keep)
                first.kill()
                await ended(first)
            with world.daemon(path) as (second, lifeline):
                watcher = await ProcdClient.connect(path)

                async def known() -> bool:
                    return await watcher.families() != ()

                await world.until(known, "the registration")
                assert job.alive()
                os.close(lifeline)
                assert await ended(second) == 0
            assert job.alive() == []
            nursery.cancel_scope.cancel()
        client.close()


async def test_a_procd_that_stays_away_is_a_fault(tmp_path: Path) -> None:
    with world.daemon(tmp_path / "s"):
        await (await ProcdClient.connect(tmp_path / "s")).aclose()
        client = await ProcdClient.connect(tmp_path / "s", patience_s=0.3)
    with pytest.raises(ChannelClosed):
        await client.families()


async def test_ctl_shows_the_families(tmp_path: Path) -> None:
    with world.job(world.SLEEP) as job, world.daemon(tmp_path / "s"):
        client = await ProcdClient.connect(tmp_path / "s")
        await world.register(client, job)
        command = [sys.executable, "-m", "procd", "ctl", "--socket", str(tmp_path / "s")]
        done = await trio.run_process([*command, "--json"], capture_stdout=True, cwd=world.ROOT)
        [family] = json.loads(done.stdout)["families"]
        assert (family["family"], family["root"]["pid"]) == ("job", job.pid)
        done = await trio.run_process([*command, "dump"], capture_stdout=True, cwd=world.ROOT)
        assert str(job.pid).encode() in done.stdout
        client.close()


@pytest.mark.parametrize(
    "arguments", [[], ["--socket"], ["--lifeline-fd", "x"], ["--socket", "s", "--config", "/nonexistent"]]
)
def test_wrong_usage_ends_at_once(arguments: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "procd", *arguments],
        env=os.environ | {"PYTHONPATH": str(world.ROOT)},
        cwd=tmp_path,
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert done.returncode in (2, 100)
    assert done.stderr


@pytest.mark.needs_root
async def test_another_account_is_not_answered_whatever_the_sockets_mode(accounts: Mapping[str, Account]) -> None:
    """The kernel tells who connects; the mode alone could be changed by mistake."""
    program = (
        "import socket, sys\nsock = socket.socket(socket.AF_UNIX); sock.connect(sys.argv[1]); sock.settimeout(3)\n"
        "try: print('closed' if not sock.recv(100) else 'told')\nexcept TimeoutError: print('served')\n"
    )
    with tempfile.TemporaryDirectory(prefix="sptest-") as directory:
        path = Path(directory) / "s"
        os.chmod(directory, 0o755)
        async with world.procd(path) as client:
            os.chmod(path, 0o666)
            alice = accounts["alice"].uid
            said = await trio.run_process(
                [world.PYTHON, "-IS", "-c", program, str(path)], capture_stdout=True, user=alice, group=alice, cwd="/"
            )
            assert said.stdout == b"closed\n"  # before it has said a word
            assert await client.families() == ()


def test_a_hidden_family_without_any_proof_of_its_end_is_refused() -> None:
    """No list of children, no cgroup, no control socket: then nobody could tell that it is over."""

    def can_be_proved(*, hidden: bool, children_files: bool, group: object = None, control: object = None) -> bool:
        trackers = SimpleNamespace(group=lambda family: group, facts=Facts(children_files=children_files))
        service = Service(*cast(Any, (None, None, None, trackers, None)), check_every_s=1)
        family = SimpleNamespace(around=SimpleNamespace(hidden=hidden))
        return service._can_be_proved(*cast(Any, (family, control)))

    assert can_be_proved(hidden=False, children_files=False)
    assert not can_be_proved(hidden=True, children_files=False)
    assert can_be_proved(hidden=True, children_files=True)
    assert can_be_proved(hidden=True, children_files=False, group=object())
    assert can_be_proved(hidden=True, children_files=False, control=object())


async def test_a_registration_that_fails_keeps_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither that of a root which /proc hides, nor the control socket that came with the request."""
    families, reader = Families(os.geteuid()), ProcReader()
    lookout = Lookout(families, reader, sees_jobs=False)
    service = Service(*cast(Any, (families, lookout, None, None, None)), check_every_s=1)
    monkeypatch.setattr(reader, "read", lambda pid: None)
    near, far = socket.socketpair()
    with near, far:
        me = Identity(os.getpid(), 1)
        request = Register("job", root=me, starter=Identity(1, 1), credential=None, audit_id="", uid=0)
        before = len(os.listdir("/proc/self/fd"))
        answer = await service._answer(request, [near.fileno()])
        assert answer.code == "no-such-process"
        assert len(os.listdir("/proc/self/fd")) == before

        def no_descriptor(*_: object) -> None:
            raise OSError(errno.EMFILE, "")

        monkeypatch.setattr(lookout, "survey", no_descriptor)
        with pytest.raises(OSError, match="24"):
            await service._answer(request, [near.fileno()])
        assert len(os.listdir("/proc/self/fd")) == before
    reader.close()
