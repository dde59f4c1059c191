"""What procd is asked and what it answers: one request, one reply, over `pilot.rpc`.

A refusal is `pilot.rpc.Error` with one of these codes: "unknown-family", "already-registered",
"no-such-process" (the root or the starter is not there, or is another process by now), "no-route" (nobody
would let us signal it), "no-socket" (the descriptor is no socket), "hidden" (this host shows us nothing
of the job's processes, and there is neither a cgroup, nor a control socket, nor a list of children to prove their end),
"going-away" (procd is about to end).
"""

import math
from typing import Any, Literal

import attrs
from attrs.validators import and_, ge, le, matches_re, max_len

from pilot.rpc import Protocol

# A family's name is a key and ends up in log lines.
_NAME = and_(max_len(200), matches_re(r"[!-~]+"))
_PID = and_(ge(1), le(1 << 22))  # the kernel's PID_MAX_LIMIT on 64-bit machines
_TICKS = and_(ge(0), le(1 << 62))
_SIGNAL = and_(ge(1), le(64))
_BOUND = and_(ge(1), le(1 << 50))
# A list of what a starter had as children when it registered: a handful.
_FEW: Any = max_len(1024)
# Longer than any step of a job's life; what is asked for longer is asked for again.
MAX_DEADLINE_S = 86_400.0
# A list in an answer is for people; the rest is only counted.
MAX_LISTED = 1000


def _finite(_instance: object, attribute: "attrs.Attribute[Any]", value: float) -> None:
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{attribute.name} is no span of time")


@attrs.frozen
class Identity:
    """A process: number and start time in ticks since boot."""

    pid: int = attrs.field(validator=_PID)
    start_ticks: int = attrs.field(validator=_TICKS)


@attrs.frozen
class Usage:
    """What a family and its sub-families use and have used, fresh when it was answered.

    CPU of the dead is a lower bound: what was last seen of them, or what their parents were credited with
    when that is more. Memory peaks are peaks of the family's sum, over the snapshots.
    """

    user_s: float = attrs.field(default=0.0, validator=_finite)
    system_s: float = attrs.field(default=0.0, validator=_finite)
    rss_kb: int = 0
    pss_kb: int | None = None
    """None where the kernel does not show it, as for another account's processes."""
    own_kb: int | None = None
    """Resident memory without what is mapped in common, which counts about once; only when it was asked for."""
    rss_peak_kb: int = 0
    image_kb: int = 0
    """Peak of the sum of virtual sizes."""
    processes: int = 0
    """Without zombies."""
    processes_seen: int = 0
    """All that ever were seen in the family."""
    dead_user_s: float = attrs.field(default=0.0, validator=_finite)
    dead_system_s: float = attrs.field(default=0.0, validator=_finite)
    """The part of the above that no living process accounts for; what a new procd has to be told."""
    read_kb: int | None = None
    written_kb: int | None = None
    """To and from storage, the largest sum that was seen; None where the kernel does not show it."""
    memory_peak_kb: int | None = None
    """The kernel's own peak for the family's cgroup, page cache included; None without such a group."""
    memory_limit_kb: int | None = None
    """What the kernel holds the family's cgroup to; None where it does not."""
    oom_kills: int | None = None
    """Processes of that cgroup that the kernel killed for want of memory; None without such a group."""
    strays: int = 0
    """Processes of the family's account that are no descendants (at, cron, ssh), at the last full scan."""


@attrs.frozen
class Memory:
    """What a procd knows of a family and can't find out later. The client keeps it and gives it to the next
    procd.

    chain: the processes between starter and root (the switch). exempt: children of the starter that were
    there before the family. ancestors: the pilot's processes above the starter, nearest first.
    """

    uid: int
    chain: tuple[Identity, ...] = attrs.field(default=(), validator=_FEW)
    exempt: tuple[Identity, ...] = attrs.field(default=(), validator=_FEW)
    ancestors: tuple[Identity, ...] = attrs.field(default=(), validator=_FEW)
    usage: Usage = attrs.field(factory=Usage)
    hidden: bool = False
    """The host does not show the family's processes."""


@attrs.frozen
class Register:
    """Track the tree under `root` from now on. Descriptor: the control socket of a lingering switch, or none.

    `memory` is for a family that an earlier procd had: then the root may have ended already.
    """

    family: str = attrs.field(validator=_NAME)
    root: Identity
    starter: Identity
    credential: str | None = attrs.field(validator=attrs.validators.optional(max_len(4096)))
    audit_id: str = attrs.field(validator=max_len(1024))
    memory: Memory | None = None
    uid: int | None = attrs.field(default=None, validator=attrs.validators.optional(and_(ge(0), le(1 << 32))))
    """The root's account, for hosts that do not show us other accounts' processes."""
    memory_limit_kb: int | None = attrs.field(default=None, validator=attrs.validators.optional(_BOUND))
    tasks_limit: int | None = attrs.field(default=None, validator=attrs.validators.optional(_BOUND))
    """What a cgroup of the family's own is held to, where there is one."""


