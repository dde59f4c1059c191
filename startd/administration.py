"""Commands of administrators that arrive at the startd's port (wire reference 3.9): vacate, drain, off, reconfig.

They come on the session of a capability that the pool's collector hands to its administrators alone, or from the
pilot's own account. Acting code; what draining means for a claim is ``startd.drain``'s.
"""

from __future__ import annotations

import itertools
import logging
import secrets
import signal
import time
from collections.abc import Callable
from enum import Enum
from functools import partial

import attrs
import trio
from classad2 import ClassAd

from cedar.claims import ClaimId
from cedar.classads import evaluate, get_str, parse_expression, set_str
from cedar.commands import VERSION, Command, condor_version_text
from cedar.errors import PeerFault
from cedar.server import Request, Served
from startd import drain
from startd.claims import Claims
from startd.deadline import Handler, within_deadline
from startd.drain import CannotDrain, Drain, HowFast, Refusal, Then
from startd.held import Held

LEVEL = "ADMINISTRATOR"
# Who uses the capability, in logs.
IDENTITY = "collector-side@matchsession"
# A capability is made anew with an update, if the last one is older than this, and is good for CAPABILITY_S.
RENEW_AFTER_S, CAPABILITY_S = 30.0, 1800.0
CAPABILITY = "_condor_PrivRemoteAdminCapability"
_SECRET_BYTES = 32
# As condor_off names us, when it means to speak to our master.
_SUBSYSTEM = "startd"


class Manner(Enum):
    """How a later graceful end is meant: condor_off -peaceful and -force-graceful say it before the master's signal."""

    GRACEFUL = "graceful"
    PEACEFUL = "peaceful"
    FORCE = "force"


