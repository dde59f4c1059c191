"""A stock pool with a Sailplane execution point, once for all tests; left out, with the reason, where there is none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.site import Site
from tests.interop.stockjobs import StockJobs
from tests.interop.stockpool import VARIABLE, open_pool, why_not
from tests.joblist import COMMANDS_ALLOWED

# Leases and pauses short enough that a test sees their end.
STARTD_KNOBS: dict[str, Any] = {
    "STARTD_NAME": "sailplane.example",
    "NUM_CPUS": 4,
    "MEMORY": 4096,
    "DISK": 4_000_000,
    "UPDATE_INTERVAL": 5,
    "ALIVE_INTERVAL": 5,
    "GLEXEC_RETRIES": 1,
    "GLEXEC_RETRY_DELAY": 0.2,
    "SAILPLANE_KILL_JITTER": 0.1,
    "STARTER_INITIAL_UPDATE_INTERVAL": 0.5,
    "STARTER_UPDATE_INTERVAL": 2,
    "SEC_CREDENTIAL_REFRESH": 1,
    "KILLING_TIMEOUT": 10,
    "STARTER_ALLOW_JOB_PRE_AND_POST_CMD": COMMANDS_ALLOWED,
    "MACHINEMAXVACATETIME": 3,
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what needs a stock HTCondor where there is none, and say so."""
    reason = why_not()
    for item in items:
        if reason and item.get_closest_marker("interop"):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def stock() -> Iterator[StockJobs]:
    """Both sides up; their end must leave nothing behind."""
    with Site.open("test", linger=True) as site:
        with open_pool(site, Path(os.environ[VARIABLE])) as pool:
            site.start_startd(**STARTD_KNOBS)
            yield StockJobs(site, pool)
        assert pool.processes() == []
        site.stop()
        assert site.left == []


def restart_startd(stock: StockJobs, **knobs: Any) -> None:
    """The next startd, with the same configuration, and ``knobs`` besides; the one before must have ended."""
    (stock.site.layout.pilot / "tokens.d" / "startd.token").unlink(missing_ok=True)
    stock.site.start_startd(**STARTD_KNOBS | knobs)
