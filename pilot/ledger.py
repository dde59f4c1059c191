"""The standing of a node's credentials (`pilot.standing`) as one file, shared by all who make calls of the switch.

The file is in the run directory, belongs to the pilot and holds no secret: names of users, times, words of the switch.
It lives as long as the startd: a new one begins with a clean sheet. A file that cannot be read is an empty one; one
that cannot be written or locked in time changes nothing: calls are then made as if nothing were known.

Beside it lies the count of all calls, for the pilot's report.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TypeVar

import trio

from pilot import standing
from pilot.standing import Standing

NAME = "standing"
MAX_BYTES = 1_000_000
CALLS = "switch-calls"
# A call is one byte, the first of its end: a short write in append mode needs no lock, and none is lost whoever is
# killed. A hundred thousand jobs make 300 kB.
_BYTES = {end: end[:1].encode("ascii") for end in standing.ENDS}
_READ_BYTES = 1 << 16
# Others hold the lock for a fraction of a millisecond; one that was stopped while it had it must not stop us.
LOCK_WITHIN_S, LOCK_LOOK_S = 2.0, 0.002
# Beside a credential: whose it is. One name a line: the identity, the primary FQAN.
IDENTITY = "identity"
_Result = TypeVar("_Result")


class Ledger:
    """The standing, in `path`. `clock`: monotonic, the same for all processes of the node."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self.clock = clock

    @classmethod
    def of(cls, run_dir: Path) -> Ledger:
        """That of a pilot's run directory."""
        return cls(run_dir / NAME)

    def begin(self, *, probe: bool) -> None:
        """A clean sheet, at the start. Raises OSError."""
        self._write(Standing(probe=probe))
        self.path.with_name(CALLS).unlink(missing_ok=True)

    def count(self, end: str) -> None:
        """One more call that ended so (of `standing.ENDS`). Never waits; a full disk costs the count, not the call."""
        with suppress(OSError):
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(self.path.with_name(CALLS), flags, 0o600)
            try:
                os.write(fd, _BYTES[end])
            finally:
                os.close(fd)

    def counts(self) -> dict[str, int]:
        """Calls since `begin`, by their ends."""
        found = dict.fromkeys(standing.ENDS, 0)
        with suppress(OSError), open(self.path.with_name(CALLS), "rb") as file:
            while piece := file.read(_READ_BYTES):
                for end, byte in _BYTES.items():
                    found[end] += piece.count(byte)
        return found

    def read(self) -> Standing:
        """As it is; never waits."""
        try:
            with open(self.path, "rb") as file:
                return standing.from_plain(json.loads(file.read(MAX_BYTES)))
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError, OSError):
            return Standing()

    async def change(self, change: Callable[[Standing, float], tuple[Standing, _Result]]) -> _Result:
        """Apply a pure change, alone. Its result also where the file could not be locked or written."""
        with ExitStack() as held:
            locked = await _lock(self.path.with_name(f"{NAME}.lock"), held)
            before = self.read()
            after, result = change(before, self.clock())
            if locked and after != before:
                with suppress(OSError):  # a full disk
                    self._write(after)
            return result

    def _write(self, value: Standing) -> None:
        """The whole or nothing, for those who read without the lock."""
        new = self.path.with_name(f"{NAME}.new")
        with suppress(FileNotFoundError):
            new.unlink()
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(json.dumps(standing.as_plain(value)).encode("ascii"))
        new.rename(self.path)


async def _lock(path: Path, held: ExitStack) -> bool:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError:
        return False
    held.callback(os.close, fd)
    with trio.move_on_after(LOCK_WITHIN_S):
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                await trio.sleep(LOCK_LOOK_S * (0.5 + random.random()))
    return False


def note_identity(credential: Path, identity: str, fqan: str) -> None:
    """Say beside a credential whose it is, for whoever calls the switch with it and knows its path only."""
    path = credential.with_name(IDENTITY)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(fd, "w", encoding="utf-8", errors="replace") as file:
        file.write(f"{identity}\n{fqan}\n")


def identity_of(credential: Path) -> tuple[str, str]:
    """(key in the standing, identity for people) of a credential; its path where nobody has said."""
    try:
        words = credential.with_name(IDENTITY).read_text(encoding="utf-8")[:4096]
    except (OSError, ValueError):
        return str(credential), ""
    return words, words.partition("\n")[0]
