"""Commands inside of ads (CA_CMD, CA_AUTH_CMD): who may say which, what follows; hostile ones change nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

import attrs
import pytest
import trio
import trio.testing
from classad2 import ClassAd

from cedar.claims import EXECUTE_SIDE, ClaimId
from cedar.classads import parse_old, set_str
from cedar.client import Negotiate, Resume, connect
from cedar.commands import Command
from cedar.errors import PeerFault, Refused
from startd import claimagent
from startd.claim import State
from startd.held import Held
from startd.machineupdate import MAX_ATTRIBUTES, MachineUpdate, UpdateRefused
from tests.startd.startdport import FakeSpawner, Port, port, state

JOB = parse_old(
    "RequestCpus = 1\nRequestMemory = 128\nRequestDisk = 1024\nRequirements = true\n"
    'User = "alice@x"\nClusterId = 7\nProcId = 1\n'
)
ON_CLAIMS = ("CA_RELEASE_CLAIM", "CA_DEACTIVATE_CLAIM", "CA_SUSPEND_CLAIM", "CA_RESUME_CLAIM",
             "CA_RENEW_LEASE_FOR_CLAIM", "CA_ACTIVATE_CLAIM")  # fmt: skip


@asynccontextmanager
async def busy(**how: Any) -> AsyncIterator[tuple[Port, Held]]:
    """A claim with a job."""
    async with port(**how) as here:
        held = await here.claim()
        here.claims.spawner = cast(Any, FakeSpawner())
        reader = await here.say(Command.ACTIVATE_CLAIM, held.claim_id, held.claim_id.text, 2, JOB)
        assert reader is not None
        assert reader.int() == 1
        await trio.testing.wait_all_tasks_blocked()
        here.claims.starter_runs(1, 4711)
        yield here, held


async def on_claim(here: Port, claim: ClaimId, **values: Any) -> ClassAd:
    reader = await here.say(Command.CA_CMD, claim, ClassAd(values))
    assert reader is not None
    return reader.ad()


async def as_administrator(here: Port, ad: ClassAd) -> ClassAd:
    wish = Negotiate(methods=("FS",), authentication="REQUIRED")
    async with await connect(here.address, Command.CA_AUTH_CMD, wish, subsystem="TOOL", deadline_s=60) as stream:
        await stream.put(ad)
        with trio.fail_after(30):
            return (await stream.get()).ad()


# --- on a claim's session ----------------------------------------------------------------------------------------


async def test_a_job_is_suspended_and_continued() -> None:
    async with busy() as (here, held):
        claim = held.claim_id
        for command, result, now in (
            ("CA_RESUME_CLAIM", "InvalidState", State.BUSY), ("CA_SUSPEND_CLAIM", "Success", State.SUSPENDED),
            ("CA_RESUME_CLAIM", "Success", State.BUSY),
        ):  # fmt: skip
            answer = await on_claim(here, claim, Command=command, ClaimId=claim.text)
            assert (answer["Result"], held.life.state) == (result, now)


@pytest.mark.parametrize(
    ("command", "how", "meanwhile", "after"),
    [
        ("CA_DEACTIVATE_CLAIM", "GRACEFUL", "graceful", State.IDLE),
        ("CA_DEACTIVATE_CLAIM", "FAST", "fast", State.IDLE),
        ("CA_RELEASE_CLAIM", "GRACEFUL", "graceful", State.GONE), ("CA_RELEASE_CLAIM", "FAST", "fast", State.GONE),
    ],
)  # fmt: skip
async def test_the_answer_comes_when_the_job_is_over(command: str, how: str, meanwhile: str, after: State) -> None:
    async with busy() as (here, held), trio.open_nursery() as nursery:
        claim, answers = held.claim_id, []

        async def ask() -> None:
            answers.append(await on_claim(here, claim, Command=command, ClaimId=claim.text, VacateType=how))

        nursery.start_soon(ask)
        while held.life.ended is None:
            await trio.testing.wait_all_tasks_blocked()
        assert held.life.ended.how == meanwhile
        assert answers == []
        assert here.claims.starter_ended(4711, 0)
        while not answers:
            await trio.testing.wait_all_tasks_blocked()
        assert (answers[0]["Result"], held.life.state) == ("Success", after)


async def test_a_job_that_does_not_end_is_no_success(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claimagent, "ENDS_WITHIN_S", 0.05)
    async with busy() as (here, held):
        claim = held.claim_id
        answer = await on_claim(here, claim, Command="CA_DEACTIVATE_CLAIM", ClaimId=claim.text)
        assert answer["Result"] == "Failure"
        assert held.life.state is State.VACATING


@pytest.mark.parametrize("command", ["CA_DEACTIVATE_CLAIM", "CA_SUSPEND_CLAIM", "CA_RESUME_CLAIM"])
async def test_a_claim_without_a_job_is_in_the_wrong_state(command: str) -> None:
    async with port() as here:
        held = await here.claim()
        answer = await on_claim(here, held.claim_id, Command=command, ClaimId=held.claim_id.text)
        assert answer["Result"] == "InvalidState"
        assert held.life.state is State.IDLE


async def test_a_lease_is_renewed() -> None:
    async with port() as here:
        held = await here.claim()
        held.heard_s = 0.0
        answer = await on_claim(here, held.claim_id, Command="CA_RENEW_LEASE_FOR_CLAIM", ClaimId=held.claim_id.text)
        assert answer["Result"] == "Success"
        assert held.heard_s > 0


async def test_no_job_starts_without_a_shadow() -> None:
    async with port() as here:
        held = await here.claim()
        claim = held.claim_id
        answer = await on_claim(here, claim, Command="CA_ACTIVATE_CLAIM", ClaimId=claim.text, JobKeyword="x")
        assert answer["Result"] == "InvalidRequest"
        assert "shadow" in answer["ErrorString"]
    async with busy() as (here, held):
        claim = held.claim_id
        answer = await on_claim(here, claim, Command="CA_ACTIVATE_CLAIM", ClaimId=claim.text)
        assert answer["Result"] == "InvalidState"


@pytest.mark.parametrize(
    ("kind", "result"),
    [({}, "InvalidRequest"), ({"ClaimType": "COD"}, "NotAuthorized"),
     ({"ClaimType": "OPPORTUNISTIC"}, "InvalidRequest"),
     ({"ClaimType": "golden"}, "InvalidRequest"), ({"ClaimType": 7}, "InvalidRequest")],
)  # fmt: skip
async def test_no_claim_is_to_be_had_by_an_ad(kind: dict[str, Any], result: str) -> None:
    async with port(own_account=True) as here:
        held = await here.claim()
        before = state(here)
        for answer in (
            await on_claim(here, held.claim_id, Command="CA_REQUEST_CLAIM", **kind),
            await as_administrator(here, ClassAd({"Command": "CA_REQUEST_CLAIM", **kind})),
        ):
            assert answer["Result"] == result
        assert state(here) == before


# --- hostile -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ad",
    [
        {}, {"Command": 7}, {"Command": "CA_MAKE_TEA"}, {"Command": "x" * 100_000}, {"Command": "CA_BULK_REQUEST"},
        {"Command": "CA_SUSPEND_CLAIM"}, {"Command": "CA_SUSPEND_CLAIM", "ClaimId": 7},
        {"Command": "CA_RELEASE_CLAIM", "ClaimId": ""},
    ],
)  # fmt: skip
async def test_what_is_no_command_or_names_no_claim_is_refused(ad: dict[str, Any]) -> None:
    async with busy(own_account=True) as (here, held):
        before = state(here)
        for answer in (await on_claim(here, held.claim_id, **ad), await as_administrator(here, ClassAd(ad))):
            assert answer["Result"] == "InvalidRequest"
            assert len(answer["ErrorString"]) < 200
        assert state(here) == before


async def test_another_way_to_end_a_job_is_none() -> None:
    async with busy() as (here, held):
        claim = held.claim_id
        answer = await on_claim(here, claim, Command="CA_RELEASE_CLAIM", ClaimId=claim.text, VacateType="SOFTLY")
        assert answer["Result"] == "InvalidRequest"
        assert held.life.state is State.BUSY


@pytest.mark.parametrize("command", ON_CLAIMS)
async def test_one_claims_session_does_nothing_to_another(command: str) -> None:
    async with busy() as (here, held):
        other = await here.claim()
        before = state(here)
        with pytest.raises(PeerFault):
            await on_claim(here, other.claim_id, Command=command, ClaimId=held.claim_id.text, VacateType="FAST")
        assert state(here) == before


@pytest.mark.parametrize("command", ON_CLAIMS)
async def test_an_administrator_needs_the_whole_claim_id(command: str) -> None:
    async with busy(own_account=True) as (here, held):
        before = state(here)
        for told in (held.claim_id.public, held.claim_id.session_id, held.claim_id.text[:-1], "x", "\udcff"):
            ad = ClassAd({"Command": command, "VacateType": "FAST"})
            set_str(ad, "ClaimId", told)
            answer = await as_administrator(here, ad)
            assert (answer["Result"], answer["ErrorString"]) == ("Failure", "ClaimId not found")
        assert state(here) == before


async def test_an_administrator_with_the_id_commands_the_claim() -> None:
    async with busy(own_account=True) as (here, held):
        ad = ClassAd({"Command": "CA_SUSPEND_CLAIM", "ClaimId": held.claim_id.text})
        assert (await as_administrator(here, ad))["Result"] == "Success"
        assert held.life.state is State.SUSPENDED


@pytest.mark.parametrize("command", ["CA_LOCATE_STARTER", "CA_RECONNECT_JOB"])
async def test_what_is_a_shadows_comes_on_its_claims_session(command: str) -> None:
    async with busy(own_account=True) as (here, held):
        answer = await as_administrator(here, ClassAd({"Command": command, "ClaimId": held.claim_id.text}))
        assert answer["Result"] == "InvalidRequest"


async def test_strangers_and_claims_are_no_administrators() -> None:
    async with busy() as (here, held):
        with pytest.raises((Refused, PeerFault)):
            await as_administrator(here, ClassAd({"Command": "CA_UPDATE_MACHINE_AD", "Nice": True}))
        with pytest.raises((Refused, PeerFault)):
            await connect(
                here.address, Command.CA_AUTH_CMD, Resume(held.claim_id.session(EXECUTE_SIDE)), subsystem="TOOL"
            )
        answer = await on_claim(here, held.claim_id, Command="CA_UPDATE_MACHINE_AD", Nice=True)
        assert answer["Result"] == "NotAuthorized"
        assert said(here.update) == {}


async def test_an_ad_of_a_megabyte_changes_nothing() -> None:
    async with busy(own_account=True) as (here, held):
        before = state(here)
        ad = ClassAd({"Command": "CA_UPDATE_MACHINE_AD", "Big": "x" * (1 << 20)})
        try:
            answer = await as_administrator(here, ad)
        except PeerFault:
            pass  # more than a message may have
        else:
            assert answer["Result"] == "Failure"
        many = ClassAd({"Command": "CA_SUSPEND_CLAIM", **{f"A{n}": n for n in range(20_000)}})
        with suppress(PeerFault):
            assert (await on_claim(here, held.claim_id, **dict(many)))["Result"] == "InvalidRequest"
        assert state(here) == before
        assert said(here.update) == {}


# --- the machine's ad --------------------------------------------------------------------------------------------


def said(update: MachineUpdate) -> dict[str, Any]:
    ad = ClassAd()
    update.merge_into(ad)
    return dict(ad)


async def test_the_machines_ad_is_updated() -> None:
    async with port(own_account=True) as here:
        ad = parse_old('MyType = "Command"\nCommand = "CA_UPDATE_MACHINE_AD"\nNice = Cpus > 2\nRack = "b7"\n')
        assert (await as_administrator(here, ad))["Result"] == "Success"
        slot = ClassAd({"Cpus": 4, "Name": "slot1@x"})
        here.update.merge_into(slot)
        assert (slot.eval("Nice"), slot["Rack"], slot["Name"]) == (True, "b7", "slot1@x")
        assert "Command" not in slot


def test_an_update_adds_to_the_last_one() -> None:
    update = MachineUpdate()
    update.take(ClassAd({"A": 1, "B": 1, "OfflineUniverses": "x"}))
    update.take(ClassAd({"b": 2}))
    assert said(update) == {"A": 1, "B": 2}


@pytest.mark.parametrize(
    "name",
    ["Name", "start", "Requirements", "ClaimId", "Capability", "_condor_PrivRemoteAdminCapability", "Cpus", "MyAddress",
     "SailplaneIsolated", "RemoteUser"],
)  # fmt: skip
def test_what_a_slot_is_cannot_be_set(name: str) -> None:
    update = MachineUpdate()
    with pytest.raises(UpdateRefused):
        update.take(ClassAd({"Nice": True, name: "x"}))
    assert said(update) == {}


@pytest.mark.parametrize("name", ["GPUs", "TotalSlotgpus", "AssignedGPUs", "availableGPUs"])
async def test_how_many_cards_there_are_cannot_be_set(name: str) -> None:
    async with port(own_account=True) as here:
        with_cards = attrs.evolve(here.slot.plan.resources, custom={"GPUs": ("GPU-1",)})
        here.slot.plan = attrs.evolve(here.slot.plan, resources=with_cards)
        answer = await as_administrator(here, ClassAd({"Command": "CA_UPDATE_MACHINE_AD", name: 8, "Rack": 1}))
        assert answer["Result"] == "Failure"
        assert said(here.update) == {}
        answer = await as_administrator(here, ClassAd({"Command": "CA_UPDATE_MACHINE_AD", "GPUs_Driver": 8}))
        assert answer["Result"] == "Success"


def test_updates_are_bounded_in_all() -> None:
    update = MachineUpdate()
    update.take(ClassAd({f"A{n}": n for n in range(MAX_ATTRIBUTES)}))
    with pytest.raises(UpdateRefused):
        update.take(ClassAd({"One": "more"}))
    assert "One" not in said(update)
