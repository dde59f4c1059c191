"""How long a job waits after a run that came to nothing, so that a broken node does not run it in circles. Pure."""

from __future__ import annotations

from attrs import frozen

# First wait, doubled with each failure in a row; the longest one leaves an operator time to act.
FIRST_S = 1.0
LONGEST_S = 300.0
# A run of this length was no quick failure: count from the start again.
LONG_RUN_S = 60.0


@frozen
class Patience:
    """`failures` in a row, and the monotonic time until which the job waits."""

    failures: int
    until: float

    @classmethod
    def after(cls, before: Patience | None, *, run_s: float, now: float) -> Patience:
        failures = 1 if before is None or run_s >= LONG_RUN_S else before.failures + 1
        return cls(failures, now + min(LONGEST_S, FIRST_S * 2.0 ** min(failures - 1, 20)))

    def over(self, now: float) -> bool:
        return now >= self.until
