"""File transfer: both roles against each other, and each against a peer that is written down by hand.

The hand-written peer builds and compares raw message bodies, so an error made in both roles is seen.
"""

from __future__ import annotations

import contextlib
import errno
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from cedar import filetransfer
from cedar.errors import PeerFault, Refused
from cedar.filetransfer import (
    Ack,
    Directory,
    File,
    Item,
    Missing,
    ProxyItem,
    ReadFailed,
    StoreFailed,
    TransferLimits,
    receive_files,
    send_files,
)
from cedar.stream import CedarStream

CHUNK = 262144
KEY = bytes(range(32))
OK = Ack(ok=True)


# --- streams, items, sinks ---


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


# --- the hand-written peer ---


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

    async def hears_the_end(self) -> None:
        with pytest.raises(PeerFault, match="closed"):
            await self.stream.get()

    async def hears_only_the_end(self) -> None:
        """Whatever the other side still says before it sees a fault, then the end."""
        with contextlib.suppress(PeerFault):
            while True:
                await self.stream.get()


async def against(
    peer: Callable[[Peer], Awaitable[None]], ours: Callable[[CedarStream], Awaitable[Any]]
) -> Any:
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


OK_AD = {"Result": "0", "TransferStats": "[ ]"}


# --- our sender against the reference's layout ---


async def test_sender_layout() -> None:
    data = bytes(range(256)) * 2000  # 512,000 bytes: one full chunk and a rest

    async def peer(peer: Peer) -> None:
        assert await peer.hears_ad(integer(0)) == {"SandboxSize": "7"}
        await peer.hears(integer(6))
        await peer.hears(text("d"))
        await peer_lets_us_send(peer)
        await peer.hears(integer(0o40750))
        await peer.hears(integer(1))
        await peer.hears(text("d/big"))
        await peer.hears(integer(0o100755))
        await peer.hears(integer(len(data)), integer(CHUNK))
        await peer.hears(data[:CHUNK])
        await peer.hears(data[CHUNK:])
        await peer.hears(integer(1))
        await peer.hears(text("empty"))
        await peer.hears(integer(0o100600))
        await peer.hears(integer(0), integer(CHUNK))
        await peer.hears(integer(666))
        await peer.hears(integer(0))
        assert await peer.hears_ad() == OK_AD
        await peer.says(ad_bytes("Result = 0", "TransferStats = [ ]"))
        await peer.hears_the_end()

    items: list[Item] = [
        Directory("d", 0o750),
        file("d/big", data, mode=0o755, piece=100_000),
        file("empty", b"", mode=0o600),
    ]
    own, theirs = await against(peer, sending(items))
    assert own == Ack(ok=True, files=2, bytes=len(data))
    assert theirs == OK


async def test_sender_without_items_has_no_go_ahead() -> None:
    async def peer(peer: Peer) -> None:
        assert await peer.hears_ad(integer(1)) == {"SandboxSize": "7"}
        await peer.hears(integer(0))
        assert await peer.hears_ad() == OK_AD
        await peer.says(ad_bytes("Result = 0"))

    assert await against(peer, sending([], final=True)) == (OK, OK)


async def test_sender_waits_in_the_peers_queue() -> None:
    async def peer(peer: Peer) -> None:
        await peer.hears_ad(integer(0))
        await peer.hears(integer(1))
        await peer.hears(text("f"))
        await peer.hears(integer(300))
        for line in ("Timeout = 900", "Another = 1", "Timeout = 1"):
            await peer.says(ad_bytes("Result = 0", line))
        await peer.says(ad_bytes("Result = 2"))
        await peer.says(integer(30))
        assert await peer.hears_ad() == {"Timeout": "300", "Result": "0"}
        assert await peer.hears_ad() == {"Result": "2"}
        await peer.hears(integer(0o100644))
        await peer.hears(integer(1), integer(CHUNK))
        await peer.hears(b"x")
        await peer.hears(integer(0))
        assert await peer.hears_ad() == OK_AD
        await peer.says(ad_bytes("Result = 0"))

    assert (await against(peer, sending([file("f", b"x")])))[1] == OK


