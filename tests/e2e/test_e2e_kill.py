"""Any process may be killed at any moment: afterwards no process, no sandbox, and the job is done once or run again."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import SHORT_LEASE, STARTD_KNOBS, running_site
from tests.e2e.e2e_jobs import Jobs

pytestmark = [pytest.mark.needs_root, pytest.mark.timeout(300)]

# By phase: the job is long enough to be caught running, or its output large enough to be caught on its way.
SCRIPTS = {
    "running": "sleep 1.5; touch big; echo done",
    "staging out": "sleep 0.2; truncate -s 150M big; echo done",
}
PHASES = tuple(SCRIPTS)
# The kill matrix of the slow tier has every phase; here is one of each.
QUICK = [PHASES[0], *(pytest.param(phase, marks=pytest.mark.slow) for phase in PHASES[1:])]


@pytest.fixture(scope="module")
def site() -> Iterator[Jobs]:
    """One site for the whole matrix: each case restarts what it killed."""
    with running_site(linger=True) as made:
        yield made


@pytest.fixture
def briefly() -> Iterator[Jobs]:
    """A site that does not wait for a pool for long."""
    with running_site(linger=True, **SHORT_LEASE) as made:
        yield made


def caught(jobs: Jobs, phase: str) -> str:
    """A job of alice's that is in this phase now."""
    mark = len(jobs.log("StarterLog"))
    job = jobs.submit("alice", SCRIPTS[phase], transfer_output_files="big")
    jobs.until(f"the job to be {phase}", lambda: f"-> {phase} " in jobs.log("StarterLog")[mark:])
    return job


def check_done(jobs: Jobs, job: str, *, again: bool | None) -> None:
    """Completed, with every run in its history; ``again``: it must have been run twice (None: once or twice)."""
    row = jobs.done(job)
    assert row["exit_code"] == 0
    runs = jobs.runs(job)
    assert [run["outcome"] for run in runs].count("completed") == 1
    assert runs[-1]["outcome"] == "completed"
    if again is not None:
        assert (len(runs) > 1) is again, runs
    jobs.until_nothing_is_left_of("alice")


@pytest.mark.parametrize("phase", QUICK)
def test_procd_is_replaced_and_nothing_is_killed(site: Jobs, phase: str) -> None:
    job = caught(site, phase)
    (procd,) = site.pids_of("procd", "--lifeline-fd")
    site.kill(procd)
    check_done(site, job, again=False)
    site.until("another procd", lambda: site.pids_of("procd", "--lifeline-fd") not in ([], [procd]))


def limit_processes(jobs: Jobs, pid: int, soft: str) -> None:
    """As the pilot: root may lack the capability for a process of another account."""
    pilot = jobs.site.accounts["pilot"]
    command = ["/usr/bin/prlimit", f"--pid={pid}", f"--nproc={soft}:"]
    subprocess.run(command, check=True, user=pilot.uid, group=pilot.gid, extra_groups=[], cwd="/")


@pytest.mark.slow
def test_a_pilot_that_is_given_no_processes_any_more_lives_on(site: Jobs) -> None:
    """As in a job's fork bomb, where the batch system limits the whole pilot's: no job matches until it is over."""
    startd = site.site.startd
    assert startd is not None
    mark = len(site.log("StarterLog"))
    job = site.submit("alice", "sleep 45")
    site.until("the job to be running", lambda: "-> running " in site.log("StarterLog")[mark:])
    (procd,) = site.pids_of("procd", "--lifeline-fd")
    for pid in (startd.pid, site.spawner()):
        limit_processes(site, pid, "1")
    mark = len(site.log("StartLog"))
    site.kill(procd)  # its successor cannot be started
    site.until("the limit to be seen", lambda: "no more threads" in site.log("StartLog")[mark:])
    for pid in (startd.pid, site.spawner()):
        limit_processes(site, pid, "4000")
    site.until("another procd", lambda: site.pids_of("procd", "--lifeline-fd") not in ([], [procd]))
    check_done(site, job, again=False)
    site.done(site.submit("alice", "exit 0"))


