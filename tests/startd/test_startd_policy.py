"""What policy expressions want of a claim: ads in, a wish out. And the clocks that they count with."""

from __future__ import annotations

import re
from pathlib import Path

import attrs
import pytest
from classad2 import ClassAd
from hypothesis import given
from hypothesis import strategies as st

from cedar.classads import parse_old
from pilot.configuration import from_values
from pilot.settings import Settings
from startd import policy
from startd.claim import State
from startd.claimevents import Ending, HoldWish
from startd.clocks import Clocks, Totals
from startd.policy import QUESTIONS, Facts, Policy, Wish, decide, ending, refusal
from startd.polling import policy_of

SLOT = 'Name = "slot1_1@node"\nMemory = 128\nMemoryUsage = 200\nState = "Claimed"\nActivity = "Busy"\n'
JOB = 'Owner = "alice"\nCheckpointable = false\n'
BUSY, RETIRING, SUSPENDED, CLOSING, IDLE = (
    Facts(state) for state in (State.BUSY, State.RETIRING, State.SUSPENDED, State.CLOSING, State.IDLE)
)


def given_knobs(knobs: dict[str, str]) -> Settings:
    return from_values(knobs, source=None)


def asked(job: str | None = JOB, **knobs: str) -> policy.Asked:
    return policy_of(given_knobs(knobs)).asked(parse_old(SLOT), None if job is None else parse_old(job))


def wish(facts: Facts, **knobs: str) -> Wish:
    return decide(asked(**knobs), facts)


@pytest.mark.parametrize("facts", [BUSY, RETIRING, SUSPENDED, IDLE])
def test_the_defaults_end_no_job(facts: Facts) -> None:
    assert wish(facts) is (Wish.CONTINUE if facts is SUSPENDED else Wish.NOTHING)
    assert not policy_of(given_knobs({})).watches_jobs
    assert not policy_of(given_knobs({})).watches_owner


@pytest.mark.parametrize(
    ("facts", "knobs", "wanted"),
    [
        (BUSY, {"PREEMPT": "MemoryUsage > Memory"}, Wish.PREEMPT),
        (BUSY, {"PREEMPT": "MemoryUsage < Memory"}, Wish.NOTHING),
        (BUSY, {"PREEMPT": 'TARGET.Owner == "alice"'}, Wish.PREEMPT),
        (BUSY, {"PREEMPT": "1"}, Wish.PREEMPT),
        (BUSY, {"PREEMPT": "0.0"}, Wish.NOTHING),
        (BUSY, {"PREEMPT": "NoSuchThing"}, Wish.NOTHING),
        (BUSY, {"PREEMPT": "1 / 0"}, Wish.NOTHING),
        (BUSY, {"PREEMPT": '"true"'}, Wish.NOTHING),
        (BUSY, {"PREEMPT": "False", "PREEMPT_VANILLA": "True"}, Wish.PREEMPT),
        (BUSY, {"PREEMPT": "True", "PREEMPT_VANILLA": "False"}, Wish.NOTHING),
        (BUSY, {"PREEMPT": "True", "PREEMPT_VANILLA": "undefined"}, Wish.PREEMPT),
        (BUSY, {"PREEMPT": "True", "WANT_SUSPEND": "True"}, Wish.NOTHING),
        (BUSY, {"PREEMPT": "True", "WANT_SUSPEND": "True", "SUSPEND": "True"}, Wish.SUSPEND),
        (BUSY, {"SUSPEND": "True"}, Wish.NOTHING),
        (BUSY, {"SUSPEND": "True", "WANT_SUSPEND": "undefined"}, Wish.NOTHING),
        (BUSY, {"START": "False"}, Wish.NOTHING),
        (BUSY, {"IS_OWNER": "True"}, Wish.NOTHING),
        (BUSY, {"KILL": "True"}, Wish.NOTHING),
        (RETIRING, {"PREEMPT": "True"}, Wish.PREEMPT),
        (RETIRING, {"SUSPEND": "True", "WANT_SUSPEND": "True"}, Wish.SUSPEND),
        (attrs.evolve(RETIRING, preempted=True), {"PREEMPT": "True"}, Wish.NOTHING),
        (SUSPENDED, {"CONTINUE": "False"}, Wish.NOTHING),
        (SUSPENDED, {"CONTINUE": "undefined"}, Wish.NOTHING),
        (SUSPENDED, {"PREEMPT": "True", "WANT_SUSPEND": "True"}, Wish.PREEMPT),
        (attrs.evolve(SUSPENDED, by_command=True), {}, Wish.NOTHING),
        (CLOSING, {"KILL": "True"}, Wish.NOTHING),
        (attrs.evolve(CLOSING, ours=True), {"KILL": "True"}, Wish.KILL),
        (attrs.evolve(CLOSING, ours=True, killing=True), {"KILL": "True"}, Wish.NOTHING),
        (IDLE, {"IS_OWNER": "True"}, Wish.END_OWNER),
        (IDLE, {"PREEMPT": "True"}, Wish.NOTHING),
        (attrs.evolve(IDLE, worklife_over=True), {}, Wish.END_OLD),
    ],
)
def test_what_is_wanted(facts: Facts, knobs: dict[str, str], wanted: Wish) -> None:
    assert wish(facts, **knobs) is wanted


