"""Looks at processes on behalf of the families: cheap walks of one family, and full scans as the proof.

It reads /proc and hands everything to `procd.families`, which decides. A walk costs by the family's size; a
scan costs by the machine's, and runs in a thread.
"""

import os
import select
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TypeVar

import trio

from pilot.threads import in_thread
from procd.families import Families, Family
from procd.proc import ProcReader, raise_if_ours, ticks_now
from procd.process import HIDDEN, Process, ProcessId
from procd.surroundings import MAX_CHAIN

# A walk that finds somebody ended is repeated, so that parents are read after their children's end is known.
# In a family where processes end all the time this never settles; the rest is left to the next walk.
PASSES = 3
# On a machine where processes start all the time the last few of them may be missed.
SCAN_ROUNDS = 5
# The kernel walks all pages of a process to tell its share: milliseconds for each gigabyte.
MAX_PSS = 64
_Result = TypeVar("_Result")


async def beside(work: Callable[[], _Result]) -> _Result:
    """Do a few milliseconds of work beside the event loop, to its end even when cancelled; in it where the host gives
    us no thread, as in a job's fork bomb."""
    try:
        return await in_thread(work)
    except BlockingIOError:
        return work()


class Lookout:
    """The one who looks.

    Args:
        families: told of everything that is seen.
        told: numbers of processes of an outermost family that the kernel knows by itself (its cgroup).
        after_scan: told of every process there is, after each full scan.
        sees_jobs: whether /proc shows the jobs' processes; otherwise roots are known by descriptors only.
    """

    def __init__(
        self,
        families: Families,
        reader: ProcReader,
        *,
        told: Callable[[Family], Collection[int]] = lambda family: (),
        after_scan: Callable[[Mapping[int, Process]], None] = lambda seen: None,
        sees_jobs: bool = True,
    ) -> None:
        self._sees_jobs = sees_jobs
        self._hidden: dict[ProcessId, _Hidden] = {}
        self._families = families
        self._reader = reader
        self._told = told
        self._after_scan = after_scan
        self._scanning = trio.Lock()
        self._started = 0
        self._finished = 0

    def look(self, family: Family) -> None:
        """Walk a family and those around it; members and accounts are fresh afterwards."""
        top = family.top
        known = self._families.members(top)
        told = dict.fromkeys(self._told(top), top)
        missing: set[ProcessId] = set()
        for _ in range(PASSES):
            seen = self._walk(top, known, told).seen
            gone = {key for key in known if key.pid not in seen or seen[key.pid].id != key}
            doubtful = gone - missing
            if not doubtful:
                break
            missing = gone
        self._families.refresh(top, seen, gone, doubtful, told)

    async def scan(self, family: Family) -> None:
        """Read every process of the machine, then walk the family.

        Callers at the same time share a scan that starts after all have asked. A family without anybody new is not
        walked: who has ended stays so.
        """
        wanted = self._started + 1
        async with self._scanning:
            if self._finished < wanted:
                self._started += 1
                number = self._started
                seen = await beside(self._read_all)
                self._families.discover(seen)
                self._after_scan(seen)
                self._finished = number
        if self._families.running(family):
            self.look(family)

    async def check(self) -> dict[str, list[ProcessId]]:
        """A full scan: members that only it finds, by family, although they were there when this was called."""
        born_before = ticks_now()
        known = {identity for family in self._families for identity in family.members}
        async with self._scanning:
            seen = await beside(self._read_all)
            self._families.discover(seen)
            self._after_scan(seen)
        missed: dict[str, list[ProcessId]] = {}
        for family in self._families:
            for identity in family.members.keys() - known:
                if identity.start_ticks < born_before:
                    missed.setdefault(family.name, []).append(identity)
        return missed

    def proves_empty(self, family: Family) -> bool:
        """Whether nobody of the family runs, beyond the doubt that a single look leaves.

        A process can dodge a look: between the moment when its number is listed and that when it is read, it
        forks and ends, and its child comes to a sub-reaper whose list was read before. Then its number has
        vanished, or is a new zombie. So it takes two walks with the same result, the second one without a
        number that vanished. False can also mean that something else moves below the starter: ask again.

        Where /proc hides the family, its orphans are numbers in the starter's list that cannot be read; so that list
        must have been.
        """
        top = family.top
        known = self._families.members(top)
        first, second = self._walk(top, known), self._walk(top, known)
        self._families.discover(second.seen)
        if any(identity.pid in second.seen for identity in self._families.running(family)):
            return False
        if family.around.hidden and not any(each.pid in second.seen for each in self._families.reapers(family)):
            return False
        return not second.vanished and first.result == second.result

    def survey(self, root: ProcessId, starter: ProcessId) -> dict[int, Process]:
        """All that registration wants to know: a root's ancestors, and everything below its starter."""
        walk = _Walk(self._reader)
        for pid in (root.pid, starter.pid):
            walk.climb(pid)
        walk.descend([starter.pid])
        self._add_hidden(walk.seen)
        return walk.seen

    def vouch(self, root: ProcessId, starter: ProcessId, uid: int) -> None:
        """Take a starter's word for a root that this host does not show us, while it lives; `let_go` gives it back."""
        if self._sees_jobs or root in self._hidden or self._reader.read(root.pid) is not None:
            return
        try:
            self._hidden[root] = _Hidden(root, starter, uid)
        except OSError as error:
            raise_if_ours(error)  # else there is none; registration says so

    def let_go(self) -> None:
        """Give back what is held for processes that are the root of no family (any more)."""
        roots = {family.root for family in self._families}
        for root in self._hidden.keys() - roots:
            os.close(self._hidden.pop(root).pidfd)

    def _add_hidden(self, seen: dict[int, Process]) -> None:
        for root, hidden in self._hidden.items():
            if root.pid not in seen and hidden.lives:
                seen[root.pid] = hidden.process

    def is_there(self, identity: ProcessId) -> bool:
        """Whether this very process exists, if only as a zombie."""
        if identity in self._hidden:
            return self._hidden[identity].lives
        return self._reader.ticks(identity.pid) == identity.start_ticks

    def runs(self, identity: ProcessId) -> bool:
        """Whether this very process is there and no zombie."""
        if identity in self._hidden:
            return self._hidden[identity].lives
        process = self._reader.read(identity.pid)
        return process is not None and process.id == identity and process.running

    def pss_kb(self, family: Family) -> int | None:
        """The family's share of memory; None unless the kernel shows it for all of it."""
        running = self._families.running(family)
        if len(running) > MAX_PSS:
            return None
        shares = [self._reader.pss_kb(identity.pid) for identity in running]
        return None if None in shares else sum(share for share in shares if share is not None)

    def own_kb(self, family: Family) -> int:
        """The family's memory with what its processes map in common counted about once: what each has of its own, and
        the largest mapped part of any. Pages that a fork left in common still count for each."""
        found = [self._reader.memory_kb(identity.pid) for identity in self._families.running(family)]
        return sum(own for own, _ in found) + max((shared for _, shared in found), default=0)

    def io_kb(self, family: Family) -> tuple[int, int] | None:
        """Read from and written to storage by the living and those that they waited for; None as `pss_kb`."""
        found = [self._reader.io_kb(identity.pid) for identity in self._families.running(family)]
        shown = [each for each in found if each is not None]
        if not shown:
            return None
        return sum(each[0] for each in shown), sum(each[1] for each in shown)

    def _read_all(self) -> dict[int, Process]:
        """All processes; and those that came while these were read, until nobody new is listed."""
        seen: dict[int, Process] = {}
        for _ in range(SCAN_ROUNDS):
            new = [pid for pid in self._reader.pids() if pid not in seen]
            if not new:
                break
            seen.update((pid, process) for pid in new if (process := self._reader.read(pid)) is not None)
        return seen

    def _walk(self, top: Family, known: Iterable[ProcessId], told: Collection[int] = ()) -> "_Walk":
        walk = _Walk(self._reader)
        strangers = frozenset(identity.pid for identity in top.around.ancestors)
        reapers = [identity.pid for identity in self._families.reapers(top)]
        walk.descend(reapers, deeper_than=strangers, only_uid=top.around.uid)
        walk.descend([identity.pid for identity in known])
        walk.descend(told)
        self._add_hidden(walk.seen)
        return walk


