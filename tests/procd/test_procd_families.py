"""procd.families and procd.account against a simple machine that knows the truth."""

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from procd.account import Account, Cpu, Totals
from procd.families import Families, Family
from procd.process import Process, ProcessId
from procd.surroundings import FamilyRefused, Surroundings

PILOT, ALICE = 500, 1001
INIT, STARTD, SPAWNER, STARTER, FRONT, ROOTPART, ROOT = 1, 2, 3, 4, 5, 6, 10
OTHER_STARTER = 7


@attrs.define
class Sim:
    """A process of the machine. `owner` is the truth: the family in which it was born."""

    pid: int
    start: int
    parent: int
    uid: int
    owner: str | None
    user: int = 0
    reaped: int = 0
    zombie: bool = False
    waits: bool = True
    reaper: bool = False


class Machine:
    """Processes as a kernel keeps them: pids are reused, orphans are handed up, waiting credits CPU."""

    def __init__(self, *, chain: bool = True, uid: int = ALICE) -> None:
        self.clock = 100
        self.processes: dict[int, Sim] = {}
        self.used = 0
        self.last_start: dict[int, int] = {}
        self.free = list(range(20, 60))
        for pid, parent, owner_uid in (
            (INIT, 0, 0), (STARTD, INIT, PILOT), (SPAWNER, STARTD, PILOT), (STARTER, SPAWNER, PILOT),
            (OTHER_STARTER, SPAWNER, PILOT),
        ):  # fmt: skip
            self.add(pid, parent, owner_uid, None, reaper=True)
        top = STARTER
        if chain:
            self.add(FRONT, STARTER, PILOT, None)
            self.add(ROOTPART, FRONT, 0, None, reaper=True)
            top = ROOTPART
        self.add(ROOT, top, uid, "job")

    def add(self, pid: int, parent: int, uid: int, owner: str | None, *, reaper: bool = False) -> Sim:
        made = Sim(pid, self.clock, parent, uid, owner, reaper=reaper)
        self.processes[pid] = made
        self.last_start[pid] = self.clock
        return made

    def living(self) -> list[Sim]:
        return [each for each in self.processes.values() if not each.zombie]

    def fork(self, parent: Sim, *, uid: int | None = None) -> Sim | None:
        """A child with a recycled number; one number never has the same start tick twice."""
        free = [pid for pid in self.free if pid not in self.processes and self.last_start.get(pid) != self.clock]
        if not free:
            return None
        owner = parent.owner
        return self.add(free[0], parent.pid, parent.uid if uid is None else uid, owner)

    def burn(self, process: Sim, ticks: int) -> None:
        process.user += ticks
        if process.owner:
            self.used += ticks

    def end(self, process: Sim) -> None:
        process.zombie = True
        for child in [each for each in self.processes.values() if each.parent == process.pid]:
            child.parent = self.reaper_above(process).pid
            if child.zombie:
                self.reap(child)
        if not self.processes[process.parent].waits:
            del self.processes[process.pid]

    def reaper_above(self, process: Sim) -> Sim:
        at = self.processes[process.parent]
        while not at.reaper or at.zombie:
            at = self.processes[at.parent]
        return at

    def reap(self, process: Sim) -> None:
        if process.zombie and self.processes.get(process.pid) is process:
            del self.processes[process.pid]
            self.processes[process.parent].reaped += process.user + process.reaped

    def seen(self) -> dict[int, Process]:
        return {
            each.pid: Process(
                ProcessId(each.pid, each.start), each.parent, "Z" if each.zombie else "S", each.uid, 1,
                each.user, 0, each.reaped, 0, 0 if each.zombie else 10, 20,
            )
            for each in self.processes.values()
        }  # fmt: skip

    def id(self, pid: int) -> ProcessId:
        return ProcessId(pid, self.processes[pid].start)


def watch(machine: Machine, families: Families) -> None:
    """One exact snapshot of everything."""
    seen = machine.seen()
    for family in families:
        if family.parent is None:
            gone = [key for key in families.members(family) if key.pid not in seen or seen[key.pid].id != key]
            families.refresh(family, seen, gone)


def start(machine: Machine) -> Families:
    families = Families(PILOT)
    families.register("job", machine.id(ROOT), machine.id(STARTER), machine.seen())
    return families


