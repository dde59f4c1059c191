"""A whole pool in this process for a test, with a temporary directory, and accounts of nobody: everyone is this uid."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import define, evolve

from cedar.sinful import Sinful
from demo import grid
from pilot import rpc, settings
from pool import main as pool_main
from pool import messages as m
from pool.places import Places, prepare
from pool.queue import Queue


@define
class LivePool:
    """A running pool: how to reach it, and what it holds."""

    config: settings.Settings
    places: Places
    queue: Queue

    @property
    def address(self) -> Sinful:
        return Sinful.parse(self.places.address_file.read_text().splitlines()[0])

    async def channel(self) -> rpc.Channel:
        return await rpc.connect(self.config.sailplane_pool_socket, m.POOL, max_fds=m.MAX_FDS)

    async def submit(self, *ads: str, files: dict[str, bytes] | None = None, proxy: bytes | None = None) -> int:
        """Jobs with the same input files; returns the cluster."""
        from pilot import credentials

        held = {"run.sh": b"#!/bin/sh\n"} if files is None else files
        async with await self.channel() as channel:
            begun = await channel.call(m.Begin(proxy is not None))
            if proxy is not None:
                answer = credentials.sign_request(proxy, begun.request, not_after=None)
                await channel.call(m.GiveProxy(answer, "x509up"))
            fds = [_memory_file(data) for data in held.values()]
            try:
                if fds:
                    await channel.call(m.PutFiles(0, tuple(len(data) for data in held.values())), fds)
            finally:
                for fd in fds:
                    os.close(fd)
            entries = tuple(m.InputEntry(name, 0o644, key) for key, name in enumerate(held))
            await channel.call(m.PutInputs(0, entries))
            await channel.call(m.PutJobs(tuple(m.NewJob(ad, 0) for ad in ads)))
            done = await channel.call(m.Commit())
            assert done.jobs == len(ads)
            cluster: int = done.cluster
            return cluster

    async def row(self, cluster: int, proc: int = 0) -> m.JobRow:
        async with await self.channel() as channel:
            page = await channel.call(m.ListJobs(cluster, proc - 1, True, True))
            row: m.JobRow = page.rows[0]
            return row

    async def until(self, cluster: int, *states: str, proc: int = 0, seconds: float = 60.0) -> m.JobRow:
        """Wait until a job is in one of the states."""
        return await eventually(lambda: self.row(cluster, proc), lambda row: row.state in states, seconds)


async def eventually(look: Callable[[], Any], good: Callable[[Any], bool], seconds: float = 60.0) -> Any:
    """Look again and again until it is good; at the end say what was last seen."""
    last = None
    with trio.move_on_after(seconds):
        while True:
            last = await look()
            if good(last):
                return last
            await trio.sleep(0.01)
    raise AssertionError(f"not within {seconds} s; last seen: {last}")


def _memory_file(data: bytes) -> int:
    fd = os.memfd_create("input")
    os.write(fd, data)
    return fd


def job_ad(**more: str) -> str:
    """A small job's ad; keyword values are expressions."""
    said = {"Cmd": '"/home/u/run.sh"', "Iwd": '"/home/u"', "Out": '"out"', "Err": '"err"', "RequestMemory": "128"}
    return "".join(f"{name} = {value}\n" for name, value in (said | more).items())


@pytest.fixture
def pool_settings(tmp_path: Path, test_grid: grid.Grid) -> settings.Settings:
    base = settings.Settings(local_dir=tmp_path)
    root = tmp_path / "pool"
    return evolve(
        base,
        log=tmp_path / "log",
        spool=tmp_path / "spool",
        sailplane_pool_dir=root,
        sailplane_pool_socket=root / "socket",
        sailplane_certificates_dir=test_grid.certificates_dir,
        trust_domain="pool.test",
        uid_domain="pool.test",
        sailplane_pool_lease=60.0,
    )


@pytest.fixture
def start_pool(pool_settings: settings.Settings) -> Callable[..., Any]:
    """`async with start_pool(knob=value) as pool`; again for the next life of the same pool."""

    @asynccontextmanager
    async def start(**knobs: Any) -> AsyncIterator[LivePool]:
        config = evolve(pool_settings, **knobs)
        places = Places(config.sailplane_pool_dir, config.spool)
        lock = prepare(places, config.sailplane_pool_socket, trust_domain=config.trust_domain)
        queue = Queue(places.queue)
        try:
            async with trio.open_nursery() as nursery:
                listeners = await trio.open_tcp_listeners(config.sailplane_pool_port, host=config.network_interface)
                await pool_main.serve(config, places, queue, listeners, nursery)
                yield LivePool(config, places, queue)
                nursery.cancel_scope.cancel()
        finally:
            queue.close()
            os.close(lock)

    return start


@pytest.fixture(scope="session")
def test_grid(tmp_path_factory: pytest.TempPathFactory) -> grid.Grid:
    return grid.make_grid(tmp_path_factory.mktemp("grid"))
