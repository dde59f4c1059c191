"""What the shadow is told of each end."""

from __future__ import annotations

import pytest

from cedar.commands import ExitReason
from starter.updates import MAX_REASON_LENGTH, error_event
from starter.verdict import Exited, Hold, Killed, Requeue, Verdict, is_final, job_exit_reason, wants_output


@pytest.mark.parametrize(
    ("verdict", "reason"),
    [
        (Exited(0), ExitReason.JOB_EXITED),
        (Exited(255 << 8), ExitReason.JOB_EXITED),
        (Exited(9), ExitReason.JOB_EXITED),
        (Exited(0x80 | 11), ExitReason.JOB_COREDUMPED),
        (Exited(0x80 << 8), ExitReason.JOB_EXITED),
        (Killed("the pilot shuts down", 1013, output=False), ExitReason.JOB_SHOULD_REQUEUE),
        (Killed("vacated", 1010, output=True), ExitReason.JOB_SHOULD_REQUEUE),
    ],
)
def test_reason_of_job_exit(verdict: Verdict, reason: ExitReason) -> None:
    assert job_exit_reason(verdict) == reason


@pytest.mark.parametrize(
    ("verdict", "output", "final"),
    [
        (Exited(0), True, True),
        (Killed("vacated", 1010, output=True), True, False),
        (Killed("removed, and its output wanted", 1023, output=True, final=True), True, True),
        (Killed("removed", 1023, output=False), False, False),
        (Hold(47, 0, "too long", output=True), True, False),
        (Hold(34, 102, "too large"), False, False),
        (Requeue(6, "the site's trouble"), False, False),
    ],
)
def test_whose_output_is_fetched_and_whether_it_is_the_last(verdict: Verdict, output: bool, final: bool) -> None:
    assert (wants_output(verdict), is_final(verdict)) == (output, final)


def test_a_failure_carries_its_story_bounded_and_apart_from_the_reason() -> None:
    story = "JobKnown (rule 1) -> staging in, " * 100 + "StepFailed (rule 5) -> reporting"
    event = error_event(Hold(28, 0, "refused"), "slot1_1@node", "2026-01-01T00:00:00", story)
    assert str(event["SailplaneStory"]).endswith("StepFailed (rule 5) -> reporting")
    assert len(str(event["SailplaneStory"])) == MAX_REASON_LENGTH
    assert "rule" not in str(event["ErrorMsg"])
