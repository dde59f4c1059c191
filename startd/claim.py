"""The life of one claim. Pure: events in, commands out; no I/O, no clock, no log.

A claim is made by REQUEST_CLAIM (its slot is carved then) and ends with its slot. ``startd.claims`` carries the
commands out. Requests may be refused, and then nothing has changed; facts have a rule in every state. The numbers stand
in docs/claim-life.md.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from enum import Enum

import attrs

from pilot.rulebook import STORY_LENGTH, Entry, rulebook
from startd.claimevents import (
    FACTS,
    Activate,
    ArmKill,
    ArmRetire,
    Cause,
    Command,
    Continue,
    ContinueJob,
    ContinueWanted,
    Deactivated,
    Destroy,
    EndJob,
    Event,
    HoldWish,
    How,
    KillStarter,
    KillTimer,
    KillWanted,
    LeaseOver,
    Released,
    Retire,
    RetireTimer,
    Shutdown,
    StarterGone,
    StarterNotStarted,
    StarterRuns,
    StartStarter,
    Suspend,
    SuspendJob,
    SuspendWanted,
    TellSchedd,
    Unretire,
)


class State(Enum):
    """Where a claim is."""

    IDLE = "idle"
    STARTING = "starting"
    BUSY = "busy"
    SUSPENDED = "suspended"
    RETIRING = "retiring"
    VACATING = "vacating"
    CLOSING = "closing"
    GONE = "gone"


class WrongState(Exception):
    """A request that this state refuses; nothing has changed. ``try_again``: the state passes by itself."""

    def __init__(self, text: str, *, try_again: bool) -> None:
        super().__init__(text)
        self.try_again = try_again


# Vacate codes of the wire reference (appendix A).
_CODE_DEACTIVATED, _CODE_RELEASED = 1009, 1017
# States with a starter, or with one on its way.
WITH_STARTER = frozenset({State.STARTING, State.BUSY, State.SUSPENDED, State.RETIRING, State.VACATING, State.CLOSING})


@attrs.define
class Claim:
    """State and memory of one claim. ``handle`` is the only way in."""

    state: State = State.IDLE
    broken: bool = False
    ours: bool = False
    """We end it, and its schedd has not been told."""
    serial: int = 0
    number: int = 0
    now_s: float = 0.0
    """When the present event came."""
    causes: frozenset[Cause] = frozenset()
    """What its job is retired for."""
    retired_for: tuple[str, int] = ("", 0)
    retire_due_s: float = math.inf
    by_command: bool = False
    """Suspended by the schedd, and not to be continued by policy."""
    ended: EndJob | None = None
    """What the starter was told last."""
    story: deque[Entry] = attrs.field(factory=lambda: deque(maxlen=STORY_LENGTH))

    def handle(self, event: Event, *, now_s: float) -> tuple[Command, ...]:
        """Apply the rule for (state, event).

        Raises:
            WrongState: a request that cannot be met now.
        """
        found = RULES.get((self.state, type(event)))
        if found is None:
            passing = self.state in (State.STARTING, State.BUSY, State.SUSPENDED, State.VACATING)
            raise WrongState(f"{type(event).__name__} while the claim is {self.state.value}", try_again=passing)
        self.number, rule = found
        self.now_s = now_s
        state, commands = rule(self, event)
        self.state = state
        self.story.append(Entry(now_s, type(event).__name__, self.number, state.value))
        return commands

    @property
    def shown(self) -> str:
        """The state, and whether a claim that we end is being killed."""
        killed = self.state is State.CLOSING and self.ended is not None and self.ended.how == "fast"
        return "killing" if killed else self.state.value

    def left_s(self, now_s: float) -> float:
        """What the job has left of the time that its retirement gives it."""
        retires = self.state is State.RETIRING or (self.state is State.SUSPENDED and self.causes)
        return max(0.0, self.retire_due_s - now_s) if retires else 0.0

    def takes_another(self, *, welcome: bool, age_s: float, worklife_s: float) -> bool:
        """Whether it takes a further job, or the same one again after its checkpoint. ``welcome``: the startd takes
        jobs; ``worklife_s``: CLAIM_WORKLIFE, which is never over below 0."""
        ends = self.state in (State.RETIRING, State.CLOSING, State.GONE) or bool(self.causes)
        return welcome and not ends and (worklife_s < 0 or age_s < worklife_s)

    def next_serial(self) -> int:
        """Timers armed before are stale from now on."""
        self.serial += 1
        return self.serial


Outcome = tuple[State, tuple[Command, ...]]
Rule = Callable[[Claim, Event], Outcome]


def _stay(claim: Claim, _event: Event) -> Outcome:
    return claim.state, ()


def _activate(_claim: Claim, event: Event) -> Outcome:
    assert isinstance(event, Activate)
    return State.STARTING, (StartStarter(event.ticket),)


def _runs(_claim: Claim, _event: Event) -> Outcome:
    return State.BUSY, ()


def _to_idle(claim: Claim, event: Event) -> Outcome:
    claim.next_serial()
    if isinstance(event, StarterGone) and event.broken:
        claim.broken = True
        return State.GONE, (TellSchedd(), Destroy(broken=True))
    return State.IDLE, ()


def _to_gone(claim: Claim, event: Event) -> Outcome:
    claim.broken = claim.broken or (isinstance(event, StarterGone) and event.broken)
    told = (TellSchedd(),) if claim.ours else ()
    return State.GONE, (*told, Destroy(claim.broken))


def _end_job(claim: Claim, how: How, reason: str, code: int, hold: HoldWish | None = None) -> tuple[Command, ...]:
    claim.ended = EndJob(how, reason, code, hold)
    return claim.ended, ArmKill(claim.next_serial(), how)


def _end_claim(claim: Claim, how: How, reason: str, code: int, hold: HoldWish | None = None) -> Outcome:
    """We end it, and say so once the job is over: a schedd that is told before takes the shadow away, and with it the
    job's last output."""
    claim.ours = True
    return State.CLOSING, _end_job(claim, how, reason, code, hold)


