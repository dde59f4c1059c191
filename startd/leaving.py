"""Starters that have said their last word: their slots are free again, they tidy up after themselves and end.

The kernel takes milliseconds to end a process of that size, and more to remove directories from a busy disk: the next
job need not wait for that. What such a starter leaves all the same is the janitor's when it is reaped, as of any.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from contextlib import suppress

import attrs
import trio

# It removes a directory, and ends. One that somebody has stopped would keep its job's proxy for ever.
ENDS_WITHIN_S = 30.0


@attrs.define(eq=False)
class Leaving:
    """``begin`` starts a task in ``nursery`` for each, which ends with the starter. ``forgotten`` is called for one
    whose end nobody tells."""

    nursery: trio.Nursery
    log: logging.LoggerAdapter[logging.Logger]
    forgotten: Callable[[], None]
    _starters: dict[int, tuple[str, trio.Event]] = attrs.field(factory=dict)

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._starters)

    def begin(self, pid: int, slot: str) -> None:
        """This starter has left that slot. Its pid is its own until it is reaped, which is said by ``ended``."""
        over = trio.Event()
        self._starters[pid] = (slot, over)
        self.nursery.start_soon(self._see_out, pid, slot, over)

    def ended(self, pid: int) -> str | None:
        """It was reaped; the name of the slot that it had, or None if it is none of these."""
        slot, over = self._starters.pop(pid, (None, None))
        if over is not None:
            over.set()
        return slot

    async def _see_out(self, pid: int, slot: str, over: trio.Event) -> None:
        with trio.move_on_after(ENDS_WITHIN_S):
            await over.wait()
            return
        self.log.warning("starter %d, which has left %s, did not end in time: killed", pid, slot)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            with trio.move_on_after(ENDS_WITHIN_S):
                await over.wait()
                return
        # A spawner that died between its wait and its word has told nobody: the pilot's end does not wait for that.
        self._starters.pop(pid, None)
        self.forgotten()
