"""What programs measure of custom resources: by device since the startd began, and by job."""

from __future__ import annotations

import math
from typing import Any

import pytest
from classad2 import ClassAd, ExprTree
from hypothesis import given
from hypothesis import strategies as st

from pilot.configuration import from_values
from pilot.settings import SettingsError
from startd.cronjobs import CronJob, Output, Published, parse
from startd.metrics import Meters, Metric, names_of_jobs

SECONDS, MEMORY = Metric("sum", "GPUs"), Metric("peak", "GPUsMemory")
WANTED = {metric.attribute: metric for metric in (SECONDS, MEMORY)}
BEGAN = 1_000


def said(seconds: float, memory: float) -> dict[str, ExprTree]:
    return {"UptimeGPUsSeconds": ExprTree(str(seconds)), "UptimeGPUsMemoryPeakUsage": ExprTree(str(memory))}


def meters(*reports: tuple[str, float, float, int]) -> Meters:
    found = Meters(BEGAN)
    for device, seconds, memory, at in reports:
        found.take("MONITOR", device, WANTED, said(seconds, memory), at)
    return found


def shown(meters: Meters, *devices: str, slot: str = "slot1_1@x", now: int = 1_100) -> dict[str, Any]:
    ad = ClassAd({"Name": slot})
    meters.put(ad, lambda program, tag: program == "MONITOR" and tag in devices, now)
    return {name: ad[name] for name in ad if name != "Name"}


def test_the_knob_names_the_kinds_and_resources() -> None:
    family = {"STARTD_CRON_M_EXECUTABLE": "/x", "STARTD_CRON_M_PERIOD": "5"}
    settings = from_values({"STARTD_CRON_JOBLIST": "M"}, source=None, family=family)
    assert parse(settings)[0].metrics == ()
    settings = from_values(
        {"STARTD_CRON_JOBLIST": "M"},
        source=None,
        family=family | {"STARTD_CRON_M_METRICS": "SUM:GPUs, peak:GPUsMemory"},
    )
    assert parse(settings)[0].metrics == (SECONDS, MEMORY)
    assert [metric.attribute for metric in (SECONDS, MEMORY)] == ["UptimeGPUsSeconds", "UptimeGPUsMemoryPeakUsage"]
    assert names_of_jobs((SECONDS, MEMORY)) == {"GPUsAverageUsage", "GPUsMemoryUsage"}
    for bad in ("GPUs", "AVG:GPUs", "SUM:", "SUM:a-b", "SUM:A " * 21):
        settings = from_values(
            {"STARTD_CRON_JOBLIST": "M"}, source=None, family=family | {"STARTD_CRON_M_METRICS": bad}
        )
        with pytest.raises(SettingsError, match="STARTD_CRON_M_METRICS"):
            parse(settings)


def test_a_slot_shows_what_its_devices_did_since_the_startd_began() -> None:
    found = meters(("A", 5, 10, 1_010), ("B", 7, 30, 1_010), ("A", 15, 20, 1_020), ("C", 99, 99, 1_020))
    assert shown(found, "A", "B") == {"DeviceGPUsAverageUsage": 0.27, "DeviceGPUsMemoryPeakUsage": 30.0}
    found.uptime = True
    assert shown(found, "A")["UptimeGPUsSeconds"] == 20.0
    assert shown(found) == {}


def test_a_job_has_what_was_used_between_the_reports_of_its_time() -> None:
    found = meters(("A", 10, 90, 1_010))
    found.begin("slot1_1@x", 1_012)
    assert "GPUsAverageUsage" not in shown(found, "A"), "nothing was reported since"
    assert "GPUsMemoryUsage" not in shown(found, "A"), "a peak of the job before is not this one's"
    found.take("MONITOR", "A", WANTED, said(5, 40), 1_020)
    found.take("MONITOR", "A", WANTED, said(9, 20), 1_030)
    ad = shown(found, "A")
    assert (ad["GPUsAverageUsage"], ad["GPUsMemoryUsage"]) == (0.7, 40.0)
    assert ad["DeviceGPUsMemoryPeakUsage"] == 90.0
    assert "GPUsAverageUsage" not in shown(found, "A", slot="slot1_2@x")
    found.begin("slot1_1@x", 1_031)
    assert "GPUsMemoryUsage" not in shown(found, "A")


