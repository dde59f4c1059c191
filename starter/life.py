"""The life of one activation, from the shadow's job to the removed sandbox. Pure: events in, commands out.

Nothing here does I/O, reads a clock or logs. ``starter.job`` carries the commands out and reports facts.
Every pair of state and event has a rule; the numbers stand in docs/job-life.md, in the log and in failure reports.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import Enum

import attrs

from cedar.commands import VacateCode
from pilot.rulebook import STORY_LENGTH, Entry, rulebook
from starter.events import (
    EXIT_FAILURE,
    EXIT_LOST_SHADOW,
    EXIT_NORMAL,
    EXIT_UNKILLABLE,
    FACTS,
    Begin,
    CheckpointReached,
    CheckpointSent,
    Cleaned,
    Command,
    ContinueAsked,
    CredentialStored,
    DeactivateAsked,
    DeclareBroken,
    Disconnected,
    Event,
    Exit,
    FamilyStopped,
    IdentityChanged,
    JobEnded,
    JobKnown,
    LeaveToJanitor,
    LimitExceeded,
    ProxyEnding,
    Reconnected,
    Reported,
    Resume,
    ShadowLost,
    StagedIn,
    StagedOut,
    StartdLost,
    Started,
    Step,
    StepFailed,
    Suspend,
    SuspendAsked,
)
from starter.verdict import Abandoned, Exited, Hold, Killed, Requeue, Verdict, wants_output


class State(Enum):
    """Where an activation is. The value is the word in logs and in the slot ad."""

    ASKING = "asking"
    CREDENTIAL = "credential"
    STAGING_IN = "staging in"
    LAUNCHING = "launching"
    RUNNING = "running"
    SUSPENDED = "suspended"
    CHECKPOINTING = "checkpointing"
    STOPPING = "stopping"
    STAGING_OUT = "staging out"
    CLEANING = "cleaning"
    REPORTING = "reporting"
    ENDED = "ended"


class BrokenRule(Exception):
    """An event came that this state cannot meet: our own fault. Carries the story."""


# --- the machine -------------------------------------------------------------------------------------------------


@attrs.define
class Life:
    """State and memory of one activation. ``handle`` is the only way in."""

    state: State = State.ASKING
    verdict: Verdict | None = None
    has_proxy: bool = False
    output_on_evict: bool = False
    sandbox: bool = False
    unkillable: bool = False
    stopping_softly: bool = False
    disconnected: bool = False
    leaving: bool = False
    to_stand_still: bool = False
    ended: JobEnded | None = None
    number: int = 0
    story: deque[Entry] = attrs.field(factory=lambda: deque(maxlen=STORY_LENGTH))

    def handle(self, event: Event, *, now_s: float) -> tuple[Command, ...]:
        """Apply the rule for (state, event).

        Raises:
            BrokenRule: the event cannot happen in this state; nothing has changed.
        """
        try:
            self.number, rule = RULES[self.state, type(event)]
        except KeyError:
            raise BrokenRule(f"{type(event).__name__} while {self.state.value}; {self.tell()}") from None
        state, commands = rule(self, event)
        self.state = state
        self.story.append(Entry(now_s, type(event).__name__, self.number, state.value))
        return commands

    def tell(self) -> str:
        """The story in one line, for failure reports."""
        return ", ".join(f"{e.event} (rule {e.number}) -> {e.state}" for e in self.story) or "nothing happened yet"


Outcome = tuple[State, tuple[Command, ...]]
Rule = Callable[[Life, Event], Outcome]


def _begin(state: State, step: Step) -> Outcome:
    return state, (Begin(step),)


def _stop(life: Life, *, soft: bool) -> Outcome:
    life.stopping_softly = soft
    return _begin(State.STOPPING, Step.STOP_SOFTLY if soft else Step.STOP_HARD)


def _report(life: Life) -> Outcome:
    """Report where somebody is left to hear it; otherwise end."""
    if _nobody_waits(life):
        life.verdict = Abandoned("no shadow was there when the slot had to be given back")
    if isinstance(life.verdict, Abandoned):
        return _end(life)
    return _begin(State.REPORTING, Step.REPORT)


def _nobody_waits(life: Life) -> bool:
    """No shadow is there, and the startd wants the slot back: none is waited for."""
    return life.disconnected and life.leaving


def _output_in_vain(life: Life) -> bool:
    """Nor is one for the output of a job that is held: its proxy may be about to end."""
    return _nobody_waits(life) or (life.disconnected and isinstance(life.verdict, Hold))


def _end(life: Life) -> Outcome:
    return State.ENDED, (Exit(_exit_status(life)),)


def _exit_status(life: Life) -> int:
    if life.unkillable:
        return EXIT_UNKILLABLE
    match life.verdict:
        case Abandoned():
            return EXIT_LOST_SHADOW
        case Exited() | Killed() | Hold():
            return EXIT_NORMAL
        case Requeue() | None:
            return EXIT_FAILURE


def _clean_or_report(life: Life) -> Outcome:
    return _begin(State.CLEANING, Step.CLEAN) if life.sandbox else _report(life)


def _stay(life: Life, _event: Event) -> Outcome:
    return life.state, ()


def _job_known(life: Life, event: Event) -> Outcome:
    assert isinstance(event, JobKnown)
    life.has_proxy, life.output_on_evict = event.has_proxy, event.output_on_evict
    if event.refusal is not None:
        life.verdict = event.refusal
        return _report(life)
    if event.has_proxy:
        return _begin(State.CREDENTIAL, Step.FETCH_CREDENTIAL)
    return _stage_in(life, event)


def _stage_in(life: Life, _event: Event) -> Outcome:
    life.sandbox = True
    return _begin(State.STAGING_IN, Step.STAGE_IN)


def _launch(_life: Life, _event: Event) -> Outcome:
    return _begin(State.LAUNCHING, Step.LAUNCH)


def _run(life: Life, _event: Event) -> Outcome:
    return (State.SUSPENDED, (Suspend(),)) if life.to_stand_still else (State.RUNNING, ())


def _failed_early(life: Life, event: Event) -> Outcome:
    assert isinstance(event, StepFailed)
    life.verdict, life.sandbox = event.verdict, event.sandbox
    return _clean_or_report(life)


def _failed_launch(life: Life, event: Event) -> Outcome:
    assert isinstance(event, StepFailed)
    life.verdict = event.verdict
    return _stop(life, soft=False)


def _failed_output(life: Life, event: Event) -> Outcome:
    """A job that is held anyway stays so for the first reason."""
    assert isinstance(event, StepFailed)
    life.sandbox = event.sandbox
    if not isinstance(life.verdict, Hold):
        life.verdict = event.verdict
    return _clean_or_report(life)


def _note_end(life: Life, event: Event) -> Outcome:
    assert isinstance(event, JobEnded)
    life.ended = event
    return life.state, ()


def _job_ended(life: Life, event: Event) -> Outcome:
    assert isinstance(event, JobEnded)
    life.ended = event
    life.verdict = event.verdict or Exited(event.wait_status, event.exact)
    return _stop(life, soft=False)


def _stopped(life: Life, event: Event) -> Outcome:
    assert isinstance(event, FamilyStopped)
    assert life.verdict is not None
    if wants_output(life.verdict) and not _output_in_vain(life):
        state, commands = _begin(State.STAGING_OUT, Step.STAGE_OUT)
    else:
        state, commands = _clean_or_report(life)
    if event.survivors:  # the slot's trouble: a job that has ended does not lose its output for it
        life.unkillable = True
        pids = ", ".join(map(str, event.survivors))
        return state, (DeclareBroken(f"processes {pids} survived SIGKILL"), *commands)
    return state, commands


def _removed(life: Life, event: Event) -> Outcome:
    assert isinstance(event, StagedOut | Cleaned)
    life.sandbox = bool(event.left)
    state, commands = _report(life)
    if event.left:
        return state, (LeaveToJanitor(event.left), *commands)
    return state, commands


def _reported(life: Life, _event: Event) -> Outcome:
    return _end(life)


def _killed(life: Life, event: Event, *, output: bool) -> None:
    assert isinstance(event, DeactivateAsked)
    life.leaving = True
    life.verdict = Killed(event.reason, event.vacate_code, output, final=output and event.output)


def _deactivate_early(life: Life, event: Event) -> Outcome:
    _killed(life, event, output=False)
    return _clean_or_report(life)


def _deactivate_launch(life: Life, event: Event) -> Outcome:
    _killed(life, event, output=False)
    return _stop(life, soft=False)


def _deactivate_running(life: Life, event: Event) -> Outcome:
    assert isinstance(event, DeactivateAsked)
    _killed(life, event, output=event.output or (event.soft and life.output_on_evict))
    return _stop(life, soft=event.soft)


def _deactivate_stopping(life: Life, event: Event) -> Outcome:
    """A hard request overtakes a soft one; a soft one changes nothing that is already under way."""
    assert isinstance(event, DeactivateAsked)
    life.leaving = True
    if event.soft:
        return life.state, ()
    _killed(life, event, output=False)
    return _stop(life, soft=False)


def _deactivate_staging_out(life: Life, event: Event) -> Outcome:
    assert isinstance(event, DeactivateAsked)
    life.leaving = True
    if event.soft and not life.disconnected:
        return life.state, ()
    _killed(life, event, output=False)
    return _begin(State.CLEANING, Step.CLEAN)


def _credential_over(life: Life, event: Event, *, output: bool) -> None:
    """The proxy ends, or is another's now. What the job has made by then is not lost."""
    assert isinstance(event, ProxyEnding | IdentityChanged)
    verdict = Hold(4, 0, event.text) if isinstance(event, ProxyEnding) else event.verdict
    if isinstance(verdict, Hold):  # its owner gets it, unless the job says that it starts again from what it left
        verdict = attrs.evolve(verdict, output=output, final=output and not life.output_on_evict)
    life.verdict = verdict


