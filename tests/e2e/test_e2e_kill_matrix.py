"""Every process of a job's life, killed right after each numbered transition of the good path, of an eviction and of a
checkpoint: afterwards no process and no sandbox is left, and each run is in the history, the completed one last.

The transitions are those of docs/job-life.md; which of them a job passes is checked by the walk itself.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.e2e.conftest import POOL_KNOBS, STARTD_KNOBS, running_site
from tests.e2e.e2e_jobs import Jobs, _parent

pytestmark = [pytest.mark.needs_root, pytest.mark.slow, pytest.mark.timeout(300)]

SCRIPT = """
n=$(cat state 2>/dev/null || echo 0); n=$((n + 1)); echo $n > state
sleep 0.3
[ $n -ge 2 ] || exit 85
truncate -s 30M big; echo done
"""
WISHES = {
    "checkpoint_exit_code": "85",
    "transfer_checkpoint_files": "state",
    "transfer_output_files": "big, state",
}
# The rules that this job passes, as often as it passes them; 13 is the end.
RULES = (1, 2, 3, 4, 33, 35, 36, 8, 10, 11, 13)
EVICTED_RULES = (16, 10, 12)
# A look at the log costs less than this.
LOOK_S = 0.002


@pytest.fixture(scope="module")
def site() -> Iterator[Jobs]:
    """One site for all cases: each starts again what it killed."""
    with running_site(linger=True) as made:
        yield made


def at_rule(jobs: Jobs, mark: int, rule: int) -> bool:
    """Wait for the log to tell of this transition; whether it came in time."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if f"(rule {rule})" in jobs.log("StarterLog")[mark:]:
            return True
        time.sleep(LOOK_S)
    return False


# --- who is killed ---------------------------------------------------------------------------------------------------


def kill_procd(jobs: Jobs) -> None:
    (procd,) = jobs.pids_of("procd", "--lifeline-fd")
    jobs.kill(procd)


def kill_spawner(jobs: Jobs) -> None:
    jobs.kill(jobs.spawner())


def kill_starter(jobs: Jobs) -> None:
    for pid in jobs.starters():
        jobs.kill(pid)


def kill_startd(jobs: Jobs) -> None:
    startd, jobs.site.startd = jobs.site.startd, None
    assert startd is not None
    jobs.kill(startd.pid)
    startd.wait(10.0)
    jobs.until("no process of the pilot", lambda: not jobs.pids_of("python"))
    jobs.site.start_startd(**STARTD_KNOBS)


def kill_pool(jobs: Jobs) -> None:
    pool, jobs.site.pool = jobs.site.pool, None
    assert pool is not None
    jobs.kill(pool.pid)
    pool.wait(10.0)
    jobs.site.start_pool(**POOL_KNOBS, SAILPLANE_POOL_PORT=jobs.collector_port())


def kill_job(jobs: Jobs) -> None:
    """All at the job's account: far sides and the job itself."""
    for pid in jobs.processes("alice"):
        jobs.kill(pid)


def kill_switch(jobs: Jobs) -> None:
    """What stands between starter and job: front, sudo, root part."""
    for starter in jobs.starters():
        below = {starter}
        while below := {pid for pid in pids() if _parent(pid) in below and not is_job(jobs, pid)}:
            for pid in below:
                jobs.kill(pid)


def pids() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def is_job(jobs: Jobs, pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}").stat().st_uid == jobs.site.accounts["alice"].uid
    return False


VICTIMS: dict[str, Callable[[Jobs], None]] = {
    "procd": kill_procd,
    "spawner": kill_spawner,
    "starter": kill_starter,
    "startd": kill_startd,
    "pool": kill_pool,
    "job": kill_job,
    "switch": kill_switch,
}


def check_history(jobs: Jobs, job: str) -> None:
    """All runs have an outcome, and at most the last one is complete."""
    outcomes = [run["outcome"] for run in jobs.runs(job)]
    assert None not in outcomes
    assert "completed" not in outcomes[:-1]


@pytest.mark.parametrize("victim", VICTIMS)
@pytest.mark.parametrize("rule", RULES)
def test_a_jobs_way(site: Jobs, rule: int, victim: str) -> None:
    mark = len(site.log("StarterLog"))
    job = site.submit("alice", SCRIPT, **WISHES)
    assert at_rule(site, mark, rule)
    VICTIMS[victim](site)
    row = site.wait_for(job, "completed", "held")
    if victim not in ("job", "switch"):
        assert (row["state"], row["exit_code"]) == ("completed", 0), row
        assert site.fetch("alice", job)["state"].strip() == b"2"
    check_history(site, job)
    site.until_nothing_is_left_of("alice")


@pytest.mark.parametrize("victim", VICTIMS)
@pytest.mark.parametrize("rule", EVICTED_RULES)
def test_a_removed_jobs_way(site: Jobs, rule: int, victim: str) -> None:
    mark = len(site.log("StarterLog"))
    job = site.submit("alice", "trap 'sleep 0.3; exit 0' TERM; sleep 600 & wait")
    site.until("the job to run", lambda: "-> running " in site.log("StarterLog")[mark:])
    site.site.ask(site.user("alice"), "rm", job)
    assert at_rule(site, mark, rule)
    VICTIMS[victim](site)
    site.wait_for(job, "removed")
    check_history(site, job)
    site.until_nothing_is_left_of("alice")


def test_the_walk_passes_the_rules_that_it_says(site: Jobs) -> None:
    mark = len(site.log("StarterLog"))
    site.done(site.submit("alice", SCRIPT, **WISHES))
    site.until("the end", lambda: "-> ended " in site.log("StarterLog")[mark:])
    passed = [int(number) for number in re.findall(r"-> [a-z ]+ \(rule (\d+)\)", site.log("StarterLog")[mark:])]
    assert set(RULES) <= set(passed)
