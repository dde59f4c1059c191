"""When a call of the switch is made, and for whom: pure, in a caller's own seconds.

Thousands of pilots lose their jobs in the same second, and each call costs the site an authorisation. So a
call waits a random time up to the jitter; requests for the same account and signal that come meanwhile share
it. Urgent ones do not wait, and take along what waits for the same.
"""

from collections.abc import Hashable

import attrs


@attrs.frozen
class Batch:
    """One call to make now, on behalf of these requests."""

    key: Hashable
    tickets: tuple[int, ...]


@attrs.define
class _Waiting:
    due_s: float
    tickets: list[int]


class Planner:
    """Requests that wait for their call.

    Args:
        jitter_s: the longest wait, >= 0 (SAILPLANE_KILL_JITTER).
    """

    def __init__(self, jitter_s: float) -> None:
        self._jitter_s = jitter_s
        self._waiting: dict[Hashable, _Waiting] = {}

    def ask(self, ticket: int, key: Hashable, *, urgent: bool, dice: float, now_s: float) -> None:
        """Take in a request.

        Args:
            ticket: the caller's name for it.
            key: requests with equal keys may share a call.
            dice: 0 <= dice < 1, drawn evenly; decides unless there is a call to join.
        """
        due_s = now_s if urgent else now_s + dice * self._jitter_s
        call = self._waiting.setdefault(key, _Waiting(due_s, []))
        call.due_s = min(call.due_s, due_s) if urgent else call.due_s
        call.tickets.append(ticket)

    def withdraw(self, ticket: int) -> None:
        """Forget a request; a call that nobody wants any more is not made."""
        for key, call in list(self._waiting.items()):
            if ticket in call.tickets:
                call.tickets.remove(ticket)
                if not call.tickets:
                    del self._waiting[key]

    def due(self, now_s: float) -> list[Batch]:
        """The calls to make now; they are out of the planner's hands then."""
        ready = [key for key, call in self._waiting.items() if call.due_s <= now_s]
        return [Batch(key, tuple(self._waiting.pop(key).tickets)) for key in ready]

    def next_s(self) -> float | None:
        """When the next call is due; None when nothing waits."""
        return min((call.due_s for call in self._waiting.values()), default=None)
