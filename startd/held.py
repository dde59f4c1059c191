"""What the startd remembers of its slots and claims. State only; the rules are ``startd.claim``'s."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import trio
from classad2 import ClassAd

from cedar.claims import SUBMIT_SIDE, ClaimId
from cedar.commands import VERSION
from cedar.expressions import shield
from cedar.sessions import SessionTable
from cedar.sinful import Sinful
from pilot.rpc import Channel
from startd.claim import WITH_STARTER, Claim
from startd.clocks import Clocks, Totals
from startd.openslot import ArmMatch, Draining, Fact, OpenSlot
from startd.resources import Resources
from startd.slotads import SHOWN, BrokenPart, SlotState, idle_activity
from startd.slottypes import Plan

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
class Waiting:
    """A claim that waits for another one's end; ``done`` says that it does no more, ``granted`` what it has got."""

    claim_id: ClaimId
    requester: Requester
    rank: float
    done: trio.Event = attrs.field(factory=trio.Event)
    granted: Held | None = None

    def end(self, granted: Held | None) -> None:
        """It has the slot, or will not get it."""
        self.granted = granted
        self.done.set()


@attrs.define(eq=False)
class Slot:
    """One slot of the machine's own: partitionable, or static, which is claimed whole. ``current``: the claim id that
    may be presented for it next; each is good for one claim."""

    plan: Plan
    name: str
    current: ClaimId
    free: Resources
    withheld: Resources
    broken: list[BrokenPart] = attrs.field(factory=list)
    """What of it is withheld, and why."""
    children: list[Held] = attrs.field(factory=list)
    rooms: list[Any] = attrs.field(factory=list, repr=False)
    """Requests that wait for some of the children to end (``startd.roommaking``)."""
    entered_at: int = attrs.field(factory=lambda: int(time.time()))
    open: OpenSlot = attrs.field(factory=OpenSlot)
    """What it is while nobody has it; of a partitionable slot, always."""
    totals: Totals = attrs.field(factory=lambda: Totals(trio.current_time(), ("Unclaimed", "Idle")))

    @property
    def slot_id(self) -> int:
        return self.plan.slot_id

    @property
    def partitionable(self) -> bool:
        return self.plan.partitionable

    @property
    def claimed_whole(self) -> Held | None:
        """The claim of a static slot, if there is one."""
        return self.children[0] if self.children and not self.partitionable else None

    def tell(self, fact: Fact) -> tuple[ArmMatch, ...]:
        """A fact of the time while nobody has it; what has to be done for it."""
        before = self.open.state
        commands = self.open.handle(fact)
        if self.open.state is not before:
            self.entered_at = int(time.time())
        self.note_shown()
        return commands

    def note_shown(self) -> None:
        """Its time counts as this from now on, while nobody has it; a claim of a static slot counts by itself."""
        if not self.claimed_whole:
            state = self.open.state.value
            self.totals.enter(state, idle_activity(state, bool(self.children)), now_s=trio.current_time())

    def next_dynamic(self) -> int:
        """The lowest number that no dynamic slot of this one has now, as HTCondor's: names stay few."""
        taken = {held.dynamic_id for held in self.children}
        return next(number for number in itertools.count(1) if number not in taken)