def pids(families: Families, name: str = "job") -> set[int]:
    return {identity.pid for identity in families.running(families.get(name))}


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "fork",
                "fork",
                "end",
                "reap",
                "burn",
                "tick",
                "watch",
                "watch",
                "stranger",
                "careless",
                "reaper",
            ]
        ),
        st.integers(0, 50),
        st.integers(0, 9),
    ),
    max_size=60,
)


def apply(machine: Machine, families: Families, step: tuple[str, int, int]) -> None:
    what, choice, amount = step
    inside = [each for each in machine.living() if each.owner]
    outside = [each for each in machine.living() if not each.owner]
    strangers = [each for each in outside if each.pid in machine.free]
    some = inside[choice % len(inside)] if inside else None
    match what:
        case "tick":
            machine.clock += amount
        case "watch":
            watch(machine, families)
        case "stranger":  # of another job of the same user, and of the pilot's own
            parents = [machine.processes[pid] for pid in (INIT, OTHER_STARTER, SPAWNER)] + strangers
            machine.fork(
                parents[choice % len(parents)],
                uid=ALICE if parents[choice % len(parents)].pid != SPAWNER else PILOT,
            )
        case "end" if choice % 3 == 0 and strangers:
            machine.end(strangers[choice % len(strangers)])
        case "reap":
            zombies = [each for each in machine.processes.values() if each.zombie]
            if zombies:
                machine.reap(zombies[choice % len(zombies)])
        case "fork" if some:
            machine.fork(some)
        case "end" if some:
            machine.end(some)
        case "burn" if some:
            machine.burn(some, amount)
        case "careless" if some:
            some.waits = False
        case "reaper" if some:
            some.reaper = True


@settings(max_examples=300)
@given(STEPS, st.booleans())
def test_members_are_the_descendants_whatever_happens(steps: list[tuple[str, int, int]], chain: bool) -> None:
    machine = Machine(chain=chain)
    families = start(machine)
    last = Cpu()
    for step in steps:
        apply(machine, families, step)
        if step[0] == "watch":
            truth = {each.pid for each in machine.living() if each.owner}
            assert pids(families) == truth
            cpu = families.get("job").account.totals.cpu
            assert last.user <= cpu.user <= machine.used
            last = cpu


@settings(max_examples=200)
@given(STEPS, st.booleans())
def test_usage_is_exact_when_every_death_is_seen(steps: list[tuple[str, int, int]], chain: bool) -> None:
    machine = Machine(chain=chain)
    families = start(machine)
    for step in steps:
        watch(machine, families)
        if step[0] not in ("careless", "reaper"):
            apply(machine, families, step)
    watch(machine, families)
    assert families.get("job").account.totals.cpu.user == machine.used


@settings(max_examples=200)
@given(STEPS, STEPS)
def test_a_sub_family_takes_the_descendants_of_its_root(
    before: list[tuple[str, int, int]], after: list[tuple[str, int, int]]
) -> None:
    """Against passes over all processes: a process is where it was, else where its parent is."""
    machine = Machine()
    families = start(machine)
    for step in before:
        apply(machine, families, step)
    watch(machine, families)
    roots = [each for each in machine.living() if each.owner and each.pid != ROOT]
    if not roots:
        return
    sub = roots[0]
    families.register("sub", machine.id(sub.pid), machine.id(STARTER), machine.seen())
    labels = {machine.id(each.pid): "job" for each in machine.processes.values() if each.owner}
    below = {sub.pid}
    while True:
        more = {each.pid for each in machine.processes.values() if each.parent in below} - below
        if not more:
            break
        below |= more
    labels.update((machine.id(pid), "sub") for pid in below)
    for step in after:
        apply(machine, families, step)
        if step[0] == "watch":
            relabel(machine, labels)
            truth = {key.pid for key, name in labels.items() if name == "sub" and is_there(machine, key)}
            assert pids(families, "sub") == truth
    assert families.get("sub").account.totals.cpu.user <= families.get("job").account.totals.cpu.user


def is_there(machine: Machine, key: ProcessId) -> bool:
    process = machine.processes.get(key.pid)
    return process is not None and process.start == key.start_ticks and not process.zombie


