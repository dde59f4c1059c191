"""Every process of a job's life, killed at every numbered transition of the starter's (docs/job-life.md).

The starter stands still right behind the transition, one process is killed, and everything goes on. Afterwards: no
process, no sandbox, no credential of the job's is left; each run is in the history, and at most the last is complete;
what became of the job is what would have become of it anyway; its output is there; the slots can be used.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pool import messages as m
from tests.e2e.e2e_jobs import Jobs
from tests.e2e.kill_ways import WAYS, Way
from tests.e2e.walks import Walk, walked_site

pytestmark = [pytest.mark.needs_root, pytest.mark.slow, pytest.mark.timeout(300)]

CASES = [pytest.param(way, victim, id=f"{way.id}-{victim}") for way in WAYS for victim in way.there]


@pytest.fixture(scope="module")
def place() -> Iterator[tuple[Jobs, Path]]:
    """One site for all cases: each starts again what it killed."""
    with walked_site() as made:
        yield made


@pytest.fixture
def walk(place: tuple[Jobs, Path]) -> Iterator[Walk]:
    jobs, hooks = place
    made = Walk(jobs, hooks, log_began={name: len(jobs.log(name)) for name in ("StartLog", "StarterLog")})
    yield made
    made.over()


@pytest.mark.parametrize(("way", "victim"), CASES)
def test_killed_at(walk: Walk, way: Way, victim: str) -> None:
    way.lead(walk)
    kill(walk, victim)
    walk.go()
    walk.restart()
    if victim == "spawner":
        walk.jobs.until("another spawner", lambda: "the spawner is ready" in walk.log("StarterLog"))
    walk.open_gate()
    way.finish(walk)
    check_end(walk, way)


def test_spares_that_are_killed_as_fast_as_they_come(walk: Walk) -> None:
    """While several jobs start at once, and one after another."""
    jobs, killed = walk.jobs, set[int]()
    ids = jobs.submit_many("alice", ["echo done"] * 8)

    def all_done() -> bool:
        for pid in jobs.spares():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
        return all(row["state"] == "completed" for job, row in jobs.rows().items() if job in ids)

    jobs.until("the jobs to be done", all_done)
    assert len(killed) > 1
    for job in ids:
        outcomes = [run["outcome"] for run in jobs.runs(job)]
        assert (outcomes.count("completed"), outcomes[-1]) == (1, "completed")
    jobs.until_nothing_is_left_of("alice")
    jobs.until("slots for the next job", lambda: slots_are_usable(walk))


def kill(walk: Walk, victim: str) -> None:
    """It is there, and then it is not. A daemon whose end somebody else would have to notice is waited for."""
    pids = walk.jobs.until(f"the {victim}", lambda: walk.victims(victim))
    match victim:
        case "startd":
            walk.kill_startd()
        case "pool":
            walk.kill_pool()
        case _:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def check_end(walk: Walk, way: Way) -> None:
    jobs = walk.jobs
    row = jobs.wait_for(walk.job, way.ends)
    outcomes = [run["outcome"] for run in jobs.runs(walk.job)]
    assert None not in outcomes
    assert "completed" not in outcomes[:-1]
    if way.ends == "completed":
        assert outcomes[-1] == "completed"
        if row["exit_code"] == 0:
            assert walk.fetch()["out"].endswith(b"done\n")
    if way.rule == 36:
        assert walk.times_at(33) == 1, "a checkpoint that was sent is what the job goes on from"
    jobs.until_nothing_is_left_of("alice")
    jobs.until(
        "no more than a spawner and its spare", lambda: len(jobs.pids_of("--spawner-fd")) <= 1 + len(jobs.spares())
    )
    jobs.until("slots for the next job", lambda: slots_are_usable(walk))


def slots_are_usable(walk: Walk) -> bool:
    """Of the startd that is there now: all that it offers, and what is claimed for a next job, is idle and sound."""
    since = (walk.site.layout.pilot / "startd.conf").stat().st_mtime  # written at its start
    page: m.Slots = walk.ask(lambda channel: channel.call(m.ListSlots(0)))
    rows = [row for row in page.rows if row.heard_at > since]
    return any(row.kind == "Partitionable" for row in rows) and all(
        (row.activity, row.why) == ("Idle", "") for row in rows
    )
