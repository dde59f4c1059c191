"""The starter's side of the conversation with its shadow: the calls (wire reference 4), whatever socket they go over.

A lost socket is not the end: ``take`` brings another one, and a call that was interrupted is made again on it. Until
then callers wait, and may be cancelled. How long a shadow is waited for is decided elsewhere, and told by ``give_up``.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from typing import TypeVar

import attrs
import trio
from classad2 import ClassAd

from cedar.codec import Item, Reader
from cedar.commands import Syscall
from cedar.errors import PeerFault
from cedar.stream import CedarStream
from starter.syscalls import SyscallSocket

# Longest answer to a delegation: a chain of 32 certificates of 4 kB (the limits of pilot.credentials).
MAX_DELEGATION_BYTES = 256 * 1024
# Tokens of one job; each is for a service that the user named at submit time.
MAX_CREDENTIALS = 64
# A call that costs so many sockets in a row is answered by nobody; the loss is reported as the caller's.
MAX_TRIES = 5
# The first call on a new socket (wire reference T38) is answered at once, or the socket is no good.
FIRST_ANSWER_S = 20.0
T = TypeVar("T")


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
    """The shadow of one job. ``heard_s``: when it last answered (monotonic), from which its lease is reckoned.
    ``takes``: how often one has taken the job up again; what it had open before means nothing to the next.

    ``listen`` must run, again after each ``take``, as long as calls are made.
    """

    def __init__(self, stream: CedarStream) -> None:
        self._socket = SyscallSocket(stream)
        self._one_call = trio.Lock()
        self._taken = trio.Event()
        self._given_up: PeerFault | None = None
        self.takes = 0
        self.heard_s = trio.current_time()

    async def listen(self) -> PeerFault:
        """Until the present socket ends; returns why. Cancelling it ends the calls on that socket."""
        return await self._socket.listen()

    @property
    def peer(self) -> str:
        """Its address, as it is now."""
        return self._socket.peer

    @property
    def lost(self) -> bool:
        """Whether there is no socket now."""
        return self._socket.fault is not None

    @property
    def given_up(self) -> bool:
        """Whether no further socket is waited for."""
        return self._given_up is not None

    async def wait_gone(self) -> None:
        """Until the present socket has ended."""
        await self._socket.wait_gone()

    async def wait_connected(self) -> None:
        """Until there is a socket.

        Raises:
            PeerFault: the shadow was given up.
        """
        await self._connected(wait=True)

    async def take(self, stream: CedarStream) -> TransferSession:
        """Go on with this socket, on which a shadow has just taken the job up; the session of its file transfer.

        Cancelling it, or a fault, leaves everything as it was; ``stream`` is the caller's then.

        Raises:
            PeerFault: the first call was not answered, or the shadow was given up before it was.
            ShadowRefused: it was refused.
        """
        with trio.move_on_after(FIRST_ANSWER_S) as scope:
            await stream.put(int(Syscall.GET_SEC_SESSION_INFO), "", "")
            session = _session_in(_checked(Syscall.GET_SEC_SESSION_INFO, await stream.get())[1])
        if scope.cancelled_caught:
            raise PeerFault("timeout", f"the shadow did not answer within {FIRST_ANSWER_S:.0f} s")
        if self._given_up is not None:  # nobody would listen: a call there would wait in vain, and the job's end for it
            raise PeerFault("late", "the shadow came back when the job's lease was over")
        before, self._socket = self._socket, SyscallSocket(stream)
        self.takes += 1
        self.heard_s = trio.current_time()
        await before.drop(PeerFault("replaced", "a shadow has taken the job up on another socket"))
        self._taken.set()
        self._taken = trio.Event()
        return session

    def give_up(self, fault: PeerFault) -> None:
        """No other socket is waited for: whoever waits for one gets ``fault``."""
        self._given_up = fault
        self._taken.set()

    async def aclose(self) -> None:
        await self._socket.drop(PeerFault("closed", "the job has ended"))

    async def _connected(self, *, wait: bool) -> SyscallSocket:
        while self._socket.fault is not None:
            if self._given_up is not None or not wait:
                raise self._given_up or self._socket.fault
            await self._taken.wait()
        return self._socket

    async def _make(self, call: Callable[[SyscallSocket], Awaitable[T]], *, wait: bool = True) -> T:
        """One call's turn, on whatever socket there is. ``wait``: for the next socket where there is none, and make the
        call again there; otherwise a lost socket is the caller's.

        Raises:
            PeerFault: no socket; none would answer MAX_TRIES times; or what ``call`` raises.
        """
        tries = 0
        async with self._one_call:
            while True:
                socket = await self._connected(wait=wait)
                try:
                    result = await socket.turn(call)
                except PeerFault as fault:
                    tries += 1
                    with trio.CancelScope(shield=True):  # closing a socket does not wait
                        await socket.drop(fault)
                    if not wait or tries == MAX_TRIES:
                        raise
                    continue
                self.heard_s = trio.current_time()
                return result

    async def _call(self, call: Syscall, *arguments: Item, wait: bool = True) -> tuple[int, Reader]:
        """Send one call and read ``rval``; the rest of the answer is the caller's.

        Raises:
            PeerFault: as ``_make``.
            ShadowRefused: rval < 0.
        """
        return _checked(call, await self._make(lambda socket: socket.exchange(int(call), *arguments), wait=wait))

    async def remote(self, call: Syscall, *arguments: Item, to: int | None = None) -> tuple[int, Reader]:
        """A call on the job's behalf (chirp); never made again: nobody knows then whether it was carried out. ``to``:
        only to the shadow of so many ``takes``.

        Raises:
            PeerFault: there is no shadow now.
            ShadowRefused: rval < 0; EBADF where another shadow has the job now.
        """

        async def make(socket: SyscallSocket) -> Reader:
            if to is not None and to != self.takes:
                raise ShadowRefused(call, errno.EBADF)
            return await socket.exchange(int(call), *arguments)

        return _checked(call, await self._make(make, wait=False))

    # --- the calls -----------------------------------------------------------------------------------------------

    async def get_job_info(self) -> ClassAd:
        """The job ad, with TransferKey and TransferSocket."""
        return (await self._call(Syscall.GET_JOB_INFO))[1].ad()

    async def register_starter_info(self, info: ClassAd) -> None:
        await self._call(Syscall.REGISTER_STARTER_INFO, info)

    async def get_transfer_session(self) -> TransferSession:
        """Session of the file transfer; the reconnect session, told in the same answer, is the claim session."""
        return _session_in((await self._call(Syscall.GET_SEC_SESSION_INFO, "", ""))[1])

    async def register_job_info(self, update: ClassAd) -> None:
        await self._call(Syscall.REGISTER_JOB_INFO, update)

    async def update_job_info(self, update: ClassAd) -> None:
        """The same for what is true now only: never made again, for by then it would be stale (wire reference T16).

        Raises:
            PeerFault: there is no shadow now.
        """
        await self._call(Syscall.REGISTER_JOB_INFO, update, wait=False)

    async def begin_execution(self, *, wait: bool = True) -> None:
        await self._call(Syscall.BEGIN_EXECUTION, wait=wait)

    async def note_job_ended(self) -> None:
        """event_notification (304): the job has ended now; stock reckons the times of execution and of tidying up from
        it; said now or not at all (PeerFault)."""
        event = ClassAd()
        event["EventType"] = "ActivationExecutionExit"
        await self._make(lambda socket: socket.exchange(int(Syscall.EVENT_NOTIFICATION), event), wait=False)

    async def notify(self, event: ClassAd) -> None:
        """event_notification (304). Its answer is negative in normal operation and says nothing (T20)."""
        await self._make(lambda socket: socket.exchange(int(Syscall.EVENT_NOTIFICATION), event))

    async def request_guidance(self, question: ClassAd) -> tuple[int, ClassAd]:
        """request_guidance (305): the result, which brings no errno with it where it is negative (T32), and the ad.

        Only for shadows that know the call: others answer nothing at all (T33).

        Raises:
            PeerFault: the connection is gone.
        """
        reader = await self._make(lambda socket: socket.exchange(int(Syscall.REQUEST_GUIDANCE), question))
        result = reader.int()
        return result, reader.ad() if reader.remaining() else ClassAd()

    async def job_exit(self, wait_status: int, reason: int, update: ClassAd) -> None:
        await self._call(Syscall.JOB_EXIT, wait_status, reason, update)

    async def get_credentials(self, *, wait: bool = True) -> list[ClassAd]:
        """getcreds (302): an ad {Service, Data} for each token of the job. Only for a job that needs tokens: a stock
        shadow holds the job when it has none to give (wire reference T44).

        Raises:
            PeerFault: the connection is gone, or more tokens come than a job can name.
            ShadowRefused: the shadow has not all of them.
        """
        reader = await self._make(lambda socket: socket.exchange(int(Syscall.GETCREDS), ""), wait=wait)
        found: list[ClassAd] = []
        while (more := reader.int()) > 0:
            if len(found) == MAX_CREDENTIALS:
                raise PeerFault("limit", f"the shadow sends more than {MAX_CREDENTIALS} tokens")
            found.append(reader.ad())
        if more < 0:
            raise ShadowRefused(Syscall.GETCREDS, 0)
        return found

    async def log_event(self, event: ClassAd) -> None:
        """ulog (284): no answer."""
        await self._make(lambda socket: socket.put(int(Syscall.ULOG), event))

    async def fetch_proxy(
        self, expiration: int, exchange: Callable[[Callable[[bytes], Awaitable[bytes]]], Awaitable[bytes]]
    ) -> bytes:
        """get_delegated_proxy (303): ``exchange`` is given a function that takes the request (DER) to the shadow and
        brings the certificates (DER, back to back); its result is returned. The path is ignored by the shadow.

        Raises:
            PeerFault: also when the shadow answers 'failed': it drops the connection then (wire reference 7.5).
        """

        async def fetch(socket: SyscallSocket) -> bytes:
            await socket.put(int(Syscall.GET_DELEGATED_PROXY), "", expiration)
            return await exchange(lambda request: self._delegate(socket, request))

        return await self._make(fetch, wait=False)

    async def _delegate(self, socket: SyscallSocket, request: bytes) -> bytes:
        reader = await socket.exchange(len(request), request)
        length = reader.int()
        if not 0 < length <= MAX_DELEGATION_BYTES:
            raise PeerFault("delegation", f"the shadow could not delegate the job's proxy (answered length {length})")
        certificates = reader.raw(length)
        reader.end()
        return certificates


def _checked(call: Syscall, reader: Reader) -> tuple[int, Reader]:
    """A value that says yes, and the rest of the answer."""
    rval = reader.int()
    if rval < 0:
        raise ShadowRefused(call, reader.int() if reader.remaining() else 0)
    return rval, reader


def _session_in(reader: Reader) -> TransferSession:
    """Of two sessions, of three strings each, the second."""
    for _ in range(3):
        reader.string()
    return TransferSession(reader.string(), reader.string(), reader.string())
