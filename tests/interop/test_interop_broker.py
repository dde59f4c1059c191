"""An execution point that nobody can connect to, in a stock pool: reached through the collector's broker alone."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.interop.conftest import restart_startd
from tests.interop.stockjobs import StockJobs
from tests.userlog import EXECUTING

pytestmark = [pytest.mark.interop, pytest.mark.timeout(170)]
# An address of this machine where nobody listens: who does not ask the broker is refused.
NOWHERE = "127.0.0.99"


def end_startd(stock: StockJobs) -> None:
    assert stock.site.startd is not None
    stock.site.startd.stop(signal.SIGQUIT, deadline_s=30)
    stock.site.startd = None


@pytest.fixture
def hidden(stock: StockJobs) -> Iterator[StockJobs]:
    """The execution point behind a broker, for one test."""
    end_startd(stock)
    broker = f"127.0.0.1:{stock.pool.port}"
    restart_startd(stock, CCB_ADDRESS=broker, TCP_FORWARDING_HOST=NOWHERE, CCB_HEARTBEAT_INTERVAL=5)
    yield stock
    end_startd(stock)
    restart_startd(stock)


def address(stock: StockJobs) -> str:
    found = stock.pool.tool("condor_status", "-af", "MyAddress").split()
    return found[0] if found else ""


def test_jobs_run_and_owners_reach_them_through_the_broker(hidden: StockJobs) -> None:
    hidden.until(lambda: "CCBID=" in address(hidden) or None, "the broker's id in the address")
    assert f"<{NOWHERE}:" in address(hidden)
    done = hidden.one("alice", "echo through the broker")
    hidden.done(done)
    assert done.output.read_text() == "through the broker\n"
    job = hidden.one("alice", "echo written; sleep 300")
    hidden.wait(job, EXECUTING)
    alice = hidden.user("alice")
    shown = hidden.until(lambda: hidden.pool.tool("condor_tail", job.id, user=alice, check=False), "what it wrote")
    assert shown == "written\n"
    direct = hidden.pool.tool("condor_status", "-direct", "slot1@sailplane.example", "-af", "Name")
    assert "slot1@sailplane.example" in direct
    hidden.act("rm", job)
    hidden.until_empty()


def test_a_collector_that_is_started_anew_is_registered_at_again(hidden: StockJobs) -> None:
    before = hidden.start_log().count("reached through the broker")
    hidden.pool.tool("condor_restart", "-fast", "-collector")
    hidden.until(
        lambda: hidden.start_log().count("reached through the broker") > before or None, "another registration"
    )
    hidden.until(lambda: "CCBID=" in address(hidden) or None, "the address in the new collector")
    job = hidden.one("bob", "echo again")
    hidden.done(job)
    assert job.output.read_text() == "again\n"
