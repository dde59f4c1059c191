"""The startd's port against who guesses, keeps or mixes up claim ids: refused, and nothing has changed."""

from __future__ import annotations

import os
from contextlib import suppress
from types import SimpleNamespace
from typing import cast

import pytest
import trio
from classad2 import ClassAd

from cedar.claims import EXECUTE_SIDE
from cedar.classads import parse_old, to_wire
from cedar.client import Negotiate, Resume, connect
from cedar.codec import Item
from cedar.commands import ClaimReply, Command
from cedar.errors import PeerFault, Refused
from pilot.rpc import Channel
from startd.claim import State
from startd.claimevents import Activate, StarterGone, StarterRuns
from startd.slottypes import SlotType
from starter.messages import LastWordHeard
from tests.startd.startdport import JOB, TOTAL, guessed, port, state

ON_A_CLAIM = (
    Command.ALIVE, Command.RELEASE_CLAIM, Command.SUSPEND_CLAIM, Command.CONTINUE_CLAIM, Command.DEACTIVATE_CLAIM,
    Command.DEACTIVATE_CLAIM_FORCIBLY, Command.DEACTIVATE_CLAIM_JOB_DONE, Command.REACTIVATE_CLAIM_CHECK,
)  # fmt: skip


@pytest.mark.parametrize("command", [*ON_A_CLAIM, Command.ACTIVATE_CLAIM])
async def test_the_public_part_of_a_claim_id_opens_nothing(command: Command) -> None:
    async with port() as here:
        held = await here.claim()
        before, heard_s = state(here), held.heard_s
        with pytest.raises((PeerFault, Refused)):
            await here.say(command, guessed(held.claim_id), guessed(held.claim_id).text, 2, JOB)
        assert state(here) == before
        assert held.heard_s == heard_s


async def test_a_guessed_id_claims_no_slot() -> None:
    async with port() as here:
        before = state(here)
        with pytest.raises((PeerFault, Refused)):
            await here.say(Command.REQUEST_CLAIM, guessed(here.slot.current), here.slot.current.text, JOB, "", 10)
        assert state(here) == before


async def test_an_id_of_another_startd_opens_nothing_here() -> None:
    async with port() as here, port() as elsewhere:
        theirs = await elsewhere.claim()
        before = state(here), state(elsewhere)
        for claim_id in (elsewhere.slot.current, theirs.claim_id):
            for command in (Command.REQUEST_CLAIM, Command.ACTIVATE_CLAIM):
                with pytest.raises((PeerFault, Refused)):
                    await here.say(command, claim_id, claim_id.text, JOB, "", 10)
        assert (state(here), state(elsewhere)) == before


async def test_a_used_id_claims_no_second_slot() -> None:
    async with port() as here:
        held = await here.claim()
        before = state(here)
        reader = await here.say(Command.REQUEST_CLAIM, held.claim_id, held.claim_id.text, JOB, "", 10)
        assert reader is not None
        assert reader.int() == 0
        assert state(here) == before


async def test_a_starter_that_its_shadow_waits_for_hears_so() -> None:
    """It would wait for the shadow's end otherwise, and each for the other."""
    async with port() as here:
        held = await here.claim()
        for event in (Activate(1), StarterRuns(7)):
            held.life.handle(event, now_s=0.0)

        async def send(message: object) -> None:
            assert message == LastWordHeard()
            here.claims.handle(held, StarterGone(0, broken=False))

        held.starter = cast(Channel, SimpleNamespace(send=send))
        with trio.fail_after(30):
            answer = await here.say(Command.DEACTIVATE_CLAIM_JOB_DONE, held.claim_id, held.claim_id.text)
        assert answer is not None
        assert "StillCleaning" not in answer.ad()


@pytest.mark.parametrize("command", [*ON_A_CLAIM, Command.ACTIVATE_CLAIM])
async def test_one_claims_session_cannot_speak_for_another(command: Command) -> None:
    async with port() as here:
        one, other = await here.claim(), await here.claim()
        before = state(here)
        with pytest.raises(PeerFault):
            await here.say(command, one.claim_id, other.claim_id.text, 2, JOB)
        assert state(here) == before


async def test_a_released_claim_takes_no_job_any_more() -> None:
    async with port() as here:
        held = await here.claim()
        await here.say(Command.RELEASE_CLAIM, held.claim_id, held.claim_id.text, answer=False)
        with trio.fail_after(30):
            while here.slots.held:
                await here.claims.wait_change()
        assert here.slot.free == TOTAL
        reader = await here.say(Command.ACTIVATE_CLAIM, held.claim_id, held.claim_id.text, 2, JOB)
        assert reader is not None
        assert reader.int() == 0
        assert not here.slots.held


