"""When a pilot takes no more jobs, and when it ends by itself. Pure: limits and facts in, a decision out.

A batch slot ends at a time that its batch system sets. A glidein script tells the startd when to take no new job
(GLIDEIN_ToRetire) and when to begin to end (GLIDEIN_ToDie), and leaves the time between ToDie and the batch system's
own limit for an orderly end (SHUTDOWN_GRACEFUL_TIMEOUT). The rules are docs/pilot-life.md's; the first that holds
decides.
"""

from __future__ import annotations

import math
from enum import Enum

import attrs
from classad2 import ClassAd, Value

from cedar.classads import evaluate

# A pilot with nothing to do looks again this often at the latest; claims and signals wake it at once.
LOOK_EVERY_S = 5.0


class Wish(Enum):
    """What is to be done now."""

    GO_ON = "go on"
    RETIRE = "retire"
    END_GRACEFULLY = "end gracefully"
    END_FAST = "end fast"


@attrs.frozen
class Limits:
    """From the settings. Times as in time.time(); None or 0 is no limit."""

    retire_at: float | None = None
    die_at: float | None = None
    noclaim_s: float = 0.0
    credential_margin_s: float = 0.0


@attrs.frozen
class Facts:
    """As it is now.

    claims: how many there are. idle_s: how long there has been none. credential_ends_at: end of the pilot's proxy or
    token, whichever is first; None if neither ends. shutdown, shutdown_fast: DAEMON_SHUTDOWN and DAEMON_SHUTDOWN_FAST.
    """

    now: float
    claims: int
    idle_s: float
    credential_ends_at: float | None = None
    shutdown: bool = False
    shutdown_fast: bool = False


@attrs.frozen
class Decision:
    """``reason`` is for log, ad and report; empty for GO_ON. ``for_all``: a master that started us is to end, too."""

    wish: Wish
    reason: str = ""
    for_all: bool = False


GO_ON = Decision(Wish.GO_ON)


def decide(limits: Limits, facts: Facts) -> Decision:
    """The first rule that holds."""
    return next((decision for decision in map(lambda rule: rule(limits, facts), RULES) if decision), GO_ON)


def _shutdown_fast(_limits: Limits, facts: Facts) -> Decision | None:
    return Decision(Wish.END_FAST, "DAEMON_SHUTDOWN_FAST is true") if facts.shutdown_fast else None


def _die(limits: Limits, facts: Facts) -> Decision | None:
    if not limits.die_at or facts.now < limits.die_at:
        return None
    return Decision(Wish.END_GRACEFULLY, "the time of GLIDEIN_ToDie has come")


def _shutdown(_limits: Limits, facts: Facts) -> Decision | None:
    return Decision(Wish.END_GRACEFULLY, "DAEMON_SHUTDOWN is true") if facts.shutdown else None


def _credential(limits: Limits, facts: Facts) -> Decision | None:
    """Afterwards the site would let us do nothing for any job, or the pool would not hear us."""
    if facts.credential_ends_at is None or facts.now < facts.credential_ends_at - limits.credential_margin_s:
        return None
    return Decision(Wish.END_GRACEFULLY, "the pilot's own proxy or token ends")


def _noclaim(limits: Limits, facts: Facts) -> Decision | None:
    if not limits.noclaim_s or facts.claims or facts.idle_s < limits.noclaim_s:
        return None
    reason = f"nothing was claimed for {limits.noclaim_s:.0f} s (STARTD_NOCLAIM_SHUTDOWN)"
    return Decision(Wish.END_GRACEFULLY, reason, for_all=True)


def _retire(limits: Limits, facts: Facts) -> Decision | None:
    if not limits.retire_at or facts.now < limits.retire_at:
        return None
    reason = "the time of GLIDEIN_ToRetire has come"
    return Decision(Wish.RETIRE if facts.claims else Wish.END_GRACEFULLY, reason)


# In the order of docs/pilot-life.md.
RULES = (_shutdown_fast, _die, _shutdown, _credential, _noclaim, _retire)


def retirement_s(slot: ClassAd, job: ClassAd | None) -> float:
    """How long a job that has to go may still run: the slot's MaxJobRetirementTime, less if the job asks for less.

    HTCondor counts from the job's start; seconds that it has run already are the caller's to take off. Undefined, wrong
    and negative values are 0.
    """
    most_s = _seconds(evaluate(slot, "MaxJobRetirementTime", job))
    if job is None or "MaxJobRetirementTime" not in job:
        return most_s
    return min(most_s, _seconds(evaluate(job, "MaxJobRetirementTime", slot)))


def _seconds(value: object) -> float:
    if isinstance(value, bool | Value) or not isinstance(value, int | float) or math.isnan(value):
        return 0.0
    return max(0.0, float(value))
