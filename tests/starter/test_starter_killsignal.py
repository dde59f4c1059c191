"""Which signal a soft stop begins with, and that nobody waits long to know."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import trio.testing
from classad2 import ClassAd

from cedar.errors import PeerFault
from starter.description import Description, describe
from starter.killsignal import ASK_S, signal_for, soft_signal
from starter.work import Work


def described(**more: object) -> Description:
    return describe(ClassAd({"ClusterId": 1, "ProcId": 0, "Cmd": "a"} | more))


@pytest.mark.parametrize(
    ("status", "number"), [("2", 10), ("3", 10), ("5", 12), ("", 10), ("UNDEFINED", 10), ("5 ", 12)]
)
def test_the_jobs_status_chooses(status: str, number: int) -> None:
    job = described(KillSig="SIGINT", RemoveKillSig="SIGUSR1", HoldKillSig=12)
    assert signal_for(job, status) == number


def test_what_is_not_said_is_kill_sig() -> None:
    assert [signal_for(described(), status) for status in ("3", "5", "2")] == [15, 15, 15]


async def asked(job: Description, remote: Any) -> int:
    async with trio.open_nursery() as nursery:
        work = SimpleNamespace(
            description=job, ahead=SimpleNamespace(nursery=nursery), shadow=SimpleNamespace(remote=remote)
        )
        number = await soft_signal(cast(Work, work))
        nursery.cancel_scope.cancel()
    return number


async def test_the_shadow_is_asked() -> None:
    async def remote(call: int, name: str) -> tuple[int, Any]:
        assert (int(call), name) == (285, "JobStatus")
        return 0, SimpleNamespace(string=lambda: "5")

    assert await asked(described(HoldKillSig="SIGUSR1"), remote) == 10


async def test_a_job_with_one_signal_costs_no_question() -> None:
    async def remote(*_: object) -> tuple[int, Any]:
        raise AssertionError("asked")

    assert await asked(described(KillSig="SIGINT", RemoveKillSig="SIGINT", HoldKillSig="SIGINT"), remote) == 2


async def test_a_shadow_that_is_gone_changes_nothing() -> None:
    async def remote(*_: object) -> tuple[int, Any]:
        raise PeerFault("closed", "gone")

    assert await asked(described(RemoveKillSig="SIGUSR1"), remote) == 10


async def test_a_slow_shadow_is_not_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    async def remote(*_: object) -> tuple[int, Any]:
        await trio.sleep(1_000)
        raise AssertionError

    before_s = trio.current_time()
    assert await asked(described(RemoveKillSig="SIGUSR1"), remote) == 10
    assert trio.current_time() - before_s == ASK_S
