"""A request for a partitionable slot that names claims of its dynamic ones, to be ended for it. Acting.

A negotiator with ALLOW_PSLOT_PREEMPTION finds their next claim ids in the slot's private ad. The request is checked
against the slot as it will be; if it is good, those claims retire, what they had is kept, and REQUEST_CLAIM is answered
when the last one is gone.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable, Sequence
from functools import partial, reduce
from operator import add

import attrs
import trio
from classad2 import ClassAd

from cedar.claims import ClaimId
from cedar.codec import Item
from cedar.commands import Reply, VacateCode
from cedar.errors import PeerFault
from cedar.stream import CedarStream
from startd import claimevents as events
from startd import gathering, policy
from startd.claim import WrongState
from startd.claims import Claims
from startd.gathering import CalledOff, Gathering, Gone
from startd.held import Held, Requester, Slot
from startd.preemption import ANSWER_WITHIN_S
from startd.resources import Resources


@attrs.define(eq=False)
class Room:
    """A request that waits for its room. ``wanted``: what its claim will have; ``kept``: what is kept of it by now."""

    slot: Slot
    ad: ClassAd
    requester: Requester
    claim_id: ClaimId
    wanted: Resources
    kept: Resources
    life: Gathering
    done: trio.Event = attrs.field(factory=trio.Event)
    granted: Held | None = None


def part_with(
    slot: Slot,
    ad: ClassAd,
    coming: Resources,
    own_ad: Callable[[Slot], ClassAd],
    part_of: Callable[[Slot, ClassAd], Resources],
) -> Resources:
    """What a request gets of a slot as it will be, with ``coming`` given back to it. Nothing changes.

    Raises:
        WrongState, DoesNotFit: it gets none.
    """
    free = slot.free
    slot.free = free + coming
    try:
        if said := policy.refusal(own_ad(slot), ad):
            raise WrongState(said, try_again=False)
        return part_of(slot, ad)
    finally:
        slot.free = free


@attrs.frozen
class RoomMaking:
    """``held_ad`` and ``own_ad`` give ads of slots; ``part_of`` what a request gets of one, or raises DoesNotFit;
    ``answer`` the items that tell a schedd of its claim."""

    claims: Claims
    held_ad: Callable[[Held], ClassAd]
    own_ad: Callable[[Slot], ClassAd]
    part_of: Callable[[Slot, ClassAd], Resources]
    answer: Callable[[Slot, ClassAd, list[Held]], list[Item]]
    log: logging.LoggerAdapter[logging.Logger]

    def begin(self, slot: Slot, ad: ClassAd, requester: Requester, texts: Sequence[str]) -> Room:
        """The claims with these next ids retire for the request, whose own id is the slot's current one.

        Raises:
            WrongState, DoesNotFit: refused; nothing has changed.
        """
        if not slot.partitionable:
            raise WrongState("room is made in partitionable slots only", try_again=False)
        going = [self._named(slot, text) for text in texts]
        if len({held.name for held in going}) < len(going):
            raise WrongState("a claim is named twice that is to make room", try_again=False)
        coming = reduce(add, (held.resources for held in going))
        wanted = part_with(slot, ad, coming, self.own_ad, self.part_of)
        for held in going:
            self._check_rank(held, ad)
        room = self._open(slot, ad, requester, going, wanted, coming)
        for held in going:
            if room.life.state is gathering.State.GATHERING:
                self._end(room, held, ad)
        return room

    def _named(self, slot: Slot, text: str) -> Held:
        """The claim that makes room by this id: its slot's next one, which only the pool's negotiator can know."""
        presented = ClaimId.parse(text)
        held = self.claims.slots.taken_over_with(presented.session_id)
        if held is None or not hmac.compare_digest(self.claims.slots.next_id(held).text.encode(), text.encode()):
            raise WrongState(f"no claim makes room by {presented.public}", try_again=False)
        if held.parent is not slot:
            raise WrongState(f"{held.name} is no part of {slot.name}", try_again=False)
        if held.waiting is not None or held.when_gone is not None:
            raise WrongState(f"{held.name} goes to another claim already", try_again=False)
        return held

    def _check_rank(self, held: Held, ad: ClassAd) -> None:
        rank = policy.rank(self.held_ad(held), ad)
        if rank < held.rank:
            text = f"its rank on {held.name} is {rank:g}, less than the {held.rank:g} of what is there"
            raise WrongState(text, try_again=False)

    def _open(
        self, slot: Slot, ad: ClassAd, requester: Requester, going: list[Held], wanted: Resources, coming: Resources
    ) -> Room:
        claim_id = self.claims.slots.take_current(slot)
        kept = gathering.kept_from(slot.free, wanted, coming)
        slot.free = slot.free - kept
        names = frozenset(held.name for held in going)
        room = Room(slot, ad, requester, claim_id, wanted, kept, Gathering(names))
        slot.rooms.append(room)
        self.log.info("claim %s waits for the room of %s", claim_id.public, ", ".join(sorted(names)))
        return room

    def _end(self, room: Room, held: Held, ad: ClassAd) -> None:
        slots = self.claims.slots
        slots.used_up(slots.take_next(held))
        held.when_gone = partial(self._gone, room, held)
        better = policy.rank(self.held_ad(held), ad) > held.rank
        reason = "a job of higher rank needs its room" if better else "a user of better priority needs its room"
        code = VacateCode.STARTD_RANK if better else VacateCode.STARTD_PRIORITY
        left_s = self.claims.retirement_left_s(held)
        self.claims.handle(held, events.Retire(left_s, reason, int(code), events.Cause.WANTED))

    # --- what comes of it ----------------------------------------------------------------------------------------

    def _gone(self, room: Room, held: Held, broken: bool) -> None:
        """Its resources are the slot's free ones by now, or withheld."""
        if not self.claims.takes_jobs:
            self._tell(room, CalledOff())
        self._tell(room, Gone(held.name, broken), held)

    def _tell(self, room: Room, fact: gathering.Fact, held: Held | None = None) -> None:
        for command in room.life.handle(fact):
            match command:
                case gathering.Keep():
                    assert held is not None
                    room.slot.free = room.slot.free - held.resources
                    room.kept = room.kept + held.resources
                case gathering.Grant():
                    self._close(room)
                    room.granted = self.claims.carve(room.slot, room.wanted, room.requester, room.claim_id)
                    room.granted.rank = policy.rank(self.held_ad(room.granted), room.ad)
                    self.log.info("claim %s has its room: %s", room.claim_id.public, room.granted.name)
                case gathering.Refuse(spared=spared):
                    self._close(room)
                    self.claims.slots.used_up(room.claim_id)
                    self._spare(spared)

    def _close(self, room: Room) -> None:
        room.slot.free = room.slot.free + room.kept
        room.kept = room.kept.nothing
        room.slot.rooms.remove(room)
        room.done.set()
        self.claims.changed()

    def _spare(self, names: frozenset[str]) -> None:
        for held in list(self.claims.slots.held.values()):
            if held.name in names:
                held.when_gone = None
                self.claims.handle(held, events.Unretire(events.Cause.WANTED))

    def withdraw(self, room: Room) -> None:
        """The claim does not wait any more. Too late where it has its room."""
        self._tell(room, CalledOff())

    def waits_with(self, session_id: str) -> Room | None:
        """The request that waits with this id."""
        rooms = (room for slot in self.claims.slots.own for room in slot.rooms)
        return next((room for room in rooms if room.claim_id.session_id == session_id), None)

    async def see(self, room: Room, stream: CedarStream) -> None:
        """Answer when the room is there, or something else came in between; a peer that goes away waits no more."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_peer, room, stream)
            await room.done.wait()
            nursery.cancel_scope.cancel()
        granted = room.granted
        items: list[Item] = [int(Reply.NOT_OK)] if granted is None else self.answer(room.slot, room.ad, [granted])
        try:
            with trio.fail_after(ANSWER_WITHIN_S):
                await stream.put(*items)
        except (PeerFault, trio.TooSlowError) as fault:
            self.log.info("claim %s: its schedd has gone: %s", room.claim_id.public, fault)
            if granted is not None:
                self.claims.handle(granted, events.Released())

    async def _watch_peer(self, room: Room, stream: CedarStream) -> None:
        """It has nothing more to say."""
        try:
            await stream.get()
        except PeerFault:
            self.log.info("claim %s: its schedd has gone", room.claim_id.public)
        self.withdraw(room)
