"""The life of one claim. Pure: events in, commands out; no I/O, no clock, no log.

A claim is made by REQUEST_CLAIM (its slot is carved then) and ends with its slot. ``startd.claims`` carries the
commands out. Requests may be refused, and then nothing has changed; facts have a rule in every state. The numbers stand
in docs/claim-life.md.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import Literal

import attrs

STORY_LENGTH = 64


class State(Enum):
    """Where a claim is."""

    IDLE = "idle"
    STARTING = "starting"
    BUSY = "busy"
    RETIRING = "retiring"
    VACATING = "vacating"
    CLOSING = "closing"
    GONE = "gone"


How = Literal["graceful", "fast", "final-transfer"]


# --- requests: may be refused ------------------------------------------------------------------------------------


@attrs.frozen
class Activate:
    """The shadow wants a starter. ``ticket``: our number for it."""

    ticket: int


@attrs.frozen
class Suspend:
    """The schedd wants the job stopped for a while."""


@attrs.frozen
class Continue:
    """The end of a suspension."""


# --- facts: have a rule in every state ---------------------------------------------------------------------------


@attrs.frozen
class StarterRuns:
    """The spawner forked the starter."""

    pid: int


@attrs.frozen
class StarterNotStarted:
    """The spawner could not fork, or is gone."""

    text: str


@attrs.frozen
class StarterGone:
    """The starter was reaped. ``broken``: it left something that makes the slot unusable."""

    wait_status: int
    broken: bool


@attrs.frozen
class Deactivated:
    """403, 404 or 561: the shadow wants the job ended; the claim stays unless ``worklife_over``."""

    how: How
    worklife_over: bool


@attrs.frozen
class Released:
    """The schedd gave the claim back."""


@attrs.frozen
class LeaseOver:
    """Nothing was heard of the schedd for a whole lease, or it says that it does not know the claim."""

    text: str


@attrs.frozen
class Shutdown:
    """The claim has to go at once: gracefully or fast."""

    fast: bool
    reason: str = "the pilot shuts down"
    vacate_code: int = 1013


@attrs.frozen
class Retire:
    """The claim takes no further job; the present one may go on for ``limit_s`` (MaxJobRetirementTime)."""

    limit_s: float
    reason: str
    vacate_code: int


@attrs.frozen
class RetireTimer:
    """The time given to the job with ``serial`` is over."""

    serial: int


@attrs.frozen
class Unretire:
    """What the claim was retired for is called off."""


@attrs.frozen
class KillTimer:
    """The time given to the starter with ``serial`` is over."""

    serial: int


Event = (
    Activate | Suspend | Continue | StarterRuns | StarterNotStarted | StarterGone | Deactivated | Released
    | LeaseOver | Shutdown | Retire | RetireTimer | Unretire | KillTimer
)  # fmt: skip
REQUESTS: tuple[type, ...] = (Activate, Suspend, Continue)
FACTS: tuple[type, ...] = (
    StarterRuns, StarterNotStarted, StarterGone, Deactivated, Released, LeaseOver, Shutdown, Retire, RetireTimer,
    Unretire, KillTimer,
)  # fmt: skip


# --- commands ----------------------------------------------------------------------------------------------------


@attrs.frozen
class StartStarter:
    """Ask the spawner for a starter."""

    ticket: int


@attrs.frozen
class EndJob:
    """Tell the starter to end the job."""

    how: How
    reason: str
    vacate_code: int


@attrs.frozen
class SuspendJob:
    """Tell the starter."""


@attrs.frozen
class ContinueJob:
    """Tell the starter."""


@attrs.frozen
class ArmKill:
    """Report KillTimer(serial) when the time for this way of ending is over."""

    serial: int
    how: How


@attrs.frozen
class ArmRetire:
    """Report RetireTimer(serial) in ``limit_s`` seconds."""

    serial: int
    limit_s: float


@attrs.frozen
class KillStarter:
    """SIGKILL to the starter; procd stops its family."""


@attrs.frozen
class TellSchedd:
    """RELEASE_CLAIM to the schedd: we end the claim, and nobody has told it so (wire reference T39)."""


@attrs.frozen
class Destroy:
    """The claim is over: give the slot back. ``broken``: withhold its resources."""

    broken: bool


Command = StartStarter | EndJob | SuspendJob | ContinueJob | ArmKill | ArmRetire | KillStarter | TellSchedd | Destroy


class WrongState(Exception):
    """A request that this state refuses; nothing has changed. ``try_again``: the state passes by itself."""

    def __init__(self, text: str, *, try_again: bool) -> None:
        super().__init__(text)
        self.try_again = try_again


@attrs.frozen
class Entry:
    """One line of the story."""

    now_s: float
    event: str
    number: int
    state: str


# Vacate codes of the wire reference (appendix A).
_CODE_DEACTIVATED, _CODE_RELEASED = 1009, 1017
# States with a starter, or with one on its way.
WITH_STARTER = frozenset({State.STARTING, State.BUSY, State.RETIRING, State.VACATING, State.CLOSING})


@attrs.define
class Claim:
    """State and memory of one claim. ``handle`` is the only way in."""

    state: State = State.IDLE
    broken: bool = False
    ours: bool = False
    """We end it, and its schedd has not been told."""
    serial: int = 0
    number: int = 0
    retired_for: tuple[str, int] = ("", 0)
    story: deque[Entry] = attrs.field(factory=lambda: deque(maxlen=STORY_LENGTH))

    def handle(self, event: Event, *, now_s: float) -> tuple[Command, ...]:
        """Apply the rule for (state, event).

        Raises:
            WrongState: a request that cannot be met now.
        """
        found = RULES.get((self.state, type(event)))
        if found is None:
            passing = self.state in (State.STARTING, State.BUSY, State.VACATING)
            raise WrongState(f"{type(event).__name__} while the claim is {self.state.value}", try_again=passing)
        self.number, rule = found
        state, commands = rule(self, event)
        self.state = state
        self.story.append(Entry(now_s, type(event).__name__, self.number, state.value))
        return commands

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


def _end_job(claim: Claim, how: How, reason: str, code: int) -> tuple[Command, ...]:
    return EndJob(how, reason, code), ArmKill(claim.next_serial(), how)


def _end_claim(claim: Claim, how: How, reason: str, code: int) -> Outcome:
    """We end it, and say so once the job is over: a schedd that is told before takes the shadow away, and with it the
    job's last output."""
    claim.ours = True
    return State.CLOSING, _end_job(claim, how, reason, code)


