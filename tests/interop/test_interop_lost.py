"""What is lost and comes back: shadows, the schedd, the collector, the negotiator, while a job runs here."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.conftest import restart_startd
from tests.interop.stockjobs import COMPLETED, RUNNING, Job, StockJobs
from tests.userlog import EVICTED, EXECUTING, RECONNECTED, TERMINATED

pytestmark = [pytest.mark.interop, pytest.mark.timeout(170)]


@pytest.fixture(autouse=True)
def empty_queue(stock: StockJobs) -> Iterator[None]:
    """A test that fails leaves the next one a free execution point."""
    yield
    if stock.pool.tool("condor_q", "-af", "ClusterId").strip():
        stock.pool.tool("condor_rm", "-all")
        stock.until_empty()


def until_told(stock: StockJobs, role: str, name: str, **lines: str) -> Job:
    """A job that runs until ``name`` is in its owner's home, prints how often it was started, and leaves a file."""
    go = stock.user(role).home / name
    counter = go.with_suffix(".started")
    script = (
        f"echo x >>{counter}; while [ ! -e {go} ]; do sleep 0.2; done; wc -l <{counter}; echo made >made;"
        f" rm -f {counter} {go}"
    )
    job = stock.one(role, script, transfer_output_files="made", **lines)
    stock.wait(job, EXECUTING)
    return job


def tell(stock: StockJobs, role: str, name: str) -> None:
    (stock.user(role).home / name).touch()


def kill(stock: StockJobs, name: str, number: int = signal.SIGKILL) -> None:
    for pid in stock.pool.processes(name):
        os.kill(pid, number)


def lose_schedd_and_shadows(stock: StockJobs) -> None:
    """Both at one stroke; the master starts another schedd."""
    kill(stock, "condor_master", signal.SIGSTOP)  # so that no new schedd finds the old shadow
    kill(stock, "condor_sch")
    kill(stock, "condor_sha")
    kill(stock, "condor_master", signal.SIGCONT)


def ours(stock: StockJobs, what: str) -> list[int]:
    """Pids of the startd, of its procd, or of its starters (which are forked by the spawner, and look like it)."""
    assert stock.site.startd is not None
    startd = stock.site.startd.pid
    children = {pid: command(pid) for pid in descendants(startd)}
    if what == "startd":
        return [startd]
    if what == "procd":
        return [pid for pid, said in children.items() if "--lifeline-fd" in said]
    spawners = [pid for pid, said in children.items() if "--spawner-fd" in said and parent(pid) == startd]
    return [pid for pid in children if parent(pid) in spawners and name(pid) != "spare"]


def name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def descendants(pid: int) -> list[int]:
    found = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [*found, *(below for child in found for below in descendants(child))]


def test_a_job_outlives_its_schedd_and_shadow(stock: StockJobs) -> None:
    job = until_told(stock, "alice", "outlive")
    lose_schedd_and_shadows(stock)
    stock.wait(job, RECONNECTED)
    tell(stock, "alice", "outlive")
    assert stock.done(job) == "1\n", "it was started once"
    assert (job.home / "made").read_text() == "made\n"


def test_output_of_a_job_that_ended_alone_is_kept_for_the_shadow_that_comes_back(stock: StockJobs) -> None:
    job = until_told(stock, "bob", "alone")
    kill(stock, "condor_master", signal.SIGSTOP)
    kill(stock, "condor_sch")
    kill(stock, "condor_sha")
    tell(stock, "bob", "alone")
    try:
        stock.until(lambda: True if "stopping -> staging out" in stock.starter_log()[-2000:] else None, "its end")
    finally:
        kill(stock, "condor_master", signal.SIGCONT)
    assert stock.done(job) == "1\n"
    assert (job.home / "made").read_text() == "made\n"
    calls = stock.switch_calls(job)
    assert len(calls) == 3, "none of the switch's calls was made twice"


def test_a_job_runs_on_without_collector_and_negotiator(stock: StockJobs) -> None:
    job = until_told(stock, "alice", "headless")
    kill(stock, "condor_coll")
    kill(stock, "condor_nego")
    tell(stock, "alice", "headless")
    assert stock.done(job) == "1\n"
    after = stock.one("bob", "echo again")
    assert stock.done(after) == "again\n", "the execution point is back in the collector"
    stock.until_empty()


@pytest.mark.parametrize("what", ["starter", "procd", "startd"])
def test_a_killed_part_of_ours_loses_no_job_and_leaves_nothing(stock: StockJobs, what: str) -> None:
    job = until_told(stock, "bob", f"killed-{what}")
    for pid in ours(stock, what):
        os.kill(pid, signal.SIGKILL)
    if what == "startd":
        assert stock.site.startd is not None
        assert stock.site.startd.wait(20) == -signal.SIGKILL
        stock.site.startd = None
        restart_startd(stock)
    tell(stock, "bob", f"killed-{what}")
    times = int(stock.done(job))
    assert times == (1 if what == "procd" else 2)
    assert stock.status(job) == COMPLETED
    stock.until_empty()


def cut_the_syscall_socket(stock: StockJobs) -> None:
    """Shut the starter's connection down from outside (pidfd_getfd), while shadow and starter live."""
    (starter,) = ours(stock, "starter")
    libc = ctypes.CDLL(None, use_errno=True)
    pidfd = os.pidfd_open(starter)
    try:
        for name in os.listdir(f"/proc/{starter}/fd"):
            taken = libc.syscall(PIDFD_GETFD, pidfd, int(name), 0)
            if taken < 0:
                continue
            with contextlib.suppress(OSError), socket.socket(fileno=taken) as sock:
                if sock.family == socket.AF_INET and sock.getpeername():  # a listening one has no peer
                    sock.shutdown(socket.SHUT_RDWR)
    finally:
        os.close(pidfd)


PIDFD_GETFD = 438


def test_a_cut_socket_costs_a_run_at_most_and_no_endless_chain(stock: StockJobs) -> None:
    """A stock shadow takes the job up again, and may have forgotten the key of its transfers (T21)."""
    job = until_told(stock, "alice", "cut")
    cut_the_syscall_socket(stock)
    stock.wait(job, RECONNECTED)
    assert stock.status(job) == RUNNING, "it runs on"
    tell(stock, "alice", "cut")
    stock.until(
        lambda: next((e for e in stock.events(job) if e.number in (TERMINATED, EVICTED)), None),
        "output, or another run",
    )
    assert sum(event.number == RECONNECTED for event in stock.events(job)) == 1
    if stock.status(job) != COMPLETED:
        seen = len(stock.events(job))
        stock.wait(job, EXECUTING, after=max(0, seen - 1))
        stock.act("rm", job)
    stock.until_empty()
