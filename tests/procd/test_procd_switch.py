"""procd and a job at another account, which only a switch can signal: one call, whatever the number of
processes."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import attrs
import pytest
import trio

from demo import runtime
from demo.accounts import Account
from pilot.rpc import RpcRefused
from pilot.settings import Settings
from procd.messages import Stopped
from procd.proc import ProcReader
from tests.procd import world
from tests.procd.test_procd_service import RootPart

pytestmark = pytest.mark.needs_root

# The credential names the account; each call leaves a line.
SWITCH = """#!/bin/sh
echo "$GLEXEC_ID" >> {calls}
[ -s "$GLEXEC_CLIENT_CERT" ] || exit 203
uid=$(cat "$GLEXEC_CLIENT_CERT")
exec setpriv --reuid "$uid" --regid "$uid" --clear-groups "$@"
"""


@attrs.frozen
class Site:
    """A directory that every account can reach, with a switch in it."""

    directory: Path

    @property
    def calls(self) -> list[str]:
        log = self.directory / "calls"
        return log.read_text().split() if log.exists() else []

    def credential(self, text: object) -> str:
        path = self.directory / f"credential-{text}"
        path.write_text(str(text))
        return str(path)

    def change(self, credential: str, text: object) -> None:
        Path(credential).write_text(str(text))

    def settings(self, **more: str) -> Settings:
        return world.settings(
            SAILPLANE_SWITCH="glexec",
            GLEXEC=str(self.directory / "switch"),
            SAILPLANE_WRAPPER_DIR=str(self.directory / "jobwrapper"),
            **more,
        )


@pytest.fixture
def site() -> Iterator[Site]:
    directory = Path(tempfile.mkdtemp(prefix="sptest-"))
    directory.chmod(0o755)
    shutil.copytree(world.ROOT / "jobwrapper", directory / "jobwrapper")
    runtime.open_up(directory / "jobwrapper")
    switch = directory / "switch"
    switch.write_text(SWITCH.format(calls=directory / "calls"))
    switch.chmod(0o755)
    yield Site(directory)
    shutil.rmtree(directory)


async def test_a_whole_family_costs_one_call(tmp_path: Path, site: Site, accounts: Mapping[str, Account]) -> None:
    uid = accounts["alice"].uid
    program = "import os, signal\nfor _ in range(5): os.fork()\nwhile True: signal.pause()"
    with world.job(program, uid=uid) as job:
        async with world.procd(tmp_path / "s", site.settings()) as client:
            await world.register(client, job, credential=site.credential(uid), audit_id="site#7")
            await world.until(lambda: len(job.alive()) == 32, "32 processes")
            usage = await client.usage("job")
            assert (usage.processes, usage.pss_kb is None or usage.pss_kb > 0) == (32, True)
            stopped = await client.stop("job", deadline_s=60)
            assert stopped == Stopped(empty=True, route="switch", switch_calls=1)
            assert job.alive() == []
    assert site.calls == ["site#7"]


@pytest.mark.parametrize("seed", range(3))
async def test_no_descendant_escapes_at_another_account(
    tmp_path: Path, site: Site, accounts: Mapping[str, Account], seed: int
) -> None:
    uid = accounts["alice"].uid
    with world.job(world.HIDE, str(seed), "4", uid=uid) as job:
        async with world.procd(tmp_path / "s", site.settings()) as client:
            await world.register(client, job, credential=site.credential(uid))
            await world.until(lambda: len(job.alive()) >= 2, "a tree")
            assert (await client.stop("job", deadline_s=60)).empty
            assert job.alive() == []


async def test_a_fork_storm_at_another_account_is_stopped(
    tmp_path: Path, site: Site, accounts: Mapping[str, Account]
) -> None:
    uid = accounts["alice"].uid
    with world.job(world.STORM, uid=uid) as job:
        async with world.procd(tmp_path / "s", site.settings()) as client:
            await world.register(client, job, credential=site.credential(uid))
            await world.storming(client)
            assert (await client.stop("job", deadline_s=40)).empty
            assert job.alive() == []


async def test_signals_cross_the_switch(tmp_path: Path, site: Site, accounts: Mapping[str, Account]) -> None:
    uid = accounts["alice"].uid
    with world.job("import os, signal\nos.fork()\nwhile True: signal.pause()", uid=uid) as job:
        async with world.procd(tmp_path / "s", site.settings()) as client:
            await world.register(client, job, credential=site.credential(uid))
            await world.until(lambda: len(job.alive()) == 2, "two processes")
            await client.suspend("job")
            assert states(job) == {"T"}
            await client.resume("job")
            assert "T" not in states(job)
            await client.signal("job", signal.SIGTERM, "root")
            await world.until(lambda: len(job.alive()) == 1, "the root is gone")
            await client.signal("job", signal.SIGTERM, "all")
            await world.until(lambda: job.alive() == [], "all are gone")
    assert len(site.calls) == 4


def states(job: world.Job) -> set[str]:
    reader = ProcReader()
    try:
        return {process.state for pid in job.alive() if (process := reader.read(pid)) is not None}
    finally:
        reader.close()


@pytest.mark.parametrize(("who", "words"), [("nobody", "denied"), ("bob", "wrong-account")])
async def test_survivors_are_reported_when_the_switch_refuses(
    tmp_path: Path, site: Site, accounts: Mapping[str, Account], who: str, words: str
) -> None:
    uid = accounts["alice"].uid
    credential = site.credential(accounts["bob"].uid if who == "bob" else "")
    with world.job(world.SLEEP, uid=uid) as job:
        async with world.procd(tmp_path / "s", site.settings()) as client:
            await world.register(client, job, credential=credential)
            with trio.fail_after(60):
                stopped = await client.stop("job", deadline_s=1.5)
            assert (stopped.empty, stopped.survivors, stopped.route) == (False, (job.pid,), "switch")
            assert words in stopped.text
            assert stopped.switch_calls == len(site.calls) >= 1
            with pytest.raises(RpcRefused) as caught:
                await client.signal("job", signal.SIGTERM, "all")
            assert caught.value.code == "no-route"
            assert job.alive() == [job.pid]
            os.kill(job.pid, signal.SIGKILL)  # or procd would go on trying as it ends


async def test_families_of_one_credential_share_a_call(
    tmp_path: Path, site: Site, accounts: Mapping[str, Account]
) -> None:
    uid = accounts["alice"].uid
    with world.job(world.SLEEP, uid=uid) as one, world.job(world.SLEEP, uid=uid) as other:
        given = site.settings(SAILPLANE_KILL_JITTER="1")
        async with world.procd(tmp_path / "s", given) as client:
            credential = site.credential(uid)
            await world.register(client, one, "one", credential=credential)
            await world.register(client, other, "other", credential=credential)
            ends: list[Stopped] = []

            async def stop(family: str) -> None:
                ends.append(await client.stop(family, deadline_s=60))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(stop, "one")
                nursery.start_soon(stop, "other")
            assert [each.empty for each in ends] == [True, True]
            assert one.alive() == other.alive() == []
    assert len(site.calls) in (1, 2)  # 2 when the first one's jitter was shorter than the other's scan


async def test_a_dead_starter_s_unseen_orphans_are_found_by_their_account(
    tmp_path: Path, site: Site, accounts: Mapping[str, Account]
) -> None:
    uid = accounts["alice"].uid
    with world.job(world.HIDE, "2", "3", uid=uid) as job, world.job(world.SLEEP, uid=uid) as other:
        async with world.procd(tmp_path / "s", site.settings()) as client:
            await world.register(client, job, credential=site.credential(uid))
            await world.register(client, other, "other", credential=site.credential(uid))
            await world.until(lambda: len(job.alive()) >= 2, "a tree")
            os.kill(job.starter_pid, signal.SIGKILL)
            await world.until(lambda: job.alive() == [], "the family's end")
            assert other.alive() == [other.pid]
            assert (await client.stop("other", deadline_s=60)).empty


async def test_a_dead_starters_family_is_tried_again_until_it_is_empty(
    tmp_path: Path, site: Site, accounts: Mapping[str, Account], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A site that refuses for a while: nobody else would ever end this job."""
    monkeypatch.setattr("procd.server.ABANDONED_STOP_S", 0.2)
    monkeypatch.setattr("procd.server._BETWEEN_ATTEMPTS_S", 0.1)
    uid = accounts["alice"].uid
    credential = site.credential("")
    with world.job(world.SLEEP, uid=uid) as job:
        async with world.procd(tmp_path / "s", site.settings()) as client:
            await world.register(client, job, credential=credential)
            os.kill(job.starter_pid, signal.SIGKILL)
            await world.until(lambda: len(site.calls) >= 3, "calls that are refused")
            assert job.alive() == [job.pid]
            site.change(credential, uid)
            await world.until(lambda: job.alive() == [], "the family's end")


