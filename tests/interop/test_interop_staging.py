"""Files through a stock shadow: URLs by plugins at the job's account, what the owner is told, statistics, streams."""

from __future__ import annotations

import hashlib
import http.server
import os
import shutil
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.interop.stockjobs import HELD, StockJobs

pytestmark = [pytest.mark.interop, pytest.mark.timeout(170)]


class Files(http.server.BaseHTTPRequestHandler):
    """Serves and takes files in memory."""

    kept: dict[str, bytes] = {}  # noqa: RUF012 - one server a test

    def do_GET(self) -> None:
        data = self.kept.get(self.path)
        self.send_response(200 if data is not None else 404)
        self.send_header("Content-Length", str(len(data or b"")))
        self.end_headers()
        self.wfile.write(data or b"")

    def do_PUT(self) -> None:
        self.kept[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(201)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    Files.kept = {}
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Files)
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def test_urls_go_both_ways_and_are_counted(stock: StockJobs, server: str) -> None:
    data = os.urandom(200_000)
    Files.kept["/data.bin"] = data
    job = stock.one(
        "alice",
        "sha256sum <data.bin; stat -c %u data.bin; id -u; cp data.bin result.bin; echo x >plain",
        transfer_input_files=f"{server}/data.bin",
        transfer_output_files="result.bin, plain",
        transfer_output_remaps=f'"result.bin={server}/put/result"',
    )
    digest, _, owner, uid = stock.done(job).split()
    assert (digest, owner) == (hashlib.sha256(data).hexdigest(), uid)
    assert Files.kept["/put/result"] == data
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


def test_a_url_that_is_not_there_holds_the_job_as_an_input_failure(stock: StockJobs, server: str) -> None:
    job = stock.one("bob", "exit 0", transfer_input_files=f"{server}/missing?secret=s3cret")
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