def relabel(machine: Machine, labels: dict[ProcessId, str]) -> None:
    changed = True
    while changed:
        changed = False
        for each in machine.processes.values():
            key, parent = machine.id(each.pid), machine.id(each.parent) if each.parent else None
            if key in labels or not each.owner:
                continue
            name = "job" if each.parent in (STARTER, ROOTPART) else labels.get(parent) if parent else None
            if name:
                labels[key] = name
                changed = True


# --- registration -------------------------------------------------------------------------------------------


def test_a_family_is_registered_once_and_the_same_request_is_the_same_family() -> None:
    machine = Machine()
    families = start(machine)
    job = families.get("job")
    seen = machine.seen()
    assert families.register("job", machine.id(ROOT), machine.id(STARTER), seen) is job
    for name, root in (("job", FRONT), ("other", ROOT)):
        with pytest.raises(FamilyRefused) as caught:
            families.register(name, machine.id(root), machine.id(STARTER), seen)
        assert caught.value.code == "already-registered"
    assert list(families) == [job]


def test_a_launch_that_is_tried_again_names_another_root() -> None:
    machine = Machine()
    families = start(machine)
    left = machine.fork(machine.processes[ROOT])
    assert left
    watch(machine, families)
    machine.end(machine.processes[ROOT])
    machine.reap(machine.processes[ROOT])
    again = machine.fork(machine.processes[FRONT], uid=ALICE)
    assert again
    families.register("job", machine.id(again.pid), machine.id(STARTER), machine.seen())
    watch(machine, families)
    assert pids(families) == {again.pid, left.pid}


@pytest.mark.parametrize(
    ("root", "starter"),
    [
        (ProcessId(ROOT, 99), ProcessId(STARTER, 100)),
        (ProcessId(ROOT, 100), ProcessId(STARTER, 99)),
        (ProcessId(99, 100), ProcessId(STARTER, 100)),
        (ProcessId(OTHER_STARTER, 100), ProcessId(STARTER, 100)),
    ],
)
def test_a_root_that_is_not_there_is_refused_and_nothing_changes(root: ProcessId, starter: ProcessId) -> None:
    families = Families(PILOT)
    with pytest.raises(FamilyRefused) as caught:
        families.register("job", root, starter, Machine().seen())
    assert caught.value.code == "no-such-process"
    assert not list(families)


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(FamilyRefused) as caught:
        Families(PILOT).get("nobody")
    assert caught.value.code == "unknown-family"


def test_the_switch_and_what_the_starter_had_before_are_not_in_the_family() -> None:
    machine = Machine()
    earlier = machine.fork(machine.processes[STARTER], uid=ALICE)
    assert earlier
    families = start(machine)
    machine.clock += 1
    below = machine.fork(earlier)
    own = machine.fork(machine.processes[STARTER])  # another call of the switch: the pilot's front
    orphan = machine.fork(machine.processes[ROOTPART], uid=ALICE)
    assert below
    assert own
    assert orphan
    watch(machine, families)
    assert pids(families) == {ROOT, orphan.pid}


def test_at_the_pilots_own_uid_new_children_of_the_starter_are_the_familys() -> None:
    machine = Machine(chain=False, uid=PILOT)
    families = start(machine)
    orphan = machine.fork(machine.processes[STARTER])
    assert orphan
    watch(machine, families)
    assert pids(families) == {ROOT, orphan.pid}


def test_two_families_of_one_user_are_kept_apart() -> None:
    machine = Machine()
    families = start(machine)
    other = machine.fork(machine.processes[OTHER_STARTER], uid=ALICE)
    assert other
    families.register("other", machine.id(other.pid), machine.id(OTHER_STARTER), machine.seen())
    child, orphan = machine.fork(other), machine.fork(machine.processes[OTHER_STARTER], uid=ALICE)
    assert child
    assert orphan
    watch(machine, families)
    assert pids(families) == {ROOT}
    assert pids(families, "other") == {other.pid, child.pid, orphan.pid}


def test_orphans_of_a_dead_starter_are_found_under_the_spawner() -> None:
    machine = Machine(chain=False)
    families = start(machine)
    unseen = machine.fork(machine.processes[ROOT])
    assert unseen
    machine.end(machine.processes[ROOT])
    machine.end(machine.processes[STARTER])
    assert unseen.parent == SPAWNER
    another_starter = machine.fork(machine.processes[SPAWNER])
    assert another_starter
    watch(machine, families)
    assert pids(families) == set()
    [job] = families.starter_died(ProcessId(STARTER, 100))
    watch(machine, families)
    assert pids(families) == {unseen.pid}
    assert not job.starter_alive


