"""Rules of a life by (state, event), with the numbers of the page that tells them. Pure; which rules is its user's.

A request has a rule only where it can be met. A fact has one in every state: where none is written, it changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import TypeVar

import attrs

# A failure report shows the last events only, however long the life was.
STORY_LENGTH = 64

S = TypeVar("S", bound=Enum)
R = TypeVar("R")


@attrs.frozen
class Entry:
    """One line of the story: an event, the number of the rule that met it, and the state then."""

    now_s: float
    event: str
    number: int
    state: str


def rulebook(
    states: Iterable[S], facts: Iterable[type], stay: R, numbered: Iterable[tuple[tuple[S, ...], tuple[type, ...], R]]
) -> Mapping[tuple[S, type], tuple[int, R]]:
    """Number and rule by (state, event). ``numbered``: counted from 1; ``stay``: rule 0, for facts without another."""
    facts = tuple(facts)
    table: dict[tuple[S, type], tuple[int, R]] = {(state, fact): (0, stay) for state in states for fact in facts}
    for number, (where, events, rule) in enumerate(numbered, start=1):
        table.update({(state, event): (number, rule) for state in where for event in events})
    return table
