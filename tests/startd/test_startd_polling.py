"""The policy at work on a claim whose starter is played by the test."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import attrs
import pytest
import trio

from cedar.classads import evaluate
from cedar.commands import Command
from pilot.configuration import from_values
from pilot.rpc import Channel
from startd.claim import State
from startd.claimevents import Suspend
from startd.held import Held
from startd.polling import PolicyWatch
from starter import messages as m
from tests.startd.startdport import JOB, Port, guessed, port
from tests.startd.test_startd_jobcommands import running

LOG = logging.LoggerAdapter(logging.getLogger("test"), {})


@asynccontextmanager
async def watched(knobs: Mapping[str, str]) -> AsyncIterator[tuple[Pilot, Held, PolicyWatch]]:
    """A port with one busy claim; nothing is looked at but by the test."""
    async with running() as (here, held, starter):
        here.claims.settings = from_values(dict(knobs), source=None)
        watch = PolicyWatch(here.claims, here.held_ad, here.own_ad, LOG)
        here.claims.ending, here.claims.usage_seen = watch.ending, watch.look
        yield Pilot(here, starter), held, watch


@attrs.frozen
class Pilot:
    """The port, and the starter's end of its channel."""

    port: Port
    starter: Channel

    async def starter_says(self, update: str) -> None:
        """A word of the job's usage, and all that the startd does about it."""
        await self.starter.send(m.JobUpdate(update))
        await trio.testing.wait_all_tasks_blocked()

    async def starter_hears(self) -> object:
        with trio.fail_after(30):
            return (await self.starter.receive())[0]


def usage(memory_mb: int) -> str:
    return f"[ResidentSetSize = {memory_mb * 1024}; MemoryUsage = (ResidentSetSize + 1023) / 1024]"


async def test_usage_beyond_the_slots_ends_in_a_hold() -> None:
    knobs = {
        "PREEMPT": "MemoryUsage > Memory", "WANT_HOLD": "TARGET.MemoryUsage > MY.Memory", "WANT_HOLD_SUBCODE": "102",
        "WANT_HOLD_REASON": 'strcat("used ", MemoryUsage, " MB")',
    }  # fmt: skip
    async with watched(knobs) as (at, held, watch):
        watch.look(held)
        assert held.life.state is State.BUSY
        await at.starter_says(usage(100))
        watch.look(held)
        assert held.life.state is State.BUSY
        await at.starter_says(usage(500))
        assert await at.starter_hears() == m.HoldJob(True, 102, "used 500 MB")
        assert held.life.shown == "closing"
        assert at.port.held_ad(held)["Activity"] == "Vacating"


async def test_preempt_kills_at_once_where_no_vacate_is_wanted() -> None:
    async with watched({"PREEMPT": "NumPids > 7", "WANT_VACATE": "False"}) as (at, held, _watch):
        await at.starter_says("[NumPids = 8]")
        assert await at.starter_hears() == m.Deactivate("fast", "PREEMPT is true", 1011)
        assert at.port.held_ad(held)["State"] == "Preempting"


async def test_a_job_is_suspended_and_goes_on_by_policy() -> None:
    knobs = {"WANT_SUSPEND": "True", "SUSPEND": "NumPids == 1", "CONTINUE": "NumPids == 2"}
    async with watched(knobs) as (at, held, watch):
        await at.starter_says("[NumPids = 1]")
        assert await at.starter_hears() == m.SuspendJob()
        ad = at.port.held_ad(held)
        assert (ad["State"], ad["Activity"]) == ("Claimed", "Suspended")
        await at.starter_says("[NumPids = 2]")
        assert await at.starter_hears() == m.ContinueJob()
        at.port.claims.handle(held, Suspend())
        assert await at.starter_hears() == m.SuspendJob()
        watch.look(held)
        assert held.life.state is State.SUSPENDED, "that was the schedd's"


async def test_retirement_comes_before_the_end() -> None:
    knobs = {"PREEMPT": "True", "MAXJOBRETIREMENTTIME": "3600"}
    async with watched(knobs) as (at, held, watch):
        at.port.claims.retirement_s = lambda held: 3600.0
        watch.look(held)
        assert held.life.state is State.RETIRING
        watch.look(held)
        assert held.life.number == 18
        assert at.port.held_ad(held)["Activity"] == "Retiring"


