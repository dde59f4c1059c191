"""One run of a job as the shadow sees it: the pure state machine.

Events in, commands out; no I/O and no clock of its own. Requests (a user's rm) may come in any state that
is not over; facts (a socket that closed, a timer) have a rule in every state. Each transition has a number,
used in the log.

Not here: what a syscall's bytes look like (`shadow`), and what the queue does with an outcome (`scheduler`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import Enum

from attrs import define, evolve, field, frozen

from pool.model import Outcome

# job_exit's reasons (wire reference 4.3).
JOB_EXITED, JOB_KILLED, JOB_CORED, SHOULD_REQUEUE, NOT_STARTED, SHOULD_HOLD, EXITED_CLAIM_CLOSING = (
    100,
    102,
    103,
    107,
    108,
    112,
    115,
)
# Waits before another ACTIVATE_CLAIM when the answer was "try again" (6.6).
RETRY_DELAYS_S = (1.0, 2.0, 3.0, 4.0, 5.0, 5.0)
# Between two tries to reconnect, twice as long each time (stock: 8 to 300 s).
FIRST_RECONNECT_S, LONGEST_RECONNECT_S = 1.0, 60.0
# From a hard stop (404) to giving the claim up: KILLING_TIMEOUT is 30 s, and the sandbox has to go.
HARD_PATIENCE_S = 60.0
STORY_LENGTH = 64
# The shadow replaces the failed action by the phase (4.5, T34).
FAILED_TO_RECEIVE, FAILED_TO_SEND = 12, 13
IN_INPUT, IN_OUTPUT = 13, 12
MAX_REASON = 1000


class State(Enum):
    ACTIVATING = "activating"
    STARTUP = "startup"
    EXECUTING = "executing"
    SUSPENDED = "suspended"
    RECONNECTING = "reconnecting"  # the job runs on, its starter is looked for
    EVICTING = "evicting"  # 403 sent, the job has its grace
    KILLING = "killing"  # 404 sent
    ENDING = "ending"  # the run's end is known, the claim has still to be asked
    OVER = "over"


# Events


@frozen
class ActivationAccepted:
    pass


@frozen
class ActivationTryAgain:
    pass


@frozen
class ActivationRefused:
    reason: str


@frozen
class ExecutionBegan:
    pass


@frozen
class Suspended:
    pass


@frozen
class Resumed:
    pass


@frozen
class ProblemReported:
    """A critical event 21: the starter says why the job cannot go on."""

    code: int
    subcode: int
    text: str


@frozen
class JobExited:
    status: int
    reason: int


@frozen
class OutputStored:
    """The final output transfer ended well on both sides."""


@frozen
class SocketLost:
    """`reconnects`: the starter waits for a shadow that comes back."""

    why: str
    reconnects: bool = False


@frozen
class Reconnected:
    """The starter goes on with us, on a new socket."""


@frozen
class ReconnectFailed:
    """The starter was not reached; `gone`: there is none, for certain."""

    why: str
    gone: bool


@frozen
class ClaimLost:
    """The startd released the claim, or does not know it any more."""

    why: str


@frozen
class TimerFired:
    serial: int


@frozen
class Deactivated:
    """The startd's answer to DEACTIVATE: may the claim be used again? None: there was no answer."""

    start: bool | None


# Commands


@frozen
class Activate:
    after_s: float


@frozen
class Reconnect:
    after_s: float


class Ending(Enum):
    """Which DEACTIVATE is meant; the number on the wire depends on the claim's version (6.7)."""

    GRACEFUL = 403
    FORCIBLE = 404
    DONE = 413


@frozen
class Deactivate:
    how: Ending


@frozen
class SetTimer:
    serial: int
    seconds: float


@frozen
class CutSocket:
    pass


@frozen
class NoteExecuting:
    pass


@frozen
class Finish:
    """The run's verdict is known: write it down. `status` is a wait status."""

    outcome: Outcome
    reason: str = ""
    status: int | None = None
    hold_code: int = 0
    hold_subcode: int = 0


@frozen
class EndClaim:
    """The last command of a run: what becomes of its claim."""

    fate: str  # "idle": may be activated again; "release": send RELEASE_CLAIM; "gone": nothing is there any more


Command = Activate | Reconnect | Deactivate | SetTimer | CutSocket | NoteExecuting | Finish | EndClaim

REMOVED = Finish(Outcome.REMOVED, "removed")


@frozen
class EndAsked:
    """A user's rm, hold or vacate. `want`: the verdict of a run that ends for it."""

    grace_s: float
    hard: bool = False
    want: Finish = REMOVED


Event = (
    ActivationAccepted | ActivationTryAgain | ActivationRefused | ExecutionBegan | Suspended | Resumed | ProblemReported
    | JobExited | OutputStored | EndAsked | SocketLost | Reconnected | ReconnectFailed | ClaimLost | TimerFired
    | Deactivated
)  # fmt: skip


class WrongState(Exception):
    """A request that this state does not take; nothing has changed."""


@frozen
class Entry:
    event: str
    rule: int
    state: State


