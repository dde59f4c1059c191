"""The startd's look at the switch's standing: slots stop matching while the site is down, and come back."""

from __future__ import annotations

import itertools
from pathlib import Path

import trio

from pilot import logs, standing
from pilot.inquiry import note_pilot
from pilot.ledger import Ledger
from pilot.outcomes import Denied, Exited, Outcome
from startd.switchwatch import SwitchWatch


async def test_a_site_that_is_down_is_asked_ever_more_rarely_until_it_is_back(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    ledger = Ledger.of(tmp_path)
    ledger.clock = trio.current_time
    ledger.begin(probe=True)
    asked: list[float] = []
    changes: list[str] = []
    began_s = trio.current_time()

    async def ask() -> Outcome:
        asked.append(trio.current_time() - began_s)
        return Exited(0) if trio.current_time() - began_s > 3600 else Denied("503")

    watch = SwitchWatch(ledger, ask, lambda: changes.append(watch.down), logs.get("test"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.run)
        await trio.sleep(100)
        assert (asked, changes) == ([], [])
        for _ in range(standing.DOWN_AFTER):
            await note_pilot(ledger, Denied("503"), 0.0)
        await trio.sleep(10_000)
        nursery.cancel_scope.cancel()
    assert changes == ["503", ""]
    assert 8 <= len(asked) <= 20
    gaps = [later - earlier for earlier, later in itertools.pairwise(asked)]
    assert max(gaps) <= standing.LONGEST_LOOK_S + 2
    assert gaps[-1] > 10 * gaps[0]
    assert asked[-1] - 3600 <= standing.LONGEST_LOOK_S + 2


async def test_refused_users_are_shown_and_forgotten(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    ledger = Ledger.of(tmp_path)
    ledger.clock = trio.current_time
    ledger.begin(probe=True)
    shown: list[tuple[str, ...]] = []

    async def ask() -> Outcome:
        raise AssertionError("the site is not down")

    watch = SwitchWatch(ledger, ask, lambda: shown.append(watch.refused()), logs.get("test"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.run)
        await ledger.change(
            lambda now, now_s: (standing.set_aside(now, "k", identity="/CN=Bob", words="", now_s=now_s), None)
        )
        await trio.sleep(standing.ASIDE_S + 10)
        nursery.cancel_scope.cancel()
    assert shown == [("/CN=Bob",), ()]
