"""When a node takes no job because it is not fit for one."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cedar.commands import HoldCode
from startd.health import FIRST_PAUSE_S, LAST_PAUSE_S, Health, Look
from startd.healthlook import look_at
from startd.report import OUTCOMES

GLEXEC = int(HoldCode.GLEXEC_CHOWN_SANDBOX_TO_USER)


def failed(health: Health, count: int, *, now_s: float = 0.0) -> None:
    for _ in range(count):
        health.job_ended("given back", GLEXEC, now_s=now_s)


def test_a_row_of_jobs_that_the_node_failed_closes_it_for_a_while() -> None:
    health = Health(0, 3)
    failed(health, 2)
    assert health.reason(now_s=0.0) == ""
    failed(health, 1)
    assert "the last 3 jobs failed here" in health.reason(now_s=1.0)
    assert health.reason(now_s=FIRST_PAUSE_S) == "", "one may try"


def test_a_try_that_fails_closes_it_for_longer_and_one_that_works_opens_it() -> None:
    health = Health(0, 3)
    failed(health, 3)
    failed(health, 1, now_s=FIRST_PAUSE_S)
    assert health.reason(now_s=2.9 * FIRST_PAUSE_S) != ""
    assert health.reason(now_s=3 * FIRST_PAUSE_S) == ""
    health.job_ended("exited with another code", 0, now_s=3 * FIRST_PAUSE_S)
    failed(health, 2, now_s=3 * FIRST_PAUSE_S)
    assert health.reason(now_s=3 * FIRST_PAUSE_S) == ""


def test_pauses_have_an_end() -> None:
    health, now_s = Health(0, 1), 0.0
    for _ in range(20):
        failed(health, 1, now_s=now_s)
        now_s += LAST_PAUSE_S
        assert health.reason(now_s=now_s) == ""


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        ("evicted", 0),
        ("given back", int(HoldCode.UPLOAD_FILE_ERROR)),
        ("given back", int(HoldCode.DOWNLOAD_FILE_ERROR)),
    ],
)
def test_what_says_nothing_about_the_node_changes_nothing(outcome: str, code: int) -> None:
    health = Health(0, 2)
    failed(health, 1)
    for _ in range(9):
        health.job_ended(outcome, code, now_s=0.0)
    assert health.reason(now_s=0.0) == ""
    failed(health, 1)
    assert health.reason(now_s=0.0) != ""


@given(st.lists(st.sampled_from([o for o in OUTCOMES if o not in ("given back", "lost")]), max_size=50))
def test_users_own_failures_never_close_a_node(outcomes: list[str]) -> None:
    health = Health(0, 2)
    for outcome in outcomes:
        health.job_ended(outcome, 0, now_s=0.0)
    assert health.reason(now_s=0.0) == ""


def test_a_full_disk_closes_and_opens_with_a_margin() -> None:
    health = Health(1000, 0)
    health.looked(Look(free_kb=1001))
    assert health.reason(now_s=0.0) == ""
    health.looked(Look(free_kb=999))
    assert "SAILPLANE_MIN_FREE_DISK" in health.reason(now_s=0.0)
    health.looked(Look(free_kb=1100))
    assert health.reason(now_s=0.0) != ""
    health.looked(Look(free_kb=1300))
    assert health.reason(now_s=0.0) == ""


def test_limits_of_0_are_none() -> None:
    health = Health(0, 0)
    failed(health, 100)
    health.looked(Look(free_kb=0))
    assert health.reason(now_s=0.0) == ""


def test_a_directory_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    assert look_at(tmp_path).fault == ""
    assert look_at(tmp_path).free_kb > 0
    assert list(tmp_path.iterdir()) == []
    gone = look_at(tmp_path / "nowhere")
    assert "nowhere" in gone.fault
    health = Health(0, 0)
    health.looked(gone)
    assert health.reason(now_s=0.0) == gone.fault
