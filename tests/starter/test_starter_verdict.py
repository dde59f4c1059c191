"""What the shadow is told of each end."""

from __future__ import annotations

import pytest

from cedar.commands import ExitReason
from starter.verdict import Exited, Killed, Verdict, job_exit_reason


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
