"""Owns what dead starters left: has it removed, again and again with growing pauses, and says so."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

import attrs
import trio

from pilot.rpc import ChannelClosed, RpcFault
from starter.private import abandoned

# The site may be away for a while; nobody waits for this.
FIRST_PAUSE_S, LAST_PAUSE_S = 2.0, 600.0


@attrs.define
class Janitor:
    """``look`` at the start and after a starter's unusual end. ``clean`` has one starter's left-overs removed; they are
    gone when its private directory is."""

    run_dir: Path
    clean: Callable[[Path], Awaitable[None]]
    log: logging.LoggerAdapter[logging.Logger]
    _wake: trio.Event = attrs.field(factory=trio.Event)

    def look(self) -> None:
        """Something may have been left."""
        self._wake.set()

    def left(self) -> list[Path]:
        """Private directories of dead starters that are there still."""
        return list(abandoned(self.run_dir))

    async def run(self) -> None:
        """Until cancelled."""
        pause_s = FIRST_PAUSE_S
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            while left := self.left():
                self.log.info("%d dead starters left something; cleaning up", len(left))
                await self._clean_all(left)
                with trio.move_on_after(pause_s):
                    await self._wake.wait()
                pause_s = min(2 * pause_s, LAST_PAUSE_S)
            pause_s = FIRST_PAUSE_S

    async def _clean_all(self, left: list[Path]) -> None:
        for private_dir in left:
            try:
                await self.clean(private_dir)
            except (ChannelClosed, RpcFault) as fault:
                self.log.warning("no clean-up of %s now: %s; retrying", private_dir.name, fault)
                return
