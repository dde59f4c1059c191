"""A pilot ends by itself before its batch slot does: in order, with status 99, and with nothing left behind."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from demo.daemons import Daemon
from tests.e2e.conftest import STARTD_KNOBS, running_site
from tests.e2e.e2e_jobs import Jobs

pytestmark = [pytest.mark.needs_root, pytest.mark.timeout(300)]

END_OF_LIFE = 99
# The longest that any of these ends may take on a busy machine.
WITHIN_S = 60.0


@pytest.fixture(scope="module")
def site() -> Iterator[Jobs]:
    """One site; each test starts the startd that it needs."""
    with running_site(linger=True) as made:
        yield made


def pilot(jobs: Jobs, **knobs: object) -> Daemon:
    """A startd in place of the one before; whoever waits for a job is not told of its end, which is the test's."""
    if jobs.site.startd is not None:
        jobs.site.startd.stop(signal.SIGQUIT, deadline_s=WITHIN_S)
        jobs.site.startd = None
    return jobs.site.start_startd(**STARTD_KNOBS | knobs)


def ends(jobs: Jobs, startd: Daemon) -> int:
    jobs.site.startd = None
    status = startd.wait(WITHIN_S)
    assert status is not None, startd.tails()
    startd.close()
    jobs.until_nothing_is_left_of("alice")
    return status


def status_ad(jobs: Jobs, *, is_there: str) -> dict[str, Any]:
    """The slot's ad at the pool, once it has this attribute."""

    def there() -> dict[str, Any] | None:
        done = jobs.site.sailplane(jobs.user("alice"), "status", "--long", "--json")
        slots = json.loads(done.stdout) if done.returncode == 0 else []
        return next((slot for slot in slots if is_there in slot), None)

    found: dict[str, Any] = jobs.until(f"a slot with {is_there}", there)
    return found


def test_a_pilot_without_claims_ends(site: Jobs) -> None:
    startd = pilot(site, STARTD_NOCLAIM_SHUTDOWN=1)
    assert ends(site, startd) == END_OF_LIFE
    assert "nothing was claimed for 1 s (STARTD_NOCLAIM_SHUTDOWN)" in site.log("StartLog")


def test_an_expression_about_the_slot_ends_a_pilot(site: Jobs) -> None:
    assert ends(site, pilot(site, DAEMON_SHUTDOWN='State == "Unclaimed" && Cpus == 4')) == END_OF_LIFE


def test_after_its_time_a_pilot_finishes_its_job_and_takes_no_other(site: Jobs) -> None:
    startd = pilot(site, GLIDEIN_TORETIRE=int(time.time()) + 3)
    first = site.submit("alice", "sleep 9; echo over")
    site.wait_for(first, "running")
    site.until("no more jobs", lambda: "no more jobs: the time of GLIDEIN_ToRetire" in site.log("StartLog"))
    second = site.submit("alice", "echo second")
    assert site.done(first)["exit_code"] == 0
    assert ends(site, startd) == END_OF_LIFE
    assert site.rows()[second]["state"] == "idle"
    pilot(site)
    site.done(second)


def test_at_its_death_a_pilot_ends_its_job_softly(site: Jobs) -> None:
    """The job takes TERM, and is run again elsewhere."""
    startd = pilot(site, GLIDEIN_TODIE=int(time.time()) + 4, MACHINEMAXVACATETIME=5)
    job = site.submit("alice", "trap 'exit 0' TERM; while :; do sleep 0.2; done")
    site.wait_for(job, "running")
    assert ends(site, startd) == END_OF_LIFE
    assert "GLIDEIN_ToDie" in site.log("StartLog")
    site.wait_for(job, "idle")
    site.remove("alice", job)


def test_a_job_is_given_its_retirement_time(site: Jobs) -> None:
    startd = pilot(site, MAXJOBRETIREMENTTIME=600)
    job = site.submit("alice", "sleep 3; echo over")
    site.wait_for(job, "running")
    startd.signal(signal.SIGTERM)
    assert site.done(job)["exit_code"] == 0
    assert ends(site, startd) == 0
    assert [run["outcome"] for run in site.runs(job)] == ["completed"]


def test_retirement_leaves_room_for_an_orderly_end(site: Jobs) -> None:
    """The batch system would kill what is not over by then."""
    startd = pilot(site, MAXJOBRETIREMENTTIME=600, SHUTDOWN_GRACEFUL_TIMEOUT=6, MACHINEMAXVACATETIME=4)
    job = site.submit("alice", "sleep 600")
    site.wait_for(job, "running")
    began_s = time.monotonic()
    startd.signal(signal.SIGTERM)
    assert ends(site, startd) == 0
    assert time.monotonic() - began_s < 30
    site.wait_for(job, "idle")
    site.remove("alice", job)
