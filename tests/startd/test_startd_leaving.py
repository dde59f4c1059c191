"""A slot is free once its starter says that nothing is left; that one is seen to its end, whatever it does then."""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, cast

import attrs
import pytest
import trio
import trio.testing

from pilot.rpc import Channel, ChannelClosed
from startd import leaving
from startd.claim import State
from startd.claimevents import Deactivated
from startd.claims import Claims
from startd.held import Held
from starter.messages import STARTER, AccountKnown, Activation, Ended, SlotBroken
from tests.startd.startdport import LOG, Port, port
from tests.startd.test_startd_pilotend import end_of, until_ended

DONE = Ended("Exited", "exited, wait status 0", 0, nothing_left=True)


@attrs.define
class Starters:
    """Their ends of their channels, by ticket."""

    channels: dict[int, Channel] = attrs.field(factory=dict)

    async def start(self, ticket: int, activation: Activation, fds: tuple[int, int]) -> None:
        self.channels[ticket] = Channel(trio.socket.from_stdlib_socket(socket.socket(fileno=os.dup(fds[1]))), STARTER)


@attrs.define
class Node:
    here: Port
    held: Held
    starters: Starters
    killed: list[tuple[int, int]]

    @property
    def claims(self) -> Claims:
        return self.here.claims

    @property
    def state(self) -> State:
        return self.held.life.state

    async def begin(self, ticket: int, pid: int, job: str) -> Channel:
        """A job on the claim; the starter's end of its channel."""
        activation = Activation("slot1_1", "id", "", "", {}, "<127.0.0.1:1>", 1, 1, 1, 1.0, "/nowhere")
        shadow, far = socket.socketpair()
        with far:
            self.claims.new_activation(self.held, activation, shadow, job)
            await trio.testing.wait_all_tasks_blocked()
        self.claims.starter_runs(ticket, pid)
        assert self.state is State.BUSY
        return self.starters.channels[ticket]

    async def say(self, starter: Channel, *words: object) -> None:
        for word in words:
            await starter.send(word)
        await trio.testing.wait_all_tasks_blocked()


@asynccontextmanager
async def node(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Node]:
    starters, killed = Starters(), []
    monkeypatch.setattr(leaving.os, "kill", lambda pid, number: killed.append((pid, number)))
    async with port() as here:
        here.claims.spawner = cast(Any, starters)
        yield Node(here, await here.claim(), starters, killed)
        for channel in starters.channels.values():
            channel.close()


async def test_the_claim_does_not_wait_for_a_process_that_only_has_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    async with node(monkeypatch) as on:
        first = await on.begin(1, 4711, "1.0")
        await on.say(first, DONE)
        assert (on.state, on.held.starter_pid, on.held.job_id) == (State.IDLE, None, "")
        await on.begin(2, 4712, "1.1")
        assert on.claims.starter_ended(4711, 0), "the janitor looks then, as after any starter"
        assert (on.state, on.held.starter_pid) == (State.BUSY, 4712)
        assert not on.claims.starter_ended(4711, 0), "once"
        assert on.killed == []


