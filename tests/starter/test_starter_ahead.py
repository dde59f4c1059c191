"""Calls opened before they are needed: taken once, dropped when nobody wants them, and never left behind."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import trio
from classad2 import ClassAd

from pilot.calls import own_children
from pilot.farside import FarSide
from starter import ahead, jobinput
from starter.ahead import LAUNCH, STAGE_OUT, WANTED_IN, Ahead, is_short
from starter.events import Step
from starter.sandbox import Context
from starter.tokens import Tokens
from starter.work import Work
from tests.jobwrapper.farsides import hostile_context, open_fds, wrapper_context

LOG = logging.LoggerAdapter(logging.getLogger("test"), {})


@asynccontextmanager
async def calls(run_dir: Path = Path("/nonexistent")) -> AsyncIterator[Ahead]:
    """Whatever is open at the end must end with the nursery, and leave nothing."""
    before = open_fds()
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            yield Ahead(nursery, LOG, run_dir)
            nursery.cancel_scope.cancel()
    assert not own_children()
    assert open_fds() == before


def begin(opened: Ahead, verb: str, context: Context | None = None) -> None:
    opened.open(context or wrapper_context(), verb, deadline_s=60)


async def until(condition: Callable[[], bool]) -> None:
    """The deadline is that of `calls`."""
    while True:
        if condition():
            return
        await trio.sleep(0.005)


async def no_child() -> None:
    await until(lambda: not own_children())


async def test_a_call_is_taken_once() -> None:
    async with calls() as opened:
        begin(opened, STAGE_OUT)
        far = await opened.take(STAGE_OUT)
        assert isinstance(far, FarSide)
        assert await opened.take(STAGE_OUT) is None
        await far.end()


async def test_a_call_that_is_open_is_not_opened_again() -> None:
    async with calls() as opened:
        begin(opened, LAUNCH)
        begin(opened, LAUNCH)
        far = await opened.take(LAUNCH)
        assert len(own_children()) == 1
        assert far is not None
        await far.end()


async def test_a_call_for_something_else_is_not_given() -> None:
    async with calls() as opened:
        begin(opened, LAUNCH)
        assert await opened.take(STAGE_OUT) is None


async def test_a_call_that_is_seen_out_is_waited_for_by_nobody_but_the_job() -> None:
    async with calls() as opened:
        begin(opened, LAUNCH)
        far = await opened.take(LAUNCH)
        assert far is not None
        opened.see_out(far)
        assert own_children(), "it goes on"
        await no_child()


async def test_what_nobody_took_ends_with_the_job() -> None:
    async with calls() as opened:
        begin(opened, LAUNCH)
        await until(lambda: bool(own_children()))


@pytest.mark.parametrize("answered", [True, False], ids=["after its hello", "before its hello"])
async def test_a_dropped_call_ends(answered: bool, tmp_path: Path) -> None:
    speak = "hello()\nreceive()" if answered else "exactly(1)"
    async with calls() as opened:
        begin(opened, LAUNCH, hostile_context(tmp_path / "far", speak))
        record = opened._opened
        assert record is not None
        if answered:
            await record.answered.wait()
        await until(lambda: bool(own_children()))
        opened.drop()
        await no_child()
        assert await opened.take(LAUNCH) is None


async def test_another_verb_takes_the_place_of_the_first() -> None:
    async with calls() as opened:
        begin(opened, LAUNCH)
        begin(opened, STAGE_OUT)
        far = await opened.take(STAGE_OUT)
        assert far is not None
        await far.end()
        await no_child()


async def test_an_old_call_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "MAX_AGE_S", 0.0)
    async with calls() as opened:
        begin(opened, LAUNCH)
        record = opened._opened
        assert record is not None
        await record.settled.wait()
        assert await opened.take(LAUNCH) is None
        await no_child()


@pytest.mark.parametrize(("verb", "at_once"), [(LAUNCH, False), (STAGE_OUT, True)])
async def test_a_launch_that_was_asked_for_too_early_tells_the_nodes_next_jobs(
    verb: str, at_once: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "MAX_AGE_S", 0.0)
    async with calls(tmp_path) as opened:
        assert opened.input_comes_at_once()
        begin(opened, verb)
        record = opened._opened
        assert record is not None
        await record.settled.wait()
        assert opened.input_comes_at_once() is at_once
    async with calls(tmp_path) as another:
        assert another.input_comes_at_once() is at_once


@pytest.mark.parametrize(("ago_s", "at_once"), [(0.0, False), (500.0, False), (700.0, True), (-700.0, True)])
async def test_input_that_waited_long_ago_is_forgotten(ago_s: float, at_once: bool, tmp_path: Path) -> None:
    waited = tmp_path / ahead.WAITED
    waited.touch()
    os.utime(waited, (time.time() - ago_s,) * 2)
    async with calls(tmp_path) as opened:
        assert opened.input_comes_at_once() is at_once


async def test_a_call_that_was_taken_was_not_too_early(tmp_path: Path) -> None:
    async with calls(tmp_path) as opened:
        begin(opened, LAUNCH)
        far = await opened.take(LAUNCH)
        assert far is not None
        await far.end()
        assert opened.input_comes_at_once()


@pytest.mark.parametrize("program", ["hello()", "hello(); send({'more': 1}); receive()"], ids=["hung up", "speaks"])
async def test_a_far_side_that_does_not_wait_is_not_used(program: str, tmp_path: Path) -> None:
    async with calls() as opened:
        begin(opened, LAUNCH, hostile_context(tmp_path / "far", program))
        record = opened._opened
        assert record is not None
        await record.answered.wait()
        await until(lambda: record.far is None or record.far.pending())
        assert await opened.take(LAUNCH) is None


async def test_a_refusal_is_left_to_the_call_that_is_needed(tmp_path: Path) -> None:
    async with calls() as opened:
        begin(opened, LAUNCH, hostile_context(tmp_path / "far", "sys.exit(3)"))
        assert await opened.take(LAUNCH) is None


@pytest.mark.parametrize("step", list(Step))
async def test_a_step_drops_what_it_leaves_no_use_for(step: Step) -> None:
    for verb in (LAUNCH, STAGE_OUT):
        async with calls() as opened:
            begin(opened, verb)
            opened.step_begins(step)
            assert (opened._opened is not None) == (step in WANTED_IN[verb])


@pytest.mark.parametrize(
    ("value", "expected"), [(0, True), (1, True), (2, False), (-1, False), (None, False), ("0", False), (0.5, False)]
)
def test_only_a_known_short_input_is_short(value: object, expected: bool) -> None:
    assert is_short(value) is expected


@pytest.mark.parametrize(
    ("services", "tokens", "opened"),
    [((), None, 1), (("box",), None, 0), (("box",), Tokens({"box.use": b"x"}), 1)],
    ids=["wants none", "has not got them", "has them"],
)
async def test_a_job_whose_tokens_have_not_come_gets_no_call_early(
    services: tuple[str, ...], tokens: Tokens | None, opened: int
) -> None:
    """One that is not there holds the job, and the call was one too many."""
    calls: list[str] = []
    prepared = trio.Event()
    prepared.set()
    early = SimpleNamespace(
        input_comes_at_once=lambda: True, open=lambda context, verb, **more: calls.append(verb)
    )  # fmt: skip
    work = SimpleNamespace(
        prepared=prepared, called_off=None, tokens=tokens, ahead=early, context=lambda once: None,
        description=SimpleNamespace(services=services, deferral=None), job_ad=ClassAd({"TransferInputSizeMB": 0}),
    )  # fmt: skip
    jobinput._open_launch_early(cast(Work, work))
    assert calls == [LAUNCH] * opened
