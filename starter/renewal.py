"""A renewed proxy for a running job: received, judged, stored at the pilot's side, put into the sandbox.

The shadow pushes renewals by delegation (500); the copy with the private key (487) is refused by the startd before it
is sent. Whatever becomes of a delegation that was completed, the shadow is told 1: anything else would make it send the
key, or give up for good (wire reference 7.7). A proxy of another identity, CA or primary FQAN never takes the old one's
place.
Nothing is asked of the shadow by 303 unless it has just shown that it has a proxy: when it has none, a stock shadow
drops the whole activation.

The file at the pilot's side is replaced at once, in every phase. The one in the sandbox takes a call of the switch,
which is counted apart; while that cannot be had it is tried again with growing pauses.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable

import attrs
import trio

from cedar import delegation
from cedar.commands import HoldCode
from cedar.errors import PeerFault, Refused
from cedar.stream import CedarStream
from pilot import audit, credentials
from pilot.credentials import Credential, CredentialError
from pilot.farside import open_call
from starter.credential import ProxyUnusable, Trust, check_proxy, receive_proxy, wanted_end
from starter.description import Description
from starter.entries import StageFailed, check_owner, deadline, raise_if_failed
from starter.events import Event, IdentityChanged
from starter.life import State
from starter.messages import PassedCommand
from starter.passed import adopt
from starter.updates import one_line
from starter.verdict import Hold, Requeue
from starter.work import Work

# The shadow serves nothing else meanwhile; stock's own starter waits 10 s.
EXCHANGE_WITHIN_S = 20.0
# One shadow sends one at a time; more are somebody who only knows the claim's public id.
MAX_EXCHANGES = 4
# A delegation that broke off is made up for by asking, but not by everybody who can open a connection.
BROKEN_OFF_COUNTS_S = 120.0
PULL_PAUSE_S = 300.0
# A disk that was full, a switch that was down.
FIRST_PAUSE_S, LAST_PAUSE_S = 5.0, 300.0
# The sandbox is complete, and the job may look into it.
_WITH_SANDBOX = frozenset({State.LAUNCHING, State.RUNNING, State.SUSPENDED, State.STOPPING, State.CHECKPOINTING})
# Longer than any clock's difference; less is the same proxy, delegated once more.
_LONGER_S = 1.0


@attrs.frozen
class Renewed:
    """It takes the old one's place."""

    credential: Credential


@attrs.frozen
class Kept:
    """The old one stays. ``changed``: the new one is somebody else's, or of another role."""

    why: str
    changed: bool


def judge(old: Credential, pem: bytes, job: Description, trust: Trust) -> Renewed | Kept:
    """Whether a proxy renews the old one: verified, the ad's, of the same identity, CA and primary FQAN, and longer."""
    try:
        new = check_proxy(pem, job, trust)
    except ProxyUnusable as refusal:
        return Kept(refusal.why, changed=True)
    except CredentialError as fault:
        return Kept(fault.text, changed=False)
    change = credentials.change_of(old, new)
    if change:
        return Kept(change, changed=True)
    if new.usable_until < old.usable_until + _LONGER_S:
        return Kept("it does not live longer than the one that is there", changed=False)
    return Renewed(new)


