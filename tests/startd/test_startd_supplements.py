"""Counts, latches, what is copied from jobs and between slots, and how long a slot was in which state."""

from __future__ import annotations

import math
from pathlib import Path

import attrs
import pytest
from classad2 import ClassAd, ExprTree
from hypothesis import given
from hypothesis import strategies as st

from cedar.classads import evaluate
from pilot.configuration import load
from pilot.settings import Settings, SettingsError
from startd.clocks import Totals
from startd.crossposts import crossposts
from startd.latches import Latches
from startd.statistics import STEP_S, WINDOW_S, Series, Statistics, Sum, wanted_names
from startd.supplements import MAX_OF_JOB_CHARS, Supplements


def slot(name: str, **attributes: object) -> ClassAd:
    ad = ClassAd()
    ad["Name"] = f"{name}@node"
    for key, value in attributes.items():
        ad[key] = value
    return ad


# --- counts ------------------------------------------------------------------------------------------------------


def test_counts_stand_in_every_ad_and_times_where_they_are_asked_for() -> None:
    statistics = Statistics()
    statistics.count("JobStarts", now_s=0.0)
    statistics.measure("JobBusyTime", 4.0, now_s=0.0)
    statistics.measure("JobBusyTime", 2.0, now_s=1.0)
    plain = statistics.attributes(frozenset(), now_s=2.0)
    assert (plain["JobStarts"], plain["RecentJobStarts"], plain["ClaimRequests"]) == (1, 1, 0)
    assert not any("BusyTime" in name for name in plain)
    asked = statistics.attributes(wanted_names("DEFAULT, jobbusytime:2 JobDuration"), now_s=2.0)
    assert {name: asked[f"RecentJobBusyTime{name}"] for name in ("Count", "Avg", "Min", "Max")} == {
        "Count": 2, "Avg": 3.0, "Min": 2.0, "Max": 4.0,
    }  # fmt: skip
    assert (asked["JobDurationCount"], "JobDurationAvg" in asked) == (0, False), "no average of nothing"


def test_a_black_hole_of_twenty_minutes_ago_is_forgotten() -> None:
    statistics = Statistics()
    for _ in range(8):
        statistics.measure("JobBusyTime", 1.0, now_s=10.0)
    ad = ClassAd()
    ad["GLIDEIN_BLACKHOLE"] = ExprTree("RecentJobBusyTimeAvg < 20 && RecentJobBusyTimeCount >= 8")
    wanted = wanted_names("JobBusyTime")
    ad.update(dict(statistics.attributes(wanted, now_s=WINDOW_S - 1)))
    assert evaluate(ad, "GLIDEIN_BLACKHOLE") is True
    ad = ClassAd({"GLIDEIN_BLACKHOLE": ad.lookup("GLIDEIN_BLACKHOLE")})
    ad.update(dict(statistics.attributes(wanted, now_s=WINDOW_S + STEP_S)))
    assert evaluate(ad, "GLIDEIN_BLACKHOLE") is not True
    assert ad["JobBusyTimeCount"] == 8


