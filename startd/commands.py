"""The commands that arrive at the startd's one port (wire reference 3.4 to 3.10): read, ask the claim, answer.

Whoever comes on a claim's session knows its secret. The claim id in the payload must be the session's own.
"""

from __future__ import annotations

import hmac
import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import cast

import attrs
import trio
from classad2 import ClassAd

from cedar.classads import get_bool, get_int, get_real, get_str, set_str, wanted
from cedar.codec import Item, Reader
from cedar.commands import ActivationRefusal, ClaimReply, Command, Reply
from cedar.errors import PeerFault
from cedar.server import Request, Served
from cedar.sinful import Sinful
from cedar.stream import CedarStream
from startd import policy
from startd.claim import State, WrongState
from startd.claimagent import ClaimAgent
from startd.claimevents import Continue, Deactivated, How, Released, Suspend
from startd.claims import Claims
from startd.coalesce import Coalescing
from startd.deadline import Handler, within_deadline
from startd.held import Held, Requester, Slot
from startd.jobcommands import JobCommands, check_claim_id
from startd.openslot import ArmMatch, ClaimMade, Matched, MatchTimer
from startd.preemption import Preemption
from startd.proxykeys import ProxyKeys
from startd.resources import DoesNotFit, Resources, Rounding, requested
from startd.roommaking import RoomMaking
from startd.slotads import DAEMON, SLOT
from starter.messages import Activation, LastWordHeard

# JobLeaseDuration where the job has none (wire reference 3.4: 2400 s by the submit side, else 6 alive intervals).
DEFAULT_ALIVE_INTERVAL_S = 300
# More dynamic slots from one request than a machine has cores make no sense.
MAX_SLOTS_A_REQUEST = 1024
# DEACTIVATE_JOB_DONE waits for the starter's end; after this the answer says that it is still cleaning (3.7).
JOB_DONE_WITHIN_S = 10.0
# The next activation may overtake the end of the starter before it by some milliseconds: it waits for so long.
# To be told to try again costs a shadow a whole second; it waits 20 s for an answer.
STARTER_ENDS_WITHIN_S = 3.0
# The longest lease that a peer may ask for: a claim must not live for ever.
MAX_LEASE_S = 7 * 86_400

# A stranger's question to a thousand slots: a simple one takes milliseconds.
QUERY_S = 2.0
# What answers a request late.
Later = Callable[[CedarStream], Awaitable[None]]

_HOW: Mapping[Command, How] = {
    Command.DEACTIVATE_CLAIM: "graceful",
    Command.DEACTIVATE_CLAIM_FORCIBLY: "fast",
    Command.DEACTIVATE_FINAL_XFER: "final-transfer",
}


# condor_ping asks whether it may call these; they do nothing.
_PINGS = {
    Command.NOP: "READ",
    Command.NOP_READ: "READ",
    Command.NOP_WRITE: "WRITE",
    Command.NOP_ADMINISTRATOR: "ADMINISTRATOR",
    Command.NOP_DAEMON: "DAEMON",
}


