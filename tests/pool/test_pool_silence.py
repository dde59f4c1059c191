"""A lease counts time in which the pool could hear; one that stood still itself listens first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from pool.silence import LOOKS, Silence
from tests.pool.conftest import eventually, job_ad
from tests.pool.fake_ep import FakeEP, FakeStarter, echo

LEASE_S = 80.0
LOOK_S = LEASE_S / LOOKS


def looked_at(times: list[float], heard: dict[float, float]) -> list[bool]:
    """What each look says; ``heard``: when, by the look that knows it first."""
    silence, last, said = Silence(LEASE_S, 0.0), 0.0, []
    for now in times:
        last = heard.get(now, last)
        said.append(silence.over(last, now))
    return said


def test_a_silent_execution_point_is_given_up_after_a_lease() -> None:
    silence, now = Silence(LEASE_S, 0.0), 0.0
    while not silence.over(0.0, now):
        assert now < silence.next_look_s <= now + LOOK_S
        now = silence.next_look_s
    assert now == pytest.approx(LEASE_S)


def test_looks_that_come_a_little_late_put_nothing_off() -> None:
    silence, now = Silence(LEASE_S, 0.0), 0.0
    while not silence.over(0.0, now):
        now = silence.next_look_s + 0.01
    assert now < LEASE_S + 0.2


def test_a_word_begins_it_anew() -> None:
    times = [LOOK_S * number for number in range(1, 13)]
    assert looked_at(times, {40.0: 35.0})[:11] == [False] * 11
    assert looked_at(times, {40.0: 35.0})[11]
    assert looked_at(times, {})[7:] == [True] * 5


@pytest.mark.parametrize("stood_s", [LEASE_S, 10 * LEASE_S])
def test_time_in_which_nobody_looked_is_no_silence(stood_s: float) -> None:
    times = [10.0, 10.0 + stood_s]
    assert looked_at(times, {}) == [False, False]
    after = [times[-1] + LOOK_S * number for number in range(1, 8)]
    assert looked_at(times + after, {})[2:] == [False] * 5 + [True] * 2, "it says nothing afterwards either"
    assert not any(looked_at(times + after, {after[0]: after[0] - 1.0})), "what it has said meanwhile was read"


async def test_a_pool_that_stood_still_listens_before_it_calls_a_job_lost(
    start_pool: Callable[..., Any], mock_clock: MockClock
) -> None:
    """The clock jumps, as it does for a process that was kept waiting."""
    mock_clock.rate = 1.0
    async with start_pool(sailplane_pool_lease=LEASE_S) as pool:
        ep = FakeEP(pool.address, pool.places.tokens)
        stood, done = trio.Event(), trio.Event()

        async def body(starter: FakeStarter) -> None:
            await starter.begin()
            await starter.stage_in()
            await starter.run()
            mock_clock.jump(2 * LEASE_S)
            await wait_all_tasks_blocked()
            await starter.run()
            stood.set()
            await done.wait()
            await starter.stage_out({"_condor_stdout": b"", "_condor_stderr": b""})
            await starter.exit()

        ep.body = body
        async with ep.running():
            cluster = await pool.submit(job_ad())
            with trio.fail_after(10 * LEASE_S):
                await stood.wait()
            assert (await pool.row(cluster)).state == "running"
            done.set()
            assert (await pool.until(cluster, "completed")).runs == 1


async def test_a_job_of_which_nothing_is_heard_is_lost(start_pool: Callable[..., Any], mock_clock: MockClock) -> None:
    mock_clock.rate = 1.0
    async with start_pool(sailplane_pool_lease=LEASE_S) as pool:
        ep = FakeEP(pool.address, pool.places.tokens)

        async def body(starter: FakeStarter) -> None:
            ep.body = echo
            await starter.begin()
            await starter.run()
            for _ in range(LOOKS + 1):
                mock_clock.jump(LOOK_S)
                await wait_all_tasks_blocked()
            await trio.sleep_forever()

        ep.body = body
        async with ep.running():
            cluster = await pool.submit(job_ad())

            async def outcomes() -> list[str | None]:
                (job,) = pool.queue.jobs_of_cluster(cluster)
                return [run.outcome for run in pool.queue.runs(job.id)]

            await eventually(outcomes, lambda found: found[:1] == ["lost"], seconds=10 * LEASE_S)
