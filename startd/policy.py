"""What the node's policy expressions want: ads in, a wish out. Pure; HTCondor's names, defaults and order.

An expression is evaluated with the slot's ad as MY and the job's, if there is one, as TARGET. What is neither true nor
false (undefined, an error, a string) is no wish: it counts as the expression's harmless value, and is told in the log.
The order of the questions stands in docs/policy.md, which a test compares with ``QUESTIONS``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import Enum

import attrs
from classad2 import ClassAd, ExprTree, Value

from cedar.classads import evaluate
from startd.claim import State
from startd.claimevents import Ending, HoldWish, How

# What may stand in a hold reason; it goes into logs and ads.
MAX_HOLD_REASON = 1000
# HTCondor looks for these with the universe's suffix first; all that runs here is vanilla.
_BY_UNIVERSE = frozenset({"SUSPEND", "CONTINUE", "PREEMPT", "KILL", "WANT_SUSPEND", "WANT_VACATE"})


class Wish(Enum):
    """What is to be done with a claim now."""

    NOTHING = "nothing"
    PREEMPT = "preempt"
    SUSPEND = "suspend"
    CONTINUE = "continue"
    KILL = "kill"
    END_OWNER = "IS_OWNER is true"
    END_OLD = "CLAIM_WORKLIFE is over"


@attrs.frozen
class Policy:
    """The expressions of the settings, by name; a name with ``_VANILLA`` wins over the one without."""

    expressions: Mapping[str, str]

    @property
    def watches_jobs(self) -> bool:
        """Whether anything could ever be wanted of a running job: most pilots leave the defaults alone."""
        wanting = ("SUSPEND", "PREEMPT", "KILL")
        return any(self._text(name).lower() != "false" for base in wanting for name in (base, f"{base}_VANILLA"))

    @property
    def watches_owner(self) -> bool:
        """Whether IS_OWNER could ever be true."""
        return self._text("IS_OWNER").lower() != "false"

    def _text(self, name: str) -> str:
        return self.expressions.get(name, "").strip() or "false"

    def asked(self, slot: ClassAd, job: ClassAd | None) -> Asked:
        """Ready to be asked about this slot and job; ``slot`` is ours to change."""
        slot["CurrentTime"] = ExprTree("time()")
        for name, text in self.expressions.items():
            if text:
                slot[name] = ExprTree(text)
        return Asked(slot, job)


@attrs.frozen
class Asked:
    """A slot's ad with the policy in it, and its job's."""

    slot: ClassAd
    job: ClassAd | None
    unclear: dict[str, str] = attrs.field(factory=dict)
    """What was asked for and is neither true nor false, and what it is."""

    def truth(self, name: str) -> bool | None:
        """True, False, or None for anything else. Numbers count as in HTCondor: 0 is false."""
        found = self._value(f"{name}_VANILLA") if name in _BY_UNIVERSE else None
        return self._value(name) if found is None else found

    def _value(self, name: str) -> bool | None:
        if name not in self.slot:
            return None
        value = evaluate(self.slot, name, self.job)
        if truth(value) is None:
            self.unclear[name] = words(value)
        return truth(value)


def truth(value: object) -> bool | None:
    """A ClassAd's value as true, false or neither."""
    if isinstance(value, Value) or not isinstance(value, bool | int | float):
        return None
    return bool(value)


def words(value: object) -> str:
    """A value that is neither true nor false, for the log."""
    if isinstance(value, Value):
        return "undefined" if value == Value.Undefined else "an error"
    return "neither true nor false"


@attrs.frozen
class Facts:
    """A claim as it is now. ``preempted``: PREEMPT was true for its job. ``killing``: its job is being ended fast."""

    state: State
    preempted: bool = False
    by_command: bool = False
    ours: bool = False
    killing: bool = False
    worklife_over: bool = False


