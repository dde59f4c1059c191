"""The starter's side of the syscall socket: calls to the shadow, one at a time (wire reference 4).

Calls are never cut off in the middle: a cancelled caller leaves only after the answer, or after ``CALL_DEADLINE_S``.
A lost connection is noticed also between calls. Nothing here decides what a loss means.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import attrs
import trio
from classad2 import ClassAd

from cedar.codec import Item, Reader
from cedar.commands import Syscall
from cedar.errors import PeerFault
from cedar.stream import CedarStream

# Stock waits 300 s on this socket (wire reference 4.1); a shadow that blocks longer than this has other troubles.
CALL_DEADLINE_S = 120.0
# Longest answer to a delegation: a chain of 32 certificates of 4 kB (the limits of pilot.credentials).
MAX_DELEGATION_BYTES = 256 * 1024
# Tokens of one job; each is for a service that the user named at submit time.
MAX_CREDENTIALS = 64


class ShadowRefused(Exception):
    """The shadow answered a call with a negative value and this errno."""

    def __init__(self, call: Syscall, errno: int) -> None:
        super().__init__(f"the shadow refused {call.name} (errno {errno})")
        self.call, self.errno = call, errno


@attrs.frozen
class TransferSession:
    """What get_sec_session_info (288) tells of the file-transfer session."""

    session_id: str
    info: str
    key: str = attrs.field(repr=False)


class Shadow:
    """One shadow at the other end of ``stream``. ``listen`` must run as long as calls are made."""

    def __init__(self, stream: CedarStream) -> None:
        self._stream = stream
        self._one_call = trio.Lock()
        self._answers, self._answer = trio.open_memory_channel[Reader](0)
        self._calling = False
        self._fault: PeerFault | None = None
        self._gone = trio.Event()

    async def listen(self) -> PeerFault:
        """Read answers until the connection ends; returns why it ended. Cancelling it ends all further calls."""
        try:
            while True:
                reader = await self._stream.get()
                if not self._calling:
                    raise PeerFault("protocol", "the shadow spoke out of turn")
                await self._answers.send(reader)
        except PeerFault as fault:
            self._fault = fault
            return fault
        finally:
            self._fault = self._fault or PeerFault("closed", "the syscall socket is no longer read")
            self._gone.set()
            self._answers.close()

    async def wait_gone(self) -> None:
        """Until the connection has ended."""
        await self._gone.wait()

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def _exchange(self, *items: Item) -> Reader:
        if self._fault is not None:
            raise self._fault
        await self._stream.put(*items)
        return await self._next()

    async def _next(self) -> Reader:
        try:
            return await self._answer.receive()
        except trio.EndOfChannel:
            raise self._fault or PeerFault("closed", "the syscall socket ended") from None

    async def _call(self, call: Syscall, *arguments: Item) -> tuple[int, Reader]:
        """Send one call and read ``rval``; the rest of the answer is the caller's.

        Raises:
            PeerFault: connection lost, or no answer within CALL_DEADLINE_S.
            ShadowRefused: rval < 0.
        """
        async with self._turn():
            reader = await self._exchange(int(call), *arguments)
            rval = reader.int()
            if rval < 0:
                raise ShadowRefused(call, reader.int() if reader.remaining() else 0)
            return rval, reader

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """One call's turn on the socket: exclusive, shielded from cancelling, bounded."""
        async with self._one_call:
            with trio.move_on_after(CALL_DEADLINE_S, shield=True) as scope:
                self._calling = True
                try:
                    yield
                finally:
                    self._calling = False
            if scope.cancelled_caught:
                raise PeerFault("timeout", f"the shadow did not answer within {CALL_DEADLINE_S:.0f} s")

    async def remote(self, call: Syscall, *arguments: Item) -> tuple[int, Reader]:
        """A call on the job's behalf (chirp). Raises as all calls do: PeerFault, ShadowRefused."""
        return await self._call(call, *arguments)

    # --- the calls -----------------------------------------------------------------------------------------------

    async def get_job_info(self) -> ClassAd:
        """The job ad, with TransferKey and TransferSocket."""
        return (await self._call(Syscall.GET_JOB_INFO))[1].ad()

    async def register_starter_info(self, info: ClassAd) -> None:
        await self._call(Syscall.REGISTER_STARTER_INFO, info)

    async def get_transfer_session(self) -> TransferSession:
        """Session of the file transfer; the reconnect session, told in the same answer, is the claim session."""
        _, reader = await self._call(Syscall.GET_SEC_SESSION_INFO, "", "")
        for _ in range(3):
            reader.string()
        return TransferSession(reader.string(), reader.string(), reader.string())

    async def register_job_info(self, update: ClassAd) -> None:
        await self._call(Syscall.REGISTER_JOB_INFO, update)

    async def begin_execution(self) -> None:
        await self._call(Syscall.BEGIN_EXECUTION)

    async def note_job_ended(self) -> None:
        """event_notification (304): the job has ended now; stock reckons the times of execution and of tidying up from
        it. Its answer is negative in normal operation, and says nothing (wire reference T20)."""
        event = ClassAd()
        event["EventType"] = "ActivationExecutionExit"
        await self.notify(event)

    async def notify(self, event: ClassAd) -> None:
        """event_notification (304), whatever its answer."""
        async with self._turn():
            await self._exchange(int(Syscall.EVENT_NOTIFICATION), event)

    async def job_exit(self, wait_status: int, reason: int, update: ClassAd) -> None:
        await self._call(Syscall.JOB_EXIT, wait_status, reason, update)

    async def get_credentials(self) -> list[ClassAd]:
        """getcreds (302): an ad {Service, Data} for each token of the job. Only for a job that needs tokens: a stock
        shadow holds the job when it has none to give (wire reference T44).

        Raises:
            PeerFault: also when the shadow says that it failed.
        """
        async with self._turn():
            reader = await self._exchange(int(Syscall.GETCREDS), "")
            found: list[ClassAd] = []
            while (more := reader.int()) > 0:
                if len(found) == MAX_CREDENTIALS:
                    raise PeerFault("limit", f"the shadow sends more than {MAX_CREDENTIALS} tokens")
                found.append(reader.ad())
            if more < 0:
                raise PeerFault("credentials", "the shadow could not give the job's tokens")
            return found

    async def log_event(self, event: ClassAd) -> None:
        """ulog (284): no answer."""
        async with self._one_call:
            await self._stream.put(int(Syscall.ULOG), event)

    async def fetch_proxy(
        self, expiration: int, exchange: Callable[[Callable[[bytes], Awaitable[bytes]]], Awaitable[bytes]]
    ) -> bytes:
        """get_delegated_proxy (303): ``exchange`` is given a function that takes the request (DER) to the shadow and
        brings the certificates (DER, back to back); its result is returned. The path is ignored by the shadow.

        Raises:
            PeerFault: also when the shadow answers 'failed': it drops the connection then (wire reference 7.5).
        """
        async with self._turn():
            await self._stream.put(int(Syscall.GET_DELEGATED_PROXY), "", expiration)
            return await exchange(self._delegate)

    async def _delegate(self, request: bytes) -> bytes:
        reader = await self._exchange(len(request), request)
        length = reader.int()
        if not 0 < length <= MAX_DELEGATION_BYTES:
            raise PeerFault("delegation", f"the shadow could not delegate the job's proxy (answered length {length})")
        certificates = reader.raw(length)
        reader.end()
        return certificates
