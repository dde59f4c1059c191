"""How starters begin and end: what the spawner says of them, and those that fall to the startd when it is gone."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path

import attrs
import trio

from pilot.calls import may_reap, own_children
from startd.claims import Claims
from startd.janitor import Janitor
from startd.processes import owned_pids
from starter import messages

REAP_EVERY_S = 0.5


@attrs.define(eq=False)
class StarterEnds:
    """``heard`` and ``lost`` are the spawner's to call."""

    claims: Claims
    janitor: Janitor
    log: logging.LoggerAdapter[logging.Logger]

    def heard(self, message: object) -> None:
        """A word of the spawner's."""
        match message:
            case messages.StarterStarted(ticket=ticket, pid=pid):
                self.claims.starter_runs(ticket, pid)
            case messages.StarterFailed(ticket=ticket, text=text):
                self.claims.starter_not_started(ticket, text)
            case messages.StarterEnded(pid=pid, wait_status=wait_status):
                self._ended(pid, wait_status)

    def lost(self) -> None:
        """Its starters live on; as the nearest sub-reaper we are their parent now, and reap them ourselves."""
        self.log.warning("the spawner is gone; its starters go on")
        for held in list(self.claims.slots.held.values()):
            if held.ticket is not None and held.starter_pid is None:
                self.claims.starter_not_started(held.ticket, "the spawner ended before it could fork")

    async def reap(self) -> None:
        """Wait for adopted children: starters whose spawner died, and what falls to us of their trees."""
        while True:
            await trio.sleep(REAP_EVERY_S)
            for pid in _children() - owned_pids() - own_children() if may_reap() else ():
                ended, wait_status = _try_wait(pid)
                if ended:
                    self._ended(pid, wait_status)

    def _ended(self, pid: int, wait_status: int) -> None:
        if self.claims.starter_ended(pid, wait_status):
            self.janitor.look()


def _children() -> set[int]:
    """Those that can be found now: for want of a descriptor none, or not all."""
    found: set[int] = set()
    with suppress(OSError):
        for thread in os.listdir("/proc/self/task"):
            with suppress(FileNotFoundError):  # a thread that has ended
                found.update(map(int, Path(f"/proc/self/task/{thread}/children").read_text().split()))
    return found


def _try_wait(pid: int) -> tuple[bool, int]:
    try:
        ended, wait_status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return False, 0
    return ended == pid, wait_status
