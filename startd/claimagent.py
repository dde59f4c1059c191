"""CA_CMD and CA_AUTH_CMD: the command with commands inside (wire reference 3.10), but for a shadow's own two.

On a claim's session (CA_CMD) whoever has its key commands that claim, as by the commands of the same names; the
claim id in the ad must be the session's own. Administrators (CA_AUTH_CMD) command the machine's ad, and claims whose
whole id they show. Computing on demand, which these commands were made for, is not offered: nothing starts here without
a shadow.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable

import attrs
import trio
from classad2 import ClassAd

from cedar.agentreply import (
    FAILURE,
    INVALID_REQUEST,
    INVALID_STATE,
    NOT_AUTHORIZED,
    SUCCESS,
    agent_reply,
)
from cedar.classads import get_str
from cedar.commands import Command
from cedar.server import Request, Served
from startd.claim import State, WrongState
from startd.claimevents import Continue, Deactivated, Released, Suspend
from startd.claims import Claims
from startd.deadline import within_deadline
from startd.held import Held
from startd.machineupdate import MachineUpdate, UpdateRefused

LEVEL = "ADMINISTRATOR"
# The answer tells that the job is over, if it is by then; a peer waits no longer than for other commands.
ENDS_WITHIN_S = 30.0
_ON_CLAIMS = frozenset({
    "CA_RELEASE_CLAIM", "CA_DEACTIVATE_CLAIM", "CA_SUSPEND_CLAIM", "CA_RESUME_CLAIM", "CA_RENEW_LEASE_FOR_CLAIM",
    "CA_ACTIVATE_CLAIM",
})  # fmt: skip
_OF_SHADOWS = frozenset({"CA_LOCATE_STARTER", "CA_RECONNECT_JOB"})


@attrs.frozen
class ClaimAgent:
    """Handlers of one startd. ``changed``: an ad is new."""

    claims: Claims
    update: MachineUpdate
    log: logging.LoggerAdapter[logging.Logger]
    changed: Callable[[], None] = lambda: None

    def table(self) -> dict[int, Served]:
        """What administrators have."""
        return {Command.CA_AUTH_CMD: Served(LEVEL, within_deadline(self.on_administrators))}

    async def on_claim(self, request: Request, ad: ClassAd, held: Held | None) -> None:
        """A command on the session of ``held``, which is None if that claim is over; ``ad`` names the session's own
        claim, or none."""
        command = get_str(ad, "Command", "")
        if command == "CA_UPDATE_MACHINE_AD":
            answer = agent_reply(NOT_AUTHORIZED, "a claim's owner may not change the machine's ad")
        else:
            answer = await self._answer(command, ad, held)
        await request.stream.put(answer)

    async def on_administrators(self, request: Request) -> None:
        ad = (await request.stream.get()).ad()
        command = get_str(ad, "Command", "")
        if command == "CA_UPDATE_MACHINE_AD":
            answer = self._update(request, ad)
        elif command in _OF_SHADOWS:
            answer = agent_reply(INVALID_REQUEST, f"{command} comes on its claim's session")
        else:
            answer = await self._answer(command, ad, self._claim_of(ad))
        await request.stream.put(answer)

    def _claim_of(self, ad: ClassAd) -> Held | None:
        """The claim whose whole id, secret and all, the ad has."""
        told = get_str(ad, "ClaimId", "").encode("utf-8", "surrogateescape")
        found = None
        for held in self.claims.slots.held.values():  # to the end: how long it takes tells nothing
            if hmac.compare_digest(told, held.claim_id.text.encode()):
                found = held
        return found

    def _update(self, request: Request, ad: ClassAd) -> ClassAd:
        try:
            number = self.update.take(ad, self.claims.slots.first.plan.resources.custom)
        except UpdateRefused as refusal:
            self.log.warning("%s may not update the machine's ad: %s", request.identity, refusal)
            return agent_reply(FAILURE, str(refusal))
        self.log.info("%s updates the machine's ad: %d attributes", request.identity, number)
        self.changed()
        return agent_reply(SUCCESS)

    async def _answer(self, command: str, ad: ClassAd, held: Held | None) -> ClassAd:
        if command == "CA_REQUEST_CLAIM":
            return _refuse_claim(ad)
        if command not in _ON_CLAIMS:
            text = f"Unknown command ({command[:40]!a}) in ClassAd" if command else "Command not specified in ClassAd"
            return agent_reply(INVALID_REQUEST, text)
        if not get_str(ad, "ClaimId", ""):
            return agent_reply(INVALID_REQUEST, f"No ClaimId in ClassAd of {command}")
        if held is None or held.life.state is State.GONE:
            return agent_reply(FAILURE, "ClaimId not found")
        try:
            fast = _is_fast(ad)
            held.heard_s = trio.current_time()
            return await self._command(command, held, fast=fast)
        except WrongState as refusal:
            return agent_reply(INVALID_STATE, f"{command}: {refusal}")
        except _BadVacateType as bad:
            return agent_reply(INVALID_REQUEST, str(bad))

    async def _command(self, command: str, held: Held, *, fast: bool) -> ClassAd:
        match command:
            case "CA_SUSPEND_CLAIM":
                self.claims.handle(held, Suspend())
            case "CA_RESUME_CLAIM":
                self.claims.handle(held, Continue())
            case "CA_RELEASE_CLAIM":
                self.claims.handle(held, Released() if fast else Deactivated("graceful", worklife_over=True))
                return await _until_over(held)
            case "CA_DEACTIVATE_CLAIM":
                if held.life.state is State.IDLE:
                    raise WrongState("Deactivated while the claim is idle", try_again=False)
                self.claims.handle(held, Deactivated("fast" if fast else "graceful", worklife_over=False))
                return await _until_over(held)
            case "CA_ACTIVATE_CLAIM":
                if held.life.state is not State.IDLE:
                    raise WrongState(f"Activate while the claim is {held.life.state.value}", try_again=False)
                return agent_reply(INVALID_REQUEST, "no job starts without a shadow: use ACTIVATE_CLAIM (444)")
        return agent_reply(SUCCESS)


class _BadVacateType(Exception):
    """Neither of the two ways in which a job is ended."""


def _is_fast(ad: ClassAd) -> bool:
    """VacateType; gracefully where nothing is said.

    Raises:
        _BadVacateType: it is another word.
    """
    how = get_str(ad, "VacateType", "graceful").lower()
    if how not in ("graceful", "fast"):
        raise _BadVacateType(f"VacateType {how[:40]!a} is neither GRACEFUL nor FAST")
    return how == "fast"


async def _until_over(held: Held) -> ClassAd:
    with trio.move_on_after(ENDS_WITHIN_S) as scope:
        await held.wait_without_starter()
    if scope.cancelled_caught:
        return agent_reply(FAILURE, f"the job is being ended, and has not after {ENDS_WITHIN_S:.0f} s")
    return agent_reply(SUCCESS)


def _refuse_claim(ad: ClassAd) -> ClassAd:
    """No claim is to be had this way; the words say why, as a stock startd's do."""
    kind = get_str(ad, "ClaimType", "")
    match kind.upper():
        case "":
            return agent_reply(INVALID_REQUEST, "No ClaimType in ClassAd")
        case "COD":
            return agent_reply(NOT_AUTHORIZED, "nobody is authorized for using COD at this machine")
        case "OPPORTUNISTIC":
            return agent_reply(INVALID_REQUEST, f"ClaimType ({kind}) not supported by this startd: use REQUEST_CLAIM")
        case _:
            return agent_reply(INVALID_REQUEST, f"Unrecognized ClaimType ({kind[:40]!a}) in request ClassAd")