async def test_sender_asks_again_where_one_item_was_allowed() -> None:
    async def peer(peer: Peer) -> None:
        await peer.hears_ad(integer(0))
        for number, name in enumerate("ab"):
            await peer.hears(integer(6))
            await peer.hears(text(name))
            await peer.hears(integer(300))
            await peer.says(ad_bytes("Result = 1"))
            if number == 0:
                await peer.says(integer(300))
                assert await peer.hears_ad() == {"Result": "2"}
            await peer.hears(integer(0o40755))
        await peer.hears(integer(0))
        await peer.hears_ad()
        await peer.says(ad_bytes("Result = 0"))

    assert (await against(peer, sending([Directory("a", 0o755), Directory("b", 0o755)])))[1] == OK


async def test_sender_without_go_ahead_closes() -> None:
    async def peer(peer: Peer) -> None:
        await peer.hears_ad(integer(0))
        await peer.hears(integer(1))
        await peer.hears(text("f"))
        await peer.hears(integer(300))
        await peer.says(
            ad_bytes("Result = -1", "TryAgain = false", "HoldReasonCode = 32", 'HoldReason = "too\nmuch"')
        )
        await peer.hears_the_end()

    own, theirs = await against(peer, sending([file("f", b"x")]))
    assert not own.ok
    assert theirs == Ack(ok=False, hold_code=32, reason="too much", retry=False)


@pytest.mark.parametrize("first", [True, False])
async def test_sender_with_a_wrong_key(first: bool) -> None:
    async def peer(peer: Peer) -> None:
        await peer.says(integer(0))

    with pytest.RaisesGroup(pytest.RaisesExc(Refused, match="TRANSFER_KEY")):
        await against(peer, sending([file("f", b"x")] if first else []))


async def test_sender_reports_missing_and_short_files() -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"begin"
        raise ReadFailed(13, errno.EIO, "disk\ntrouble")

    async def peer(peer: Peer) -> None:
        await peer.hears_ad(integer(0))
        await peer.hears(integer(1))
        await peer.hears(text("gone"))
        await peer_lets_us_send(peer)
        await peer.hears(integer(1 << 24))
        await peer.hears(integer(0), integer(1))
        await peer.hears(integer(666))
        for name, content in (("broken", bytes(CHUNK)), ("short", b"abc".ljust(CHUNK, b"\0"))):
            await peer.hears(integer(1))
            await peer.hears(text(name))
            await peer.hears(integer(0o100644))
            await peer.hears(integer(CHUNK + 3), integer(CHUNK))
            await peer.hears(content)
            await peer.hears(bytes(3))
        await peer.hears(integer(0))
        ack = await peer.hears_ad()
        assert ack["Result"] == "-1"
        assert ack["HoldReasonCode"] == "13"
        assert ack["HoldReasonSubCode"] == "2"
        assert ack["HoldReason"] == '"no such file: gone"'
        await peer.says(ad_bytes("Result = 0"))

    size = CHUNK + 3
    items: list[Item] = [
        Missing("gone", "no such file: gone"),
        File("broken", 0o644, size, broken()),
        File("short", 0o644, size, in_pieces(b"abc", 9)),
    ]
    own, _ = await against(peer, sending(items))
    assert own.hold_code == 13
    assert own.hold_subcode == errno.ENOENT


async def test_sender_cuts_a_file_that_grew() -> None:
    sink = MemorySink()
    (own, _), _ = await both([File("f", 0o644, 5, in_pieces(b"0123456789", 3))], sink)
    assert own.ok
    assert sink.stored["f"] == (0o644, b"01234")


