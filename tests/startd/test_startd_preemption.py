"""A better claim for a slot that has one: it waits, has the slot, or goes away; a worse one is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import attrs
import pytest
import trio

from cedar.claims import EXECUTE_SIDE, ClaimId
from cedar.classads import get_str, parse_old
from cedar.client import Resume, connect
from cedar.codec import Item
from cedar.commands import Command
from cedar.sessions import SessionTable
from cedar.stream import CedarStream
from pilot.rpc import Channel
from startd.claim import State
from startd.claimevents import Cause, Deactivated
from startd.held import Held, Requester, Slots, Waiting
from startd.preemption import Preemption
from startd.resources import Resources
from startd.slottypes import SlotType, plan
from starter import messages as m
from tests.startd.startdport import LOG, ONE_SLOT, TOTAL, Port, port, state
from tests.startd.test_startd_jobcommands import JOB_TEXT, Spawner

STATIC = [SlotType(1, "cpus=2", 1, partitionable=False)]
RANK = "TARGET.Importance"
ADDRESS = "<127.0.0.1:4242?noUDP>"


def job(importance: int, user: str = "bob@x") -> Any:
    return parse_old(f'{JOB_TEXT}User = "{user}"\nImportance = {importance}\n')


@attrs.frozen
class Busy:
    """A slot with a running job of alice's, of rank 5."""

    port: Port
    held: Held
    starter: Channel

    @property
    def next_id(self) -> ClaimId:
        return self.port.slots.next_id(self.held)

    async def ask(self, presented: ClaimId, importance: int, *more: Item, user: str = "bob@x") -> CedarStream:
        """REQUEST_CLAIM on a connection that stays; its answer may be long in coming."""
        stream = await connect(
            self.port.address, Command.REQUEST_CLAIM, Resume(presented.session(EXECUTE_SIDE)),
            subsystem="SCHEDD", deadline_s=60,
        )  # fmt: skip
        await stream.put(presented.text, job(importance, user), "", 10, *more)
        return stream

    async def retired(self) -> None:
        await until(self.port, lambda: self.held.life.state is not State.BUSY)

    def end_job(self) -> None:
        self.port.claims.starter_ended(4711, 0)


async def until(here: Port, wanted: Any) -> None:
    with trio.fail_after(30):
        while not wanted():
            await here.claims.wait_change()


async def answer(stream: CedarStream) -> int:
    async with stream:
        with trio.fail_after(30):
            return (await stream.get()).int()


@asynccontextmanager
async def busy(types: list[SlotType]) -> AsyncIterator[Busy]:
    async with port(types=types, rank=RANK) as here:
        here.claims.retirement_s = lambda held: 3600.0
        presented = here.slot.current
        reader = await here.say(Command.REQUEST_CLAIM, presented, presented.text, job(5, "alice@x"), "", 10)
        assert reader is not None
        assert reader.int() == 1
        held = here.slots.held[presented.session_id]
        spawner = Spawner()
        here.claims.spawner = cast(Any, spawner)
        reader = await here.say(Command.ACTIVATE_CLAIM, presented, presented.text, 2, job(5, "alice@x"))
        assert reader is not None
        assert reader.int() == 1
        await trio.testing.wait_all_tasks_blocked()
        here.claims.starter_runs(1, 4711)
        async with spawner.channel:
            yield Busy(here, held, spawner.channel)


KINDS = pytest.mark.parametrize("types", [STATIC, [ONE_SLOT]], ids=["static", "dynamic"])


@KINDS
@pytest.mark.parametrize(("importance", "code"), [(6, 1018), (5, 1019)])
async def test_a_better_claim_waits_for_the_job_and_has_its_slot(
    types: list[SlotType], importance: int, code: int
) -> None:
    async with busy(types) as it:
        presented, resources = it.next_id, it.held.resources
        stream = await it.ask(presented, importance)
        await it.retired()
        assert it.held.life.state is State.RETIRING
        assert it.held.life.retired_for[1] == code
        ad = it.port.held_ad(it.held)
        shown = ad["CurrentRank"], ad["PreemptingRank"], ad["PreemptingUser"], ad["RemoteUser"], ad["Activity"]
        assert shown == (5.0, float(importance), "bob@x", "alice@x", "Retiring")
        assert it.next_id.session_id != presented.session_id, "for whoever is better than that one"
        it.end_job()
        assert await answer(stream) == 1
        heir = it.port.slots.held[presented.session_id]
        assert (heir.name, heir.resources, heir.requester.user) == (it.held.name, resources, "bob@x")
        assert (heir.life.state, heir.rank) == (State.IDLE, float(importance))
        assert list(it.port.slots.held.values()) == [heir] == it.port.slot.children


async def test_who_waits_may_be_named_by_whatever_bytes() -> None:
    async with busy([ONE_SLOT]) as it:
        stream = await it.ask(it.next_id, 6, user="bo\udcff@x")
        async with stream:
            await it.retired()
            ad = it.port.held_ad(it.held)
            assert get_str(ad, "PreemptingUser") == get_str(ad, "PreemptingOwner") == "bo\udcff@x"