@attrs.define
class Administration:
    """Handlers of one startd.

    ads gives the ads of all slots; shut_down (reason, whether fast, whether we may be started again) and reconfigure
    begin what they say; draining goes on in ``nursery``.
    """

    claims: Claims
    ads: Callable[[], list[ClassAd]]
    shut_down: Callable[[str, bool, bool], None]
    reconfigure: Callable[[], None]
    nursery: trio.Nursery
    log: logging.LoggerAdapter[logging.Logger]
    manner: Manner = Manner.GRACEFUL
    _capability: ClaimId | None = None
    _minted_s: float = 0.0
    _numbers: itertools.count[int] = attrs.field(factory=lambda: itertools.count(1))

    def table(self) -> dict[int, Served]:
        """What is served, all at one level."""
        handlers = self._with_payload() | {Command.RAISESIGNAL: self.signal}
        handlers |= {command: _proven(handle) for command, handle in self._without_payload().items()}
        return {command: Served(LEVEL, within_deadline(self._noted(handle))) for command, handle in handlers.items()}

    def _noted(self, handle: Handler) -> Handler:
        """A capability that was used is spent for what has no payload: the collector gets another one at once."""

        async def noted(request: Request) -> None:
            if self._capability is not None and request.session.sid == self._capability.session_id:
                self._capability = None
                self.claims.changed()
            await handle(request)

        return noted

    def _with_payload(self) -> dict[int, Handler]:
        """What the capability is good for: the payload is the proof that its key is there."""
        return {
            Command.VACATE_CLAIM: partial(self.vacate, how_fast=HowFast.QUICK),
            Command.VACATE_CLAIM_FAST: partial(self.vacate, how_fast=HowFast.FAST),
            Command.DRAIN_JOBS: self.drain,
            Command.CANCEL_DRAIN_JOBS: self.cancel,
            Command.DAEMON_OFF: partial(self.off_by_name, fast=False),
            Command.DAEMON_OFF_FAST: partial(self.off_by_name, fast=True),
            Command.DAEMON_OFF_PEACEFUL: partial(self.off_by_name, fast=False, manner=Manner.PEACEFUL),
        }

    def _without_payload(self) -> dict[int, Handler]:
        """Nothing follows the handshake, so these take somebody who has shown in it who he is; or a capability whose id
        nobody can have seen yet."""
        return {
            Command.VACATE_ALL_CLAIMS: partial(self.vacate_all, how_fast=HowFast.QUICK),
            Command.VACATE_ALL_FAST: partial(self.vacate_all, how_fast=HowFast.FAST),
            Command.OFF_GRACEFUL: partial(self.off, fast=False),
            Command.OFF_FAST: partial(self.off, fast=True),
            Command.OFF_PEACEFUL: partial(self.off, fast=False, manner=Manner.PEACEFUL),
            Command.OFF_FORCE: partial(self.off, fast=False, manner=Manner.FORCE),
            Command.SET_PEACEFUL_SHUTDOWN: partial(self.mean, manner=Manner.PEACEFUL),
            Command.SET_FORCE_SHUTDOWN: partial(self.mean, manner=Manner.FORCE),
            Command.RECONFIG: self.reconfig,
            Command.RECONFIG_FULL: self.reconfig,
        }

    def capability(self) -> str:
        """The text for the collector (2.6, 3.9). Its session is known before anybody can have it."""
        now_s = trio.current_time()
        if self._capability is None or now_s - self._minted_s > RENEW_AFTER_S:
            slots = self.claims.slots
            once = frozenset(map(int, self._without_payload()))
            numbers = sorted(once.union(map(int, self._with_payload())))
            commands = ",".join(map(str, numbers))
            info = (
                '[Encryption="YES";Integrity="YES";CryptoMethods="AES";'
                f'ShortVersion="{VERSION}";ValidCommands="{commands}";]'
            )
            sid = f"admin_{slots.address}#{secrets.token_hex(_SECRET_BYTES)}#{next(self._numbers)}"
            minted = ClaimId.from_parts(sid, info, secrets.token_hex(_SECRET_BYTES))
            session = minted.session(IDENTITY, commands=frozenset(numbers))
            session.level, session.expires_s, session.once = LEVEL, now_s + CAPABILITY_S, once
            slots.sessions.add(session)
            self._capability, self._minted_s = minted, now_s
        return self._capability.text

    # --- vacate --------------------------------------------------------------------------------------------------

    async def vacate(self, request: Request, *, how_fast: HowFast) -> None:
        """One slot by its name; a partitionable slot stands for all that was carved of it. No answer."""
        name = (await request.stream.get()).string()
        slots = self.claims.slots
        wanted = [held for held in slots.held.values() if name in (held.name, held.parent.name)]
        self.log.info("%s wants %s vacated: %d claims", request.identity, name[:200], len(wanted))
        self._end(wanted, how_fast)

    async def vacate_all(self, request: Request, *, how_fast: HowFast) -> None:
        """Every claim. No payload, no answer."""
        self.log.info("%s wants every claim vacated", request.identity)
        self._end(list(self.claims.slots.held.values()), how_fast)

    def _end(self, wanted: list[Held], how_fast: HowFast) -> None:
        for held in wanted:
            self.claims.handle(held, drain.event(how_fast, "vacated by an administrator", 0.0, drain.CODE_VACATED))

    # --- drain ---------------------------------------------------------------------------------------------------

    async def drain(self, request: Request) -> None:
        """No new job from now on; answered at once, carried out beside."""
        ad = (await request.stream.get()).ad()
        answer = _answer()
        try:
            asked = self._begin(ad)
        except CannotDrain as refusal:
            self.log.info("%s may not drain: %s", request.identity, refusal)
            _refuse(answer, refusal)
        else:
            self.log.info("%s drains (%s): %s", request.identity, asked.how_fast.name.lower(), asked.reason)
            answer["Result"] = True
            set_str(answer, "RequestID", asked.request_id)
        await request.stream.put(answer)

    def _begin(self, ad: ClassAd) -> Drain:
        claims = self.claims
        if claims.drain is not None or claims.draining:
            raise CannotDrain(Refusal.ALREADY_DRAINING, "the startd is draining already")
        default_start = claims.settings.default_draining_start_expr or ""
        asked = drain.parse(ad, f"{int(time.time())}.{next(self._numbers)}", default_start)
        self._check(asked)
        claims.drain = asked
        for held in list(claims.slots.held.values()):
            held.filler = False  # whatever it was in a drain that was called off
            left_s = claims.retirement_left_s(held)
            claims.handle(held, drain.event(asked.how_fast, f"the slot is drained: {asked.reason}", left_s))
        claims.changed()
        self.nursery.start_soon(self._see_end, asked)
        return asked

    def _check(self, asked: Drain) -> None:
        """CheckExpr must hold for every slot, else nothing is done."""
        if not asked.check:
            return
        for ad in self.ads():
            ad["DrainCheck"] = parse_expression(asked.check)
            if evaluate(ad, "DrainCheck") is not True:
                name = get_str(ad, "Name", "a slot")
                raise CannotDrain(Refusal.CHECK_FAILED, f"{asked.check[:200]} does not hold for {name}")

    async def _see_end(self, asked: Drain) -> None:
        claims = self.claims
        while claims.before_drain() and claims.drain is asked:
            await claims.wait_change()
        if claims.drain is asked and asked.start:
            self._end_fillers(asked)
        while claims.slots.held and claims.drain is asked:
            await claims.wait_change()
        if claims.drain is not asked:
            return
        self.log.info("drained: %s", asked.reason)
        match asked.then:
            case Then.NOTHING:
                claims.changed()
            case Then.RESUME:
                self._resume()
            case Then.RECONFIGURE:
                self.reconfigure()
                self._resume()
            case Then.EXIT | Then.RESTART:  # the one who started us starts us again, if anybody does
                self.shut_down(f"drained: {asked.reason}", False, asked.then is Then.RESTART)

    def _end_fillers(self, asked: Drain) -> None:
        """Who was to be waited for has gone, and with them the time to fill: its jobs have no more of it than their
        vacate time."""
        self.log.info("drained, but for jobs that filled the time: %d", len(self.claims.slots.held))
        for held in list(self.claims.slots.held.values()):
            self.claims.handle(held, drain.event(HowFast.QUICK, f"the slot is drained: {asked.reason}", 0.0))
        self.claims.changed()

    async def cancel(self, request: Request) -> None:
        """CANCEL_DRAIN_JOBS: jobs that had their retirement time go on."""
        ad = (await request.stream.get()).ad()
        wanted, answer = get_str(ad, "RequestID", ""), _answer()
        now = self.claims.drain
        if now is None or wanted not in ("", now.request_id):
            _refuse(answer, CannotDrain(Refusal.NO_SUCH_REQUEST, "no such drain request"))
        else:
            self.log.info("%s calls draining off", request.identity)
            self._resume()
            answer["Result"] = True
        await request.stream.put(answer)

    def _resume(self) -> None:
        self.claims.drain = None
        self.claims.unretire_all()

    # --- the startd itself ---------------------------------------------------------------------------------------

    async def off(self, request: Request, *, fast: bool, manner: Manner = Manner.GRACEFUL) -> None:
        """condor_restart -startd, condor_off -addr. No payload, no answer."""
        if manner is not Manner.GRACEFUL:
            self.manner = manner
        self.shut_down(f"{request.identity} ends the startd", fast, True)

    async def off_by_name(self, request: Request, *, fast: bool, manner: Manner = Manner.GRACEFUL) -> None:
        """condor_off -startd -addr: what a master would be told, which has to say whom it means. No answer.

        Raises:
            PeerFault: another daemon is meant. Nothing is done.
        """
        name = (await request.stream.get()).string()
        if name.lower() != _SUBSYSTEM:
            raise PeerFault("subsystem", f"{name[:40]!a} is to be ended, but this is a startd, and no master")
        await self.off(request, fast=fast, manner=manner)

    async def mean(self, request: Request, *, manner: Manner) -> None:
        """What the next graceful end is to be. No payload, no answer."""
        self.log.info("%s wants the next shutdown to be %s", request.identity, manner.value)
        self.manner = manner

    async def signal(self, request: Request) -> None:
        """A master's signal as a message, where it may not or cannot send the signal itself. No answer."""
        number = (await request.stream.get()).int()
        reason = f"signal {number} from {request.identity}"
        if number == signal.SIGHUP:
            self.reconfigure()
        elif number in (signal.SIGTERM, signal.SIGQUIT):
            self.shut_down(reason, number == signal.SIGQUIT, True)
        else:
            self.log.info("%s means nothing here", reason)

    async def reconfig(self, request: Request) -> None:
        """condor_reconfig. No payload, no answer."""
        self.log.info("%s wants the settings read again", request.identity)
        self.reconfigure()


def _proven(handle: Handler) -> Handler:
    async def proven(request: Request) -> None:
        if not request.fresh:  # a session's id is no secret, only its key is
            raise PeerFault("proof", f"command {request.command} has no payload, and comes on a resumed session")
        await handle(request)

    return proven


def _answer() -> ClassAd:
    ad = ClassAd()
    ad["CondorVersion"] = condor_version_text()
    return ad


def _refuse(ad: ClassAd, refusal: CannotDrain) -> None:
    ad["Result"], ad["ErrorCode"] = False, refusal.refusal.value
    set_str(ad, "ErrorString", str(refusal))
