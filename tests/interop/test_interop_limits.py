"""Limits and checkpoints of jobs that a stock schedd and shadow look after."""

from __future__ import annotations

import pytest

from tests.interop.stockjobs import Job, StockJobs
from tests.userlog import EVICTED, HELD

pytestmark = [pytest.mark.interop, pytest.mark.timeout(170)]

COUNTING = """
n=$(cat state 2>/dev/null || echo 0); n=$((n + 1)); echo $n > state
echo "leg $n $(test -e here && echo same || echo new)"
{more}
touch here
[ $n -ge 3 ] || exit 85
echo done
"""
WISHES = {"checkpoint_exit_code": "85", "transfer_checkpoint_files": "state", "transfer_output_files": "state"}


def held(stock: StockJobs, job: Job) -> dict[str, object]:
    stock.wait(job, HELD)
    return stock.ad(job)


def test_memory_is_held_with_what_was_measured(stock: StockJobs) -> None:
    job = stock.one("alice", 'exec /usr/bin/python3 -c "b = bytearray(300 * 2**20); import time; time.sleep(600)"')
    ad = held(stock, job)
    assert (ad["HoldReasonCode"], ad["HoldReasonSubCode"]) == (34, 102), ad["HoldReason"]
    assert "request_memory" in str(ad["HoldReason"])


def test_wall_clock_is_held_whoever_is_first(stock: StockJobs) -> None:
    job = stock.one("bob", "sleep 600", allowed_execute_duration="2")
    ad = held(stock, job)
    assert ad["HoldReasonCode"] == 47, ad["HoldReason"]


def test_a_checkpointed_job_goes_on_in_its_sandbox(stock: StockJobs) -> None:
    job = stock.one("alice", COUNTING.format(more=""), **WISHES)
    assert stock.done(job).splitlines() == ["leg 1 new", "leg 2 same", "leg 3 same", "done"]
    assert stock.ad(job)["CheckpointNumber"] == 1
    assert len(stock.switch_calls(job)) == 3 + 2 * 2


def test_a_vacated_job_starts_from_its_checkpoint(stock: StockJobs) -> None:
    job = stock.one("bob", COUNTING.format(more="[ -e here ] && [ $n = 2 ] && sleep 600"), **WISHES)
    stock.until(lambda: stock.ad(job).get("CheckpointNumber") == 0 or None, "the first checkpoint")
    stock.act("vacate_job", job)
    stock.wait(job, EVICTED)
    assert stock.done(job).splitlines() == ["leg 1 new", "leg 2 new", "leg 3 same", "done"]
