"""The pure life of an activation: every rule, every fact in every state, and the page that lists them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from starter.events import (
    EXIT_LOST_SHADOW,
    EXIT_NORMAL,
    EXIT_UNKILLABLE,
    FACTS,
    Begin,
    CheckpointReached,
    CheckpointSent,
    Cleaned,
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
from starter.life import NOT_AGAIN, NUMBERED, RULES, BrokenRule, Life, State
from starter.messages import HoldJob
from starter.startdwords import asked
from starter.verdict import Abandoned, Exited, Hold, Killed, Requeue

HOLD = Hold(28, 0, "refused")
SOFT = DeactivateAsked("rm", 1009, soft=True, output=False)
HARD = DeactivateAsked("rm", 1009, soft=False, output=False)
SAMPLES: dict[type, Event] = {
    JobKnown: JobKnown(has_proxy=True, output_on_evict=False),
    CredentialStored: CredentialStored(),
    StagedIn: StagedIn(),
    Started: Started(),
    StepFailed: StepFailed(HOLD, sandbox=True),
    JobEnded: JobEnded(0, exact=True),
    FamilyStopped: FamilyStopped(()),
    StagedOut: StagedOut(""),
    Cleaned: Cleaned(""),
    Reported: Reported(),
    Disconnected: Disconnected("cut"),
    Reconnected: Reconnected(),
    ShadowLost: ShadowLost("cut"),
    StartdLost: StartdLost(),
    ProxyEnding: ProxyEnding("soon"),
    IdentityChanged: IdentityChanged(Hold(4, 0, "another")),
    DeactivateAsked: SOFT,
    SuspendAsked: SuspendAsked(),
    ContinueAsked: ContinueAsked(),
    LimitExceeded: LimitExceeded(Hold(34, 102, "too large"), soft=False),
    CheckpointReached: CheckpointReached(JobEnded(85 << 8, exact=True)),
    CheckpointSent: CheckpointSent(),
}


def walk(*events: Event) -> tuple[Life, list[object]]:
    life = Life()
    commands: list[object] = []
    for number, event in enumerate(events):
        commands.extend(life.handle(event, now_s=float(number)))
    return life, commands


RUNNING = (JobKnown(True, False), CredentialStored(), StagedIn(), Started())


def test_a_good_job_takes_each_step_once() -> None:
    life, commands = walk(*RUNNING, JobEnded(0, True), FamilyStopped(()), StagedOut(""), Reported())
    steps = [c.step for c in commands if isinstance(c, Begin)]
    assert steps == [
        Step.FETCH_CREDENTIAL, Step.STAGE_IN, Step.LAUNCH, Step.STOP_HARD, Step.STAGE_OUT, Step.REPORT
    ]  # fmt: skip
    assert life.state is State.ENDED
    assert commands[-1] == Exit(EXIT_NORMAL)
    assert life.verdict == Exited(0)


def test_without_a_proxy_no_credential_is_asked_for() -> None:
    life, commands = walk(JobKnown(has_proxy=False, output_on_evict=False))
    assert commands == [Begin(Step.STAGE_IN)]
    assert life.state is State.STAGING_IN


def test_a_refused_user_is_reported_as_held_without_touching_a_sandbox() -> None:
    life, commands = walk(JobKnown(True, False), CredentialStored(), StepFailed(HOLD, sandbox=False), Reported())
    assert [c.step for c in commands if isinstance(c, Begin)][-1] is Step.REPORT
    assert life.verdict == HOLD


def test_rm_of_a_running_job_stops_softly_and_fetches_nothing() -> None:
    life, commands = walk(*RUNNING, SOFT, JobEnded(15, True), FamilyStopped(()), Cleaned(""), Reported())
    assert [c.step for c in commands if isinstance(c, Begin)][3:] == [Step.STOP_SOFTLY, Step.CLEAN, Step.REPORT]
    assert life.verdict == Killed("rm", 1009, output=False)
    assert life.ended == JobEnded(15, True)


def test_eviction_fetches_output_where_the_job_wants_it() -> None:
    life, commands = walk(
        JobKnown(True, output_on_evict=True), CredentialStored(), StagedIn(), Started(), SOFT, FamilyStopped(())
    )
    assert commands[-1] == Begin(Step.STAGE_OUT)
    assert life.state is State.STAGING_OUT


def test_a_hard_request_overtakes_a_soft_one_and_not_the_other_way() -> None:
    life, commands = walk(*RUNNING, SOFT, HARD)
    assert commands[-1] == Begin(Step.STOP_HARD)
    before = len(life.story)
    assert life.handle(SOFT, now_s=9.0) == ()
    assert life.state is State.STOPPING
    assert len(life.story) == before + 1


def test_survivors_break_the_slot_and_the_sandbox_is_still_tried() -> None:
    _, commands = walk(*RUNNING, SOFT, FamilyStopped((17,)), Cleaned("x is left"), Reported())
    assert [type(c) for c in commands if isinstance(c, DeclareBroken | LeaveToJanitor)] == [
        DeclareBroken, LeaveToJanitor
    ]  # fmt: skip
    assert commands[-1] == Exit(EXIT_UNKILLABLE)


def test_a_job_that_has_ended_does_not_lose_its_output_for_what_survives() -> None:
    life, commands = walk(*RUNNING, JobEnded(0, True), FamilyStopped((17,)))
    assert commands[-2:] == [DeclareBroken("processes 17 survived SIGKILL"), Begin(Step.STAGE_OUT)]
    assert life.handle(StagedOut(""), now_s=9.0) == (Begin(Step.REPORT),)
    assert life.handle(Reported(), now_s=9.0) == (Exit(EXIT_UNKILLABLE),)


def test_a_lost_shadow_stops_the_job_removes_the_sandbox_and_ends() -> None:
    life, commands = walk(*RUNNING, ShadowLost("cut"), JobEnded(9, True), FamilyStopped(()), Cleaned(""))
    assert [c.step for c in commands if isinstance(c, Begin)][3:] == [Step.STOP_HARD, Step.CLEAN]
    assert commands[-1] == Exit(EXIT_LOST_SHADOW)
    assert isinstance(life.verdict, Abandoned)


def test_a_cut_socket_changes_nothing_for_a_job_that_runs() -> None:
    life, commands = walk(*RUNNING, Disconnected("cut"))
    assert life.state is State.RUNNING
    assert commands[-1] == Begin(Step.LAUNCH)
    life.handle(Reconnected(), now_s=9.0)
    assert not life.disconnected


def test_output_is_kept_for_a_shadow_that_comes_back() -> None:
    life, commands = walk(*RUNNING, JobEnded(0, True), FamilyStopped(()), Disconnected("cut"))
    assert life.state is State.STAGING_OUT
    assert commands[-1] == Begin(Step.STAGE_OUT)


def test_the_leases_end_gives_the_output_up() -> None:
    life, commands = walk(*RUNNING, JobEnded(0, True), FamilyStopped(()), Disconnected("cut"), ShadowLost("lease"))
    assert commands[-1] == Begin(Step.CLEAN)
    assert life.handle(Cleaned(""), now_s=9.0) == (Exit(EXIT_LOST_SHADOW),)


def test_before_the_job_runs_a_cut_socket_ends_the_activation() -> None:
    _, commands = walk(JobKnown(False, False), Disconnected("cut"), Cleaned(""))
    assert [c.step for c in commands if isinstance(c, Begin)] == [Step.STAGE_IN, Step.CLEAN]
    assert commands[-1] == Exit(EXIT_LOST_SHADOW)


@pytest.mark.parametrize("first", [Disconnected("cut"), SOFT])
def test_a_slot_that_is_wanted_back_waits_for_no_shadow(first: Event) -> None:
    second = SOFT if isinstance(first, Disconnected) else Disconnected("cut")
    story = (*RUNNING, first, second, FamilyStopped(()))
    life, commands = walk(JobKnown(True, output_on_evict=True), *story[1:])
    assert commands[-1] == Begin(Step.CLEAN)
    assert life.handle(Cleaned(""), now_s=9.0) == (Exit(EXIT_LOST_SHADOW),)


def test_output_of_a_held_job_waits_for_no_shadow_but_its_report_does() -> None:
    _, commands = walk(*RUNNING, Disconnected("cut"), ProxyEnding("soon"), FamilyStopped(()), Cleaned(""))
    assert [c.step for c in commands if isinstance(c, Begin)][3:] == [Step.STOP_SOFTLY, Step.CLEAN, Step.REPORT]


def test_a_report_without_a_shadow_ends_when_the_slot_is_wanted_back() -> None:
    _, commands = walk(*RUNNING, JobEnded(0, True), FamilyStopped(()), StagedOut(""), Disconnected("cut"), SOFT)
    assert commands[-1] == Exit(EXIT_LOST_SHADOW)


def test_a_shadow_is_told_that_the_startd_is_gone() -> None:
    life, commands = walk(*RUNNING, StartdLost(), FamilyStopped(()), Cleaned(""))
    assert commands[-1] == Begin(Step.REPORT)
    assert isinstance(life.verdict, Killed)
    assert life.handle(Disconnected("cut"), now_s=9.0) == (Exit(EXIT_NORMAL),)


def test_the_proxys_end_stops_the_job_before_fetches_its_output_and_holds_it() -> None:
    life, commands = walk(*RUNNING, ProxyEnding("ends at noon"), JobEnded(15, True), FamilyStopped(()), StagedOut(""))
    assert [c.step for c in commands if isinstance(c, Begin)][3:] == [Step.STOP_SOFTLY, Step.STAGE_OUT, Step.REPORT]
    assert life.verdict == Hold(4, 0, "ends at noon", output=True, final=True)


def test_output_that_cannot_be_fetched_does_not_hide_why_the_job_is_held() -> None:
    life, commands = walk(
        *RUNNING, ProxyEnding("ends at noon"), FamilyStopped(()), StepFailed(Hold(13, 2, "no file"), sandbox=True)
    )
    assert commands[-1] == Begin(Step.CLEAN)
    assert isinstance(life.verdict, Hold)
    assert life.verdict.code == 4


@pytest.mark.parametrize(("verdict", "following"), [(HOLD, Step.STAGE_OUT), (Requeue(4, "again"), Step.CLEAN)])
def test_another_identity_holds_with_output_or_tries_again(verdict: Hold | Requeue, following: Step) -> None:
    _, commands = walk(*RUNNING, SuspendAsked(), IdentityChanged(verdict), FamilyStopped(()))
    assert commands[-2:] == [Begin(Step.STOP_SOFTLY), Begin(following)]


def test_a_sandbox_that_stays_goes_to_the_janitor_and_does_not_break_the_slot() -> None:
    _, commands = walk(*RUNNING, JobEnded(0, True), FamilyStopped(()), StagedOut("s is left"), Reported())
    assert commands[-3:] == [LeaveToJanitor("s is left"), Begin(Step.REPORT), Exit(EXIT_NORMAL)]


def test_suspend_and_continue() -> None:
    life, commands = walk(*RUNNING, SuspendAsked(), ContinueAsked())
    assert commands[-2:] == [Suspend(), Resume()]
    assert life.state is State.RUNNING


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("fact", FACTS)
def test_every_fact_has_a_rule_in_every_state(state: State, fact: type) -> None:
    life = Life(state=state, verdict=Killed("x", 1, output=False))
    life.handle(SAMPLES[fact], now_s=0.0)


@pytest.mark.parametrize("state", list(State))
def test_outcomes_of_steps_that_do_not_run_are_our_own_bug(state: State) -> None:
    for kind, event in SAMPLES.items():
        if (state, kind) in RULES:
            continue
        life = Life(state=state)
        with pytest.raises(BrokenRule, match=kind.__name__):
            life.handle(event, now_s=0.0)
        assert life == Life(state=state)


@given(st.lists(st.sampled_from(list(SAMPLES.values())), max_size=40))
def test_whatever_comes_a_begun_job_is_never_forgotten(events: list[Event]) -> None:
    """Invariants over random stories: ended means exactly one Exit; a job that was launched was stopped before."""
    life, launched, stopped, exits = Life(), False, False, 0
    for event in events:
        try:
            commands = life.handle(event, now_s=0.0)
        except BrokenRule:
            continue
        for command in commands:
            if command == Begin(Step.LAUNCH):
                launched, stopped = True, False
            stopped = stopped or command in (Begin(Step.STOP_HARD), Begin(Step.STOP_SOFTLY))
            if command in (Begin(Step.STAGE_OUT), Begin(Step.CLEAN), Begin(Step.CHECKPOINT)) and launched:
                assert stopped
            exits += isinstance(command, Exit)
    assert exits == (1 if life.state is State.ENDED else 0)
    if life.state is State.ENDED and launched:
        assert stopped


def test_a_shadow_that_closes_on_a_hold_and_deactivates_has_heard_it() -> None:
    life, commands = walk(
        *RUNNING, LARGE, FamilyStopped(()), Cleaned(""), Disconnected("closed"), DeactivateAsked("x", 1, False, False)
    )
    assert life.verdict == Hold(34, 102, "too large")
    assert commands[-1] == Exit(EXIT_NORMAL)


LARGE = LimitExceeded(Hold(34, 102, "too large"), soft=False)
LATE = LimitExceeded(Hold(47, 0, "too long"), soft=True)
CHECKPOINT = CheckpointReached(JobEnded(85 << 8, exact=True))


def test_a_job_that_exhausts_the_node_is_stopped_hard_and_held() -> None:
    life, commands = walk(*RUNNING, LARGE)
    assert commands[-1] == Begin(Step.STOP_HARD)
    assert life.verdict == Hold(34, 102, "too large")


def test_a_job_whose_time_is_up_has_its_grace_and_its_output() -> None:
    known = JobKnown(has_proxy=False, output_on_evict=True)
    life, commands = walk(known, StagedIn(), Started(), LATE, FamilyStopped(()), StagedOut(""), Reported())
    assert [c.step for c in commands if isinstance(c, Begin)][2:] == [Step.STOP_SOFTLY, Step.STAGE_OUT, Step.REPORT]
    assert life.verdict == Hold(47, 0, "too long", output=True)


def test_memory_that_runs_out_in_the_grace_ends_it_and_changes_no_verdict() -> None:
    life, commands = walk(*RUNNING, SOFT, LARGE)
    assert commands[-1] == Begin(Step.STOP_HARD)
    assert life.verdict == Killed("rm", 1009, output=False)
    assert life.handle(LARGE, now_s=9.0) == ()


def test_a_checkpoint_is_sent_and_the_job_started_again_in_its_sandbox() -> None:
    life, commands = walk(*RUNNING, CHECKPOINT, FamilyStopped(()), CheckpointSent())
    steps = [c.step for c in commands if isinstance(c, Begin)][3:]
    assert steps == [Step.STOP_HARD, Step.CHECKPOINT, Step.LAUNCH]
    assert life.state is State.LAUNCHING
    assert life.verdict is None


def test_a_vacated_job_sends_its_checkpoint_and_is_not_started_again() -> None:
    life, commands = walk(*RUNNING, CHECKPOINT, FamilyStopped(()), SOFT, CheckpointSent())
    assert commands[-1] == Begin(Step.CLEAN)
    assert life.verdict == Killed("rm", 1009, output=False)


def test_a_job_whose_claim_would_not_take_it_again_goes_back_to_the_queue() -> None:
    life, commands = walk(*RUNNING, CHECKPOINT, FamilyStopped(()), CheckpointSent(go_on=False))
    assert commands[-1] == Begin(Step.CLEAN), "neither launched again nor its output fetched: the checkpoint has gone"
    assert life.verdict == Requeue(1025, NOT_AGAIN)
    life, _ = walk(*RUNNING, CHECKPOINT, FamilyStopped(()), SOFT, CheckpointSent(go_on=False))
    assert life.verdict == Killed("rm", 1009, output=False), "what was asked for meanwhile stays"


def test_a_hard_end_drops_the_checkpoint_and_stops_what_may_be_left() -> None:
    _, commands = walk(*RUNNING, CHECKPOINT, HARD)
    assert commands[-1] == Begin(Step.STOP_HARD)


def test_the_story_is_bounded() -> None:
    life, _ = walk(*RUNNING)
    for _ in range(500):
        life.handle(SuspendAsked(), now_s=0.0)
        life.handle(ContinueAsked(), now_s=0.0)
    assert len(life.story) == 64


ROW = re.compile(r"^\| (\d+) \| ([^|]+) \| ([^|]+) \|")


def test_the_page_lists_the_table() -> None:
    page = Path(__file__).parents[2] / "docs" / "job-life.md"
    rows = [match for line in page.read_text().splitlines() if (match := ROW.match(line))]
    told = [
        (int(row[1]), {w.strip() for w in row[2].split(",")}, {w.strip() for w in row[3].split(",")}) for row in rows
    ]
    table = [
        (number, {state.value for state in states}, {event.__name__ for event in events})
        for number, (states, events, _) in enumerate(NUMBERED, start=1)
    ]
    assert told == table


@pytest.mark.parametrize("soft", [True, False])
def test_want_hold_holds_the_job_with_its_words_and_subcode(soft: bool) -> None:
    event = asked(HoldJob(soft, 7, "uses more memory than it asked for"))
    assert event == LimitExceeded(Hold(21, 7, "uses more memory than it asked for"), soft=soft)


@pytest.mark.parametrize("before", range(3))
def test_a_suspension_that_comes_too_early_waits_for_the_job(before: int) -> None:
    steps: list[Event] = [JobKnown(has_proxy=False, output_on_evict=False), StagedIn(), Started()]
    life, commands = walk(*steps[:before], SuspendAsked(), *steps[before:])
    assert (life.state, commands[-1]) == (State.SUSPENDED, Suspend())
    assert life.handle(ContinueAsked(), now_s=9.0) == (Resume(),)
    assert life.state is State.RUNNING
    life, commands = walk(*steps[:before], SuspendAsked(), ContinueAsked(), *steps[before:])
    assert life.state is State.RUNNING
    assert Suspend() not in commands


def test_a_job_that_is_started_again_from_its_checkpoint_stands_still_if_that_was_asked_for() -> None:
    life, commands = walk(*RUNNING, CHECKPOINT, SuspendAsked(), FamilyStopped(()), CheckpointSent(), Started())
    assert (life.state, commands[-1]) == (State.SUSPENDED, Suspend())
