"""``StarterLog.<slot>``: four lines of each job in HTCondor's words, by which scripts of glidein pools count jobs and
their seconds. For people there is the starters' common log."""

from __future__ import annotations

import os
import time
from pathlib import Path

import attrs

from pilot.logs import clean, rotate
from pilot.settings import Settings

# A pipe or a link in the file's place is nobody's log, and must not keep a starter waiting.
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


@attrs.frozen
class SlotLog:
    """Of one slot, in which one starter at a time runs. A line that cannot be written is left out."""

    path: Path
    limit_bytes: int

    @classmethod
    def of(cls, settings: Settings, slot: str) -> SlotLog:
        """``slot``: its whole name, slot1_2@host."""
        return cls(Path(f"{settings.starter_log}.{slot.partition('@')[0]}"), settings.max_starter_log)

    def started(self, shadow: str, job_id: str, pid: int) -> None:
        """A job runs. ``shadow``: its shadow's address."""
        self._say(
            f"Communicating with shadow <{shadow}>",
            f"Starting a VANILLA universe job with ID: {job_id}",
            f"Create_Process succeeded, pid={pid}",
        )

    def exited(self, pid: int, wait_status: int) -> None:
        """It has ended by itself, or was made to."""
        end = f"signal={os.WTERMSIG(wait_status)}" if os.WIFSIGNALED(wait_status) else f"status={wait_status >> 8}"
        self._say(f"Process exited, pid={pid}, {end}")

    def _say(self, *lines: str) -> None:
        head = time.strftime(f"%m/%d/%y %H:%M:%S (pid:{os.getpid()}) ")
        try:
            fd = os.open(self.path, _FLAGS, 0o600)
            try:
                os.write(fd, "".join(f"{head}{clean(line)}\n" for line in lines).encode())
                if 0 < self.limit_bytes < os.fstat(fd).st_size:
                    rotate(self.path, fd)
            finally:
                os.close(fd)
        except OSError:
            return
