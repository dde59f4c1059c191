"""What the pool knows about jobs: clusters, jobs, runs. Plain values; no rule and no I/O lives here."""

from __future__ import annotations

from enum import IntEnum, StrEnum

from attrs import frozen


class JobState(IntEnum):
    """HTCondor's own JobStatus numbers, so that ads and people see what they know."""

    IDLE = 1
    RUNNING = 2
    REMOVED = 3
    COMPLETED = 4
    HELD = 5

    @property
    def word(self) -> str:
        return self.name.lower()


# States from which a job never runs again.
FINAL = frozenset({JobState.REMOVED, JobState.COMPLETED})


class Outcome(StrEnum):
    """How one run ended, as the history keeps it."""

    COMPLETED = "completed"
    HELD = "held"
    REQUEUED = "requeued"
    REMOVED = "removed"
    LOST = "lost"


@frozen(order=True)
class JobId:
    cluster: int
    proc: int

    def __str__(self) -> str:
        return f"{self.cluster}.{self.proc}"

    @classmethod
    def parse(cls, text: str) -> JobId:
        """'12.3' -> JobId; ValueError on anything else."""
        cluster, dot, proc = text.partition(".")
        if not (dot and cluster.isascii() and cluster.isdecimal() and proc.isascii() and proc.isdecimal()):
            raise ValueError(f"not a job id: {text!r}")
        if len(text) > 24:
            raise ValueError("a job id of more than 24 characters")
        return cls(int(cluster), int(proc))


@frozen
class Entry:
    """One thing that travels into a sandbox: a file of the spool (`key`), or a directory (`key` is None)."""

    name: str
    mode: int
    size: int = 0
    key: int | None = None


@frozen
class Cluster:
    """What all jobs of one submission share."""

    number: int
    uid: int
    owner: str
    submitted_at: float
    identity: str | None = None  # the proxy's identity, slash form
    proxy_name: str | None = None  # basename in the sandbox
    proxy_expires_at: float | None = None


@frozen
class Job:
    """One job as the queue holds it. `ad` is old ClassAd text as the user gave it, already checked."""

    id: JobId
    cluster: Cluster
    ad: str
    input_set: int
    state: JobState = JobState.IDLE
    reason: str = ""
    hold_code: int = 0
    hold_subcode: int = 0
    removing: bool = False
    runs: int = 0
    finished_at: float | None = None
    exit_status: int | None = None  # wait status of the completed run

    @property
    def owner(self) -> str:
        return self.cluster.owner


@frozen
class Run:
    """One run of a job: what the history keeps of it."""

    number: int  # of this pool, ever
    job: JobId
    startd: str
    slot: str
    claim: str  # public form
    started_at: float
    executing_at: float | None = None
    ended_at: float | None = None
    outcome: str | None = None
    reason: str = ""
    exit_status: int | None = None
    pid: int | None = None


@frozen
class OutputFile:
    """One thing that came back: `key` names the file in the run's own spool directory, None is a directory."""

    name: str
    mode: int
    size: int
    key: int | None


@frozen
class Checkpoint:
    """What a job left to be started again from: files of the spool directory ``directory``, which replace inputs of
    the same names. ``number`` counts from 0."""

    number: int
    directory: str
    files: tuple[OutputFile, ...]
