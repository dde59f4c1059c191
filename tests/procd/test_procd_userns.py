"""procd and a job at a sub-uid: the owner of a user namespace may signal who is in it, without a call of the switch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import attrs
import pytest
import trio

from demo.accounts import Account
from pilot.calls import Call, Running
from pilot.userns import UsernsSwitch
from procd.proc import ProcReader
from starter.orphans import become_subreaper
from tests.jobwrapper.accounts_at_work import as_account
from tests.procd import world

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_userns(in_place=True)]

TREE = (
    "import os, signal\nfor _ in range(4): os.fork()\nos.setsid() if os.getsid(0) != os.getpid() else 0\nsignal.pause()"
)


async def begin(home: Path) -> tuple[Running, int]:
    """A job of 16 processes, and its root by the host's numbers; its control socket is nobody's."""
    (home / "job").mkdir()
    null = os.open(os.devnull, os.O_RDWR)
    command = (world.PYTHON, "-IS", "-c", TREE)
    running = await UsernsSwitch(home / "leases").start(Call(command, "t", None, null, place=home / "job"))
    os.close(null)
    reader, found = ProcReader(), [running.pid]

    def below() -> list[int]:
        process = reader.read(found[-1])
        return reader.children(process) if process else []

    for _ in range(2):  # the namespace's pid 1, then the job
        await world.until(lambda: below() != [], "the job")
        found.append(below()[0])
    reader.close()
    return running, found[-1]


async def _signalled(home: Path) -> dict[str, object]:
    become_subreaper()
    running, root = await begin(home)
    said: dict[str, object] = {}
    async with world.procd(home / "s", world.settings(SAILPLANE_SWITCH="userns")) as client:
        await client.register(
            "job", root_pid=root, root_ticks=world.ticks(root), starter_pid=os.getpid(), credential=None, audit_id="t",
            control_fd=None,
        )  # fmt: skip

        async def sixteen() -> bool:
            return (await client.usage("job")).processes == 16

        await world.until(sixteen, "the tree")
        (family,) = await client.families()
        members = [each.pid for each in family.members]
        await client.suspend("job")
        await world.until(lambda: states(members) == {"T"}, "all to be stopped")
        await client.resume("job")
        await world.until(lambda: states(members) == {"S"}, "all to go on")
        said["routes"] = (await client.describe()).routes
        said["stopped"] = attrs.asdict(await client.stop("job", deadline_s=60))
        said["left"] = [pid for pid in members if world.uid_of(pid) == family.uid]
    with trio.fail_after(60):
        await running.wait()
    running.close()
    return said


def states(pids: list[int]) -> set[str]:
    reader = ProcReader()
    try:
        return {process.state for pid in pids if (process := reader.read(pid)) is not None}
    finally:
        reader.close()


def test_the_owner_of_a_namespace_ends_a_job_without_a_call(accounts: Mapping[str, Account], open_dir: Path) -> None:
    home = open_dir / "pilot"
    home.mkdir()
    os.chown(home, accounts["pilot"].uid, accounts["pilot"].gid)
    said = as_account(accounts["pilot"], _signalled, home)
    stopped = said["stopped"]
    assert (stopped["empty"], stopped["route"], stopped["switch_calls"]) == (True, "own", 0)
    assert said["left"] == []
    assert "own" in said["routes"]
