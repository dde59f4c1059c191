"""Starters without a spawner (`sailplane-starter --one`), as for debugging: the same jobs, the same ends."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from demo.site import Site
from tests.e2e.conftest import STARTD_KNOBS
from tests.e2e.e2e_jobs import Jobs

pytestmark = [pytest.mark.needs_root, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def single() -> Iterator[Jobs]:
    command = f"{sys.executable} -m starter.main --one"
    with Site.open("test", linger=True) as site:
        site.start_pool()
        site.start_startd(**STARTD_KNOBS, SAILPLANE_STARTER_COMMAND=command)
        yield Jobs(site)
        site.stop()
        assert site.left == []


def test_jobs_run_in_starters_of_their_own(single: Jobs) -> None:
    jobs = single.submit_many("alice", ["echo out; exit 3", "kill -9 $$"])
    rows = [single.done(job) for job in jobs]
    assert (rows[0]["exit_code"], rows[1]["exit_signal"]) == (3, 9)
    assert single.fetch("alice", jobs[0])["out"] == b"out\n"
    single.until_nothing_is_left_of("alice")


@pytest.mark.slow
def test_a_killed_one_is_noticed_and_its_job_runs_again(single: Jobs) -> None:
    job = single.submit("alice", "[ -e /nowhere ] || sleep 3; echo done")
    single.until("the job to run", lambda: single.runs(job) and single.pids_of("starter.main", "--one"))
    single.until("its process", lambda: single.processes("alice"))
    (starter,) = single.pids_of("starter.main", "--one")
    single.kill(starter)
    assert single.done(job)["exit_code"] == 0
    assert len(single.runs(job)) == 2
    single.until_nothing_is_left_of("alice")
