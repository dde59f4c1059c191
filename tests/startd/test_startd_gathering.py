"""Room made in a partitionable slot (ALLOW_PSLOT_PREEMPTION): the rules, and what is said at the port."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from cedar.claims import EXECUTE_SIDE, ClaimId
from cedar.classads import parse_old
from cedar.client import Resume, connect
from cedar.codec import Item
from cedar.commands import ClaimReply, Command
from cedar.stream import CedarStream
from startd.claim import State as ClaimState
from startd.gathering import NUMBERED, CalledOff, Gathering, Gone, Grant, Keep, Refuse, State, kept_from
from startd.held import Held
from startd.resources import Resources
from startd.slotads import private_ad, roll_up
from startd.slottypes import SlotType
from tests.startd.startdport import ONE_SLOT, TOTAL, Port, guessed, port, state

FACTS = st.one_of(st.builds(Gone, st.sampled_from("abc"), st.booleans()), st.just(CalledOff()))
CLAIM_LIFE = Path(__file__).parents[2] / "docs" / "claim-life.md"


def test_the_last_one_that_goes_grants_it() -> None:
    gathering = Gathering(frozenset("ab"))
    assert gathering.handle(Gone("a", False)) == (Keep("a"),)
    assert gathering.handle(Gone("b", False)) == (Keep("b"), Grant())
    assert (gathering.state, gathering.number) == (State.GRANTED, 1)


def test_a_broken_one_and_a_schedd_that_goes_away_refuse_it_and_spare_the_others() -> None:
    gathering = Gathering(frozenset("abc"))
    gathering.handle(Gone("a", False))
    assert gathering.handle(Gone("b", True)) == (Refuse(frozenset("c")),)
    gathering = Gathering(frozenset("ab"))
    assert gathering.handle(CalledOff()) == (Refuse(frozenset("ab")),)


@given(st.lists(FACTS, max_size=8))
def test_it_is_decided_once(facts: list[Any]) -> None:
    gathering = Gathering(frozenset("abc"))
    commands = [command for fact in facts for command in gathering.handle(fact)]
    decided = [command for command in commands if isinstance(command, Grant | Refuse)]
    assert len(decided) == (gathering.state is not State.GATHERING)
    if Grant() in commands:
        assert {command.name for command in commands if isinstance(command, Keep)} == set("abc")
        assert commands[-1] == Grant()


def test_the_page_has_the_rules() -> None:
    rows = re.findall(r"^\| g(\d+) \| (\w+) \| (\w+) \|", CLAIM_LIFE.read_text(), re.MULTILINE)
    table = [(str(number), state.value, fact.__name__) for number, (state, fact, _) in enumerate(NUMBERED, 1)]
    assert rows == table


AMOUNTS = st.integers(0, 5)
SIZES = st.builds(Resources, AMOUNTS, AMOUNTS, AMOUNTS, st.fixed_dictionaries({"GPUs": AMOUNTS, "Licenses": AMOUNTS}))


@given(SIZES, SIZES, SIZES)
def test_what_is_kept_and_what_comes_is_enough_and_not_more_than_is_free(
    free: Resources, coming: Resources, wanted: Resources
) -> None:
    if not (free + coming).holds(wanted):
        return
    kept = kept_from(free, wanted, coming)
    assert free.holds(kept)
    assert (kept + coming).holds(wanted)


def test_devices_are_kept_by_their_ids() -> None:
    free = Resources(1, 1, 1, {"GPUs": ("A", "C", "C")})
    kept = kept_from(free, Resources(1, 1, 1, {"GPUs": ("A", "B", "C")}), Resources(1, 1, 1, {"GPUs": ("B", "D")}))
    assert kept.custom == {"GPUs": ("A", "C")}


# --- at the port -------------------------------------------------------------------------------------------------


def job(cpus: int, importance: int, user: str) -> Any:
    return parse_old(
        f'RequestCpus = {cpus}\nRequestMemory = 128\nRequestDisk = 1024\nRequirements = true\nUser = "{user}"\n'
        f"Importance = {importance}\n_condor_SEND_LEFTOVERS = true\n_condor_SECURE_CLAIM_ID = true\n"
        "_condor_SEND_CLAIMED_AD = true\n"
    )


@attrs.frozen
class Full:
    """A slot of four cores; three are two jobs of rank 5: of two cores, and of one."""

    port: Port
    two: Held
    one: Held

    @property
    def ids(self) -> list[str]:
        return [self.port.slots.next_id(held).text for held in (self.two, self.one)]

    async def ask(self, *named: str, cpus: int = 4, importance: int = 5) -> CedarStream:
        presented = self.port.slot.current
        stream = await connect(
            self.port.address, Command.REQUEST_CLAIM, Resume(presented.session(EXECUTE_SIDE)),
            subsystem="SCHEDD", deadline_s=60,
        )  # fmt: skip
        items: list[Item] = [presented.text, job(cpus, importance, "bob@x"), "", 10, len(named), *named]
        await stream.put(*items)
        return stream

    async def begun(self) -> None:
        await self.until(lambda: self.one.life.state is not ClaimState.BUSY)

    async def until(self, wanted: Any) -> None:
        with trio.fail_after(30):
            while not wanted():
                await self.port.claims.wait_change()

    def end(self, held: Held) -> None:
        assert held.starter_pid is not None
        self.port.claims.starter_ended(held.starter_pid, 0)


@asynccontextmanager
async def full(retirement_s: float = 3600.0) -> AsyncIterator[Full]:
    async with port(types=[ONE_SLOT], rank="TARGET.Importance") as here:
        here.claims.retirement_s = lambda held: retirement_s
        for cpus in (2, 1):
            presented = here.slot.current
            await here.say(Command.REQUEST_CLAIM, presented, presented.text, job(cpus, 5, "alice@x"), "", 10)
        two, one = here.slots.held.values()
        for pid, held in enumerate((two, one), 4711):
            held.life.state, held.starter_pid = ClaimState.BUSY, pid
        yield Full(here, two, one)


async def first_word(stream: CedarStream) -> int:
    async with stream:
        with trio.fail_after(30):
            return (await stream.get()).int()


async def test_a_claim_has_the_room_of_those_that_end_for_it_and_of_what_was_free() -> None:
    async with full() as it:
        presented = it.port.slot.current
        stream = await it.ask(*it.ids)
        await it.begun()
        assert it.port.slot.free.cpus == 0, "what was free is kept for it"
        assert it.two.life.retired_for == ("a user of better priority needs its room", 1019)
        it.end(it.two)
        assert it.port.slot.free.cpus == 0
        assert presented.session_id not in it.port.slots.held
        it.end(it.one)
        async with stream:
            with trio.fail_after(30):
                reader = await stream.get()
            assert (reader.int(), reader.string()) == (ClaimReply.SLOT_AD, presented.text)
            ad = reader.ad()
            assert (ad["Cpus"], ad["RemoteUser"], ad["CurrentRank"]) == (4, "bob@x", 5.0)
            assert (reader.int(), reader.string()) == (ClaimReply.LEFTOVERS_2, it.port.slot.current.text)
        (heir,) = it.port.slots.held.values()
        assert (heir.claim_id.text, heir.resources.cpus) == (presented.text, 4)
        assert it.port.slot.free + heir.resources == TOTAL
        assert it.port.slot.rooms == []


async def test_what_is_not_needed_stays_free_meanwhile() -> None:
    async with full() as it:
        stream = await it.ask(it.ids[0], cpus=2)
        await it.until(lambda: it.two.life.state is ClaimState.RETIRING)
        assert it.port.slot.free.cpus == 1
        it.end(it.two)
        assert await first_word(stream) == ClaimReply.SLOT_AD
        assert it.port.slot.free.cpus == 1
        assert it.one.life.state is ClaimState.BUSY


BAD = {
    "a guessed id": lambda it: [guessed(ClaimId.parse(it.ids[0])).text, it.ids[1]],
    "the present claim's own id": lambda it: [it.two.claim_id.text, it.ids[1]],
    "the slot's own id": lambda it: [it.port.slot.current.text, *it.ids],
    "one twice": lambda it: [it.ids[0], it.ids[0], it.ids[1]],
    "not enough": lambda it: [it.ids[0]],
}


@pytest.mark.parametrize("bad", BAD)
async def test_what_is_wrong_is_refused_and_nothing_changes(bad: str) -> None:
    async with full() as it:
        ids, before = it.ids, state(it.port)
        assert await first_word(await it.ask(*BAD[bad](it))) == 0
        assert (state(it.port), it.ids, it.port.slot.rooms) == (before, ids, [])


async def test_no_claim_id_ends_the_connection_and_nothing_else() -> None:
    async with full() as it:
        before = state(it.port)
        with pytest.raises(Exception):  # noqa: B017, PT011  # the connection ends, one way or the other
            await first_word(await it.ask("nonsense"))
        assert state(it.port) == before


async def test_a_worse_job_and_one_that_does_not_suit_are_refused() -> None:
    async with full() as it:
        before = state(it.port)
        assert await first_word(await it.ask(*it.ids, importance=4)) == 0
        assert await first_word(await it.ask(*it.ids, cpus=5)) == 0
        it.port.claims.retiring = "the pilot ends"
        assert await first_word(await it.ask(*it.ids)) == 0
        assert state(it.port) == before


async def test_a_schedd_that_goes_away_gives_the_room_back_and_jobs_that_retire_go_on() -> None:
    async with full() as it:
        stream = await it.ask(*it.ids)
        await it.begun()
        it.end(it.two)
        await stream.aclose()
        await it.until(lambda: it.one.life.state is ClaimState.BUSY)
        assert it.port.slot.free.cpus == 3
        assert it.one.when_gone is None
        it.end(it.one)
        assert it.one.life.state is ClaimState.IDLE


async def test_a_broken_one_is_nobodys_room() -> None:
    async with full() as it:
        stream = await it.ask(*it.ids)
        await it.begun()
        it.two.starter_broken = True
        it.end(it.two)
        assert await first_word(stream) == 0
        assert it.one.life.state is ClaimState.BUSY
        assert it.port.slot.free + it.one.resources + it.port.slot.withheld == TOTAL


async def test_a_startd_that_ends_meanwhile_refuses_it() -> None:
    async with full() as it:
        stream = await it.ask(*it.ids)
        await it.begun()
        it.port.claims.retiring = "the pilot ends"
        it.end(it.two)
        assert await first_word(stream) == 0
        assert it.port.slot.free.cpus == 3


async def test_a_slot_that_makes_room_is_not_promised_to_a_second_one() -> None:
    async with full() as it:
        stream = await it.ask(*it.ids)
        await it.begun()
        before = state(it.port)
        assert await first_word(await it.ask(it.ids[0], cpus=2, importance=9)) == 0
        presented = it.port.slots.next_id(it.two)
        reader = await it.port.say(
            Command.REQUEST_CLAIM, presented, presented.text, job(2, 9, "carol@x"), "", 10
        )  # fmt: skip
        assert reader is not None
        assert reader.int() == 0
        assert state(it.port)[1] == before[1]  # type: ignore[index]
        await stream.aclose()
        await it.until(lambda: it.one.life.state is ClaimState.BUSY)


async def test_the_claim_that_waits_can_be_released() -> None:
    async with full() as it:
        presented = it.port.slot.current
        stream = await it.ask(*it.ids)
        await it.begun()
        await it.port.say(Command.RELEASE_CLAIM, presented, presented.text, answer=False)
        assert await first_word(stream) == 0
        assert it.one.life.state is ClaimState.BUSY
        session = it.port.slots.sessions.get(presented.session_id, trio.current_time())
        assert session is not None
        assert session.expires_s is not None


async def test_idle_claims_go_at_once() -> None:
    async with full() as it:
        for held in (it.two, it.one):
            held.life.state = ClaimState.IDLE
        assert await first_word(await it.ask(*it.ids)) == ClaimReply.SLOT_AD


async def test_a_static_slot_makes_no_room() -> None:
    async with port(types=[SlotType(1, "cpus=2", 2, partitionable=False)]) as here:
        await here.claim()
        second = here.slots.own[1]
        reader = await here.say(
            Command.REQUEST_CLAIM, second.current, second.current.text, job(1, 5, "bob@x"), "", 10, 1,
            here.slots.own[0].current.text,
        )  # fmt: skip
        assert reader is not None
        assert reader.int() == 0
        assert len(here.slots.held) == 1


async def test_the_private_ad_names_what_makes_room_in_the_order_of_the_public_one() -> None:
    async with full() as it:
        ad = it.port.own_ad(it.port.slot)
        roll_up(ad, [it.port.held_ad(held) for held in (it.two, it.one)])
        private = private_ad(ad, it.port.slot.current, [it.port.slots.next_id(held) for held in (it.two, it.one)])
        assert list(ad["ChildName"]) == [it.two.name, it.one.name]
        assert list(private["ChildClaimIds"]) == it.ids
        assert private["NumDynamicSlots"] == ad["NumDynamicSlots"] == 2
        assert "ChildClaimIds" not in ad
