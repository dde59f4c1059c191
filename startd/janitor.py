"""Owns what dead starters left: has it removed, again and again with growing pauses, and says so.

A sandbox belongs to its job's account, so only a proxy that maps there can remove it. The job's own may have ended
meanwhile: then that of a later job at the same account takes its place. Nothing waits for it, no slot is kept.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import attrs
import trio

from pilot.ledger import IDENTITY
from pilot.rpc import ChannelClosed, RpcFault
from starter.places import owner_of
from starter.private import PROXY, abandoned, private_dir_of, read_note

# The site may be away for a while; nobody waits for this.
FIRST_PAUSE_S, LAST_PAUSE_S = 2.0, 600.0


@attrs.define
class Janitor:
    """``look`` at the start and after a starter's unusual end. ``clean`` has one starter's left-overs removed; they are
    gone when its private directory is."""

    run_dir: Path
    clean: Callable[[Path], Awaitable[None]]
    log: logging.LoggerAdapter[logging.Logger]
    # how many sandboxes wait, as seen last; for the slot's ad
    waiting: int = 0
    _wake: trio.Event = attrs.field(factory=trio.Event)

    def look(self) -> None:
        """Something may have been left."""
        self._wake.set()

    def account_seen(self, starter_pid: int, uid: int) -> None:
        """A job of this starter runs at this account: its proxy maps there now, and may remove what lies there."""
        if not self.waiting:
            return
        new = private_dir_of(self.run_dir, starter_pid)
        for private_dir in self.left():
            if new is not None and _account_of(private_dir) == uid and _lend(new, private_dir):
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
                self.waiting = len(left)
                self.log.info("%d dead starters left something; cleaning up", len(left))
                await self._clean_all(left)
                with trio.move_on_after(pause_s):
                    await self._wake.wait()
                self._wake = trio.Event()
                pause_s = min(2 * pause_s, LAST_PAUSE_S)
            self.waiting = 0
            pause_s = FIRST_PAUSE_S

    async def _clean_all(self, left: list[Path]) -> None:
        for private_dir in left:
            try:
                await self.clean(private_dir)
            except (ChannelClosed, RpcFault) as fault:
                self.log.warning("no clean-up of %s now: %s; retrying", private_dir.name, fault)
                return


def _account_of(private_dir: Path) -> int | None:
    """To whom belongs what is left; None if nothing lies there any more."""
    try:
        note = read_note(private_dir)
        return None if note is None else owner_of(note.place)
    except OSError:
        return None


def _lend(new: Path, private_dir: Path) -> bool:
    """Give a proxy's file a second name in the place of the ended one. It is not read here: the startd has no business
    with what is in it. The word whose it is goes first: what becomes of its calls is never held against, or to the
    credit of, the one before. False: it is there already, or gone."""
    try:
        if (private_dir / PROXY).exists() and (private_dir / PROXY).samefile(new / PROXY):
            return False
        for name in (IDENTITY, PROXY):
            _link(new / name, private_dir / name)
    except OSError:
        return False
    return True


def _link(file: Path, place: Path) -> None:
    lent = place.with_name(f"{place.name}.lent")
    with contextlib.suppress(FileNotFoundError):
        lent.unlink()
    os.link(file, lent)
    lent.rename(place)
