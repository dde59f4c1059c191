"""Peers for tests of the file transfer: streams, items and sinks in memory, and a peer written down by hand.

The hand-written peer builds and compares raw message bodies, so an error made in both roles is seen.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from cedar.errors import PeerFault
from cedar.filetransfer import (
    Ack,
    File,
    Item,
    StoreFailed,
    TransferLimits,
    receive_files,
    send_files,
)
from cedar.stream import CedarStream

CHUNK = 262144
KEY = bytes(range(32))
OK = Ack(ok=True)


@contextlib.asynccontextmanager
async def streams(deadline_s: float = 20) -> AsyncIterator[tuple[CedarStream, CedarStream]]:
    """Two ends of a keyed stream, closed at the end; nothing takes longer than the deadline."""
    left, right = (CedarStream(trio.SocketStream(end)) for end in trio.socket.socketpair())
    try:
        left.use_key(KEY)
        right.use_key(KEY)
        with trio.fail_after(deadline_s):
            yield left, right
    finally:
        with trio.CancelScope(shield=True):
            await left.aclose()
            await right.aclose()


async def in_pieces(data: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        await trio.lowlevel.checkpoint()
        yield data[start : start + size]


def file(name: str, data: bytes, *, mode: int = 0o644, piece: int = 1 << 20) -> File:
    return File(name, mode, len(data), in_pieces(data, piece))


class Items:
    """An asynchronous iterable of given items that knows whether it was closed."""

    def __init__(self, items: Iterable[Item]) -> None:
        self._items = iter(items)
        self.closed = False

    def __aiter__(self) -> AsyncIterator[Item]:
        return self

    async def __anext__(self) -> Item:
        await trio.lowlevel.checkpoint()
        try:
            return next(self._items)
        except StopIteration:
            raise StopAsyncIteration from None

    async def aclose(self) -> None:
        self.closed = True


@attrs.define
class MemorySink:
    """Keeps what it gets; `refuse` says which names fail, `deaf` leaves the bytes unread."""

    stored: dict[str, tuple[int, bytes | None]] = attrs.field(factory=dict)
    refuse: dict[str, StoreFailed] = attrs.field(factory=dict)
    deaf: bool = False
    urls: dict[str, str] = attrs.field(factory=dict)
    request: bytes | None = b"request"

    def _check(self, name: str) -> None:
        if name in self.refuse:
            raise self.refuse[name]

    async def directory(self, name: str, mode: int) -> None:
        self._check(name)
        self.stored[name] = (mode, None)

    async def file(self, name: str, mode: int, size: int, chunks: AsyncIterator[bytes]) -> None:
        self._check(name)
        data = b"" if self.deaf else b"".join([chunk async for chunk in chunks])
        assert self.deaf or len(data) == size
        self.stored[name] = (mode, data)

    async def url(self, name: str, url: str) -> None:
        self._check(name)
        self.urls[name] = url

    async def finish(self) -> Mapping[str, int | str]:
        self._check("finish")
        return {"HTTPSFilesCount": len(self.urls)} if self.urls else {}

    async def proxy(self, name: str, exchange: Callable[[bytes], Awaitable[bytes]]) -> None:
        self._check(name)
        if self.request is not None:
            self.stored[name] = (0, await exchange(self.request))


async def sign(request: bytes) -> bytes:
    return b"signed " + request


async def both(
    items: Iterable[Item],
    sink: MemorySink | None = None,
    *,
    limits: TransferLimits | None = None,
    **options: Any,
) -> tuple[tuple[Ack, Ack], tuple[Ack, Ack]]:
    """(what the sender returned, what the receiver returned)."""
    results: list[tuple[Ack, Ack]] = []

    async def receive(stream: CedarStream) -> None:
        results.append(await receive_files(stream, sink if sink is not None else MemorySink(), limits=limits))
        await stream.aclose()

    async with streams() as (left, right), trio.open_nursery() as nursery:
        nursery.start_soon(receive, right)
        sent = await send_files(left, Items(items), **{"final": True, "sandbox_bytes": 0} | options)
    return sent, results[0]


def integer(value: int) -> bytes:
    return struct.pack(">q", value)


def text(value: str) -> bytes:
    raw = value.encode() + b"\0"
    return integer(len(raw)) + raw


def ad_bytes(*lines: str) -> bytes:
    return integer(len(lines)) + b"".join(text(line) for line in lines) + text("") + text("")


class Peer:
    """One end of a stream, message by message."""

    def __init__(self, stream: CedarStream) -> None:
        self.stream = stream

    async def says(self, *parts: bytes) -> None:
        await self.stream.put(b"".join(parts))

    async def hears(self, *parts: bytes) -> None:
        reader = await self.stream.get()
        assert reader.raw(reader.remaining()) == b"".join(parts)

    async def hears_ad(self, *before: bytes) -> dict[str, Any]:
        """An ad, whose lines may come in any order."""
        reader = await self.stream.get()
        for part in before:
            assert reader.raw(len(part)) == part
        ad = reader.ad()
        reader.end()
        return {name: " ".join(str(ad.lookup(name)).split()) for name in ad}

    async def hears_ok(self) -> None:
        """An acknowledgement that all is well, with whatever statistics."""
        ad = await self.hears_ad()
        assert ad.pop("TransferStats")
        assert ad == {"Result": "0"}

    async def hears_the_end(self) -> None:
        with pytest.raises(PeerFault, match="closed"):
            await self.stream.get()

    async def hears_only_the_end(self) -> None:
        """Whatever the other side still says before it sees a fault, then the end."""
        with contextlib.suppress(PeerFault):
            while True:
                await self.stream.get()


async def against(peer: Callable[[Peer], Awaitable[None]], ours: Callable[[CedarStream], Awaitable[Any]]) -> Any:
    """Run our side against a peer; our side's stream is closed afterwards, as a caller does."""
    result: list[Any] = []

    async def our_side(stream: CedarStream) -> None:
        try:
            result.append(await ours(stream))
        finally:
            await stream.aclose()

    async with streams() as (left, right), trio.open_nursery() as nursery:
        nursery.start_soon(our_side, left)
        await peer(Peer(right))
    return result[0]


def sending(items: Iterable[Item], **options: Any) -> Callable[[CedarStream], Awaitable[Any]]:
    options = {"final": False, "sandbox_bytes": 7} | options
    return lambda stream: send_files(stream, Items(items), **options)


def receiving(sink: MemorySink, **options: Any) -> Callable[[CedarStream], Awaitable[Any]]:
    return lambda stream: receive_files(stream, sink, **options)


async def peer_lets_us_send(peer: Peer, *, max_bytes: int = -1) -> None:
    """The receiver's half of the go-ahead as stock does it."""
    await peer.hears(integer(300))
    await peer.says(ad_bytes("Result = 2", f"MaxTransferBytes = {max_bytes}"))
    await peer.says(integer(300))
    assert await peer.hears_ad() == {"Result": "2"}


async def peer_sends_first_item(peer: Peer, kind: int, name: str) -> None:
    """The sender's beginning as stock does it."""
    await peer.says(integer(0), ad_bytes("SandboxSize = 12"))
    await peer.says(integer(kind))
    await peer.says(text(name))
    await peer.says(integer(300))
    assert await peer.hears_ad() == {"Result": "2", "MaxTransferBytes": "-1"}
    await peer.hears(integer(300))
    await peer.says(ad_bytes("Result = 2"))


async def peer_ends_well(peer: Peer) -> dict[str, Any]:
    await peer.says(integer(0))
    await peer.says(ad_bytes("Result = 0", "TransferStats = [ ]"))
    return await peer.hears_ad()