@attrs.frozen
class Registered:
    """The family is tracked; its root may run now."""

    memory: Memory


@attrs.frozen
class GetUsage:
    """Asks for a `Usage`, from a snapshot taken now. exactly: with `own_kb`, which costs a look at each process."""

    family: str = attrs.field(validator=_NAME)
    exactly: bool = False


@attrs.frozen
class Signal:
    """One signal to the family's root, or to all of it (once; not repeated until empty)."""

    family: str = attrs.field(validator=_NAME)
    number: int = attrs.field(validator=_SIGNAL)
    to: Literal["root", "all"] = "root"


@attrs.frozen
class Suspend:
    """SIGSTOP to every process of the family until none runs."""

    family: str = attrs.field(validator=_NAME)


@attrs.frozen
class Resume:
    """SIGCONT to every process of the family."""

    family: str = attrs.field(validator=_NAME)


@attrs.frozen
class Stop:
    """SIGKILL until the family is empty or `deadline_s` seconds are over. Urgent: among the first calls of
    the switch; others wait in a window that is longer.

    soft: before that, this signal to the root and at most `grace_s` seconds for it to end (0: none); with the kill it
    is one call of the switch.

    forget: a family that is empty then is unregistered as well.
    """

    family: str = attrs.field(validator=_NAME)
    urgent: bool = False
    deadline_s: float = attrs.field(default=60.0, validator=and_(_finite, le(MAX_DEADLINE_S)))
    soft: int = attrs.field(default=0, validator=and_(ge(0), le(64)))
    grace_s: float = attrs.field(default=0.0, validator=and_(_finite, le(MAX_DEADLINE_S)))
    forget: bool = False


@attrs.frozen
class Stopped:
    """The end of a `Stop`.

    empty: a full scan after the last kill found nobody. survivors: at most MAX_LISTED. route: "none" (it was
    empty), "control", "cgroup", "own", "switch", or several joined by "+". switch_calls: authorisations that it cost
    the site.
    """

    empty: bool
    survivors: tuple[int, ...] = ()
    route: str = "none"
    switch_calls: int = 0
    text: str = ""
    """Why there are survivors, as far as known."""
    strays: tuple[int, ...] = ()
    """Processes of the family's account that are no descendants, left alone. At most MAX_LISTED."""
    usage: Usage | None = None
    """The last one, of a family that was unregistered."""


@attrs.frozen
class Unregister:
    """Forget the family; a sub-family's members go to its parent. Answer: its last `Usage`."""

    family: str = attrs.field(validator=_NAME)


@attrs.frozen
class List:
    """Asks for `Families`."""


@attrs.frozen
class FamilyState:
    """One family as procd sees it. `credential` is a path."""

    family: str
    parent: str | None
    root: Identity
    starter: Identity
    starter_alive: bool
    uid: int
    credential: str | None
    audit_id: str
    control: bool
    members: tuple[Identity, ...]
    """At most MAX_LISTED."""
    usage: Usage


@attrs.frozen
class Families:
    """All families, parents before their children."""

    families: tuple[FamilyState, ...]


@attrs.frozen
class Describe:
    """Asks for a `Description`."""


@attrs.frozen
class Degradation:
    """Something that the host does not give: a word for machines, a sentence for people."""

    word: str = attrs.field(validator=and_(max_len(64), matches_re(r"[a-z0-9-]+")))
    text: str = attrs.field(validator=max_len(1024))


@attrs.frozen
class Description:
    """How this procd works on this host, found out at its start.

    trackers: "descent", "cgroup", "events", "environment", "account". routes: "control", "cgroup", "own", "switch",
    as far as they can ever be taken here.
    """

    trackers: tuple[str, ...]
    routes: tuple[str, ...]
    degraded: tuple[Degradation, ...]
    cgroup: str | None = None


@attrs.frozen
class Done:
    """Yes, and nothing to add."""


PROCD = Protocol(
    Register,
    Registered,
    GetUsage,
    Usage,
    Signal,
    Suspend,
    Resume,
    Stop,
    Stopped,
    Unregister,
    List,
    Families,
    Describe,
    Description,
    Done,
)