def _credential_over_running(life: Life, event: Event) -> Outcome:
    _credential_over(life, event, output=True)
    return _stop(life, soft=True)


def _credential_over_early(life: Life, event: Event) -> Outcome:
    _credential_over(life, event, output=False)
    return _clean_or_report(life)


def _credential_over_launch(life: Life, event: Event) -> Outcome:
    """A job that wrote a checkpoint has run, and has something to bring back."""
    _credential_over(life, event, output=life.state is State.CHECKPOINTING)
    return _stop(life, soft=False)


def _disconnected(life: Life, event: Event) -> Outcome:
    """The job runs on, and its output is kept, for a shadow that comes back."""
    life.disconnected = True
    if life.state is State.STAGING_OUT and _output_in_vain(life):
        return _begin(State.CLEANING, Step.CLEAN)
    if life.state is State.CHECKPOINTING and life.leaving:
        return _stop(life, soft=False)
    if life.state is State.REPORTING and life.leaving:
        return _end(life)
    return life.state, ()


def _reconnected(life: Life, _event: Event) -> Outcome:
    life.disconnected = False
    return life.state, ()


def _deactivate_late(life: Life, _event: Event) -> Outcome:
    life.leaving = True
    if life.state is not State.REPORTING or not life.disconnected:
        return life.state, ()
    if isinstance(life.verdict, Hold | Requeue):  # a shadow that has read the event closes: that was its answer
        return _end(life)
    return _report(life)


