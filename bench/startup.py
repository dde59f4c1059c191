"""From a startd's start to its first ad at the collector, and to its first job's first instruction.

Validation of the identity switch is included: two tests through sudo and glexec, and a probe. The job waits at the
pool before the startd is started.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import trio

from bench import pilotside
from bench.figures import Figure
from demo.site import Site
from pilot import rpc
from pool import messages

T = TypeVar("T")

ROUNDS = 5
SUBMIT = """
universe = vanilla
executable = job.sh
x509userproxy = {proxy}
request_memory = 128
request_disk = 4096
queue
"""
STOP_S = 30.0
LOOK_S, PATIENCE_S = 0.005, 120.0


def why_not() -> str:
    """Why this bench cannot run here; empty if it can."""
    return pilotside.why_not()


def run() -> list[Figure]:
    """The figures of this bench; takes about half a minute."""
    ads, jobs = [], []
    with Site.open("test", linger=True) as site:
        site.start_pool()
        for number in range(ROUNDS):
            ad_s, job_s = _round(site, number)
            ads.append(ad_s)
            jobs.append(job_s)
    return [
        Figure("startup_first_ad", ads, "s", "<= 1", note="validation of the switch included"),
        Figure("startup_first_job", jobs, "s", "<= 1.5", note="to the job's first instruction"),
    ]


def _round(site: Site, number: int) -> tuple[float, float]:
    """Seconds to the ad and to the job."""
    alice = site.users["alice"]
    began = alice.home / f"began{number}"
    (alice.home / "job.sh").unlink(missing_ok=True)
    (alice.home / "job.sub").unlink(missing_ok=True)
    site.put(alice, "job.sh", f"#!/bin/sh\n: >{began}\n".encode(), mode=0o755)
    site.put(alice, "job.sub", SUBMIT.format(proxy=alice.proxy).encode())
    cluster = site.ask(alice, "submit", "job.sub")["cluster"]
    start_unix_s = time.time()
    startd = site.start_startd(wait=False)
    ad_unix_s = _until(site, lambda: _advertised(site), "an ad")
    job_unix_s = _until(site, lambda: _made_at(began), "the job")
    site.sailplane(alice, "wait", str(cluster))
    site.startd = None
    startd.stop(signal.SIGTERM, deadline_s=STOP_S)
    _until(site, lambda: None if _advertised(site) else True, "the ads to go")
    return ad_unix_s - start_unix_s, job_unix_s - start_unix_s


def _until(site: Site, condition: Callable[[], T | None], what: str) -> T:
    return site.wait_until(condition, what=what, deadline_s=PATIENCE_S, look_s=LOOK_S)


def _advertised(site: Site) -> float | None:
    """Now, if the pool has slots; asked over its socket, not by a command, whose start alone takes longer."""

    async def slots() -> messages.Slots:
        channel = await rpc.connect(site.layout.pool_socket, messages.POOL)
        try:
            page: messages.Slots = await channel.call(messages.ListSlots(0))
            return page
        finally:
            await channel.aclose()

    return time.time() if trio.run(slots).rows else None


def _made_at(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return None