def test_of_several_devices_averages_add_up_and_the_highest_peak_counts() -> None:
    found = meters(("A", 0, 0, 1_010), ("B", 0, 0, 1_010))
    found.begin("slot1_1@x", 1_010)
    for device, seconds, memory in (("A", 10, 1), ("B", 5, 2), ("C", 9, 9)):
        found.take("MONITOR", device, WANTED, said(seconds, memory), 1_020)
    ad = shown(found, "A", "B")
    assert (ad["GPUsAverageUsage"], ad["GPUsMemoryUsage"]) == (1.5, 2.0)


def test_a_device_that_is_first_reported_while_the_job_runs_is_measured_from_its_beginning() -> None:
    found = Meters(BEGAN)
    found.begin("slot1_1@x", 1_010)
    found.take("MONITOR", "A", WANTED, said(5, 1), 1_020)
    assert shown(found, "A")["GPUsAverageUsage"] == 0.5


def test_slots_and_programs_that_are_gone_are_forgotten() -> None:
    found = meters(("A", 1, 1, 1_010))
    found.begin("slot1_1@x", 1_010)
    found.take("MONITOR", "A", WANTED, said(1, 1), 1_020)
    found.forget("slot1_1@x")
    assert "GPUsAverageUsage" not in shown(found, "A")
    found.drop("MONITOR")
    assert shown(found, "A") == {}


@pytest.mark.parametrize("value", ["-1", '"many"', "undefined", "1/0", "true", 'real("INF")', 'real("NaN")', "x"])
def test_what_is_no_number_is_no_measurement(value: str) -> None:
    found = meters(("A", 1, 1, 1_010))
    found.take("MONITOR", "A", WANTED, {"UptimeGPUsSeconds": ExprTree(value)}, 1_020)
    assert shown(found, "A")["DeviceGPUsAverageUsage"] == 0.01


@given(
    st.lists(st.tuples(st.sampled_from("AB"), st.floats(0, 1e6), st.floats(0, 1e6)), max_size=20), st.integers(0, 20)
)
def test_whatever_is_reported_what_is_shown_is_a_number_and_no_more_than_was_reported(
    reports: list[tuple[str, float, float]], job_at: int
) -> None:
    found = Meters(BEGAN)
    for at, (device, seconds, memory) in enumerate(reports):
        if at == job_at:
            found.begin("slot1_1@x", BEGAN + at)
        found.take("MONITOR", device, WANTED, said(seconds, memory), BEGAN + at)
    ad = shown(found, "A", "B")
    assert all(math.isfinite(value) and value >= 0 for value in ad.values())
    after = [memory for _, _, memory in reports[job_at:]]
    if "GPUsMemoryUsage" in ad:
        assert ad["GPUsMemoryUsage"] == max(after)


def test_what_is_measured_stands_in_the_ad_of_its_slot_in_place_of_what_was_said() -> None:
    """As condor_gpu_utilization says it: a record for each device, and for the slot that has it."""
    job, published = CronJob(name="MONITOR", executable="/x", metrics=(SECONDS, MEMORY)), Published(Meters(BEGAN))
    published.meters.begin("slot1_1@x", BEGAN)
    for _ in range(2):
        reader = Output(job, now=7)
        text = b"""SlotMergeConstraint = StringListMember("GPU-1", AssignedGPUs)
UptimeGPUsSeconds = 3.5
UptimeGPUsMemoryPeakUsage = 100
- GPUsSlot0
SlotMergeConstraint = StringListMember("GPU-2", AssignedGPUs)
UptimeGPUsSeconds = 1000000
- GPUsSlot1"""
        for line in text.split(b"\n"):
            if (record := reader.line(line)) is not None:
                published.put(job, record)
    ad = ClassAd({"Name": "slot1_1@x", "AssignedGPUs": "GPU-1", "SlotID": 1})
    published.merge_into(ad)
    assert ad["DeviceGPUsMemoryPeakUsage"] == ad["GPUsMemoryUsage"] == 100.0
    assert 0 < ad["GPUsAverageUsage"] < 1
    assert not [name for name in ad if name.startswith("Uptime")]
    assert published.measured_of_job(ad).keys() == {"GPUsAverageUsage", "GPUsMemoryUsage"}
    other = ClassAd({"Name": "slot1@x", "SlotID": 1})
    published.merge_into(other)
    assert published.measured_of_job(other) == {}
    published.drop("MONITOR")
    published.merge_into(bare := ClassAd({"Name": "slot1_1@x", "AssignedGPUs": "GPU-1", "SlotID": 1}))
    assert "DeviceGPUsMemoryPeakUsage" not in bare
