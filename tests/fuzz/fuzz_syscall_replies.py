"""What a shadow answers on the syscall socket, on the first one and on one that it comes back with: values that have
been checked, a refusal, or a PeerFault; nothing else, and never a wait for more than was asked."""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import trio
import trio.testing
from classad2 import ClassAd

from cedar.codec import Item, encode
from cedar.errors import PeerFault
from cedar.stream import CedarStream
from starter.shadow import MAX_CREDENTIALS, MAX_DELEGATION_BYTES, Shadow, ShadowRefused, TransferSession


def message(*items: Item) -> bytes:
    """A whole message in clear, as it goes over the wire."""
    body = bytes(encode(items, keyed=False))
    return struct.pack(">BI", 1, len(body)) + body


SEEDS = (
    b"\x00" + message(0, ClassAd({"ClusterId": 5, "JobLeaseDuration": 2400})),
    b"\x01" + message(1, "r", "[ri]", "rk", "f", "[fi]", "fk"),
    b"\x02" + message(-1, 13),
    b"\x03" + message(1, ClassAd({"Service": "s", "Data": "eA=="}), 0),
    b"\x04" + message(5, b"certs"),
    b"\x05" + message(1, "r", "[ri]", "rk", "f", "[fi]", "fk") + message(0),
)
Call = Callable[[Shadow], Awaitable[Any]]


async def _exchange(delegate: Callable[[bytes], Awaitable[bytes]]) -> bytes:
    return await delegate(b"request")


CALLS: tuple[Call, ...] = (
    lambda shadow: shadow.get_job_info(),
    lambda shadow: shadow.get_transfer_session(),
    lambda shadow: shadow.begin_execution(),
    lambda shadow: shadow.get_credentials(),
    lambda shadow: shadow.fetch_proxy(1, _exchange),
)


class _Canned(trio.abc.HalfCloseableStream):
    """A connection whose other end answers each message with the next packet that it has, and then is gone."""

    def __init__(self, data: bytes) -> None:
        self.socket = self
        self._data = data
        self._may_send = 0 if data else 1
        self._asked = trio.Event()
        self._closed = False

    def setsockopt(self, *_: object) -> None:
        return

    def getpeername(self) -> str:
        return ""

    async def recv_into(self, space: memoryview) -> int:
        while not (self._may_send or self._closed):
            await self._asked.wait()
        await trio.lowlevel.checkpoint()
        if self._closed:
            raise trio.ClosedResourceError
        packet = 5 + int.from_bytes(self._data[1:5], "big")
        size = min(len(space), len(self._data), packet)
        piece, self._data = self._data[:size], self._data[size:]
        if size == packet:  # else it is cut, and the rest follows at once
            self._may_send -= 1
        space[:size] = piece
        return size

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        self._may_send += 1
        self._asked.set()
        self._asked = trio.Event()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        raise NotImplementedError  # the stream reads from the socket

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def send_eof(self) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Whoever receives is told, as by a real socket."""
        self._closed = True
        self._asked.set()
        await trio.lowlevel.checkpoint()


def once(data: bytes) -> None:
    """The first byte says which call; the rest is what the shadow says to it."""
    trio.run(_once, data, clock=trio.testing.MockClock(autojump_threshold=0))


async def _once(data: bytes) -> None:
    choice, answers = (data[0], data[1:]) if data else (0, b"")
    if choice % (len(CALLS) + 1) == len(CALLS):
        await _comes_back(answers)
        return
    result = await _made(Shadow(_stream(answers)), CALLS[choice % (len(CALLS) + 1)])
    if isinstance(result, bytes):
        assert len(result) <= MAX_DELEGATION_BYTES
    if isinstance(result, list):
        assert len(result) <= MAX_CREDENTIALS


async def _comes_back(answers: bytes) -> None:
    """A shadow that takes the job up: the first answer is the session, the second that of a call."""
    shadow = Shadow(_stream(b""))
    await shadow.listen()
    try:
        session = await shadow.take(_stream(answers))
    except (PeerFault, ShadowRefused):
        assert shadow.lost, "a failed return has changed something"
        return
    assert isinstance(session, TransferSession)
    marked = attrs.evolve(session, key="never-shown")  # its own may be a letter, which stands in any text
    assert "never-shown" not in repr(marked)
    await _made(shadow, CALLS[2])


async def _made(shadow: Shadow, call: Call) -> Any:
    """The call's result; None if it was refused, or the socket was no good. A starter gives up after a lease."""
    result = None
    async with trio.open_nursery() as nursery:

        async def listen() -> None:
            await shadow.listen()
            shadow.give_up(PeerFault("closed", "its lease is over"))

        nursery.start_soon(listen)
        with trio.fail_after(3600):
            try:
                result = await call(shadow)
            except (PeerFault, ShadowRefused):
                result = None
        nursery.cancel_scope.cancel()
    return result


def _stream(data: bytes) -> CedarStream:
    return CedarStream(_Canned(data))  # type: ignore[arg-type]