@pytest.mark.parametrize("command", [*ON_A_CLAIM, Command.ACTIVATE_CLAIM, Command.REQUEST_CLAIM])
async def test_who_has_no_claim_may_only_ask(command: Command) -> None:
    async with port() as here:
        before = state(here)
        with pytest.raises((PeerFault, Refused)):
            await connect(here.address, command, Negotiate(authentication="OPTIONAL"), subsystem="TOOL", deadline_s=60)
        asked = await connect(
            here.address, Command.QUERY_STARTD_ADS, Negotiate(authentication="OPTIONAL"), subsystem="TOOL"
        )
        async with asked:
            await asked.put(parse_old('MyType = "Query"\n'))
            reader = await asked.get()
            assert reader.int() == 1
            assert here.slot.current.secret not in str(reader.ad())
        assert state(here) == before


def computed_s() -> float:
    """CPU time of this process, in which all of it runs, and of its children that have ended: on a busy machine the
    clock is no measure."""
    return sum(os.times()[:4])


async def test_a_strangers_question_cannot_keep_the_startd_busy() -> None:
    evil = 'regexp("(a+)+$", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab")'
    async with port() as here:
        for requirements, answered in (('regexp("^slot1.*@", Name)', True), (evil, False), ('eval("1 == 1")', False)):
            began_s = computed_s()
            asked = await connect(
                here.address, Command.QUERY_STARTD_ADS, Negotiate(authentication="OPTIONAL"), subsystem="TOOL"
            )
            async with asked:
                await asked.put(parse_old(f"Requirements = {requirements}\n"))
                if answered:
                    assert (await asked.get()).int() in (0, 1)
                else:
                    with pytest.raises(PeerFault):
                        await asked.get()
            assert computed_s() - began_s < 2


async def test_a_request_cannot_keep_the_startd_busy() -> None:
    """Each of its attributes takes a second and more where nothing stops it; a claim that is free stays so."""
    evil = " || ".join(['regexp("(a+)+$", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab")'] * 40)
    names = ("Requirements", "RequestCpus", "RequestMemory", "RequestDisk", "JobLeaseDuration", "User", "Importance")
    ad = parse_old("".join(f"{name} = {evil}\n" for name in names))
    async with port(start="TARGET.Importance =!= 7", rank="TARGET.Importance") as here:
        before = state(here)
        presented = here.slot.current
        began_s = computed_s()
        reader = await here.say(Command.REQUEST_CLAIM, presented, presented.text, ad, "", 10)
        assert reader is not None
        assert reader.int() == 0
        assert computed_s() - began_s < 2
        assert state(here) == before


async def test_a_job_whose_ad_cannot_be_passed_on_is_refused_and_the_claim_lives() -> None:
    """The starter reads the ad as the library prints it: `a.'q r'` is printed without quotes."""
    async with port() as here:
        held = await here.claim()
        lines = [*to_wire(JOB), "Odd = a.'q r'"]
        stream = await connect(
            here.address, Command.ACTIVATE_CLAIM, Resume(held.claim_id.session(EXECUTE_SIDE)), subsystem="SCHEDD",
            deadline_s=60,
        )  # fmt: skip
        async with stream:
            await stream.put(held.claim_id.text, 2, len(lines), *lines, "", "")
            with trio.fail_after(30), pytest.raises(PeerFault):
                await stream.get()
        assert held.life.state is State.IDLE
        reader = await here.say(Command.ACTIVATE_CLAIM, held.claim_id, held.claim_id.text, 2, JOB)
        assert reader is not None
        assert reader.int() == 1


async def test_nonsense_on_a_claims_session_ends_its_connection_only() -> None:
    async with port() as here:
        held = await here.claim()
        before = state(here)
        for command in (*ON_A_CLAIM, Command.ACTIVATE_CLAIM, Command.REQUEST_CLAIM):
            for item in (1, "", "x#y", JOB, b"\0" * 7, b"\xff" * 40):
                with pytest.raises(PeerFault):
                    await here.say(command, held.claim_id, item)
        assert state(here) == before
        await here.claim()


