"""The life of a slot while nobody has it: Owner, Unclaimed, Matched, Drained. Pure: facts in, commands out.

A claim on it has a life of its own (``startd.claim``). The numbers stand in docs/claim-life.md.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

import attrs


class State(Enum):
    """As the slot's ad shows it."""

    OWNER = "Owner"
    UNCLAIMED = "Unclaimed"
    MATCHED = "Matched"
    DRAINED = "Drained"


@attrs.frozen
class Matched:
    """MATCH_INFO: the negotiator has given the slot to a schedd, which will come."""


@attrs.frozen
class MatchTimer:
    """MATCH_TIMEOUT is over for the match with ``serial``."""

    serial: int


@attrs.frozen
class ClaimMade:
    """The schedd has come: what it was given is a claim now."""


@attrs.frozen
class Judged:
    """IS_OWNER, as of now."""

    owner: bool


@attrs.frozen
class Draining:
    """Whether the slot is drained, or the startd ends."""

    on: bool


Fact = Matched | MatchTimer | ClaimMade | Judged | Draining
FACTS: tuple[type, ...] = (Matched, MatchTimer, ClaimMade, Judged, Draining)


@attrs.frozen
class ArmMatch:
    """Report MatchTimer(serial) after MATCH_TIMEOUT."""

    serial: int


@attrs.define
class OpenSlot:
    """State and memory of one slot; ``handle`` is the only way in."""

    state: State = State.UNCLAIMED
    owner: bool = False
    serial: int = 0
    number: int = 0

    def handle(self, fact: Fact) -> tuple[ArmMatch, ...]:
        """Apply the rule for (state, fact)."""
        self.number, rule = RULES[self.state, type(fact)]
        self.state, commands = rule(self, fact)
        return commands

    @property
    def free(self) -> State:
        """What it is when nothing else is the matter."""
        return State.OWNER if self.owner else State.UNCLAIMED


Outcome = tuple[State, tuple[ArmMatch, ...]]
Rule = Callable[[OpenSlot, Fact], Outcome]


def _stay(slot: OpenSlot, fact: Fact) -> Outcome:
    if isinstance(fact, Judged):
        slot.owner = fact.owner
    return slot.state, ()


def _matched(slot: OpenSlot, _fact: Fact) -> Outcome:
    slot.serial += 1
    return State.MATCHED, (ArmMatch(slot.serial),)


def _match_over(slot: OpenSlot, fact: Fact) -> Outcome:
    assert isinstance(fact, MatchTimer)
    return (slot.free if fact.serial == slot.serial else slot.state), ()


def _claimed(slot: OpenSlot, _fact: Fact) -> Outcome:
    return slot.free, ()


def _judged(slot: OpenSlot, fact: Fact) -> Outcome:
    assert isinstance(fact, Judged)
    slot.owner = fact.owner
    return slot.free, ()


def _draining(slot: OpenSlot, fact: Fact) -> Outcome:
    """A match is not kept: the claim would be refused."""
    assert isinstance(fact, Draining)
    return State.DRAINED if fact.on else slot.state, ()


def _drained(slot: OpenSlot, fact: Fact) -> Outcome:
    assert isinstance(fact, Draining)
    return State.DRAINED if fact.on else slot.free, ()


S = State
# The numbered rules, in the order of docs/claim-life.md.
NUMBERED: tuple[tuple[tuple[State, ...], type, Rule], ...] = (
    ((S.OWNER, S.UNCLAIMED), Judged, _judged),  # o1
    ((S.OWNER, S.UNCLAIMED), Matched, _matched),  # o2
    ((S.MATCHED,), MatchTimer, _match_over),  # o3
    ((S.MATCHED,), ClaimMade, _claimed),  # o4
    ((S.OWNER, S.UNCLAIMED, S.MATCHED), Draining, _draining),  # o5
    ((S.DRAINED,), Draining, _drained),  # o6
)
RULES: dict[tuple[State, type], tuple[int, Rule]] = {
    **{(state, fact): (0, _stay) for state in State for fact in FACTS},
    **{(state, fact): (number, rule) for number, (states, fact, rule) in enumerate(NUMBERED, 1) for state in states},
}
