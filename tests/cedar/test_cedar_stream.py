"""Streams over real sockets: cancelling, ends, hand-over to another process."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from textwrap import dedent

import msgpack
import pytest
import trio
import trio.testing
from classad2 import ClassAd

from cedar.client import Negotiate, connect
from cedar.codec import Reader
from cedar.commands import Command
from cedar.errors import PeerFault
from cedar.sinful import Sinful
from cedar.stream import CedarStream

ROOT = Path(__file__).parents[2]
KEY = bytes(range(32))


@asynccontextmanager
async def pair(*, keyed: bool = True) -> AsyncIterator[tuple[CedarStream, CedarStream]]:
    """Two connected streams over TCP."""
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    one = CedarStream(await trio.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1]))
    other = CedarStream(await listener.accept())
    await listener.aclose()
    async with one, other:
        if keyed:
            one.use_key(KEY)
            other.use_key(KEY)
        yield one, other


async def test_all_kinds_of_items_both_ways() -> None:
    ad = ClassAd()
    ad["A"] = 'x"y'
    async with pair() as (one, other):
        for sender, receiver in ((one, other), (other, one), (one, other)):
            await sender.put(-1, True, "text", 2.5, b"raw", ad)
            reader = await receiver.get()
            got = reader.int(), reader.int(), reader.string(), round(reader.real(), 6), reader.raw(3), reader.ad()
            assert got == (-1, 1, "text", 2.5, b"raw", ad)
            reader.end()


async def test_large_raw_messages_whole() -> None:
    data = bytes(range(256)) * 12_000
    async with pair() as (one, other), trio.open_nursery() as nursery:
        nursery.start_soon(one.put, memoryview(data))
        reader = await other.get()
        assert reader.raw(len(data)) == data


async def test_a_cancelled_get_loses_nothing() -> None:
    async with pair() as (one, other):
        packet = b"".join(bytes(part) for part in one._frames.packets(b"one message"))
        for byte in packet[:-1]:
            await one._transport.send_all(bytes([byte]))
            with trio.move_on_after(0.001) as scope:
                await other.get()
            assert scope.cancelled_caught
        await one._transport.send_all(packet[-1:])
        reader = await other.get()
        assert reader.raw(11) == b"one message"


async def test_an_interrupted_put_breaks_the_stream() -> None:
    async with pair() as (one, _):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.put, bytes(15 << 20))
            await trio.testing.wait_all_tasks_blocked()  # some of it is sent, and nobody reads
            nursery.cancel_scope.cancel()
        assert nursery.cancel_scope.cancelled_caught
        for use in (one.put(1), one.get()):
            with pytest.raises(PeerFault) as caught:
                await use
            assert caught.value.code == "closed"
        with pytest.raises(PeerFault):
            one.export()


async def test_the_end_of_the_stream_is_a_fault_and_stays_one() -> None:
    async with pair() as (one, other):
        await one.put(7)
        await one.aclose()
        assert (await other.get()).int() == 7
        for _ in range(2):
            with pytest.raises(PeerFault) as caught:
                await other.get()
            assert caught.value.code == "closed"


async def test_after_a_fault_the_stream_is_closed_for_good() -> None:
    async with pair() as (one, other):
        await one._transport.send_all(b"\1\0\0\0\x40" + bytes(64))
        with pytest.raises(PeerFault) as caught:
            await other.get()
        assert caught.value.code == "crypto"
        with pytest.raises(PeerFault) as caught:
            await other.put(1)
        assert caught.value.code == "closed"


async def test_two_tasks_may_not_put_at_once() -> None:
    async with pair() as (one, other), trio.open_nursery() as nursery:
        nursery.start_soon(one.put, bytes(10 << 20))
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await one.put(1)
        assert (await other.get()).remaining() == 10 << 20


async def test_closing_wakes_a_waiting_get() -> None:
    async with pair() as (one, _), trio.open_nursery() as nursery:

        async def wait() -> None:
            with pytest.raises(PeerFault):
                await one.get()

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        await one.aclose()


async def test_shared_port_message_comes_first_and_is_forgotten() -> None:
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    address = Sinful("127.0.0.1", listener.socket.getsockname()[1], {"sock": "schedd_1"})

    async def dial() -> None:
        with pytest.raises(PeerFault):
            await connect(address, 5, Negotiate(), subsystem="STARTD")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(dial)
        stream = CedarStream(await listener.accept())
        first = await stream.get()
        got = first.int(), first.string(), first.string(), first.int(), first.int()
        assert got == (Command.SHARED_PORT_CONNECT, "schedd_1", "STARTD", -1, 0)
        first.end()
        assert (await stream.get()).int() == Command.AUTHENTICATE
        await stream.aclose()
    await listener.aclose()


HEIR = """
    import socket, sys
    sys.path.insert(0, {root!r})
    import msgpack, trio
    from cedar.stream import CedarStream

    link = socket.socket(fileno=int(sys.argv[1]))
    data, fds, _, _ = socket.recv_fds(link, 1 << 20, 1)

    async def main():
        stream = CedarStream.adopt(socket.socket(fileno=fds[0]), msgpack.unpackb(data))
        for _ in range(3):
            await stream.put("heir", (await stream.get()).string())
        await stream.aclose()

    trio.run(main)
"""


async def test_another_process_goes_on_with_the_encrypted_stream() -> None:
    """With one message used, one unread, and half of a third in our buffer."""
    mine, theirs = socket.socketpair()
    code = dedent(HEIR).format(root=str(ROOT))
    with mine, theirs:
        heir = subprocess.Popen(  # noqa: ASYNC220 - starting it does not wait
            [sys.executable, "-c", code, str(theirs.fileno())], pass_fds=[theirs.fileno()]
        )
        async with pair() as (one, other):
            await one.put("used")
            third = bytes(next(iter(_after_two(one))))
            await one._transport.send_all(third[: len(third) // 2])
            assert (await other.get()).string() == "used"
            sock, state = other.export()
            assert state["unread"]
            with sock:
                socket.send_fds(mine, [msgpack.packb(state)], [sock.fileno()])
            await one._transport.send_all(third[len(third) // 2 :])
            await one.put("fourth")
            for text in ("second", "third", "fourth"):
                reader = await one.get()
                assert (reader.string(), reader.string()) == ("heir", text)
            with pytest.raises(PeerFault):
                await one.get()
            with pytest.raises(PeerFault):
                await other.put(1)
        assert await trio.to_thread.run_sync(heir.wait) == 0


def _after_two(stream: CedarStream) -> list[bytes]:
    """The packets of "second" and "third" in one piece."""
    from cedar.codec import encode

    bodies = [encode([text], keyed=True) for text in ("second", "third")]
    return [b"".join(bytes(packet) for body in bodies for packet in stream._frames.packets(body))]


async def test_nothing_shows_the_key() -> None:
    async with pair() as (one, _):
        for text in (repr(one), repr(one._frames), repr(vars(one))):
            assert KEY.hex() not in text
            assert repr(KEY) not in text


def test_readers_share_nothing_with_the_buffer() -> None:
    reader = Reader(b"abc", keyed=True)
    assert reader.raw(3) == b"abc"
    assert reader.remaining() == 0
