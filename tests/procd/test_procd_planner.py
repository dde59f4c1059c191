"""procd.planner in virtual time."""

from __future__ import annotations

import random
from collections.abc import Sequence

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from procd.planner import PATIENT_PART, URGENT_PART, Batch, Planner, Spread

JITTER = Spread(2.0)
LONG_S = 1000.0


def planner_with(spread: Spread, dices: Sequence[float], *, time_s: float = LONG_S) -> Planner:
    """A planner that is asked for one call each at 0."""
    planner = Planner(spread)
    for ticket, dice in enumerate(dices):
        planner.ask(ticket, ticket, urgent=False, time_s=time_s, dice=dice, now_s=0.0)
    return planner


def run_out(planner: Planner) -> list[tuple[float, Batch]]:
    """Every call with its time, as a caller makes them who wakes up exactly then."""
    calls = []
    while (now_s := planner.next_s()) is not None:
        batches = planner.due(now_s)
        assert batches, "woken up for nothing"
        calls += [(now_s, batch) for batch in batches]
    return calls


def times(planner: Planner) -> list[float]:
    return [at_s for at_s, _ in run_out(planner)]


def test_a_lone_call_waits_for_its_share_of_the_jitter() -> None:
    planner = Planner(JITTER)
    planner.ask(1, "alice", urgent=False, time_s=LONG_S, dice=0.5, now_s=10.0)
    assert planner.next_s() == 11.0
    assert planner.due(10.9) == []
    assert planner.due(11.0) == [Batch("alice", (1,))]
    assert planner.next_s() is None
    assert planner.due(99.0) == []


def test_later_requests_for_the_same_share_the_call() -> None:
    planner = Planner(JITTER)
    planner.ask(1, "alice", urgent=False, time_s=LONG_S, dice=0.5, now_s=10.0)
    planner.ask(2, "alice", urgent=False, time_s=LONG_S, dice=0.0, now_s=10.5)
    planner.ask(3, "bob", urgent=False, time_s=LONG_S, dice=0.9, now_s=10.5)
    assert planner.due(11.0) == [Batch("alice", (1, 2))]
    assert planner.next_s() == pytest.approx(12.3)


def test_the_window_grows_with_the_calls_up_to_its_limit() -> None:
    spread = Spread(2.0, window_s=10.0)
    assert [spread.width_s(calls) for calls in (1, 2, 5, 6, 100)] == [2.0, 4.0, 10.0, 10.0, 10.0]
    assert Spread(2.0, window_s=0.0).width_s(8) == 2.0
    assert Spread(2.0, window_s=10.0, rate_per_s=2.0).width_s(64) == 32.0
    assert Spread(0.0, window_s=10.0).width_s(8) == 0.0


def test_calls_that_wait_make_room_for_more_and_never_move_forward() -> None:
    planner = Planner(Spread(2.0, window_s=10.0))
    planner.ask(1, "alice", urgent=False, time_s=LONG_S, dice=0.5, now_s=0.0)
    planner.ask(2, "bob", urgent=False, time_s=LONG_S, dice=0.75, now_s=0.0)
    assert planner.next_s() == 2.0
    planner.withdraw(2)
    assert planner.next_s() == 2.0
    planner.ask(3, "carol", urgent=False, time_s=LONG_S, dice=0.9, now_s=0.5)
    planner.withdraw(3)
    planner.ask(4, "alice", urgent=False, time_s=LONG_S, dice=0.0, now_s=0.5)
    assert run_out(planner) == [(2.0, Batch("alice", (1, 4)))]


def test_an_urgent_request_comes_early_and_takes_the_others_along() -> None:
    planner = Planner(JITTER)
    planner.ask(1, "alice", urgent=False, time_s=LONG_S, dice=0.8, now_s=10.0)
    planner.ask(2, "alice", urgent=True, time_s=LONG_S, dice=0.1, now_s=10.1)
    (at_s, batch), *rest = run_out(planner)
    assert at_s == pytest.approx(10.1 + URGENT_PART * 1.6)
    assert (batch, rest) == (Batch("alice", (1, 2)), [])


def test_urgent_requests_get_the_first_tokens() -> None:
    planner = Planner(Spread(0.0, rate_per_s=1.0, burst=1))
    for ticket in range(4):
        planner.ask(ticket, ticket, urgent=ticket >= 2, time_s=LONG_S, dice=0.0, now_s=0.0)
    assert [(at_s, batch.key) for at_s, batch in run_out(planner)] == [(0.0, 2), (1.0, 3), (2.0, 0), (3.0, 1)]


