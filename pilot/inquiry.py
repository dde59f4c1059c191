"""One call of the switch that a user's standing stands behind: tried, tried again, held against the pilot's own.

What follows from which answer is decided by `pilot.standing`; here calls are made and answers noted.
"""

from __future__ import annotations

import math
import os
import random
import shutil
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import trio
from attrs import frozen

from pilot import standing
from pilot.calls import Call, CannotCall, Running
from pilot.ledger import Ledger
from pilot.outcomes import Broken, Denied, Exited, Misused, Outcome, Signalled, Unavailable
from pilot.standing import Rules, Standing
from pilot.switch import Switch

# A command that exists everywhere; resolved, since glexec refuses a symbolic link.
TRUE = os.path.realpath(shutil.which("true") or "/bin/true")
PROBE_ID = "sailplane-probe"
# A call that has not answered in time gets so long to end.
_END_GRACE_S = 1.0
_Far = TypeVar("_Far")


@frozen
class Patience:
    """How much a call is worth waiting for.

    `seconds` from its first trouble. `waits`: of a job that has started, see `pilot.standing.Wish`. `once`: made once
    or, where the credential is in doubt, not at all now; for callers that nothing depends on, or who come again.
    """

    ledger: Ledger
    seconds: float
    waits: bool = False
    once: bool = False


@frozen
class Whose:
    """The credential of a call: its key in the standing, and its identity for people."""

    key: str
    identity: str


async def inquire(
    attempt: Callable[[], Awaitable[_Far | Outcome]],
    ask_pilot: Callable[[], Awaitable[Outcome]],
    whose: Whose,
    rules: Rules,
    patience: Patience,
    *,
    dice: Callable[[], float] = random.random,
) -> _Far | Outcome:
    """What `attempt` gave when it passed, or an outcome that is final: `Denied` means the credential is refused.

    Cancelling leaves what was noted.
    """
    ledger = patience.ledger
    begun_s = ledger.clock()
    wish = standing.Wish(begun_s, math.inf if patience.once else begun_s + patience.seconds, patience.waits)
    while True:
        may = await ledger.change(partial(_turn, whose, wish, rules, dice()))
        if isinstance(may, standing.Stop):
            return Denied(may.text) if may.refused else Unavailable(may.text)
        if isinstance(may, standing.Wait):
            if patience.once:
                return Unavailable(f"not tried now: {may.why}")
            await trio.sleep(may.seconds)
            continue
        result = await attempt()
        if not isinstance(result, Exited | Signalled | Denied | Unavailable | Misused | Broken):
            await ledger.change(partial(_note_pass, whose))
            return result
        if isinstance(result, Misused):
            await ledger.change(partial(_note_misuse, whose, result))
            return result
        if await ledger.change(partial(_note_failure, whose, result, rules, dice())):
            await note_pilot(ledger, await ask_pilot(), dice())
        if patience.once:
            return result


def _turn(
    whose: Whose, wish: standing.Wish, rules: Rules, dice: float, now: Standing, now_s: float
) -> tuple[Standing, standing.Turn]:
    return standing.turn(now, whose.key, wish, rules, now_s=now_s, dice=dice)


def _note_pass(whose: Whose, now: Standing, now_s: float) -> tuple[Standing, None]:
    return standing.passed(now, whose.key, identity=whose.identity, now_s=now_s), None


def _note_misuse(whose: Whose, outcome: Misused, now: Standing, now_s: float) -> tuple[Standing, None]:
    return standing.set_aside(now, whose.key, identity=whose.identity, words=outcome.text, now_s=now_s), None


def _note_failure(
    whose: Whose, outcome: Outcome, rules: Rules, dice: float, now: Standing, now_s: float
) -> tuple[Standing, bool]:
    """The pilot is wanted, or not."""
    now = standing.failed(
        now, whose.key, identity=whose.identity, words=words_of(outcome), kind=kind_of(outcome), now_s=now_s,
        rules=rules, dice=dice,
    )  # fmt: skip
    return now, standing.needs_pilot(now, whose.key)


async def note_pilot(ledger: Ledger, outcome: Outcome, dice: float) -> None:
    """Count a call of the pilot's own, and note what became of it."""

    def note(now: Standing, now_s: float) -> tuple[Standing, None]:
        if outcome == Exited(0):
            return standing.pilot_passed(now, now_s=now_s), None
        if isinstance(outcome, Misused):
            return standing.pilot_unusable(now, now_s=now_s), None
        return standing.pilot_failed(now, words=words_of(outcome), now_s=now_s, dice=dice), None

    ledger.count(end_in_count(outcome))
    await ledger.change(note)


def end_in_count(outcome: Outcome) -> str:
    """How a call ended, as `pilot.ledger` counts it. A user's call that passed has no outcome yet."""
    if outcome == Exited(0):
        return "passed"
    return "misused" if isinstance(outcome, Misused) else kind_of(outcome)


def kind_of(outcome: Outcome) -> standing.Kind:
    match outcome:
        case Denied():
            return "denied"
        case Unavailable():
            return "unavailable"
        case _:
            return "broken"


def words_of(outcome: Outcome) -> str:
    """What a failed call said."""
    match outcome:
        case Denied(text) | Unavailable(text) | Misused(text) | Broken(text):
            return text or f"{type(outcome).__name__.lower()}, without a word"
        case Exited(status):
            return f"exit status {status}"
        case Signalled(number):
            return f"killed by signal {number}"


async def ask_pilot(switch: Switch, deadline_s: float, audit_id: str = PROBE_ID) -> Outcome:
    """One call on the pilot's own behalf; at most `deadline_s` and two seconds."""
    nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    try:
        running = await switch.start(Call((TRUE,), audit_id, None, stdin=nothing))
    except CannotCall as refusal:
        return refusal.outcome
    except OSError as error:
        return Unavailable(f"cannot start {switch.name}: {error.strerror}")
    finally:
        os.close(nothing)
    return await end_of(running, deadline_s)


async def end_of(running: Running, deadline_s: float) -> Outcome:
    """The end of a call whose far side says nothing; one that takes too long is killed."""
    try:
        with trio.move_on_after(deadline_s):
            return await running.wait()
        await running.end(_END_GRACE_S)
        return Unavailable(f"no answer within {deadline_s:g} s")
    finally:
        running.close()