@pytest.mark.parametrize(
    "words",
    [(attrs.evolve(DONE, nothing_left=False),), (SlotBroken("process 7 survived SIGKILL"), DONE)],
    ids=["something left", "a broken slot"],
)
async def test_otherwise_it_does(words: tuple[object, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    async with node(monkeypatch) as on:
        await on.say(await on.begin(1, 4711, "1.0"), *words)
        assert (on.state, on.held.starter_pid) == (State.BUSY, 4711)
        broken = len(words) > 1
        assert on.claims.starter_ended(4711, 0)
        assert on.state is (State.GONE if broken else State.IDLE)


async def test_a_claim_that_closes_is_gone_at_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    async with node(monkeypatch) as on:
        starter = await on.begin(1, 4711, "1.0")
        on.claims.handle(on.held, Deactivated("graceful", worklife_over=True))
        await on.say(starter, DONE)
        assert on.state is State.GONE
        assert on.claims.starter_ended(4711, 0)


async def test_the_last_word_of_one_that_was_reaped_is_not_the_next_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """The spawner may be heard first."""
    async with node(monkeypatch) as on:
        first = await on.begin(1, 4711, "1.0")
        on.claims.starter_ended(4711, 0)
        await on.begin(2, 4712, "1.1")
        await on.say(first, DONE)
        assert (on.state, on.held.starter_pid) == (State.BUSY, 4712)


async def test_a_starter_that_goes_on_after_its_last_word_is_heard_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    async with node(monkeypatch) as on:
        first = await on.begin(1, 4711, "1.0")
        await on.say(first, DONE)
        await on.begin(2, 4712, "1.1")
        for word in (SlotBroken("a process survived"), AccountKnown(1055), DONE):
            with suppress(ChannelClosed):
                await on.say(first, word)
        assert (on.state, on.held.starter_pid) == (State.BUSY, 4712)
        assert (on.held.starter_broken, on.held.job_account_uid) == (False, None)


async def test_its_job_is_in_the_report_before_the_next_one_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the time that it takes to end is not the job's."""
    told: list[Ended | None] = []
    async with node(monkeypatch) as on:
        on.claims.job_ended = lambda held, seconds, words: told.append(words)
        await on.say(await on.begin(1, 4711, "1.0"), DONE)
        assert told == [DONE]


async def test_one_that_does_not_end_is_killed(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """It has the job's proxy; and procd ends what it may have left running."""
    async with node(monkeypatch) as on:
        await on.say(await on.begin(1, 4711, "1.0"), DONE)
        await trio.sleep(leaving.ENDS_WITHIN_S + 1)
        assert on.killed == [(4711, signal.SIGKILL)]
        assert on.claims.starter_ended(4711, signal.SIGKILL)


async def test_a_pilot_ends_when_the_last_of_them_has(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with node(monkeypatch) as on, trio.open_nursery() as nursery:
        await on.say(await on.begin(1, 4711, "1.0"), DONE)
        ended = trio.Event()

        async def end() -> None:
            await until_ended(end_of(on.here, tmp_path), (0.0, signal.SIGTERM))
            ended.set()

        nursery.start_soon(end)
        await trio.sleep(1)
        assert not on.claims.slots.held
        assert not ended.is_set()
        on.claims.starter_ended(4711, 0)
        await ended.wait()


@pytest.mark.parametrize("is_there", [False, True])
async def test_nor_does_it_wait_for_one_whose_end_nobody_tells(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, autojump_clock: trio.testing.MockClock, is_there: bool
) -> None:
    """The spawner died when it had waited for it."""

    def kill(pid: int, number: int) -> None:
        if not is_there:
            raise ProcessLookupError

    async with node(monkeypatch) as on:
        monkeypatch.setattr(leaving.os, "kill", kill)
        await on.say(await on.begin(1, 4711, "1.0"), DONE)
        began_s = trio.current_time()
        await until_ended(end_of(on.here, tmp_path), (0.0, signal.SIGTERM))
        assert trio.current_time() - began_s < 3 * leaving.ENDS_WITHIN_S
        assert not on.claims.leaving


async def test_a_jobs_account_is_known_when_its_starter_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    async with node(monkeypatch) as on:
        on.claims.account_seen = lambda pid, uid: seen.append((pid, uid))
        starter = await on.begin(1, 4711, "1.0")
        assert on.held.job_account_uid is None
        await on.say(starter, AccountKnown(1055))
        assert (on.held.job_account_uid, seen) == (1055, [(4711, 1055)])
        await on.say(starter, DONE)
        assert on.held.job_account_uid is None


async def test_what_its_end_was_like_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with node(monkeypatch) as on:
        await on.say(await on.begin(1, 4711, "1.0"), DONE)
        with caplog.at_level(logging.WARNING, LOG.logger.name):
            on.claims.starter_ended(4711, 101 << 8)
        assert "starter 4711 of slot1_1@node ended with status 101" in caplog.text