def _proxy_ending_undelivered(life: Life, event: Event) -> Outcome:
    """Output that is on its way may still arrive; with no shadow there the sandbox goes while the site lets us."""
    assert isinstance(event, ProxyEnding)
    if not life.disconnected:
        return life.state, ()
    life.verdict = Hold(4, 0, event.text)
    return _begin(State.CLEANING, Step.CLEAN)


def _abandon(life: Life, event: Event) -> None:
    """A shadow is told of a startd that is gone: it would look for us there until the lease ends."""
    if isinstance(event, ShadowLost | Disconnected):
        life.verdict = Abandoned(event.text)
    else:
        life.verdict, life.leaving = Killed("the pilot's startd is gone", _SHUTDOWN, output=False), True


def _abandon_early(life: Life, event: Event) -> Outcome:
    _abandon(life, event)
    return _clean_or_report(life)


def _abandon_running(life: Life, event: Event) -> Outcome:
    _abandon(life, event)
    return _stop(life, soft=False)


def _abandon_staging_out(life: Life, event: Event) -> Outcome:
    _abandon(life, event)
    return _begin(State.CLEANING, Step.CLEAN)


def _abandon_cleaning(life: Life, event: Event) -> Outcome:
    if isinstance(event, ShadowLost):
        _abandon(life, event)
    life.leaving = True
    return life.state, ()


