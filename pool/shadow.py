"""One run's shadow, acting: activates the claim, serves the starter's calls, carries out what `shadow_state` says.

It holds no rule about what follows what. The verdict is written down (by the caller's `finish`, in one transaction)
before the starter's job_exit is answered.
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, assert_never

import trio

from cedar import delegation
from cedar.codec import Reader
from cedar.commands import HoldCode, Syscall
from cedar.errors import PeerFault, Refused
from cedar.stream import CedarStream
from pilot import logs
from pool import shadow_state as s
from pool.ads import ClassAd, put, text_of, value_of, whole_of
from pool.claims import Claim, ClaimClient
from pool.jobpolicy import Durations, grace_s
from pool.model import JobState, Outcome
from pool.remoteio import NoToken, RemoteIO
from pool.renewal import Push
from pool.silence import Silence
from pool.transfers import PROXY_LIFETIME_S, UNUSABLE_PROXY, Transfer, proxy_signer

EACCES, ENOSYS = 13, 38
# The watchdog that a starter arms: three times what it promised (6.6).
PROMISE_FACTOR = 3
CRITICAL_EVENT = 21
# Syncing a directory takes milliseconds; a disk that needs longer than this is lost to us.
OUTPUT_ENTRY_S = 20.0
# A starter that asks has no more to send; a transfer that is not over by then is a broken one.
INPUT_END_S = 5.0
# Answers to questions for guidance that cannot be given any (305).
UNKNOWN_REQUEST, MALFORMED_REQUEST = -1, -2
_FILETRANS_INFO = '[Encryption="YES";Integrity="YES";CryptoMethods="AES";ShortVersion="{version}";]'


class Shadow:
    """One run. `finish` is called once with the verdict, before the last answer to the starter goes out."""

    def __init__(
        self,
        client: ClaimClient,
        claim: Claim,
        *,
        activation_ad: Any,
        info_ad: Any,
        transfer: Transfer,
        remote: RemoteIO,
        lease_s: float,
        version: str,
        finish: Callable[[s.Finish], None],
        note: Callable[[float | None, int | None], None],
        recovered: bool = False,
    ) -> None:
        """`recovered`: of a run whose job was executing when the pool ended."""
        self._client = client
        self._claim = claim
        self._activation_ad = activation_ad
        self._info_ad = info_ad
        self._transfer = transfer
        self._remote = remote
        self._lease_s = lease_s
        self._version = version
        self._finish = finish
        self._note = note
        self._machine = s.ShadowState.recovered() if recovered else s.ShadowState()
        self._reconnects = False
        self._log = logs.get("shadow", job=str(text_of(info_ad, "GlobalJobId")), slot=claim.slot)
        self._global_job_id = text_of(info_ad, "GlobalJobId")
        self._calls = trio.CancelScope()
        self._promise_s: float | None = None
        self._pid = 0
        self._fate: str | None = None
        self._over = trio.Event()
        self._durations = Durations.of(info_ad)
        self._born_s = self._leg_s = 0.0
        self._nursery: trio.Nursery | None = None
        self._push = self._make_push() if transfer.proxy_name is not None else None

    def _make_push(self) -> Push:
        transfer = self._transfer
        return Push(
            self._client, self._claim, transfer.spool.proxy(transfer.cluster), self._proxy_lifetime_s(), self._log
        )

    def _proxy_lifetime_s(self) -> int:
        return whole_of(self._info_ad, "DelegateJobGSICredentialsLifetime", PROXY_LIFETIME_S)

    def proxy_renewed(self) -> None:
        """The job's proxy in the spool is a new one."""
        if self._push is not None:
            self._push.renewed()

    @property
    def state(self) -> s.State:
        return self._machine.state

    async def run(self) -> str:
        """From the first activation to the claim's fate ("idle", "release", "gone").

        Cancelling stops serving at once; the job then runs on at the execution point until its lease ends.
        """
        self._claim.on_lost = lambda why: self.tell(s.ClaimLost(why))
        self._born_s = self._leg_s = trio.current_time()
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._reconnect if self.state is s.State.RECONNECTING else self._activate, 0.0)
            nursery.start_soon(self._watch_lease)
            if self.state is s.State.RECONNECTING:
                nursery.start_soon(self._watch_durations)
            if self._push is not None:
                nursery.start_soon(self._push.run)
            await self._over.wait()
            nursery.cancel_scope.cancel()
        self._remote.close()
        self._nursery = None
        self._claim.on_lost = None
        assert self._fate is not None
        return self._fate

    def leg_began(self) -> None:
        """The job starts again in its sandbox, behind a checkpoint."""
        self._leg_s = trio.current_time()

    def end(self, want: s.Finish, *, hard: bool = False) -> None:
        """A user's rm, hold or vacate, or a time that is over. Raises shadow_state.WrongState when the run is over."""
        self.tell(s.EndAsked(grace_s(self._info_ad), hard, want))
        status = {Outcome.REMOVED: JobState.REMOVED, Outcome.HELD: JobState.HELD}.get(want.outcome)
        if status is not None:  # a starter asks which signal the job wants now
            self._remote.ad["JobStatus"] = int(status)

    def suspend(self, *, resume: bool) -> bool:
        """Ask the execution point; False where the job is not in a state for it."""
        if self.state is not (s.State.SUSPENDED if resume else s.State.EXECUTING):
            return False
        self._start(self._suspend, resume)
        return True

    def tell(self, event: s.Event) -> None:
        """Hand an event to the state machine and start what it commands."""
        before = self._machine.state
        commands = self._machine.handle(event)
        self._claim.out_of_touch = self.state is s.State.RECONNECTING
        entry = self._machine.story[-1]
        if entry.state is not before:
            self._log.info("%s -> %s (rule %d, %s)", before.value, entry.state.value, entry.rule, entry.event)
        for command in commands:
            self._carry_out(command)

    def _carry_out(self, command: s.Command) -> None:
        match command:
            case s.Finish():
                self._finish(command)
            case s.NoteExecuting():
                self._note(time.time(), None)
                self.leg_began()
                self._start(self._watch_durations)
            case s.CutSocket():
                self._calls.cancel()
            case s.EndClaim(fate):
                self._fate = fate
                self._over.set()
            case s.Activate(after_s):
                self._start(self._activate, after_s)
            case s.Reconnect(after_s):
                self._start(self._reconnect, after_s)
            case s.Deactivate(how):
                self._start(self._deactivate, how)
            case s.SetTimer(serial, seconds):
                self._start(self._timer, serial, seconds)
            case _:
                assert_never(command)

    def _start(self, task: Callable[..., Any], *args: object) -> None:
        if self._nursery is not None:
            self._nursery.start_soon(task, *args)

    # Tasks

    async def _timer(self, serial: int, seconds: float) -> None:
        await trio.sleep(seconds)
        self.tell(s.TimerFired(serial))

    async def _watch_lease(self) -> None:
        """No word from startd or starter for a lease: the job is not there any more (T23's last resort)."""
        silence, over = Silence(self._lease_s, self._claim.heard_s), False
        while not over:
            await trio.sleep_until(silence.next_look_s)
            over = silence.over(self._claim.heard_s, trio.current_time())
        self.tell(s.SocketLost(f"no word from the execution point for {self._lease_s:g} s"))

    async def _watch_durations(self) -> None:
        """While the job runs; it is held as at its user's word."""
        while True:
            now = trio.current_time()
            taken = {"job_s": now - self._born_s, "execute_s": now - self._leg_s}
            left_s = self._durations.left_s(**taken)
            if left_s is None:
                return
            verdict = self._durations.over(**taken)
            if verdict is not None:
                break
            await trio.sleep(left_s)
        with suppress(s.WrongState):
            self.end(verdict)

    async def _deactivate(self, how: s.Ending) -> None:
        start = await self._client.deactivate(self._claim, how)
        if how is not s.Ending.GRACEFUL and self._machine.verdict is None:
            return  # the answer to a hard stop; the job's end is still to come
        self.tell(s.Deactivated(start))

    async def _activate(self, after_s: float) -> None:
        await trio.sleep(after_s)
        try:
            answer = await self._client.activate(self._claim, self._activation_ad)
        except (PeerFault, Refused) as error:
            self.tell(s.SocketLost(f"the activation failed ({error})"))
            return
        if answer.stream is None:
            self.tell(
                s.ActivationTryAgain()
                if answer.code == 2
                else s.ActivationRefused(f"the slot refused the job: {answer.reason}")
            )
            return
        try:
            self.tell(s.ActivationAccepted())
            await self._serve(answer.stream)
        finally:
            await answer.stream.aclose()

    async def _suspend(self, resume: bool) -> None:
        try:
            await self._client.suspend(self._claim, resume=resume)
        except (PeerFault, Refused) as fault:
            self._log.warning("the job could not be %s: %s", "continued" if resume else "suspended", fault)

    async def _reconnect(self, after_s: float) -> None:
        """Find the starter, and go on with it on another socket."""
        await trio.sleep(after_s)
        try:
            starter = await self._client.locate(self._claim, self._global_job_id)
            stream = None
            if starter is not None:
                stream = await self._client.reconnect(self._claim, starter, self._transfer.key, self._version)
        except Refused as refused:
            self.tell(s.ReconnectFailed(f"the execution point does not know the claim any more ({refused})", gone=True))
            return
        except PeerFault as fault:
            self.tell(s.ReconnectFailed(str(fault), gone=False))
            return
        if stream is None:
            self.tell(s.ReconnectFailed("the execution point has ended the job", gone=True))
            return
        self._reconnects = True
        self._transfer.input_sent = True
        try:
            self.tell(s.Reconnected())
            await self._serve(stream)
        finally:
            await stream.aclose()

    async def _serve(self, stream: CedarStream) -> None:
        self._calls = trio.CancelScope()
        with self._calls:
            try:
                while True:
                    reader = await self._next_call(stream)
                    self._claim.heard()
                    await self._answer(reader, stream)
            except (PeerFault, Refused) as fault:
                self.tell(s.SocketLost(str(fault), self._reconnects))

    async def _next_call(self, stream: CedarStream) -> Reader:
        if self._promise_s is None:
            return await stream.get()
        with trio.move_on_after(self._promise_s) as waiting:
            return await stream.get()
        assert waiting.cancelled_caught
        raise PeerFault("timeout", f"the starter promised an update and sent none for {self._promise_s:g} s")

    # Calls

    async def _answer(self, reader: Reader, stream: CedarStream) -> None:
        op = reader.int()
        if op == Syscall.GET_DELEGATED_PROXY:
            await self._delegate(reader, stream)
        elif op == Syscall.ULOG:
            self._event(reader.ad())  # has no reply
        elif op == Syscall.JOB_EXIT:
            await self._job_exit(reader)
            await stream.put(0)
        elif op == Syscall.REQUEST_GUIDANCE:
            await stream.put(*await self._guidance(reader.ad()))
        else:
            await stream.put(*self._reply(op, reader))

    def _reply(self, op: int, reader: Reader) -> tuple[Any, ...]:
        match op:
            case Syscall.GET_JOB_INFO:
                return 0, self._info_ad
            case Syscall.REGISTER_STARTER_INFO:
                return self._starter_info(reader.ad())
            case Syscall.GET_SEC_SESSION_INFO:
                return self._session_info()
            case Syscall.REGISTER_JOB_INFO:
                return self._job_info(reader.ad())
            case Syscall.BEGIN_EXECUTION:
                self.tell(s.ExecutionBegan())
                return (0,)
            case Syscall.EVENT_NOTIFICATION | Syscall.JOB_TERMINATION | Syscall.DPRINTF_STATS:
                return (0,)
            case Syscall.GETCREDS:
                return self._tokens(reader)
            case _ if self._remote.serves(op):
                return self._remote.answer(op, reader)
            case Syscall.CONSTRAIN | Syscall.GET_USER_INFO:
                return -1, EACCES
            case _:
                return -1, ENOSYS  # a message is consumed as a whole: the stream stays in step

    def _tokens(self, reader: Reader) -> tuple[Any, ...]:
        """As stock: a token that is missing holds the job."""
        reader.string()
        services = [name for name in re.split(r"[,\s]+", text_of(self._info_ad, "OAuthServicesNeeded")) if name]
        try:
            return self._remote.tokens(services)
        except NoToken as fault:
            self.tell(s.ProblemReported(HoldCode.CORRUPTED_CREDENTIAL, 0, s.clean(str(fault))))
            return (-1,)

    def _starter_info(self, ad: Any) -> tuple[int]:
        self._reconnects = value_of(ad, "HasReconnect") is True
        self._log.info(
            "starter %s on %s", s.clean(text_of(ad, "CondorVersion", "?")), s.clean(text_of(ad, "Name", "?"))
        )
        return (0,)

    def _session_info(self) -> tuple[Any, ...]:
        claim = self._claim.id
        info = _FILETRANS_INFO.format(version=self._version)
        return 1, claim.session_id, claim.info, claim.secret, f"filetrans.{claim.session_id}", info, claim.secret

    def _job_info(self, ad: Any) -> tuple[int]:
        promise = whole_of(ad, "_condor_JOBINFO_MAXINTERVAL")
        if promise > 0:
            self._promise_s = float(PROMISE_FACTOR * promise)
        self._remote.learn(ad)
        pid = whole_of(ad, "JobPid")
        if 0 < pid < 2**31 and pid != self._pid:
            self._pid = pid
            self._note(None, pid)
        match text_of(ad, "JobState"):
            case "Running":
                self.tell(s.ExecutionBegan())
                self.tell(s.Resumed())
            case "Suspended":
                self.tell(s.Suspended())
        return (0,)

    async def _guidance(self, ad: Any) -> tuple[Any, ...]:
        """Before the input, and after it: the starter has our acknowledgement a little before we have its own."""
        answer = ClassAd()
        match text_of(ad, "RequestType"):
            case "JobSetup":
                put(answer, "Command", "CarryOn")
            case "JobEnvironment":
                with trio.move_on_after(INPUT_END_S):
                    await self._transfer.sent()
                put(answer, "Command", self._about_input())
            case "":
                return MALFORMED_REQUEST, answer
            case _:
                return UNKNOWN_REQUEST, answer
        return 0, answer

    def _about_input(self) -> str:
        if self._transfer.input_sent:
            return "StartJob"
        return "RetryTransfer" if self._transfer.input_again else "CarryOn"

    async def _job_exit(self, reader: Reader) -> None:
        status, reason = reader.int(), reader.int()
        if not 0 <= status <= 0xFFFF:
            raise PeerFault("codec", "job_exit with what is no wait status")
        self._remote.learn(reader.ad())
        # The starter has our acknowledgement of the output a little before we have entered it.
        with trio.move_on_after(OUTPUT_ENTRY_S):
            await self._transfer.received()
        self.tell(s.JobExited(status, reason))

    def _event(self, ad: Any) -> None:
        number = whole_of(ad, "EventTypeNumber")
        text = s.clean(text_of(ad, "ErrorMsg"))
        if number == CRITICAL_EVENT and value_of(ad, "CriticalError") not in (0, False):
            code, subcode = whole_of(ad, "HoldReasonCode"), whole_of(ad, "HoldReasonSubCode")
            self.tell(s.ProblemReported(code, subcode, text))
        else:
            self._log.info("event %d from the starter: %s", number, text)

    async def _delegate(self, reader: Reader, stream: CedarStream) -> None:
        """303: the certificates from the stored proxy; a failure is [int 0], and the socket stays."""
        reader.string()
        asked = reader.int()
        lifetime = self._proxy_lifetime_s()
        sign: Callable[[bytes], Awaitable[bytes]] = _refuse
        if self._transfer.proxy_name is not None:
            path = self._transfer.spool.proxy(self._transfer.cluster)
            sign = proxy_signer(path, lifetime_s=lifetime, end=float(asked) if asked > 0 else None)
        try:
            await delegation.give(stream, sign)
        except Refused as refused:
            self._log.warning("no proxy was delegated to the starter: %s", refused.text)
            if refused.code == UNUSABLE_PROXY:
                self.tell(s.ProblemReported(HoldCode.CORRUPTED_CREDENTIAL, 0, s.clean(refused.text)))


async def _refuse(request: bytes) -> bytes:
    raise Refused("DELEGATION", "the job has no proxy")
