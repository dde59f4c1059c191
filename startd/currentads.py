"""The ads of this startd as its slots and claims stand now: for the collector, for peers, for its own expressions.

What an ad holds is ``startd.slotads``'s; here the parts are asked for what they know at this moment.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import attrs
import trio
from classad2 import ClassAd

from cedar.claims import ClaimId
from pilot.switch import Switch
from startd import lifetime
from startd.administration import CAPABILITY
from startd.claims import Claims
from startd.cronjobs import Published
from startd.held import Held, Slot
from startd.janitor import Janitor
from startd.machineupdate import MachineUpdate
from startd.slotads import Machine, SlotState, daemon_ad, private_ad, public_ad, roll_up
from startd.supplements import Supplements
from startd.switchwatch import SwitchWatch

# As HTCondor's integers: a retirement without end is this long in an ad.
MAX_SECONDS = 2**31 - 1


@attrs.define(eq=False)
class CurrentAds:
    """Each call makes them anew. ``put_load``: the node's load into an ad, of a claim or of nobody's slot;
    ``capability``: what makes a reader an administrator."""

    machine: Machine
    switch: Switch
    claims: Claims
    switch_watch: SwitchWatch
    janitor: Janitor
    cron: Published
    supplements: Supplements
    update_by_hand: MachineUpdate
    put_load: Callable[[ClassAd, Held | None], None]
    capability: Callable[[], str]
    _sequence: int = 0

    def own(self, slot: Slot) -> ClassAd:
        """Of a partitionable slot, or of a static one that nobody has."""
        claims = self.claims
        state = claims.slots.state(
            slot,
            left_elsewhere=claims.left_elsewhere,
            draining=claims.draining or claims.drain is not None,
            drain_request=claims.drain.request_id if claims.drain else "",
            drain_start=claims.drain_start,
            refused_users=self.switch_watch.refused(),
            switch_down=self.switch_watch.down,
            trouble=claims.trouble,
            unhealthy=claims.unhealthy,
            retiring=claims.retiring,
        )
        state = attrs.evolve(state, left_behind=self.janitor.waiting, only_user=self._only_user())
        return self._public(state, None)

    def of_claim(self, held: Held) -> ClassAd:
        """Of a slot that a claim has."""
        state = attrs.evolve(
            held.slot_state(self.claims.draining),
            drain_start=self.claims.drain_start,
            refused_users=self.switch_watch.refused(),
            switch_down=self.switch_watch.down,
            only_user=self._only_user(),
        )
        return self._public(state, held)

    def of_slots(self) -> list[ClassAd]:
        """Of every slot, without secrets."""
        return [ad for ad, _, _ in self._with_claims()]

    def of_daemon(self) -> ClassAd:
        """Of the startd as a whole."""
        slots = self.claims.slots
        states = [slots.state(slot, refused_users=(), draining=False, trouble="") for slot in slots.own]
        ad = daemon_ad(self.machine, states, now=int(time.time()), sequence=self._sequence)
        self.update_by_hand.merge_into(ad)
        return ad

    def update(self, sequence: Iterator[int]) -> list[tuple[ClassAd, ClassAd | None]]:
        """The next update of a collector: each ad with its private one, which has the id of the next claim.

        ``sequence``: the numbers of this collector's updates; what it misses it counts as lost.
        """
        self._sequence = next(sequence)
        slots = [(self._with_capability(ad), private_ad(ad, own, parts)) for ad, own, parts in self._with_claims()]
        return [*slots, (self._with_capability(self.of_daemon()), None)]

    def of_first_slot(self) -> ClassAd:
        """Of the first slot, for DAEMON_SHUTDOWN: what it finds there of the other slots is what they are now."""
        self._with_claims()
        return self.own(self.claims.slots.first)

    def retirement_s(self, held: Held) -> float:
        """MaxJobRetirementTime of a claim's present job."""
        return lifetime.retirement_s(self.of_claim(held), held.job_ad)

    def _public(self, state: SlotState, held: Held | None) -> ClassAd:
        ad = public_ad(self.machine, state, now=int(time.time()), sequence=self._sequence)
        self.put_load(ad, held)
        if held is not None:
            left_s = lifetime.retirement_s(ad, held.job_ad) - held.clocks.ran_s(trio.current_time())
            ad["RetirementTimeRemaining"] = int(min(max(0.0, left_s), MAX_SECONDS)) if held.job_ad is not None else 0
        self.cron.merge_into(ad)
        self.update_by_hand.merge_into(ad)
        job = held.job_ad if held is not None else None
        self.supplements.put(ad, job, now_s=trio.current_time(), now=int(time.time()))
        return ad

    def _only_user(self) -> str:
        """Without a switch all jobs share an account: one user's, unless the settings say that others may."""
        shared = self.switch.isolates or self.switch.needs_credential or self.claims.settings.sailplane_shared_account
        return "" if shared else self.claims.first_user

    def _with_claims(self) -> list[tuple[ClassAd, ClaimId, list[ClaimId] | None]]:
        """Of every slot, with the id that claims it next, and of a partitionable one those of its dynamic slots; a
        static slot that is claimed has one ad, as it is."""
        slots = self.claims.slots
        claimed = [(held, self.of_claim(held)) for held in slots.held.values()]
        own = []
        for slot in slots.own:
            if slot.claimed_whole:
                continue
            ad, parts = self.own(slot), None
            if slot.partitionable:
                children = [(held, child) for held, child in claimed if held.parent is slot]
                roll_up(ad, [child for _, child in children])
                parts = [slots.next_id(held) for held, _ in children]
            own.append((ad, slot.current, parts))
        ads = own + [(ad, slots.next_id(held), None) for held, ad in claimed]
        self.supplements.crosspost([ad for ad, _, _ in ads])
        return ads

    def _with_capability(self, ad: ClassAd) -> ClassAd:
        """For the collector, which shows it to administrators alone; never in an answer of our own."""
        if capability := self.capability():
            ad[CAPABILITY] = capability
        return ad
