"""What the demo found out: rows for the table, the JSON, and what is wrong with them. Does no I/O."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

# Stage in, launch, stage out.
CALLS_PER_JOB = 3


@attrs.frozen
class JobReport:
    """One job, in the form of the JSON."""

    id: str
    owner: str
    dn: str
    uid: int | None
    account: str | None
    pilot_uid: int
    exit_status: int | None
    outputs: Mapping[str, str]
    switch_calls: int | None
    seconds: Mapping[str, float]


def exit_status(wait_status: int | None) -> int | None:
    """The exit code, or minus the signal's number; None for a job that did not end."""
    return None if wait_status is None else os.waitstatus_to_exitcode(wait_status)


def digests(outputs: Mapping[str, bytes]) -> dict[str, str]:
    """SHA-256 of each output."""
    return {name: hashlib.sha256(data).hexdigest() for name, data in sorted(outputs.items())}


def calls_of(job: str, log: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The switch's decisions for one job: its GLEXEC_ID is the global job id, `host#job#time`."""
    return [record for record in log if record.get("event") == "decision" and f"#{job}#" in str(record.get("id"))]


def seconds(
    submitted_at: float, started_at: float | None, executing_at: float | None, ended_at: float | None
) -> dict[str, float]:
    """How long the steps of a job's last run took, from the pool's history."""
    marks = {
        "waiting": (submitted_at, started_at),
        "staging_in": (started_at, executing_at),
        "running_and_back": (executing_at, ended_at),
        "total": (submitted_at, ended_at),
    }
    return {
        step: round(end - start, 3) for step, (start, end) in marks.items() if start is not None and end is not None
    }


def said_uid(output: bytes | None) -> int | None:
    """The uid that the job itself printed, None if it printed none."""
    try:
        found = json.loads(output or b"")["uid"]
    except (ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, int) else None


def faults(jobs: Sequence[JobReport], *, switched: bool, sub_uids: bool = False) -> list[str]:
    """What of the demo's promises the jobs do not keep, in words; `sub_uids`: each job has an account of its own."""
    found = [f"job {job.id} of {job.owner} has exit status {job.exit_status}" for job in jobs if job.exit_status != 0]
    uids: dict[str, set[int | None]] = {}
    for job in jobs:
        uids.setdefault(job.owner, set()).add(job.uid)
    if len(uids) != 2:
        found.append(f"{len(uids)} owners instead of two: {', '.join(sorted(uids))}")
    if sub_uids:
        return found + [f"job {job.id} ran as {job.uid}" for job in jobs if job.uid in (None, job.pilot_uid)]
    found += [f"jobs of {owner} ran as {found_uids}" for owner, found_uids in uids.items() if len(found_uids) != 1]
    return found + (_switch_faults(jobs, uids) if switched else [])


def _switch_faults(jobs: Sequence[JobReport], uids: Mapping[str, set[int | None]]) -> list[str]:
    found = [
        f"job {job.id} took {job.switch_calls} calls of the switch instead of {CALLS_PER_JOB}"
        for job in jobs
        if job.switch_calls != CALLS_PER_JOB
    ]
    found += [f"job {job.id} ran at the pilot's own uid" for job in jobs if job.uid == job.pilot_uid]
    if len(set[int | None]().union(*uids.values())) != len(uids):
        found.append("jobs of two users ran at one uid")
    return found


def document(jobs: Sequence[JobReport], problems: Sequence[str]) -> str:
    """The JSON."""
    value: dict[str, Any] = {"ok": not problems, "jobs": [attrs.asdict(job) for job in jobs]}
    if problems:
        value["problems"] = list(problems)
    return json.dumps(value, indent=2) + "\n"
