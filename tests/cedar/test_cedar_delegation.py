"""Delegation frames: against a peer written down by hand, and both ends against each other."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import AsyncIterator

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from cedar import delegation
from cedar.errors import PeerFault, Refused
from cedar.stream import CedarStream


@contextlib.asynccontextmanager
async def streams() -> AsyncIterator[tuple[CedarStream, CedarStream]]:
    left, right = (CedarStream(trio.SocketStream(end)) for end in trio.socket.socketpair())
    try:
        left.use_key(bytes(32))
        right.use_key(bytes(32))
        with trio.fail_after(20):
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


SEQUENCES = st.lists(st.binary(max_size=400), max_size=6)


def der(body: bytes) -> bytes:
    if len(body) < 128:
        return bytes((0x30, len(body))) + body
    return b"\x30\x82" + len(body).to_bytes(2, "big") + body


@given(bodies=SEQUENCES)
def test_split_der_cuts_what_was_joined(bodies: list[bytes]) -> None:
    joined = [der(body) for body in bodies]
    assert delegation.split_der(b"".join(joined)) == joined


@given(data=st.binary(max_size=60))
def test_split_der_of_garbage(data: bytes) -> None:
    with contextlib.suppress(PeerFault):
        assert b"".join(delegation.split_der(data)) == data


def test_split_der_of_too_many() -> None:
    with pytest.raises(PeerFault, match="limit"):
        delegation.split_der(der(b"") * 33)


@pytest.mark.parametrize(
    "data", [b"\x30", b"\x30\x80", b"\x31\x00", b"\x30\x01", b"\x30\x85\0\0\0\0\0", b"\x30\x82\x01"]
)
def test_split_der_refuses(data: bytes) -> None:
    with pytest.raises(PeerFault, match="codec"):
        delegation.split_der(data)