@given(
    st.dictionaries(
        st.sampled_from(["PREEMPT", "SUSPEND", "CONTINUE", "KILL", "WANT_SUSPEND", "WANT_VACATE", "IS_OWNER"]),
        st.sampled_from(["True", "False", "undefined", "error", '"text"', "7", "{1}", "MemoryUsage > Memory"]),
    ),
    st.sampled_from(list(State)), st.booleans(), st.booleans(), st.booleans(),
)  # fmt: skip
def test_a_wish_is_one_that_its_state_has_a_rule_for(
    knobs: dict[str, str], state: State, preempted: bool, by_command: bool, ours: bool
) -> None:
    wanted = wish(Facts(state, preempted, by_command, ours), **knobs)
    allowed = {asked_for for states, _, asked_for in QUESTIONS if state in states}
    assert wanted in allowed | {Wish.NOTHING}


@pytest.mark.parametrize(
    ("knobs", "preempted", "wanted"),
    [
        ({"WANT_HOLD": "True"}, False, Ending()),
        ({"WANT_VACATE": "False"}, False, Ending()),
        ({}, True, Ending("graceful")),
        ({"WANT_VACATE": "False"}, True, Ending("fast")),
        ({"WANT_VACATE": "undefined"}, True, Ending("graceful")),
        ({"PREEMPT": "True", "WANT_VACATE": "False"}, False, Ending("fast")),
        (
            {"WANT_HOLD": "True", "WANT_HOLD_REASON": 'strcat("too ", "big")', "WANT_HOLD_SUBCODE": "Memory"},
            True,
            Ending("graceful", HoldWish(128, "too big")),
        ),
        (
            {"WANT_HOLD": "MemoryUsage > Memory", "WANT_HOLD_REASON": "undefined", "WANT_HOLD_SUBCODE": '"7"'},
            True,
            Ending(
                "graceful",
                HoldWish(0, "The policy of slot1_1@node put the job on hold: WANT_HOLD = MemoryUsage > Memory"),
            ),
        ),
        (
            {"WANT_HOLD": "True", "WANT_HOLD_REASON": '"x"', "WANT_HOLD_SUBCODE": 'real("INF")'},
            True,
            Ending("graceful", HoldWish(0, "x")),
        ),
        ({"WANT_HOLD": "undefined"}, True, Ending("graceful")),
        ({"WANT_HOLD": "True", "WANT_HOLD_REASON": '"a\\nb"', "WANT_HOLD_SUBCODE": "-5000"}, True,
         Ending("graceful", HoldWish(-999, "a b"))),
    ],
)  # fmt: skip
def test_how_a_retired_job_ends(knobs: dict[str, str], preempted: bool, wanted: Ending) -> None:
    assert ending(asked(**knobs), preempted=preempted) == wanted


def test_what_is_neither_true_nor_false_is_remembered_for_the_log() -> None:
    question = asked(PREEMPT="NoSuchThing", SUSPEND="1/0", WANT_SUSPEND="True")
    question.truth("PREEMPT")
    question.truth("SUSPEND")
    question.truth("WANT_HOLD")
    assert question.unclear == {"PREEMPT": "undefined", "SUSPEND": "an error"}


@pytest.mark.parametrize(
    ("start", "words"),
    [
        ('TARGET.Owner == "alice"', ""),
        ('TARGET.Owner == "bob"', "Start of the slot is false"),
        ("TARGET.NoSuchThing", "Start of the slot is undefined"),
        ("1 / 0", "Start of the slot is an error"),
        ('"yes"', "Start of the slot is neither true nor false"),
    ],
)
def test_a_refusal_says_what_start_was(start: str, words: str) -> None:
    slot = parse_old(f"{SLOT}Start = {start}\nRequirements = Start\n")
    assert refusal(slot, parse_old(f"{JOB}Requirements = true\n")) == words