@attrs.frozen
class Commands:
    """Handlers of one startd. ``slot_ads`` gives all public ads of slots, ``daemon_ad`` the startd's, ``own_ad`` and
    ``held_ad`` one."""

    claims: Claims
    procd_socket: str
    slot_ads: Callable[[], list[ClassAd]]
    daemon_ad: Callable[[], ClassAd]
    own_ad: Callable[[Slot], ClassAd]
    held_ad: Callable[[Held], ClassAd]
    agent: ClaimAgent
    log: logging.LoggerAdapter[logging.Logger]
    proxy_keys: ProxyKeys = attrs.field(factory=lambda: ProxyKeys(wanted=False))
    plugins: Mapping[str, str] = attrs.field(factory=dict)

    @property
    def _preemption(self) -> Preemption:
        return Preemption(self.claims, self.held_ad, self.log)

    @property
    def _room_making(self) -> RoomMaking:
        return RoomMaking(self.claims, self.held_ad, self.own_ad, self._part_of, self._claim_answer, self.log)

    @property
    def _coalescing(self) -> Coalescing:
        return Coalescing(self.claims, self.held_ad, self.own_ad, self._part_of, self.log)

    def table(self) -> dict[int, Served]:
        """What is served at which level. A proxy pushed as a copy (487) is refused at the resume, before it is sent, so
        that no user's key reaches us; one that is delegated (500) is the starter's (wire reference 7.7, T46)."""

        def daemon(handle: Handler) -> Served:
            return Served("DAEMON", within_deadline(handle))

        job = JobCommands(self.claims, trio.current_time, self.log, self.agent)
        return {
            Command.REQUEST_CLAIM: Served("DAEMON", self.request_claim),
            Command.MATCH_INFO: Served("READ", within_deadline(self.match_info)),
            Command.ACTIVATE_CLAIM: daemon(self.activate_claim),
            Command.ALIVE: daemon(self.alive),
            Command.RELEASE_CLAIM: daemon(self.release_claim),
            Command.SUSPEND_CLAIM: daemon(partial(self.suspend, event=Suspend())),
            Command.CONTINUE_CLAIM: daemon(partial(self.suspend, event=Continue())),
            Command.DEACTIVATE_CLAIM_JOB_DONE: daemon(self.job_done),
            Command.COALESCE_SLOTS: daemon(self._coalescing.serve),
            Command.REACTIVATE_CLAIM_CHECK: daemon(self.reactivate_check),
            **{command: daemon(partial(self.deactivate, how=how)) for command, how in _HOW.items()},
            **{command: daemon(handle) for command, handle in job.on_claim().items()},
            # A level that nobody without a session gets; a claim's session has it, and is not admitted.
            **{
                command: Served("DAEMON", within_deadline(handle), job.admits)
                for command, handle in job.on_owner().items()
            },
            Command.DELEGATE_GSI_CRED_STARTER: Served("DAEMON", within_deadline(job.pass_renewal), job.runs),
            Command.UPDATE_GSI_CRED: Served("DAEMON", within_deadline(job.pass_renewal), job.refuse_copy),
            **self.agent.table(),
            Command.QUERY_STARTD_ADS: Served("READ", within_deadline(self.query)),
            **{command: Served(level, _nothing) for command, level in _PINGS.items()},
        }

    # --- REQUEST_CLAIM -------------------------------------------------------------------------------------------

    async def request_claim(self, request: Request) -> None:
        """Carve and answer with leftovers; [0] is the whole answer to what cannot be. For a slot that has a claim the
        answer may come late."""
        late: list[Later] = []

        async def at_once(request: Request) -> None:
            late.extend(await self._answer_request(request))

        await within_deadline(at_once)(request)
        for see in late:
            await see(request.stream)

    async def _answer_request(self, request: Request) -> list[Later]:
        """What answers it, if that takes time."""
        reader = await request.stream.get()
        _own_claim_id(reader, request)
        ad, address, alive_s = reader.ad(), reader.string(), reader.int()
        others = _claims_to_end(reader)
        slots = self.claims.slots
        slot, held = slots.presented(request.session.sid), slots.taken_over_with(request.session.sid)
        if slot is not None:
            slot.tell(ClaimMade())
        try:
            self._check_request(ad)
            requester = _requester(ad, address, alive_s)
            if held is not None:
                return [partial(self._preemption.see, self._preemption.begin(held, ad, requester))]
            if slot is None:
                raise WrongState("the claim id is used up", try_again=False)
            if others:
                return [partial(self._room_making.see, self._room_making.begin(slot, ad, requester, others))]
            answer = self._claim_answer(slot, ad, self._carve(slot, ad, requester))
        except (DoesNotFit, WrongState) as refusal:
            self.log.info("claim request refused: %s", refusal)
            answer = [int(Reply.NOT_OK)]
        await request.stream.put(*answer)
        return []

    def _check_request(self, ad: ClassAd) -> None:
        """A kind of requests that is not served: for slots to be lent."""
        if get_bool(ad, "_condor_CLAIM_PARTITIONABLE_SLOT", False) or "WorkingCM" in ad:
            raise WrongState("no slot is lent to another pool", try_again=False)
        if not (self.claims.takes_jobs or self.claims.drain_start):
            raise WrongState("the slot takes no claims now", try_again=False)

    def _carve(self, slot: Slot, ad: ClassAd, requester: Requester) -> list[Held]:
        """A static slot as it is; of a partitionable one as many dynamic slots as asked for and possible, at least
        one."""
        claims = self.claims
        if refusal := policy.refusal(self.own_ad(slot), ad):
            raise DoesNotFit(refusal)
        if not slot.partitionable:
            return [self._ranked(claims.carve(slot, slot.free, requester), ad)]
        wanted = max(1, min(get_int(ad, "_condor_NUM_DYNAMIC_SLOTS", 1), MAX_SLOTS_A_REQUEST))
        carved = [self._ranked(claims.carve(slot, self._part_of(slot, ad), requester), ad)]
        while len(carved) < wanted:
            try:
                carved.append(self._ranked(claims.carve(slot, self._part_of(slot, ad), requester), ad))
            except DoesNotFit:
                break
        return carved

    def _ranked(self, held: Held, ad: ClassAd) -> Held:
        held.rank = policy.rank(self.held_ad(held), ad)
        return held

    def _part_of(self, slot: Slot, ad: ClassAd) -> Resources:
        settings = self.claims.settings
        rounding = Rounding(
            settings.modify_request_expr_requestcpus,
            settings.modify_request_expr_requestmemory,
            settings.modify_request_expr_requestdisk,
            settings.must_modify_request_exprs,
        )
        return requested(ad, self.own_ad(slot), slot.free, rounding)

    def _claim_answer(self, slot: Slot, ad: ClassAd, carved: list[Held]) -> list[Item]:
        items: list[Item] = []
        if get_bool(ad, "_condor_SEND_CLAIMED_AD", False):
            for held in carved:
                items += [int(ClaimReply.SLOT_AD), held.claim_id.text, self.held_ad(held)]
        if not slot.partitionable or not get_bool(ad, "_condor_SEND_LEFTOVERS", False):
            return [*items, int(Reply.OK)]
        leftovers = self.own_ad(slot)
        set_str(leftovers, "LastSlotName", carved[-1].name)
        secure = get_bool(ad, "_condor_SECURE_CLAIM_ID", False)
        code = ClaimReply.LEFTOVERS_2 if secure else ClaimReply.LEFTOVERS
        return [*items, int(code), slot.current.text, leftovers]

    async def match_info(self, request: Request) -> None:
        """The negotiator tells of a match; that it knows the claim id says enough of who it is. No answer."""
        told = (await request.stream.get()).string().encode("utf-8", "surrogateescape")
        slots = self.claims.slots
        own = [slot for slot in slots.own if not slot.claimed_whole]
        slot = next((slot for slot in own if hmac.compare_digest(told, slot.current.text.encode())), None)
        if slot is None:
            if not any(hmac.compare_digest(told, held.claim_id.text.encode()) for held in slots.held.values()):
                raise PeerFault("claim", f"{request.identity} tells of a match with a claim id that no free slot has")
            self.log.info("%s tells of a match that is a claim already", request.identity)  # the schedd was faster
            return
        for command in slot.tell(Matched()):
            self.log.info("%s is matched (rule o%d)", slot.name, slot.open.number)
            self.claims.nursery.start_soon(self._see_match_over, slot, command)
        self._slot_changed()

    async def _see_match_over(self, slot: Slot, command: ArmMatch) -> None:
        await trio.sleep(self.claims.settings.match_timeout)
        slot.tell(MatchTimer(command.serial))
        self._slot_changed()

    def _slot_changed(self) -> None:
        self.claims.look_again()
        self.claims.changed()

    # --- ACTIVATE_CLAIM ------------------------------------------------------------------------------------------

    async def activate_claim(self, request: Request) -> None:
        """[1]: this connection is the starter's syscall socket from now on."""
        reader = await request.stream.get()
        _own_claim_id(reader, request)
        reader.int()
        ad = reader.ad()
        held = self.claims.find(request.session.sid)
        if held is not None and held.life.state is State.VACATING:
            with trio.move_on_after(STARTER_ENDS_WITHIN_S):
                await held.wait_without_starter()
        refusal = self._refuse_activation(held, ad)
        if held is None or refusal is not None:
            await self._answer_refusal(request, ad, *(refusal or (ActivationRefusal.CLAIM_NOT_FOUND, "unknown claim")))
            return
        await request.stream.put(int(Reply.OK))
        # In HTCondor's words: scripts of glidein pools count these lines.
        self.log.info("%s: Got activate_claim request from shadow (%s)", held.name, request.stream.peer)
        self._ranked(held, ad)
        sock, state = request.stream.export()
        try:
            self.claims.new_activation(held, self._activation(held, ad, state), sock, _job_id(ad), _job_user(ad))
        except (WrongState, OSError) as fault:
            # Changed in the moment of the answer, or no descriptor to be had: the shadow sees its socket end, and tries
            # again.
            sock.close()
            self.log.warning("activation of %s came too late: %s", held.name, fault)

    def _refuse_activation(self, held: Held | None, ad: ClassAd) -> tuple[ActivationRefusal, str] | None:
        if held is None:
            return ActivationRefusal.CLAIM_NOT_FOUND, "no such claim"
        held.heard_s = trio.current_time()
        if held.life.state is not State.IDLE:
            return ActivationRefusal.STILL_CLEANING, f"the claim is {held.life.state.value}"
        if not (self.claims.takes_jobs or self.claims.drain_start):
            return ActivationRefusal.PREEMPTED, self.claims.retiring or "the pilot shuts down"
        if refusal := policy.refusal(self.held_ad(held), ad):
            return ActivationRefusal.NO_MATCH, f"{refusal} now"
        return None

    async def _answer_refusal(self, request: Request, ad: ClassAd, code: ActivationRefusal, text: str) -> None:
        """2 where it passes by itself (the last starter is still there), else 0; with the reason if asked for."""
        self.log.info("activation refused: %s", text)
        passing = code is ActivationRefusal.STILL_CLEANING
        items: list[Item] = [int(Reply.TRY_AGAIN if passing else Reply.NOT_OK)]
        if get_bool(ad, "_condor_send_activation_failure_ad", False):
            reason = ClassAd()
            set_str(reason, "VacateReason", text)
            reason["VacateReasonCode"] = int(code)
            items.append(reason)
        await request.stream.put(*items)

    def _activation(self, held: Held, ad: ClassAd, state: dict[str, object]) -> Activation:
        return Activation(
            slot=held.name,
            claim_id=held.claim_id.text,
            slot_ad=str(self.held_ad(held)),
            job_ad=str(ad),
            stream_state=state,
            startd_address=self.claims.slots.address,
            cpus=held.resources.cpus,
            memory_mb=held.resources.memory_mb,
            disk_kb=held.resources.disk_kb,
            vacate_max_s=self.claims.settings.machinemaxvacatetime,
            procd_socket=self.procd_socket,
            proxy_keys=self.proxy_keys.take(),
            cores=held.cores,
            plugins=tuple(self.plugins.items()),
        )

    # --- the rest of a claim's life ------------------------------------------------------------------------------

    async def deactivate(self, request: Request, *, how: How) -> None:
        """Answered at once; only then the starter is told: the shadow blocks in this call (T9)."""
        held = await self._claim_of(request)
        keep = held is not None and self.claims.takes_another(held)
        await request.stream.put(_start_ad(keep))
        if held is not None and held.life.state is not State.GONE:
            self.claims.handle(held, Deactivated(how, worklife_over=not keep))

    async def job_done(self, request: Request) -> None:
        """413: the starter has had its last word, and is told so; wait until it is reaped."""
        held = await self._claim_of(request)
        if held is None:
            await request.stream.put(_start_ad(False))
            return
        self.claims.tell(held, LastWordHeard())
        with trio.move_on_after(JOB_DONE_WITHIN_S) as scope:
            await held.wait_without_starter()
        keep = held.life.state is not State.GONE and self.claims.takes_another(held)
        answer = _start_ad(keep)
        if scope.cancelled_caught:
            answer["StillCleaning"] = True
        await request.stream.put(answer)
        if not keep and held.life.state is not State.GONE:
            self.claims.handle(held, Deactivated("fast", worklife_over=True))

    async def reactivate_check(self, request: Request) -> None:
        """554 only asks."""
        held = await self._claim_of(request)
        await request.stream.put(_start_ad(held is not None and self.claims.takes_another(held)))

    async def release_claim(self, request: Request) -> None:
        held = await self._claim_of(request)
        waiting = self._preemption.waits_with(request.session.sid)
        if held is not None:
            self.claims.handle(held, Released())
        elif waiting is not None:
            self._preemption.withdraw(waiting)
        elif (room := self._room_making.waits_with(request.session.sid)) is not None:
            self._room_making.withdraw(room)

    async def alive(self, request: Request) -> None:
        """Renews the lease; no answer."""
        await self._claim_of(request)

    async def suspend(self, request: Request, *, event: Suspend | Continue) -> None:
        """No answer; the starter's next update confirms it."""
        held = await self._claim_of(request)
        if held is not None:
            try:
                self.claims.handle(held, event)
            except WrongState as fault:
                self.log.info("%s: %s", held.name, fault)

    async def _claim_of(self, request: Request) -> Held | None:
        """The claim of a message that is only a claim id; None if it is over."""
        reader = await request.stream.get()
        _own_claim_id(reader, request)
        held = self.claims.find(request.session.sid)
        if held is not None:
            held.heard_s = trio.current_time()
        return held

    # --- queries -------------------------------------------------------------------------------------------------

    async def query(self, request: Request) -> None:
        """QUERY_STARTD_ADS: (1, ad)*, 0 in one message."""
        query = (await request.stream.get()).ad()
        items: list[Item] = []
        until_s = trio.current_time() + QUERY_S
        kinds = [kind.strip() for kind in get_str(query, "TargetType", SLOT).split(",")]
        for ad in [*([self.daemon_ad()] if DAEMON in kinds else []), *(self.slot_ads() if kinds != [DAEMON] else [])]:
            if trio.current_time() > until_s:
                raise PeerFault("limit", f"a query took more than {QUERY_S:g} s")
            if wanted(query, ad):
                items += [1, ad]
            await trio.lowlevel.checkpoint()
        await request.stream.put(*items, 0)


