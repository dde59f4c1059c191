"""What the owner of a running job sees of it with the stock tools."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.interop.stockjobs import EXECUTING, StockJobs
from tests.interop.stockpool import StockError

pytestmark = [pytest.mark.interop, pytest.mark.timeout(170)]


@pytest.fixture(autouse=True)
def empty_queue(stock: StockJobs) -> Iterator[None]:
    """A test that fails leaves the next one a free execution point."""
    yield
    if stock.pool.tool("condor_q", "-af", "ClusterId").strip():
        stock.pool.tool("condor_rm", "-all")
        stock.until_empty()


def test_condor_tail_shows_stdout_stderr_and_listed_files(stock: StockJobs) -> None:
    alice, bob = stock.site.users["alice"], stock.site.users["bob"]
    job = stock.one(
        "alice",
        "seq 1 500; echo trouble >&2; echo part >result; : >empty; ln -s /etc/passwd out; echo x >other; sleep 300",
        transfer_output_files="result, out, empty",
    )
    stock.wait(job, EXECUTING)
    shown = stock.until(lambda: stock.pool.tool("condor_tail", job.id, user=alice, check=False), "what the job wrote")
    assert shown.endswith("\n499\n500\n")
    assert len(shown) == 1024
    assert stock.pool.tool("condor_tail", "-stderr", job.id, user=alice) == "trouble\n"
    assert stock.pool.tool("condor_tail", "-maxbytes", "4", job.id, user=alice) == "500\n"
    assert "part\n" in stock.pool.tool("condor_tail", "-no-stdout", job.id, "result", user=alice)
    stock.pool.tool("condor_tail", "-no-stdout", job.id, "empty", user=alice)
    for name in ("out", "other", "../../x", "/etc/passwd"):
        with pytest.raises(StockError) as refused:
            stock.pool.tool("condor_tail", "-no-stdout", job.id, name, user=alice)
        assert "root:" not in str(refused.value)
    with pytest.raises(StockError):
        stock.pool.tool("condor_tail", job.id, user=bob)
    stock.act("rm", job)
    stock.until_empty()