@attrs.define(eq=False)
class Held:
    """One claim and its slot: a dynamic one, or a static one as a whole (which has no ``dynamic_id``)."""

    name: str
    parent: Slot = attrs.field(repr=False)
    dynamic_id: int | None
    claim_id: ClaimId
    resources: Resources
    requester: Requester
    cores: tuple[int, ...] = ()
    # for whoever may take a dynamic slot over; a static one's is its parent's
    following: ClaimId | None = None
    waiting: Waiting | None = None
    when_gone: Callable[[bool], None] | None = attrs.field(default=None, repr=False)
    """Told when it makes room in its partitionable slot, and whether it was broken."""
    life: Claim = attrs.field(factory=Claim)
    made_s: float = attrs.field(factory=trio.current_time)
    heard_s: float = attrs.field(factory=trio.current_time)
    alive_sent_s: float = attrs.field(factory=trio.current_time)
    clocks: Clocks = attrs.field()
    rank: float = 0.0
    filler: bool = False
    """Its claim, or its job, was taken while the startd drained: it goes when those from before have gone."""
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

    @clocks.default
    def _new_clocks(self) -> Clocks:
        now_s, unix = trio.current_time(), int(time.time())
        totals = self.parent.totals if self.dynamic_id is None else Totals(now_s, ("Claimed", "Idle"))
        totals.enter("Claimed", "Idle", now_s=now_s)
        return Clocks(now_s, unix, unix, totals)

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

    def slot_state(self, draining: bool) -> SlotState:
        """For the slot's ad."""
        return SlotState(
            name=self.name,
            slot_id=self.parent.slot_id,
            type_number=self.parent.plan.type_number,
            kind="Static" if self.dynamic_id is None else "Dynamic",
            dynamic_id=self.dynamic_id,
            resources=self.resources,
            total=self.resources,
            claim=self.claim_id,
            claimed=True,
            state=self.life.shown,
            entered_at=self.clocks.state_at,
            activity_at=self.clocks.activity_at,
            user=self.requester.user,
            job_id=self.job_id,
            job_account_uid=self.job_account_uid,
            draining=draining,
            accepted_while_draining=self.filler,
            usage={**self._ranks(), **self.clocks.attributes(trio.current_time()), **self.usage},
        )

    def _ranks(self) -> dict[str, object]:
        """Its claim's rank, and who waits for the slot."""
        if self.waiting is None:
            return {"CurrentRank": self.rank}
        user = shield(self.waiting.requester.user)
        return {
            "CurrentRank": self.rank,
            "PreemptingRank": self.waiting.rank,
            "PreemptingUser": user,
            "PreemptingOwner": user,
        }