@pytest.mark.parametrize(("start", "words"), [("TARGET.x", "undefined"), ("1/0", "an error"), ("false", "false")])
async def test_a_start_that_is_not_true_refuses_and_says_why(
    start: str, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with port(start=start) as at:
        before = at.slot.free, at.slot.current.text
        caplog.set_level(logging.INFO)
        presented = at.slot.current
        answer = await at.say(Command.REQUEST_CLAIM, presented, presented.text, JOB, "", 10)
        assert answer is not None
        assert answer.int() == 0
        assert (at.slot.free, at.slot.current.text) == before
        assert f"Start of the slot is {words}" in caplog.text


async def test_an_idle_claim_ends_when_the_owner_comes() -> None:
    async with port() as at:
        at.claims.settings = from_values({"IS_OWNER": "True"}, source=None)
        held = await at.claim()
        PolicyWatch(at.claims, at.held_ad, at.own_ad, LOG).look(held)
        assert held.life.state is State.GONE


async def test_an_idle_claim_ends_when_its_worklife_is_over_after_its_first_job() -> None:
    async with running() as (here, held, _):
        here.claims.settings = from_values({"CLAIM_WORKLIFE": "0"}, source=None)
        watch = PolicyWatch(here.claims, here.held_ad, here.own_ad, LOG)
        watch.look(held)
        assert held.life.state is State.BUSY, "a running job is nothing to it"
        here.claims.starter_ended(4711, 0)
        assert held.life.state is State.IDLE
        watch.look(held)
        assert held.life.state is State.GONE
    async with port() as at:
        at.claims.settings = from_values({"CLAIM_WORKLIFE": "0"}, source=None)
        held = await at.claim()
        PolicyWatch(at.claims, at.held_ad, at.own_ad, LOG).look(held)
        assert held.life.state is State.IDLE, "its first job is on the way"


async def test_a_slot_is_its_owners_where_start_is_false_for_everybody() -> None:
    async with port(start="False") as at:
        at.claims.settings = from_values({"IS_OWNER": "(START =?= False)", "START": "False"}, source=None)
        watch = PolicyWatch(at.claims, at.held_ad, at.own_ad, LOG)
        watch.judge(at.slot)
        ad = at.own_ad(at.slot)
        assert (ad["State"], ad["Activity"]) == ("Owner", "Idle")
        at.claims.settings = from_values({}, source=None)
        watch.reconfigure()
        watch.judge(at.slot)
        assert at.own_ad(at.slot)["State"] == "Unclaimed"


async def test_a_match_keeps_others_away_until_its_schedd_comes_or_its_time_is_over() -> None:
    async with port() as at:
        at.claims.settings = from_values({"MATCH_TIMEOUT": "0.3"}, source=None)
        for comes in (True, False):
            current = at.slot.current
            await at.say(Command.MATCH_INFO, current, current.text, answer=False)
            await shown(at, "Matched")
            assert evaluate(at.own_ad(at.slot), "Requirements", JOB) is False
            if comes:
                await at.claim()
                assert at.own_ad(at.slot)["State"] == "Unclaimed", "what is left of it"
        await shown(at, "Unclaimed")
        await at.claim()


async def test_a_match_with_a_guessed_id_or_one_that_is_a_claim_by_now_is_none(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    async with port() as at:
        held = await at.claim()
        await at.say(Command.MATCH_INFO, held.claim_id, held.claim_id.text, answer=False)
        current = at.slot.current
        await at.say(Command.MATCH_INFO, current, guessed(current).text, answer=False)
        await at.claim()  # served after it
        assert at.own_ad(at.slot)["State"] == "Unclaimed"
    assert "a claim already" in caplog.text
    assert "no free slot" not in caplog.text, (
        "anybody may say it, as often as he likes: a refusal, which is told rarely"
    )


async def shown(at: Port, wanted: str) -> None:
    with trio.fail_after(30):
        while at.own_ad(at.slot)["State"] != wanted:
            await at.claims.wait_change()
