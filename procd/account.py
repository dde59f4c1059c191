"""What a set of processes has used: the living, and the dead without counting anyone twice. Pure.

A process's CPU lives on in its parent's "waited for" times, if the parent waits for it; else it is lost
unless we keep what we saw last. We can't see which of the two happened. So for each living parent P, between
two snapshots: P was credited with C for children that it waited for, and its children that we saw die had
used at least V. The truth is at least max(C, V); C is in P's numbers already, so max(0, V - C) is added.
Rounding can't make this too large: ticks are rounded down, for the sum later than for its parts.

A process whose parent ended in the same interval may have been handed to any living ancestor: what the
nearest one was not credited with is looked for in the next one above, before it is added.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from procd.process import Process, ProcessId


class Cpu(NamedTuple):
    """User and system time in clock ticks."""

    user: int = 0
    system: int = 0

    def plus(self, other: "Cpu") -> "Cpu":
        """The sum."""
        return Cpu(self.user + other.user, self.system + other.system)

    def beyond(self, other: "Cpu") -> "Cpu":
        """What is more than in `other`; never negative."""
        return Cpu(max(0, self.user - other.user), max(0, self.system - other.system))

    def at_least(self, other: "Cpu") -> "Cpu":
        """The larger one of each."""
        return Cpu(max(self.user, other.user), max(self.system, other.system))


NO_CPU = Cpu()


class Totals(NamedTuple):
    """An account's state. `dead` is the part of `cpu` that no living process shows."""

    cpu: Cpu = NO_CPU
    dead: Cpu = NO_CPU
    rss_kb: int = 0
    rss_peak_kb: int = 0
    image_peak_kb: int = 0
    processes: int = 0
    seen: int = 0