@KINDS
async def test_a_worse_claim_is_refused_and_nothing_changes(types: list[SlotType]) -> None:
    async with busy(types) as it:
        presented = it.next_id
        before = state(it.port)
        assert await answer(await it.ask(presented, 4)) == 0
        assert (state(it.port), it.held.life.state, it.next_id.text) == (before, State.BUSY, presented.text)


@KINDS
async def test_a_claim_that_waits_no_more_lets_the_job_go_on(types: list[SlotType]) -> None:
    async with busy(types) as it:
        presented = it.next_id
        stream = await it.ask(presented, 6)
        await it.retired()
        await stream.aclose()
        await until(it.port, lambda: it.held.life.state is State.BUSY)
        assert "PreemptingUser" not in it.port.held_ad(it.held)
        presented = it.next_id
        stream = await it.ask(presented, 6)
        await it.retired()
        await it.port.say(Command.RELEASE_CLAIM, presented, presented.text, answer=False)
        assert await answer(stream) == 0
        assert it.held.life.state is State.BUSY
        await trio.testing.wait_all_tasks_blocked()
        session = it.port.slots.sessions.get(presented.session_id, trio.current_time())
        assert session is not None
        assert session.expires_s is not None, "an id that was good for nothing is not kept for ever"


async def test_who_has_got_the_slot_has_it_though_its_connection_ends_with_that() -> None:
    async with busy(STATIC) as it:
        stream = await it.ask(it.next_id, 6)
        await it.retired()
        waiting = it.held.waiting
        assert waiting is not None
        it.end_job()
        assert waiting.granted is not None
        Preemption(it.port.claims, it.port.held_ad, LOG).withdraw(waiting)
        assert waiting.granted is not None, "else nobody would give it back"
        await stream.aclose()


async def test_a_third_claim_takes_the_place_of_the_second_if_it_is_as_good() -> None:
    async with busy(STATIC) as it:
        second = await it.ask(it.next_id, 6)
        await it.retired()
        assert await answer(await it.ask(it.next_id, 5)) == 0, "good enough for the job, but not for who waits"
        third_id = it.next_id
        third = await it.ask(third_id, 7)
        assert await answer(second) == 0
        it.end_job()
        assert await answer(third) == 1
        assert list(it.port.slots.held) == [third_id.session_id]


async def test_an_idle_claim_goes_at_once() -> None:
    async with busy(STATIC) as it:
        it.end_job()
        await until(it.port, lambda: it.held.life.state is State.IDLE)
        assert await answer(await it.ask(it.next_id, 6)) == 1
        assert it.held.life.state is State.GONE


async def test_a_slot_that_breaks_or_takes_no_more_jobs_is_nobodys() -> None:
    async with busy(STATIC) as it:
        stream = await it.ask(it.next_id, 6)
        await it.retired()
        it.held.starter_broken = True
        it.end_job()
        assert await answer(stream) == 0
        assert not it.port.slots.held
    async with busy(STATIC) as it:
        stream = await it.ask(it.next_id, 6)
        await it.retired()
        it.port.claims.retiring = "the pilot ends"
        it.end_job()
        assert await answer(stream) == 0
        assert not it.port.slots.held
        assert it.port.slot.free == it.port.slot.plan.resources


async def test_the_job_is_ended_when_its_retirement_is_over() -> None:
    async with busy(STATIC) as it:
        it.port.claims.retirement_s = lambda held: 0.0
        stream = await it.ask(it.next_id, 6)
        with trio.fail_after(30):
            told = (await it.starter.receive())[0]
        assert told == m.Deactivate("graceful", "a job of higher rank takes the slot", 1018)
        it.end_job()
        assert await answer(stream) == 1


async def test_what_waits_is_not_forgotten_when_the_submit_side_ends_the_job() -> None:
    async with busy(STATIC) as it:
        stream = await it.ask(it.next_id, 6)
        await it.retired()
        assert it.held.life.causes == {Cause.WANTED}
        it.port.claims.handle(it.held, Deactivated("graceful", worklife_over=False))
        it.end_job()
        assert await answer(stream) == 1


def test_who_takes_a_slot_over_has_its_cores_and_what_nobody_took_opens_nothing() -> None:
    async def story() -> None:
        slots = Slots("node", ADDRESS, 1, SessionTable(), plan([ONE_SLOT], TOTAL), cores=(0, 1, 2, 3))
        requester = Requester(None, "alice@x", 60.0, 10.0)
        held = slots.carve(slots.first, Resources(2, 128, 1024), requester)
        presented = slots.take_next(held)
        heir = slots.hand_over(held, Waiting(presented, requester, 7.0))
        assert (heir.cores, heir.resources, heir.rank) == ((0, 1), held.resources, 7.0)
        unused = slots.next_id(heir)
        assert slots.taken_over_with(unused.session_id) is heir
        slots.give_back(heir, broken=False)
        assert slots.sessions.get(unused.session_id, trio.current_time()) is None
        assert slots.sessions.get(presented.session_id, trio.current_time()) is not None, "its last commands may come"
        assert slots.first.free == TOTAL

    trio.run(story)
