"""The pure life of a slot that nobody has."""

from __future__ import annotations

import re
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from startd.openslot import (
    FACTS,
    NUMBERED,
    RULES,
    ArmMatch,
    ClaimMade,
    Draining,
    Fact,
    Judged,
    Matched,
    MatchTimer,
    OpenSlot,
    State,
)

SAMPLES: list[Fact] = [
    Matched(), MatchTimer(1), MatchTimer(2), ClaimMade(), Judged(True), Judged(False), Draining(True), Draining(False),
]  # fmt: skip


def walk(*facts: Fact) -> tuple[OpenSlot, list[ArmMatch]]:
    slot, commands = OpenSlot(), []
    for fact in facts:
        commands += slot.handle(fact)
    return slot, commands


def test_a_match_waits_for_its_schedd_and_no_longer() -> None:
    slot, commands = walk(Matched())
    assert (slot.state, commands) == (State.MATCHED, [ArmMatch(1)])
    slot.handle(MatchTimer(1))
    assert slot.state is State.UNCLAIMED


def test_the_timer_of_a_match_that_became_a_claim_ends_no_other() -> None:
    slot, commands = walk(Matched(), ClaimMade(), Matched())
    slot.handle(MatchTimer(commands[0].serial))
    assert slot.state is State.MATCHED
    slot.handle(MatchTimer(commands[1].serial))
    assert slot.state is State.UNCLAIMED


def test_the_owner_comes_and_goes_and_a_match_is_not_his() -> None:
    assert walk(Judged(True))[0].state is State.OWNER
    assert walk(Judged(True), Judged(False))[0].state is State.UNCLAIMED
    slot, _ = walk(Matched(), Judged(True))
    assert slot.state is State.MATCHED
    slot.handle(ClaimMade())
    assert slot.state is State.OWNER


def test_draining_ends_a_match_and_is_called_off() -> None:
    slot, _ = walk(Matched(), Draining(True), MatchTimer(1), ClaimMade())
    assert slot.state is State.DRAINED
    slot.handle(Judged(True))
    assert slot.state is State.DRAINED
    slot.handle(Draining(False))
    assert slot.state is State.OWNER


@given(st.lists(st.sampled_from(SAMPLES), max_size=40))
def test_what_it_is_agrees_with_the_last_words(facts: list[Fact]) -> None:
    slot, _ = walk(*facts)
    drains = [fact.on for fact in facts if isinstance(fact, Draining)]
    owners = [fact.owner for fact in facts if isinstance(fact, Judged)]
    assert (slot.state is State.DRAINED) == bool(drains and drains[-1])
    if slot.state in (State.OWNER, State.UNCLAIMED):
        assert (slot.state is State.OWNER) == bool(owners and owners[-1])


def test_every_fact_has_a_rule_everywhere() -> None:
    assert set(RULES) == {(state, fact) for state in State for fact in FACTS}


ROW = re.compile(r"^\| o(\d+) \| ([^|]+) \| ([^|]+) \|")


def test_the_page_lists_the_table() -> None:
    page = Path(__file__).parents[2] / "docs" / "claim-life.md"
    rows = [match for line in page.read_text().splitlines() if (match := ROW.match(line))]
    told = [(int(row[1]), {word.strip() for word in row[2].split(",")}, row[3].strip()) for row in rows]
    table = [(n, {s.value for s in states}, fact.__name__) for n, (states, fact, _) in enumerate(NUMBERED, start=1)]
    assert told == table
