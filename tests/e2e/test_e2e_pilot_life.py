"""A pilot ends by itself before its batch slot does: in order, with status 99, and with nothing left behind."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Iterator

import pytest

from demo.daemons import Daemon
from startd.pilotend import ONE_TERM_S
from startd.startd import BROKERS_WITHIN_S
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


def pilot(jobs: Jobs, *, wait: bool = True, **knobs: object) -> Daemon:
    """A startd in place of the one before; whoever waits for a job is not told of its end, which is the test's."""
    if jobs.site.startd is not None:
        jobs.site.startd.stop(signal.SIGQUIT, deadline_s=WITHIN_S)
        jobs.site.startd = None
    return jobs.site.start_startd(wait=wait, **STARTD_KNOBS | knobs)


def ends(jobs: Jobs, startd: Daemon) -> int:
    jobs.site.startd = None
    status = startd.wait(WITHIN_S)
    assert status is not None, startd.tails()
    startd.close()
    jobs.until_nothing_is_left_of("alice")
    return status


@pytest.mark.slow
def test_a_pilot_without_claims_ends(site: Jobs) -> None:
    startd = pilot(site, STARTD_NOCLAIM_SHUTDOWN=1)
    assert ends(site, startd) == END_OF_LIFE
    assert "nothing was claimed for 1 s (STARTD_NOCLAIM_SHUTDOWN)" in site.log("StartLog")


@pytest.mark.slow
def test_an_expression_about_the_slot_ends_a_pilot(site: Jobs) -> None:
    assert ends(site, pilot(site, DAEMON_SHUTDOWN='State == "Unclaimed" && Cpus == 4')) == END_OF_LIFE


def test_a_pilot_that_waits_for_a_silent_broker_ends_at_once(site: Jobs) -> None:
    with socket.create_server(("127.0.0.1", 0)) as broker:
        broker.settimeout(WITHIN_S)
        place = f"127.0.0.1:{broker.getsockname()[1]}"
        startd = pilot(site, wait=False, CCB_ADDRESS=place)
        connection, _ = broker.accept()
        with connection:
            begun_s = time.monotonic()
            startd.signal(signal.SIGTERM)
            assert ends(site, startd) == 0
            assert time.monotonic() - begun_s < BROKERS_WITHIN_S - 5


def change(jobs: Jobs, startd: Daemon, **knobs: object) -> None:
    """More settings, read again by the running startd."""
    config = jobs.site.layout.pilot / "startd.conf"
    with config.open("a") as file:
        file.writelines(f"{name} = {value}\n" for name, value in knobs.items())
    startd.signal(signal.SIGHUP)


def test_after_its_time_a_pilot_finishes_its_job_and_takes_no_other(site: Jobs) -> None:
    startd = pilot(site)
    go = site.user("alice").home / "go"
    first = site.submit("alice", f"while [ ! -e {go} ]; do sleep 0.1; done; echo over")
    site.wait_for(first, "running")
    change(site, startd, GLIDEIN_TORETIRE=1)
    site.until("no more jobs", lambda: "no more jobs: the time of GLIDEIN_ToRetire" in site.log("StartLog"))
    second = site.submit("alice", "echo second")
    site.site.put(site.user("alice"), "go", b"")
    assert site.done(first)["exit_code"] == 0
    assert ends(site, startd) == END_OF_LIFE
    assert site.rows()[second]["state"] == "idle"
    pilot(site)
    site.done(second)


def test_at_its_death_a_pilot_ends_its_job_softly(site: Jobs) -> None:
    """The job takes TERM, and is run again elsewhere."""
    startd = pilot(site, MACHINEMAXVACATETIME=20)
    home = site.user("alice").home
    word, there = home / "word", home / "there"
    job = site.submit("alice", f"trap 'echo soft >{word}; exit 0' TERM; echo >{there}; while :; do sleep 0.1; done")
    site.until("the job to listen", there.exists)
    change(site, startd, GLIDEIN_TODIE=1)
    assert ends(site, startd) == END_OF_LIFE
    assert "GLIDEIN_ToDie" in site.log("StartLog")
    assert word.read_text() == "soft\n"
    site.wait_for(job, "idle")
    site.remove("alice", job)


def test_settings_that_cannot_be_read_change_nothing(site: Jobs) -> None:
    startd = pilot(site)
    change(site, startd, CLAIM_WORKLIFE="never")
    site.until("the refusal", lambda: "everything stays as it is: CLAIM_WORKLIFE = 'never'" in site.log("StartLog"))
    assert site.done(site.submit("alice", "exit 0"))["exit_code"] == 0


@pytest.mark.slow
def test_a_job_is_given_its_retirement_time(site: Jobs) -> None:
    startd = pilot(site, MAXJOBRETIREMENTTIME=600)
    go = site.user("alice").home / "on"
    job = site.submit("alice", f"while [ ! -e {go} ]; do sleep 0.1; done")
    site.wait_for(job, "running")
    startd.signal(signal.SIGTERM)
    site.until("the end to begin", lambda: site.log("StartLog").splitlines()[-1].endswith("busy -> retiring (rule 18)"))
    site.site.put(site.user("alice"), "on", b"")
    assert site.done(job)["exit_code"] == 0
    assert ends(site, startd) == 0
    assert [run["outcome"] for run in site.runs(job)] == ["completed"]


@pytest.mark.slow
def test_a_second_sigterm_ends_a_pilot_fast_but_not_the_same_one_again(site: Jobs) -> None:
    startd = pilot(site, MAXJOBRETIREMENTTIME=600)
    job = site.submit("alice", "sleep 600")
    site.wait_for(job, "running")
    said = len(site.log("StartLog"))  # others have ended here before
    for _ in range(3):
        startd.signal(signal.SIGTERM)
        site.until("the end to begin", lambda: "SIGTERM: shutting down gracefully" in site.log("StartLog")[said:])
    time.sleep(ONE_TERM_S)
    assert "SIGTERM: shutting down fast" not in site.log("StartLog")[said:]
    startd.signal(signal.SIGTERM)
    assert ends(site, startd) == 0
    assert "SIGTERM: shutting down fast" in site.log("StartLog")[said:]
    site.wait_for(job, "idle")
    site.remove("alice", job)


@pytest.mark.slow
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
