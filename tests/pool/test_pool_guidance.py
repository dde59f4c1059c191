"""What the pool's shadow answers to a starter that asks for guidance (305), by what has become of the input."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from cedar.commands import Command, HoldCode, Syscall
from cedar.filetransfer import StoreFailed
from starter.guidance import JOB_ENVIRONMENT, JOB_SETUP, question
from tests.pool.conftest import job_ad
from tests.pool.fake_ep import FakeStarter, MemorySink
from tests.pool.test_pool_runs import with_ep


class FullSink(MemorySink):
    """Stores no file. ``retry``: it may do so later."""

    def __init__(self, retry: bool) -> None:
        super().__init__()
        self.retry = retry

    async def file(self, name: str, mode: int, size: int, chunks: AsyncIterator[bytes]) -> None:
        raise StoreFailed(HoldCode.DOWNLOAD_FILE_ERROR, 28, "no room", retry=self.retry)


async def ask(starter: FakeStarter, kind: str) -> tuple[int, str]:
    ad = question(kind)
    if not kind:
        del ad["RequestType"]
    await starter.stream.put(Syscall.REQUEST_GUIDANCE, ad)
    reader = await starter.stream.get()
    result, answer = reader.int(), reader.ad()
    return result, str(answer["Command"]) if "Command" in answer else ""


async def asked(start_pool: Callable[..., Any], ask_all: Callable[[FakeStarter], Any]) -> Any:
    """What ``ask_all`` was told in a run whose job then ends as it should."""
    found: list[Any] = []
    async with with_ep(start_pool) as (pool, ep):

        async def body(starter: FakeStarter) -> None:
            await starter.begin()
            found.append(await ask_all(starter))
            await starter.run()
            await starter.stage_out({"_condor_stdout": b""})
            await starter.exit()

        ep.body = body
        cluster = await pool.submit(job_ad(), files={"in.txt": b"hello", "run.sh": b"#!/bin/sh\n"})
        await pool.until(cluster, "completed")
    return found[0]


async def test_before_the_input_a_starter_carries_on(start_pool: Callable[..., Any]) -> None:
    assert await asked(start_pool, lambda starter: ask(starter, JOB_SETUP)) == (0, "CarryOn")


async def test_a_question_that_nobody_understands_is_refused_and_the_next_call_is_in_step(
    start_pool: Callable[..., Any],
) -> None:
    async def both(starter: FakeStarter) -> list[tuple[int, str]]:
        return [await ask(starter, "Tea"), await ask(starter, ""), await ask(starter, JOB_SETUP)]

    assert await asked(start_pool, both) == [(-1, ""), (-2, ""), (0, "CarryOn")]


async def test_a_job_whose_input_has_come_may_start(start_pool: Callable[..., Any]) -> None:
    """Asked in the moment in which the starter has its last word and the pool may not have ours."""

    async def after_input(starter: FakeStarter) -> tuple[int, str]:
        await starter.stage_in()
        return await ask(starter, JOB_ENVIRONMENT)

    assert await asked(start_pool, after_input) == (0, "StartJob")


async def test_an_input_that_nobody_fetched_is_nothing_to_try_again(start_pool: Callable[..., Any]) -> None:
    assert await asked(start_pool, lambda starter: ask(starter, JOB_ENVIRONMENT)) == (0, "CarryOn")


async def test_an_input_that_was_cut_off_is_to_be_fetched_again(start_pool: Callable[..., Any]) -> None:
    async def cut(starter: FakeStarter) -> list[tuple[int, str]]:
        stream = await starter._transfer(Command.FILETRANS_UPLOAD)
        await stream.get()
        await stream.aclose()
        before = await ask(starter, JOB_ENVIRONMENT)
        await starter.stage_in()
        return [before, await ask(starter, JOB_ENVIRONMENT)]

    assert await asked(start_pool, cut) == [(0, "RetryTransfer"), (0, "StartJob")]


@pytest.mark.parametrize(("retry", "command"), [(True, "RetryTransfer"), (False, "CarryOn")])
async def test_an_input_that_the_node_cannot_store_is_tried_again_where_it_says_so(
    start_pool: Callable[..., Any], retry: bool, command: str
) -> None:
    async def full(starter: FakeStarter) -> tuple[int, str]:
        starter.sink = FullSink(retry)
        await starter.stage_in()
        return await ask(starter, JOB_ENVIRONMENT)

    assert await asked(start_pool, full) == (0, command)
