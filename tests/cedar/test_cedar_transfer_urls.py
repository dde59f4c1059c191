"""URLs in a file transfer: named by the sender, fetched by the receiver, reported by whoever sent to one."""

from __future__ import annotations

import pytest

from cedar.filetransfer import Ack, Link, SentByUrl, StoreFailed
from tests.cedar.transferpeer import (
    MemorySink,
    Peer,
    ad_bytes,
    against,
    both,
    file,
    integer,
    peer_lets_us_send,
    sending,
    text,
)


async def test_the_layout_of_a_url_and_of_a_report() -> None:
    async def peer(peer: Peer) -> None:
        await peer.hears_ad(integer(0))
        await peer.hears(integer(5))
        await peer.hears(text("x"))
        await peer_lets_us_send(peer)
        await peer.hears(text("https://h/x"))
        await peer.hears(integer(999))
        await peer.hears(text("y"))
        assert await peer.hears_ad() == {
            "ProtocolVersion": "1", "Command": "999", "SubCommand": "7", "Result": "1", "Filename": '"y"',
            "OutputDestination": '"https://h/y"', "ErrorString": '"no"',
        }  # fmt: skip
        await peer.hears(integer(0))
        await peer.hears_ok()
        await peer.says(ad_bytes("Result = 0"))

    _own, theirs = await against(peer, sending([Link("x", "https://h/x"), SentByUrl("y", "https://h/y", "no")]))
    assert theirs.ok


async def test_urls_are_fetched_when_all_else_is_there_and_counted() -> None:
    sink = MemorySink()
    (_, peer), (own, _) = await both([Link("x", "https://h/x"), file("f", b"data")], sink)
    assert sink.urls == {"x": "https://h/x"}
    assert own == Ack(ok=True, files=1, bytes=4, stats={"HTTPSFilesCount": 1})
    assert peer.ok


@pytest.mark.parametrize("name", ["x", "finish"])
async def test_a_url_that_cannot_be_fetched_fails_the_transfer(name: str) -> None:
    sink = MemorySink(refuse={name: StoreFailed(12, 256, "no such file")})
    (_, peer), (own, _) = await both([Link("x", "https://h/x"), file("f", b"data")], sink)
    assert (own.ok, peer.ok, peer.hold_subcode, peer.reason) == (False, False, 256, "no such file")
    assert "f" in sink.stored


@pytest.mark.parametrize("name", ["/x", "../x", "a/../x", ""])
async def test_a_url_has_no_name_that_leads_out(name: str) -> None:
    sink = MemorySink()
    _, (own, _) = await both([Link(name, "https://h/x")], sink)
    assert (own.ok, sink.urls) == (False, {})


async def test_a_report_of_failure_fails_the_receiver() -> None:
    _, (own, _) = await both([SentByUrl("x", "https://h/x?sig=s3cret", "no room"), SentByUrl("y", "https://h/y")])
    assert not own.ok
    assert "no room" in own.reason
    assert "s3cret" not in own.reason
    _, (own, _) = await both([SentByUrl("y", "https://h/y")])
    assert own.ok