async def test_a_static_slot_is_claimed_whole_once_and_its_next_claim_has_another_id() -> None:
    async with port(types=[SlotType(1, "cpus=2", 2, partitionable=False)]) as here:
        first, second = here.slots.own
        presented, other = first.current, second.current
        wants = parse_old(str_of(JOB) + "_condor_SEND_LEFTOVERS = true\n_condor_SEND_CLAIMED_AD = true\n")
        reader = await here.say(Command.REQUEST_CLAIM, presented, presented.text, wants, "", 10)
        assert reader is not None
        assert (reader.int(), reader.string()) == (int(ClaimReply.SLOT_AD), presented.text)
        ad = reader.ad()
        assert (ad["Name"], ad["SlotType"], ad["State"], ad["Cpus"]) == (first.name, "Static", "Claimed", 2)
        assert reader.int() == 1, "nothing is left over of a static slot"
        held = here.slots.held[presented.session_id]
        assert held.name == first.name
        assert held.resources == first.plan.resources

        before = state(here)
        reader = await here.say(Command.REQUEST_CLAIM, presented, presented.text, JOB, "", 10)
        assert reader is not None
        assert reader.int() == 0, "each id is good for one claim"
        assert state(here) == before

        await here.say(Command.RELEASE_CLAIM, presented, presented.text, answer=False)
        with trio.fail_after(30):
            while here.slots.held:
                await here.claims.wait_change()
        assert first.current.session_id not in (presented.session_id, other.session_id)
        assert first.free == first.plan.resources
        reader = await here.say(Command.REQUEST_CLAIM, first.current, first.current.text, JOB, "", 10)
        assert reader is not None
        assert reader.int() == 1


async def test_several_partitionable_slots_are_carved_apart() -> None:
    async with port(types=[SlotType(1, "50%", 2, partitionable=True)]) as here:
        first, second = here.slots.own
        reader = await here.say(Command.REQUEST_CLAIM, second.current, second.current.text, JOB, "", 10)
        assert reader is not None
        assert reader.int() == 1
        assert [held.name for held in here.slots.held.values()] == ["slot2_1@node"]
        assert first.free == first.plan.resources
        assert second.free.cpus == second.plan.resources.cpus - 1


def str_of(ad: ClassAd) -> str:
    return "".join(f"{line}\n" for line in to_wire(ad))


MEGABYTE = {
    "text": [f'Env = "{"x" * 1_000_000}"'],
    "attributes": [f"Attribute{number} = {number}" for number in range(40_000)],
    "sum": ["Sum = " + "+".join(["1"] * 500_000)],
    "brackets": ["Deep = " + "(" * 500_000 + "1" + ")" * 500_000],
}


@pytest.mark.parametrize("kind", MEGABYTE)
async def test_a_request_of_a_megabyte_is_answered_or_refused_soon(kind: str) -> None:
    async with port() as here:
        presented, began_s = here.slot.current, computed_s()
        lines = [*to_wire(JOB), *MEGABYTE[kind]]
        said: list[Item] = [presented.text, len(lines), *lines, "", "", "", 10]
        with suppress(PeerFault):
            await here.say(Command.REQUEST_CLAIM, presented, *said)
        assert computed_s() - began_s < 4
        assert len(here.slots.held) == (kind == "text"), "a long text is a job's own affair, nonsense is refused"
        await here.claim()


async def test_one_request_may_carve_several_slots_as_long_as_there_is_room() -> None:
    async with port() as here:
        presented, room = here.slot.current, here.slot.free
        wants = parse_old(
            str_of(JOB) + "RequestCpus = 2\n_condor_NUM_DYNAMIC_SLOTS = 5\n_condor_SEND_CLAIMED_AD = true\n"
            "_condor_SEND_LEFTOVERS = true\n_condor_SECURE_CLAIM_ID = true\n"
        )
        reader = await here.say(Command.REQUEST_CLAIM, presented, presented.text, wants, "", 10)
        assert reader is not None
        claims = []
        for name in ("slot1_1@node", "slot1_2@node"):
            assert reader.int() == ClaimReply.SLOT_AD
            claims.append(reader.string())
            ad = reader.ad()
            assert (ad["Name"], ad["Cpus"]) == (name, 2)
        assert reader.int() == ClaimReply.LEFTOVERS_2
        claims.append(reader.string())
        assert len(set(claims)) == 3, "each slot has a claim of its own"
        assert claims[0] == presented.text
        assert claims[2] == here.slot.current.text
        left = reader.ad()
        assert (left["Cpus"], left["NumDynamicSlots"], left["LastSlotName"]) == (0, 2, "slot1_2@node")
        assert here.slot.free.memory_mb == room.memory_mb - 2 * 128
