"""When a call of the switch is made, and for whom: pure, in a caller's own seconds.

Thousands of pilots lose their jobs in the same second, and each call costs the site an authorisation. A pilot
knows nothing of the others, only how many calls it has to make itself; so

* a call waits a random part of a window: the jitter for a lone one, a multiple of it for each of many;
* requests for the same account and signal that come meanwhile share a call;
* a token bucket limits what one pilot may ask of the site;
* a request's own patience is above all of that: where the bucket would keep it too long, the call is made;
* urgent requests get the first part of the window, and the first tokens.

Not here: how many calls the whole site may see in a second. Only the pool knows that.
"""

from collections.abc import Hashable, Iterable
from math import inf

import attrs

# An urgent request comes in this part of the window that it would have otherwise: early, but thousands of
# pilots that must all hurry do still not call in one instant.
URGENT_PART = 0.25
# A call must be made before this part of its request's time is over. The rest is for the call, and for a second
# one when the first fails.
PATIENT_PART = 0.5


@attrs.frozen
class Batch:
    """One call to make now, on behalf of these requests."""

    key: Hashable
    tickets: tuple[int, ...]


@attrs.frozen
class Spread:
    """How calls are spread: each by itself, many of one pilot, and how many of one pilot at most.

    Args:
        jitter_s: window of a lone call, >= 0; 0 spreads nothing (SAILPLANE_KILL_JITTER).
        window_s: window of many calls, >= 0 (SAILPLANE_KILL_WINDOW). Longer when the rate needs it.
        rate_per_s: calls a second in the long run, >= 0; 0 is no limit (SAILPLANE_SWITCH_RATE).
        burst: calls that may come at once after a pause, >= 1 (SAILPLANE_SWITCH_BURST).
    """

    jitter_s: float
    window_s: float = 0.0
    rate_per_s: float = 0.0
    burst: int = 1

    @property
    def interval_s(self) -> float:
        """Between two calls at the full rate."""
        return 1 / self.rate_per_s if self.rate_per_s else 0.0

    def width_s(self, calls: int) -> float:
        """The window of a pilot that has so many calls to make: it grows by the jitter with each, to window_s.

        What makes 1,000 pilots with 8 jobs call no more often than 1,000 pilots with one, as long as it grows.
        """
        longest_s = max(self.jitter_s, self.window_s, calls * self.interval_s)
        return min(calls * self.jitter_s, longest_s)


@attrs.define
class _Bucket:
    """Tokens, kept as the time at which the bucket will be full again (exact where a level would be rounded)."""

    interval_s: float
    burst: int
    full_s: float = -inf

    @property
    def open_s(self) -> float:
        """When there is a token."""
        return self.full_s - (self.burst - 1) * self.interval_s

    def take(self, now_s: float) -> None:
        """Take a token, or what there is of one: what had to be done without is not paid back later."""
        self.full_s = min(max(self.full_s, now_s) + self.interval_s, now_s + self.burst * self.interval_s)


@attrs.define
class _Waiting:
    """A call to be made. Its place in the window is fixed; the window may still grow.

    hurried_s: when the first urgent request joined it.
    """

    asked_s: float
    dice: float
    latest_s: float
    hurried_s: float = inf
    width_s: float = 0.0
    tickets: list[int] = attrs.field(factory=list)

    @property
    def due_s(self) -> float:
        """When it is made, if there is a token."""
        wait_s = self.dice * min(self.width_s, self.latest_s - self.asked_s)
        return min(self.asked_s + wait_s, self.hurried_s + URGENT_PART * wait_s)

    @property
    def rank(self) -> tuple[bool, float]:
        """Who comes first of those that are due."""
        return self.hurried_s == inf, self.latest_s


class Planner:
    """Requests that wait for their call."""

    def __init__(self, spread: Spread) -> None:
        self._spread = spread
        self._bucket = _Bucket(spread.interval_s, spread.burst)
        self._waiting: dict[Hashable, _Waiting] = {}

    def ask(self, ticket: int, key: Hashable, *, urgent: bool, time_s: float, dice: float, now_s: float) -> None:
        """Take in a request.

        Args:
            ticket: the caller's name for it.
            key: requests with equal keys may share a call.
            time_s: what the request has in all; its call comes before PATIENT_PART of it is over, whatever the
                settings are.
            dice: 0 <= dice < 1, drawn evenly; decides unless there is a call to join.
        """
        latest_s = now_s + PATIENT_PART * max(0.0, time_s)
        call = self._waiting.setdefault(key, _Waiting(now_s, dice, latest_s))
        call.tickets.append(ticket)
        call.latest_s = min(call.latest_s, latest_s)
        width_s = self._spread.width_s(len(self._waiting))
        for each in self._waiting.values():
            each.width_s = max(each.width_s, width_s)
        if urgent:
            call.hurried_s = min(call.hurried_s, now_s)

    def withdraw(self, ticket: int) -> None:
        """Forget a request; a call that nobody wants any more is not made."""
        for key, call in list(self._waiting.items()):
            if ticket in call.tickets:
                call.tickets.remove(ticket)
                if not call.tickets:
                    del self._waiting[key]

    def charge(self, now_s: float) -> None:
        """Count a call that was made without being planned: another attempt at one that failed."""
        self._bucket.take(now_s)

    def due(self, now_s: float) -> list[Batch]:
        """The calls to make now, the most urgent first; they are out of the planner's hands then."""
        ready = sorted((call.rank, at) for at, call in enumerate(self._waiting.values()) if call.due_s <= now_s)
        keys = list(self._waiting)
        batches: list[Batch] = []
        for _, at in ready:
            if now_s < min(self._bucket.open_s, self._pressing_s()):
                break
            self._bucket.take(now_s)
            batches.append(Batch(keys[at], tuple(self._waiting.pop(keys[at]).tickets)))
        return batches

    def next_s(self) -> float | None:
        """When the next call is due, which may be over; None when nothing waits."""
        if not self._waiting:
            return None
        first_s = min(call.due_s for call in self._waiting.values())
        return max(first_s, min(self._bucket.open_s, self._pressing_s()))

    def _pressing_s(self) -> float:
        """From when on the rate would make a waiting call too late: then due calls don't wait for tokens.

        Long before the last moment, so that what the rate can't carry is spread evenly too.
        """
        return _pressing_s((call.latest_s for call in self._waiting.values()), self._spread.interval_s)


def _pressing_s(latest_s: Iterable[float], interval_s: float) -> float:
    return min((at_s - rank * interval_s for rank, at_s in enumerate(sorted(latest_s), 1)), default=inf)