async def _nothing(_request: Request) -> None:
    await trio.lowlevel.checkpoint()


def _own_claim_id(reader: Reader, request: Request) -> None:
    """The claim id of the payload must belong to the session that the message came on.

    Raises:
        PeerFault: it does not.
    """
    check_claim_id(reader.string(), request.session)


def _claims_to_end(reader: Reader) -> list[str]:
    """The ids of claims that a request wants ended for it (ALLOW_PSLOT_PREEMPTION)."""
    number = reader.int() if reader.remaining() else 0
    if not 0 <= number <= MAX_SLOTS_A_REQUEST:
        raise PeerFault("limit", f"a request wants {number} claims ended")
    return [reader.string() for _ in range(number)]


def _requester(ad: ClassAd, address: str, alive_s: int) -> Requester:
    interval_s = float(alive_s if alive_s > 0 else DEFAULT_ALIVE_INTERVAL_S)
    lease_s = get_real(ad, "JobLeaseDuration", 6 * interval_s)
    if math.isnan(lease_s):  # a lease that compares with nothing would never be over
        raise PeerFault("classad", "the attribute JobLeaseDuration is not a number")
    return Requester(
        address=Sinful.parse(address) if address else None,
        user=_job_user(ad),
        lease_s=min(max(float(lease_s), 1.0), MAX_LEASE_S),
        alive_interval_s=interval_s,
    )


def _job_id(ad: ClassAd) -> str:
    return f"{get_int(ad, 'ClusterId', 0)}.{get_int(ad, 'ProcId', 0)}"


def _job_user(ad: ClassAd) -> str:
    return cast(str, get_str(ad, "User", get_str(ad, "Owner", "")))


def _start_ad(start: bool) -> ClassAd:
    ad = ClassAd()
    ad["Start"] = start
    return ad
