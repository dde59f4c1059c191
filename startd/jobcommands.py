"""Commands for the running job that arrive at the startd's port (wire reference 3.10, 4.8, 8).

Two come on the claim's session: where is the starter, and a session for the job's owner. What comes on the owner's
session, peek and ssh, is handed to the starter with its connection; only the request is read here, as the proof that
the peer has the session's key.
"""

from __future__ import annotations

import hmac
import logging
import secrets
from collections.abc import Callable

import attrs
from classad2 import ClassAd

from cedar.agentreply import FAILURE, SUCCESS, agent_reply
from cedar.claims import ClaimId
from cedar.classads import get_str, set_str
from cedar.commands import VERSION, Command, condor_version_text
from cedar.errors import PeerFault
from cedar.server import Request
from cedar.sessions import Session
from pilot.rpc import ChannelClosed, RpcFault
from startd.claim import WITH_STARTER
from startd.claimagent import ClaimAgent
from startd.claims import Claims
from startd.deadline import Handler
from startd.held import Held
from starter.messages import PassedCommand, RenewalAnnounced

# All that a session of the job's owner can do.
OWNER_COMMANDS = frozenset({int(Command.START_SSHD), int(Command.STARTER_PEEK)})
# One tool makes one; of more than this at once the oldest goes.
MAX_OWNER_SESSIONS = 16
# A tool uses its session within seconds; a follower of condor_tail for as long as it looks.
OWNER_SESSION_S = 86_400.0
_SID_BYTES, _SECRET_BYTES = 16, 32


