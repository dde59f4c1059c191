"""The table in docs/run-life.md is the state machine's own: every rule, from where to where."""

from __future__ import annotations

import copy
import re
from pathlib import Path

from attrs import evolve

from pool import shadow_state as s
from tests.pool.test_pool_shadow_state import FACTS, REMOVALS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "run-life.md"
ROW = re.compile(r"\| (\d+) \| `(\w+)` \| ([a-z, ]+) \| ([a-z, ]+) \|")


def moves() -> dict[int, tuple[set[str], set[str], set[str]]]:
    """Rule -> (events, states before, states after), by trying every event in every state that can be reached."""
    found: dict[int, tuple[set[str], set[str], set[str]]] = {}
    seen: set[str] = set()
    waiting = [s.ShadowState()]
    while waiting:
        machine = waiting.pop()
        for event in (*FACTS, *REMOVALS, s.TimerFired(machine._now.serial)):
            after = copy.deepcopy(machine)
            try:
                after.handle(event)
            except s.WrongState:
                continue
            rule = after.story[-1].rule
            if rule:
                events, before, then = found.setdefault(rule, (set(), set(), set()))
                events.add(type(event).__name__)
                before.add(machine.state.value)
                then.add(after.state.value)
            key = repr(evolve(after._now, serial=0, verdict=None))
            if key not in seen:
                seen.add(key)
                waiting.append(after)
    return found


def documented() -> dict[int, tuple[set[str], set[str], set[str]]]:
    rows = ROW.findall(PAGE.read_text())
    return {
        int(number): ({event}, set(before.split(", ")), set(after.split(", "))) for number, event, before, after in rows
    }


def test_the_page_says_what_the_machine_does() -> None:
    assert documented() == moves()
