"""How long a slot was in which state and activity, and a job ran. Pure: seconds of a clock that never jumps go in.

Policies count with these: ``time() - EnteredCurrentActivity``, ``TotalJobRunTime``.
"""

from __future__ import annotations

import attrs


@attrs.define
class Clocks:
    """One claim's. ``now_s`` everywhere: seconds of the monotonic clock; ``unix``: the time of day beside it."""

    since_s: float
    state_at: int
    activity_at: int
    state: str = "Claimed"
    activity: str = "Idle"
    totals_s: dict[str, float] = attrs.field(factory=dict)
    job_at: int | None = None
    job_run_s: float = 0.0
    job_suspended_s: float = 0.0
    claim_run_s: float = 0.0
    claim_suspended_s: float = 0.0
    activations: int = 0

    def enter(self, state: str, activity: str, *, now_s: float, unix: int) -> None:
        """The slot is shown like this from now on."""
        self._count(now_s)
        if (state, activity) != (self.state, self.activity):
            self.activity_at = unix
        if state != self.state:
            self.state_at = unix
        self.state, self.activity = state, activity

    def job_begins(self, *, now_s: float, unix: int) -> None:
        """An activation."""
        self._count(now_s)
        self.job_at, self.job_run_s, self.job_suspended_s = unix, 0.0, 0.0
        self.activations += 1

    def job_ends(self, *, now_s: float) -> None:
        """Its starter is gone."""
        self._count(now_s)
        self.job_at, self.job_run_s, self.job_suspended_s = None, 0.0, 0.0

    def ran_s(self, now_s: float) -> float:
        """How long the present job has run, without its suspensions; 0 without a job."""
        self._count(now_s)
        return self.job_run_s

    def _count(self, now_s: float) -> None:
        passed_s, self.since_s = max(0.0, now_s - self.since_s), now_s
        name = self.state + self.activity
        self.totals_s[name] = self.totals_s.get(name, 0.0) + passed_s
        if self.job_at is None:
            return
        if self.activity == "Suspended":
            self.job_suspended_s += passed_s
            self.claim_suspended_s += passed_s
        else:
            self.job_run_s += passed_s
            self.claim_run_s += passed_s

    def attributes(self, now_s: float) -> dict[str, int]:
        """For the slot's ad, in HTCondor's names; seconds and times of day."""
        self._count(now_s)
        ad = {f"TotalTime{name}": int(total_s) for name, total_s in self.totals_s.items() if total_s >= 1}
        ad |= {"TotalClaimRunTime": int(self.claim_run_s), "TotalClaimSuspendTime": int(self.claim_suspended_s)}
        if self.job_at is not None:
            ad |= {
                "JobStart": self.job_at,
                "TotalJobRunTime": int(self.job_run_s),
                "TotalJobSuspendTime": int(self.job_suspended_s),
            }
        return ad
