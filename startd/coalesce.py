"""COALESCE_SLOTS (condor_now): several idle claims of one schedd become one, for a job that fits into none of them.

The schedd has ended the jobs of these claims, and names the claims with their secrets. Everything is checked before
anything ends; a refused request leaves each claim as it was.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable
from functools import reduce
from operator import add

import attrs
from classad2 import ClassAd

from cedar.agentreply import FAILURE, INVALID_REQUEST, INVALID_STATE, SUCCESS
from cedar.claims import ClaimId
from cedar.classads import get_str, set_str
from cedar.errors import PeerFault
from cedar.server import Request
from startd import policy
from startd.claim import State, WrongState
from startd.claimevents import Released
from startd.claims import Claims
from startd.held import Held, Slot, Slots
from startd.resources import DoesNotFit, Resources
from startd.roommaking import part_with

# More claims than a machine has cores make no sense.
MAX_CLAIMS = 1024


class Separate(Exception):
    """The claims stay what they are; ``result`` for the answer's Result."""

    def __init__(self, result: str, text: str) -> None:
        super().__init__(text)
        self.result = result


def named(texts: str, slots: Slots) -> list[Held]:
    """The claims of a ClaimIdList, each once.

    Raises:
        Separate: one of them cannot go into a common slot, or not yet.
        PeerFault: too many, or what is no claim id.
    """
    ids = dict.fromkeys(text.strip() for text in texts.split(",") if text.strip())
    if not 0 < len(ids) <= MAX_CLAIMS:
        raise PeerFault("limit", f"a list of {len(ids)} claims to be put together; 1 to {MAX_CLAIMS} are allowed")
    found = [_held(text, slots) for text in ids]
    if len({id(held.parent) for held in found}) > 1:
        raise Separate(INVALID_REQUEST, "all slots must be parts of the same one")
    for held in found:
        _check(held)
    return found


def _held(text: str, slots: Slots) -> Held:
    presented = ClaimId.parse(text)
    held = slots.held.get(presented.session_id)
    if held is None or not hmac.compare_digest(held.claim_id.text.encode(), text.encode()):
        raise Separate(INVALID_REQUEST, "no slot has this claim")
    return held


def _check(held: Held) -> None:
    if held.dynamic_id is None:
        raise Separate(INVALID_REQUEST, f"{held.name} is not dynamic")
    if held.waiting is not None or held.when_gone is not None:
        raise Separate(INVALID_REQUEST, f"{held.name} goes to another claim already")
    if held.life.state is State.GONE or held.life.state is State.CLOSING:
        raise Separate(INVALID_REQUEST, f"the claim of {held.name} ends")
    if held.life.state is not State.IDLE:
        # The schedd tries again for some seconds: a starter ends a little later than its job.
        raise Separate(INVALID_STATE, f"{held.name} is not idle yet")


@attrs.frozen
class Coalescing:
    """``held_ad`` and ``own_ad`` give ads of slots; ``part_of`` what a job gets of one, or raises DoesNotFit."""

    claims: Claims
    held_ad: Callable[[Held], ClassAd]
    own_ad: Callable[[Slot], ClassAd]
    part_of: Callable[[Slot, ClassAd], Resources]
    log: logging.LoggerAdapter[logging.Logger]

    async def serve(self, request: Request) -> None:
        """Two ads in: the claims, and the job that they are for. Two ads out: the result, and the new slot's."""
        reader = await request.stream.get()
        asked, job = reader.ad(), reader.ad()
        answer, slot = ClassAd(), ClassAd()
        try:
            made = self._join(named(get_str(asked, "ClaimIdList"), self.claims.slots), job, request.session.sid)
        except Separate as refusal:
            self.log.info("claims are not put together: %s", refusal)
            answer["Result"] = refusal.result
            set_str(answer, "ErrorString", str(refusal))
        else:
            answer["Result"], answer["ClaimId"] = SUCCESS, made.claim_id.text
            slot = self.held_ad(made)
        await request.stream.put(answer, slot)

    def _join(self, going: list[Held], job: ClassAd, sid: str) -> Held:
        """The one claim in place of the others, for the job's user.

        Raises:
            Separate: nothing has changed.
        """
        first = next((held for held in going if held.claim_id.session_id == sid), None)
        if first is None:  # the list's secrets alone would do, but nobody else has a reason to know them
            raise Separate(INVALID_REQUEST, "the connection is not of one of these claims")
        if not self.claims.takes_jobs:
            raise Separate(INVALID_REQUEST, "the slot takes no claims now")
        parent = first.parent
        try:
            wanted = part_with(parent, job, reduce(add, (held.resources for held in going)), self.own_ad, self.part_of)
        except (DoesNotFit, WrongState) as refusal:
            raise Separate(FAILURE, str(refusal)) from refusal
        requester = attrs.evolve(first.requester, user=get_str(job, "User", first.requester.user))
        fresh = self.claims.slots.mint()  # the slot's own id may be on its way to somebody else by now
        names = ", ".join(held.name for held in going)
        for held in going:
            self.claims.handle(held, Released())
        made = self.claims.carve(parent, wanted, requester, fresh)
        made.rank = policy.rank(self.held_ad(made), job)
        self.log.info("%s is made of %s", made.name, names)
        return made
