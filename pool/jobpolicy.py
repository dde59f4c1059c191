"""How long a job allows itself to take and to stop, as its shadow keeps it. Pure: ad and times in, a verdict out."""

from __future__ import annotations

from typing import Any

from attrs import frozen

from cedar.commands import HoldCode
from pool.ads import is_number, value_of
from pool.model import Outcome
from pool.shadow_state import Finish

# Time to stop by itself, where the job does not say.
REMOVE_GRACE_S, LONGEST_GRACE_S = 30.0, 600.0


def grace_s(ad: Any) -> float:
    """``job_max_vacate_time``, as far as it is taken."""
    wanted = _seconds(ad, "JobMaxVacateTime")
    return REMOVE_GRACE_S if wanted is None else min(LONGEST_GRACE_S, max(0.0, wanted))


@frozen
class Durations:
    """Seconds; None: as long as it takes. ``job_s`` from the activation on, ``execute_s`` from the job's start, or that
    of its last leg behind a checkpoint."""

    job_s: float | None
    execute_s: float | None

    @classmethod
    def of(cls, ad: Any) -> Durations:
        """What is no number bounds nothing: the starter refuses such a job with words."""
        return cls(_seconds(ad, "AllowedJobDuration"), _seconds(ad, "AllowedExecuteDuration"))

    def left_s(self, *, job_s: float, execute_s: float | None) -> float | None:
        """Until the next of them is over, at most 0 when one is; None: never, as it stands."""
        pairs = ((self.job_s, job_s), (self.execute_s, execute_s))
        left = [allowed - taken for allowed, taken in pairs if allowed is not None and taken is not None]
        return min(left) if left else None

    def over(self, *, job_s: float, execute_s: float | None) -> Finish | None:
        """The verdict of a run that has taken so long."""
        for what, code, allowed_s, taken_s in (
            ("allowed_job_duration", HoldCode.JOB_DURATION_EXCEEDED, self.job_s, job_s),
            ("allowed_execute_duration", HoldCode.JOB_EXECUTE_EXCEEDED, self.execute_s, execute_s),
        ):
            if allowed_s is not None and taken_s is not None and taken_s >= allowed_s:
                text = (
                    f"the job took {taken_s:.0f} s; its {what} is {allowed_s:.0f} s. Allow it more and release it, or"
                    " submit it in smaller parts"
                )
                return Finish(Outcome.HELD, text, hold_code=code)
        return None


def _seconds(ad: Any, name: str) -> float | None:
    value = value_of(ad, name)
    return float(value) if is_number(value) else None