async def test_sender_stops_at_the_peers_limit() -> None:
    async def peer(peer: Peer) -> None:
        await peer.hears_ad(integer(0))
        await peer.hears(integer(1))
        await peer.hears(text("small"))
        await peer_lets_us_send(peer, max_bytes=10)
        await peer.hears(integer(0o100644))
        await peer.hears(integer(6), integer(CHUNK))
        await peer.hears(b"123456")
        await peer.hears(integer(1))
        await peer.hears(text("big"))
        await peer.hears(integer(1 << 24))
        await peer.hears(integer(0), integer(1))
        await peer.hears(integer(666))
        await peer.hears(integer(0))
        ack = await peer.hears_ad()
        assert (ack["Result"], ack["HoldReasonCode"]) == ("-1", "33")
        await peer.says(ad_bytes("Result = 0"))

    own, theirs = await against(
        peer, sending([file("small", b"123456"), file("big", b"12345"), file("x", b"")])
    )
    assert own.hold_code == 33
    assert theirs.ok


async def test_sender_tells_its_own_failure_and_closes_its_items() -> None:
    items = Items([file("f", b"x")])
    failure = Ack(ok=False, hold_code=13, hold_subcode=5, reason="half gone", retry=True)

    async def send(stream: CedarStream) -> None:
        own, theirs = await send_files(
            stream, items, final=True, sandbox_bytes=1, own_failure=lambda: failure
        )
        assert own == attrs.evolve(failure, files=1, bytes=1)
        assert theirs.ok

    async with streams() as (left, right), trio.open_nursery() as nursery:
        nursery.start_soon(send, left)
        own, theirs = await receive_files(right, MemorySink())
    assert own == Ack(ok=True, files=1, bytes=1)
    assert theirs == failure
    assert items.closed


class EndlessChunks:
    """Calls `each` before every chunk."""

    def __init__(self, each: Callable[[], Awaitable[None]]) -> None:
        self._each = each
        self.closed = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        await self._each()
        return bytes(CHUNK)

    async def aclose(self) -> None:
        self.closed = True


async def test_sender_closes_items_and_chunks_when_the_peer_is_gone() -> None:
    async def peer(stream: CedarStream) -> None:
        await Peer(stream).hears_ad(integer(1))
        await Peer(stream).hears(integer(1))
        await Peer(stream).hears(text("f"))
        await peer_lets_us_send(Peer(stream))

    async with streams() as (left, right), trio.open_nursery() as nursery:
        chunks = EndlessChunks(right.aclose)
        items = Items([File("f", 0o644, 1 << 30, chunks)])
        nursery.start_soon(peer, right)
        with pytest.raises(PeerFault):
            await send_files(left, items, final=True, sandbox_bytes=1)
    assert chunks.closed
    assert items.closed


# --- our receiver against the reference's layout ---


async def test_receiver_layout() -> None:
    async def peer(peer: Peer) -> None:
        await peer_sends_first_item(peer, 1, "in.txt")
        await peer.says(integer(0o100640))
        await peer.says(integer(5), integer(3))
        await peer.says(b"abc")
        await peer.says(b"de")
        await peer.says(integer(6))
        await peer.says(text("d"))
        await peer.says(integer(0o40755))
        for kind, name in ((2, "d/e"), (3, "d/none")):
            await peer.says(integer(kind))
            await peer.says(text(name))
            await peer.says(integer(0))
            await peer.says(integer(0), integer(CHUNK))
            await peer.says(integer(666))
        assert await peer_ends_well(peer) == OK_AD

    headers: list[tuple[bool, int]] = []
    sink = MemorySink()
    result = await against(peer, receiving(sink, on_header=lambda *header: headers.append(header)))
    assert result == (Ack(ok=True, files=3, bytes=5), OK)
    assert headers == [(False, 12)]
    assert sink.stored == {
        "in.txt": (0o640, b"abcde"),
        "d": (0o755, None),
        "d/e": (0o644, b""),
        "d/none": (0o644, b""),
    }


async def test_receiver_announces_its_limit_and_a_longer_interval() -> None:
    async def peer(peer: Peer) -> None:
        await peer.says(integer(1), ad_bytes())
        await peer.says(integer(6))
        await peer.says(text("d"))
        await peer.says(integer(20))
        assert await peer.hears_ad() == {"Timeout": "300", "Result": "0"}
        assert await peer.hears_ad() == {"Result": "2", "MaxTransferBytes": "1000"}
        await peer.hears(integer(300))
        await peer.says(ad_bytes("Result = 0", "Timeout = 600"))
        await peer.says(ad_bytes("Result = 0"))
        await peer.says(ad_bytes("Result = 2"))
        await peer.says(integer(0o40755))
        assert await peer_ends_well(peer) == OK_AD

    assert await against(peer, receiving(MemorySink(), limits=TransferLimits(max_bytes=1000))) == (OK, OK)


