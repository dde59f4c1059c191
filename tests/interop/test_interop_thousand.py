"""A thousand short jobs: claims are used again, no job is lost or run twice, and nothing is left."""

from __future__ import annotations

import os
import re
import time
from collections import Counter

import pytest

from tests.interop.stockjobs import StockJobs
from tests.userlog import TERMINATED

# Fewer on a machine that has something else to do.
JOBS = int(os.environ.get("SAILPLANE_INTEROP_JOBS", "1000"))
WITHIN_S = 3600.0
# CLAIM_WORKLIFE's default.
WORKLIFE_S = 1200

pytestmark = [pytest.mark.interop, pytest.mark.timeout(WITHIN_S + 60)]

_ENDED = re.compile(rf"^{TERMINATED:03} \(0*(\d+)\.0*(\d+)\.", re.MULTILINE)
_EXITED_0 = re.compile(r"Normal termination \(return value 0\)")


def test_a_thousand_short_jobs(stock: StockJobs) -> None:
    began_s, before = time.monotonic(), stock.start_log().count(": slot slot1_")
    jobs = stock.submit("alice", "echo $1", count=JOBS, arguments="$(Process)")
    log = jobs[0].home / f"{jobs[0].name}.log"
    stock.until(lambda: len(_ENDED.findall(log.read_text())) >= JOBS or None, "the last job's end", deadline_s=WITHIN_S)
    seconds = time.monotonic() - began_s
    claims = stock.start_log().count(": slot slot1_") - before
    print(f"{JOBS} jobs in {seconds:.0f} s over {claims} claims")

    text = log.read_text()
    assert Counter(map(".".join, _ENDED.findall(text))) == Counter(job.id for job in jobs)
    assert len(_EXITED_0.findall(text)) == JOBS
    assert [job.output.read_text().strip() for job in jobs] == [str(number) for number in range(JOBS)]
    # A claim serves one job after the other: as many as there are slots, and new ones when CLAIM_WORKLIFE is over.
    assert claims <= 4 * (1 + seconds // WORKLIFE_S)
    stock.until_empty()
