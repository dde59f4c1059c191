"""Looks at processes on behalf of the families: cheap walks of one family, and full scans as the proof.

It reads /proc and hands everything to `procd.families`, which decides. A walk costs by the family's size; a
scan costs by the machine's, and runs in a thread.
"""

from collections.abc import Iterable

import trio

from procd.families import MAX_CHAIN, Families, Family
from procd.proc import ProcReader
from procd.process import Process, ProcessId

# A walk that finds somebody ended is repeated, so that parents are read after their children's end is known.
# In a family where processes end all the time this never settles; the rest is left to the next walk.
PASSES = 3


class Lookout:
    """The one who looks.

    Args:
        families: told of everything that is seen.
    """

    def __init__(self, families: Families, reader: ProcReader) -> None:
        self._families = families
        self._reader = reader
        self._scanning = trio.Lock()
        self._started = 0
        self._finished = 0

    def look(self, family: Family) -> None:
        """Walk a family and those around it; members and accounts are fresh afterwards."""
        top = family.top
        known = self._families.members(top)
        missing: set[ProcessId] = set()
        for _ in range(PASSES):
            seen = self._walk(top, known)
            gone = {key for key in known if key.pid not in seen or seen[key.pid].id != key}
            doubtful = gone - missing
            if not doubtful:
                break
            missing = gone
        self._families.refresh(top, seen, gone, doubtful)

    async def scan(self, family: Family) -> None:
        """Read every process of the machine, then walk the family: who is not found now does not exist.

        Two looks of different kinds, one after the other: a process that hides from one of them by forking at
        the right moment is found by the other. Callers at the same time share a scan that starts after all
        have asked.
        """
        wanted = self._started + 1
        async with self._scanning:
            if self._finished < wanted:
                self._started += 1
                number = self._started
                # Not abandoned on cancellation: it ends by itself after milliseconds.
                seen = await trio.to_thread.run_sync(self._read_all)
                self._families.discover(seen)
                self._finished = number
        self.look(family)

    def survey(self, root: ProcessId, starter: ProcessId) -> dict[int, Process]:
        """All that registration wants to know: a root's ancestors, and everything below its starter."""
        seen: dict[int, Process] = {}
        for pid in (root.pid, starter.pid):
            self._climb(pid, seen)
        self._descend([starter.pid], seen)
        return seen

    def is_there(self, identity: ProcessId) -> bool:
        """Whether this very process exists, if only as a zombie."""
        return self._reader.ticks(identity.pid) == identity.start_ticks

    def pss_kb(self, family: Family) -> int | None:
        """The family's share of memory; None unless the kernel shows it for all of it."""
        shares = [self._reader.pss_kb(identity.pid) for identity in self._families.running(family)]
        return None if None in shares else sum(share for share in shares if share is not None)

    def _read_all(self) -> dict[int, Process]:
        return {process.id.pid: process for process in self._reader.scan()}

    def _walk(self, top: Family, known: Iterable[ProcessId]) -> dict[int, Process]:
        seen: dict[int, Process] = {}
        strangers = frozenset(identity.pid for identity in top.around.ancestors)
        reapers = [identity.pid for identity in self._families.reapers(top)]
        self._descend(reapers, seen, deeper_than=strangers, only_uid=top.around.uid)
        self._descend([identity.pid for identity in known], seen)
        return seen

    def _descend(
        self,
        start: Iterable[int],
        seen: dict[int, Process],
        *,
        deeper_than: frozenset[int] = frozenset(),
        only_uid: int | None = None,
    ) -> None:
        """Read processes and all below them, parents first.

        Below the processes `deeper_than` are other starters with families of their own; there the walk
        follows only what is of `only_uid`.
        """
        waiting = [pid for pid in start if pid not in seen]
        waiting.reverse()
        while waiting:
            pid = waiting.pop()
            if pid in seen or (process := self._reader.read(pid)) is None:
                continue
            seen[pid] = process
            if process.parent in deeper_than and pid not in deeper_than and process.uid != only_uid:
                continue
            if process.running:
                waiting.extend(child for child in self._reader.children(process) if child not in seen)

    def _climb(self, pid: int, seen: dict[int, Process]) -> None:
        for _ in range(MAX_CHAIN):
            if pid in seen or pid <= 1 or (process := self._reader.read(pid)) is None:
                return
            seen[pid] = process
            pid = process.parent
