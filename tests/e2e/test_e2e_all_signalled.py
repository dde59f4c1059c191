"""SIGTERM to every process of a job's life, as a batch system sends it that ends a pilot; here the startd is spared, so
that its next slot shows what became of the job."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest

from demo import leftovers
from tests.e2e.e2e_jobs import Jobs

pytestmark = [pytest.mark.needs_root, pytest.mark.timeout(300), pytest.mark.slow]

# So many that a signal meets them on their way.
BYTES = 150_000_000
DISK_KB = "400000"


def far_sides(jobs: Jobs, role: str, verb: str) -> list[int]:
    """Ours at a user's account that do this."""
    found = []
    for pid in jobs.processes(role):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[-2] == verb.encode():
                found.append(pid)
    return found


def terminate(jobs: Jobs, *, last_first: bool = False) -> None:
    """The starters, and all that they have started, at whatever account."""
    site = jobs.site
    assert site.pool is not None
    assert site.startd is not None
    spared = {site.pool.pid, site.startd.pid}
    for pid in sorted(set(leftovers.processes_in(site.layout.root)) - spared, reverse=last_first):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


def outcomes(jobs: Jobs, job: str) -> list[str]:
    return [run["outcome"] for run in jobs.runs(job)]


def test_output_that_is_on_its_way_arrives(jobs: Jobs) -> None:
    job = jobs.submit("alice", f"head -c {BYTES} /dev/zero >big; echo done", request_disk=DISK_KB)
    jobs.until("stage-out", lambda: far_sides(jobs, "alice", "stage-out"))
    terminate(jobs)
    jobs.done(job)
    assert outcomes(jobs, job) == ["completed"]
    files = jobs.fetch("alice", job)
    assert (len(files["big"]), files["out"]) == (BYTES, b"done\n")


def test_a_checkpoint_that_is_on_its_way_arrives(lingering: Jobs) -> None:
    job = lingering.submit(
        "alice", f"[ -s state ] && echo done && exit 0; head -c {BYTES} /dev/zero >state; exit 85",
        checkpoint_exit_code="85", transfer_checkpoint_files="state", request_disk=DISK_KB,
    )  # fmt: skip
    lingering.until("stage-out", lambda: far_sides(lingering, "alice", "stage-out"))
    terminate(lingering)
    lingering.done(job)
    assert outcomes(lingering, job) == ["requeued", "completed"]
    assert lingering.fetch("alice", job)["out"] == b"done\n"


def test_a_job_whose_input_is_on_its_way_starts_again(lingering: Jobs) -> None:
    lingering.site.put(lingering.user("alice"), "large", bytes(BYTES))
    job = lingering.submit("alice", "wc -c <large", transfer_input_files="large", request_disk=DISK_KB)
    lingering.until("stage-in", lambda: far_sides(lingering, "alice", "stage-in"))
    terminate(lingering)
    lingering.done(job)
    assert outcomes(lingering, job) == ["requeued", "completed"]
    assert int(lingering.fetch("alice", job)["out"]) == BYTES


@pytest.mark.parametrize("last_first", [False, True], ids=["first first", "last first"])
@pytest.mark.parametrize("suspended", [False, True], ids=["running", "suspended"])
def test_a_job_that_ends_well_for_it_is_evicted(lingering: Jobs, *, last_first: bool, suspended: bool) -> None:
    """Twice, and whoever hears of it first."""
    script = "[ -s kept ] && echo again && exit 0; trap 'exit 0' TERM; echo 1 >kept; touch there; sleep 600 & wait"
    job = lingering.submit("alice", script, when_to_transfer_output="ON_EXIT_OR_EVICT")
    lingering.until("the trap", lambda: any(lingering.site.layout.pilot.glob("execute/**/there")))
    if suspended:
        lingering.site.ask(lingering.user("alice"), "suspend", job)
        lingering.wait_for(job, "suspended")
    for _ in range(2):
        terminate(lingering, last_first=last_first)
    lingering.done(job)
    assert outcomes(lingering, job) == ["requeued", "completed"]
    assert lingering.fetch("alice", job)["out"] == b"again\n", "its output went home"
