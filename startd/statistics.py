"""What the startd counts of its claims and jobs, since its start and of late, in HTCondor's names. Pure.

Policies of glidein pools find black holes by them: ``RecentJobBusyTimeAvg < 20 && RecentJobBusyTimeCount >= 8``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Literal, get_args

import attrs

# As HTCondor's startd: "recent" are the last 20 minutes, in steps of 4.
WINDOW_S, STEP_S = 20 * 60, 4 * 60
Counted = Literal[
    "ClaimRequests", "ActivationRequests", "JobStarts", "JobPreemptions", "JobRankPreemptions",
    "JobUserPrioPreemptions",
]  # fmt: skip
# In every ad; the others where STATISTICS_TO_PUBLISH_LIST names them.
COUNTED: tuple[Counted, ...] = get_args(Counted)
Measured = Literal["JobBusyTime", "JobDuration"]
MEASURED: tuple[Measured, ...] = get_args(Measured)


@attrs.frozen
class Sum:
    """Of some values: how many, their sum, the least and the greatest."""

    count: int = 0
    total: float = 0.0
    least: float = 0.0
    most: float = 0.0

    def __add__(self, other: Sum) -> Sum:
        if not self.count or not other.count:
            return self if self.count else other
        return Sum(
            self.count + other.count,
            self.total + other.total,
            min(self.least, other.least),
            max(self.most, other.most),
        )


@attrs.define
class Series:
    """Values of one kind. ``now_s`` everywhere: seconds of a clock that never jumps."""

    ever: Sum = Sum()
    _steps: deque[tuple[int, Sum]] = attrs.field(factory=deque)
    """By the number of the step, the oldest first; none twice."""

    def add(self, value: float, *, now_s: float) -> None:
        """One more."""
        one = Sum(1, value, value, value)
        self.ever = self.ever + one
        step = int(now_s // STEP_S)
        before = self._steps.pop()[1] if self._steps and self._steps[-1][0] == step else Sum()
        self._steps.append((step, before + one))
        self._forget(now_s)

    def recent(self, *, now_s: float) -> Sum:
        """Of the last steps."""
        self._forget(now_s)
        return sum((each for _, each in self._steps), Sum())

    def _forget(self, now_s: float) -> None:
        oldest = int(now_s // STEP_S) - WINDOW_S // STEP_S + 1
        while self._steps and self._steps[0][0] < oldest:
            self._steps.popleft()


@attrs.define
class Statistics:
    """One startd's."""

    _counted: dict[Counted, Series] = attrs.field(factory=lambda: {name: Series() for name in COUNTED})
    _measured: dict[Measured, Series] = attrs.field(factory=lambda: {name: Series() for name in MEASURED})

    def count(self, name: Counted, *, now_s: float) -> None:
        """It has happened once more."""
        self._counted[name].add(1, now_s=now_s)

    def measure(self, name: Measured, seconds: float, *, now_s: float) -> None:
        """It took so long this time."""
        self._measured[name].add(seconds, now_s=now_s)

    def attributes(self, wanted: frozenset[str], *, now_s: float) -> Mapping[str, int | float]:
        """For the ads. ``wanted``: of what is measured, the names in lower case that are to be told."""
        ad: dict[str, int | float] = {}
        for counted, series in self._counted.items():
            ad[counted] = series.ever.count
            ad[f"Recent{counted}"] = series.recent(now_s=now_s).count
        for measured, series in self._measured.items():
            if measured.lower() in wanted:
                ad |= _told(measured, series.ever)
                ad |= _told(f"Recent{measured}", series.recent(now_s=now_s))
        return ad


def _told(name: str, values: Sum) -> dict[str, int | float]:
    """Of no values there is no average, no least and no greatest."""
    if not values.count:
        return {f"{name}Count": 0}
    return {
        f"{name}Count": values.count,
        f"{name}Avg": values.total / values.count,
        f"{name}Min": values.least,
        f"{name}Max": values.most,
    }


def wanted_names(published: str) -> frozenset[str]:
    """The names of STATISTICS_TO_PUBLISH_LIST, in lower case; HTCondor's level behind a colon counts for nothing."""
    return frozenset(name.partition(":")[0].lower() for name in published.replace(",", " ").split())
