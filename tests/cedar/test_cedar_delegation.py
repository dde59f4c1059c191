"""Delegation frames: against a peer written down by hand, and both ends against each other."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import AsyncIterator

import pytest
import trio

from cedar import delegation
from cedar.errors import PeerFault, Refused
from cedar.stream import CedarStream


@contextlib.asynccontextmanager
async def streams() -> AsyncIterator[tuple[CedarStream, CedarStream]]:
    left, right = (CedarStream(trio.SocketStream(end)) for end in trio.socket.socketpair())
    try:
        left.use_key(bytes(32))
        right.use_key(bytes(32))
        with trio.fail_after(60):
            yield left, right
    finally:
        with trio.CancelScope(shield=True):
            await left.aclose()
            await right.aclose()


def integer(value: int) -> bytes:
    return struct.pack(">q", value)


async def heard(stream: CedarStream) -> bytes:
    reader = await stream.get()
    return reader.raw(reader.remaining())


async def sign(request: bytes) -> bytes:
    return b"certificates for " + request


async def test_receiver_speaks_first_and_nothing_follows() -> None:
    async with streams() as (ours, peer):
        await peer.put(integer(12) + b"certificates")  # waits unread: the answer is no part of the question
        assert await delegation.receive(ours, b"request") == b"certificates"
        assert await heard(peer) == integer(7) + b"request"
        await ours.put(5)
        assert await heard(peer) == integer(5)


async def test_delegator_layout() -> None:
    async with streams() as (ours, peer):
        await peer.put(integer(7) + b"request")
        await delegation.give(ours, sign)
        assert await heard(peer) == integer(24) + b"certificates for request"


async def test_receiver_of_a_failure() -> None:
    async with streams() as (ours, peer):
        await peer.put(integer(0))
        with pytest.raises(Refused, match="DELEGATION"):
            await delegation.receive(ours, b"request")


async def test_delegator_of_a_failure_answers_in_kind() -> None:
    async with streams() as (ours, peer):
        await peer.put(integer(0))
        with pytest.raises(Refused, match="DELEGATION"):
            await delegation.give(ours, sign)
        assert await heard(peer) == integer(0)


async def test_delegator_that_cannot_sign_says_so() -> None:
    async def broken(request: bytes) -> bytes:
        raise ValueError("expired")

    async with streams() as (ours, peer):
        await peer.put(integer(1) + b"x")
        with pytest.raises(ValueError, match="expired"):
            await delegation.give(ours, broken)
        assert await heard(peer) == integer(0)


async def test_decline() -> None:
    async with streams() as (ours, peer), trio.open_nursery() as nursery:
        nursery.start_soon(delegation.decline, ours)
        assert await heard(peer) == integer(0)
        await peer.put(integer(0))


async def test_a_request_without_bytes_is_our_own_mistake() -> None:
    async with streams() as (ours, _):
        with pytest.raises(ValueError, match="decline"):
            await delegation.receive(ours, b"")


@pytest.mark.parametrize(
    "frame", [integer(3) + b"ab", integer(1) + b"ab", integer(-1), integer(1 << 40), b"x", integer(0) + b"x"]
)
async def test_broken_frames(frame: bytes) -> None:
    async with streams() as (ours, peer):
        await peer.put(frame)
        with pytest.raises(PeerFault):
            await delegation.receive(ours, b"request")
    async with streams() as (ours, peer):
        await peer.put(frame)
        with pytest.raises(PeerFault):
            await delegation.give(ours, sign)


async def test_both_ends() -> None:
    async with streams() as (left, right), trio.open_nursery() as nursery:
        nursery.start_soon(delegation.give, right, sign)
        assert await delegation.receive(left, b"r" * 600) == await sign(b"r" * 600)