class Account:
    """The account of one family with its sub-families.

    Args:
        carried: what an earlier account of the same family had come to; its numbers are never undercut.
    """

    def __init__(self, carried: Totals = Totals()) -> None:  # noqa: B008 - immutable
        self._present: dict[ProcessId, Process] = {}
        self._dead = carried.dead
        self._carried_cpu: Cpu | None = carried.cpu
        self._rss_peak_kb = carried.rss_peak_kb
        self._image_peak_kb = carried.image_peak_kb
        self._seen = carried.seen
        self._witness: Process | None = None
        self._deferred: frozenset[ProcessId] = frozenset()
        self._index: dict[int, ProcessId] | None = None

    def update(
        self,
        seen: Iterable[Process],
        gone: Collection[ProcessId] = (),
        *,
        doubtful: Collection[ProcessId] = (),
        witness: Process | None = None,
    ) -> None:
        """Take in one snapshot of the set.

        Args:
            seen: those that are there, each read before its children.
            gone: those that are not there any more. Their parents were read after that was known, except for
            doubtful: those of them whose parents may have been read too early; they and their parents keep
                their old numbers until the next snapshot.
            witness: the process outside the set whose children all belong to the set and that waits for them;
                what it is credited with counts, from the first time on that it is shown here.
        """
        now = {process.id: process for process in seen}
        gone = self._deferred.union(gone)
        heirs = self._heirs(gone)
        frozen = {heirs[each] for each in doubtful if each in heirs}
        leaving = [each for each in gone if each not in doubtful and heirs.get(each) not in frozen]
        self._deferred = gone.difference(leaving)
        credited = self._credits(now, frozen) | self._witnessed(witness, frozen)
        ended = {process.id for process in now.values() if not process.running}
        self._dead = self._dead.plus(self._unseen(leaving, heirs, credited, ended))
        for identity in leaving:
            self._present.pop(identity, None)
        self._seen += len(now.keys() - self._present.keys())
        self._present.update((key, process) for key, process in now.items() if key not in frozen)
        self._after_update()

    def holds(self, identity: ProcessId) -> bool:
        """Whether a process is there, or its end has not been accounted for yet."""
        return identity in self._present

    @property
    def totals(self) -> Totals:
        """The sums as of the last update."""
        running = [process for process in self._present.values() if process.running]
        return Totals(
            cpu=self._living().plus(self._dead),
            dead=self._dead,
            rss_kb=sum(process.rss_kb for process in running),
            rss_peak_kb=self._rss_peak_kb,
            image_peak_kb=self._image_peak_kb,
            processes=len(running),
            seen=self._seen,
        )

    # --- credits --------------------------------------------------------------------------------------------

    def _credits(self, now: Mapping[ProcessId, Process], frozen: Collection[ProcessId | None]) -> dict[ProcessId, Cpu]:
        """How much more each known living process has waited for since the last snapshot."""
        return {
            key: _reaped(process).beyond(_reaped(self._present[key]))
            for key, process in now.items()
            if key in self._present and key not in frozen
        }

    def _witnessed(self, witness: Process | None, frozen: Collection[ProcessId | None]) -> dict[ProcessId, Cpu]:
        """The witness's credit; it is no member, so the credit goes to the dead at once."""
        before, credit = self._witness, NO_CPU
        if witness is None or witness.id in frozen:
            return {}
        self._witness = witness
        if before is not None and before.id == witness.id:
            credit = _reaped(witness).beyond(_reaped(before))
        self._dead = self._dead.plus(credit)
        return {witness.id: credit}

    def _unseen(
        self,
        leaving: Iterable[ProcessId],
        heirs: Mapping[ProcessId, ProcessId | None],
        credited: Mapping[ProcessId, Cpu],
        ended: Collection[ProcessId],
    ) -> Cpu:
        """What the dead had used and nobody alive was credited with. A zombie may have left its children to
        others."""
        direct: dict[ProcessId, Cpu] = {}
        handed: dict[ProcessId, Cpu] = {}
        lost = NO_CPU
        for identity in leaving:
            if identity not in self._present:
                continue
            used, heir = _all(self._present[identity]), heirs[identity]
            if heir is None:
                lost = lost.plus(used)
            else:
                pile = direct if heir == self._parent(identity) and heir not in ended else handed
                pile[heir] = pile.get(heir, NO_CPU).plus(used)
        return lost.plus(self._unabsorbed(direct, handed, credited))

    def _unabsorbed(
        self, direct: Mapping[ProcessId, Cpu], handed: dict[ProcessId, Cpu], credited: Mapping[ProcessId, Cpu]
    ) -> Cpu:
        lost = NO_CPU
        for heir in self._deepest_first(direct.keys() | handed.keys()):
            credit = credited.get(heir, NO_CPU)
            own = direct.get(heir, NO_CPU)
            lost = lost.plus(own.beyond(credit))
            rest = handed.get(heir, NO_CPU).beyond(credit.beyond(own))
            above = self._parent(heir)
            if above is None:
                lost = lost.plus(rest)
            else:
                handed[above] = handed.get(above, NO_CPU).plus(rest)
        return lost

    # --- lineage, as of the last snapshot -------------------------------------------------------------------

    def _parent(self, identity: ProcessId) -> ProcessId | None:
        """Its parent in the set, or the witness."""
        process = self._present.get(identity)
        parent = None if process is None else self._by_pid().get(process.parent)
        # A parent that is younger is another process with the number of the real one.
        return parent if parent is not None and parent.start_ticks <= identity.start_ticks else None

    def _by_pid(self) -> dict[int, ProcessId]:
        if self._index is None:
            self._index = {key.pid: key for key in self._present}
            if self._witness is not None:
                self._index.setdefault(self._witness.id.pid, self._witness.id)
        return self._index

    def _heirs(self, gone: Collection[ProcessId]) -> dict[ProcessId, ProcessId | None]:
        """For each of the gone the nearest ancestor in the set that is not gone."""
        heirs: dict[ProcessId, ProcessId | None] = {}
        for identity in gone:
            line: dict[ProcessId, None] = {}
            at: ProcessId | None = identity
            while at is not None and at in gone and at not in heirs and at not in line:
                line[at] = None
                at = self._parent(at)
            heir = heirs[at] if at is not None and at in heirs else (None if at in line else at)
            heirs.update(dict.fromkeys(line, heir))
        return heirs

    def _deepest_first(self, identities: Collection[ProcessId]) -> list[ProcessId]:
        """These and everything above them, children before parents."""
        depths: dict[ProcessId, int] = {}
        for identity in identities:
            line: dict[ProcessId, None] = {}
            at: ProcessId | None = identity
            while at is not None and at not in depths and at not in line:
                line[at] = None
                at = self._parent(at)
            base = depths.get(at, -1) if at is not None else -1
            depths.update((each, base + height) for height, each in enumerate(reversed(line), start=1))
        return sorted(depths, key=depths.__getitem__, reverse=True)

    # --- sums -----------------------------------------------------------------------------------------------

    def _living(self) -> Cpu:
        user = system = 0
        for process in self._present.values():
            user += process.user_ticks + process.reaped_user_ticks
            system += process.system_ticks + process.reaped_system_ticks
        return Cpu(user, system)

    def _after_update(self) -> None:
        self._index = None
        if self._carried_cpu is not None:
            self._dead = self._dead.at_least(self._carried_cpu.beyond(self._living()))
            self._carried_cpu = None
        rss_kb = image_kb = 0
        for process in self._present.values():
            rss_kb += process.rss_kb
            image_kb += process.image_kb
        self._rss_peak_kb = max(self._rss_peak_kb, rss_kb)
        self._image_peak_kb = max(self._image_peak_kb, image_kb)


def _reaped(process: Process) -> Cpu:
    return Cpu(process.reaped_user_ticks, process.reaped_system_ticks)


def _all(process: Process) -> Cpu:
    return Cpu(process.user_ticks + process.reaped_user_ticks, process.system_ticks + process.reaped_system_ticks)