def test_no_call_is_planned_after_half_of_its_request_s_time() -> None:
    assert times(planner_with(Spread(2.0, window_s=600.0), [0.999] * 300, time_s=30.0)) == [0.999 * 15.0] * 300


def test_a_later_request_with_less_time_brings_the_call_forward() -> None:
    planner = Planner(JITTER)
    planner.ask(1, "alice", urgent=False, time_s=LONG_S, dice=0.9, now_s=0.0)
    planner.ask(2, "alice", urgent=False, time_s=1.0, dice=0.9, now_s=0.5)
    (at_s, _), *rest = run_out(planner)
    assert 0.5 <= at_s <= 1.0
    assert rest == []


def test_after_a_burst_calls_keep_to_the_rate() -> None:
    assert times(planner_with(Spread(0.0, rate_per_s=2.0, burst=3), [0.0] * 6)) == [0, 0, 0, 0.5, 1.0, 1.5]


def test_without_a_rate_nothing_waits_for_tokens() -> None:
    assert times(planner_with(Spread(0.0, burst=1), [0.5] * 50)) == [0.0] * 50


def test_another_attempt_costs_a_token() -> None:
    planner = planner_with(Spread(0.0, rate_per_s=1.0, burst=2), [0.0])
    assert len(planner.due(0.0)) == 1
    planner.charge(0.0)
    planner.ask(9, "bob", urgent=False, time_s=LONG_S, dice=0.0, now_s=0.25)
    assert run_out(planner) == [(1.0, Batch("bob", (9,)))]


def test_what_had_to_be_called_without_tokens_is_not_paid_back() -> None:
    planner = planner_with(Spread(0.0, rate_per_s=1.0, burst=2), [0.0] * 10, time_s=0.0)
    assert len(planner.due(0.0)) == 10
    planner.ask(10, "bob", urgent=False, time_s=LONG_S, dice=0.0, now_s=0.0)
    assert times(planner) == [1.0]


def test_what_the_rate_cannot_carry_in_time_is_spread_evenly_too() -> None:
    """100 calls, 15 s for them, and a rate of 2 a second: no heap at the end."""
    draw = random.Random(7)
    made = times(
        planner_with(Spread(2.0, 10.0, rate_per_s=2.0, burst=8), [draw.random() for _ in range(100)], time_s=30.0)
    )
    assert max(made) <= 15.0
    assert max(sum(second <= at_s < second + 1 for at_s in made) for second in range(16)) <= 15


def test_a_withdrawn_request_costs_no_call() -> None:
    planner = planner_with(JITTER, [0.1])
    for ticket in (2, 3):
        planner.ask(ticket, "bob", urgent=False, time_s=LONG_S, dice=0.1, now_s=0.0)
    for ticket in (0, 2, 99):
        planner.withdraw(ticket)
    assert [batch for _, batch in run_out(planner)] == [Batch("bob", (3,))]


# --- whatever comes ----------------------------------------------------------------------------------------------


@attrs.frozen
class Ask:
    """A request, and how long after the one before; withdraw_s: it is withdrawn after that, if it still waits."""

    after_s: float
    key: int
    urgent: bool
    time_s: float
    dice: float
    withdraw_s: float | None


SPREADS = st.builds(
    Spread,
    jitter_s=st.sampled_from([0.0, 0.3, 2.0]),
    window_s=st.sampled_from([0.0, 5.0, 10.0, 100.0]),
    rate_per_s=st.sampled_from([0.0, 0.3, 1.0, 2.0, 7.0]),
    burst=st.integers(1, 8),
)


def asks(times_s: st.SearchStrategy[float]) -> st.SearchStrategy[list[Ask]]:
    """Some at once, some seconds later."""
    return st.lists(
        st.builds(
            Ask,
            after_s=st.sampled_from([0.0, 0.0, 0.001, 0.7, 5.0]),
            key=st.integers(0, 30),
            urgent=st.booleans(),
            time_s=times_s,
            dice=st.floats(0, 1, exclude_max=True),
            withdraw_s=st.sampled_from([None, None, None, 0.0, 1.3]),
        ),
        max_size=60,
    )


