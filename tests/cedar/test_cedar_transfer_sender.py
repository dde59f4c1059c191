"""Our sender against a peer written down by hand, message by message."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from cedar.errors import PeerFault, Refused
from cedar.filetransfer import (
    Ack,
    Directory,
    File,
    Item,
    Missing,
    ReadFailed,
    receive_files,
    send_files,
)
from cedar.stream import CedarStream
from tests.cedar.transferpeer import (
    CHUNK,
    OK,
    Items,
    MemorySink,
    Peer,
    ad_bytes,
    against,
    both,
    file,
    in_pieces,
    integer,
    peer_lets_us_send,
    sending,
    streams,
    text,
)


def sorted_stats(ad: dict[str, Any]) -> str:
    return ";".join(sorted(word.strip() for word in ad["TransferStats"].strip("[ ]").split(";")))


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
        assert (
            sorted_stats(await peer.hears_ad())
            == f'CedarFilesCount = 2;CedarSizeBytes = {len(data)};Protocols = "cedar"'
        )
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
        await peer.hears_ok()
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
        await peer.hears_ok()
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
        await peer.says(ad_bytes("Result = -1", "TryAgain = false", "HoldReasonCode = 32", 'HoldReason = "too\nmuch"'))
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

    own, theirs = await against(peer, sending([file("small", b"123456"), file("big", b"12345"), file("x", b"")]))
    assert own.hold_code == 33
    assert theirs.ok


async def test_sender_tells_its_own_failure_and_closes_its_items() -> None:
    items = Items([file("f", b"x")])
    failure = Ack(ok=False, hold_code=13, hold_subcode=5, reason="half gone", retry=True)

    async def send(stream: CedarStream) -> None:
        own, theirs = await send_files(stream, items, final=True, sandbox_bytes=1, own_failure=lambda: failure)
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
