"""How long a job allows itself to take, as its shadow keeps it."""

from __future__ import annotations

import pytest

from cedar.classads import parse_old
from pool.jobpolicy import LONGEST_GRACE_S, REMOVE_GRACE_S, Durations, grace_s

BOTH = Durations(job_s=600.0, execute_s=300.0)


@pytest.mark.parametrize(
    ("job_s", "execute_s", "code", "word"),
    [(600.0, 10.0, 46, "allowed_job_duration is 600 s"), (400.0, 300.0, 47, "allowed_execute_duration is 300 s"),
     (700.0, 400.0, 46, "took 700 s")],
)  # fmt: skip
def test_a_job_that_took_longer_is_held_with_what_it_took(job_s: float, execute_s: float, code: int, word: str) -> None:
    verdict = BOTH.over(job_s=job_s, execute_s=execute_s)
    assert verdict is not None
    assert verdict.hold_code == code
    assert word in verdict.reason


def test_what_is_left_is_the_shorter_of_both() -> None:
    assert BOTH.over(job_s=599.9, execute_s=299.9) is None
    assert BOTH.left_s(job_s=590.0, execute_s=100.0) == 10.0
    assert BOTH.left_s(job_s=0.0, execute_s=295.0) == 5.0
    assert Durations(None, 1.0).left_s(job_s=9.0, execute_s=None) is None


def test_what_the_ad_does_not_say_bounds_nothing() -> None:
    ad = parse_old('AllowedJobDuration = "soon"\nAllowedExecuteDuration = 2\n')
    assert Durations.of(ad) == Durations(None, 2.0)
    assert Durations.of(parse_old("A = 1\n")).over(job_s=1e9, execute_s=1e9) is None


def test_the_grace_is_what_the_job_wants_within_bounds() -> None:
    assert grace_s(parse_old("A = 1\n")) == REMOVE_GRACE_S
    assert grace_s(parse_old("JobMaxVacateTime = 7\n")) == 7.0
    assert grace_s(parse_old("JobMaxVacateTime = 99999\n")) == LONGEST_GRACE_S