def _deactivate(claim: Claim, event: Event) -> Outcome:
    assert isinstance(event, Deactivated)
    over = event.worklife_over or bool(claim.causes) or claim.state is State.CLOSING
    state = State.CLOSING if over else State.VACATING
    return state, _end_job(claim, event.how, "the claim was deactivated by the submit side", _CODE_DEACTIVATED)


def _deactivate_idle(_claim: Claim, event: Event) -> Outcome:
    assert isinstance(event, Deactivated)
    if event.worklife_over:
        return State.GONE, (Destroy(broken=False),)
    return State.IDLE, ()


def _release_idle(_claim: Claim, _event: Event) -> Outcome:
    return State.GONE, (Destroy(broken=False),)


def _release(claim: Claim, _event: Event) -> Outcome:
    return State.CLOSING, _end_job(claim, "fast", "the claim was released by the submit side", _CODE_RELEASED)


def _lease_idle(_claim: Claim, _event: Event) -> Outcome:
    return State.GONE, (TellSchedd(), Destroy(broken=False))


def _lease(claim: Claim, event: Event) -> Outcome:
    assert isinstance(event, LeaseOver)
    return _end_claim(claim, "fast", event.text, _CODE_RELEASED)


def _shutdown_idle(_claim: Claim, _event: Event) -> Outcome:
    return State.GONE, (TellSchedd(), Destroy(broken=False))


def _shutdown(claim: Claim, event: Event) -> Outcome:
    assert isinstance(event, Shutdown)
    how: How = "fast" if event.fast else "graceful"
    return _end_claim(claim, how, event.reason, event.vacate_code)


def _shutdown_again(claim: Claim, event: Event) -> Outcome:
    assert isinstance(event, Shutdown)
    if not event.fast:
        return claim.state, ()
    return State.CLOSING, _end_job(claim, "fast", event.reason, event.vacate_code)


def _retire_idle(_claim: Claim, _event: Event) -> Outcome:
    return State.GONE, (TellSchedd(), Destroy(broken=False))


def _retire(claim: Claim, event: Event) -> Outcome:
    """Of several retirements the earliest end counts. A job that is suspended goes on: it is to get done."""
    assert isinstance(event, Retire)
    claim.causes |= {event.cause}
    resumed = (ContinueJob(),) if claim.state is State.SUSPENDED else ()
    claim.by_command = False
    due_s = claim.now_s + event.limit_s
    if due_s > claim.retire_due_s:
        return State.RETIRING, resumed
    claim.retired_for, claim.retire_due_s = (event.reason, event.vacate_code), due_s
    return State.RETIRING, (*resumed, ArmRetire(claim.next_serial(), event.limit_s))


def _retire_vacating(claim: Claim, _event: Event) -> Outcome:
    """Its job ends already; the timer that was armed for that stays."""
    claim.ours = True
    return State.CLOSING, ()


def _retired(claim: Claim, event: Event) -> Outcome:
    """The job has ended by itself."""
    claim.broken = isinstance(event, StarterGone) and event.broken
    return State.GONE, (TellSchedd(), Destroy(claim.broken))


