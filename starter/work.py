"""What the steps of one activation make and hand to one another: places, descriptors, identities. No rules, no I/O."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import attrs
import trio
from classad2 import ClassAd

from cedar.classads import get_str
from pilot.credentials import Credential
from pilot.inquiry import Patience
from pilot.ledger import Ledger
from pilot.rpc import ChannelClosed, RpcFault, RpcRefused
from pilot.settings import Settings
from pilot.switch import Switch
from procd.client import ProcdClient
from procd.messages import Usage
from starter.ahead import Ahead
from starter.chirpserver import ChirpServer
from starter.credential import Keys, Trust
from starter.description import Description
from starter.launch import Launched
from starter.limits import Bounds, Named, bounds_of
from starter.messages import Activation
from starter.sandbox import Account, Catalogue, Context, Elsewhere, Place
from starter.shadow import Shadow
from starter.slotlog import SlotLog
from starter.streams import Stream
from starter.tokens import Tokens
from starter.transfer import Route
from starter.verdict import Requeue
from starter.waited import at_least

# procd stayed away, or said no.
PROCD_FAULTS = (RpcRefused, RpcFault, ChannelClosed)


@attrs.define(eq=False)
class Guests:
    """Sessions of the job's owner: families at procd. While there is one the activation goes on (T43)."""

    families: set[str] = attrs.field(factory=set)
    _left: trio.Event = attrs.field(factory=trio.Event)

    def leave(self, family: str) -> None:
        """Nothing of this one is left."""
        self.families.discard(family)
        self._left.set()
        self._left = trio.Event()

    async def wait_none(self) -> None:
        """Until all have left."""
        while self.families:
            await self._left.wait()


def together(before: Usage, now: Usage) -> Usage:
    """Times add up, peaks do not."""
    return attrs.evolve(
        now,
        user_s=before.user_s + now.user_s,
        system_s=before.system_s + now.system_s,
        rss_peak_kb=max(before.rss_peak_kb, now.rss_peak_kb),
        image_kb=max(before.image_kb, now.image_kb),
        processes_seen=before.processes_seen + now.processes_seen,
        read_kb=_sum(before.read_kb, now.read_kb),
        written_kb=_sum(before.written_kb, now.written_kb),
        memory_peak_kb=max(filter(None, (before.memory_peak_kb, now.memory_peak_kb)), default=None),
    )