def decide(asked: Asked, facts: Facts) -> Wish:
    """The first question that is answered with yes."""
    for states, question, wish in QUESTIONS:
        if facts.state in states and question(asked, facts):
            return wish
    return Wish.NOTHING


def _preempt(asked: Asked, facts: Facts) -> bool:
    """Not while a suspension would do (WANT_SUSPEND), and only once."""
    suspendable = facts.state is not State.SUSPENDED and asked.truth("WANT_SUSPEND") is True
    return not facts.preempted and not suspendable and asked.truth("PREEMPT") is True


def _suspend(asked: Asked, _facts: Facts) -> bool:
    return asked.truth("WANT_SUSPEND") is True and asked.truth("SUSPEND") is True


def _continue(asked: Asked, facts: Facts) -> bool:
    return not facts.by_command and asked.truth("CONTINUE") is True


def _kill(asked: Asked, facts: Facts) -> bool:
    return facts.ours and not facts.killing and asked.truth("KILL") is True


def _owner(asked: Asked, _facts: Facts) -> bool:
    return asked.truth("IS_OWNER") is True


def _old(_asked: Asked, facts: Facts) -> bool:
    return facts.worklife_over


# In the order of docs/policy.md.
QUESTIONS = (
    (frozenset({State.BUSY, State.RETIRING, State.SUSPENDED}), _preempt, Wish.PREEMPT),
    (frozenset({State.BUSY, State.RETIRING}), _suspend, Wish.SUSPEND),
    (frozenset({State.SUSPENDED}), _continue, Wish.CONTINUE),
    (frozenset({State.CLOSING}), _kill, Wish.KILL),
    (frozenset({State.IDLE}), _owner, Wish.END_OWNER),
    (frozenset({State.IDLE}), _old, Wish.END_OLD),
)


def ending(asked: Asked, *, preempted: bool) -> Ending:
    """How a job goes whose retirement time is over: only PREEMPT lets WANT_VACATE and WANT_HOLD have a say."""
    if not preempted and asked.truth("PREEMPT") is not True:
        return Ending()
    how: How = "fast" if asked.truth("WANT_VACATE") is False else "graceful"
    return Ending(how, _hold(asked) if asked.truth("WANT_HOLD") is True else None)


def _hold(asked: Asked) -> HoldWish:
    reason = evaluate(asked.slot, "WANT_HOLD_REASON", asked.job)
    subcode = evaluate(asked.slot, "WANT_HOLD_SUBCODE", asked.job)
    if not isinstance(reason, str) or not reason:
        where, why = evaluate(asked.slot, "Name"), asked.slot["WANT_HOLD"]
        reason = f"The policy of {where} put the job on hold: WANT_HOLD = {why}"
    printable = "".join(c if c.isprintable() else " " for c in reason)[:MAX_HOLD_REASON]
    number = isinstance(subcode, int | float) and not isinstance(subcode, Value) and math.isfinite(subcode)
    # Subcodes from -1000 down would make a shadow put the job back to idle.
    return HoldWish(max(-999, min(int(subcode), 2**31 - 1)) if number else 0, printable)


def refusal(slot: ClassAd, job: ClassAd) -> str:
    """Why slot and job do not match, in words for the log; empty if they do."""
    said = _half(slot, job, "Start", "slot")
    return said or _half(slot, job, "Requirements", "slot") or _half(job, slot, "Requirements", "job")


def _half(ad: ClassAd, other: ClassAd, name: str, whose: str) -> str:
    value = evaluate(ad, name, other)
    answer = truth(value)
    if answer:
        return ""
    return f"{name} of the {whose} is {'false' if answer is False else words(value)}"


def rank(slot: ClassAd, job: ClassAd) -> float:
    """RANK of a job on this slot; 0 where it gives no number."""
    value = evaluate(slot, "Rank", job)
    if isinstance(value, Value) or not isinstance(value, bool | int | float) or value != value:
        return 0.0
    return float(value)
