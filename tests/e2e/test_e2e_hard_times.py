"""A startd through what a node can do to it: a flood of connections, full disks, no descriptors, a clock that jumps."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import socket
import subprocess
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import attrs
import pytest

from cedar.sinful import Sinful
from demo.daemons import switched
from demo.site import Site
from tests.e2e.conftest import STARTD_KNOBS
from tests.e2e.e2e_jobs import Jobs

PAGE_BYTES = 4096
pytestmark = [pytest.mark.needs_root, pytest.mark.slow, pytest.mark.timeout(600)]

FLOOD = 10_000


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def limit_of_descriptors(pid: int) -> int:
    line = next(
        line for line in Path(f"/proc/{pid}/limits").read_text().splitlines() if line.startswith("Max open files")
    )
    return int(line.split()[3])


def set_limit_of_descriptors(jobs: Jobs, pid: int, limit: int) -> None:
    """The soft one; by the pilot's own account, which may."""
    argv = ["prlimit", "--pid", str(pid), f"--nofile={limit}:"]
    subprocess.run(argv, check=True, **switched(jobs.site.accounts["pilot"]))


@contextlib.contextmanager
def many_descriptors(count: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        pytest.skip(f"this process may open only {hard} descriptors, {count} are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def small_disk(place: Path, megabytes: int) -> Iterator[None]:
    """A file system of its own at a directory that is there, with its owner and mode."""
    found = place.stat()
    options = f"size={megabytes}m,mode={found.st_mode & 0o7777:o},uid={found.st_uid},gid={found.st_gid}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(place: Path) -> Path:
    """Not a byte is free afterwards."""
    stuffing = place / "stuffing"
    with contextlib.suppress(OSError), stuffing.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return stuffing


def startd_pid(jobs: Jobs) -> int:
    assert jobs.site.startd is not None
    return jobs.site.startd.pid


def port_of(jobs: Jobs) -> tuple[str, int]:
    text = jobs.log("StartLog").partition("ready at ")[2].split()[0]
    address = Sinful.parse(text)
    return address.host, address.port


def test_ten_thousand_connections_that_send_nothing_keep_no_job_away(fresh: Jobs) -> None:
    before, held = descriptors(startd_pid(fresh)), []
    with many_descriptors(FLOOD + 1000), contextlib.ExitStack() as sockets:
        for _ in range(FLOOD):
            client = sockets.enter_context(socket.socket())
            client.settimeout(30)
            client.connect(port_of(fresh))
            held.append(client)
        assert fresh.output("alice", "echo through").strip() == "through"
        assert descriptors(startd_pid(fresh)) < limit_of_descriptors(startd_pid(fresh))
    fresh.until("the startd to have let go of them", lambda: descriptors(startd_pid(fresh)) <= before + 20)
    assert fresh.log("StartLog").count("handshake took too long") < 100, "a flood must not fill the log"


def test_a_startd_without_descriptors_lives_and_goes_on_when_there_are_some(fresh: Jobs) -> None:
    pid = startd_pid(fresh)
    running = fresh.submit("alice", "sleep 6; echo well")
    fresh.wait_for(running, "running")
    limit = limit_of_descriptors(pid)
    set_limit_of_descriptors(fresh, pid, descriptors(pid))
    clients = [socket.create_connection(port_of(fresh)) for _ in range(20)]
    fresh.until(
        "the startd to need one", lambda: "Too many open files" in (fresh.log("StartLog") + fresh.site.startd.tails())
    )
    set_limit_of_descriptors(fresh, pid, limit)
    for client in clients:
        client.close()
    fresh.done(running)
    assert fresh.fetch("alice", running)["out"] == b"well\n"
    assert fresh.output("bob", "echo again").strip() == "again"


@pytest.fixture
def pool_alone() -> Iterator[Jobs]:
    """A site whose execution point has not been started yet."""
    with Site.open("test", linger=True) as site:
        site.start_pool()
        yield Jobs(site)
        site.stop()
        assert site.left == []


def test_logs_that_cannot_be_written_stop_no_job(pool_alone: Jobs) -> None:
    logs = pool_alone.site.layout.pilot / "log"
    with small_disk(logs, 1):
        pool_alone.site.start_startd(**STARTD_KNOBS)
        stuffing = fill(logs)
        for log in logs.iterdir():  # what is left of its last page would be enough for one job's lines
            os.truncate(log, -(-log.stat().st_size // PAGE_BYTES) * PAGE_BYTES)
        assert pool_alone.output("alice", "echo done").strip() == "done"
        stuffing.unlink()
        assert pool_alone.output("bob", "echo done").strip() == "done"
        assert "records before this one could not be written" in pool_alone.log("StartLog")
        assert "Traceback" not in (pool_alone.site.layout.logs / "startd.out").read_text()
        pool_alone.site.stop()


def test_a_full_disk_of_the_pilots_holds_no_job_and_loses_none(pool_alone: Jobs) -> None:
    run = pool_alone.site.layout.pilot / "run"
    run.mkdir(mode=0o700, exist_ok=True)
    account = pool_alone.site.accounts["pilot"]
    os.chown(run, account.uid, account.gid)
    with small_disk(run, 1):
        pool_alone.site.start_startd(**STARTD_KNOBS, SAILPLANE_BLACK_HOLE_JOBS=0)
        stuffing = fill(run)
        full_bytes, jobs = stuffing.stat().st_size, []
        for pages in range(6):  # so many steps of a job's beginning find room
            os.truncate(stuffing, full_bytes - 4096 * pages)
            tries = pool_alone.log("StartLog").count("(rule 2)")
            jobs.append(pool_alone.submit("alice", "echo at last"))
            pool_alone.until("a try", lambda: pool_alone.log("StartLog").count("(rule 2)") > tries)  # noqa: B023
        stuffing.unlink()
        for job in jobs:
            pool_alone.done(job)
            assert pool_alone.fetch("alice", job)["out"] == b"at last\n"
        pool_alone.site.stop()
        assert "Traceback" not in pool_alone.log("StarterLog")


# Python's own clock in the pilot's daemons, shifted by what a file says. (Timers go by the monotonic one.)
SHIFTED = """
import time, pathlib
_now, _now_ns, _shift = time.time, time.time_ns, pathlib.Path(__file__).with_name("shift")
time.time = lambda: _now() + int(_shift.read_text())
time.time_ns = lambda: _now_ns() + int(_shift.read_text()) * 10**9
"""


@pytest.mark.parametrize("jump_s", [3600, -200])
def test_a_clock_that_jumps_ends_no_job_and_no_pilot(pool_alone: Jobs, jump_s: int) -> None:
    site = pool_alone.site
    place = site.layout.root / "clock"
    place.mkdir(mode=0o755)
    (place / "shift").write_text("0\n")
    (place / "sitecustomize.py").write_text(SHIFTED)
    plain = site.runtime
    path = ":".join(filter(None, (str(place), plain.environment.get("PYTHONPATH"))))
    site.runtime = attrs.evolve(plain, environment={**plain.environment, "PYTHONPATH": path})
    site.start_startd(**STARTD_KNOBS)
    site.runtime = plain
    job = pool_alone.submit("alice", "sleep 4; echo whole")
    pool_alone.wait_for(job, "running")
    (place / "shift").write_text(f"{jump_s}\n")
    pool_alone.done(job)
    assert len(pool_alone.runs(job)) == 1
    assert pool_alone.fetch("alice", job)["out"] == b"whole\n"
    assert pool_alone.output("bob", "echo after").strip() == "after"
    times = [datetime.fromisoformat(line.split()[0]) for line in pool_alone.log("StartLog").splitlines()]
    steps = [(after - before).total_seconds() for before, after in itertools.pairwise(times)]
    assert max(map(abs, steps)) > abs(jump_s) / 2, "the startd's own clock did not jump: nothing was tried"
