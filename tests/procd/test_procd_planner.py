"""procd.planner in virtual time."""

import random

import pytest

from procd.planner import Batch, Planner


def test_a_call_waits_for_its_share_of_the_jitter() -> None:
    planner = Planner(2.0)
    planner.ask(1, "alice", urgent=False, dice=0.5, now_s=10.0)
    assert planner.next_s() == 11.0
    assert planner.due(10.9) == []
    assert planner.due(11.0) == [Batch("alice", (1,))]
    assert planner.next_s() is None
    assert planner.due(99.0) == []


def test_later_requests_for_the_same_share_the_call() -> None:
    planner = Planner(2.0)
    planner.ask(1, "alice", urgent=False, dice=0.5, now_s=10.0)
    planner.ask(2, "alice", urgent=False, dice=0.0, now_s=10.5)
    planner.ask(3, "bob", urgent=False, dice=0.9, now_s=10.5)
    assert planner.due(11.0) == [Batch("alice", (1, 2))]
    assert planner.next_s() == pytest.approx(12.3)


def test_an_urgent_request_goes_at_once_and_takes_the_others_along() -> None:
    planner = Planner(2.0)
    planner.ask(1, "alice", urgent=False, dice=0.9, now_s=10.0)
    planner.ask(2, "alice", urgent=True, dice=0.9, now_s=10.1)
    assert planner.due(10.1) == [Batch("alice", (1, 2))]


def test_a_withdrawn_request_costs_no_call() -> None:
    planner = Planner(2.0)
    planner.ask(1, "alice", urgent=False, dice=0.1, now_s=0.0)
    planner.ask(2, "bob", urgent=False, dice=0.1, now_s=0.0)
    planner.ask(3, "bob", urgent=False, dice=0.1, now_s=0.0)
    for ticket in (1, 2, 99):
        planner.withdraw(ticket)
    assert planner.due(2.0) == [Batch("bob", (3,))]


def test_without_jitter_nothing_waits() -> None:
    planner = Planner(0.0)
    planner.ask(1, "alice", urgent=False, dice=0.99, now_s=5.0)
    assert planner.due(5.0) == [Batch("alice", (1,))]


def test_a_thousand_pilots_are_spread_evenly() -> None:
    """1,000 pilots that each lose one job in the same instant: no tenth of the window gets more than 1.5
    shares."""
    draw = random.Random(1)
    calls = []
    for _ in range(1000):
        planner = Planner(2.0)
        planner.ask(1, "alice", urgent=False, dice=draw.random(), now_s=0.0)
        due_s = planner.next_s()
        assert due_s is not None
        calls.append(due_s)
    counts = [sum(at * 0.2 <= due_s < (at + 1) * 0.2 for due_s in calls) for at in range(10)]
    assert sum(counts) == 1000
    assert max(counts) <= 150
    assert sum(calls) / 1000 <= 0.55 * 2.0
