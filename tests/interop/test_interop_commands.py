"""What a user and an administrator do to a job under a stock schedd, and what each side hears of it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.conftest import restart_startd
from tests.interop.stockjobs import IDLE, RUNNING, StockJobs
from tests.userlog import EVICTED, EXECUTING, HELD, SUSPENDED, UNSUSPENDED

pytestmark = [pytest.mark.interop, pytest.mark.timeout(170)]

# Says what it did with a soft kill, and goes on for long.
PATIENT = "trap 'echo told >told; exit 3' TERM; sleep 300 & wait"


@pytest.fixture(autouse=True)
def empty_queue(stock: StockJobs) -> Iterator[None]:
    """A test that fails leaves the next one a free execution point."""
    yield
    if stock.pool.tool("condor_q", "-af", "ClusterId").strip():
        stock.pool.tool("condor_rm", "-all")
        stock.until_empty()


def stopped(stock: StockJobs, role: str) -> set[str]:
    """States of the processes of a user's jobs."""
    uid, found = stock.site.accounts[role].uid, set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                status = dict(line.split(":", 1) for line in (entry / "status").read_text().splitlines())
            except OSError:
                continue
            if int(status["Uid"].split()[1]) == uid and status["Name"].strip() == "sleep":
                found.add(status["State"].split()[0])
    return found


def test_suspend_continue_hold_release_vacate_and_remove(stock: StockJobs) -> None:
    job = stock.one("alice", PATIENT, when_to_transfer_output="ON_EXIT_OR_EVICT", transfer_output_files="told")
    stock.wait(job, EXECUTING)
    stock.act("suspend", job)
    assert "actually suspended: 2" in stock.wait(job, SUSPENDED).text
    stock.until(lambda: True if stopped(stock, "alice") == {"T"} else None, "its processes to stand still")
    stock.act("continue", job)
    stock.wait(job, UNSUSPENDED)
    stock.until(lambda: True if stopped(stock, "alice") == {"S"} else None, "its processes to go on")
    stock.act("hold", job)
    stock.wait(job, HELD)
    seen = len(stock.events(job))
    stock.act("release", job)
    stock.wait(job, EXECUTING, after=seen)
    seen = len(stock.events(job))
    stock.act("vacate_job", job)
    stock.wait(job, EVICTED, after=seen)
    stock.wait(job, EXECUTING, after=seen)
    stock.act("rm", job)
    stock.until(lambda: True if stock.status(job) == 3 else None, "the job to be removed")
    stock.until_empty()
    assert stock.ad(job)["NumJobStarts"] == 3


def test_condor_status_shows_slots_as_it_should(stock: StockJobs) -> None:
    job = stock.one("alice", "sleep 300")
    stock.wait(job, EXECUTING)
    stock.until(lambda: True if len(stock.slots()) == 2 else None, "the busy slot in the collector")
    table = stock.pool.tool("condor_status")
    assert "?" not in table
    assert "slot1@sailplane.example" in table
    ads = {ad["SlotType"]: ad for ad in stock.slots()}
    assert (ads["Partitionable"]["State"], ads["Partitionable"]["Activity"]) == ("Unclaimed", "Idle")
    assert (ads["Dynamic"]["State"], ads["Dynamic"]["Activity"]) == ("Claimed", "Busy")
    assert ads["Dynamic"]["RemoteUser"] == stock.ad(job)["User"]
    assert ads["Dynamic"]["JobId"] == job.id
    direct = stock.pool.tool("condor_status", "-direct", "slot1@sailplane.example", "-af", "Name", "State")
    assert sorted(direct.splitlines()) == sorted(f"{ad['Name']} {ad['State']}" for ad in ads.values())
    assert not any("ClaimId" in ad or "Capability" in ad for ad in ads.values())
    stock.act("rm", job)
    stock.until_empty()


def test_a_startd_that_ends_gives_the_job_back(stock: StockJobs) -> None:
    job = stock.one("bob", PATIENT)
    stock.wait(job, EXECUTING)
    released = stock.pool.log("SchedLog").count("Got RELEASE_CLAIM")
    startd = stock.site.startd
    assert startd is not None
    assert startd.stop(signal.SIGTERM, deadline_s=40) == 0
    stock.site.startd = None
    stock.until(lambda: True if stock.status(job) == IDLE else None, "the job to be idle again")
    assert "the pilot shuts down" in stock.wait(job, EVICTED).text
    # By RELEASE_CLAIM, or already in the answer to the shadow's DEACTIVATE: never by both (T39).
    assert stock.pool.log("SchedLog").count("Got RELEASE_CLAIM") - released in (0, 1)
    stock.until(lambda: True if not stock.slots() else None, "the slots to leave the collector")
    seen = len(stock.events(job))
    restart_startd(stock)
    stock.wait(job, EXECUTING, after=seen)
    stock.act("rm", job)
    stock.until_empty()


def test_a_killed_shadow_makes_the_job_start_again(stock: StockJobs) -> None:
    job = stock.one("bob", "sleep 300")
    stock.wait(job, EXECUTING)
    seen = len(stock.events(job))
    for pid in stock.pool.processes("condor_shadow"):
        os.kill(pid, signal.SIGKILL)
    stock.wait(job, EXECUTING, after=seen)
    stock.until(lambda: True if "no shadow was there" in stock.start_log() else None, "the claim to be released")
    sandboxes = stock.site.layout.execute
    stock.until(lambda: True if len(list(sandboxes.iterdir())) == 1 else None, "the first sandbox to go")
    stock.act("rm", job)
    stock.until_empty()


def test_a_lease_that_runs_out_ends_the_claim_and_not_the_job(stock: StockJobs) -> None:
    job = stock.one("alice", "sleep 300", job_lease_duration="20")
    stock.wait(job, EXECUTING)
    frozen = stock.pool.processes("condor_sch") + stock.pool.processes("condor_sha")
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    try:
        stock.until(lambda: True if "(rule 10)" in stock.start_log() else None, "the lease to be over")
        stock.until(lambda: None if stopped(stock, "alice") else True, "the job's processes to end")
    finally:
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)
    seen = len(stock.events(job))
    stock.wait(job, EVICTED)
    assert stock.status(job) in (IDLE, RUNNING)
    stock.wait(job, EXECUTING, after=seen)
    stock.act("rm", job)
    stock.until_empty()