def _sum(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one + other


@attrs.define
class Work:
    """Given at the start, filled by the steps in their order."""

    settings: Settings
    activation: Activation = attrs.field(repr=False)
    switch: Switch
    procd: ProcdClient
    shadow: Shadow
    private_dir: Path
    host: str
    place: Place
    # told by the shadow
    job_ad: ClassAd | None = attrs.field(default=None, repr=False)
    _description: Description | None = None
    _route: Route | None = None
    # what lies beside the user's files, by name; and that this and the route are there
    ads: Mapping[str, bytes] = attrs.field(factory=dict, repr=False)
    prepared: trio.Event = attrs.field(factory=trio.Event)
    # made on the way
    credential: Credential | None = None
    account: Account | None = None
    catalogue: Catalogue | None = None
    proxy_in_sandbox: bool = False
    # those that lie in the sandbox, for a job that needs some
    tokens: Tokens | None = attrs.field(default=None, repr=False)
    # serves the job from when its sandbox is filled; None for one that may not
    chirp: ChirpServer | None = None
    # of the leg that runs; they end with its last writer
    streams: list[Stream] = attrs.field(factory=list)
    # whether the submit side sends proxies as copies, keys and all
    proxy_copied: bool = False
    keys: Keys = attrs.field(factory=Keys, repr=False)
    # files of the sandbox that are open here, by name
    kept: dict[str, int] = attrs.field(factory=dict)
    # the shadow has had our last word, and waits for our end
    last_word_heard: trio.Event = attrs.field(factory=trio.Event)
    # what the startd's programs measured of custom resources for this job, by attribute
    measured: Mapping[str, float] = attrs.field(factory=dict)
    registered: bool = False
    # a suspension has begun; every process is stopped, and the shadow may be told so (wire reference T16)
    suspended: bool = False
    stands_still: bool = False
    launched: Launched | None = None
    started_at_s: float | None = None
    duration_s: float | None = None
    usage: Usage | None = None
    # which shadow (``Shadow.takes``) has had the last update already
    usage_told: int | None = None
    # what was found outside the sandbox at the end; wall clock of the beginning
    elsewhere: Elsewhere = attrs.field(factory=Elsewhere)
    since_ns: int = attrs.field(factory=time.time_ns)
    # KB and entries of the sandbox, when it was last measured
    disk: tuple[int, int] | None = None
    # of a job that was started again from its checkpoint: how often, and what it had used until then
    legs: int = 0
    spent: Usage | None = None
    ended: trio.Event = attrs.field(factory=trio.Event)
    guests: Guests = attrs.field(factory=Guests)
    # calls opened ahead, where the job has somebody to keep them
    ahead: Ahead | None = None
    # why the submit side has the job not started, if so (guidance)
    called_off: Requeue | None = None
    # the job's story so far, and its log, for those who have to explain something
    story: Callable[[], str] = attrs.field(default=lambda: "")
    note: Callable[[str], None] = attrs.field(default=lambda words: None)

    @property
    def description(self) -> Description:
        """Known from the first step on."""
        assert self._description is not None
        return self._description

    @property
    def route(self) -> Route:
        """Known when the stage-in is prepared."""
        assert self._route is not None
        return self._route

    def know(self, job_ad: ClassAd, description: Description) -> None:
        """Set by the first step, once."""
        self.job_ad, self._description = job_ad, description

    def know_route(self, route: Route) -> None:
        """Unless a shadow that has taken the job up meanwhile has told another."""
        self._route = self._route or route

    def reroute(self, route: Route) -> None:
        """Another shadow has taken the job up."""
        self._route = route

    @property
    def lease_s(self) -> float:
        """How long the job outlives its shadow; not at all before it is known."""
        return self._description.lease_s if self._description else 0.0

    @property
    def shadow_version(self) -> str:
        """What the shadow says that it is; empty when it does not."""
        return "" if self.job_ad is None else get_str(self.job_ad, "ShadowVersion", "")

    @property
    def credential_path(self) -> Path | None:
        """The job's proxy at the pilot's side, 0600; None for a job without one."""
        return self.private_dir / "proxy.pem" if self.credential else None

    @property
    def slot_log(self) -> SlotLog:
        """What scripts read of this slot's jobs."""
        return SlotLog.of(self.settings, self.host)

    @property
    def family(self) -> str:
        """The family's name at procd: one starter, one family."""
        return self.private_dir.name

    @property
    def bounds(self) -> Bounds:
        """What the job is held to."""
        settings, slot, job = self.settings, self.activation, self.description
        return bounds_of(
            memory_mb=slot.memory_mb,
            memory_percent=settings.sailplane_memory_limit_percent,
            disk_kb=slot.disk_kb,
            disk_percent=settings.sailplane_disk_limit_percent,
            processes=settings.sailplane_max_processes,
            job_s=job.job_limit_s,
            execute_s=job.execute_limit_s,
            shadow_interval_s=settings.periodic_expr_interval,
        )

    @property
    def named(self) -> Named:
        """What the reasons of holds name."""
        slot = self.activation
        return Named(self.description.job_id, self.host, slot.memory_mb, slot.disk_kb)

    def begin_leg(self, usage: Usage | None) -> None:
        """The job is to be launched again in its sandbox. ``usage``: all that it has used so far."""
        self.legs, self.spent, self.usage = self.legs + 1, usage, None
        self.registered, self.suspended = False, False
        self.launched, self.started_at_s = None, None
        self.ended = trio.Event()

    def used(self, usage: Usage) -> Usage:
        """What all legs have used, from what procd says of this one, and the kernel once it has ended."""
        usage = usage if self.launched is None else at_least(usage, self.launched.cpu)
        return usage if self.spent is None else together(self.spent, usage)

    @property
    def trust(self) -> Trust:
        """Whom the site believes when it looks at a proxy."""
        return Trust(self.settings.sailplane_certificates_dir, self.settings.sailplane_voms_dir)

    def context(self, *, started: bool = False, once: bool = False) -> Context:
        """For calls of the identity switch: of a job that has `started`, with patience to its proxy's end; `once`, for
        what the job itself does not need."""
        seconds = self.settings.sailplane_switch_patience
        if started and self.credential is not None:
            seconds = max(0.0, self.credential.usable_until - time.time())
        return Context(
            switch=self.switch,
            settings=self.settings,
            audit_id=self.description.global_job_id,
            credential=self.credential_path,
            place=self.place.root,
            patience=Patience(self.ledger, seconds, waits=started, once=once),
        )

    @property
    def ledger(self) -> Ledger:
        """The standing that the node's calls share."""
        return Ledger.of(self.settings.sailplane_run_dir)
