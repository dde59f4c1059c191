"""Our receiver against a peer written down by hand, message by message."""

from __future__ import annotations

import errno

import pytest
import trio
import trio.testing

from cedar.errors import PeerFault, Refused
from cedar.filetransfer import (
    Ack,
    TransferLimits,
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
    file,
    integer,
    peer_ends_well,
    peer_sends_first_item,
    receiving,
    streams,
    text,
)


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
        assert (await peer_ends_well(peer))["Result"] == "0"

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
        assert (await peer_ends_well(peer))["Result"] == "0"

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
        await peer.says(ad_bytes("Result = -1", "HoldReasonCode = 13", "HoldReasonSubCode = 2", 'HoldReason = "gone"'))
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
        await peer.says(ad_bytes("SubCommand = 8", 'Tag = "x"', 'ReuseList = { [ FileName = "a"; Size = 1 ] }'))
        assert await peer.hears_ad() == {"Result": "1"}
        await peer.says(integer(999))
        await peer.says(text(""))
        await peer.says(ad_bytes("SubCommand = 9", 'SignList = { "s3://a", "s3://b" }'))
        assert await peer.hears_ad() == {"SignList": '{ "", "" }'}
        await peer.says(integer(999))
        await peer.says(text("out"))
        await peer.says(ad_bytes("SubCommand = 7", 'Filename = "out"', 'OutputDestination = "http://x"', "Result = 0"))
        assert (await peer_ends_well(peer))["Result"] == "0"

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
