"""procd.routes.SwitchCalls in virtual time, with a switch that notes its calls and can't be started."""

from __future__ import annotations

import errno
import math
from collections.abc import Sequence
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing

from pilot.calls import Call, Running
from procd.planner import PATIENT_PART, Planner, Spread
from procd.process import ProcessId
from procd.routes import Order, Report, SwitchCalls
from tests.procd import world

SOMEBODY = [ProcessId(4321, 17)]
ORDER = Order(uid=1000, credential="/alice", audit_id="site#1", number=9, tree=True, deadline_s=30.0)


@attrs.define
class Refusing:
    """A switch that notes when it is called and for whom."""

    name: str = "refusing"
    isolates: bool = True
    needs_credential: bool = True
    calls: list[tuple[float, Path | None]] = attrs.field(factory=list)

    async def start(self, call: Call) -> Running:
        await trio.lowlevel.checkpoint()
        self.calls.append((trio.current_time(), call.credential))
        raise OSError(errno.ENOENT, "No such file or directory")


@attrs.define
class Desk:
    """Asks, and notes the answers with their times."""

    calls: SwitchCalls
    answers: list[tuple[float, Report]] = attrs.field(factory=list)
    heard: int = 0

    def _hear(self) -> None:
        self.heard += 1

    async def ask(self, order: Order, targets: Sequence[ProcessId] = SOMEBODY, *, urgent: bool = False) -> None:
        report = await self.calls.ask(order, lambda: targets, urgent=urgent, on_call=self._hear)
        self.answers.append((trio.current_time(), report))


@pytest.fixture
def switch() -> Refusing:
    return Refusing()


def desk(switch: Refusing, spread: Spread) -> Desk:
    return Desk(SwitchCalls(switch, world.settings(), Planner(spread), answer_s=60.0))


async def test_orders_of_one_key_share_a_call_and_each_is_answered(
    switch: Refusing, autojump_clock: trio.testing.MockClock
) -> None:
    here = desk(switch, Spread(2.0, 10.0))
    async with trio.open_nursery() as nursery:
        await nursery.start(here.calls.run)
        async with trio.open_nursery() as asking:
            for credential in ("/alice", "/alice", "/bob", "/alice"):
                asking.start_soon(here.ask, attrs.evolve(ORDER, credential=credential))
        nursery.cancel_scope.cancel()
    assert sorted(str(credential) for _, credential in switch.calls) == ["/alice", "/bob"]
    assert [report.failure for _, report in here.answers] == [
        "unavailable: cannot start refusing: No such file or directory"
    ] * 4
    assert here.heard == 4
    assert all(at_s <= 4.0 for at_s, _ in switch.calls)  # two calls, two jitters


async def test_an_order_that_is_late_for_its_targets_costs_no_call(
    switch: Refusing, autojump_clock: trio.testing.MockClock
) -> None:
    """While a call waits, a job may end by itself."""
    here = desk(switch, Spread(2.0))
    running = list(SOMEBODY)
    async with trio.open_nursery() as nursery:
        await nursery.start(here.calls.run)
        async with trio.open_nursery() as asking:
            asking.start_soon(here.ask, ORDER, running)
            await trio.testing.wait_all_tasks_blocked()
            running.clear()
        nursery.cancel_scope.cancel()
    assert switch.calls == []
    assert [report for _, report in here.answers] == [Report()]


async def test_a_cancelled_order_is_withdrawn(switch: Refusing, autojump_clock: trio.testing.MockClock) -> None:
    here = desk(switch, Spread(2.0))
    async with trio.open_nursery() as nursery:
        await nursery.start(here.calls.run)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as asking:
                asking.start_soon(here.ask, ORDER)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        await trio.sleep(100)
        nursery.cancel_scope.cancel()
    assert (switch.calls, here.answers) == ([], [])


async def test_one_pilot_with_many_jobs_keeps_to_its_rate_and_every_job_to_its_time(
    switch: Refusing, autojump_clock: trio.testing.MockClock
) -> None:
    here = desk(switch, Spread(2.0, 10.0, rate_per_s=2.0, burst=4))
    async with trio.open_nursery() as nursery:
        await nursery.start(here.calls.run)
        async with trio.open_nursery() as asking:
            for uid in range(24):
                asking.start_soon(here.ask, attrs.evolve(ORDER, uid=uid, deadline_s=300.0))
            asking.start_soon(here.ask, attrs.evolve(ORDER, uid=99, deadline_s=1.0))
        nursery.cancel_scope.cancel()
    made = sorted(at_s for at_s, _ in switch.calls)
    assert len(made) == 25
    assert made[0] <= PATIENT_PART * 1.0
    for second in range(math.ceil(made[-1])):
        assert sum(second <= at_s < second + 1 for at_s in made) <= 4 + 2
