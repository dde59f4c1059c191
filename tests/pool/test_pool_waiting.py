"""Jobs that wait: who may run now, and that nobody else has to wait for a long search."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import evolve

from cedar import classads
from pool.jobad import PoolFacts
from pool.model import Cluster, Job, JobId, JobState
from pool.queue import Queue
from pool.slices import Slices, in_slices
from pool.waitingjobs import WaitingJobs

FACTS = PoolFacts("pool.test", "pool.test", "<127.0.0.1:9618>", "$CondorVersion: 24.0.1 $", 60)
SLOT = classads.parse_old('Name = "slot1@x"\nRequirements = true\nCpus = 2\nMemory = 4096\nDisk = 100000\n')


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Queue]:
    made = Queue(tmp_path / "q")
    yield made
    made.close()


@pytest.fixture
def waiting(queue: Queue) -> WaitingJobs:
    return WaitingJobs(queue, FACTS)


def jobs_of(queue: Queue, *ads: str, proxy_end: float | None = None) -> list[Job]:
    number = queue.reserve_cluster(7, "alice", 100.0)
    proxy = () if proxy_end is None else ("/CN=Alice", "x509up", proxy_end)
    return queue.add_jobs(Cluster(number, 7, "alice", 100.0, *proxy), [[]], [(ad, 0) for ad in ads])


def first(waiting: WaitingJobs, slot: Any = SLOT) -> JobId | None:
    search = waiting.first_for(slot)
    while True:
        try:
            next(search)
        except StopIteration as end:
            return None if end.value is None else end.value.id


async def test_what_became_of_a_job_before_its_turn_counts(queue: Queue, waiting: WaitingJobs) -> None:
    jobs = jobs_of(queue, *["A = 1\n"] * 4)
    adding = waiting.add_idle([job.id for job in jobs], lambda job_id: job_id == jobs[2].id)
    next(adding)
    queue.update(evolve(jobs[1], state=JobState.REMOVED))
    queue.update(evolve(jobs[0], state=JobState.HELD))
    waiting.take(jobs[0].id)
    list(adding)
    assert [job.id in waiting for job in jobs] == [False, False, False, True]


async def test_a_job_that_failed_lately_waits_and_is_found_later(
    queue: Queue, waiting: WaitingJobs, autojump_clock: trio.testing.MockClock
) -> None:
    failed, other = jobs_of(queue, "A = 1\n", "A = 2\n")
    patience = waiting.failed(failed.id, run_s=1.0)
    for job in (failed, other):
        waiting.add(job)
    assert failed.id in waiting
    assert first(waiting) == other.id
    await trio.sleep(patience.until - trio.current_time() + 0.1)
    waiting.look_at_clocks(lambda job_id, end: pytest.fail("no proxy has ended"))
    assert first(waiting) == failed.id


async def test_a_job_that_failed_during_a_search_does_not_go_at_its_end(queue: Queue, waiting: WaitingJobs) -> None:
    (job,) = jobs_of(queue, "A = 1\n")
    waiting.add(job)
    search = waiting.first_for(SLOT)
    next(search)
    assert waiting.may_go(job.id)
    waiting.take(job.id)
    waiting.failed(job.id, run_s=1.0)
    waiting.add(job)
    with pytest.raises(StopIteration) as end:
        next(search)
    assert end.value.value.id == job.id
    assert (job.id in waiting, waiting.may_go(job.id)) == (True, False)


async def test_a_job_that_was_released_need_not_be_patient(queue: Queue, waiting: WaitingJobs) -> None:
    (job,) = jobs_of(queue, "A = 1\n")
    waiting.failed(job.id, run_s=1.0)
    waiting.add(job)
    waiting.forget_failures(job.id)
    waiting.look_at_clocks(lambda job_id, end: pytest.fail("no proxy has ended"))
    assert first(waiting) == job.id


async def test_a_proxy_that_has_ended_is_told_once(queue: Queue, waiting: WaitingJobs) -> None:
    ended, lives = jobs_of(queue, "A = 1\n", proxy_end=500.0)[0], jobs_of(queue, "A = 1\n", proxy_end=4e9)[0]
    for job in (ended, lives):
        waiting.add(job)
    told: list[tuple[JobId, int]] = []
    for _ in range(2):
        waiting.look_at_clocks(lambda job_id, end: told.append((job_id, end)))
    assert told == [(ended.id, 500)]
    assert (ended.id in waiting, first(waiting)) == (False, lives.id)


async def test_a_proxy_that_was_renewed_does_not_end_as_the_old_one(queue: Queue, waiting: WaitingJobs) -> None:
    (job,) = jobs_of(queue, "A = 1\n", proxy_end=500.0)
    waiting.add(job)
    queue.renew_proxy(job.id.cluster, 4e9)
    renewed = queue.job(job.id)
    assert renewed is not None
    waiting.add(renewed)
    waiting.look_at_clocks(lambda job_id, end: pytest.fail("its new proxy lives"))
    assert first(waiting) == job.id


async def test_a_proxy_in_its_last_second_has_ended(queue: Queue, waiting: WaitingJobs) -> None:
    now_s = int(time.time())
    (job,) = jobs_of(queue, "A = 1\n", proxy_end=now_s + 0.999)
    waiting.add(job)
    told: list[int] = []
    waiting.look_at_clocks(lambda job_id, end: told.append(end))
    assert told == [now_s]


async def test_a_proxy_that_was_renewed_is_believed_before_its_jobs_turn(queue: Queue, waiting: WaitingJobs) -> None:
    """The jobs of a large submission come again one by one."""
    (job,) = jobs_of(queue, "A = 1\n", proxy_end=500.0)
    waiting.add(job)
    queue.renew_proxy(job.id.cluster, 4e9)
    waiting.look_at_clocks(lambda job_id, end: pytest.fail("its new proxy lives"))
    assert first(waiting) == job.id
    queue.renew_proxy(job.id.cluster, 600.0)
    renewed = queue.job(job.id)
    assert renewed is not None
    waiting.add(renewed)
    told: list[int] = []
    waiting.look_at_clocks(lambda job_id, end: told.append(end))
    assert told == [600]


async def test_a_slot_that_asks_for_more_sees_the_jobs_own_ad(queue: Queue, waiting: WaitingJobs) -> None:
    jobs = jobs_of(queue, *[f'Arguments = "{number}"\n' for number in range(5)])
    for job in jobs:
        waiting.add(job)
    picky = classads.parse_old('Name = "slot1@x"\nRequirements = TARGET.Arguments == "3"\nCpus = 2\nMemory = 4096\n')
    assert first(waiting, picky) == jobs[3].id


async def test_others_run_between_the_slices_of_long_work() -> None:
    turns = 0

    def work() -> Generator[None, None, str]:
        for _ in range(50):
            time.sleep(0.002)
            yield
        return "done"

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        assert await in_slices(work()) == "done"
        nursery.cancel_scope.cancel()
    assert turns >= 5


async def test_others_run_between_many_short_works() -> None:
    """As searches for a thousand slots are."""

    def work() -> Generator[None, None, None]:
        time.sleep(0.002)
        yield

    turned = trio.Event()
    slices = Slices()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_set, turned)
        for _ in range(20):
            await slices.run(work())
        assert turned.is_set()


async def test_short_work_is_not_interrupted() -> None:
    def work() -> Generator[None, None, int]:
        yield
        return 7

    turned = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_set, turned)
        assert await in_slices(work()) == 7
        assert not turned.is_set()


async def _set(event: trio.Event) -> None:
    event.set()