def _abandon_reporting(life: Life, event: Event) -> Outcome:
    """What was to be reported stays the verdict: only the listener is gone. The startd need not hear it."""
    life.leaving = True
    return _end(life) if isinstance(event, ShadowLost) or life.disconnected else (life.state, ())


def _suspend(life: Life, _event: Event) -> Outcome:
    """A job that does not run yet is stopped as soon as it does."""
    life.to_stand_still = True
    return (State.SUSPENDED, (Suspend(),)) if life.state is State.RUNNING else (life.state, ())


def _resume(life: Life, _event: Event) -> Outcome:
    life.to_stand_still = False
    return (State.RUNNING, (Resume(),)) if life.state is State.SUSPENDED else (life.state, ())


def _limit_early(life: Life, event: Event) -> Outcome:
    assert isinstance(event, LimitExceeded)
    life.verdict = event.hold
    return _clean_or_report(life)


def _limit_hard(life: Life, event: Event) -> Outcome:
    assert isinstance(event, LimitExceeded)
    life.verdict = event.hold
    return _stop(life, soft=False)


def _limit_running(life: Life, event: Event) -> Outcome:
    """Output as at an eviction: of a job that had the time to leave any."""
    assert isinstance(event, LimitExceeded)
    life.verdict = attrs.evolve(event.hold, output=event.soft and life.output_on_evict)
    return _stop(life, soft=event.soft)


def _limit_stopping(life: Life, event: Event) -> Outcome:
    """A job that exhausts the node has no grace left; what it is stopped for stays."""
    assert isinstance(event, LimitExceeded)
    if event.soft or not life.stopping_softly:
        return life.state, ()
    return _stop(life, soft=False)


def _checkpoint(_life: Life, _event: Event) -> Outcome:
    return _begin(State.CHECKPOINTING, Step.STOP_HARD)


def _note_checkpoint(life: Life, event: Event) -> Outcome:
    assert isinstance(event, CheckpointReached)
    return _note_end(life, event.ended)


def _checkpoint_stopped(life: Life, event: Event) -> Outcome:
    assert isinstance(event, FamilyStopped)
    if event.survivors:
        life.verdict = life.verdict or Requeue(
            0, "processes of the job survived SIGKILL before its checkpoint was sent"
        )
        return _stopped(life, event)
    return _begin(State.CHECKPOINTING, Step.CHECKPOINT)


def _start_again(life: Life, event: Event) -> Outcome:
    """Unless its end was asked for meanwhile, or its claim would not take it again: then the checkpoint was the last
    thing that it needed here."""
    assert isinstance(event, CheckpointSent)
    if life.verdict is None and not event.go_on:
        life.verdict = Requeue(VacateCode.SUCCESSFUL_CHECKPOINT, NOT_AGAIN)
    return _launch(life, event) if life.verdict is None else _clean_or_report(life)


def _failed_checkpoint(life: Life, event: Event) -> Outcome:
    assert isinstance(event, StepFailed)
    life.verdict, life.sandbox = life.verdict or event.verdict, event.sandbox
    return _clean_or_report(life)


def _deactivate_checkpointing(life: Life, event: Event) -> Outcome:
    """A soft request lets the checkpoint go out to a shadow that is there, a hard one drops it."""
    assert isinstance(event, DeactivateAsked)
    _killed(life, event, output=False)
    return (life.state, ()) if event.soft and not life.disconnected else _stop(life, soft=False)


# Vacate code of the wire reference (appendix A).
_SHUTDOWN = 1013
# In HTCondor's words: the job's owner looks for them in the log.
NOT_AGAIN = "Rescheduling self-checkpoint job after checkpoint upload because reactivating the claim would have failed."

S = State
_EARLY = (S.ASKING, S.CREDENTIAL, S.STAGING_IN)
_WITH_JOB = (S.LAUNCHING, S.RUNNING, S.SUSPENDED)
_LOST = (ShadowLost, StartdLost)
# A shadow that is gone may come back from here on: the job exists.
_ON_THE_WAY = (*_WITH_JOB, S.CHECKPOINTING, S.STOPPING, S.STAGING_OUT, S.CLEANING, S.REPORTING)
_CREDENTIAL_OVER = (ProxyEnding, IdentityChanged)

