"""Resources, slots and their ads."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import attrs
import pytest
import trio
from classad2 import ClassAd, ExprTree

from cedar.classads import evaluate, matches, set_str
from cedar.sessions import SessionTable
from startd.contact import collector_addresses
from startd.held import Held, Requester, Slots
from startd.resources import DoesNotFit, Resources, Rounding, requested
from startd.slotads import Machine, SlotState, private_ad, public_ad, start_expression
from startd.slottypes import plan
from tests.startd.startdport import ONE_SLOT

TOTAL = Resources(4, 4000, 100_000)
ADDRESS = "<127.0.0.1:4242?noUDP>"
NOBODY = Requester(address=None, user="alice@x", lease_s=60.0, alive_interval_s=300.0)


def machine(**changes: object) -> Machine:
    values: dict[str, object] = {
        "name": "node", "fqdn": "node.example", "address": ADDRESS, "arch": "X86_64", "os": "LINUX",
        "os_version": "Debian12", "uid_domain": "example", "start_time": 1_700_000_000, "total": TOTAL,
        "start": "true", "rank": "0.0", "switch": "glexec", "switch_isolates": True, "needs_proxy": True,
    }  # fmt: skip
    return Machine(**{**values, **changes})  # type: ignore[arg-type]


def slots(cores: tuple[int, ...] = ()) -> Slots:
    return slots_of(TOTAL, cores)


def slots_of(total: Resources, cores: tuple[int, ...] = ()) -> Slots:
    return Slots("node", ADDRESS, 1_700_000_000, SessionTable(), plan([ONE_SLOT], total), cores=cores)


def job(**attributes: object) -> ClassAd:
    ad = ClassAd({"RequestCpus": 1, "RequestMemory": 128, "RequestDisk": 1024, "x509userproxysubject": "/CN=Alice"})
    ad["Requirements"] = ExprTree('TARGET.Arch == "X86_64" && TARGET.HasFileTransfer')
    for name, value in attributes.items():
        ad[name] = value
    return ad


def slot_state(pool: Slots | None = None, **changes: Any) -> SlotState:
    made = pool or slots()
    return made.state(made.first, **{"refused_users": (), "draining": False, "trouble": "", **changes})


def carve(pool: Slots, resources: Resources) -> Held:
    return pool.carve(pool.first, resources, NOBODY)


def pslot_ad(**changes: object) -> ClassAd:
    state = slot_state()
    return public_ad(machine(**changes), state, now=2, sequence=3)


def test_sizes_are_rounded_up_where_that_still_fits() -> None:
    assert requested(job(RequestMemory=100, RequestDisk=10), ClassAd(), TOTAL, Rounding()) == Resources(1, 128, 1024)
    assert requested(job(RequestMemory=3999), ClassAd(), TOTAL, Rounding()) == Resources(1, 3999, 1024)


@pytest.mark.parametrize(
    "wrong", [{"RequestCpus": 5}, {"RequestCpus": 0}, {"RequestMemory": -1}, {"RequestDisk": 10**9}]
)
def test_what_does_not_fit_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(DoesNotFit):
        requested(job(**wrong), ClassAd(), TOTAL, Rounding())


async def test_carving_moves_the_claim_id_and_mints_a_registered_one() -> None:
    pool = slots()
    before = pool.first.current
    held = carve(pool, Resources(1, 128, 1024))
    assert held.claim_id is before
    assert pool.first.current.session_id != before.session_id
    assert pool.sessions.get(pool.first.current.session_id, trio.current_time()) is not None
    assert pool.first.free == TOTAL - held.resources
    pool.give_back(held, broken=False)
    assert pool.first.free == TOTAL
    assert pool.sessions.get(before.session_id, trio.current_time()) is not None, "a last command may be in flight"


async def test_at_another_address_new_ids_carry_it_and_claims_keep_theirs() -> None:
    pool = slots()
    held, before = carve(pool, Resources(1, 128, 1024)), pool.first.current
    pool.move("<192.0.2.1:9618?CCBID=192.0.2.9:9618#7>")
    assert "CCBID=192.0.2.9:9618#7" in pool.first.current.text
    assert pool.sessions.get(pool.first.current.session_id, trio.current_time()) is not None
    assert pool.sessions.get(before.session_id, trio.current_time()) is None, "nobody can come with it any more"
    assert pool.sessions.get(held.claim_id.session_id, trio.current_time()) is not None
    assert "CCBID" not in held.claim_id.text


async def test_a_broken_slots_resources_are_withheld() -> None:
    pool = slots()
    pool.give_back(carve(pool, Resources(1, 128, 1024)), broken=True)
    assert pool.first.free + pool.first.withheld == TOTAL
    assert pool.first.withheld == Resources(1, 128, 1024)


async def test_a_job_matches_and_the_slot_matches_it() -> None:
    assert matches(pslot_ad(), job())
    assert matches(job(), pslot_ad())
    assert not matches(pslot_ad(), job(RequestMemory=10_000))
    assert not matches(pslot_ad(start="false"), job())


async def test_under_glexec_a_job_without_proxy_does_not_match() -> None:
    without = job()
    del without["x509userproxysubject"]
    assert not matches(pslot_ad(), without)
    assert matches(pslot_ad(needs_proxy=False), without)


async def test_a_user_whom_the_site_refused_does_not_match_here() -> None:
    state = slot_state(refused_users=('/CN=Mallory "x" \\', "/CN=Bob"))
    ad = public_ad(machine(), state, now=2, sequence=3)
    assert not matches(ad, job(x509userproxysubject="/CN=Bob"))
    assert not matches(ad, job(x509userproxysubject='/CN=Mallory "x" \\'))
    assert matches(ad, job())


async def test_a_site_that_is_down_matches_nobody_and_the_ad_says_why() -> None:
    state = slot_state(switch_down='503 "try later" \\')
    ad = public_ad(machine(), state, now=2, sequence=3)
    assert not matches(ad, job())
    assert ad["SailplaneSwitchDown"] == '503 "try later" \\'


@pytest.mark.parametrize(
    ("isolates", "needs_proxy", "words"),
    [(True, True, "isolated"), (False, True, "authorised, not isolated"), (False, False, "not isolated")],
)
async def test_what_becomes_of_a_jobs_account_is_advertised(isolates: bool, needs_proxy: bool, words: str) -> None:
    given = machine(switch_isolates=isolates, needs_proxy=needs_proxy, degraded=("hidepid", "nosuid"))
    state = slot_state()
    ad = public_ad(given, state, now=2, sequence=3)
    assert ad["SailplaneIsolation"] == words
    assert ad["SailplaneDegraded"] == "hidepid,nosuid"


async def test_at_a_shared_account_nobody_follows_the_first_user() -> None:
    state = attrs.evolve(slot_state(), only_user='al"ice@x')
    ad = public_ad(machine(), state, now=2, sequence=3)
    assert matches(ad, job(User='al"ice@x'))
    assert not matches(ad, job(User="bob@x"))
    assert not matches(ad, job())


@pytest.mark.parametrize("user", ["al\udcff@x", "a\nb@x", "a\\@x", "\u00e9@x"])
async def test_a_user_of_whatever_bytes_may_be_the_first(user: str) -> None:
    state = attrs.evolve(slot_state(), only_user=user)
    ad, own = public_ad(machine(), state, now=2, sequence=3), job()
    set_str(own, "User", user)
    assert matches(ad, own)
    assert not matches(ad, job(User="bob@x"))


async def test_draining_takes_nothing() -> None:
    state = slot_state(draining=True)
    assert start_expression(machine(), state).endswith("&& false")
    assert public_ad(machine(), state, now=2, sequence=3)["State"] == "Drained"


async def test_a_drain_that_takes_fillers_has_its_own_start_and_every_other_refusal() -> None:
    drained = slot_state(draining=True, drain_start="IsFiller || false")
    any_user = machine(needs_proxy=False)
    assert start_expression(any_user, drained) == "(IsFiller || false)"
    assert matches(public_ad(any_user, drained, now=2, sequence=3), job(IsFiller=True))
    assert "x509userproxysubject" in start_expression(machine(needs_proxy=True), drained)
    for reason in ("unhealthy", "retiring", "switch_down"):
        state = attrs.evolve(drained, **{reason: "so it is"})
        assert not matches(public_ad(any_user, state, now=2, sequence=3), job(IsFiller=True)), reason


async def test_the_claim_id_is_in_the_private_ad_only() -> None:
    pool = slots()
    held = carve(pool, Resources(1, 128, 1024))
    for state in (slot_state(pool), held.slot_state(False)):
        ad = public_ad(machine(), state, now=2, sequence=3)
        assert state.claim.secret not in str(ad)
        private = private_ad(ad, state.claim)
        assert private["ClaimId"] == state.claim.text
        assert (private["Name"], private["MyAddress"]) == (ad["Name"], ad["MyAddress"])
    assert held.claim_id.secret not in repr(held)


def test_collector_addresses() -> None:
    found = collector_addresses("cm.example, other:1234 <10.0.0.1:9?addrs=10.0.0.1-9&noUDP>, [::1]:77")
    assert [(a.host, a.port) for a in found] == [("cm.example", 9618), ("other", 1234), ("10.0.0.1", 9), ("::1", 77)]
    assert collector_addresses(None) == []
    with pytest.raises(ValueError, match="COLLECTOR_HOST"):
        collector_addresses("http://x/y")


def test_bare_names_are_found_in_the_other_ad_as_stock_daemons_do() -> None:
    """In a process of its own: the library has a switch for it, which any earlier parse may have turned."""
    code = (
        "from classad2 import ClassAd, ExprTree\n"
        "from cedar.classads import matches\n"
        "job = ClassAd({'Requirements': ExprTree('OpSys == \"LINUX\"')})\n"
        "raise SystemExit(not matches(job, ClassAd({'OpSys': 'LINUX'})))\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=30)


async def test_what_the_host_does_not_give_is_advertised() -> None:
    ad = pslot_ad(degraded=("hidepid", "no-connector"))
    assert ad["SailplaneDegraded"] == "hidepid,no-connector"
    ad["Asked"] = ExprTree('stringListMember("hidepid", SailplaneDegraded)')
    assert ad.eval("Asked") is True
    assert pslot_ad()["SailplaneDegraded"] == ""


async def test_each_slot_is_bound_to_cores_of_its_own() -> None:
    made = slots(cores=(0, 2, 4))
    first, second = carve(made, Resources(2, 1, 1)), carve(made, Resources(1, 1, 1))
    assert (first.cores, second.cores) == ((0, 2), (4,))
    assert carve(made, Resources(1, 1, 1)).cores == ()
    made.give_back(first, broken=False)
    assert carve(made, Resources(1, 1, 1)).cores == (0,)


async def test_without_the_knob_no_slot_is_bound() -> None:
    assert carve(slots(), Resources(2, 1, 1)).cores == ()


async def test_what_jobs_left_elsewhere_is_told() -> None:
    state = slot_state(left_elsewhere='2 things "x" \n of the job\'s')
    ad = public_ad(machine(), state, now=2, sequence=3)
    assert "2 things" in str(ad["SailplaneLeftElsewhere"])
    assert "SailplaneLeftElsewhere" not in pslot_ad()


async def test_attributes_of_the_settings_stand_in_the_ad_and_serve_in_its_expressions() -> None:
    ad = pslot_ad(attributes={"GLIDEIN_Site": '"CERN"', "Half": "Cpus / 2"}, start='GLIDEIN_Site == "CERN"')
    assert (evaluate(ad, "GLIDEIN_Site"), evaluate(ad, "Half")) == ("CERN", 2)
    assert matches(ad, job())


async def test_a_retiring_pilot_takes_nothing_and_says_why() -> None:
    state = slot_state(retiring="it is time")
    ad = public_ad(machine(), state, now=2, sequence=3)
    assert not matches(ad, job())
    assert evaluate(ad, "SailplaneRetiring") == "it is time"


async def test_no_slot_promises_containers() -> None:
    """What would draw such jobs here: they are refused (starter.description)."""
    ad = pslot_ad()
    for name in ("HasContainer", "HasDocker", "HasSingularity", "HasSIF", "HasUserNamespaces", "DockerVersion"):
        assert name not in ad
    wants = job(Requirements=ExprTree("TARGET.HasContainer"))
    assert not matches(wants, ad)
    assert ad["HasJobDeferral"]