async def test_receiver_with_a_wrong_key() -> None:
    async def peer(peer: Peer) -> None:
        await peer.says(integer(0))

    with pytest.RaisesGroup(pytest.RaisesExc(Refused, match="TRANSFER_KEY")):
        await against(peer, receiving(MemorySink()))


async def test_receiver_of_a_missing_file() -> None:
    async def peer(peer: Peer) -> None:
        await peer_sends_first_item(peer, 1, "gone")
        await peer.says(integer(1 << 24))
        await peer.says(integer(0), integer(1))
        await peer.says(integer(666))
        await peer.says(integer(0))
        await peer.says(
            ad_bytes("Result = -1", "HoldReasonCode = 13", "HoldReasonSubCode = 2", 'HoldReason = "gone"')
        )
        ack = await peer.hears_ad()
        assert (ack["Result"], ack["HoldReasonCode"], ack["HoldReasonSubCode"]) == ("-1", "12", "2")

    sink = MemorySink()
    own, theirs = await against(peer, receiving(sink))
    assert (own.hold_code, own.hold_subcode) == (12, errno.ENOENT)
    assert theirs == Ack(ok=False, hold_code=13, hold_subcode=2, reason="gone")
    assert sink.stored == {}


BAD_NAMES = [
    "",
    "/etc/passwd",
    "..",
    "../x",
    "a/../b",
    "a//b",
    "a/",
    "./a",
    ".",
    "x" * 256,
    "/".join("a" * 200),
]


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize("kind", [1, 6, 4])
async def test_receiver_drains_items_with_bad_names(name: str, kind: int) -> None:
    async def peer(peer: Peer) -> None:
        await peer_sends_first_item(peer, kind, name)
        if kind == 1:
            await peer.says(integer(0o100644))
            await peer.says(integer(3), integer(CHUNK))
            await peer.says(b"bad")
        elif kind == 6:
            await peer.says(integer(0o40755))
        else:
            await peer.hears(integer(0))
            await peer.says(integer(0))
            ack = await peer.hears_ad()
            assert (ack["Result"], ack["HoldReasonSubCode"]) == ("1", str(errno.EPERM))
            await peer.hears_the_end()
            return
        await peer.says(integer(1))
        await peer.says(text("good"))
        await peer.says(integer(0o100644))
        await peer.says(integer(4), integer(CHUNK))
        await peer.says(b"good")
        ack = await peer_ends_well(peer)
        assert (ack["Result"], ack["HoldReasonCode"], ack["HoldReasonSubCode"]) == (
            "-1",
            "12",
            str(errno.EPERM),
        )

    sink = MemorySink()
    own, _ = await against(peer, receiving(sink))
    assert not own.ok
    assert sink.stored == ({} if kind == 4 else {"good": (0o644, b"good")})


async def test_receiver_answers_other_requests() -> None:
    async def peer(peer: Peer) -> None:
        await peer_sends_first_item(peer, 999, "")
        await peer.says(
            ad_bytes("SubCommand = 8", 'Tag = "x"', 'ReuseList = { [ FileName = "a"; Size = 1 ] }')
        )
        assert await peer.hears_ad() == {"Result": "1"}
        await peer.says(integer(999))
        await peer.says(text(""))
        await peer.says(ad_bytes("SubCommand = 9", 'SignList = { "s3://a", "s3://b" }'))
        assert await peer.hears_ad() == {"SignList": '{ "", "" }'}
        await peer.says(integer(999))
        await peer.says(text("out"))
        await peer.says(
            ad_bytes("SubCommand = 7", 'Filename = "out"', 'OutputDestination = "http://x"', "Result = 0")
        )
        assert await peer_ends_well(peer) == OK_AD

    assert await against(peer, receiving(MemorySink())) == (OK, OK)