@attrs.define(eq=False)
class Renewals:
    """Of one job. ``state`` tells where it is, ``tell`` gives it an event; ``run`` must run."""

    work: Work
    state: Callable[[], State]
    tell: Callable[[Event], Awaitable[None]]
    log: logging.LoggerAdapter[logging.Logger]
    calls: int = 0
    # what is told of it in the job's updates
    words: str = ""
    changed: trio.Event = attrs.field(factory=trio.Event)
    _exchanges: int = 0
    _one: trio.Lock = attrs.field(factory=trio.Lock)
    _waiting: bytes | None = attrs.field(default=None, repr=False)
    _unstored: Credential | None = None
    _in_sandbox: Credential | None = None
    _broken_off_s: float = -math.inf
    _pulled_s: float = -math.inf

    # --- from the shadow -----------------------------------------------------------------------------------------

    async def serve(self, message: PassedCommand, fd: int) -> None:
        """DELEGATE_GSI_CRED_STARTER (500): this side speaks first. A fault costs its own connection only."""
        stream = adopt(message, fd, "a renewal", self.log)
        if stream is None:
            return
        self._exchanges += 1
        try:
            async with stream:
                if self._exchanges > MAX_EXCHANGES:
                    return
                with trio.fail_after(EXCHANGE_WITHIN_S):
                    await self._receive(stream)
        except Refused as refusal:
            self.log.warning("the submit side announced a renewed proxy, and could not delegate it: %s", refusal)
        except (PeerFault, trio.TooSlowError) as fault:
            self._broken_off_s = trio.current_time()
            self.log.warning("a renewed proxy did not arrive: %s", fault)
        finally:
            self._exchanges -= 1

    async def _receive(self, stream: CedarStream) -> None:
        try:
            pem = await receive_proxy(lambda request: delegation.receive(stream, request), self.work.keys)
        except CredentialError as fault:
            if self.work.credential is None:  # the job's own is still to come
                self.log.warning("a renewed proxy cannot be used: %s", fault.text)
            else:
                self._keep(Kept(fault.text, changed=False))
        else:
            await self.take(pem)
        await stream.put(1)

    async def announced(self) -> None:
        """The shadow wanted to send a copy (487), and was not let: asked for by delegation if that is safe."""
        now_s = trio.current_time()
        wanted = self.work.proxy_copied or now_s - self._broken_off_s < BROKEN_OFF_COUNTS_S
        if not wanted or self.work.credential is None or now_s - self._pulled_s < PULL_PAUSE_S:
            return
        self._pulled_s = now_s
        try:
            pem = await self.work.shadow.fetch_proxy(
                wanted_end(self.work.description), lambda exchange: receive_proxy(exchange, self.work.keys)
            )
        except (PeerFault, CredentialError) as fault:  # if the socket is gone, the task that reads from it says so
            self.log.warning("the renewed proxy was asked for, and not to be had: %s", fault)
            return
        await self.take(pem)

    # --- what comes of it ----------------------------------------------------------------------------------------

    async def take(self, pem: bytes) -> None:
        """Judge and store. Before the job's own proxy is known it waits for that."""
        async with self._one:
            old = self.work.credential
            if old is None:
                self._waiting = pem
                return
            match judge(self._unstored or old, pem, self.work.description, self.work.trust):
                case Renewed(credential=new):
                    self._unstored = new
                    self._store()
                case Kept() as kept:
                    self._keep(kept)
                    if kept.changed:
                        await self._answer_change(kept.why)
        self._note_change()

    async def known(self) -> None:
        """The job's own proxy is there now: what came before it is judged."""
        self._in_sandbox = self.work.credential
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            await self.take(waiting)

    def _store(self) -> bool:
        """At the pilot's side; what cannot be stored now is tried again by ``run``."""
        new, path = self._unstored, self.work.credential_path
        assert new is not None
        assert path is not None
        try:
            credentials.store_private(path, new.pem, durable=False)
        except (OSError, CredentialError) as fault:
            self.log.warning("a renewed proxy could not be stored: %s; trying again", fault)
            return False
        self.work.credential, self._unstored = new, None
        ends = credentials.when(new.usable_until)
        self.words = f"renewed, ends on {ends}"
        self.log.info("the proxy of %s was renewed and ends on %s", new.identity, ends)
        self._audit("proxy-renewed", expires_at=new.expires_at)
        return True

    def _keep(self, kept: Kept) -> None:
        self.words = one_line(f"a renewed proxy was not taken: {kept.why}")
        self.log.warning("%s", self.words)
        self._audit("proxy-renewal-refused", why=kept.why)

    async def _answer_change(self, why: str) -> None:
        work = self.work
        if work.settings.sailplane_on_identity_change == "keep":
            return
        text = (
            f"A renewed proxy came for job {work.description.job_id}, and {why}. This site stops jobs then"
            " (SAILPLANE_ON_IDENTITY_CHANGE)."
        )
        if work.settings.sailplane_on_identity_change == "hold":
            text += " Renew with a proxy of the same identity and role and release the job, or submit it anew."
            await self.tell(IdentityChanged(Hold(HoldCode.CORRUPTED_CREDENTIAL, 0, one_line(text))))
        else:
            await self.tell(IdentityChanged(Requeue(HoldCode.CORRUPTED_CREDENTIAL, one_line(text))))

    def _note_change(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    def _audit(self, event: str, **fields: object) -> None:
        record(self.work, event, **fields)

    # --- in the sandbox ------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Bring the sandbox up to date, again and again; until cancelled."""
        pause_s = FIRST_PAUSE_S
        while True:
            changed = self.changed
            done = (self._unstored is None or self._store()) and await self._up_to_date()
            pause_s = FIRST_PAUSE_S if done else min(2 * pause_s, LAST_PAUSE_S)
            with trio.move_on_after(math.inf if done else pause_s):
                await changed.wait()

    def state_changed(self) -> None:
        """The job is in another phase: the sandbox may have become complete."""
        if self._stale():
            self._note_change()

    def _stale(self) -> bool:
        return self.work.proxy_in_sandbox and self._in_sandbox is not self.work.credential

    async def _up_to_date(self) -> bool:
        """False: to be tried again."""
        if not self._stale() or self.state() not in _WITH_SANDBOX:
            return True
        new = self.work.credential
        assert new is not None
        try:
            await self._replace(new)
        except StageFailed as fault:
            self.log.warning("the proxy in the sandbox could not be replaced: %s", fault)
            # What the job itself has put in the way stays its own affair until the next renewal.
            if fault.code != "store":
                return False
        self._in_sandbox = new
        return True

    async def _replace(self, new: Credential) -> None:
        """One call of the switch, with the new proxy.

        Raises:
            StageFailed: the file is the old one.
        """
        work = self.work
        self.calls += 1
        self.log.info("call %d beside the job's own three: replace the proxy", self.calls)
        context = work.context(started=True, once=True)
        asking = attrs.evolve(context, audit_id=f"{context.audit_id}#renew")
        limit_s = work.settings.sailplane_switch_deadline
        far = await open_call(asking, "replace-proxy", deadline_s=limit_s)
        try:
            check_owner(work.place, far.hello.uid)
            with deadline("replace the proxy", limit_s):
                name, pem = work.description.proxy_name, new.pem.decode("ascii")
                await far.send({"path": str(work.place.path), "name": name, "pem": pem})
                raise_if_failed(await far.receive())
        finally:
            await far.end()


def record(work: Work, event: str, **fields: object) -> None:
    """An audit record about the job's proxy, beside the daemons' logs."""
    identity = work.credential.identity if work.credential is not None else ""
    facts = {"job": work.description.job_id, "user": work.description.user, "identity": identity, **fields}
    try:
        audit.append(work.settings.log / "AuditLog", event, work.description.global_job_id, **facts)
    except OSError:
        # A disk that is full must not end a job; the same stands in the log.
        return