def _retirement_over(claim: Claim, event: Event) -> Outcome:
    assert isinstance(event, RetireTimer)
    if event.serial != claim.serial:
        return claim.state, ()
    reason, code = claim.retired_for
    return _end_claim(claim, event.ending.how, reason, code, event.ending.hold)


def _unretire(claim: Claim, event: Event) -> Outcome:
    """Nothing else may be left that it is retired for."""
    assert isinstance(event, Unretire)
    claim.causes -= {event.cause}
    if claim.causes:
        return claim.state, ()
    claim.retire_due_s = math.inf
    claim.next_serial()
    return State.SUSPENDED if claim.state is State.SUSPENDED else State.BUSY, ()


def _kill(claim: Claim, event: Event) -> Outcome:
    """The gentle way took too long: first the hard way, then the starter itself."""
    assert isinstance(event, KillTimer)
    if event.serial != claim.serial:
        return claim.state, ()
    return claim.state, (KillStarter(),)


def _kill_wanted(claim: Claim, _event: Event) -> Outcome:
    """A job that we end softly is ended at once; what the submit side ends is not policy's."""
    ended = claim.ended
    if not claim.ours or ended is None or ended.how == "fast":
        return claim.state, ()
    return State.CLOSING, _end_job(claim, "fast", ended.reason, ended.vacate_code, ended.hold)


def _suspend(claim: Claim, event: Event) -> Outcome:
    claim.by_command = isinstance(event, Suspend)
    return State.SUSPENDED, (SuspendJob(),)


def _suspend_more(claim: Claim, _event: Event) -> Outcome:
    """The schedd wants what policy has done already."""
    claim.by_command = True
    return State.SUSPENDED, ()


def _continue(claim: Claim, event: Event) -> Outcome:
    """The schedd ends what the schedd began, and policy what policy began."""
    if claim.by_command is not isinstance(event, Continue):
        return State.SUSPENDED, ()
    claim.by_command = False
    return State.RETIRING if claim.causes else State.BUSY, (ContinueJob(),)


def _suspended_ended(claim: Claim, event: Event) -> Outcome:
    return _retired(claim, event) if claim.causes else _to_idle(claim, event)


S = State
_RUNS = (S.BUSY, S.RETIRING)
_WORKS = (S.STARTING, S.BUSY, S.SUSPENDED, S.RETIRING)
_STARTER_ENDED = (StarterGone, StarterNotStarted)

# The numbered rules, in the order of docs/claim-life.md.
NUMBERED: tuple[tuple[tuple[State, ...], tuple[type, ...], Rule], ...] = (
    ((S.IDLE,), (Activate,), _activate),  # 1
    ((S.STARTING,), (StarterRuns,), _runs),  # 2
    ((S.STARTING, S.BUSY, S.VACATING), _STARTER_ENDED, _to_idle),  # 3
    ((S.CLOSING,), _STARTER_ENDED, _to_gone),  # 4
    ((*_WORKS, S.VACATING, S.CLOSING), (Deactivated,), _deactivate),  # 5
    ((S.IDLE,), (Deactivated,), _deactivate_idle),  # 6
    ((S.IDLE,), (Released,), _release_idle),  # 7
    ((*_WORKS, S.VACATING, S.CLOSING), (Released,), _release),  # 8
    ((S.IDLE,), (LeaseOver,), _lease_idle),  # 9
    ((*_WORKS, S.VACATING), (LeaseOver,), _lease),  # 10
    ((S.IDLE,), (Shutdown,), _shutdown_idle),  # 11
    ((*_WORKS, S.VACATING), (Shutdown,), _shutdown),  # 12
    ((S.CLOSING,), (Shutdown,), _shutdown_again),  # 13
    ((S.VACATING, S.CLOSING), (KillTimer,), _kill),  # 14
    (_RUNS, (Suspend, SuspendWanted), _suspend),  # 15
    ((S.SUSPENDED,), (Continue, ContinueWanted), _continue),  # 16
    ((S.IDLE,), (Retire,), _retire_idle),  # 17
    (_WORKS, (Retire,), _retire),  # 18
    ((S.VACATING,), (Retire,), _retire_vacating),  # 19
    ((S.RETIRING,), _STARTER_ENDED, _retired),  # 20
    ((S.RETIRING, S.SUSPENDED), (RetireTimer,), _retirement_over),  # 21
    ((S.RETIRING, S.SUSPENDED), (Unretire,), _unretire),  # 22
    ((S.SUSPENDED,), (Suspend,), _suspend_more),  # 23
    ((S.SUSPENDED,), _STARTER_ENDED, _suspended_ended),  # 24
    ((S.CLOSING,), (KillWanted,), _kill_wanted),  # 25
)

RULES = rulebook(State, FACTS, _stay, NUMBERED)
