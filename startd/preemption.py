"""A request for a slot that has a claim: it waits, if it is as good as that claim, until the slot is free. Acting.

The negotiator finds the slot's next claim id in its private ad and gives it to a schedd whose job the slot ranks
higher, or whose user has the better priority. REQUEST_CLAIM with it is answered when the old claim is gone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import attrs
import trio
from classad2 import ClassAd

from cedar.commands import Reply, VacateCode
from cedar.errors import PeerFault
from cedar.stream import CedarStream
from startd import claimevents as events
from startd import policy
from startd.claim import WrongState
from startd.claims import Claims
from startd.held import Held, Requester, Waiting

# An answer is one short message.
ANSWER_WITHIN_S = 20.0


@attrs.frozen
class Preemption:
    """``held_ad`` gives the ad of a claim's slot."""

    claims: Claims
    held_ad: Callable[[Held], ClassAd]
    log: logging.LoggerAdapter[logging.Logger]

    def begin(self, held: Held, ad: ClassAd, requester: Requester) -> Waiting:
        """The present claim is retired for this one, which takes the place of one that waits already.

        Raises:
            WrongState: refused; nothing has changed.
        """
        slot_ad = self.held_ad(held)
        rank = policy.rank(slot_ad, ad)
        self._check(held, slot_ad, ad, rank)
        before, better = held.waiting, rank > held.rank
        waiting = Waiting(self.claims.slots.take_next(held), requester, rank)
        held.waiting = waiting
        if before is not None:
            before.end(None)
        reason = "a job of higher rank takes the slot" if better else "a user of better priority takes the slot"
        code = VacateCode.STARTD_RANK if better else VacateCode.STARTD_PRIORITY
        self.log.info("%s: claim %s waits: %s", held.name, waiting.claim_id.public, reason)
        left_s = self.claims.retirement_left_s(held)
        self.claims.handle(held, events.Retire(left_s, reason, int(code), events.Cause.WANTED))
        return waiting

    def _check(self, held: Held, slot_ad: ClassAd, ad: ClassAd, rank: float) -> None:
        if not self.claims.takes_jobs:
            raise WrongState("the slot takes no claims now", try_again=False)
        if held.when_gone is not None:
            raise WrongState("it makes room for another claim already", try_again=False)
        if said := policy.refusal(slot_ad, ad):
            raise WrongState(said, try_again=False)
        least = max(held.rank, held.waiting.rank if held.waiting else held.rank)
        if rank < least:
            raise WrongState(f"its rank is {rank:g}, less than the {least:g} of what is there", try_again=False)

    async def see(self, waiting: Waiting, stream: CedarStream) -> None:
        """Answer when the slot is free, or something else came in between; a peer that goes away waits no more."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_peer, waiting, stream)
            await waiting.done.wait()
            nursery.cancel_scope.cancel()
        granted = waiting.granted
        if granted is None:
            self.claims.slots.used_up(waiting.claim_id)
        try:
            with trio.fail_after(ANSWER_WITHIN_S):
                await stream.put(int(Reply.NOT_OK if granted is None else Reply.OK))
        except (PeerFault, trio.TooSlowError) as fault:
            self.log.info("claim %s: its schedd has gone: %s", waiting.claim_id.public, fault)
            if granted is not None:
                self.claims.handle(granted, events.Released())

    async def _watch_peer(self, waiting: Waiting, stream: CedarStream) -> None:
        """It has nothing more to say."""
        try:
            await stream.get()
        except PeerFault:
            self.log.info("claim %s: its schedd has gone", waiting.claim_id.public)
        self.withdraw(waiting)

    def withdraw(self, waiting: Waiting) -> None:
        """The claim does not wait any more; the job that was retired for it goes on. Too late where it has the slot."""
        if waiting.done.is_set():
            return
        held = next((each for each in self.claims.slots.held.values() if each.waiting is waiting), None)
        waiting.end(None)
        if held is not None:
            held.waiting = None
            self.claims.handle(held, events.Unretire(events.Cause.WANTED))

    def waits_with(self, session_id: str) -> Waiting | None:
        """The claim that waits with this id."""
        waits = (held.waiting for held in self.claims.slots.held.values() if held.waiting)
        return next((each for each in waits if each.claim_id.session_id == session_id), None)