def _deactivate(claim: Claim, event: Event) -> Outcome:
    assert isinstance(event, Deactivated)
    over = event.worklife_over or claim.state in (State.RETIRING, State.CLOSING)
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
    assert isinstance(event, Retire)
    claim.retired_for = event.reason, event.vacate_code
    return State.RETIRING, (ArmRetire(claim.next_serial(), event.limit_s),)


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
    return _end_claim(claim, "graceful", reason, code)


def _unretire(claim: Claim, _event: Event) -> Outcome:
    claim.next_serial()
    return State.BUSY, ()


def _kill(claim: Claim, event: Event) -> Outcome:
    """The gentle way took too long: first the hard way, then the starter itself."""
    assert isinstance(event, KillTimer)
    if event.serial != claim.serial:
        return claim.state, ()
    return claim.state, (KillStarter(),)


def _suspend(claim: Claim, _event: Event) -> Outcome:
    return claim.state, (SuspendJob(),)


def _continue(claim: Claim, _event: Event) -> Outcome:
    return claim.state, (ContinueJob(),)


S = State
_GOES_ON = (S.STARTING, S.BUSY, S.VACATING)
_STARTER_ENDED = (StarterGone, StarterNotStarted)

# The numbered rules, in the order of docs/claim-life.md.
NUMBERED: tuple[tuple[tuple[State, ...], tuple[type, ...], Rule], ...] = (
    ((S.IDLE,), (Activate,), _activate),  # 1
    ((S.STARTING,), (StarterRuns,), _runs),  # 2
    (_GOES_ON, _STARTER_ENDED, _to_idle),  # 3
    ((S.CLOSING,), _STARTER_ENDED, _to_gone),  # 4
    ((*_GOES_ON, S.RETIRING, S.CLOSING), (Deactivated,), _deactivate),  # 5
    ((S.IDLE,), (Deactivated,), _deactivate_idle),  # 6
    ((S.IDLE,), (Released,), _release_idle),  # 7
    ((*_GOES_ON, S.RETIRING, S.CLOSING), (Released,), _release),  # 8
    ((S.IDLE,), (LeaseOver,), _lease_idle),  # 9
    ((*_GOES_ON, S.RETIRING), (LeaseOver,), _lease),  # 10
    ((S.IDLE,), (Shutdown,), _shutdown_idle),  # 11
    ((*_GOES_ON, S.RETIRING), (Shutdown,), _shutdown),  # 12
    ((S.CLOSING,), (Shutdown,), _shutdown_again),  # 13
    ((S.VACATING, S.CLOSING), (KillTimer,), _kill),  # 14
    ((S.BUSY, S.RETIRING), (Suspend,), _suspend),  # 15
    ((S.BUSY, S.RETIRING), (Continue,), _continue),  # 16
    ((S.IDLE,), (Retire,), _retire_idle),  # 17
    ((S.STARTING, S.BUSY, S.RETIRING), (Retire,), _retire),  # 18
    ((S.VACATING,), (Retire,), _retire_vacating),  # 19
    ((S.RETIRING,), _STARTER_ENDED, _retired),  # 20
    ((S.RETIRING,), (RetireTimer,), _retirement_over),  # 21
    ((S.RETIRING,), (Unretire,), _unretire),  # 22
)


def _rules() -> dict[tuple[State, type], tuple[int, Rule]]:
    """The numbered rules by (state, event); a fact without one changes nothing there (rule 0)."""
    table: dict[tuple[State, type], tuple[int, Rule]] = {(state, fact): (0, _stay) for state in State for fact in FACTS}
    for number, (states, events, rule) in enumerate(NUMBERED, start=1):
        table.update({(state, event): (number, rule) for state in states for event in events})
    return table


RULES = _rules()