@pytest.mark.parametrize("phase", QUICK)
def test_without_its_spawner_a_starter_lives_on(site: Jobs, phase: str) -> None:
    job = caught(site, phase)
    spawner = site.spawner()
    site.kill(spawner)
    check_done(site, job, again=False)
    site.until("another spawner", lambda: site.pids_of("--spawner-fd") not in ([], [spawner]))
    site.done(site.submit("alice", "exit 0"))


@pytest.mark.parametrize("phase", QUICK)
def test_a_killed_starters_job_is_stopped_cleaned_and_run_again(site: Jobs, phase: str) -> None:
    job = caught(site, phase)
    (starter,) = site.starters()
    site.kill(starter)
    check_done(site, job, again=True)


@pytest.mark.parametrize("phase", QUICK)
def test_a_killed_startd_leaves_nothing_and_its_job_runs_again(site: Jobs, phase: str) -> None:
    job = caught(site, phase)
    startd = site.site.startd
    assert startd is not None
    site.site.startd = None
    site.kill(startd.pid)
    startd.wait(10.0)
    site.until_nothing_is_left_of("alice")
    site.until("no process of the pilot", lambda: not site.pids_of("python"))
    site.site.start_startd(**STARTD_KNOBS)
    check_done(site, job, again=True)


@pytest.mark.slow
@pytest.mark.parametrize("phase", PHASES)
def test_a_killed_pools_job_is_ended_and_runs_again_after_its_restart(briefly: Jobs, phase: str) -> None:
    job = caught(briefly, phase)
    pool = briefly.site.pool
    assert pool is not None
    briefly.site.pool = None
    briefly.kill(pool.pid)
    pool.wait(10.0)
    briefly.until_nothing_is_left_of("alice")
    briefly.site.start_pool(**SHORT_LEASE, SAILPLANE_POOL_PORT=briefly.collector_port())
    check_done(briefly, job, again=True)


@pytest.mark.parametrize("phase", QUICK)
def test_a_job_outlives_a_killed_pool_that_comes_back_within_the_lease(site: Jobs, phase: str) -> None:
    job = caught(site, phase)
    pool = site.site.pool
    assert pool is not None
    site.site.pool = None
    site.kill(pool.pid)
    pool.wait(10.0)
    site.site.start_pool(SAILPLANE_POOL_PORT=site.collector_port())
    check_done(site, job, again=False)


def test_everything_of_the_pilots_is_killed_at_one_stroke(site: Jobs) -> None:
    """Nothing is left to clean up with: the lingering root part ends the family by itself, the next startd the rest."""
    job = caught(site, "running")
    startd = site.site.startd
    assert startd is not None
    site.site.startd = None
    for pid in site.pids_of("python"):
        site.kill(pid)
    startd.wait(10.0)
    site.until("no process of alice", lambda: not site.processes("alice"))
    site.site.start_startd(**STARTD_KNOBS)
    check_done(site, job, again=True)


def test_a_wrapper_killed_before_it_could_start_the_job_is_tried_again(site: Jobs) -> None:
    """The kill lands between its hello and exec: nothing of the job ran, so the launch is made once more."""
    ready = threading.Event()
    killed: list[int] = []
    uid = site.site.accounts["alice"].uid

    def kill_first_wrapper() -> None:
        before = set(os.listdir("/proc"))
        ready.set()
        deadline_s = time.monotonic() + 60.0
        while not killed and time.monotonic() < deadline_s:
            for name in filter(str.isdigit, set(os.listdir("/proc")) - before):
                with contextlib.suppress(OSError):
                    line = Path(f"/proc/{name}/cmdline").read_bytes()
                    if line.endswith(b"\0launch\0") and os.stat(f"/proc/{name}").st_uid == uid:
                        os.kill(int(name), signal.SIGKILL)
                        killed.append(int(name))
                        break

    killer = threading.Thread(target=kill_first_wrapper)
    killer.start()
    ready.wait()
    job = site.submit("alice", "echo once")
    row = site.done(job)
    killer.join()
    assert killed
    assert row["exit_code"] == 0
    assert len(site.runs(job)) == 1
    assert len(site.calls(job)) == 4, "stage-in, two launches, stage-out"
    assert site.fetch("alice", job)["out"] == b"once\n"