@frozen
class _Now:
    """What a rule sees and returns: the changeable part."""

    state: State = State.ACTIVATING
    began: bool = False
    stored: bool = False
    wanted: Finish | None = None
    tries: int = 0
    serial: int = 0
    verdict: Finish | None = None


_Result = tuple[int, _Now, tuple[Command, ...]]


@define
class ShadowState:
    """A run, from its first ACTIVATE_CLAIM to the fate of its claim."""

    _now: _Now = field(factory=_Now)
    story: deque[Entry] = field(factory=lambda: deque(maxlen=STORY_LENGTH))

    @property
    def state(self) -> State:
        return self._now.state

    @property
    def verdict(self) -> Finish | None:
        return self._now.verdict

    @classmethod
    def recovered(cls) -> ShadowState:
        """Of a run whose job was executing when the pool ended."""
        return cls(_Now(state=State.RECONNECTING, began=True))

    def handle(self, event: Event) -> tuple[Command, ...]:
        """Take one event. Never fails: every event has a rule in every state."""
        number, self._now, commands = _RULES[type(event)](self._now, event)
        self.story.append(Entry(type(event).__name__, number, self._now.state))
        return commands


_LIVE = frozenset({State.STARTUP, State.EXECUTING, State.SUSPENDED, State.EVICTING, State.KILLING})


def _ignored(now: _Now) -> _Result:
    return 0, now, ()


def _accepted(now: _Now, event: ActivationAccepted) -> _Result:
    if now.state is not State.ACTIVATING:
        return _ignored(now)
    if now.wanted:  # 2: rm came while the activation was on its way
        return _kill(2, now)
    return 1, evolve(now, state=State.STARTUP), ()


def _try_again(now: _Now, event: ActivationTryAgain) -> _Result:
    if now.state is not State.ACTIVATING:
        return _ignored(now)
    if now.wanted:
        return _over(5, now, now.wanted, "release")
    if now.tries < len(RETRY_DELAYS_S):
        return 3, evolve(now, tries=now.tries + 1), (Activate(RETRY_DELAYS_S[now.tries]),)
    return _over(4, now, Finish(Outcome.REQUEUED, "the slot was not ready after seven tries"), "release")


def _refused(now: _Now, event: ActivationRefused) -> _Result:
    if now.state is not State.ACTIVATING:
        return _ignored(now)
    finish = now.wanted or Finish(Outcome.REQUEUED, clean(event.reason))
    return _over(6, now, finish, "release")


def _began(now: _Now, event: ExecutionBegan) -> _Result:
    if now.began or now.state not in _LIVE:
        return _ignored(now)
    state = State.EXECUTING if now.state is State.STARTUP else now.state
    return 7, evolve(now, state=state, began=True), (NoteExecuting(),)


def _suspended(now: _Now, event: Suspended) -> _Result:
    return (8, evolve(now, state=State.SUSPENDED), ()) if now.state is State.EXECUTING else _ignored(now)


def _resumed(now: _Now, event: Resumed) -> _Result:
    return (9, evolve(now, state=State.EXECUTING), ()) if now.state is State.SUSPENDED else _ignored(now)


def _problem(now: _Now, event: ProblemReported) -> _Result:
    if now.state not in _LIVE:
        return _ignored(now)
    if now.wanted:
        return _ends(10, now, now.wanted)
    text = clean(event.text) or "the execution point gave no reason"
    if 0 < event.code < 1000 and event.subcode > -1000:
        code = event.code
        if code in (FAILED_TO_RECEIVE, FAILED_TO_SEND):
            code = IN_OUTPUT if now.began else IN_INPUT
        return _ends(11, now, Finish(Outcome.HELD, text, hold_code=code, hold_subcode=event.subcode))
    return _ends(12, now, Finish(Outcome.REQUEUED, text))


def _exited(now: _Now, event: JobExited) -> _Result:
    if now.state not in _LIVE:
        return _ignored(now)
    finished = event.reason in (JOB_EXITED, JOB_CORED, EXITED_CLAIM_CLOSING)
    if now.wanted and (now.wanted.outcome is Outcome.REMOVED or not (finished and now.stored)):
        return _ends(13, now, evolve(now.wanted, status=event.status if finished else None))
    if finished and now.stored:
        return _ends(14, now, Finish(Outcome.COMPLETED, "", event.status))
    if finished:
        # The starter says that all is done, and we have not got it: never called complete.
        return _ends(15, now, Finish(Outcome.REQUEUED, "the job ended but its output did not arrive"))
    if event.reason == SHOULD_HOLD:
        return _ends(16, now, Finish(Outcome.HELD, "the execution point held the job without a reason", hold_code=3))
    return _ends(
        17, now, Finish(Outcome.REQUEUED, _REQUEUE_WORDS.get(event.reason, f"job_exit with reason {event.reason}"))
    )


_REQUEUE_WORDS = {
    JOB_KILLED: "evicted by the execution point",
    SHOULD_REQUEUE: "the execution point asked for another try",
    NOT_STARTED: "the execution point could not start the job",
}


def _stored(now: _Now, event: OutputStored) -> _Result:
    return (18, evolve(now, stored=True), ()) if now.state in _LIVE else _ignored(now)


