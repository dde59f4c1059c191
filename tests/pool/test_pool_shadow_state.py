"""The shadow's rules: every fact in every state, the ways through, and that exactly one verdict comes out."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pool import shadow_state as s
from pool.model import Outcome

FACTS: list[s.Event] = [
    s.ActivationAccepted(),
    s.ActivationTryAgain(),
    s.ActivationRefused("no"),
    s.ExecutionBegan(),
    s.Suspended(),
    s.Resumed(),
    s.ProblemReported(6, 2, "exec"),
    s.ProblemReported(1024, 0, "scratch"),
    s.JobExited(0, s.JOB_EXITED),
    s.JobExited(15, s.JOB_KILLED),
    s.JobExited(0, s.SHOULD_HOLD),
    s.OutputStored(),
    s.SocketLost("gone"),
    s.SocketLost("cut", reconnects=True),
    s.Reconnected(),
    s.ReconnectFailed("not now", gone=False),
    s.ReconnectFailed("no such job", gone=True),
    s.ClaimLost("released"),
    s.TimerFired(1),
    s.TimerFired(2),
    s.Deactivated(True),
    s.Deactivated(False),
    s.Deactivated(None),
]
HELD = s.Finish(Outcome.HELD, "held", hold_code=1)
VACATED = s.Finish(Outcome.REQUEUED, "vacated")
REMOVALS: list[s.Event] = [
    s.EndAsked(1.0),
    s.EndAsked(0.0, hard=True),
    s.EndAsked(1.0, want=HELD),
    s.EndAsked(1.0, want=VACATED),
]


def play(*events: s.Event) -> tuple[s.ShadowState, list[s.Command]]:
    machine = s.ShadowState()
    commands: list[s.Command] = []
    for event in events:
        commands += machine.handle(event)
    return machine, commands


def verdict(*events: s.Event) -> s.Finish:
    finish = play(*events)[0].verdict
    assert finish is not None
    return finish


STARTED = (s.ActivationAccepted(), s.ExecutionBegan())
DONE = (*STARTED, s.OutputStored(), s.JobExited(0, s.JOB_EXITED))
WAYS_TO = {
    s.State.ACTIVATING: (),
    s.State.STARTUP: (s.ActivationAccepted(),),
    s.State.EXECUTING: STARTED,
    s.State.SUSPENDED: (*STARTED, s.Suspended()),
    s.State.RECONNECTING: (*STARTED, s.SocketLost("cut", reconnects=True)),
    s.State.EVICTING: (*STARTED, s.EndAsked(1.0)),
    s.State.KILLING: (*STARTED, s.EndAsked(1.0, hard=True)),
    s.State.ENDING: DONE,
    s.State.OVER: (*DONE, s.Deactivated(True)),
}


@pytest.mark.parametrize("state", list(s.State))
def test_every_state_can_be_reached_and_takes_every_fact(state: s.State) -> None:
    for fact in FACTS:
        machine, _ = play(*WAYS_TO[state])
        assert machine.state is state
        machine.handle(fact)


@pytest.mark.parametrize("state", [s.State.ENDING, s.State.OVER])
def test_rm_after_the_end_is_refused_and_changes_nothing(state: s.State) -> None:
    machine, _ = play(*WAYS_TO[state])
    story = list(machine.story)
    with pytest.raises(s.WrongState):
        machine.handle(s.EndAsked(1.0))
    assert machine.state is state
    assert list(machine.story) == story


def test_a_job_that_ends_well() -> None:
    machine, commands = play(*DONE, s.Deactivated(True))
    assert commands == [
        s.NoteExecuting(),
        s.Finish(Outcome.COMPLETED, "", 0),
        s.Deactivate(s.Ending.DONE),
        s.CutSocket(),
        s.EndClaim("idle"),
    ]
    assert machine.state is s.State.OVER
    assert [entry.rule for entry in machine.story] == [1, 7, 18, 14, 28]


@pytest.mark.parametrize(("start", "fate"), [(True, "idle"), (False, "gone"), (None, "release")])
def test_what_becomes_of_the_claim(start: bool | None, fate: str) -> None:
    assert play(*DONE, s.Deactivated(start))[1][-1] == s.EndClaim(fate)


@pytest.mark.parametrize(
    ("code", "subcode", "outcome"),
    [(6, 2, Outcome.HELD), (0, 0, Outcome.REQUEUED), (1024, 0, Outcome.REQUEUED), (13, -1000, Outcome.REQUEUED)],
)
def test_a_problem_holds_or_requeues(code: int, subcode: int, outcome: Outcome) -> None:
    finish = verdict(s.ActivationAccepted(), s.ProblemReported(code, subcode, "words"))
    assert (finish.outcome, finish.reason) == (outcome, "words")


@pytest.mark.parametrize("code", [12, 13])
def test_codes_12_and_13_name_the_phase(code: int) -> None:
    problem = s.ProblemReported(code, 1, "x")
    assert verdict(s.ActivationAccepted(), problem).hold_code == 13
    assert verdict(*STARTED, problem).hold_code == 12


def test_activation_is_tried_seven_times() -> None:
    events = [s.ActivationTryAgain()] * 7
    machine, commands = play(*events)
    waits = [command.after_s for command in commands if isinstance(command, s.Activate)]
    assert waits == [1, 2, 3, 4, 5, 5]
    assert machine.verdict is not None
    assert machine.verdict.outcome is Outcome.REQUEUED


def test_rm_waits_then_kills_then_gives_up() -> None:
    machine, commands = play(*STARTED, s.EndAsked(5.0), s.TimerFired(1), s.TimerFired(2))
    assert commands[1:5] == [
        s.Deactivate(s.Ending.GRACEFUL),
        s.SetTimer(1, 5.0),
        s.Deactivate(s.Ending.FORCIBLE),
        s.SetTimer(2, s.HARD_PATIENCE_S),
    ]
    assert commands[-1] == s.EndClaim("release")
    assert machine.verdict is not None
    assert machine.verdict.outcome is Outcome.REMOVED


def test_rm_while_the_activation_is_on_its_way() -> None:
    machine, commands = play(s.EndAsked(5.0), s.ActivationAccepted())
    assert machine.state is s.State.KILLING
    assert s.Deactivate(s.Ending.FORCIBLE) in commands
    assert verdict(s.EndAsked(5.0), s.ActivationTryAgain()).outcome is Outcome.REMOVED


def test_an_old_timer_does_nothing() -> None:
    machine, commands = play(*STARTED, s.EndAsked(5.0), s.EndAsked(0.0, hard=True), s.TimerFired(1))
    assert machine.state is s.State.KILLING
    assert not any(isinstance(command, s.EndClaim) for command in commands)


def test_a_killed_starter_is_a_removed_job() -> None:
    finish = verdict(*STARTED, s.EndAsked(0.0, hard=True), s.SocketLost("closed"))
    assert finish.outcome is Outcome.REMOVED


@pytest.mark.parametrize("want", [HELD, VACATED])
def test_a_hold_and_a_vacate_end_the_run_as_they_say(want: s.Finish) -> None:
    machine, commands = play(*STARTED, s.EndAsked(5.0, want=want), s.JobExited(15, s.SHOULD_REQUEUE))
    assert s.Deactivate(s.Ending.GRACEFUL) in commands
    assert machine.verdict == want


def test_a_job_that_ends_well_all_the_same_is_complete_and_not_held() -> None:
    finish = verdict(*STARTED, s.EndAsked(5.0, want=HELD), s.OutputStored(), s.JobExited(0, s.JOB_EXITED))
    assert finish.outcome is Outcome.COMPLETED


def test_rm_outdoes_a_hold_and_not_the_other_way() -> None:
    first, then = s.EndAsked(5.0, want=HELD), s.EndAsked(5.0)
    for events in ((first, then), (then, first)):
        assert verdict(*STARTED, *events, s.JobExited(15, s.SHOULD_REQUEUE)).outcome is Outcome.REMOVED


def test_a_starter_that_waits_is_looked_for_with_growing_pauses() -> None:
    cut = s.SocketLost("cut", reconnects=True)
    failed = s.ReconnectFailed("refused", gone=False)
    machine, commands = play(*STARTED, cut, failed, failed, failed, s.Reconnected())
    assert [c.after_s for c in commands if isinstance(c, s.Reconnect)] == [0.0, 1.0, 2.0, 4.0]
    assert machine.state is s.State.EXECUTING
    assert machine.verdict is None


def test_a_job_that_is_not_there_any_more_is_lost() -> None:
    finish = verdict(*STARTED, s.SocketLost("cut", reconnects=True), s.ReconnectFailed("ended", gone=True))
    assert finish.outcome is Outcome.LOST


def test_without_output_a_job_is_not_complete() -> None:
    assert verdict(*STARTED, s.JobExited(0, s.JOB_EXITED)).outcome is Outcome.REQUEUED


@given(st.lists(st.sampled_from(FACTS + REMOVALS), max_size=30))
def test_any_story_gives_at_most_one_verdict_and_one_fate(events: list[s.Event]) -> None:
    machine = s.ShadowState()
    commands: list[s.Command] = []
    for event in events:
        try:
            commands += machine.handle(event)
        except s.WrongState:
            assert isinstance(event, s.EndAsked)
    finishes = [command for command in commands if isinstance(command, s.Finish)]
    fates = [command for command in commands if isinstance(command, s.EndClaim)]
    assert len(finishes) <= 1
    assert len(fates) <= 1
    assert bool(fates) == (machine.state is s.State.OVER)
    if fates:
        assert finishes
    if any(isinstance(event, s.ClaimLost) for event in events):
        assert machine.state is s.State.OVER
    if finishes and finishes[0].outcome is Outcome.COMPLETED:
        assert not any(
            isinstance(event, s.EndAsked) and event.want is s.REMOVED
            for event in itertools.takewhile(lambda e: e != DONE[-1], events)
        )


def test_reasons_are_one_clean_line() -> None:
    finish = verdict(s.ActivationAccepted(), s.ProblemReported(6, 2, "a\nb\x1b[31m\t" + "x" * 5000))
    assert "\n" not in finish.reason
    assert "\x1b" not in finish.reason
    assert len(finish.reason) <= s.MAX_REASON