class _Hidden:
    """A process that /proc does not show us, by a descriptor of it. OSError when there is none."""

    def __init__(self, root: ProcessId, starter: ProcessId, uid: int) -> None:
        self.pidfd = os.pidfd_open(root.pid)
        self.process = Process(root, starter.pid, HIDDEN, uid, 1, 0, 0, 0, 0, 0, 0)

    @property
    def lives(self) -> bool:
        poller = select.poll()
        poller.register(self.pidfd, select.POLLIN)
        return not poller.poll(0)


class _Walk:
    """One walk through process trees: what was seen, and how many numbers were listed but not to be read."""

    def __init__(self, reader: ProcReader) -> None:
        self.seen: dict[int, Process] = {}
        self.vanished = 0
        self._reader = reader
        self._children = reader.lister()

    @property
    def result(self) -> set[tuple[ProcessId, bool]]:
        """Who is there, and who runs."""
        return {(process.id, process.running) for process in self.seen.values()}

    def descend(
        self,
        start: Collection[int],
        *,
        deeper_than: frozenset[int] = frozenset(),
        only_uid: int | None = None,
    ) -> None:
        """Read processes and all below them, parents first.

        Below the processes `deeper_than` are other starters with families of their own; there the walk
        follows only what is of `only_uid`.
        """
        given = frozenset(start)
        waiting = [(pid, False) for pid in start]
        waiting.reverse()
        while waiting:
            pid, listed = waiting.pop()
            if pid in self.seen:
                continue
            process = self._reader.read(pid)
            if process is None:
                self.vanished += listed
                continue
            self.seen[pid] = process
            is_stranger = process.parent in deeper_than and process.uid != only_uid and pid not in given
            if process.running and not is_stranger:
                waiting.extend((child, True) for child in self._children(process))

    def climb(self, pid: int) -> None:
        """Read a process and all above it."""
        for _ in range(MAX_CHAIN):
            if pid in self.seen or pid <= 1 or (process := self._reader.read(pid)) is None:
                return
            self.seen[pid] = process
            pid = process.parent