def test_at_the_pilots_own_uid_a_dead_starters_orphans_are_told_from_starters() -> None:
    machine = Machine(chain=False, uid=PILOT)
    another = 59
    families = Families(PILOT, alike=lambda one, other: one == SPAWNER and other in (OTHER_STARTER, another))
    families.register("job", machine.id(ROOT), machine.id(STARTER), machine.seen())
    orphan = machine.fork(machine.processes[ROOT])
    assert orphan
    machine.add(another, SPAWNER, PILOT, None)
    of_startd = machine.add(58, STARTD, PILOT, None)
    machine.end(machine.processes[ROOT])
    machine.end(machine.processes[STARTER])
    families.starter_died(ProcessId(STARTER, 100))
    watch(machine, families)
    assert of_startd.parent == STARTD
    assert pids(families) == {orphan.pid}


def test_unregistering_gives_members_to_the_parent_family() -> None:
    machine = Machine()
    families = start(machine)
    sub = machine.fork(machine.processes[ROOT])
    assert sub
    watch(machine, families)
    families.register("sub", machine.id(sub.pid), machine.id(STARTER), machine.seen())
    assert families.get("sub").parent is families.get("job")
    assert pids(families) == {ROOT, sub.pid}
    families.unregister(families.get("sub"))
    watch(machine, families)
    assert pids(families) == {ROOT, sub.pid}
    families.unregister(families.get("job"))
    assert families.discover(machine.seen()) == []


def test_a_family_registered_again_keeps_its_usage_and_orphans() -> None:
    machine = Machine(chain=False)
    families = start(machine)
    around = families.get("job").around
    orphan = machine.fork(machine.processes[ROOT])
    assert orphan
    machine.burn(machine.processes[ROOT], 50)
    machine.burn(orphan, 3)
    watch(machine, families)
    machine.end(machine.processes[ROOT])
    machine.reap(machine.processes[ROOT])
    totals = families.get("job").account.totals
    again = Families(PILOT)
    again.register(
        "job", ProcessId(ROOT, 100), machine.id(STARTER), machine.seen(), attrs.evolve(around, totals=totals)
    )
    assert pids(again) == {orphan.pid}
    assert again.get("job").account.totals.cpu == Cpu(53, 0)
    machine.burn(orphan, 4)
    watch(machine, again)
    assert again.get("job").account.totals.cpu == Cpu(57, 0)


def test_deep_families_are_no_problem() -> None:
    seen = {1: proc(1, 0), 2: proc(2, 1), 3: proc(3, 2)}
    seen.update((pid, proc(pid, pid - 1)) for pid in range(4, 20_000))
    families = Families(0)
    families.register("job", ProcessId(3, 0), ProcessId(2, 0), seen)
    assert len(families.running(families.get("job"))) == 19_997
    families.refresh(families.get("job"), {2: seen[2]}, families.members(families.get("job")))
    assert families.running(families.get("job")) == []


# --- accounts -----------------------------------------------------------------------------------------------


def proc(pid: int, parent: int, used: int = 0, reaped: int = 0, rss: int = 0) -> Process:
    return Process(ProcessId(pid, 0), parent, "S", 0, 1, used, 0, reaped, 0, rss, rss)


def test_the_dead_count_once_whether_waited_for_or_not() -> None:
    account = Account()
    account.update([proc(1, 0), proc(2, 1, 10), proc(3, 1, 5)])
    account.update([proc(1, 0, 0, 12), proc(3, 1, 5)], [ProcessId(2, 0)])  # waited for, with 2 unseen ticks
    assert account.totals.cpu == Cpu(17, 0)
    account.update([proc(1, 0, 0, 12)], [ProcessId(3, 0)])  # nobody waited
    assert account.totals.cpu == Cpu(17, 0)
    assert account.totals.dead == Cpu(5, 0)


def test_a_grandchild_may_be_credited_further_up() -> None:
    account = Account()
    account.update([proc(1, 0), proc(2, 1), proc(3, 2, 1), proc(4, 3, 7)])
    account.update([proc(1, 0, 0, 7), proc(2, 1, 0, 1)], [ProcessId(3, 0), ProcessId(4, 0)])
    assert account.totals.cpu == Cpu(8, 0)