async def test_receiver_reports_a_failed_url_of_the_sender_and_urls_for_itself() -> None:
    async def peer(peer: Peer) -> None:
        await peer_sends_first_item(peer, 999, "out")
        await peer.says(ad_bytes("SubCommand = 7", 'Filename = "out"', "Result = 3", 'ErrorString = "no"'))
        await peer.says(integer(5))
        await peer.says(text("in"))
        await peer.says(text("http://x/secret"))
        ack = await peer_ends_well(peer)
        assert (ack["Result"], ack["HoldReasonCode"], ack["HoldReasonSubCode"]) == ("-1", "12", "3")
        assert "secret" not in ack["HoldReason"]

    own, _ = await against(peer, receiving(MemorySink()))
    assert "'out'" in own.reason


BREAKS: dict[str, list[bytes]] = {
    "unknown kind": [integer(7)],
    "kind with a tail": [integer(1) + b"x"],
    "unknown request": [integer(999), text(""), ad_bytes("SubCommand = 1")],
    "negative size": [integer(1), text("f"), integer(0), integer(-1) + integer(CHUNK)],
    "no chunk": [integer(1), text("f"), integer(0), integer(9) + integer(0)],
    "giant chunk": [integer(1), text("f"), integer(0), integer(9) + integer(1 << 40)],
    "chunk too short": [integer(1), text("f"), integer(0), integer(9) + integer(CHUNK), b"12345678"],
    "chunk too long": [integer(1), text("f"), integer(0), integer(9) + integer(CHUNK), b"1234567890"],
    "empty without mark": [integer(1), text("f"), integer(0), integer(0) + integer(CHUNK), integer(667)],
    "name without end": [integer(1), b"name"],
    "proxy frame too long": [integer(4), text("p"), integer(1 << 30)],
    "ack without result": [integer(0), ad_bytes("A = 1")],
    "ack that is a number": [integer(0), integer(5)],
    "closed": [],
}


@pytest.mark.parametrize("case", BREAKS)
async def test_receiver_against_a_peer_that_breaks_the_protocol(case: str) -> None:
    async def peer(peer: Peer) -> None:
        await peer_sends_first_item(peer, 6, "first")
        await peer.says(integer(0o40755))
        for message in BREAKS[case]:
            await peer.says(message)
        if case == "closed":
            await peer.stream.aclose()
        else:
            await peer.hears_only_the_end()

    with pytest.RaisesGroup(pytest.RaisesExc(PeerFault)):
        await against(peer, receiving(MemorySink()))


async def test_receiver_closes_beyond_its_limits() -> None:
    async def peer(peer: Peer) -> None:
        await peer_sends_first_item(peer, 6, "a")
        await peer.says(integer(0o40755))
        await peer.says(integer(6))
        await peer.hears_the_end()

    with pytest.RaisesGroup(pytest.RaisesExc(PeerFault, match="limit")):
        await against(peer, receiving(MemorySink(), limits=TransferLimits(max_files=1)))


async def test_receiver_closes_on_a_sender_that_ignores_the_byte_limit() -> None:
    async def peer(peer: Peer) -> None:
        await peer.says(integer(1), ad_bytes())
        await peer.says(integer(1))
        await peer.says(text("f"))
        await peer.says(integer(300))
        await peer.hears_ad()
        await peer.hears(integer(300))
        await peer.says(ad_bytes("Result = 2"))
        await peer.says(integer(0))
        await peer.says(integer(1000 + 65536), integer(CHUNK))
        await peer.hears_the_end()

    with pytest.RaisesGroup(pytest.RaisesExc(PeerFault, match="limit")):
        await against(peer, receiving(MemorySink(), limits=TransferLimits(max_bytes=1000)))


