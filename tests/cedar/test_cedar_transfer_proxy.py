"""A proxy as an item of a file transfer, in both roles."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from cedar.filetransfer import (
    Ack,
    ProxyItem,
    StoreFailed,
)
from tests.cedar.transferpeer import (
    OK,
    MemorySink,
    Peer,
    ad_bytes,
    against,
    both,
    file,
    integer,
    peer_ends_well,
    peer_lets_us_send,
    peer_sends_first_item,
    receiving,
    sending,
    sign,
    text,
)


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
        assert (await peer_ends_well(peer))["Result"] == "0"

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
    (own, told), (receivers, theirs) = await both([ProxyItem("p", sign), file("f", b"x")], MemorySink(request=None))
    assert not own.ok
    assert told.retry
    assert not receivers.ok
    assert not theirs.ok
