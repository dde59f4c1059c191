"""What the startd remembers of its slots and claims. State only; the rules are ``startd.claim``'s."""

from __future__ import annotations

import time
from collections import deque

import attrs
import trio
from classad2 import ClassAd

from cedar.claims import SUBMIT_SIDE, ClaimId
from cedar.commands import VERSION
from cedar.sessions import SessionTable
from cedar.sinful import Sinful
from pilot.rpc import Channel
from startd.claim import WITH_STARTER, Claim
from startd.clocks import Clocks
from startd.resources import Resources
from startd.slotads import SHOWN, SlotState

# The session of a finished claim stays known for so long, so that a last command in flight is understood (wire 2.6).
SESSION_AFTERLIFE_S = 600.0
# Jobs of a claim of which it is remembered that they have ended: a peer that asks does so within minutes.
REMEMBERED_JOBS = 16
_CPU = ("RemoteUserCpu", "RemoteSysCpu")


@attrs.frozen
class Requester:
    """Who claimed: the schedd's address and what it promised."""

    address: Sinful | None
    user: str
    lease_s: float
    alive_interval_s: float


@attrs.define(eq=False)
class Held:
    """One dynamic slot and its claim."""

    name: str
    dynamic_id: int
    claim_id: ClaimId
    resources: Resources
    requester: Requester
    cores: tuple[int, ...] = ()
    life: Claim = attrs.field(factory=Claim)
    made_s: float = attrs.field(factory=trio.current_time)
    heard_s: float = attrs.field(factory=trio.current_time)
    alive_sent_s: float = attrs.field(factory=trio.current_time)
    clocks: Clocks = attrs.field(factory=lambda: Clocks(trio.current_time(), int(time.time()), int(time.time())))
    rank: float = 0.0
    changed: trio.Event = attrs.field(factory=trio.Event)
    # the present activation
    ticket: int | None = None
    starter: Channel | None = None
    starter_pid: int | None = None
    starter_broken: bool = False
    job_id: str = ""
    job_user: str = ""
    job_ad: ClassAd | None = attrs.field(default=None, repr=False)
    owner_sids: list[str] = attrs.field(factory=list)
    job_account_uid: int | None = None
    usage: dict[str, object] = attrs.field(factory=dict)
    usage_s: float = 0.0
    cpu_s: float = 0.0
    cpu_load: float = 0.0
    """CPU seconds a second, between the last two words of its usage."""
    past_jobs: deque[str] = attrs.field(factory=lambda: deque(maxlen=REMEMBERED_JOBS))

    def lease_over(self, now_s: float) -> bool:
        """Nothing heard for a whole lease."""
        return now_s - self.heard_s > self.requester.lease_s

    def alive_due(self, now_s: float) -> bool:
        """At least every third of a lease (wire reference 3.5)."""
        return self.requester.address is not None and now_s - self.alive_sent_s > self.requester.lease_s / 3

    def starter_forgotten(self, sessions: SessionTable) -> None:
        """The activation is over, and with it what its job's owner was let in by."""
        for sid in self.owner_sids:
            sessions.drop(sid)
        if self.job_id:
            self.past_jobs.append(self.job_id)
        self.ticket = self.starter_pid = self.job_account_uid = None
        self.starter, self.starter_broken, self.job_id, self.job_user = None, False, "", ""
        self.job_ad = None
        self.clocks.job_ends(now_s=trio.current_time())
        self.usage, self.owner_sids, self.cpu_load = {}, [], 0.0

    def begin_job(self, ad: ClassAd) -> None:
        """An activation; ``ad`` is the job's, and is kept up to date with its usage."""
        self.job_ad = ad
        self.clocks.job_begins(now_s=trio.current_time(), unix=int(time.time()))

    def note_usage(self, usage: dict[str, object]) -> None:
        """What a starter said of its job: for the slot's ad, and for policies, which look into the job's as well."""
        cpu_s = sum(value for name in _CPU if isinstance(value := usage.get(name), int | float))
        passed_s = trio.current_time() - self.usage_s
        if self.usage and passed_s > 0:
            self.cpu_load = max(0.0, cpu_s - self.cpu_s) / passed_s
        self.usage, self.usage_s, self.cpu_s = usage, trio.current_time(), cpu_s
        if self.job_ad is not None:
            self.job_ad.update(usage)

    def note_change(self) -> None:
        """Wake whoever waits for this claim's state; tell the time of it."""
        state, activity = SHOWN[self.life.shown]
        self.clocks.enter(state, activity, now_s=trio.current_time(), unix=int(time.time()))
        self.changed.set()
        self.changed = trio.Event()

    async def wait_without_starter(self) -> None:
        """Until the starter of the present activation is reaped."""
        while self.life.state in WITH_STARTER:
            await self.changed.wait()

    def slot_state(self, slot_id: int, draining: bool) -> SlotState:
        """For the slot's ad."""
        return SlotState(
            name=self.name,
            slot_id=slot_id,
            dynamic_id=self.dynamic_id,
            resources=self.resources,
            claim=self.claim_id,
            state=self.life.shown,
            entered_at=self.clocks.state_at,
            activity_at=self.clocks.activity_at,
            user=self.requester.user,
            job_id=self.job_id,
            job_account_uid=self.job_account_uid,
            draining=draining,
            usage={"CurrentRank": self.rank, **self.clocks.attributes(trio.current_time()), **self.usage},
        )