async def test_no_sign_of_life_is_a_timeout(autojump_clock: trio.testing.MockClock) -> None:
    async def peer(peer: Peer) -> None:
        await peer.hears_ad(integer(0))
        await peer.hears(integer(1))
        await peer.hears(text("f"))
        await peer.hears(integer(300))
        await trio.sleep(310)
        await peer.says(ad_bytes("Result = 0", "Timeout = 1000"))
        await trio.sleep(1010)
        await peer.says(ad_bytes("Result = 0"))
        await peer.hears_the_end()

    async def send(stream: CedarStream) -> None:
        with pytest.raises(PeerFault, match="timeout"):
            await send_files(stream, Items([file("f", b"x")]), final=False, sandbox_bytes=7)
        assert 2320 < trio.current_time() - begin < 2360
        await stream.aclose()

    begin = trio.current_time()
    async with streams(10_000) as (left, right), trio.open_nursery() as nursery:
        nursery.start_soon(send, left)
        await peer(Peer(right))


# --- failures of the sink ---


async def test_a_sink_that_fails_is_reported_and_the_rest_goes_on() -> None:
    sink = MemorySink(refuse={"a": StoreFailed(12, errno.ENOSPC, "disk full", retry=True)})
    (_, told), (own, theirs) = await both(
        [file("a", b"x" * 600_000), Directory("d", 0o700), file("b", b"y")], sink
    )
    assert own == attrs.evolve(sink.refuse["a"].ack, files=1, bytes=600_001)
    assert (own.hold_code, own.hold_subcode, own.reason, own.retry) == (12, errno.ENOSPC, "disk full", True)
    assert told == attrs.evolve(own, files=0, bytes=0)
    assert theirs.ok
    assert sink.stored == {"d": (0o700, None), "b": (0o644, b"y")}


async def test_bytes_that_a_sink_leaves_are_dropped() -> None:
    sink = MemorySink(deaf=True)
    (own, theirs), _ = await both([file("a", b"x" * 600_000), file("b", b"y")], sink)
    assert own.ok
    assert theirs.ok
    assert list(sink.stored) == ["a", "b"]


async def test_other_exceptions_of_a_sink_end_the_transfer() -> None:
    class Broken(MemorySink):
        async def directory(self, name: str, mode: int) -> None:
            raise RuntimeError("switch gone")

    with pytest.RaisesGroup(pytest.RaisesExc(RuntimeError, match="switch gone")):
        await both([Directory("d", 0o755)], Broken())


# --- proxies ---


async def test_proxy_layout_as_sender() -> None:
    async def peer(peer: Peer) -> None:
        await peer.hears_ad(integer(0))
        await peer.hears(integer(4))
        await peer.hears(text("proxy.pem"))
        await peer_lets_us_send(peer)
        await peer.says(integer(7), b"request")
        await peer.hears(integer(14), b"signed request")
        await peer.hears(integer(0))
        await peer.hears_ad()
        await peer.says(ad_bytes("Result = 0"))

    assert await against(peer, sending([ProxyItem("proxy.pem", sign)])) == (Ack(ok=True, files=1), OK)


async def test_proxy_layout_as_receiver() -> None:
    async def peer(peer: Peer) -> None:
        await peer_sends_first_item(peer, 4, "proxy.pem")
        await peer.hears(integer(7), b"request")
        await peer.says(integer(3), b"der")
        assert await peer_ends_well(peer) == OK_AD

    sink = MemorySink()
    assert await against(peer, receiving(sink)) == (Ack(ok=True, files=1), OK)
    assert sink.stored == {"proxy.pem": (0, b"der")}


async def test_sender_answers_a_declined_proxy_in_kind() -> None:
    async def peer(peer: Peer) -> None:
        await peer.hears_ad(integer(0))
        await peer.hears(integer(4))
        await peer.hears(text("p"))
        await peer_lets_us_send(peer)
        await peer.says(integer(0))
        await peer.hears(integer(0))
        await peer.says(ad_bytes("Result = 1", "HoldReasonCode = 4"))
        await peer.hears_the_end()

    own, theirs = await against(peer, sending([ProxyItem("p", sign), file("f", b"x")]))
    assert (own.ok, own.hold_code, own.retry) == (False, 4, True)
    assert (theirs.hold_code, theirs.retry) == (4, True)


