"""Several claims that become one, for condor_now; and what must not become one."""

from __future__ import annotations

import pytest
from classad2 import ClassAd

from cedar.claims import ClaimId
from cedar.classads import get_str, parse_old
from cedar.commands import Command
from cedar.errors import PeerFault, Refused
from startd.claim import State
from startd.claimevents import Activate, StarterRuns
from startd.held import Held
from startd.slottypes import SlotType
from tests.startd.startdport import Port, guessed, port, state


def job(cpus: int = 2, **more: object) -> ClassAd:
    ad = parse_old(
        f'RequestCpus = {cpus}\nRequestMemory = 128\nRequestDisk = 1024\nRequirements = true\nUser = "a@x"\n'
    )
    for name, value in more.items():
        ad[name] = value
    return ad


async def coalesce(on: Port, session_of: ClaimId, wanted: ClassAd, *claims: ClaimId) -> tuple[str, ClassAd, ClassAd]:
    """Result, answer and slot ad."""
    asked = ClassAd({"ClaimIdList": ", ".join(claim.text for claim in claims)})
    reader = await on.say(Command.COALESCE_SLOTS, session_of, asked, wanted)
    assert reader is not None
    answer = reader.ad()
    return get_str(answer, "Result"), answer, reader.ad()


async def two(on: Port) -> tuple[Held, Held]:
    return await on.claim(), await on.claim()


async def test_two_idle_claims_become_one_that_has_what_the_job_wants() -> None:
    async with port() as on:
        first, second = await two(on)
        cpus, next_id = on.slot.free.cpus, on.slot.current
        result, answer, slot = await coalesce(on, first.claim_id, job(), first.claim_id, second.claim_id)
        assert result == "Success"
        (held,) = on.slots.held.values()
        assert held.claim_id.text == get_str(answer, "ClaimId")
        assert (held.resources.cpus, on.slot.free.cpus) == (2, cpus)
        assert (held.life.state, held.requester.user) == (State.IDLE, "a@x")
        assert (get_str(slot, "Name"), slot["Cpus"], "ClaimId" in slot) == (held.name, 2, False)
        assert on.slot.current == next_id, "which may be on its way to somebody else"
        before = held.heard_s
        await on.say(Command.ALIVE, held.claim_id, held.claim_id.text, answer=False)
        await coalesce(on, held.claim_id, job(), first.claim_id)  # served after it
        assert held.heard_s > before
        assert list(on.slots.held.values()) == [held]


async def test_what_is_left_over_goes_back_to_the_slot() -> None:
    async with port() as on:
        first, second = await two(on)
        free = on.slot.free
        result, _, _ = await coalesce(on, first.claim_id, job(1), first.claim_id, second.claim_id)
        assert result == "Success"
        assert on.slot.free.cpus == free.cpus + 1


async def test_named_twice_a_claim_counts_once() -> None:
    async with port() as on:
        first, second = await two(on)
        result, _, _ = await coalesce(on, first.claim_id, job(4), first.claim_id, first.claim_id, second.claim_id)
        assert result == "Success", "two are free beside them"
        assert on.slot.free.cpus == 0


@pytest.mark.parametrize(
    ("wanted", "result"),
    [(job(5), "Failure"), (job(2, Requirements=False), "Failure"), (job(0), "Failure")],
    ids=["too large", "job does not want it", "nothing wanted"],
)
async def test_a_job_that_does_not_fit_leaves_them_as_they_are(wanted: ClassAd, result: str) -> None:
    async with port() as on:
        first, second = await two(on)
        before = state(on)
        assert (await coalesce(on, first.claim_id, wanted, first.claim_id, second.claim_id))[0] == result
        assert state(on) == before


async def test_one_whose_job_still_ends_is_to_be_asked_for_again() -> None:
    async with port() as on:
        first, second = await two(on)
        second.life.handle(Activate(1), now_s=0.0)
        second.life.handle(StarterRuns(0), now_s=0.0)
        before = state(on)
        result, _, slot = await coalesce(on, first.claim_id, job(), first.claim_id, second.claim_id)
        assert result == "InvalidState"
        assert len(slot) == 0
        assert state(on) == before


async def test_a_wrong_secret_or_another_connection_joins_nothing() -> None:
    async with port() as on:
        first, second = await two(on)
        before = state(on)
        wrong = guessed(second.claim_id)
        assert (await coalesce(on, first.claim_id, job(), first.claim_id, wrong))[0] == "InvalidRequest"
        assert (await coalesce(on, first.claim_id, job(), second.claim_id))[0] == "InvalidRequest"
        with pytest.raises((PeerFault, Refused)):
            await coalesce(on, wrong, job(), first.claim_id, second.claim_id)
        assert state(on) == before


async def test_a_startd_that_drains_joins_nothing() -> None:
    async with port() as on:
        first, second = await two(on)
        on.claims.draining = True
        before = state(on)
        assert (await coalesce(on, first.claim_id, job(), first.claim_id, second.claim_id))[0] == "InvalidRequest"
        assert state(on) == before


async def test_static_slots_are_not_put_together() -> None:
    async with port(types=[SlotType(1, "", 1, partitionable=False)]) as on:
        held = await on.claim()
        before = state(on)
        assert (await coalesce(on, held.claim_id, job(), held.claim_id))[0] == "InvalidRequest"
        assert state(on) == before


@pytest.mark.parametrize("texts", ["", ",,", "no claim", ",".join(f"x#{n}" for n in range(1025))])
async def test_a_list_that_is_none_ends_the_connection_and_nothing_else(texts: str) -> None:
    async with port() as on:
        first, _ = await two(on)
        before = state(on)
        with pytest.raises(PeerFault):
            await on.say(Command.COALESCE_SLOTS, first.claim_id, ClassAd({"ClaimIdList": texts}), job())
        assert state(on) == before