@attrs.define
class Slots:
    """The partitionable slot, what was carved of it, and the claim ids of both. ``cores``: those that are given out
    one by one, none where jobs are not bound to cores."""

    startd_name: str
    address: str
    start_time: int
    sessions: SessionTable
    total: Resources
    free: Resources
    withheld: Resources = attrs.field(factory=lambda: Resources(0, 0, 0))
    cores: tuple[int, ...] = ()
    current: ClaimId = attrs.field(init=False)
    held: dict[str, Held] = attrs.field(factory=dict)
    _sequence: int = 0
    _next_dynamic: int = 0

    def __attrs_post_init__(self) -> None:
        self.current = self._mint()

    def _mint(self) -> ClaimId:
        """A fresh claim id. Its session is registered before anybody can learn the id (wire reference 2.6)."""
        self._sequence += 1
        claim_id = ClaimId.mint(self.address, self.start_time, self._sequence, VERSION)
        self.sessions.add(claim_id.session(SUBMIT_SIDE))
        return claim_id

    @property
    def name(self) -> str:
        """The partitionable slot's name."""
        return f"slot1@{self.startd_name}"

    def carve(self, resources: Resources, requester: Requester) -> Held:
        """A dynamic slot: the presented claim id moves to it, the partitionable slot gets a fresh one (T8)."""
        following = self._mint()  # first: when no session can be added, nothing has changed
        self._next_dynamic += 1
        held = Held(
            name=f"slot1_{self._next_dynamic}@{self.startd_name}",
            dynamic_id=self._next_dynamic,
            claim_id=self.current,
            resources=resources,
            requester=requester,
            cores=self._free_cores(resources.cpus),
        )
        self.free = self.free - resources
        self.held[held.claim_id.session_id] = held
        self.current = following
        return held

    def _free_cores(self, count: int) -> tuple[int, ...]:
        """So many of ``cores`` that no other slot has; none where there are not enough (NUM_CPUS promises more)."""
        taken = {core for held in self.held.values() for core in held.cores}
        free = [core for core in self.cores if core not in taken][:count]
        return tuple(free) if len(free) == count else ()

    def give_back(self, held: Held, *, broken: bool) -> None:
        """The dynamic slot is gone; a broken one's resources are withheld."""
        del self.held[held.claim_id.session_id]
        if broken:
            self.withheld = self.withheld + held.resources
        else:
            self.free = self.free + held.resources
        session = held.claim_id.session(SUBMIT_SIDE)
        session.expires_s = trio.current_time() + SESSION_AFTERLIFE_S
        self.sessions.add(session)

    def state(
        self,
        *,
        refused_users: tuple[str, ...],
        left_elsewhere: str = "",
        draining: bool,
        trouble: str,
        entered_at: int,
        retiring: str = "",
        drain_request: str = "",
        unhealthy: str = "",
        switch_down: str = "",
    ) -> SlotState:
        """The partitionable slot, for its ad."""
        return SlotState(
            name=self.name,
            slot_id=1,
            dynamic_id=None,
            resources=self.free,
            claim=self.current,
            state="idle",
            entered_at=entered_at,
            children=len(self.held),
            refused_users=refused_users,
            left_elsewhere=left_elsewhere,
            switch_down=switch_down,
            draining=draining,
            trouble=trouble,
            unhealthy=unhealthy,
            retiring=retiring,
            drain_request=drain_request,
        )