# The numbered rules, in the order of docs/job-life.md.
NUMBERED: tuple[tuple[tuple[State, ...], tuple[type, ...], Rule], ...] = (
    ((S.ASKING,), (JobKnown,), _job_known),  # 1
    ((S.CREDENTIAL,), (CredentialStored,), _stage_in),  # 2
    ((S.STAGING_IN,), (StagedIn,), _launch),  # 3
    ((S.LAUNCHING,), (Started,), _run),  # 4
    (_EARLY, (StepFailed,), _failed_early),  # 5
    ((S.LAUNCHING,), (StepFailed,), _failed_launch),  # 6
    ((S.STAGING_OUT,), (StepFailed,), _failed_output),  # 7
    (_WITH_JOB, (JobEnded,), _job_ended),  # 8
    ((S.STOPPING,), (JobEnded,), _note_end),  # 9
    ((S.STOPPING,), (FamilyStopped,), _stopped),  # 10
    ((S.STAGING_OUT,), (StagedOut,), _removed),  # 11
    ((S.CLEANING,), (Cleaned,), _removed),  # 12
    ((S.REPORTING,), (Reported,), _reported),  # 13
    (_EARLY, (DeactivateAsked,), _deactivate_early),  # 14
    ((S.LAUNCHING,), (DeactivateAsked,), _deactivate_launch),  # 15
    ((S.RUNNING, S.SUSPENDED), (DeactivateAsked,), _deactivate_running),  # 16
    ((S.STOPPING,), (DeactivateAsked,), _deactivate_stopping),  # 17
    ((S.STAGING_OUT,), (DeactivateAsked,), _deactivate_staging_out),  # 18
    (_EARLY, (*_LOST, Disconnected), _abandon_early),  # 19
    ((*_WITH_JOB, S.STOPPING), _LOST, _abandon_running),  # 20
    ((S.STAGING_OUT,), _LOST, _abandon_staging_out),  # 21
    ((S.CLEANING,), _LOST, _abandon_cleaning),  # 22
    ((S.REPORTING,), _LOST, _abandon_reporting),  # 23
    (_EARLY, _CREDENTIAL_OVER, _credential_over_early),  # 24
    ((S.LAUNCHING,), _CREDENTIAL_OVER, _credential_over_launch),  # 25
    ((S.RUNNING, S.SUSPENDED), _CREDENTIAL_OVER, _credential_over_running),  # 26
    ((*_EARLY, S.LAUNCHING, S.RUNNING, S.CHECKPOINTING), (SuspendAsked,), _suspend),  # 27
    ((*_EARLY, S.LAUNCHING, S.SUSPENDED, S.CHECKPOINTING), (ContinueAsked,), _resume),  # 28
    (_EARLY, (LimitExceeded,), _limit_early),  # 29
    ((S.LAUNCHING, S.CHECKPOINTING), (LimitExceeded,), _limit_hard),  # 30
    ((S.RUNNING, S.SUSPENDED), (LimitExceeded,), _limit_running),  # 31
    ((S.STOPPING,), (LimitExceeded,), _limit_stopping),  # 32
    (_WITH_JOB, (CheckpointReached,), _checkpoint),  # 33
    ((S.STOPPING,), (CheckpointReached,), _note_checkpoint),  # 34
    ((S.CHECKPOINTING,), (FamilyStopped,), _checkpoint_stopped),  # 35
    ((S.CHECKPOINTING,), (CheckpointSent,), _start_again),  # 36
    ((S.CHECKPOINTING,), (StepFailed,), _failed_checkpoint),  # 37
    ((S.CHECKPOINTING,), (DeactivateAsked,), _deactivate_checkpointing),  # 38
    ((S.CHECKPOINTING,), _LOST, _abandon_running),  # 39
    ((S.CHECKPOINTING,), _CREDENTIAL_OVER, _credential_over_launch),  # 40
    (_ON_THE_WAY, (Disconnected,), _disconnected),  # 41
    (tuple(S), (Reconnected,), _reconnected),  # 42
    ((S.CLEANING, S.REPORTING), (DeactivateAsked,), _deactivate_late),  # 43
    ((S.STAGING_OUT,), (ProxyEnding,), _proxy_ending_undelivered),  # 44
)

RULES = rulebook(State, FACTS, _stay, NUMBERED)
