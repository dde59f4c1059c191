"""What startd, spawner and starter tell one another, over local sockets at the pilot's uid.

Three conversations use it: startd and spawner (``SPAWNER``), startd and one starter (``STARTER``).
Descriptors travel beside a message by SCM_RIGHTS; each message says which ones it wants.
"""

from __future__ import annotations

from typing import Any, Literal

import attrs

from pilot.rpc import Protocol

# --- startd <-> spawner ------------------------------------------------------------------------------------------


@attrs.frozen
class StartStarter:
    """startd -> spawner: fork a starter. Descriptors: the activation's connection, the starter's end of its channel.

    ``ticket`` is the startd's own number for the request; the answer repeats it. ``activation`` holds secrets (claim
    id, cipher state): it is never logged.
    """

    ticket: int
    activation: Activation = attrs.field(repr=False)


@attrs.frozen
class CleanUp:
    """startd -> spawner: fork a process that removes what a dead starter left; ``private_dir`` is that starter's."""

    ticket: int
    private_dir: str


@attrs.frozen
class SpawnerReady:
    """spawner -> startd: everything is loaded; starters can be forked."""


@attrs.frozen
class StarterStarted:
    """spawner -> startd: the starter of ``ticket`` runs as ``pid``, identified by (pid, start_ticks)."""

    ticket: int
    pid: int
    start_ticks: int


@attrs.frozen
class StarterFailed:
    """spawner -> startd: no starter could be forked for ``ticket``."""

    ticket: int
    text: str


@attrs.frozen
class StarterEnded:
    """spawner -> startd: the starter ``pid`` was reaped with this wait status."""

    pid: int
    wait_status: int


# --- startd <-> starter ------------------------------------------------------------------------------------------


@attrs.frozen
class Activation:
    """Everything that a starter needs to know about its claim.

    Ads are text in new ClassAd syntax. ``stream_state`` is what ``cedar.stream.CedarStream.export`` gave for the
    activation's connection, which becomes the syscall socket. Sizes as carved for the slot; ``cores`` are those that
    the job is bound to, none where it is not. ``proxy_keys``: RSA keys that were made ahead (PKCS8, DER), where the
    settings want such.
    ``plugins``: scheme and program of the node's file transfer plugins.
    """

    slot: str
    claim_id: str = attrs.field(repr=False)
    slot_ad: str
    job_ad: str
    stream_state: dict[str, Any] = attrs.field(repr=False)
    startd_address: str
    cpus: int
    memory_mb: int
    disk_kb: int
    vacate_max_s: float
    procd_socket: str
    cores: tuple[int, ...] = ()
    plugins: tuple[tuple[str, str], ...] = ()
    proxy_keys: tuple[bytes, ...] = attrs.field(default=(), repr=False)


How = Literal["graceful", "fast", "final-transfer"]


@attrs.frozen
class Deactivate:
    """startd -> starter: end the job.

    graceful: soft signal and grace; fast: kill, no output; final-transfer: soft, then output.
    """

    how: How
    reason: str
    vacate_code: int = 0


@attrs.frozen
class HoldJob:
    """startd -> starter: the node's policy (WANT_HOLD) puts the job on hold, with code 21 and this subcode.

    ``soft``: the job has its signal and its grace.
    """

    soft: bool
    subcode: int
    reason: str


@attrs.frozen
class SuspendJob:
    """startd -> starter: stop every process of the job until ContinueJob."""


@attrs.frozen
class ContinueJob:
    """startd -> starter: the end of a suspension."""


@attrs.frozen
class PassedCommand:
    """startd -> starter: a command of the job's owner, or a shadow that takes the job up again. Descriptor: its
    connection, ready for the answer.

    ``identity`` is the session's; ``request`` is the ad that came with it (new ClassAd text; a shadow's holds a
    secret); ``stream_state`` as in Activation.
    """

    command: int
    identity: str
    request: str = attrs.field(repr=False)
    stream_state: dict[str, Any] = attrs.field(repr=False)


@attrs.frozen
class RenewalAnnounced:
    """startd -> starter: the shadow wanted to send the proxy as a copy (487), which was refused before it was sent."""


@attrs.frozen
class LastWordHeard:
    """startd -> starter: the shadow has had this starter's last word, and waits for its end (413)."""


@attrs.frozen
class Measured:
    """startd -> starter: what programs beside the jobs measured of custom resources for this job, as attributes of its
    ad (STARTD_CRON_<NAME>_METRICS)."""

    values: dict[str, float]


@attrs.frozen
class AccountKnown:
    """starter -> startd: the job's account, for the slot's ad and the janitor; once, and if it becomes another."""

    uid: int


@attrs.frozen
class JobUpdate:
    """starter -> startd: attributes for the slot ad (new ClassAd text), as sent to the shadow."""

    ad: str


@attrs.frozen
class SlotBroken:
    """starter -> startd: something of the job is left that could not be removed (processes, a sandbox)."""

    text: str


@attrs.frozen
class LeftBehind:
    """starter -> startd: the sandbox could not be removed; its note stays for the janitor."""

    text: str


@attrs.frozen
class LeftElsewhere:
    """starter -> startd: files or IPC of the job's account are left outside its sandbox, and may be another job's."""

    text: str


@attrs.frozen
class AskGoingOn:
    """starter -> startd: checkpoint ``number`` has gone to the submit side; would the claim take the job again?"""

    number: int


@attrs.frozen
class GoingOn:
    """startd -> starter: the answer for checkpoint ``number``. ``here``: the job goes on in its sandbox; if not, it is
    to go back to the queue."""

    number: int
    here: bool


@attrs.frozen
class Ended:
    """starter -> startd: last message before the starter exits; ``verdict`` as in ``starter.life.Verdict``.

    ``exit_status``: the job's wait status, if it ended by itself. CPU seconds and peak memory as far as they are known.
    ``nothing_left``: of the activation, but this process and its private directory: its slot can be used again.
    """

    verdict: str
    text: str
    exit_status: int | None = None
    cpu_s: float = 0.0
    rss_peak_kb: int = 0
    code: int = 0
    """The hold code of a job that was held or given back."""
    duration_s: float | None = None
    """How long the job itself ran, its last run if there were several; None if it never did."""
    nothing_left: bool = False


SPAWNER = Protocol(StartStarter, CleanUp, SpawnerReady, StarterStarted, StarterFailed, StarterEnded)
STARTER = Protocol(
    Deactivate, HoldJob, SuspendJob, ContinueJob, PassedCommand, RenewalAnnounced, LastWordHeard, Measured,
    AccountKnown, JobUpdate, SlotBroken, LeftBehind, LeftElsewhere, AskGoingOn, GoingOn, Ended,
)  # fmt: skip
