"""Whether the commands before and after a job are run."""

from __future__ import annotations

import pytest
from classad2 import ClassAd

from starter import around
from starter.description import describe

SLOT = '[Name = "slot1@x"; Trusted = true]'
JOB = {"ClusterId": 1, "ProcId": 0, "Cmd": "run.sh", "User": "alice@x", "PreCmd": "pre.sh", "PostCmd": "post.sh"}


@pytest.mark.parametrize(
    ("version", "run"),
    [("24.0.1", True), ("25.0.3", True), ("25.9.0", True), ("25.10.9", True), ("25.11.0", False), ("26.1.0", False)],
)
def test_without_the_knob_they_are_run_as_by_the_htcondor_that_is_announced(version: str, run: bool) -> None:
    assert around.allowed(None, SLOT, ClassAd(JOB), version) is run


@pytest.mark.parametrize(
    ("expression", "run"),
    [
        ("true", True),
        ("false", False),
        ("MY.Trusted", True),
        ('TARGET.User == "alice@x"', True),
        ('TARGET.User == "bob@x"', False),
        ("Missing", False),
        ('"yes"', False),
        ("1/0", False),
    ],
)
@pytest.mark.parametrize("version", ["24.0.1", "25.14.0"])
def test_the_knob_decides_by_slot_and_job(expression: str, run: bool, version: str) -> None:
    assert around.allowed(expression, SLOT, ClassAd(JOB), version) is run


def test_a_slot_without_an_ad_is_asked_all_the_same() -> None:
    assert around.allowed('TARGET.User == "alice@x"', "", ClassAd(JOB))


def test_what_is_not_to_be_run_is_not_even_read() -> None:
    bad = ClassAd(JOB | {"PreCmd": "", "PostCmd": 7})
    described = describe(bad, commands=False)
    assert (described.pre, described.post) == (None, None)
    assert (around.named(ClassAd(JOB)), around.named(bad)) == (["PreCmd", "PostCmd"], [])
