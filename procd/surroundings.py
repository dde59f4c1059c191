"""What is around the root of a family at its registration, and can't be found out later. Pure.

It is shown processes; who belongs to a family afterwards is `procd.families`' business.
"""

from collections.abc import Iterable, Iterator, Mapping

import attrs

from procd.account import Totals
from procd.process import HIDDEN, Process, ProcessId

# More links than any switch has (glexec, sudo, its monitor, the root part), and than a pilot nests.
MAX_CHAIN = 64

Seen = Mapping[int, Process]


class FamilyRefused(Exception):
    """A request that can't be granted; nothing has changed. `code` as in procd.messages."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


@attrs.frozen
class Surroundings:
    """What is around a root at registration and can't be found out later; `survey` finds it.

    chain: between starter and root, nearest to the root first. exempt: the children that they had
    before. ancestors: processes of the pilot's account above the starter, nearest first. hidden: the host does not
    show us the family's processes.
    """

    uid: int
    chain: tuple[ProcessId, ...] = ()
    exempt: tuple[ProcessId, ...] = ()
    ancestors: tuple[ProcessId, ...] = ()
    totals: Totals = attrs.field(factory=Totals)
    hidden: bool = False


def is_there(identity: ProcessId, seen: Seen) -> bool:
    process = seen.get(identity.pid)
    return process is not None and process.id == identity


def survey(root: ProcessId, starter: ProcessId, seen: Seen, pilot_uid: int) -> Surroundings:
    """What is around a root that has not run yet.

    Raises:
        FamilyRefused: "no-such-process" when root or starter are not there, or the one is not below the
        other.
    """
    for identity, what in ((root, "root"), (starter, "starter")):
        if not is_there(identity, seen) or not seen[identity.pid].running:
            raise FamilyRefused("no-such-process", f"the {what}, process {identity.pid}, is not there")
    chain = []
    for process in ancestors(seen[root.pid], seen):
        if process.id == starter:
            break
        chain.append(process.id)
    else:
        raise FamilyRefused("no-such-process", f"process {root.pid} is no descendant of {starter.pid}")
    above = ancestors(seen[starter.pid], seen)
    reapers = {starter.pid, *(identity.pid for identity in chain)}
    exempt = (each.id for each in seen.values() if each.parent in reapers and each.id != root)
    return Surroundings(
        uid=seen[root.pid].uid,
        chain=tuple(chain),
        exempt=tuple(exempt),
        ancestors=tuple(_while_uid(above, pilot_uid)),
        hidden=seen[root.pid].state == HIDDEN,
    )


def ancestors(process: Process, seen: Seen) -> Iterator[Process]:
    """Its parent, that one's parent, ..., as far as they are shown; pid 1 adopts strangers and is left
    out."""
    for _ in range(MAX_CHAIN):
        parent = seen.get(process.parent)
        if parent is None or parent.id.pid == 1 or parent.id.start_ticks > process.id.start_ticks:
            return
        yield parent
        process = parent


def _while_uid(processes: Iterable[Process], uid: int) -> Iterator[ProcessId]:
    for process in processes:
        if process.uid != uid:
            return
        yield process.id
