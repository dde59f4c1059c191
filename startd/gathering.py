"""Room that is made in a partitionable slot: claims of its dynamic slots end, and one larger claim has what they had.

The life of such a request. Pure: facts in, commands out. The numbers stand in docs/claim-life.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from enum import Enum

import attrs

from startd.resources import Amount, Resources, count


class State(Enum):
    """Of a request that wants claims ended for it."""

    GATHERING = "gathering"
    GRANTED = "granted"
    REFUSED = "refused"


@attrs.frozen
class Gone:
    """One of the claims that make room is gone, and its resources are the slot's. ``broken``: they are withheld."""

    name: str
    broken: bool


@attrs.frozen
class CalledOff:
    """The schedd has gone away, or no new claim is welcome any more."""


Fact = Gone | CalledOff


@attrs.frozen
class Keep:
    """What this claim had is kept for the request."""

    name: str


@attrs.frozen
class Grant:
    """All that is kept goes to a claim of the request's own."""


@attrs.frozen
class Refuse:
    """What was kept is the slot's again; those of ``spared`` that only retire go on."""

    spared: frozenset[str]


Command = Keep | Grant | Refuse


@attrs.define
class Gathering:
    """State and memory of one request; ``handle`` is the only way in. ``left``: the claims that are to go still."""

    left: frozenset[str]
    state: State = State.GATHERING
    number: int = 0

    def handle(self, fact: Fact) -> tuple[Command, ...]:
        """Apply the rule for (state, fact)."""
        self.number, rule = RULES[self.state, type(fact)]
        self.state, commands = rule(self, fact)
        return commands


Outcome = tuple[State, tuple[Command, ...]]
Rule = Callable[[Gathering, Fact], Outcome]


def _stay(gathering: Gathering, _fact: Fact) -> Outcome:
    return gathering.state, ()


def _gone(gathering: Gathering, fact: Fact) -> Outcome:
    assert isinstance(fact, Gone)
    gathering.left -= {fact.name}
    if fact.broken:
        return State.REFUSED, (Refuse(gathering.left),)
    if gathering.left:
        return State.GATHERING, (Keep(fact.name),)
    return State.GRANTED, (Keep(fact.name), Grant())


def _called_off(gathering: Gathering, _fact: Fact) -> Outcome:
    return State.REFUSED, (Refuse(gathering.left),)


# The numbered rules, in the order of docs/claim-life.md.
NUMBERED: tuple[tuple[State, type, Rule], ...] = (
    (State.GATHERING, Gone, _gone),  # g1
    (State.GATHERING, CalledOff, _called_off),  # g2
)
RULES: dict[tuple[State, type], tuple[int, Rule]] = {
    **{(state, fact): (0, _stay) for state in State for fact in (Gone, CalledOff)},
    **{(state, fact): (number, rule) for number, (state, fact, rule) in enumerate(NUMBERED, 1)},
}


def kept_from(free: Resources, wanted: Resources, coming: Resources) -> Resources:
    """What of ``free`` has to be kept for a request that is to have ``wanted``, where ``coming`` is on its way.

    ``free`` and ``coming`` together must hold ``wanted``.
    """
    return Resources(
        max(0, wanted.cpus - coming.cpus),
        max(0, wanted.memory_mb - coming.memory_mb),
        max(0, wanted.disk_kb - coming.disk_kb),
        {
            name: _kept(have, wanted.custom.get(name, 0), coming.custom.get(name, 0))
            for name, have in free.custom.items()
        },
    )


def _kept(free: Amount, wanted: Amount, coming: Amount) -> Amount:
    if isinstance(free, tuple) and isinstance(wanted, tuple):
        return tuple(sorted((Counter(wanted) & Counter(free)).elements()))
    return max(0, count(wanted) - count(coming))
