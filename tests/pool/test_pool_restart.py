"""A pool that was killed: what its next life does about claims, runs, unfinished submissions."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from pool import messages as m
from pool.model import JobId
from tests.pool.conftest import eventually, job_ad
from tests.pool.fake_ep import FakeEP, FakeStarter, echo


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


async def exists(place: Path) -> bool:
    return await trio.Path(place).exists()


async def forever(starter: FakeStarter) -> None:
    await starter.begin()
    await starter.run()
    await trio.sleep_forever()


async def test_the_old_claim_is_told_and_both_runs_are_kept(start_pool: Callable[..., Any]) -> None:
    port = free_port()
    async with trio.open_nursery() as nursery:
        stop = trio.Event()
        ready = trio.Event()
        holder: list[FakeEP] = []
        tokens: list[Any] = []

        async def execution_point() -> None:
            await ready.wait()
            ep = FakeEP(*tokens[0])
            ep.body = forever
            holder.append(ep)
            async with ep.running():
                await stop.wait()

        nursery.start_soon(execution_point)
        async with start_pool(sailplane_pool_port=port) as first:
            tokens.append((first.address, first.places.tokens))
            ready.set()
            cluster = await first.submit(job_ad(), files={"in.txt": b"again", "run.sh": b""})
            await first.until(cluster, "running")
            await holder[0].seen("activate")
        ep = holder[0]
        async with start_pool(sailplane_pool_port=port) as second:
            await ep.seen("release")
            ep.body = echo
            await ep.advertise(anew=True)
            row = await second.until(cluster, "completed")
            assert row.runs == 2
            assert [run.outcome for run in second.queue.runs(JobId(cluster, 0))] == ["lost", "completed"]
            stop.set()


async def test_an_unreachable_startd_is_waited_for_until_the_lease_is_over(start_pool: Callable[..., Any]) -> None:
    port = free_port()
    async with start_pool(sailplane_pool_port=port) as first:
        ep = FakeEP(first.address, first.places.tokens)
        ep.body = forever
        async with ep.running():
            cluster = await first.submit(job_ad())
            await first.until(cluster, "running")
            await ep.seen("activate")
    started = trio.current_time()
    async with start_pool(sailplane_pool_port=port, sailplane_pool_lease=1.0) as second:
        assert (await second.row(cluster)).state == "running"
        await second.until(cluster, "idle")
        assert trio.current_time() - started >= 0.9


async def test_a_startd_started_anew_ends_the_wait(start_pool: Callable[..., Any]) -> None:
    port = free_port()
    async with start_pool(sailplane_pool_port=port) as first:
        ep = FakeEP(first.address, first.places.tokens)
        ep.body = forever
        async with ep.running():
            cluster = await first.submit(job_ad())
            await first.until(cluster, "running")
            await ep.seen("activate")
    async with start_pool(sailplane_pool_port=port) as second:
        assert (await second.row(cluster)).state == "running"
        again = FakeEP(second.address, second.places.tokens)
        again._started += 5
        async with again.running():
            await second.until(cluster, "completed", seconds=60)


async def test_an_unfinished_submission_leaves_nothing(start_pool: Callable[..., Any]) -> None:
    async with start_pool() as first:
        channel = await first.channel()
        begun = await channel.call(m.Begin(False))
        assert (first.places.spool / str(begun.cluster)).is_dir()
        await channel.aclose()
        place = first.places.spool / str(begun.cluster)
        await eventually(lambda: exists(place), lambda there: not there)
        # As if killed in the middle: reserved, with files, and nobody to undo it.
        number = first.queue.reserve_cluster(0, "root", 0.0)
        (first.places.spool / str(number)).mkdir()
    async with start_pool() as second:
        assert not (second.places.spool / str(number)).exists()
        assert second.queue.empty_clusters() == []
        cluster = await second.submit(job_ad())
        assert cluster > number


async def test_idle_jobs_are_there_after_a_restart(start_pool: Callable[..., Any]) -> None:
    async with start_pool() as first:
        cluster = await first.submit(job_ad(), job_ad(), files={"in.txt": b"kept", "run.sh": b""})
    async with start_pool() as second, FakeEP(second.address, second.places.tokens).running() as ep:
        await second.until(cluster, "completed", proc=0)
        await second.until(cluster, "completed", proc=1)
        assert ep.starters[0].sink.files["in.txt"] == b"kept"