@attrs.define
class Slots:
    """The slots of the machine's own, what was carved of them, and the claim ids of all. ``cores``: those that are
    given out one by one, none where jobs are not bound to cores."""

    startd_name: str
    address: str
    start_time: int
    sessions: SessionTable
    plans: Sequence[Plan]
    cores: tuple[int, ...] = ()
    own: list[Slot] = attrs.field(init=False)
    held: dict[str, Held] = attrs.field(factory=dict)
    _sequence: int = 0

    def __attrs_post_init__(self) -> None:
        self.own = [
            Slot(
                plan=plan,
                name=f"slot{plan.slot_id}@{self.startd_name}",
                current=self.mint(),
                free=plan.resources,
                withheld=plan.resources.nothing,
            )
            for plan in self.plans
        ]

    def mint(self) -> ClaimId:
        """A fresh claim id. Its session is registered before anybody can learn the id (wire reference 2.6)."""
        self._sequence += 1
        claim_id = ClaimId.mint(self.address, self.start_time, self._sequence, VERSION)
        self.sessions.add(claim_id.session(SUBMIT_SIDE))
        return claim_id

    @property
    def first(self) -> Slot:
        """The one that stands for the startd, where something is asked of it as a whole."""
        return self.own[0]

    def move(self, address: str) -> None:
        """We are reached at another address: ids given out from now on carry it. Claims keep theirs."""
        self.address = address
        for slot in self.own:
            if not slot.claimed_whole:
                self.sessions.drop(slot.current.session_id)
                slot.current = self.mint()

    def presented(self, session_id: str) -> Slot | None:
        """The slot that may be claimed with this id now."""
        free = (slot for slot in self.own if not slot.claimed_whole)
        return next((slot for slot in free if slot.current.session_id == session_id), None)

    def carve(self, slot: Slot, resources: Resources, requester: Requester, taken: ClaimId | None = None) -> Held:
        """A claim: on a new dynamic slot, or on a static one as it is. The presented claim id goes with it (``taken``,
        where it was taken before), the slot gets a fresh one (T8)."""
        claim_id = taken or self.take_current(slot)
        dynamic_id = slot.next_dynamic() if slot.partitionable else None
        held = Held(
            name=slot.name if dynamic_id is None else f"slot{slot.slot_id}_{dynamic_id}@{self.startd_name}",
            parent=slot,
            dynamic_id=dynamic_id,
            claim_id=claim_id,
            resources=resources,
            requester=requester,
            cores=self._free_cores(resources.cpus),
        )
        slot.free = slot.free - resources
        slot.children.append(held)
        self.held[held.claim_id.session_id] = held
        return held

    def take_current(self, slot: Slot) -> ClaimId:
        """The presented id of a slot is used up: there is a fresh one."""
        fresh = self.mint()  # first: when no session can be added, nothing has changed
        presented, slot.current = slot.current, fresh
        return presented

    def next_id(self, held: Held) -> ClaimId:
        """The id that a better claim has to present for this one's slot."""
        if held.dynamic_id is None:
            return held.parent.current
        if held.following is None:
            held.following = self.mint()
        return held.following

    def taken_over_with(self, session_id: str) -> Held | None:
        """The claim whose slot may be asked for with this id."""
        return next((held for held in self.held.values() if _next_session(held) == session_id), None)

    def take_next(self, held: Held) -> ClaimId:
        """The presented id is used up: there is a fresh one."""
        presented, fresh = self.next_id(held), self.mint()
        if held.dynamic_id is None:
            held.parent.current = fresh
        else:
            held.following = fresh
        return presented

    def hand_over(self, held: Held, waiting: Waiting) -> Held:
        """The slot, as it is, goes from a claim that is gone to the one that waited for it."""
        heir = Held(
            name=held.name,
            parent=held.parent,
            dynamic_id=held.dynamic_id,
            claim_id=waiting.claim_id,
            resources=held.resources,
            requester=waiting.requester,
            cores=held.cores,
            following=held.following,
            rank=waiting.rank,
        )
        heir.clocks.totals = held.clocks.totals
        heir.clocks.totals.enter("Claimed", "Idle", now_s=trio.current_time())
        held.following = None
        self._forget(held)
        heir.parent.children.append(heir)
        self.held[heir.claim_id.session_id] = heir
        return heir

    def _free_cores(self, count: int) -> tuple[int, ...]:
        """So many of ``cores`` that no other slot has; none where there are not enough (NUM_CPUS promises more)."""
        taken = {core for held in self.held.values() for core in held.cores}
        free = [core for core in self.cores if core not in taken][:count]
        return tuple(free) if len(free) == count else ()

    def give_back(self, held: Held, *, broken: bool) -> None:
        """The claim is gone, a dynamic slot with it; what a broken one had is withheld."""
        slot = held.parent
        self._forget(held)
        if broken:
            slot.withheld = slot.withheld + held.resources
            job, user = held.past_jobs[-1] if held.past_jobs else "", held.requester.user
            slot.broken.append(BrokenPart(held.name, job, user, int(time.time()), held.resources))
        else:
            slot.free = slot.free + held.resources
        slot.entered_at = int(time.time())
        slot.note_shown()

    def _forget(self, held: Held) -> None:
        del self.held[held.claim_id.session_id]
        held.parent.children.remove(held)
        if held.following is not None:
            self.sessions.drop(held.following.session_id)
        self.used_up(held.claim_id)

    def used_up(self, claim_id: ClaimId) -> None:
        """Nothing can be had with it any more; its last commands are understood for a while."""
        session = claim_id.session(SUBMIT_SIDE)
        session.expires_s = trio.current_time() + SESSION_AFTERLIFE_S
        self.sessions.add(session)

    def state(
        self,
        slot: Slot,
        *,
        refused_users: tuple[str, ...],
        left_elsewhere: str = "",
        draining: bool,
        trouble: str,
        retiring: str = "",
        drain_request: str = "",
        drain_start: str = "",
        unhealthy: str = "",
        switch_down: str = "",
    ) -> SlotState:
        """A partitionable slot, or a static one that nobody has, for its ad; it knows from now on if it is drained."""
        slot.tell(Draining(draining))
        return SlotState(
            name=slot.name,
            slot_id=slot.slot_id,
            type_number=slot.plan.type_number,
            kind="Partitionable" if slot.partitionable else "Static",
            dynamic_id=None,
            resources=slot.free,
            total=slot.plan.resources - slot.withheld,
            withheld=slot.withheld,
            broken=tuple(slot.broken),
            claim=slot.current,
            claimed=False,
            state=slot.open.state.value,
            entered_at=slot.entered_at,
            children=len(slot.children),
            refused_users=refused_users,
            left_elsewhere=left_elsewhere,
            switch_down=switch_down,
            draining=draining,
            trouble=trouble,
            unhealthy=unhealthy,
            retiring=retiring,
            drain_request=drain_request,
            drain_start=drain_start,
            usage=slot.totals.attributes(trio.current_time()),
        )


def _next_session(held: Held) -> str:
    following = held.parent.current if held.dynamic_id is None else held.following
    return "" if following is None else following.session_id