async def test_a_source_that_cannot_sign() -> None:
    async def broken(request: bytes) -> bytes:
        raise ValueError("the proxy of /CN=Alice ended")

    sink = MemorySink()
    (own, told), (receivers, theirs) = await both([ProxyItem("p", broken), file("f", b"x")], sink)
    assert "/CN=Alice ended" in own.reason
    assert told.retry
    assert (receivers.hold_code, receivers.retry) == (4, True)
    assert not theirs.ok
    assert sink.stored == {}


async def test_a_sink_that_refuses_the_proxy_after_the_exchange() -> None:
    class Strict(MemorySink):
        async def proxy(self, name: str, exchange: Callable[[bytes], Awaitable[bytes]]) -> None:
            await exchange(b"request")
            raise StoreFailed(4, 0, "not the job's identity")

    (own, told), _ = await both([ProxyItem("p", sign), file("f", b"x")], sink := Strict())
    assert own.ok
    assert (told.hold_code, told.reason, told.retry) == (4, "not the job's identity", False)
    assert "f" in sink.stored


async def test_a_sink_that_never_asks_for_the_proxy() -> None:
    (own, told), (receivers, theirs) = await both(
        [ProxyItem("p", sign), file("f", b"x")], MemorySink(request=None)
    )
    assert not own.ok
    assert told.retry
    assert not receivers.ok
    assert not theirs.ok


# --- both roles ---

names = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20)
names = names.filter(lambda name: name not in (".", ".."))
sizes = st.one_of(
    st.integers(0, 40), st.sampled_from([CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 7])
)
trees = st.lists(
    st.tuples(names, st.booleans(), sizes, st.integers(1, 2 * CHUNK + 9), st.integers(0, 0o777)),
    max_size=8,
    unique_by=lambda entry: entry[0],
)


@given(tree=trees)
@settings(max_examples=40, deadline=None)
def test_what_is_sent_is_what_is_stored(tree: list[tuple[str, bool, int, int, int]]) -> None:
    items: list[Item] = []
    expected: dict[str, tuple[int, bytes | None]] = {}
    for name, is_file, size, piece, mode in tree:
        data = (name.encode() * (size // len(name.encode()) + 1))[:size]
        items.append(
            file(name, data, mode=mode, piece=max(piece, size // 50 + 1))
            if is_file
            else Directory(name, mode)
        )
        expected[name] = (mode, data if is_file else None)
    sink = MemorySink()
    (own, told), (receivers, theirs) = trio.run(both, items, sink)
    assert sink.stored == expected
    assert own == receivers
    assert (told, theirs) == (OK, OK)


@given(
    messages=st.lists(
        st.one_of(st.binary(min_size=1, max_size=60), st.integers(-2, 1000).map(integer)), max_size=8
    )
)
@settings(max_examples=60, deadline=None)
def test_garbage_gives_a_typed_error(messages: list[bytes]) -> None:
    async def shout(stream: CedarStream) -> None:
        for message in messages:
            await stream.put(message)
        await stream.aclose()

    async def run() -> None:
        async with streams() as (left, right), trio.open_nursery() as nursery:
            nursery.start_soon(shout, left)
            with pytest.raises((PeerFault, Refused)):
                await receive_files(right, MemorySink())

    trio.run(run)


async def test_names_that_are_not_text_travel_as_bytes() -> None:
    name = b"caf\xe9\n\t\"'".decode("utf-8", "surrogateescape")
    sink = MemorySink()
    await both([file(name, b"x")], sink)
    assert list(sink.stored) == [name]


async def test_the_key_is_presented_and_refused() -> None:
    async with streams() as (left, right):
        await left.put("7#65f0#ab")
        assert await filetransfer.accept_transfer(right) == "7#65f0#ab"
        await filetransfer.refuse_transfer(right)
        with pytest.raises(Refused):
            await receive_files(left, MemorySink())


async def test_acknowledgements_hold_one_line() -> None:
    sink = MemorySink(refuse={"a": StoreFailed(12, 1, 'x\n"HoldReasonCode = 0"\x1b' + "y" * 5000)})
    (_, told), _ = await both([file("a", b"")], sink)
    assert told.reason.startswith('x "HoldReasonCode = 0"?yyy')
    assert len(told.reason) <= 1024
