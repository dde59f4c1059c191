"""A short job under a stock schedd: our execution point and a stock one in the same pool, each with one slot.

What a user sees: the time from one job's end to the next one's, of a cluster that runs on one claim, by the user's
log. Ours goes through sudo and glexec with the user's proxy, the stock starter switches the account as root.
"""

from __future__ import annotations

import datetime
import itertools
import os
import re
from pathlib import Path

from bench.figures import Figure
from demo.site import Site
from tests.interop.stockjobs import StockJobs
from tests.interop.stockpool import STOCK_STARTD, VARIABLE, open_pool, why_not
from tests.userlog import TERMINATED

ROUNDS, JOBS_A_ROUND = 3, 6
SIDES = {"ours": "@sailplane", "stock": f"@{STOCK_STARTD}"}
INPUT = b"a short job's only input\n" * 100
_TIME = re.compile(r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d\.\d+)")

__all__ = ["run", "why_not"]


def run() -> list[Figure]:
    """The two sides take turns, so that a machine that slows down slows both; about a minute."""
    with Site.open("test", linger=True) as site:
        with open_pool(site, Path(os.environ[VARIABLE]), stock_startd=True) as pool:
            site.start_startd(STARTD_NAME="sailplane.example", NUM_CPUS=1, MEMORY=1024, DISK=4_000_000)
            jobs = StockJobs(site, pool)
            site.put(jobs.user("alice"), "input.txt", INPUT)
            for side in SIDES:
                _turnarounds(jobs, side)  # warm
            seen: dict[str, list[float]] = {side: [] for side in SIDES}
            for _ in range(ROUNDS):
                for side, found in seen.items():
                    found += _turnarounds(jobs, side)
        site.stop()
    return [Figure("turnaround_stock", seen["ours"], "ms", "<= 1", seen["stock"])]


def _turnarounds(jobs: StockJobs, side: str) -> list[float]:
    """Milliseconds from each job's end to the next one's."""
    where = f'regexp("{SIDES[side]}", TARGET.Name)'
    cluster = jobs.submit(
        "alice", "wc -c <input.txt", count=JOBS_A_ROUND, requirements=where, transfer_input_files="input.txt"
    )
    ends = sorted(_time(jobs.wait(job, TERMINATED).text) for job in cluster)
    return [(after - before).total_seconds() * 1000 for before, after in itertools.pairwise(ends)]


def _time(entry: str) -> datetime.datetime:
    match = _TIME.search(entry)
    assert match is not None, entry
    return datetime.datetime.fromisoformat(f"{match[1]} {match[2]}")
