"""A worker node whose /proc hides other accounts' processes (hidepid=2): the pilot sees nothing of its jobs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from demo.site import Site
from tests.e2e.conftest import STARTD_KNOBS
from tests.e2e.e2e_jobs import Jobs
from tests.procd.hosts import hiding_proc

pytestmark = [pytest.mark.needs_root, pytest.mark.timeout(300)]

# Leaves a daemon of its own session behind that ignores what can be ignored, and says so.
DAEMON = """
(setsid sh -c 'trap "" TERM HUP INT; (setsid sleep 300 &); while :; do sleep 1; done' >/dev/null 2>&1 &)
i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done
"""


@pytest.fixture(scope="module", params=[pytest.param(True, marks=pytest.mark.slow), False], ids=["linger", "exec"])
def jobs(request: pytest.FixtureRequest) -> Iterator[Jobs]:
    with Site.open("test", linger=request.param) as site:
        site.start_pool()
        with hiding_proc():
            site.start_startd(**STARTD_KNOBS)
        made = Jobs(site)
        assert "this host: hidepid: " in made.log("ProcLog")
        yield made
        site.stop()
        assert site.left == []


@pytest.mark.slow
def test_a_job_that_leaves_a_daemon_ends_with_it(jobs: Jobs) -> None:
    row = jobs.done(jobs.submit("alice", DAEMON + "exit 7"))
    assert row["exit_code"] == 7
    jobs.until_nothing_is_left_of("alice")


@pytest.mark.parametrize(
    "root",
    ["trap '' TERM; while :; do sleep 1; done", pytest.param("sleep 300", marks=pytest.mark.slow)],
    ids=["deaf", "plain"],
)
def test_a_removed_job_leaves_nothing(jobs: Jobs, root: str) -> None:
    job = jobs.submit("alice", DAEMON + root)
    jobs.until("the daemon", lambda: len(jobs.processes("alice")) >= 4)
    jobs.remove("alice", job)
    assert len(jobs.calls(job)) == (3 if jobs.site.linger else 4)  # in, launch, clean-up; and one to end it
    jobs.until_nothing_is_left_of("alice")


def test_a_starters_death_leaves_nothing(jobs: Jobs) -> None:
    jobs.submit("alice", DAEMON + "sleep 300")
    jobs.until("the daemon", lambda: len(jobs.processes("alice")) >= 4)
    (starter,) = jobs.starters()
    jobs.kill(starter)
    jobs.until_nothing_is_left_of("alice")
