"""How a pilot ends, whoever asks for it and whenever."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing

from pilot.configuration import from_values
from startd.administration import Manner
from startd.claim import State
from startd.claimevents import Activate, StarterRuns
from startd.owncredentials import OwnCredentials
from startd.pilotend import EXIT_DONE, EXIT_END_OF_LIFE, ONE_TERM_S, PilotEnd
from tests.startd.startdport import LOG, Port, port


def end_of(on: Port, tmp_path: Path, reread: list[None] | None = None) -> PilotEnd:
    return PilotEnd(
        claims=on.claims,
        credentials=OwnCredentials(None, tmp_path),
        master=None,
        manner=lambda: Manner.GRACEFUL,
        own_ad=lambda: on.own_ad(on.slot),
        reconfigure=lambda: (reread if reread is not None else []).append(None),
        changed=lambda: None,
        log=LOG,
    )


async def signals(*them: tuple[float, int]) -> AsyncIterator[int]:
    """Each after so many seconds; then none any more."""
    for pause_s, number in them:
        await trio.sleep(pause_s)
        yield number
    await trio.sleep_forever()


async def until_ended(end: PilotEnd, *them: tuple[float, int]) -> None:
    with trio.fail_after(3600):
        await end.until_ended(signals(*them))


async def test_an_administrator_may_be_sooner_than_the_start_is_done(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with port() as on:
        end = end_of(on, tmp_path)
        end.told("condor_off", fast=False, again=False)
        assert on.claims.draining
        await until_ended(end)
        assert (end.status, end.reason) == (EXIT_END_OF_LIFE, "condor_off")


async def test_a_pilots_own_end_may_have_a_comment(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    """Configurations have some; the library reads them."""
    async with port() as on:
        on.claims.settings = from_values({"DAEMON_SHUTDOWN": "true /* at once */"}, source=None)
        end = end_of(on, tmp_path)
        await until_ended(end)
        assert end.status == EXIT_END_OF_LIFE


async def test_the_first_reason_stays(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with port() as on:
        end = end_of(on, tmp_path)
        end.told("condor_off", fast=False, again=False)
        end.told("condor_off -fast", fast=True, again=False)
        await until_ended(end, (0, signal.SIGTERM))
        assert (end.status, end.reason) == (EXIT_END_OF_LIFE, "condor_off")


@pytest.mark.parametrize(("between_s", "ends"), [(ONE_TERM_S / 2, State.RETIRING), (ONE_TERM_S + 1, State.CLOSING)])
async def test_two_terms_are_one_if_they_come_at_once(
    between_s: float, ends: State, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with port() as on:
        held = await on.claim()
        on.claims.retirement_s = lambda held: 600.0
        held.life.handle(Activate(1), now_s=0.0)
        held.life.handle(StarterRuns(0), now_s=0.0)
        end = end_of(on, tmp_path)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(until_ended, end, (0, signal.SIGTERM), (between_s, signal.SIGTERM))
            await trio.sleep(between_s + 1)
            assert held.life.state is ends
            nursery.cancel_scope.cancel()


async def test_a_hangup_reads_the_settings_and_ends_nothing(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with port() as on:
        reread: list[None] = []
        end = end_of(on, tmp_path, reread)
        await until_ended(end, (0, signal.SIGHUP), (1, signal.SIGINT))
        assert (len(reread), end.status, end.reason) == (1, EXIT_DONE, "SIGINT")
