"""How many short jobs a second one execution point of eight slots runs, with the embedded pool on the same machine.

A stock HTCondor 25.8 without a switch was seen at 7.5 jobs a second on a machine of the same size; it is not measured
here, and no ratio is given.
"""

from __future__ import annotations

import signal
import time
from typing import Any

from bench import pilotside
from bench.figures import Figure
from demo.site import Site

SLOTS, JOBS, ROUNDS = 8, 96, 3
STOP_S = 30.0
LOOK_S = 0.005
SUBMIT = """
universe = vanilla
executable = /bin/true
transfer_executable = false
x509userproxy = {proxy}
request_memory = 64
request_disk = 1024
queue {jobs}
"""


def why_not() -> str:
    """Why this bench cannot run here; empty if it can."""
    return pilotside.why_not()


def run() -> list[Figure]:
    """The figures of this bench; takes about a minute."""
    with Site.open("test", linger=True) as site:
        site.start_pool()
        none = _rates(site, SAILPLANE_SWITCH="none")
        glexec = _rates(site)
    note = f"{JOBS} jobs of one user, {SLOTS} slots; pool, startd, starters and jobs share the machine"
    return [
        Figure("throughput_none", none, "jobs/s", ">= 25", note=note),
        Figure("throughput_glexec", glexec, "jobs/s", ">= 10", note=note),
    ]


def _rates(site: Site, **knobs: Any) -> list[float]:
    """Jobs a second of each round, after a first one that is not counted."""
    startd = site.start_startd(NUM_CPUS=SLOTS, MEMORY=SLOTS * 128, **knobs)
    rates = [_round(site) for _ in range(ROUNDS + 1)][1:]
    site.startd = None
    startd.stop(signal.SIGTERM, deadline_s=STOP_S)
    return rates


def _round(site: Site) -> float:
    alice = site.users["alice"]
    (alice.home / "job.sub").unlink(missing_ok=True)
    site.put(alice, "job.sub", SUBMIT.format(proxy=alice.proxy, jobs=JOBS).encode())
    before = len(_ended(site))
    site.ask(alice, "submit", "job.sub")
    start_s = time.monotonic()
    site.wait_until(
        lambda: len(_ended(site)) >= before + JOBS or None, what=f"{JOBS} jobs", deadline_s=300.0, look_s=LOOK_S
    )
    return JOBS / (time.monotonic() - start_s)


def _ended(site: Site) -> list[str]:
    """Ends of activations in the startd's log: the cheapest witness, which asks nobody anything."""
    log = site.layout.pilot / "log" / "StartLog"
    return [line for line in log.read_text().splitlines() if ": job " in line and " exited: " in line]
