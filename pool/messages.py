"""What users and the pool tell one another over the Unix socket: typed messages, nothing else.

A conversation is one connection. A submission is: Begin, GiveProxy?, PutFiles*, PutInputs*, PutJobs*, Commit;
breaking the connection before Commit undoes all of it. Names of files are text with surrogate escapes for odd bytes.
"""

from __future__ import annotations

from typing import Literal

from attrs import field, frozen
from attrs.validators import and_, ge, le, optional

from pilot.rpc import Protocol

# Descriptors in one message: well under the kernel's 253, and one batch of input files.
MAX_FDS = 64
# One page of a list; 1 MiB is the channel's limit and a row has some 300 bytes.
PAGE_ROWS = 200
# What a database takes as a number, and more than there will ever be of anything.
_COUNT = and_(ge(-1), le(2**53))

_MAYBE = optional(_COUNT)


@frozen
class Begin:
    """A submission starts. `proxy`: the user will delegate a proxy."""

    proxy: bool


@frozen
class Begun:
    cluster: int
    request: bytes  # certificate request, DER; empty when no proxy was announced
    max_files: int
    max_bytes: int


@frozen
class GiveProxy:
    """The certificates that answer the request (DER, back to back) and the file's basename."""

    certificates: bytes
    name: str


@frozen
class Renew:
    """A fresh proxy for the jobs of a cluster; GiveProxy follows."""

    cluster: int = field(validator=_COUNT)


@frozen
class Renewing:
    request: bytes  # certificate request, DER


@frozen
class Renewed:
    """Stored, and on its way to jobs that run."""

    expires_at: float
    running: int


@frozen
class PutFiles:
    """Open files, one descriptor each, in the order of `sizes` (as the client saw them); keys count up from `first`."""

    first: int
    sizes: tuple[int, ...]


@frozen
class InputEntry:
    name: str
    mode: int = field(validator=_COUNT)
    key: int | None = field(validator=_MAYBE)  # None: a directory


@frozen
class PutInputs:
    """More entries of one input set; sets count up from 0."""

    input_set: int
    entries: tuple[InputEntry, ...]


@frozen
class NewJob:
    ad: str  # old ClassAd text
    input_set: int


@frozen
class PutJobs:
    jobs: tuple[NewJob, ...]


@frozen
class Commit:
    pass


@frozen
class Submitted:
    cluster: int
    jobs: int
    owner: str


@frozen
class Done:
    """Yes, and nothing more to say."""


@frozen
class ListJobs:
    """Jobs behind (cluster, proc). `every`: other users' too; `final`: finished ones too."""

    cluster: int = field(validator=_COUNT)
    proc: int = field(validator=_COUNT)
    every: bool
    final: bool


@frozen
class JobRow:
    """One job in a list. Details (`command`, `reason`) are empty when the asker may not see them."""

    cluster: int
    proc: int
    owner: str
    state: str
    submitted_at: float
    runs: int
    command: str
    reason: str
    hold_code: int
    hold_subcode: int
    exit_status: int | None  # a wait status
    slot: str
    started_at: float | None
    finished_at: float | None
    removing: bool


@frozen
class Jobs:
    rows: tuple[JobRow, ...]
    more: bool


@frozen
class Target:
    """A cluster (`proc` None) or one job."""

    cluster: int = field(validator=_COUNT)
    proc: int | None = field(validator=_MAYBE)


@frozen
class RunsOf:
    target: Target
    first: int = field(validator=_COUNT)


@frozen
class RunRow:
    cluster: int
    proc: int
    number: int
    startd: str
    slot: str
    claim: str
    pid: int | None
    started_at: float
    executing_at: float | None
    ended_at: float | None
    outcome: str | None
    reason: str
    exit_status: int | None


@frozen
class Runs:
    rows: tuple[RunRow, ...]
    more: bool


@frozen
class Remove:
    target: Target
    hard: bool


@frozen
class Removed:
    jobs: int  # taken out now
    ending: int  # running ones that are being stopped


Verb = Literal["hold", "release", "vacate", "suspend", "continue"]


@frozen
class Act:
    """What a user wants of jobs that stay in the queue."""

    target: Target
    verb: Verb


@frozen
class Acted:
    """`jobs`: so many do it, or have been asked to; `left`: so many are in no state for it."""

    jobs: int
    left: int


@frozen
class Wait:
    """Answered when no job of the target can change by itself any more, or after `seconds`."""

    target: Target
    seconds: float


@frozen
class Fetch:
    """What came back of one job, from entry `first` on."""

    cluster: int = field(validator=_COUNT)
    proc: int = field(validator=_COUNT)
    first: int = field(validator=_COUNT)


@frozen
class OutputEntry:
    """`size` None: a directory; a file's descriptor comes with the message, in the same order."""

    name: str
    mode: int
    size: int | None


@frozen
class Output:
    """A page of what came back; `out`, `err`: the user's names of standard output and error; `iwd`: where submitted."""

    entries: tuple[OutputEntry, ...]
    more: bool
    out: str
    err: str
    remaps: str
    iwd: str


@frozen
class ListSlots:
    first: int = field(validator=_COUNT)


@frozen
class SlotRow:
    name: str
    kind: str
    state: str
    activity: str
    cpus: int
    memory_mb: int
    disk_kb: int
    user: str
    job: str
    since: float
    heard_at: float
    why: str  # what the execution point says about a slot that takes no jobs


@frozen
class Slots:
    rows: tuple[SlotRow, ...]
    more: bool


POOL = Protocol(
    Begin,
    Begun,
    GiveProxy,
    Renew,
    Renewing,
    Renewed,
    PutFiles,
    PutInputs,
    PutJobs,
    Commit,
    Submitted,
    Done,
    ListJobs,
    Jobs,
    RunsOf,
    Runs,
    Remove,
    Removed,
    Act,
    Acted,
    Wait,
    Fetch,
    Output,
    ListSlots,
    Slots,
)
