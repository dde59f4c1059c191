"""How long a slot was in which state and activity, and a job ran. Pure: seconds of a clock that never jumps go in.

Policies count with these: ``time() - EnteredCurrentActivity``, ``TotalJobRunTime``.
"""

from __future__ import annotations

import attrs


@attrs.define
class Totals:
    """Of one slot: how long it was in each state and activity. ``now_s`` everywhere: seconds of the monotonic clock."""

    since_s: float
    shown: tuple[str, str]
    seconds: dict[tuple[str, str], float] = attrs.field(factory=dict)

    def enter(self, state: str, activity: str, *, now_s: float) -> None:
        """The slot is shown like this from now on."""
        self._count(now_s)
        self.shown = (state, activity)

    def attributes(self, now_s: float) -> dict[str, int]:
        """TotalTime<State><Activity>, of those that it was in for a second."""
        self._count(now_s)
        return {f"TotalTime{''.join(shown)}": int(each_s) for shown, each_s in self.seconds.items() if each_s >= 1}

    def _count(self, now_s: float) -> None:
        passed_s, self.since_s = max(0.0, now_s - self.since_s), now_s
        self.seconds[self.shown] = self.seconds.get(self.shown, 0.0) + passed_s


@attrs.define
class Clocks:
    """One claim's. ``now_s`` everywhere: seconds of the monotonic clock; ``unix``: the time of day beside it.
    ``totals``: its slot's, which may have been there before the claim."""

    since_s: float
    state_at: int
    activity_at: int
    totals: Totals
    state: str = "Claimed"
    activity: str = "Idle"
    job_at: int | None = None
    job_run_s: float = 0.0
    job_suspended_s: float = 0.0
    claim_run_s: float = 0.0
    claim_suspended_s: float = 0.0
    activations: int = 0

    def enter(self, state: str, activity: str, *, now_s: float, unix: int) -> None:
        """The slot is shown like this from now on."""
        self._count(now_s)
        self.totals.enter(state, activity, now_s=now_s)
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
        ad = self.totals.attributes(now_s)
        ad |= {"TotalClaimRunTime": int(self.claim_run_s), "TotalClaimSuspendTime": int(self.claim_suspended_s)}
        if self.job_at is not None:
            ad |= {
                "JobStart": self.job_at,
                "TotalJobRunTime": int(self.job_run_s),
                "TotalJobSuspendTime": int(self.job_suspended_s),
            }
        return ad
