"""The claiming client: REQUEST, ACTIVATE, DEACTIVATE, RELEASE to startds; ALIVE and RELEASE from them.

It carries claim ids (secrets) and never logs more than their public form. Which job goes where, and what a lost claim
means for its job, is the scheduler's.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import trio
from attrs import define, field, frozen

from cedar import classads, delegation
from cedar.claims import EXECUTE_SIDE, ClaimId
from cedar.client import Resume, connect
from cedar.codec import Reader
from cedar.commands import ClaimReply, Command
from cedar.errors import PeerFault, Refused
from cedar.server import Request
from cedar.sessions import Session, SessionTable
from cedar.sinful import Sinful
from cedar.stream import CedarStream
from pool.ads import ClassAd, put, text_of, value_of
from pool.matching import Offer, StartdKey
from pool.shadow_state import Ending

# A startd that has to think longer than this is asked again with its next ad (stock waits 30 minutes, for evictions).
REQUEST_DEADLINE_S = 30.0
ACTIVATE_DEADLINE_S = 45.0  # the schedd's network time towards startds
DEACTIVATE_DEADLINE_S = 20.0
RELEASE_DEADLINE_S = 10.0
LOCATE_DEADLINE_S = 20.0
DELEGATE_DEADLINE_S = 30.0
# A last command may still be on its way (2.6).
SESSION_AFTERLIFE_S = 600.0
# From here on a startd knows DEACTIVATE_CLAIM_JOB_DONE (2.9).
JOB_DONE_SINCE = (24, 7, 0)

FROM_STARTD = frozenset({int(Command.ALIVE), int(Command.RELEASE_CLAIM)})


@define(eq=False)
class Claim:
    """A slot that is ours. `heard_s`: monotonic, when startd or starter last spoke. `lost`: why it is ours no more."""

    id: ClaimId
    slot: str
    startd: StartdKey
    address: Sinful
    ad: Any = field(repr=False)
    user: str
    heard_s: float
    out_of_touch: bool = False
    lost: str = ""
    on_lost: Callable[[str], None] | None = field(default=None, repr=False)

    def heard(self) -> None:
        self.heard_s = trio.current_time()

    def lose(self, why: str) -> None:
        """It is not ours any more; a run on it is told."""
        self.lost = why
        if self.on_lost is not None:
            self.on_lost(why)


@frozen
class Granted:
    """A yes to REQUEST_CLAIM: the slot that has the claim now, and the pslot's next id when something is left."""

    slot: Any
    left: Offer | None


@frozen
class Answer:
    """To ACTIVATE_CLAIM: code 1 comes with the syscall socket."""

    code: int
    reason: str
    stream: CedarStream | None


