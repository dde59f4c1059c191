"""Files through a stock shadow: URLs by plugins at the job's account, what the owner is told, statistics, streams."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fileserver import FileServer, serving
from tests.interop.stockjobs import StockJobs
from tests.userlog import HELD

pytestmark = [pytest.mark.interop, pytest.mark.timeout(170)]


@pytest.fixture
def server() -> Iterator[FileServer]:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    with serving() as made:
        yield made


def test_urls_go_both_ways_and_are_counted(stock: StockJobs, server: FileServer) -> None:
    data = os.urandom(200_000)
    server.kept["/data.bin"] = data
    job = stock.one(
        "alice",
        "sha256sum <data.bin; stat -c %u data.bin; id -u; cp data.bin result.bin; echo x >plain",
        transfer_input_files=f"{server.url}/data.bin",
        transfer_output_files="result.bin, plain",
        transfer_output_remaps=f'"result.bin={server.url}/put/result"',
    )
    digest, _, owner, uid = stock.done(job).split()
    assert (digest, owner) == (hashlib.sha256(data).hexdigest(), uid)
    assert server.kept["/put/result"] == data
    assert (job.home / "plain").read_text() == "x\n"
    assert not (job.home / "result.bin").exists()
    assert len(stock.switch_calls(job)) == 3
    ad = stock.ad(job)
    inputs: dict[str, Any] = ad["TransferInputStats"]
    outputs: dict[str, Any] = ad["TransferOutputStats"]
    assert (inputs["HTTPFilesCountTotal"], inputs["HTTPSizeBytesTotal"]) == (1, len(data))
    assert (outputs["HTTPFilesCountLastRun"], outputs["HTTPSizeBytesLastRun"]) == (1, len(data))
    assert inputs["CedarFilesCountTotal"] >= 1
    assert outputs["CedarSizeBytesTotal"] > 0


def test_a_url_that_is_not_there_holds_the_job_as_an_input_failure(stock: StockJobs, server: FileServer) -> None:
    job = stock.one("bob", "exit 0", transfer_input_files=f"{server.url}/missing?secret=s3cret")
    event = stock.wait(job, HELD)
    assert "404" in event.text
    assert "s3cret" not in event.text
    ad = stock.ad(job)
    assert (ad["HoldReasonCode"], ad["HoldReasonSubCode"]) == (13, 256)
    stock.act("rm", job)


def test_a_destination_that_refuses_holds_the_job_as_an_output_failure(stock: StockJobs) -> None:
    job = stock.one(
        "bob",
        "echo x >made",
        transfer_output_files="made",
        transfer_output_remaps='"made=http://127.0.0.1:1/made"',
    )
    event = stock.wait(job, HELD)
    assert "does not answer" in event.text
    assert stock.ad(job)["HoldReasonCode"] == 12
    stock.act("rm", job)


def test_what_is_left_out_stands_in_the_users_log(stock: StockJobs) -> None:
    job = stock.one("alice", "mkdir d; mkfifo d/p; ln -s / d/root; echo x >d/x", transfer_output_files="d")
    stock.done(job)
    told = [event.text for event in stock.events(job) if "left out of the output" in event.text]
    assert len(told) == 1
    assert "d/p (a named pipe)" in told[0]
    assert "d/root (a link to a directory)" in told[0]
    assert sorted(os.listdir(job.home / "d")) == ["x"]


def test_streamed_output_is_there_while_the_job_runs(stock: StockJobs) -> None:
    job = stock.one("alice", "echo early; seq 1 50000; sleep 300", stream_output="true")

    def there() -> bool | None:
        return (job.output.exists() and job.output.read_bytes().endswith(b"50000\n")) or None

    stock.until(there, "the job's output while it runs")
    assert job.output.read_text().splitlines() == ["early", *map(str, range(1, 50_001))]
    stock.act("rm", job)


def test_a_stream_that_cannot_be_opened_holds_the_job(stock: StockJobs) -> None:
    job = stock.one("bob", "echo x", stream_output="true", output="/nonexistent/out")
    event = stock.wait(job, HELD)
    assert "stream_output" in event.text
    assert stock.ad(job)["HoldReasonCode"] == 9
    stock.act("rm", job)
