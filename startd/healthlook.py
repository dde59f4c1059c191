"""Looks at the node for ``startd.health``: can a directory be made below EXECUTE, and how much is free there; and tells
the claims whether jobs match."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable
from functools import partial
from pathlib import Path

import attrs
import trio

from pilot.threads import in_thread
from startd.claims import Claims
from startd.health import Health, Look

LOOK_EVERY_S = 30.0
# A dead network disk hangs for ever.
LOOK_WITHIN_S = 20.0


@attrs.define(eq=False)
class HealthWatch:
    """``changed`` is called when ads should be sent again."""

    health: Health
    execute: Path
    claims: Claims
    changed: Callable[[], None]
    log: logging.LoggerAdapter[logging.Logger]

    async def run(self) -> None:
        """Until cancelled. A disk that does not answer holds up the look, not the startd."""
        while True:
            look = Look(fault=f"EXECUTE ({self.execute}) does not answer")
            with trio.move_on_after(LOOK_WITHIN_S):
                look = await self._look()
            self.health.looked(look)
            self.judge()
            await trio.sleep(LOOK_EVERY_S)

    def job_ended(self, outcome: str, code: int) -> None:
        """By the report's word and the starter's hold code."""
        self.health.job_ended(outcome, code, now_s=trio.current_time())
        self.judge()

    def judge(self) -> None:
        """Jobs match, or do not; said when it changes."""
        reason = self.health.reason(now_s=trio.current_time())
        if reason != self.claims.unhealthy:
            if reason:
                self.log.warning("no job matches here: %s", reason)
            else:
                self.log.info("jobs match here again")
            self.claims.unhealthy = reason
            self.changed()

    async def _look(self) -> Look:
        try:
            return await in_thread(partial(look_at, self.execute), abandon_on_cancel=True)
        except BlockingIOError as fault:
            return Look(fault=f"{fault.strerror}: its limit of processes is reached")


def look_at(execute: Path) -> Look:
    """Makes a directory and removes it; blocks as long as the disk does."""
    try:
        probe = execute / f".health-{secrets.token_hex(8)}"
        probe.mkdir(mode=0o700)
        probe.rmdir()
        found = os.statvfs(execute)
    except OSError as fault:
        return Look(fault=f"EXECUTE ({execute}) cannot be used: {fault.strerror}")
    if found.f_files and not found.f_favail:
        return Look(fault=f"EXECUTE ({execute}) has no free inode")
    return Look(free_kb=found.f_bavail * found.f_frsize >> 10)
