"""What tells of a family beside descent: its cgroup, the kernel's process events, a sweep of its account. Acting.

All of them are additions: a family without any is complete as far as sub-reapers reach.
"""

import pwd
import re
from collections.abc import Collection, Mapping
from pathlib import Path

import attrs

from pilot import logs
from procd.account import NO_CPU, Cpu
from procd.births import Births
from procd.events import Event
from procd.facts import Facts, lacks, sees_jobs
from procd.families import Families, Family
from procd.groups import NO_BOUNDS, Bounds, Counted, Group, GroupFailed, Groups
from procd.messages import Degradation, Description, Usage
from procd.proc import TICKS_PER_S
from procd.process import Process, ProcessId

# In the environment of a job that runs at the pilot's own account; starter/description.py sets it.
FAMILY_VARIABLE = b"SAILPLANE_FAMILY"


class Trackers:
    """The additions of one procd.

    Args:
        facts: the host's; a cgroup there is where groups are made.
        dedicated: accounts' names that fully match are one job's at a time; strays of these are members. None: no
            account is.
        isolates: jobs run at other accounts.
        owns: the kernel lets us signal them ourselves; None: where they are at our own.
    """

    def __init__(
        self,
        families: Families,
        facts: Facts,
        log: logs.Contextual,
        *,
        dedicated: re.Pattern[str] | None,
        isolates: bool,
        owns: bool | None = None,
    ) -> None:
        self.facts = facts
        self._families = families
        self._log = log
        self._dedicated = dedicated
        self._isolates = isolates
        self._owns = not isolates if owns is None else owns
        self._makes = Groups(Path(facts.cgroup)) if facts.cgroup else None
        self._groups: dict[str, Group] = {}
        # What the root had used before it came into its group.
        self._before: dict[str, Cpu] = {}
        self._io_kb: dict[str, tuple[int, int]] = {}
        self._births = Births()
        self._strays: dict[Family, list[ProcessId]] = {}
        self._mine: set[int] = set()

    def describe(self) -> Description:
        """For the startd and for people."""
        facts, isolates = self.facts, self._isolates
        trackers = {
            "descent": sees_jobs(facts, isolates=isolates),
            "cgroup": facts.cgroup is not None,
            "events": facts.connector,
            "environment": not isolates,
            "account": sees_jobs(facts, isolates=True),
        }
        routes = {"control": isolates, "cgroup": facts.cgroup is not None, "own": self._owns, "switch": isolates}
        return Description(
            trackers=tuple(name for name, there in trackers.items() if there),
            routes=tuple(name for name, there in routes.items() if there),
            degraded=tuple(Degradation(lack.word, lack.text) for lack in lacks(facts, isolates=isolates)),
            cgroup=facts.cgroup,
        )

    # --- cgroups --------------------------------------------------------------------------------------------

    def place(self, family: Family, *, new: bool, bounds: Bounds = NO_BOUNDS) -> None:
        """Put the root of a new family into a group of its own, held to `bounds`; find that of one that an
        earlier procd had. A launch that was tried again has another root, which comes into the same group."""
        if self._makes is None or family.parent is not None:
            return
        if family.name in self._groups:
            return self._place_again(family, self._groups[family.name])
        try:
            self._groups[family.name] = self._makes.place(family.root, new=new, bounds=bounds)
            self._before[family.name] = family.account.totals.cpu if new else NO_CPU
        except GroupFailed as failed:
            self._log.warning("family %s: no cgroup (%s), following it by descent", family.name, failed)

    def _place_again(self, family: Family, group: Group) -> None:
        if family.root.pid in group.pids():
            return
        before = self._before.get(family.name, NO_CPU)
        try:
            group.add(family.root)
            self._before[family.name] = before.plus(family.account.totals.cpu)
        except GroupFailed as failed:
            del self._groups[family.name]  # it does not hold the family any more
            self._log.warning("family %s: not all in its cgroup (%s), following it by descent", family.name, failed)

    def group(self, family: Family) -> Group | None:
        """The group that holds exactly this family with its sub-families, if there is one."""
        return self._groups.get(family.name)

    def told(self, family: Family) -> Collection[int]:
        """Numbers of everybody in the family's group."""
        group = self.group(family)
        return () if group is None else group.pids()

    def forget(self, family: Family) -> None:
        """The family is not tracked any more."""
        group = self._groups.pop(family.name, None)
        if group is not None and not group.remove():
            self._log.warning("family %s: its cgroup %s is not empty, leaving it", family.name, group.path)
        self._before.pop(family.name, None)
        self._io_kb.pop(family.name, None)
        self._births.forget(family.name)
        self._strays.pop(family, None)

    # --- usage ----------------------------------------------------------------------------------------------

    def carry(self, family: Family, usage: Usage) -> None:
        """What an earlier procd had come to."""
        if usage.read_kb is not None and usage.written_kb is not None:
            self.note_io(family, (usage.read_kb, usage.written_kb))

    def note_io(self, family: Family, io_kb: tuple[int, int] | None) -> None:
        """A sum over the living; who ended without being waited for is missing, so the largest one counts."""
        if io_kb is not None:
            read_kb, written_kb = self._io_kb.get(family.name, (0, 0))
            self._io_kb[family.name] = (max(read_kb, io_kb[0]), max(written_kb, io_kb[1]))

    def complete(self, family: Family, usage: Usage) -> Usage:
        """Usage by snapshots, with what else is known."""
        group = self.group(family)
        counted = None if group is None else group.counted()
        inside = self._families.within(family)
        unseen = sum(self._births.unseen(each.name) for each in inside)
        read_kb, written_kb = self._io_kb.get(family.name, (None, None))
        hidden = len(self.told(family)) if family.around.hidden else 0
        return attrs.evolve(
            _with_counted(usage, counted, self._before.get(family.name, NO_CPU)),
            processes=max(usage.processes, hidden),
            processes_seen=usage.processes_seen + unseen,
            read_kb=read_kb,
            written_kb=written_kb,
            strays=len(self.strays(family)),
        )

    # --- process events -------------------------------------------------------------------------------------

    def note_look(self) -> None:
        """Members may be new: events of their children are theirs from now on."""
        for family in self._families:
            self._births.learn(family.name, (identity.pid for identity in family.members))

    def note_listening(self) -> None:
        """Events come from now on; what was forked before is not known by them."""
        self.note_look()
        self._log.info("process events: listening")

    def note_events(self, events: list[Event]) -> None:
        """A lot, in the kernel's order."""
        for event in events:
            if event.parent is None:
                self._births.ended(event.pid)
            else:
                self._births.born(event.pid, event.parent)

    def stirred(self) -> set[str]:
        """Names of families of which events came since this was asked last."""
        return self._births.stirred()

    def note_lost(self, why: str) -> None:
        """Events did not reach us, and do not for a while."""
        self._births.lost()
        self._log.info("process events: %s; doing without for a while", why)

    # --- the sweep of accounts ------------------------------------------------------------------------------

    @property
    def sweeps(self) -> bool:
        """Whether any account may be dedicated."""
        return self._dedicated is not None and self._isolates

    def know_account(self, uid: int) -> None:
        """Find out whether an account is dedicated. Looks its name up, which may take long: not for an event loop."""
        if self._dedicated is None:
            return
        try:
            name = pwd.getpwuid(uid).pw_name
        except KeyError:
            return
        if self._dedicated.fullmatch(name):
            self._mine.add(uid)

    def note_scan(self, seen: Mapping[int, Process]) -> None:
        """Everybody was read. Strays of a dedicated account become members, others are remembered and logged."""
        found = self._families.strays(seen)
        for family, strays in found.items():
            alone = sum(each.around.uid == family.around.uid for each in found) == 1
            adopted = alone and family.around.uid in self._mine
            new = set(strays).difference(self._strays.get(family, ()))
            if new:
                self._log.warning(
                    "family %s: no descendants, at its account %d: %s (%s)",
                    family.name, family.around.uid, " ".join(str(each.pid) for each in sorted(new)[:20]),
                    "a dedicated one, so they are its" if adopted else "left alone",
                )  # fmt: skip
            if adopted:
                self._families.admit(family, [seen[each.pid] for each in strays])
        self._strays = {family: strays for family, strays in found.items() if strays}

    def strays(self, family: Family) -> list[ProcessId]:
        """Those of the last scan that are not members."""
        members = self._families.members(family)
        return [each for each in self._strays.get(family, ()) if each not in members]


def _with_counted(usage: Usage, counted: Counted | None, before: Cpu) -> Usage:
    """The kernel's count where there is one; snapshots may know more only of a family that an earlier procd had."""
    if counted is None:
        return usage
    user_s, system_s = counted.user_s + before.user / TICKS_PER_S, counted.system_s + before.system / TICKS_PER_S
    if user_s + system_s < usage.user_s + usage.system_s:
        user_s, system_s = usage.user_s, usage.system_s
    return attrs.evolve(
        usage,
        user_s=user_s,
        system_s=system_s,
        memory_peak_kb=counted.memory_peak_kb,
        memory_limit_kb=counted.memory_limit_kb,
        oom_kills=counted.oom_kills,
    )