@attrs.define
class Play:
    """What happened: when each request was asked, and when it got its call."""

    spread: Spread
    asked_s: dict[int, float] = attrs.field(factory=dict)
    made_s: dict[int, float] = attrs.field(factory=dict)
    withdrawn: set[int] = attrs.field(factory=set)
    calls: list[tuple[float, Batch]] = attrs.field(factory=list)
    now_s: float = 0.0

    def run(self, requests: list[Ask]) -> Play:
        planner = Planner(self.spread)
        leaving: list[tuple[float, int]] = []
        for ticket, ask in enumerate(requests):
            now_s = self.now_s + ask.after_s
            self._until(planner, now_s, leaving)
            self.now_s = now_s
            planner.ask(ticket, ask.key, urgent=ask.urgent, time_s=ask.time_s, dice=ask.dice, now_s=now_s)
            self.asked_s[ticket] = now_s
            if ask.withdraw_s is not None:
                leaving.append((now_s + ask.withdraw_s, ticket))
        self._until(planner, float("inf"), leaving)
        assert planner.next_s() is None
        return self

    def _until(self, planner: Planner, end_s: float, leaving: list[tuple[float, int]]) -> None:
        """All calls and withdrawals before a time, in their order."""
        while True:
            leaving.sort()
            leave_s = leaving[0][0] if leaving else float("inf")
            call_s = planner.next_s()
            if (leave_s if call_s is None else min(call_s, leave_s)) >= end_s:
                return
            if call_s is None or leave_s <= call_s:
                self.now_s, ticket = leaving.pop(0)
                self._withdraw(planner, ticket)
            else:
                self.now_s = max(self.now_s, call_s)
                self._call(planner, self.now_s)

    def _withdraw(self, planner: Planner, ticket: int) -> None:
        planner.withdraw(ticket)
        if ticket not in self.made_s:
            self.withdrawn.add(ticket)

    def _call(self, planner: Planner, now_s: float) -> None:
        batches = planner.due(now_s)
        assert batches, "woken up for nothing"
        for batch in batches:
            assert batch.tickets
            self.calls.append((now_s, batch))
            for ticket in batch.tickets:
                assert ticket not in self.made_s, "answered twice"
                self.made_s[ticket] = now_s


ANY = asks(st.sampled_from([0.0, 0.5, 10.0, 30.0, 600.0]))
PATIENT = asks(st.just(1e6))


@given(SPREADS, ANY)
@settings(max_examples=200, deadline=None)
def test_every_request_gets_one_call_and_never_too_late(spread: Spread, requests: list[Ask]) -> None:
    play = Play(spread).run(requests)
    assert set(play.made_s) | play.withdrawn == set(range(len(requests)))
    assert not set(play.made_s) & play.withdrawn
    for ticket, made_s in play.made_s.items():
        waited_s = made_s - play.asked_s[ticket]
        assert -1e-9 <= waited_s <= PATIENT_PART * requests[ticket].time_s + 1e-9
    for _, batch in play.calls:
        assert {requests[ticket].key for ticket in batch.tickets} == {batch.key}
        assert list(batch.tickets) == sorted(batch.tickets)
    assert [at_s for at_s, _ in play.calls] == sorted(at_s for at_s, _ in play.calls)


@given(SPREADS, PATIENT)
@settings(max_examples=200, deadline=None)
def test_calls_with_time_never_exceed_rate_and_burst(spread: Spread, requests: list[Ask]) -> None:
    made = [at_s for at_s, _ in Play(spread).run(requests).calls]
    if spread.rate_per_s == 0:
        return
    for first, start_s in enumerate(made):
        for count, end_s in enumerate(made[first:], 1):
            assert count <= spread.burst + spread.rate_per_s * (end_s - start_s) + 1e-6


@given(SPREADS, PATIENT)
@settings(max_examples=100, deadline=None)
def test_without_a_rate_no_call_leaves_its_window(spread: Spread, requests: list[Ask]) -> None:
    """Urgent ones keep to the first part of it."""
    free = attrs.evolve(spread, rate_per_s=0.0)
    play = Play(free).run(requests)
    widest_s = max(free.jitter_s, free.window_s) if free.jitter_s else 0.0
    for ticket, made_s in play.made_s.items():
        part = URGENT_PART if requests[ticket].urgent else 1.0
        assert made_s - play.asked_s[ticket] <= part * widest_s + 1e-9


@given(SPREADS, ANY, st.integers(0, 59))
@settings(max_examples=100, deadline=None)
def test_a_withdrawn_one_leaves_no_trace_in_the_calls(spread: Spread, requests: list[Ask], who: int) -> None:
    if who >= len(requests):
        return
    requests[who] = attrs.evolve(requests[who], withdraw_s=0.0, dice=0.5, time_s=10.0)
    play = Play(spread).run(requests)
    if who in play.withdrawn:
        assert all(who not in batch.tickets for _, batch in play.calls)
