"""Whole sites for end-to-end tests: accounts, glexec behind sudo, pool and startd as real processes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from demo.site import Site
from tests.e2e.e2e_jobs import Jobs
from tests.joblist import COMMANDS_ALLOWED

# A lease whose end a test sees. Where no end is wanted the pool's own is left: a busy disk keeps a daemon standing
# still for longer than this.
SHORT_LEASE = {"SAILPLANE_POOL_LEASE": 8}
# Pauses short enough that a test sees their end.
STARTD_KNOBS = {
    "NUM_CPUS": 4,
    "MEMORY": 4096,
    "DISK": 4_000_000,
    "ALIVE_INTERVAL": 2,
    "GLEXEC_RETRIES": 1,
    "GLEXEC_RETRY_DELAY": 0.2,
    "SAILPLANE_KILL_JITTER": 0.1,
    "STARTER_INITIAL_UPDATE_INTERVAL": 0.3,
    "STARTER_UPDATE_INTERVAL": 1,
    "KILLING_TIMEOUT": 10,
    "STARTER_ALLOW_JOB_PRE_AND_POST_CMD": COMMANDS_ALLOWED,
    "MACHINEMAXVACATETIME": 3,
    "SAILPLANE_MAX_OUTPUT_BYTES": "200 M",
}


@contextlib.contextmanager
def running_site(*, linger: bool, **pool_knobs: object) -> Iterator[Jobs]:
    """A site with both daemons up; its end must leave nothing behind."""
    with Site.open("test", linger=linger) as site:
        site.start_pool(**pool_knobs)
        site.start_startd(**STARTD_KNOBS)
        yield Jobs(site)
        site.stop()
        assert site.left == []


@pytest.fixture(scope="module", params=[True, False], ids=["linger", "exec"])
def jobs(request: pytest.FixtureRequest) -> Iterator[Jobs]:
    """One site a module and kind of switch."""
    with running_site(linger=request.param) as made:
        yield made


@pytest.fixture(scope="module")
def lingering() -> Iterator[Jobs]:
    """One site a module, with a lingering switch."""
    with running_site(linger=True) as made:
        yield made


@pytest.fixture
def fresh() -> Iterator[Jobs]:
    """A site for one test that breaks it."""
    with running_site(linger=True) as made:
        yield made
