"""Whether the commands before and after a job are run."""

from __future__ import annotations

import pytest
from classad2 import ClassAd

from pilot.settings import Settings
from starter import around
from starter.description import describe

SLOT = '[Name = "slot1@x"; Trusted = true]'
JOB = {"ClusterId": 1, "ProcId": 0, "Cmd": "run.sh", "User": "alice@x", "PreCmd": "pre.sh", "PostCmd": "post.sh"}


def test_they_are_run_where_nothing_else_is_said() -> None:
    assert around.allowed(Settings().starter_allow_job_pre_and_post_cmd, SLOT, ClassAd(JOB))


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
def test_the_knob_decides_by_slot_and_job(expression: str, run: bool) -> None:
    assert around.allowed(expression, SLOT, ClassAd(JOB)) is run


def test_a_slot_without_an_ad_is_asked_all_the_same() -> None:
    assert around.allowed('TARGET.User == "alice@x"', "", ClassAd(JOB))


def test_what_is_not_to_be_run_is_not_even_read() -> None:
    bad = ClassAd(JOB | {"PreCmd": "", "PostCmd": 7})
    described = describe(bad, commands=False)
    assert (described.pre, described.post) == (None, None)
    assert (around.named(ClassAd(JOB)), around.named(bad)) == (["PreCmd", "PostCmd"], [])