@given(st.lists(st.tuples(st.floats(0, 4 * WINDOW_S), st.floats(0, 1e6)), max_size=50))
def test_recent_is_what_came_in_the_last_steps(values: list[tuple[float, float]]) -> None:
    series = Series()
    values.sort()
    for at, value in values:
        series.add(value, now_s=at)
        first = (int(at // STEP_S) - WINDOW_S // STEP_S + 1) * STEP_S
        fresh = [each for when, each in values[: values.index((at, value)) + 1] if when >= first]
        recent = series.recent(now_s=at)
        assert recent.count >= len(fresh) > 0
        assert math.isclose(recent.least, min(fresh)) or recent.count > len(fresh)
    assert series.ever.count == len(values)


def test_nothing_added_to_nothing_is_nothing() -> None:
    assert Sum() + Sum() == Sum()
    assert Sum(1, 5.0, 5.0, 5.0) + Sum() == Sum(1, 5.0, 5.0, 5.0)


# --- latches -----------------------------------------------------------------------------------------------------


def test_a_latch_tells_since_when_a_slot_is_so() -> None:
    latches = Latches(["Hole"])
    ad = slot("slot1", Hole=False)
    latches.put(ad, now=100)
    assert (ad["HoleValue"], ad["HoleTime"]) == (0, 100)
    latches.put(same := slot("slot1", Hole=False), now=200)
    assert same["HoleTime"] == 100, "nothing has changed"
    latches.put(other := slot("slot2", Hole=False), now=300)
    assert other["HoleTime"] == 300, "each slot has its own"
    latches.put(changed := slot("slot1", Hole=True), now=400)
    assert (changed["HoleValue"], changed["HoleTime"]) == (1, 400)
    latches.put(lost := slot("slot1"), now=500)
    assert ("HoleValue" in lost, lost["HoleTime"]) == (False, 500)
    latches.keep(["slot2@node"])
    latches.put(again := slot("slot1", Hole=True), now=600)
    assert again["HoleTime"] == 600, "a slot that is gone was forgotten"


@pytest.mark.parametrize("text", ['"text"', "undefined", "error", 'real("NaN")', 'real("INF")', "{1}"])
def test_what_is_no_number_is_no_latch_value(text: str) -> None:
    ad = slot("slot1", X=ExprTree(text))
    Latches(["X"]).put(ad, now=1)
    assert "XValue" not in ad


# --- between slots, and from jobs --------------------------------------------------------------------------------


def test_every_slot_knows_of_every_slot() -> None:
    supplements = Supplements(of_slots=["Activity", "Missing", "Requirements"])
    ads = [slot("slot1", Activity="Idle", Requirements=ExprTree("TARGET.x > 1")), slot("slot1_1", Activity="Busy")]
    supplements.crosspost(ads)
    for ad in ads:
        assert (ad["slot1_Activity"], ad["slot1_1_Activity"]) == ("Idle", "Busy")
        assert "slot1_Missing" not in ad
        assert "slot1_Requirements" not in ad, "it has no value without a job"
    supplements.put(later := slot("slot2"), None, now_s=0.0, now=0)
    assert later["slot1_1_Activity"] == "Busy", "ads between two rounds know it as well"
    supplements.crosspost([ads[0]])
    supplements.put(last := slot("slot2"), None, now_s=0.0, now=0)
    assert "slot1_1_Activity" not in last, "a slot that is gone is told of no more"


def test_without_names_nothing_is_crossposted() -> None:
    assert crossposts([slot("slot1", State="Owner")], []) == {}


def test_a_jobs_attribute_takes_no_place_of_the_slots_own() -> None:
    job = ClassAd({"State": "Owner", "x509UserProxyVOName": "cms", "ClaimId": "secret", "Long": "x" * MAX_OF_JOB_CHARS})
    supplements = Supplements(of_jobs=["State", "x509UserProxyVOName", "ClaimId", "Long", "Absent"])
    ad = slot("slot1", State="Claimed")
    supplements.put(ad, job, now_s=0.0, now=0)
    assert (ad["State"], ad["x509UserProxyVOName"]) == ("Claimed", "cms")
    assert not {"ClaimId", "Long", "Absent"} & set(ad)


def test_settings_read_again_keep_what_was_counted(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text(
        "STARTD_SLOT_ATTRS = State, Activity\nSTARTD_JOB_ATTRS = VO\nHole = RecentJobStarts > 8\n"
        "STARTD_LATCH_EXPRS = Hole, NumDynamicSlots\nSTATISTICS_TO_PUBLISH_LIST = JobBusyTime\n"
        "STARTD_ATTRS = START, IS_GLIDEIN\nIS_GLIDEIN = True\n"
    )
    settings = load(config)
    assert settings.attributes == {"IS_GLIDEIN": "True", "Hole": "RecentJobStarts > 8"}
    supplements = Supplements()
    supplements.statistics.count("JobStarts", now_s=0.0)
    supplements.reconfigure(settings)
    latches = supplements.latches
    supplements.reconfigure(attrs.evolve(settings, startd_job_attrs=()))
    assert supplements.latches is latches
    supplements.put(ad := slot("slot1", NumDynamicSlots=2), ClassAd({"VO": "cms"}), now_s=0.0, now=7)
    assert (ad["JobStarts"], ad["JobBusyTimeCount"], "VO" in ad) == (1, 0, False)
    assert (ad["NumDynamicSlotsValue"], ad["NumDynamicSlotsTime"]) == (2, 7)


def test_an_attribute_that_a_slot_has_by_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config").write_text("STARTD_LATCH_EXPRS = State\nState = 1\n")
    with pytest.raises(SettingsError, match="State"):
        load(tmp_path / "config")
    assert Settings().startd_latch_exprs == ()


# --- how long ----------------------------------------------------------------------------------------------------


def test_the_time_of_each_state_counts_on_when_it_comes_back() -> None:
    totals = Totals(0.0, ("Unclaimed", "Idle"))
    totals.enter("Claimed", "Busy", now_s=10.0)
    totals.enter("Unclaimed", "Idle", now_s=12.5)
    totals.enter("Drained", "Idle", now_s=15.0)
    assert totals.attributes(15.5) == {"TotalTimeUnclaimedIdle": 12, "TotalTimeClaimedBusy": 2}
    assert totals.attributes(10.0)["TotalTimeUnclaimedIdle"] == 12, "a clock that jumps back takes nothing away"