class ClaimClient:
    """All commands of claims, both ways. Sessions of claims live in the server's table."""

    def __init__(self, sessions: SessionTable, own_address: str, *, alive_interval_s: int) -> None:
        self._sessions = sessions
        self._own_address = own_address
        self._alive_interval_s = alive_interval_s
        self._claims: dict[str, Claim] = {}

    # Sessions

    def register(self, claim: Claim) -> None:
        """From now on the startd may send ALIVE and RELEASE_CLAIM for this claim."""
        self.open_session(claim.id)
        self._claims[claim.id.session_id] = claim

    def open_session(self, claim_id: ClaimId) -> None:
        """Raises Refused: the id is that of another session, which must not be replaced."""
        session = claim_id.session(EXECUTE_SIDE, commands=FROM_STARTD)
        known = self._sessions.get(session.sid, trio.current_time())
        if known is not None and not hmac.compare_digest(known.key, session.key):
            raise Refused("SID", "a claim id names a session that belongs to somebody else")
        self._sessions.add(session)

    def forget(self, claim_id: ClaimId) -> None:
        """The claim is over; its session lingers for what is still on the way, and answers "unknown claim"."""
        claim = self._claims.get(claim_id.session_id)
        if claim is not None and claim.id == claim_id:
            del self._claims[claim_id.session_id]
        try:
            self.open_session(claim_id)
        except Refused:
            return  # never ours
        session = self._sessions.get(claim_id.session_id, trio.current_time())
        if session is not None:
            session.expires_s = trio.current_time() + SESSION_AFTERLIFE_S

    def claims(self) -> list[Claim]:
        return list(self._claims.values())

    # To the startd

    async def _connect(self, claim_id: ClaimId, address: Sinful, command: Command, deadline_s: float) -> CedarStream:
        session: Session = claim_id.session(EXECUTE_SIDE)
        return await connect(
            address,
            int(command),
            Resume(session),
            subsystem="SCHEDD",
            own_address=self._own_address,
            deadline_s=deadline_s,
        )

    async def request(self, offer: Offer, ad: Any) -> Granted | None:
        """Ask for a slot. None: refused. Raises PeerFault, Refused: not reached, or the id is not known there.

        Cancelling closes the connection, which withdraws the request.
        """
        claim_id = ClaimId.parse(offer.claim_id)
        self.open_session(claim_id)
        with deadline(REQUEST_DEADLINE_S):
            stream = await self._connect(
                claim_id, claim_address(claim_id, offer.ad), Command.REQUEST_CLAIM, REQUEST_DEADLINE_S
            )
            try:
                await stream.put(offer.claim_id, ad, self._own_address, self._alive_interval_s, 0)
                return read_grant(await stream.get(), offer)
            finally:
                await stream.aclose()

    async def activate(self, claim: Claim, ad: Any) -> Answer:
        """One ACTIVATE_CLAIM. The stream in a yes is the caller's. Raises PeerFault, Refused."""
        with deadline(ACTIVATE_DEADLINE_S):
            stream = await self._connect(claim.id, claim.address, Command.ACTIVATE_CLAIM, ACTIVATE_DEADLINE_S)
            kept = False
            try:
                await stream.put(claim.id.text, 2, ad)
                reader = await stream.get()
                answer = Answer(code := reader.int(), _refusal(reader), stream if code == 1 else None)
                kept = code == 1
            finally:
                if not kept:
                    await stream.aclose()
        claim.heard()
        return answer

    async def deactivate(self, claim: Claim, how: Ending) -> bool | None:
        """One DEACTIVATE; whether the claim may be activated again, None when there is no answer."""
        try:
            with deadline(DEACTIVATE_DEADLINE_S):
                stream = await self._connect(
                    claim.id, claim.address, deactivation(claim.id, how), DEACTIVATE_DEADLINE_S
                )
                try:
                    await stream.put(claim.id.text)
                    return classads.get_bool((await stream.get()).ad(), "Start", False) is True
                finally:
                    await stream.aclose()
        except Refused:
            return False  # nobody there knows the claim
        except PeerFault:
            return None

    async def release(self, claim_id: ClaimId, address: Sinful) -> bool:
        """One RELEASE_CLAIM. True: delivered, or nobody there knows the claim; False: not reached."""
        try:
            with deadline(RELEASE_DEADLINE_S):
                stream = await self._connect(claim_id, address, Command.RELEASE_CLAIM, RELEASE_DEADLINE_S)
                try:
                    await stream.put(claim_id.text)
                finally:
                    await stream.aclose()
        except Refused:
            return True
        except PeerFault:
            return False
        return True

    async def delegate(self, claim: Claim, sign: Callable[[bytes], Awaitable[bytes]]) -> bool:
        """One DELEGATE_GSI_CRED_STARTER: a renewed proxy for the job of a claim; whether it was taken.

        Raises PeerFault, Refused: not reached, no job runs there, or there is nothing to delegate.
        """
        with deadline(DELEGATE_DEADLINE_S):
            command = Command.DELEGATE_GSI_CRED_STARTER
            stream = await self._connect(claim.id, claim.address, command, DELEGATE_DEADLINE_S)
            try:
                await delegation.give(stream, sign)
                return (await stream.get()).int() == 1
            finally:
                await stream.aclose()

    async def suspend(self, claim: Claim, *, resume: bool) -> None:
        """SUSPEND_CLAIM or CONTINUE_CLAIM; the starter's next update confirms it. Raises PeerFault, Refused."""
        command = Command.CONTINUE_CLAIM if resume else Command.SUSPEND_CLAIM
        with deadline(RELEASE_DEADLINE_S):
            stream = await self._connect(claim.id, claim.address, command, RELEASE_DEADLINE_S)
            try:
                await stream.put(claim.id.text)
            finally:
                await stream.aclose()

    async def locate(self, claim: Claim, global_job_id: str) -> Sinful | None:
        """CA_LOCATE_STARTER: where the job's starter is reached; None: there is none. Raises PeerFault, Refused."""
        ad = _agent_command("CA_LOCATE_STARTER", GlobalJobId=global_job_id, ClaimId=claim.id.text)
        put(ad, "ScheddIpAddr", self._own_address)
        with deadline(LOCATE_DEADLINE_S):
            stream = await self._connect(claim.id, claim.address, Command.CA_CMD, LOCATE_DEADLINE_S)
            try:
                await stream.put(ad)
                answer = (await stream.get()).ad()
            finally:
                await stream.aclose()
        claim.heard()
        if text_of(answer, "Result") != "Success":
            return None
        return Sinful.parse(text_of(answer, "StarterIpAddr"))

    async def reconnect(self, claim: Claim, starter: Sinful, key: str, version: str) -> CedarStream | None:
        """CA_RECONNECT_JOB: the new syscall socket, which is the caller's; None: the job is over. Raises PeerFault,
        Refused."""
        ad = _agent_command("CA_RECONNECT_JOB", TransferKey=key, ShadowVersion=version)
        for name in ("ShadowIpAddr", "TransferSocket"):
            put(ad, name, self._own_address)
        stream = None
        kept = False
        with deadline(LOCATE_DEADLINE_S):
            stream = await self._connect(claim.id, starter, Command.CA_CMD, LOCATE_DEADLINE_S)
            try:
                await stream.put(ad)
                kept = text_of((await stream.get()).ad(), "Result") == "Success"
            finally:
                if not kept:
                    await stream.aclose()
        return stream if kept else None

    # From the startd

    async def serve_alive(self, request: Request) -> None:
        """441: [claim id]; the interval when the claim is known, else -1 (the startd then ends it)."""
        claim = await self._named(request)
        if claim is not None:
            claim.heard()
        await request.stream.put(self._alive_interval_s if claim is not None else -1)

    async def serve_release(self, request: Request) -> None:
        """443: [claim id], no answer: the startd has ended the claim."""
        claim = await self._named(request)
        if claim is not None:
            claim.lose("the execution point released the claim")

    async def _named(self, request: Request) -> Claim | None:
        said = (await request.stream.get()).string()
        claim = self._claims.get(request.session.sid)
        if claim is None or not hmac.compare_digest(said.encode("utf-8", "surrogateescape"), claim.id.text.encode()):
            return None
        return claim