@attrs.frozen
class JobCommands:
    """Handlers of one startd. ``now_s`` is the clock of its sessions."""

    claims: Claims
    now_s: Callable[[], float]
    log: logging.LoggerAdapter[logging.Logger]
    agent: ClaimAgent

    def on_claim(self) -> dict[int, Handler]:
        """What comes on a claim's session."""
        return {
            Command.CA_CMD: self.claim_agent,
            Command.CREATE_JOB_OWNER_SEC_SESSION: self.create_owner_session,
        }

    def on_owner(self) -> dict[int, Handler]:
        """What comes on an owner's session; ``admits`` says which those are."""
        return dict.fromkeys(OWNER_COMMANDS, self.pass_on)

    def admits(self, session: Session) -> bool:
        """Whether a session is that of a running job's owner."""
        return self._held_of_owner(session) is not None

    async def claim_agent(self, request: Request) -> None:
        """CA_CMD: two of its commands are a shadow's that has lost its starter, the others are ``agent``'s."""
        ad = (await request.stream.get()).ad()
        command = get_str(ad, "Command", "")
        if command == "CA_LOCATE_STARTER":
            check_claim_id(get_str(ad, "ClaimId"), request.session)
            await request.stream.put(self._located(request.session, get_str(ad, "GlobalJobId", "")))
        elif command == "CA_RECONNECT_JOB":
            await self._reconnect(request, ad)
        else:
            if told := get_str(ad, "ClaimId", ""):
                check_claim_id(told, request.session)
            await self.agent.on_claim(request, ad, self.claims.find(request.session.sid))

    async def _reconnect(self, request: Request, ad: ClassAd) -> None:
        """The claim's session is the proof; the connection becomes the starter's new syscall socket."""
        held = self.claims.find(request.session.sid)
        if held is None or held.starter is None or held.life.state not in WITH_STARTER:
            await request.stream.put(agent_reply(FAILURE, "no job runs on this slot now"))
            return
        held.heard_s = self.now_s()
        await self._pass(held, request, ad)

    def _located(self, session: Session, global_job_id: str) -> ClassAd:
        """Failure makes a shadow give its job up: only for a job that has ended here for certain (T24).

        Raises:
            PeerFault: we cannot know; a closed connection makes the peer try again.
        """
        held = self.claims.find(session.sid)
        asked = _job_of(global_job_id)
        if held is not None and held.life.state in WITH_STARTER and asked in ("", held.job_id):
            answer = agent_reply(SUCCESS)
            set_str(answer, "StarterIpAddr", self.claims.slots.address)
            return answer
        if held is None or (asked and asked in held.past_jobs):
            return agent_reply(FAILURE, "the job has ended on this slot")
        raise PeerFault("unsure", f"nothing is known of job {asked or '?'} on {held.name}")

    async def create_owner_session(self, request: Request) -> None:
        """1501: the schedd vouches for its user; the session is for the user that the job itself names."""
        ad = (await request.stream.get()).ad()
        check_claim_id(get_str(ad, "ClaimId"), request.session)
        held = self.claims.find(request.session.sid)
        answer = ClassAd()
        if held is None or held.starter is None or held.life.state not in WITH_STARTER:
            refuse(answer, "no job runs on this slot now", retry=held is not None)
        elif not held.job_user:
            refuse(answer, "the job has no User, so nobody can be its owner", retry=False)
        else:
            answer["Result"] = True
            set_str(answer, "ClaimId", self._mint(held).text)
            set_str(answer, "StarterIpAddr", self.claims.slots.address)
            answer["CondorVersion"] = condor_version_text()
        await request.stream.put(answer)

    def _mint(self, held: Held) -> ClaimId:
        """A new session, bound to the present activation."""
        info = f'[Encryption="YES";Integrity="YES";CryptoMethods="AES";ShortVersion="{VERSION}";]'
        minted = ClaimId.from_parts(secrets.token_hex(_SID_BYTES), info, secrets.token_hex(_SECRET_BYTES))
        sessions = self.claims.slots.sessions
        session = minted.session(held.job_user, commands=OWNER_COMMANDS)
        session.level, session.expires_s = "READ", self.now_s() + OWNER_SESSION_S
        sessions.add(session)
        held.owner_sids.append(minted.session_id)
        while len(held.owner_sids) > MAX_OWNER_SESSIONS:
            sessions.drop(held.owner_sids.pop(0))
        self.log.info("%s: a session for %s, owner of job %s", held.name, held.job_user, held.job_id)
        return minted

    async def pass_on(self, request: Request) -> None:
        """The connection becomes the starter's, once the peer has shown that it holds the key."""
        asked = (await request.stream.get()).ad()
        held = self._held_of_owner(request.session)
        if held is None or held.starter is None:
            raise PeerFault("owner", "the session is not that of a running job's owner")
        await self._pass(held, request, asked)

    async def _pass(self, held: Held, request: Request, asked: ClassAd) -> None:
        """Give the connection to the starter; one that is gone is reported by the spawner."""
        assert held.starter is not None
        sock, state = request.stream.export()
        with sock:
            message = PassedCommand(request.command, request.identity, str(asked), state)
            try:
                await held.starter.send(message, (sock.fileno(),))
            except (ChannelClosed, RpcFault) as fault:
                self.log.info("%s: command %d could not be passed on: %s", held.name, request.command, fault.code)

    # --- the job's proxy ------------------------------------------------------------------------------------------

    def runs(self, session: Session) -> bool:
        """Whether a session is that of a claim whose job has a starter, which could take a renewed proxy."""
        held = self.claims.find(session.sid)
        return held is not None and held.starter is not None

    def refuse_copy(self, session: Session) -> bool:
        """UPDATE_GSI_CRED: never; the starter hears that there is something to be had by delegation. It decides whether
        to believe that: a resume proves nothing yet."""
        held = self.claims.find(session.sid)
        if held is not None:
            self.claims.tell(held, RenewalAnnounced())
        return False

    async def pass_renewal(self, request: Request) -> None:
        """DELEGATE_GSI_CRED_STARTER: the starter speaks first, so the peer's key proves itself there."""
        held = self.claims.find(request.session.sid)
        if held is None or held.starter is None:
            raise PeerFault("state", "no job runs on this slot now")
        sock, state = request.stream.export()
        with sock:
            message = PassedCommand(request.command, request.identity, "", state)
            try:
                await held.starter.send(message, (sock.fileno(),))
            except (ChannelClosed, RpcFault) as fault:
                self.log.info("%s: a renewed proxy could not be passed on: %s", held.name, fault.code)

    def _held_of_owner(self, session: Session) -> Held | None:
        return next((held for held in self.claims.slots.held.values() if session.sid in held.owner_sids), None)


def check_claim_id(told: str, session: Session) -> None:
    """A claim id in a payload must belong to the session that the message came on.

    Raises:
        PeerFault: it does not.
    """
    session_id = told.encode("utf-8", "surrogateescape").rpartition(b"#")[0]
    if not hmac.compare_digest(session_id, session.sid.encode("utf-8", "surrogateescape")):
        raise PeerFault("claim", "the claim id in the message is not that of its session")


def refuse(ad: ClassAd, text: str, *, retry: bool) -> None:
    """No, with the reason for the tool's user."""
    ad["Result"], ad["Retry"] = False, retry
    set_str(ad, "ErrorString", text)


def _job_of(global_job_id: str) -> str:
    """The ``cluster.proc`` in ``schedd#cluster.proc#time``; empty if it is of another form."""
    parts = global_job_id.split("#")
    return parts[1] if len(parts) == 3 else ""
