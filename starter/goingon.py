"""Whether a job goes on here after a checkpoint: the startd is asked, which knows its claim."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import attrs
import trio

from starter.messages import AskGoingOn
from starter.messages import GoingOn as Answer

log = logging.getLogger("starter")

# It answers at once, if it answers at all. A job that has somewhere to run is not given up for a late word.
ANSWER_WITHIN_S = 20.0


@attrs.define(eq=False)
class GoingOn:
    """One activation's questions; ``say`` tells the startd, and ``heard`` is to be told what it answers."""

    say: Callable[[object], Awaitable[None]]
    _number: int | None = None
    _here: bool = True
    _answered: trio.Event = attrs.field(factory=trio.Event)

    async def ask(self, number: int) -> bool:
        """Whether the claim would take the job again, now that checkpoint ``number`` is at the submit side; without an
        answer in ANSWER_WITHIN_S it goes on. Cancelled, an answer that comes later is nobody's."""
        self._number, self._here, self._answered = number, True, trio.Event()
        try:
            with trio.move_on_after(ANSWER_WITHIN_S) as waiting:
                await self.say(AskGoingOn(number))
                await self._answered.wait()
            if waiting.cancelled_caught:
                log.warning("the startd did not say in %g s whether the job may go on: it does", ANSWER_WITHIN_S)
            return self._here
        finally:
            self._number = None

    def heard(self, answer: Answer) -> None:
        """One for another question, or for none, changes nothing."""
        if answer.number == self._number:
            self._here = answer.here
            self._answered.set()
