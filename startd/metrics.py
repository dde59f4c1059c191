"""What programs beside the jobs measure of custom resources (STARTD_CRON_<NAME>_METRICS), by device and by job. Pure.

A program reports each of its devices in a record of its own: with SUM:GPUs the seconds that it was used since the last
report (UptimeGPUsSeconds), with PEAK:GPUsMemory the most that was used (UptimeGPUsMemoryPeakUsage). A slot shows what
its devices did since the startd began, and what they did for its present job. Names are HTCondor's.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import attrs
from classad2 import ClassAd, ExprTree, Value

from cedar.classads import evaluate
from pilot.knobs import Kind

# A program's records are limited, too.
MAX_METRICS = 20
_WORDS = re.compile(r"(SUM|PEAK):([A-Za-z_][A-Za-z0-9_]{0,100})", re.IGNORECASE)


@attrs.frozen
class Metric:
    """One line of what is measured: how two reports are put together, and of which resource they are."""

    kind: Literal["sum", "peak"]
    resource: str

    @property
    def attribute(self) -> str:
        """What a program says."""
        return f"Uptime{self.resource}" + ("Seconds" if self.kind == "sum" else "PeakUsage")


def metrics() -> Kind:
    """The kind of STARTD_CRON_<NAME>_METRICS."""

    def parse(value: str) -> tuple[Metric, ...]:
        found: list[Metric] = []
        for words in value.replace(",", " ").split():
            match = _WORDS.fullmatch(words)
            if match is None or len(found) >= MAX_METRICS:
                raise ValueError(value)
            found.append(Metric("sum" if match[1].lower() == "sum" else "peak", match[2]))
        return tuple(found)

    return Kind("metrics", f"at most {MAX_METRICS} words SUM:RESOURCE or PEAK:RESOURCE", parse)


@attrs.define
class Meter:
    """One metric of one device: all that was reported, and when last (unix time)."""

    metric: Metric
    total: float = 0.0
    at: int = 0

    def take(self, value: float, now: int) -> None:
        """One report."""
        self.total = self.total + value if self.metric.kind == "sum" else max(self.total, value)
        self.at = now


# A program, a record's tag, an attribute: one meter.
Key = tuple[str, str, str]


@attrs.define
class _Job:
    """What a slot's present job found when it began, and the peaks since then."""

    began: int
    before: dict[Key, tuple[float, int]]
    peaks: dict[Key, float] = attrs.field(factory=dict)

    def average(self, key: Key, meter: Meter) -> float | None:
        """From the last report before it to the last one now; None as long as there is none since."""
        total, at = self.before.get(key, (0.0, self.began))
        return (meter.total - total) / (meter.at - at) if meter.at > at else None


@attrs.define
class Meters:
    """All that was measured. ``began``: the startd, unix time; ``uptime``: slots show the bare sums, too."""

    began: int
    uptime: bool = False
    _meters: dict[Key, Meter] = attrs.field(factory=dict)
    _jobs: dict[str, _Job] = attrs.field(factory=dict)

    def take(
        self, program: str, tag: str, wanted: Mapping[str, Metric], said: Mapping[str, ExprTree], now: int
    ) -> None:
        """One record of a program. What is no number from 0 on is no measurement."""
        for attribute, metric in wanted.items():
            value = _number(said[attribute]) if attribute in said else None
            if value is None:
                continue
            key = program, tag, attribute
            self._meters.setdefault(key, Meter(metric)).take(value, now)
            if metric.kind == "peak":
                for job in self._jobs.values():
                    job.peaks[key] = max(job.peaks.get(key, 0.0), value)

    def begin(self, slot: str, now: int) -> None:
        """A job begins in this slot."""
        self._jobs[slot] = _Job(now, {key: (meter.total, meter.at) for key, meter in self._meters.items()})

    def forget(self, slot: str) -> None:
        """There is no such slot any more."""
        self._jobs.pop(slot, None)

    def drop(self, program: str) -> None:
        """There is no such program any more."""
        for key in [key for key in self._meters if key[0] == program]:
            del self._meters[key]

    def put(self, ad: ClassAd, is_for: Callable[[str, str], bool], now: int) -> None:
        """What the devices of a slot did, into its ad. ``is_for``: whether the records of a program and tag are for
        it."""
        devices = {key: meter for key, meter in self._meters.items() if is_for(key[0], key[1])}
        for metric, meters in _by_metric(devices.values()).items():
            if metric.kind == "peak":
                ad[f"Device{metric.resource}PeakUsage"] = max(meter.total for meter in meters)
                continue
            total = sum(meter.total for meter in meters)
            ad[f"Device{metric.resource}AverageUsage"] = total / max(1, now - self.began)
            if self.uptime:
                ad[metric.attribute] = total
        for name, value in self.of_job(str(ad["Name"]), devices).items():
            ad[name] = value

    def of_job(self, slot: str, devices: Mapping[Key, Meter]) -> dict[str, float]:
        """What devices did for a slot's present job: <Resource>AverageUsage (devices), <Resource>Usage (a peak)."""
        job = self._jobs.get(slot)
        found: dict[str, float] = {}
        if job is None:
            return found
        for key, meter in devices.items():
            resource = meter.metric.resource
            if meter.metric.kind == "peak" and key in job.peaks:
                found[f"{resource}Usage"] = max(found.get(f"{resource}Usage", 0.0), job.peaks[key])
            elif meter.metric.kind == "sum" and (average := job.average(key, meter)) is not None:
                found[f"{resource}AverageUsage"] = found.get(f"{resource}AverageUsage", 0.0) + average
        return found


def names_of_jobs(wanted: tuple[Metric, ...]) -> frozenset[str]:
    """The attributes of a slot's ad that are its job's."""
    return frozenset(f"{each.resource}{'AverageUsage' if each.kind == 'sum' else 'Usage'}" for each in wanted)


def _by_metric(meters: Iterable[Meter]) -> dict[Metric, list[Meter]]:
    found: dict[Metric, list[Meter]] = defaultdict(list)
    for meter in meters:
        found[meter.metric].append(meter)
    return found


def _number(expression: ExprTree) -> float | None:
    ad = ClassAd()
    ad["value"] = expression
    value = evaluate(ad, "value")
    if isinstance(value, Value | bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        return None
    return float(value)
