"""Draining: what an administrator asked for, how far it is, and what follows. Pure (execute-side reference 3.6)."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum, IntEnum

import attrs
from classad2 import ClassAd

from cedar.classads import get_int, get_str
from startd.claimevents import Cause, Event, Retire, Shutdown

# Vacate codes of the wire reference (appendix A).
CODE_VACATED, CODE_DRAINING = 1010, 1014
# What an administrator may write as a reason, in a log line and an ad.
MAX_REASON = 200
# What an administrator may write as a START for fillers: it stands in the ad of every slot, in every update.
MAX_START = 4096
# HTCondor's startd takes no claim any more when a drain has less time left than this.
LEAST_LEFT_S = 20.0


class HowFast(IntEnum):
    """How jobs are ended: with their retirement time, with their vacate time alone, or at once."""

    GRACEFUL = 0
    QUICK = 10
    FAST = 20


class Then(IntEnum):
    """What follows when no job is left."""

    NOTHING = 0
    RESUME = 1
    EXIT = 2
    RESTART = 3
    RECONFIGURE = 4


class Refusal(Enum):
    """HTCondor's error codes of a drain request."""

    INVALID = 1
    ALREADY_DRAINING = 2
    NO_SUCH_REQUEST = 3
    CHECK_FAILED = 4


class CannotDrain(Exception):
    """A request that changes nothing; ``refusal`` for the answer's ErrorCode."""

    def __init__(self, refusal: Refusal, text: str) -> None:
        super().__init__(text)
        self.refusal = refusal


@attrs.frozen
class Drain:
    """One request that is being carried out."""

    request_id: str
    how_fast: HowFast
    then: Then
    reason: str
    check: str = ""
    """An expression that must hold for every slot before anything is done; empty: none."""
    start: str = ""
    """Stands in the place of START while jobs from before the drain go on; empty: no job is taken."""


def parse(ad: ClassAd, request_id: str, default_start: str = "") -> Drain:
    """The request of DRAIN_JOBS (wire reference 3.9). ``default_start``: the knob DEFAULT_DRAINING_START_EXPR.

    Raises:
        CannotDrain: a number that stands for nothing, or a START that is too long for every slot's ad.
    """
    try:
        how_fast = HowFast(get_int(ad, "HowFast", int(HowFast.GRACEFUL)))
        then = Then(get_int(ad, "ResumeOnCompletion", int(Then.NOTHING)))
    except ValueError as fault:
        raise CannotDrain(Refusal.INVALID, f"the drain request has a value that is not known: {fault}") from None
    reason = "".join(c if c.isprintable() else "?" for c in get_str(ad, "DrainReason", "")[:MAX_REASON])
    return Drain(
        request_id,
        how_fast,
        then,
        reason or "by administrator",
        _text(ad, "CheckExpr"),
        _start(ad, how_fast, default_start),
    )


def _start(ad: ClassAd, how_fast: HowFast, default: str) -> str:
    """Only a graceful drain leaves a time to fill; as HTCondor does, others leave the expression alone (condor_defrag
    sends it with every schedule)."""
    text = _text(ad, "StartExpr") if "StartExpr" in ad else default
    if len(text) > MAX_START:
        raise CannotDrain(
            Refusal.INVALID, f"the START of the drain request has {len(text)} characters, {MAX_START} are allowed"
        )
    return text if how_fast is HowFast.GRACEFUL else ""


def _text(ad: ClassAd, name: str) -> str:
    return str(ad.lookup(name)) if name in ad else ""


def start_now(asked: Drain, left_s: Iterable[float]) -> str:
    """What a job has to fulfil that is taken now; empty where none is. ``left_s``: the retirement time that each job
    from before the drain has left."""
    return asked.start if max(left_s, default=0.0) >= LEAST_LEFT_S else ""


def event(how_fast: HowFast, reason: str, retirement_left_s: float, code: int = CODE_DRAINING) -> Event:
    """What each claim is told. ``retirement_left_s``: what its job may still have, if it is given that at all."""
    cause = Cause.DRAIN if code == CODE_DRAINING else Cause.ORDER
    match how_fast:
        case HowFast.GRACEFUL:
            return Retire(retirement_left_s, reason, code, cause)
        case HowFast.QUICK:
            return Retire(0.0, reason, code, cause)
        case HowFast.FAST:
            return Shutdown(fast=True, reason=reason, vacate_code=code)
