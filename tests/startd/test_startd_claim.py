"""The pure life of a claim."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from startd.claim import NUMBERED, RULES, WITH_STARTER, Claim, State, WrongState
from startd.claimevents import (
    FACTS,
    REQUESTS,
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
    Ending,
    EndJob,
    Event,
    HoldWish,
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

SAMPLES: list[Event] = [
    Activate(1), Suspend(), Continue(), StarterRuns(7), StarterNotStarted("no"), StarterGone(0, False),
    StarterGone(0, True), Deactivated("graceful", False), Deactivated("fast", True), Released(), LeaseOver("x"),
    Shutdown(False), Shutdown(True), Retire(10.0, "drain", 1013), RetireTimer(1), Unretire(), KillTimer(1),
    Retire(5.0, "drain", 1014, Cause.DRAIN), Retire(5.0, "wanted", 1018, Cause.WANTED), Unretire(Cause.WANTED),
    RetireTimer(2, Ending("fast", HoldWish(7, "too big"))), SuspendWanted(), ContinueWanted(), KillWanted(),
]  # fmt: skip


def walk(*events: Event) -> tuple[Claim, list[Command]]:
    claim = Claim()
    commands: list[Command] = []
    for event in events:
        commands.extend(claim.handle(event, now_s=0.0))
    return claim, commands


BUSY = (Activate(1), StarterRuns(7))


def test_a_claim_is_used_again_and_again() -> None:
    claim, commands = walk(*BUSY, StarterGone(0, False), Activate(2), StarterRuns(8), StarterGone(0, False))
    assert claim.state is State.IDLE
    assert commands == [StartStarter(1), StartStarter(2)]


def test_activation_of_a_busy_claim_is_refused_for_now() -> None:
    claim, _ = walk(*BUSY)
    with pytest.raises(WrongState) as refused:
        claim.handle(Activate(2), now_s=0.0)
    assert refused.value.try_again
    assert claim.state is State.BUSY


def test_activation_of_a_closing_claim_is_refused_for_good() -> None:
    claim, _ = walk(*BUSY, Released())
    with pytest.raises(WrongState) as refused:
        claim.handle(Activate(2), now_s=0.0)
    assert not refused.value.try_again


def test_deactivate_keeps_the_claim() -> None:
    claim, commands = walk(*BUSY, Deactivated("graceful", worklife_over=False))
    assert claim.state is State.VACATING
    assert [type(c) for c in commands[1:]] == [EndJob, ArmKill]
    claim.handle(StarterGone(0, False), now_s=0.0)
    assert claim.state is State.IDLE


@pytest.mark.parametrize(
    ("events", "changes", "expected"),
    [
        ((), {}, True),
        ((), {"welcome": False}, False),
        ((), {"age_s": 10.0}, False),
        ((), {"age_s": 10.0, "worklife_s": -1.0}, True),
        ((), {"worklife_s": 0.0}, False),
        ((Retire(60.0, "x", 1018, Cause.WANTED),), {}, False),
        ((Retire(60.0, "x", 1018, Cause.WANTED), Suspend()), {}, False),
        ((Retire(60.0, "x", 1014, Cause.DRAIN), Unretire(Cause.DRAIN)), {}, True),
        ((LeaseOver("x"),), {}, False),
    ],
)
def test_when_a_claim_takes_another_job(events: tuple[Event, ...], changes: dict[str, Any], expected: bool) -> None:
    claim, _ = walk(*BUSY, *events)
    assert claim.takes_another(**({"welcome": True, "age_s": 9.0, "worklife_s": 10.0} | changes)) is expected


def test_after_the_worklife_deactivate_ends_the_claim_without_a_release() -> None:
    claim, commands = walk(*BUSY, Deactivated("graceful", worklife_over=True), StarterGone(0, False))
    assert claim.state is State.GONE
    assert TellSchedd() not in commands
    assert commands[-1] == Destroy(broken=False)


def test_release_of_an_idle_claim_destroys_it_at_once() -> None:
    claim, commands = walk(Released())
    assert (claim.state, commands) == (State.GONE, [Destroy(broken=False)])


def test_lease_over_ends_the_job_fast_and_tells_the_schedd() -> None:
    claim, commands = walk(*BUSY, LeaseOver("silence"))
    assert claim.state is State.CLOSING
    assert TellSchedd() not in commands, "not before the job is over"
    assert claim.handle(StarterGone(0, broken=False), now_s=1.0)[0] == TellSchedd()
    assert any(isinstance(c, EndJob) and c.how == "fast" for c in commands)


def test_a_broken_slot_ends_its_claim_and_withholds_it() -> None:
    claim, commands = walk(*BUSY, StarterGone(16, broken=True))
    assert commands[-2:] == [TellSchedd(), Destroy(broken=True)]
    assert claim.state is State.GONE


def test_only_the_newest_timer_kills() -> None:
    claim, commands = walk(*BUSY, Deactivated("graceful", False), Deactivated("fast", False))
    serials = [c.serial for c in commands if isinstance(c, ArmKill)]
    assert claim.handle(KillTimer(serials[0]), now_s=0.0) == ()
    assert claim.handle(KillTimer(serials[1]), now_s=0.0) == (KillStarter(),)


def test_a_timer_of_an_activation_that_is_over_does_nothing() -> None:
    claim, commands = walk(*BUSY, Deactivated("fast", False), StarterGone(0, False), Activate(2), StarterRuns(9))
    serial = next(c.serial for c in commands if isinstance(c, ArmKill))
    assert claim.handle(KillTimer(serial), now_s=0.0) == ()


def test_suspend_and_continue_reach_a_busy_starter_only() -> None:
    claim, commands = walk(*BUSY, Suspend(), Continue())
    assert commands[1:] == [SuspendJob(), ContinueJob()]
    with pytest.raises(WrongState):
        claim.handle(Continue(), now_s=0.0)
    with pytest.raises(WrongState):
        Claim().handle(Suspend(), now_s=0.0)


def test_a_retiring_job_goes_on_for_its_time_and_is_then_ended_gracefully() -> None:
    claim, commands = walk(*BUSY, Retire(60.0, "the pilot retires", 1013))
    assert claim.state is State.RETIRING
    assert commands[1:] == [ArmRetire(1, 60.0)]
    told = claim.handle(RetireTimer(1), now_s=60.0)
    assert told[0] == EndJob("graceful", "the pilot retires", 1013)
    assert claim.state is State.CLOSING
    assert claim.handle(StarterGone(0, broken=False), now_s=61.0) == (TellSchedd(), Destroy(broken=False))


def test_a_retiring_claim_takes_no_further_job() -> None:
    claim, commands = walk(*BUSY, Retire(60.0, "x", 1013), StarterGone(0, broken=False))
    assert claim.state is State.GONE
    assert commands[-2:] == [TellSchedd(), Destroy(broken=False)]


def test_a_retirement_that_was_called_off_ends_no_job() -> None:
    claim, commands = walk(*BUSY, Retire(60.0, "x", 1014, Cause.DRAIN), Unretire(), RetireTimer(1))
    assert claim.state is State.BUSY
    assert not any(isinstance(c, EndJob) for c in commands)


@pytest.mark.parametrize("cause", [Cause.ORDER, Cause.PREEMPT])
def test_an_order_and_preempt_are_not_called_off(cause: Cause) -> None:
    claim, _ = walk(*BUSY, Retire(60.0, "x", 1011, cause), Unretire(Cause.DRAIN), Unretire(Cause.WANTED))
    assert claim.state is State.RETIRING


def test_a_job_goes_on_when_the_last_cause_is_called_off() -> None:
    asked = Retire(60.0, "x", 1014, Cause.DRAIN), Retire(90.0, "y", 1018, Cause.WANTED)
    claim, _ = walk(*BUSY, *asked, Unretire(Cause.DRAIN))
    assert claim.state is State.RETIRING
    claim.handle(Unretire(Cause.WANTED), now_s=1.0)
    assert claim.state is State.BUSY


def test_of_several_retirements_the_earliest_end_counts() -> None:
    claim, commands = walk(*BUSY, Retire(60.0, "first", 1014), Retire(90.0, "later", 1018), Retire(5.0, "sooner", 1011))
    assert [c.limit_s for c in commands if isinstance(c, ArmRetire)] == [60.0, 5.0]
    assert claim.handle(RetireTimer(1), now_s=60.0) == (), "the timer of the first is stale"
    assert claim.handle(RetireTimer(2), now_s=5.0)[0] == EndJob("graceful", "sooner", 1011)


def test_policy_says_how_a_retired_job_ends() -> None:
    claim, _ = walk(*BUSY, Retire(0.0, "PREEMPT is true", 1011, Cause.PREEMPT))
    hold = HoldWish(7, "too big")
    told = claim.handle(RetireTimer(1, Ending("graceful", hold)), now_s=0.0)
    assert told[0] == EndJob("graceful", "PREEMPT is true", 1011, hold)
    assert claim.shown == "closing"
    told = claim.handle(KillWanted(), now_s=1.0)
    assert told[0] == EndJob("fast", "PREEMPT is true", 1011, hold), "still on hold"
    assert claim.shown == "killing"
    assert claim.handle(KillWanted(), now_s=2.0) == ()


def test_a_job_that_the_submit_side_ends_in_retirement_is_the_claims_last() -> None:
    claim, _ = walk(*BUSY, Retire(60.0, "x", 1018, Cause.WANTED), Deactivated("graceful", worklife_over=False))
    assert claim.state is State.CLOSING
    claim, _ = walk(*BUSY, Retire(60.0, "x", 1018, Cause.WANTED), SuspendWanted(), Deactivated("fast", False))
    assert claim.state is State.CLOSING


def test_kill_is_not_for_what_the_submit_side_ends() -> None:
    claim, _ = walk(*BUSY, Deactivated("final-transfer", worklife_over=True))
    assert claim.state is State.CLOSING
    assert claim.handle(KillWanted(), now_s=1.0) == ()


def test_policy_does_not_end_the_schedds_suspension_nor_the_schedd_policys() -> None:
    claim, _ = walk(*BUSY, Suspend(), ContinueWanted())
    assert claim.state is State.SUSPENDED
    claim.handle(Continue(), now_s=0.0)
    claim.handle(SuspendWanted(), now_s=0.0)
    assert claim.handle(Continue(), now_s=0.0) == ()
    assert claim.handle(ContinueWanted(), now_s=0.0) == (ContinueJob(),)
    assert claim.state is State.BUSY


def test_a_suspended_job_that_is_retired_goes_on_to_get_done() -> None:
    claim, commands = walk(*BUSY, Suspend(), Retire(60.0, "x", 1013))
    assert (claim.state, commands[-2:]) == (State.RETIRING, [ContinueJob(), ArmRetire(1, 60.0)])
    claim.handle(SuspendWanted(), now_s=1.0)
    assert claim.state is State.SUSPENDED
    assert claim.handle(RetireTimer(1), now_s=60.0)[0] == EndJob("graceful", "x", 1013)


def test_a_suspended_job_that_ends_leaves_its_claim() -> None:
    claim, _ = walk(*BUSY, Suspend(), StarterGone(0, False), Activate(2), StarterRuns(8))
    assert claim.state is State.BUSY
    assert claim.handle(SuspendWanted(), now_s=0.0) == (SuspendJob(),)
    assert claim.handle(ContinueWanted(), now_s=0.0) == (ContinueJob(),), "the schedd's suspension was the last job's"


def test_an_idle_claim_retires_at_once() -> None:
    claim, commands = walk(Retire(60.0, "x", 1013))
    assert (claim.state, commands) == (State.GONE, [TellSchedd(), Destroy(broken=False)])


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("event", SAMPLES)
def test_facts_have_rules_everywhere_and_refusals_change_nothing(state: State, event: Event) -> None:
    claim = Claim(state=state)
    if type(event) in FACTS:
        claim.handle(event, now_s=0.0)
        return
    assert type(event) in REQUESTS
    if (state, type(event)) not in RULES:
        with pytest.raises(WrongState):
            claim.handle(event, now_s=0.0)
        assert claim == Claim(state=state)


@given(st.lists(st.sampled_from(SAMPLES), max_size=50))
def test_a_claim_is_destroyed_at_most_once_and_only_without_a_starter(events: list[Event]) -> None:
    claim, running, destroyed = Claim(), False, 0
    for event in events:
        try:
            commands = claim.handle(event, now_s=0.0)
        except WrongState:
            continue
        running = claim.state in WITH_STARTER
        destroyed += sum(isinstance(c, Destroy) for c in commands)
        if any(isinstance(c, Destroy) for c in commands):
            assert not running
    assert destroyed == (claim.state is State.GONE)


@given(st.lists(st.sampled_from(SAMPLES), max_size=50))
def test_a_claim_knows_whether_its_job_is_suspended(events: list[Event]) -> None:
    claim, suspended = Claim(), False
    for event in [*BUSY, *events]:
        try:
            commands = claim.handle(event, now_s=0.0)
        except WrongState:
            continue
        for command in commands:
            match command:
                case SuspendJob():
                    assert not suspended
                    suspended = True
                case ContinueJob():
                    assert suspended
                    suspended = False
        if claim.state not in (State.SUSPENDED, State.BUSY, State.RETIRING):  # the job is over, or about to be
            suspended = False
        assert suspended == (claim.state is State.SUSPENDED)


@given(st.lists(st.sampled_from(SAMPLES), max_size=50))
def test_a_retired_claim_takes_no_job(events: list[Event]) -> None:
    claim = Claim()
    for event in [*BUSY, *events]:
        had = claim.causes
        try:
            claim.handle(event, now_s=0.0)
        except WrongState:
            continue
        assert not (had and isinstance(event, Activate))
        if claim.causes:
            assert claim.state in (State.RETIRING, State.SUSPENDED, State.CLOSING, State.GONE)


ROW = re.compile(r"^\| (\d+) \| ([^|]+) \| ([^|]+) \|")


def test_the_page_lists_the_table() -> None:
    page = Path(__file__).parents[2] / "docs" / "claim-life.md"
    rows = [match for line in page.read_text().splitlines() if (match := ROW.match(line))]
    told = [
        (int(row[1]), {w.strip() for w in row[2].split(",")}, {w.strip() for w in row[3].split(",")}) for row in rows
    ]
    table = [
        (number, {state.value for state in states}, {event.__name__ for event in events})
        for number, (states, events, _) in enumerate(NUMBERED, start=1)
    ]
    assert told == table
