"""What a user does to a running job of the embedded pool: hold, release, suspend, continue, vacate."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from tests.e2e.e2e_jobs import Jobs

pytestmark = [pytest.mark.needs_root, pytest.mark.timeout(120)]

PATIENT = "sleep 300"


def act(jobs: Jobs, verb: str, job: str) -> str:
    """`sailplane VERB` by the job's owner."""
    done = jobs.site.sailplane(jobs.user("alice"), verb, job)
    assert done.returncode == 0, done.stderr
    return done.stdout


def states(jobs: Jobs) -> set[str]:
    """Of the processes of alice's job."""
    found = set()
    for pid, name in jobs.processes("alice").items():
        if "sleep" in name:
            with contextlib.suppress(OSError):  # it has gone meanwhile
                found.add(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0])
    return found


def test_suspend_continue_hold_release_vacate_and_remove(lingering: Jobs) -> None:
    jobs = lingering
    job = jobs.submit("alice", PATIENT)
    jobs.wait_for(job, "running")
    jobs.until("the program", lambda: states(jobs) == {"S"})
    assert act(jobs, "suspend", job) == "1 suspended.\n"
    jobs.wait_for(job, "suspended")
    assert states(jobs) == {"T"}
    assert act(jobs, "continue", job) == "1 continued.\n"
    jobs.wait_for(job, "running")
    jobs.until("the program to go on", lambda: states(jobs) == {"S"})
    act(jobs, "hold", job)
    row = jobs.wait_for(job, "held")
    assert (row["hold_code"], "sailplane release" in row["reason"]) == (1, True)
    jobs.until("the job to end", lambda: not states(jobs))
    act(jobs, "release", job)
    jobs.wait_for(job, "running")
    jobs.until("the program", lambda: states(jobs) == {"S"})
    act(jobs, "vacate", job)
    jobs.until("another run", lambda: len(jobs.runs(job)) == 3)
    assert [run["outcome"] for run in jobs.runs(job)][:2] == ["held", "requeued"]
    jobs.remove("alice", job)
    jobs.wait_for(job, "removed")
    jobs.until_nothing_is_left_of("alice")


def test_what_cannot_be_done_is_said(lingering: Jobs) -> None:
    job = lingering.submit("alice", "exit 0")
    lingering.done(job)
    for verb in ("hold", "release", "suspend", "continue", "vacate"):
        refused = lingering.site.sailplane(lingering.user("alice"), verb, job)
        assert refused.returncode == 1
        assert "completed" in refused.stderr
    theirs = lingering.site.sailplane(lingering.user("bob"), "hold", job)
    assert "no job" in theirs.stderr