def _end_asked(now: _Now, event: EndAsked) -> _Result:
    if now.state in (State.ENDING, State.OVER):
        raise WrongState("the run is over already")
    known = (
        now.wanted is not None and event.want.outcome is not Outcome.REMOVED
    )  # only a removal outdoes what came first
    removing = now if known else evolve(now, wanted=event.want)
    if now.state is State.RECONNECTING:
        return _over(33, removing, removing.wanted or event.want, "release")
    if now.state is State.ACTIVATING:
        return 19, removing, ()
    if now.state is State.KILLING:
        return _ignored(removing)
    if event.hard:
        return _kill(20, removing)
    if now.state is State.EVICTING:
        return _ignored(removing)
    serial = now.serial + 1
    commands = (Deactivate(Ending.GRACEFUL), SetTimer(serial, max(0.0, event.grace_s)))
    return 21, evolve(removing, state=State.EVICTING, serial=serial), commands


def _kill(number: int, now: _Now) -> _Result:
    serial = now.serial + 1
    commands = (Deactivate(Ending.FORCIBLE), SetTimer(serial, HARD_PATIENCE_S))
    return number, evolve(now, state=State.KILLING, serial=serial), commands


def _socket_lost(now: _Now, event: SocketLost) -> _Result:
    if now.state not in _LIVE and now.state not in (State.ACTIVATING, State.RECONNECTING):
        return _ignored(now)
    if now.wanted:  # 404 may end the starter without a job_exit
        return _over(22, now, now.wanted, "release")
    if event.reconnects and now.state in (State.EXECUTING, State.SUSPENDED):
        return 29, evolve(now, state=State.RECONNECTING, tries=0), (Reconnect(0.0),)
    return _over(23, now, Finish(Outcome.LOST, clean(f"lost contact with the job: {event.why}")), "release")


def _reconnected(now: _Now, event: Reconnected) -> _Result:
    if now.state is not State.RECONNECTING:
        return _ignored(now)
    return 30, evolve(now, state=State.EXECUTING), ()


def _reconnect_failed(now: _Now, event: ReconnectFailed) -> _Result:
    if now.state is not State.RECONNECTING:
        return _ignored(now)
    if event.gone:
        return _over(32, now, Finish(Outcome.LOST, clean(f"lost contact with the job: {event.why}")), "release")
    wait_s = min(FIRST_RECONNECT_S * 2.0**now.tries, LONGEST_RECONNECT_S)
    tries = now.tries if wait_s == LONGEST_RECONNECT_S else now.tries + 1
    return 31, evolve(now, tries=tries), (Reconnect(wait_s),)


def _claim_lost(now: _Now, event: ClaimLost) -> _Result:
    if now.state is State.OVER:
        return _ignored(now)
    if now.state is State.ENDING:
        return 24, evolve(now, state=State.OVER), (CutSocket(), EndClaim("gone"))
    finish = now.wanted or Finish(Outcome.LOST, clean(event.why))
    return _over(25, now, finish, "gone")


def _timer(now: _Now, event: TimerFired) -> _Result:
    if event.serial != now.serial:
        return _ignored(now)
    if now.state is State.EVICTING:
        return _kill(26, now)
    if now.state is State.KILLING:
        return _over(27, now, now.wanted or REMOVED, "release")
    return _ignored(now)


def _deactivated(now: _Now, event: Deactivated) -> _Result:
    if now.state is not State.ENDING:
        return _ignored(now)  # the answer to 403 or 404: what counts is the job's end
    return 28, evolve(now, state=State.OVER), (CutSocket(), EndClaim(_FATES[event.start]))


_FATES = {True: "idle", False: "gone", None: "release"}


def _ends(number: int, now: _Now, finish: Finish) -> _Result:
    how = Ending.DONE if finish.outcome in (Outcome.COMPLETED, Outcome.REMOVED) else Ending.FORCIBLE
    return number, evolve(now, state=State.ENDING, serial=now.serial + 1, verdict=finish), (finish, Deactivate(how))


def _over(number: int, now: _Now, finish: Finish, fate: str) -> _Result:
    commands = (finish, CutSocket(), EndClaim(fate))
    return number, evolve(now, state=State.OVER, serial=now.serial + 1, verdict=finish), commands


def clean(text: str) -> str:
    """One line without control characters, of limited length: it ends up in lists, ads and logs."""
    line = "".join(c if c.isprintable() else " " for c in text[: 4 * MAX_REASON])
    return " ".join(line.split())[:MAX_REASON]


_RULES: dict[type, Callable[..., _Result]] = {
    ActivationAccepted: _accepted,
    ActivationTryAgain: _try_again,
    ActivationRefused: _refused,
    ExecutionBegan: _began,
    Suspended: _suspended,
    Resumed: _resumed,
    ProblemReported: _problem,
    JobExited: _exited,
    OutputStored: _stored,
    EndAsked: _end_asked,
    SocketLost: _socket_lost,
    Reconnected: _reconnected,
    ReconnectFailed: _reconnect_failed,
    ClaimLost: _claim_lost,
    TimerFired: _timer,
    Deactivated: _deactivated,
}
