"""What a pilot reports at its end."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot import osgtest
from startd.report import OUTCOMES, Job, Report, outcome_of


@pytest.mark.parametrize(
    ("verdict", "wait_status", "expected"),
    [
        ("Exited", 0, "exited with 0"),
        ("Exited", 3 << 8, "exited with another code"),
        ("Exited", 9, "died by a signal"),
        ("Hold", None, "held"),
        ("Hold", 0, "held"),
        ("Requeue", None, "given back"),
        ("Killed", 9, "evicted"),
        ("Abandoned", None, "lost"),
        ("", None, "lost"),
        ("Exited", None, "lost"),
    ],
)
def test_each_end_is_one_outcome(verdict: str, wait_status: int | None, expected: str) -> None:
    assert outcome_of(Job(verdict, wait_status, 1.0, 1)) == expected
    assert expected in OUTCOMES


def report() -> Report:
    made = Report("pilot@node", started_at=1000.0, cpus=4)
    made.add(Job("Exited", 0, 10.0, 2, cpu_s=5.0, rss_peak_kb=2048))
    made.add(Job("Exited", 0, 20.0, 1, cpu_s=6.0, rss_peak_kb=1024))
    made.add(Job("Hold", None, 1.0, 1))
    return made


def test_jobs_add_up() -> None:
    whole = report().as_json(now=1100.0, reason="the time of GLIDEIN_ToDie has come", status=99)
    assert whole["outcomes"]["exited with 0"] == {
        "jobs": 2, "seconds": 30.0, "slot_s": 40.0, "cpu_s": 11.0, "rss_peak_kb": 2048,
    }  # fmt: skip
    assert (whole["jobs"], whole["lived_s"], whole["busy_fraction"]) == (3, 100.0, round(41 / 400, 4))


def test_calls_of_the_switch_are_in_every_form() -> None:
    made = report()
    made.calls = {"passed": 7, "denied": 2, "unavailable": 0, "misused": 0, "broken": 1}
    said = made.as_json(now=1100.0, reason="", status=0)["switch_calls"]
    assert said == {"all": 10, "passed": 7, "denied": 2, "unavailable": 0, "misused": 0, "broken": 1}
    rows = [line.strip("│┃ ").split() for line in made.as_table(now=1100.0, reason="").splitlines()]
    assert [(row[0], row[-1]) for row in rows if row and row[-1].isdigit()][-4:] == [
        ("all", "10"), ("passed", "7"), ("denied", "2"), ("broken", "1"),
    ]  # fmt: skip
    root = ElementTree.fromstring(made.as_xml(now=1100.0, reason="", status=0))
    metrics = {metric.get("name"): metric.text for metric in root.iter("metric")}
    assert (metrics["SwitchCallsNr"], metrics["SwitchCallsPassedNr"], metrics["SwitchCallsDeniedNr"]) == (
        "10",
        "7",
        "2",
    )
    assert (metrics["SwitchCallsUnavailableNr"], metrics["SwitchCallsBrokenNr"]) == ("0", "1")


def test_the_table_shows_what_happened_and_nothing_else() -> None:
    table = report().as_table(now=1100.0, reason="it is time")
    assert "exited with 0" in table
    assert "held" in table
    assert "evicted" not in table
    assert "no job" in Report("p", 0.0, 1).as_table(now=0.0, reason="")


@pytest.mark.parametrize(("status", "ok"), [(0, True), (99, True), (101, False)])
def test_the_document_says_ok_for_an_ordered_end(status: int, ok: bool) -> None:
    root = ElementTree.fromstring(report().as_xml(now=1100.0, reason="x < y & z", status=status))
    assert root.findtext("result/status") == ("OK" if ok else "ERROR")
    metrics = {metric.get("name"): metric.text for metric in root.iter("metric")}
    assert metrics["TotalJobsNr"] == "3"
    assert metrics["AutoShutdown"] == str(status == 99)
    assert root.findtext("detail") == "x < y & z"


@given(st.text(max_size=200), st.text(max_size=200))
def test_no_text_breaks_the_document(name: str, value: str) -> None:
    text = osgtest.document(name, ok=False, metrics=[(name, value)], detail=value, now=0.0)
    root = ElementTree.fromstring(text)
    assert root.get("version") == osgtest.VERSION
    assert len(list(root.iter("metric"))) == 1
