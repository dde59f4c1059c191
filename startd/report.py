"""What a pilot has done by its end: jobs and seconds by outcome, CPU, memory, calls of the identity switch. Pure; the
startd writes it down."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import attrs

from pilot import osgtest
from pilot.standing import ENDS

# In the order of the table. The first four are glideinWMS's good and bad ends.
OUTCOMES = (
    "exited with 0", "exited with another code", "died by a signal", "held", "given back", "evicted", "lost",
)  # fmt: skip
_OF_VERDICT = {"Hold": "held", "Requeue": "given back", "Killed": "evicted", "Abandoned": "lost"}
IDENTITY = "sailplane-startd"


@attrs.frozen
class Job:
    """One activation that has ended. ``verdict``: the name of the starter's; "" of one that said nothing."""

    verdict: str
    wait_status: int | None
    seconds: float
    cpus: int
    cpu_s: float = 0.0
    rss_peak_kb: int = 0


@attrs.define
class Row:
    """Jobs of one outcome. ``slot_s``: seconds times cores of the slots."""

    jobs: int = 0
    seconds: float = 0.0
    slot_s: float = 0.0
    cpu_s: float = 0.0
    rss_peak_kb: int = 0


def outcome_of(job: Job) -> str:
    """The word in the report."""
    if job.verdict != "Exited" or job.wait_status is None:
        return _OF_VERDICT.get(job.verdict, "lost")
    if os.WIFSIGNALED(job.wait_status):
        return "died by a signal"
    return "exited with 0" if job.wait_status == 0 else "exited with another code"


@attrs.define
class Report:
    """Counts from the pilot's start on. ``cpus``: what it has. ``calls``: of the switch, by their ends (ENDS)."""

    name: str
    started_at: float
    cpus: int
    rows: dict[str, Row] = attrs.field(factory=lambda: {outcome: Row() for outcome in OUTCOMES})
    calls: Mapping[str, int] = attrs.field(factory=lambda: dict.fromkeys(ENDS, 0))

    def add(self, job: Job) -> None:
        """One more."""
        row = self.rows[outcome_of(job)]
        row.jobs += 1
        row.seconds += job.seconds
        row.slot_s += job.seconds * job.cpus
        row.cpu_s += job.cpu_s
        row.rss_peak_kb = max(row.rss_peak_kb, job.rss_peak_kb)

    def as_json(self, *, now: float, reason: str, status: int) -> dict[str, Any]:
        """Everything, for scripts; seconds and kilobytes."""
        jobs = {outcome: attrs.asdict(row) for outcome, row in self.rows.items()}
        return {
            "startd": self.name,
            "ended_because": reason,
            "exit_status": status,
            "started_at": int(self.started_at),
            "lived_s": round(now - self.started_at, 3),
            "cpus": self.cpus,
            "jobs": sum(row.jobs for row in self.rows.values()),
            "busy_fraction": round(self._busy(now), 4),
            "outcomes": jobs,
            "switch_calls": {"all": sum(self.calls.values()), **self.calls},
        }

    def _busy(self, now: float) -> float:
        possible_s = (now - self.started_at) * self.cpus
        return sum(row.slot_s for row in self.rows.values()) / possible_s if possible_s > 0 else 0.0

    def as_table(self, *, now: float, reason: str, width: int = 100) -> str:
        """For people: plain text."""
        from rich.console import Console  # 50 ms, which a pilot's start need not have
        from rich.table import Table

        table = Table(title=f"{self.name}: {now - self.started_at:.0f} s, ended because {reason or 'it was told to'}")
        table.add_column("outcome")
        for heading in ("jobs", "seconds", "CPU seconds", "peak memory MB"):
            table.add_column(heading, justify="right")
        for outcome, row in self.rows.items():
            if row.jobs:
                table.add_row(
                    outcome, str(row.jobs), f"{row.seconds:.0f}", f"{row.cpu_s:.0f}", f"{row.rss_peak_kb / 1024:.0f}"
                )
        if not any(row.jobs for row in self.rows.values()):
            table.add_row("no job", "0", "0", "0", "0")
        calls = Table()
        calls.add_column("switch calls")
        calls.add_column("number", justify="right")
        calls.add_row("all", str(sum(self.calls.values())))
        for end, number in self.calls.items():
            if number:
                calls.add_row(end, str(number))
        console = Console(width=width, file=None, force_terminal=False)
        with console.capture() as captured:
            console.print(table)
            console.print(calls)
        return captured.get()

    def as_xml(self, *, now: float, reason: str, status: int) -> str:
        """For a glidein's own report: OSGTestResult."""
        metrics = [("AutoShutdown", str(status == 99)), ("CondorDuration", f"{now - self.started_at:.0f}")]
        for outcome, row in self.rows.items():
            word = "".join(part.capitalize() for part in outcome.split())
            metrics += [(f"{word}JobsNr", str(row.jobs)), (f"{word}JobsTime", f"{row.slot_s:.0f}")]
        total = sum(row.jobs for row in self.rows.values())
        metrics += [("TotalJobsNr", str(total)), ("BusyFraction", f"{self._busy(now):.4f}")]
        metrics += [("SwitchCallsNr", str(sum(self.calls.values())))]
        metrics += [(f"SwitchCalls{end.capitalize()}Nr", str(number)) for end, number in self.calls.items()]
        ok = status in (0, 99)
        if not ok:
            metrics.insert(0, ("failure", "WN_Resource"))
        return osgtest.document(IDENTITY, ok=ok, metrics=metrics, detail=reason or "ended by a signal", now=now)