def test_the_children_of_a_zombie_may_be_credited_further_up() -> None:
    account = Account()
    account.update([proc(2, 1), proc(3, 2, 4)], witness=proc(1, 0))
    account.update([proc(2, 1)._replace(state="Z")], [ProcessId(3, 0)], witness=proc(1, 0, 0, 4))
    assert account.totals.cpu == Cpu(4, 0)


def test_the_doubtful_wait_for_the_next_snapshot() -> None:
    account = Account()
    account.update([proc(1, 0), proc(2, 1, 10)])
    account.update([proc(1, 0)], [ProcessId(2, 0)], doubtful=[ProcessId(2, 0)])
    assert account.totals.cpu == Cpu(10, 0)
    account.update([proc(1, 0, 0, 10)])
    assert account.totals.cpu == Cpu(10, 0)


def test_a_witness_tells_of_the_unseen() -> None:
    account = Account()
    account.update([proc(2, 1, 1)], witness=proc(1, 0, 99, 40))
    account.update([], [ProcessId(2, 0)], witness=proc(1, 0, 99, 48))
    assert account.totals.cpu == Cpu(8, 0)


def test_the_peak_is_that_of_the_sum() -> None:
    account = Account()
    account.update([proc(1, 0, rss=10), proc(2, 1, rss=1)])
    account.update([proc(1, 0, rss=1), proc(2, 1, rss=9)])
    totals = account.totals
    assert (totals.rss_kb, totals.rss_peak_kb, totals.processes, totals.seen) == (10, 11, 2, 2)


def test_what_is_carried_over_is_never_undercut() -> None:
    carried = Totals(cpu=Cpu(100, 10), dead=Cpu(20, 10), rss_peak_kb=7, seen=3)
    account = Account(carried)
    account.update([proc(1, 0, 30)])
    assert account.totals.cpu == Cpu(100, 10)
    account = Account(carried)
    account.update([proc(1, 0, 90)])
    assert account.totals.cpu == Cpu(110, 10)
    assert account.totals.rss_peak_kb == 7


def test_surroundings_have_defaults() -> None:
    assert Surroundings(uid=1) == Surroundings(1, (), (), (), Totals())


# --- what a scan may show -----------------------------------------------------------------------------------


def test_a_parent_that_is_younger_than_its_child_is_somebody_else() -> None:
    machine = Machine()
    families = start(machine)
    machine.clock += 5
    child = machine.fork(machine.processes[ROOT])
    assert child
    stranger = Process(ProcessId(70, 102), child.pid, "S", ALICE, 1, 0, 0, 0, 0, 0, 0)
    families.discover(machine.seen() | {70: stranger})
    assert pids(families) == {ROOT, child.pid}


def test_an_orphan_of_an_earlier_call_is_not_the_familys() -> None:
    machine = Machine()
    earlier = machine.fork(machine.processes[STARTER])
    assert earlier
    leftover = machine.fork(earlier, uid=ALICE)
    assert leftover
    machine.clock += 5
    machine.processes[ROOT].start = machine.clock
    families = start(machine)
    machine.end(earlier)
    assert leftover.parent == STARTER
    watch(machine, families)
    assert pids(families) == {ROOT}


def test_what_the_starter_waits_for_after_the_root_is_not_the_familys() -> None:
    machine = Machine(chain=False)
    families = start(machine)
    machine.end(machine.processes[ROOT])
    machine.reap(machine.processes[ROOT])
    watch(machine, families)
    machine.processes[STARTER].reaped += 77  # a call of the switch for the output
    watch(machine, families)
    assert families.get("job").account.totals.cpu == Cpu(0, 0)


def test_families_may_be_nested_deeper_than_calls() -> None:
    """A chain of sub-families, each registered in the one before, is no reason for procd to end."""
    starter = ProcessId(STARTER, 0)
    top = inner = Family("top", ProcessId(9, 0), starter, Surroundings(uid=ALICE), None, Account())
    for number in range(10, 3000):
        inner = Family(str(number), ProcessId(number, 0), starter, Surroundings(uid=ALICE), inner, Account())
    assert inner.top is top