def test_a_refusal_says_whose_requirements_they_were() -> None:
    slot = parse_old(f"{SLOT}Start = true\nRequirements = Start\n")
    assert refusal(slot, parse_old(f"{JOB}Requirements = TARGET.Memory > 500\n")) == "Requirements of the job is false"


@pytest.mark.parametrize(
    ("expression", "value"),
    [("7", 7.0), ("TARGET.JobPrio", 3.0), ("undefined", 0.0), ("1/0", 0.0), ('"high"', 0.0), ('real("NaN")', 0.0)],
)
def test_rank_is_a_number_or_nothing(expression: str, value: float) -> None:
    assert policy.rank(parse_old(f"Rank = {expression}\n"), parse_old("JobPrio = 3\n")) == value


def test_an_owner_is_one_where_start_is_false_for_anybody() -> None:
    knobs = {"IS_OWNER": "(START =?= False)"}
    for start, owner in (("False", True), ("TARGET.x", None), ("True", False)):
        slot = parse_old(f"{SLOT}Start = {start}\n")
        found = policy_of(given_knobs(knobs)).asked(slot, None).truth("IS_OWNER")
        assert found is (owner is True), start


def test_a_policy_that_is_never_true_is_not_looked_at() -> None:
    assert not Policy({"PREEMPT": "False", "SUSPEND": "false", "KILL": " FALSE "}).watches_jobs
    assert Policy({"PREEMPT": "False", "PREEMPT_VANILLA": "x > 1"}).watches_jobs


def clocks() -> Clocks:
    return Clocks(0.0, 1000, 1000, Totals(0.0, ("Claimed", "Idle")))


def test_clocks_tell_run_and_suspended_time_apart() -> None:
    clock = clocks()
    clock.job_begins(now_s=10.0, unix=1010)
    clock.enter("Claimed", "Busy", now_s=10.0, unix=1010)
    clock.enter("Claimed", "Suspended", now_s=30.0, unix=1030)
    clock.enter("Claimed", "Busy", now_s=35.0, unix=1035)
    assert clock.ran_s(40.0) == 25.0
    ad = clock.attributes(40.0)
    assert (ad["JobStart"], ad["TotalJobRunTime"], ad["TotalJobSuspendTime"]) == (1010, 25, 5)
    assert (ad["TotalTimeClaimedIdle"], ad["TotalTimeClaimedBusy"], ad["TotalTimeClaimedSuspended"]) == (10, 25, 5)
    assert (clock.state_at, clock.activity_at) == (1000, 1035)
    clock.job_ends(now_s=40.0)
    clock.enter("Preempting", "Killing", now_s=40.0, unix=1040)
    assert clock.ran_s(50.0) == 0.0
    assert clock.attributes(50.0)["TotalClaimRunTime"] == 25
    assert clock.state_at == 1040


@given(st.lists(st.tuples(st.sampled_from(["Busy", "Suspended", "Idle"]), st.floats(0, 100)), max_size=20))
def test_no_second_is_lost_or_counted_twice(story: list[tuple[str, float]]) -> None:
    clock, now_s = clocks(), 0.0
    clock.job_begins(now_s=0.0, unix=0)
    for activity, passed_s in story:
        now_s += passed_s
        clock.enter("Claimed", activity, now_s=now_s, unix=int(now_s))
    clock.ran_s(now_s + 1)
    clock.totals.attributes(now_s + 1)
    assert sum(clock.totals.seconds.values()) == pytest.approx(now_s + 1)
    assert clock.job_run_s + clock.job_suspended_s == pytest.approx(now_s + 1)


ROW = re.compile(r"^\| (\d+) \| ([^|]+) \| [^|]+ \| ([^|]+) \|$")


def test_the_page_lists_the_questions() -> None:
    page = (Path(__file__).parents[2] / "docs" / "policy.md").read_text()
    rows = [match for line in page.splitlines() if (match := ROW.match(line))]
    told = [({word.strip() for word in row[2].split(",")}, row[3].strip()) for row in rows]
    assert told == [({state.value for state in states}, wanted.value) for states, _, wanted in QUESTIONS]


def test_an_ad_with_a_policy_in_it_is_the_callers_own() -> None:
    slot = ClassAd()
    policy_of(given_knobs({"PREEMPT": "True"})).asked(slot, None)
    assert "PREEMPT" in slot
