"""What is logged of those who are refused at the port, or break off: strangers must not fill the log."""

from __future__ import annotations

import logging

import attrs
import trio

from starter.updates import one_line

# Refusals that are logged in a minute.
MAX_REPORTS_A_MINUTE = 20


@attrs.define(eq=False)
class Refusals:
    """One for a port."""

    log: logging.LoggerAdapter[logging.Logger]
    _minute: int = 0
    _reported: int = 0

    def report(self, peer: str, error: Exception) -> None:
        """Said while that is not a flood."""
        minute = int(trio.current_time() // 60)
        if minute != self._minute:
            self._minute, self._reported = minute, 0
        self._reported += 1
        if self._reported <= MAX_REPORTS_A_MINUTE:
            self.log.info("%s: %s", peer, one_line(str(error)))