async def test_whoever_kills_cannot_be_traced(tmp_path: Path, site: Site, accounts: Mapping[str, Account]) -> None:
    """It has the job's account, and waits for the end of a grace: time enough to take it over."""
    uid = accounts["alice"].uid
    deaf = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: signal.pause()"
    with world.job(deaf, uid=uid) as job:
        async with world.procd(tmp_path / "s", site.settings()) as client, trio.open_nursery() as nursery:
            await world.register(client, job, credential=site.credential(uid))
            nursery.start_soon(partial(client.stop, "job", deadline_s=60, soft=signal.SIGTERM, grace_s=2.0))
            wrapper = str(site.directory / "jobwrapper")
            await world.until(
                # a root part is root's own until it becomes its payload
                lambda: [(world.traceable_by(p), world.uid_of(p)) for p in world.marked(wrapper)] == [(0, uid)],
                "a killer that nobody may trace",
            )


async def test_where_a_root_part_is_deaf_the_switch_is_called(
    tmp_path: Path, site: Site, accounts: Mapping[str, Account], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("procd.signaller.CONTROL_PATIENCE_S", 0.1)
    uid = accounts["alice"].uid
    with world.job(world.SLEEP, uid=uid) as job:
        far = RootPart(job, deaf=True)
        async with world.procd(tmp_path / "s", site.settings()) as client:
            given = {"control_fd": far.near.fileno(), "credential": site.credential(uid), "audit_id": "site#8"}
            await world.register(client, job, **given)
            stopped = await client.stop("job", deadline_s=60)
            assert (stopped.empty, stopped.route, stopped.switch_calls) == (True, "control+switch", 1)
        far.close()
    assert site.calls == ["site#8"]


@pytest.mark.parametrize("deaf", [True, False])
async def test_a_soft_end_and_the_kill_after_it_are_one_call(
    tmp_path: Path, site: Site, accounts: Mapping[str, Account], deaf: bool
) -> None:
    uid = accounts["alice"].uid
    ignore = "import os, signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" if deaf else "import os, signal\n"
    with world.job(ignore + "os.fork()\nwhile True: signal.pause()", uid=uid) as job:
        async with world.procd(tmp_path / "s", site.settings()) as client:
            await world.register(client, job, credential=site.credential(uid))
            await world.until(lambda: len(job.alive()) == 2, "two processes")
            stopped = await client.stop("job", deadline_s=60, soft=signal.SIGTERM, grace_s=0.5)
            assert (stopped.empty, stopped.switch_calls) == (True, 1)
            assert job.alive() == []
    assert len(site.calls) == 1
