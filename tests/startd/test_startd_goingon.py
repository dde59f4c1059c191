"""What a startd answers a starter that has sent a checkpoint: may its job go on here?"""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import trio

from startd.claim import State
from startd.claimevents import Cause, Retire
from startd.drain import Drain, HowFast, Then
from starter.messages import AskGoingOn, GoingOn
from tests.startd.test_startd_jobcommands import running

DRAIN = Drain("1", HowFast.GRACEFUL, Then.NOTHING, "r", start="true")


@pytest.mark.parametrize(
    ("settings", "retired", "drain", "expected"),
    [
        ({}, False, None, True),
        ({"claim_worklife": 0.0}, False, None, False),
        ({"claim_worklife": -1.0}, False, None, True),
        ({}, True, None, False),
        ({}, False, DRAIN, False),
        ({"claim_worklife": 0.0, "check_reactivate_after_checkpoint": False}, True, DRAIN, True),
    ],
    ids=["young", "worklife", "no-worklife", "retiring", "drained", "not-to-be-asked"],
)
async def test_it_is_told_whether_the_claim_would_take_it_again(
    settings: dict[str, Any], retired: bool, drain: Drain | None, expected: bool
) -> None:
    async with running() as (here, held, starter):
        here.claims.settings = attrs.evolve(here.claims.settings, **settings)
        here.claims.drain = drain
        if retired:
            here.claims.handle(held, Retire(600.0, "x", 1018, Cause.WANTED))
        before = held.life.state
        await starter.send(AskGoingOn(7))
        with trio.fail_after(30):
            answer, _ = await starter.receive()
        assert answer == GoingOn(7, expected)
        assert held.life.state is before, "a question changes nothing"
        assert before in (State.BUSY, State.RETIRING)
