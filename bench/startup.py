"""From a startd's start to its first ad at the collector, and to its first job's first instruction.

Validation of the identity switch is included: two tests through sudo and glexec, and a probe. The job waits at the
pool before the startd is started.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

from bench.figures import Figure
from bench.pool import ask, until
from demo.site import Site
from pool import messages

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


def why_not() -> str:
    """Why this bench cannot run here; empty if it can."""
    if os.geteuid() != 0:
        return "needs root: it makes accounts and installs a glexec behind sudo"
    return "" if shutil.which("sudo") else "not installed: sudo"


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
    start = time.time()
    startd = site.start_startd(wait=False)
    ad = until(lambda: _advertised(site), "an ad")
    job = until(lambda: _made_at(began), "the job")
    site.sailplane(alice, "wait", str(cluster))
    site.startd = None
    startd.stop(signal.SIGTERM, deadline_s=STOP_S)
    until(lambda: None if _advertised(site) else True, "the ads to go")
    return ad - start, job - start


def _advertised(site: Site) -> float | None:
    page = ask(site, lambda channel: channel.call(messages.ListSlots(0)))
    return time.time() if page.rows else None


def _made_at(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return None
