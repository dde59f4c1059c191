"""Who belongs to which family. Pure: it is shown processes and decides; it reads, signals and waits for nothing.

A family is a root process and its descendants. Membership is sticky: once seen, a process stays until it
ends, whatever becomes of its parent. Orphans of the job are handed to a sub-reaper: the starter, or a part of
the switch that lingers between starter and root; a child of one of these that the starter did not have before
is an orphan of the family. The most specific family wins: a family whose root is in another one is its
sub-family, and takes the descendants of its root.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

import attrs

from procd.account import Account
from procd.process import Process, ProcessId
from procd.surroundings import FamilyRefused, Seen, Surroundings, ancestors, is_there, survey


@attrs.define(eq=False)
class Family:
    """One family: who it is, and its own members as last seen (those of its sub-families are theirs)."""

    name: str
    root: ProcessId
    starter: ProcessId
    around: Surroundings
    parent: "Family | None"
    account: Account
    members: dict[ProcessId, Process] = attrs.field(factory=dict)
    starter_alive: bool = True

    @property
    def top(self) -> "Family":
        """The outermost family that it is in."""
        *_, top = self.lineage()
        return top

    def lineage(self) -> Iterator["Family"]:
        """This family and those around it."""
        at: Family | None = self
        while at is not None:
            yield at
            at = at.parent


class Families:
    """All families of one pilot.

    Args:
        pilot_uid: whose processes the starters are. A job at this uid can't be told from the starter's own new
            children, which then count as its.
        never: processes that belong to nobody, as procd itself.
        alike: whether two processes were started by the same command line, or it can't be told.
        cookie: the family that a process's environment names, or None; asked only where uids are equal.
    """

    def __init__(
        self,
        pilot_uid: int,
        never: Collection[ProcessId] = (),
        *,
        alike: Callable[[int, int], bool] = lambda one, other: True,
        cookie: Callable[[int], str | None] = lambda pid: None,
    ) -> None:
        self._pilot_uid = pilot_uid
        self._alike = alike
        self._cookie = cookie
        self._never = frozenset(never)
        self._families: dict[str, Family] = {}
        self._member_of: dict[ProcessId, Family] = {}

    # --- asking ---------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Family]:
        """Parents before their sub-families."""
        return iter(tuple(self._families.values()))

    def get(self, name: str) -> Family:
        """The family of this name; FamilyRefused("unknown-family")."""
        try:
            return self._families[name]
        except KeyError:
            raise FamilyRefused("unknown-family", f"no family is called {name}") from None

    def within(self, family: Family) -> list[Family]:
        """The family and all below it."""
        return [each for each in self._families.values() if family in each.lineage()]

    def members(self, family: Family) -> dict[ProcessId, Process]:
        """Members of the family and of those below it, zombies included, as last seen."""
        found: dict[ProcessId, Process] = {}
        for each in self.within(family):
            found.update(each.members)
        return found

    def running(self, family: Family) -> list[ProcessId]:
        """Those that hold anything and can be signalled."""
        return [identity for identity, process in self.members(family).items() if process.running]

    def reapers(self, family: Family) -> list[ProcessId]:
        """Processes whose children may be orphans of the family: where a walk has to start."""
        found = [family.starter, *reversed(family.around.chain)]
        return found if family.starter_alive else [*self._above(family), *found]

    def _above(self, family: Family) -> tuple[ProcessId, ...]:
        """Who gets the orphans of a dead starter. At the pilot's own uid only the spawner, whose other
        children are known to be starters; what else the startd has can't be told from a job."""
        ancestors = family.around.ancestors
        return ancestors[:1] if family.around.uid == self._pilot_uid else ancestors

    # --- changing -------------------------------------------------------------------------------------------

    def register(
        self, name: str, root: ProcessId, starter: ProcessId, seen: Seen, around: Surroundings | None = None
    ) -> Family:
        """Track a new family. The same request again gives the same family; when its root has ended, its
        starter may name another one (a launch that was tried again).

        Args:
            seen: root, its ancestors, and the starter's children; all that run in a sub-family's case.
            around: known from an earlier registration with another procd; then the root may have ended.

        Raises:
            FamilyRefused: "already-registered", "no-such-process".
        """
        known = self._families.get(name)
        if known is not None and (known.root, known.starter) == (root, starter):
            return known
        if known is not None and (known.starter != starter or _is_running(known.root, seen)):
            raise FamilyRefused("already-registered", f"a family is called {name} already")
        if any(family.root == root for family in self._families.values()):
            raise FamilyRefused("already-registered", f"process {root.pid} is the root of a family already")
        around = survey(root, starter, seen, self._pilot_uid) if around is None else around
        if known is not None:
            self.unregister(known)
        self.discover(seen)
        family = self._add(name, root, starter, around, seen)
        if known is not None:
            self._inherit(family, known)
        return family

    def _inherit(self, family: Family, earlier: Family) -> None:
        """Whatever an earlier attempt at the same job has left is the new attempt's."""
        for identity, process in earlier.members.items():
            if identity not in self._member_of:
                family.members[identity] = process
                self._member_of[identity] = family

    def _add(self, name: str, root: ProcessId, starter: ProcessId, around: Surroundings, seen: Seen) -> Family:
        parent = self._member_of.get(root)
        family = Family(name, root, starter, around, parent, Account(around.totals))
        self._families[name] = family
        if parent is not None:
            self._take_over(family, parent)
        self.discover(seen)
        family.account.update(family.members.values(), witness=self._witness(family, seen))
        return family

    def _take_over(self, family: Family, parent: Family) -> None:
        """The root's descendants leave the outer family for the more specific one."""
        by_pid = {identity.pid: identity for identity in parent.members}
        inside = {family.root: True}

        def is_inside(identity: ProcessId) -> bool:
            line: list[ProcessId] = []
            at: ProcessId | None = identity
            while at is not None and at not in inside and len(line) <= len(parent.members):
                line.append(at)
                at = by_pid.get(parent.members[at].parent)
            answer = at is not None and inside.get(at, False)
            inside.update(dict.fromkeys(line, answer))
            return answer

        for identity in [each for each in parent.members if is_inside(each)]:
            family.members[identity] = parent.members.pop(identity)
            self._member_of[identity] = family

    def unregister(self, family: Family) -> None:
        """Forget a family: its members and sub-families go to its parent, or are free."""
        del self._families[family.name]
        for each in self._families.values():
            if each.parent is family:
                each.parent = family.parent
        for identity, process in family.members.items():
            if family.parent is None:
                del self._member_of[identity]
            else:
                family.parent.members[identity] = process
                self._member_of[identity] = family.parent

    def starter_died(self, starter: ProcessId) -> list[Family]:
        """A starter has ended: from now on its orphans are with the spawner. The outermost families it
        had."""
        touched = [family for family in self._families.values() if family.starter == starter]
        for family in touched:
            family.starter_alive = False
        return [family for family in touched if family.parent is None]

    # --- watching -------------------------------------------------------------------------------------------

    def discover(self, seen: Seen, told: Mapping[int, Family] | None = None) -> list[ProcessId]:
        """Find new members among processes. A parent that is not shown is unknown: then so is its child.

        Does no accounting: a scan in any order is welcome.

        Args:
            told: the family of a process, known to the kernel (its cgroup), for who can't be told by descent.
        """
        answers: dict[int, Family | None] = {}
        judge = self._judge(seen)
        never = self._nobody() if told else ()
        found = []
        for process in seen.values():
            if process.id in self._member_of:
                continue
            family = _climb(process, seen, answers, judge) or (told or {}).get(process.id.pid)
            if family is not None and process.id not in never:
                family.members[process.id] = process
                self._member_of[process.id] = family
                found.append(process.id)
        return found

    def _judge(self, seen: Seen) -> Callable[[Process], "Family | bool | None"]:
        """A function that tells a process's family from itself and its parent, or False: its parent's
        family."""
        roots = {family.root: family for family in self._families.values()}
        reapers = self._reaper_table()
        nobody = self._nobody()

        def judge(process: Process) -> Family | bool | None:
            if process.id in self._member_of:
                return self._member_of[process.id]
            if process.id in roots:
                return roots[process.id]
            if process.id in nobody:
                return None
            parent = seen.get(process.parent)
            if parent is None or parent.id.start_ticks > process.id.start_ticks:
                return None
            if parent.id in reapers:
                return next((each for each in reapers[parent.id] if self._is_orphan_of(each, parent, process)), None)
            return False

        return judge

    def _reaper_table(self) -> dict[ProcessId, list[Family]]:
        table: dict[ProcessId, list[Family]] = {}
        for family in self._families.values():
            if family.parent is None:
                for identity in self.reapers(family):
                    table.setdefault(identity, []).append(family)
        return table

    def _nobody(self) -> set[ProcessId]:
        found = set(self._never)
        for family in self._families.values():
            around = family.around
            found.update((family.starter, *around.chain, *around.exempt, *around.ancestors))
        return found

    def _is_orphan_of(self, family: Family, reaper: Process, process: Process) -> bool:
        """Whether a child of one of the family's reapers, which is nobody's, is an orphan of the family."""
        if process.id.start_ticks < family.root.start_ticks:
            return False
        if reaper.id in family.around.ancestors:
            # A living starter keeps its own orphans, so what is here at this uid was a dead starter's, unless
            # it is a starter itself: these are forked from the spawner and look like it.
            if process.uid != family.around.uid:
                return False
            return process.uid != self._pilot_uid or self._names(family, reaper, process)
        return family.around.uid == self._pilot_uid or process.uid != self._pilot_uid

    def _names(self, family: Family, reaper: Process, process: Process) -> bool:
        """Whether an orphan at the pilot's own account is this family's: by its cookie, else by its looks."""
        cookie = self._cookie(process.id.pid)
        return not self._alike(reaper.id.pid, process.id.pid) if cookie is None else cookie == family.name

    def strays(self, seen: Seen) -> dict[Family, list[ProcessId]]:
        """Who runs at a family's account, is younger than its root, and descends from nobody that we know: at, cron,
        ssh. Of several families with one account all have them.

        Args:
            seen: every process there is, after `discover`.
        """
        tops = [each for each in self if each.parent is None and each.around.uid != self._pilot_uid]
        uids = {family.around.uid for family in tops}
        ours = self._nobody() | self._member_of.keys()
        found: dict[Family, list[ProcessId]] = {}
        for process in seen.values():
            if process.uid not in uids or not process.running or process.id in ours:
                continue
            if any(above.id in ours for above in ancestors(process, seen)):
                continue  # a call of the switch, on its way
            for family in tops:
                if family.around.uid == process.uid and process.id.start_ticks >= family.root.start_ticks:
                    found.setdefault(family, []).append(process.id)
        return found

    def admit(self, family: Family, processes: Iterable[Process]) -> None:
        """Make processes members that no descent tells of: strays of an account that is the family's alone."""
        for process in processes:
            if process.id not in self._member_of:
                family.members[process.id] = process
                self._member_of[process.id] = family

    def refresh(
        self,
        top: Family,
        seen: Seen,
        gone: Collection[ProcessId],
        doubtful: Collection[ProcessId] = (),
        told: Mapping[int, Family] | None = None,
    ) -> None:
        """Take in a snapshot of all members of an outermost family and those below it.

        Args:
            seen: the processes, each read before its children.
            gone: members that are not there any more; `doubtful` as in procd.account, `told` as in `discover`.
        """
        self.discover(seen, told)
        leaving = set(gone)
        for family in self.within(top):
            mine = {key: seen[key.pid] for key in family.members if is_there(key, seen)}
            left = [key for key in family.members if key in leaving]
            family.members.update(mine)
            for key in left:
                del family.members[key]
                del self._member_of[key]
        for family in self.within(top):
            present = [process for key, process in self.members(family).items() if is_there(key, seen)]
            family.account.update(present, leaving, doubtful=doubtful, witness=self._witness(family, seen))

    def _witness(self, family: Family, seen: Seen) -> Process | None:
        """The process outside that waits for the root, while all that it waits for is the family's."""
        if family.parent is not None:
            return None
        if family.around.hidden:  # all that is ever seen of the family is what its starter was credited with
            return seen[family.starter.pid] if is_there(family.starter, seen) else None
        chain = family.around.chain
        identity = chain[0] if chain else family.starter
        root_counts = family.root in family.members or family.account.holds(family.root)
        if not chain and not root_counts:
            return None  # the starter goes on to wait for other calls of the switch
        return seen[identity.pid] if is_there(identity, seen) else None


def _is_running(identity: ProcessId, seen: Seen) -> bool:
    return is_there(identity, seen) and seen[identity.pid].running


def _climb(
    process: Process,
    seen: Seen,
    answers: dict[int, Family | None],
    judge: Callable[[Process], "Family | bool | None"],
) -> Family | None:
    """The family of a process: that of the first ancestor for whom it can be told."""
    line = []
    at = process
    while at.id.pid not in answers:
        line.append(at.id.pid)
        answer = judge(at)
        if not isinstance(answer, bool):
            answers[at.id.pid] = answer
            break
        answers[at.id.pid] = None  # ends a circle, which pid reuse during a scan can make up
        at = seen[at.parent]
    result = answers[at.id.pid]
    answers.update(dict.fromkeys(line, result))
    return result
