"""The node's policy as a stock pool sees it: jobs held with its words, evicted and run again, suspended."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.interop.conftest import restart_startd
from tests.interop.stockjobs import RUNNING, StockJobs
from tests.userlog import EVICTED, EXECUTING, HELD, SUSPENDED, UNSUSPENDED

pytestmark = [pytest.mark.interop, pytest.mark.timeout(300)]

# A job says itself what the policy is to do with it.
POLICY = {
    "POLLING_INTERVAL": 0.5,
    "PREEMPT": 'TotalJobRunTime >= 1 && (TARGET.Wish =?= "hold" || TARGET.Wish =?= "preempt" && NumShadowStarts < 2)',
    "WANT_HOLD": 'TARGET.Wish =?= "hold"',
    "WANT_HOLD_REASON": 'strcat("not for jobs of ", TARGET.Owner)',
    "WANT_HOLD_SUBCODE": 42,
    "WANT_SUSPEND": 'TARGET.Wish =?= "suspend"',
    "SUSPEND": "TotalJobRunTime >= 1 && TotalJobSuspendTime == 0",
    "CONTINUE": "time() - EnteredCurrentActivity >= 6",
}
ONE_SLOT = {
    "POLLING_INTERVAL": 0.5,
    "NUM_SLOTS_TYPE_1": 1,
    "SLOT_TYPE_1": "cpus=1, memory=1024, disk=50%",
    "RANK": "TARGET.Importance",
}


@contextmanager
def another_startd(stock: StockJobs, **knobs: Any) -> Iterator[None]:
    """In place of the one that all tests share."""
    _stop(stock)
    restart_startd(stock, **knobs)
    try:
        yield
    finally:
        stock.pool.tool("condor_rm", "-all", check=False)
        _stop(stock)
        restart_startd(stock)


def _stop(stock: StockJobs) -> None:
    if stock.site.startd is not None:
        stock.site.startd.stop(signal.SIGQUIT, deadline_s=60)
        stock.site.startd = None


@pytest.fixture(scope="module")
def choosy(stock: StockJobs) -> Iterator[StockJobs]:
    with another_startd(stock, **POLICY):
        yield stock


def wish(name: str) -> dict[str, Any]:
    return {"+Wish": f'"{name}"'}


def test_want_hold_is_seen_by_condor_q(choosy: StockJobs) -> None:
    job = choosy.one("alice", "sleep 600", **wish("hold"))
    choosy.wait(job, HELD)
    ad = choosy.ad(job)
    assert (ad["HoldReasonCode"], ad["HoldReasonSubCode"]) == (21, 42)
    shown = choosy.pool.tool("condor_q", "-hold", "-af", "HoldReason", user=choosy.user("alice"))
    assert f"not for jobs of {ad['Owner']}" in shown
    choosy.act("rm", job)


def test_preempt_evicts_and_the_job_runs_again(choosy: StockJobs) -> None:
    job = choosy.one("alice", "sleep 4; echo over", **wish("preempt"))
    evicted = choosy.wait(job, EVICTED)
    assert choosy.done(job) == "over\n"
    assert choosy.ad(job)["NumShadowStarts"] == 2
    assert "PREEMPT is true" in choosy.ad(job).get("VacateReason", "") + evicted.text
    assert [event.number for event in choosy.events(job)].count(EXECUTING) == 2


def test_a_job_is_suspended_by_policy_and_goes_on(choosy: StockJobs) -> None:
    job = choosy.one("bob", "sleep 4; echo over", **wish("suspend"))
    choosy.wait(job, SUSPENDED)
    assert any(slot["Activity"] == "Suspended" for slot in choosy.slots()) or choosy.wait(job, UNSUSPENDED)
    assert choosy.done(job) == "over\n"
    assert [e.number for e in choosy.events(job)].count(SUSPENDED) == 1


@pytest.mark.parametrize("partitionable", [False, True], ids=["static", "dynamic"])
def test_a_job_of_higher_rank_has_the_slot_and_the_other_runs_again(stock: StockJobs, partitionable: bool) -> None:
    with another_startd(stock, **ONE_SLOT, SLOT_TYPE_1_PARTITIONABLE=partitionable):
        before = len(stock.start_log())
        go = stock.user("alice").home / "go-on"
        go.unlink(missing_ok=True)
        low = stock.one("alice", f"while [ ! -e {go} ]; do sleep 0.2; done; echo low", **{"+Importance": "1"})
        stock.wait(low, EXECUTING)
        high = stock.one("bob", "echo high", **{"+Importance": "10"})
        assert stock.done(high) == "high\n"
        stock.wait(low, EVICTED)
        stock.wait(low, EXECUTING, after=[e.number for e in stock.events(low)].index(EVICTED))
        assert stock.status(low) == RUNNING
        equal = stock.one("bob", "echo equal", **{"+Importance": "1"})
        Path(go).touch()
        assert stock.done(low) == "low\n"
        assert stock.done(equal) == "equal\n"
        log = stock.start_log()[before:]
        assert log.count("waits: a job of higher rank takes the slot") == 1
        assert "waits: a user of better priority" not in log
        assert "has waited for slot1" in log


def test_a_negotiator_that_tells_the_startd_has_it_matched(stock: StockJobs) -> None:
    told = stock.pool.here / "config.d" / "50-inform"
    told.write_text("NEGOTIATOR_INFORM_STARTD = True\n")
    stock.pool.tool("condor_reconfig", "-daemon", "negotiator")
    try:
        job = stock.one("alice", "echo matched")
        assert stock.done(job) == "matched\n"
        # Which of the two it is depends on who is faster, negotiator or schedd.
        words = ("is matched (rule o2)", "tells of a match that is a claim already")
        stock.until(lambda: any(said in stock.start_log() for said in words) or None, "word of a match")
    finally:
        told.unlink()
        stock.pool.tool("condor_reconfig", "-daemon", "negotiator")