def _agent_command(command: str, **values: str) -> Any:
    ad = ClassAd()
    for name, value in {"MyType": "Command", "TargetType": "Reply", "Command": command, **values}.items():
        put(ad, name, value)
    return ad


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """A time-out is a PeerFault("timeout")."""
    with trio.move_on_after(seconds) as scope:
        yield
    if scope.cancelled_caught:
        raise PeerFault("timeout", f"no answer within {seconds:g} s")


def claim_address(claim_id: ClaimId, slot: Any) -> Sinful:
    """Where the slot's startd listens: what its ad says, else what stands in the claim id."""
    said = text_of(slot, "MyAddress")
    return Sinful.parse(said) if said else claim_id.address


def started_at(claim_id: ClaimId) -> int:
    """When the startd of a claim was started, as the id says (`<address>#start#number`); 0 when it does not."""
    parts = claim_id.session_id.rsplit("#", 2)
    return (
        int(parts[1]) if len(parts) == 3 and parts[1].isascii() and parts[1].isdecimal() and len(parts[1]) < 16 else 0
    )


def read_grant(reader: Reader, offer: Offer) -> Granted | None:
    """The grammar of 6.5 for one slot: (7, id, ad)? then 0 | 1 | (3 | 5, id, ad). Raises PeerFault on anything else."""
    slot = offer.ad
    code = reader.int()
    if code == ClaimReply.SLOT_AD:
        said, slot = reader.string().rstrip("\0"), reader.ad()
        if not hmac.compare_digest(os.fsencode(said), os.fsencode(offer.claim_id)):
            raise PeerFault("state", "another claim id was granted than the one that was presented")
        code = reader.int()
    if code == 0:
        return None
    if code == 1:
        return Granted(slot, None)
    if code not in (ClaimReply.LEFTOVERS, ClaimReply.LEFTOVERS_2):
        raise PeerFault("codec", f"{code} in answer to REQUEST_CLAIM")
    text, left = reader.string().rstrip("\0"), reader.ad()
    ClaimId.parse(text)
    return Granted(slot, Offer(offer.slot, offer.startd, left, text))


def _refusal(reader: Reader) -> str:
    """The words that came with an answer to ACTIVATE_CLAIM, when there are any."""
    if not reader.remaining():
        return ""
    ad = reader.ad()
    words = text_of(ad, "VacateReason") or text_of(ad, "Analyze").replace("\x1e", " ")
    code = value_of(ad, "VacateReasonCode")
    return f"{words} ({code})" if isinstance(code, int) else words


def deactivation(claim_id: ClaimId, how: Ending) -> Command:
    """The number on the wire: a startd before 24.7 knows no JOB_DONE."""
    if how is Ending.GRACEFUL:
        return Command.DEACTIVATE_CLAIM
    if how is Ending.DONE and _version(claim_id) >= JOB_DONE_SINCE:
        return Command.DEACTIVATE_CLAIM_JOB_DONE
    return Command.DEACTIVATE_CLAIM_FORCIBLY


def _version(claim_id: ClaimId) -> tuple[int, ...]:
    parts = claim_id.attributes().get("shortversion", "").split(".")
    return (
        tuple(int(part) for part in parts)
        if parts and all(p.isascii() and p.isdecimal() and len(p) < 6 for p in parts)
        else ()
    )
