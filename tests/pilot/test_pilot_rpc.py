"""pilot.rpc: messages, descriptors and faults over real sockets; nothing that a peer sends hurts another
one."""

import fcntl
import math
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import attrs
import msgpack  # type: ignore[import-untyped, unused-ignore]
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from pilot.rpc import (
    Channel,
    ChannelClosed,
    Error,
    Peer,
    Protocol,
    RpcFault,
    RpcRefused,
    connect,
    receive_blocking,
    send_blocking,
    serve,
)


class Colour(Enum):
    RED = "red"


@attrs.frozen
class Circle:
    radius: float


@attrs.frozen
class Square:
    side: int


@attrs.frozen
class Draw:
    name: str
    count: int
    shape: Circle | Square | None = None
    tags: tuple[str, ...] = ()
    pairs: tuple[tuple[int, int], ...] = ()
    table: Mapping[str, float] = attrs.field(factory=dict)
    raw: bytes = b""
    urgent: bool = False
    to: Literal["root", "all"] = "root"
    colour: Colour = Colour.RED
    place: Path | None = None
    limited: int = attrs.field(default=1, validator=attrs.validators.le(5))


@attrs.frozen
class Done:
    text: str = ""


PROTOCOL = Protocol(Draw, Done)
FULL = Draw(
    "naïve \udcff", 3, Square(2), ("a", "b"), ((1, 2), (3, 4)), {"x": 0.5}, b"\0\xff", True, "all",
    Colour.RED, Path("/a b"),
)  # fmt: skip


def body(tag: object, fields: object) -> bytes:
    return bytes(msgpack.packb([tag, fields]))


# --- the codec ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("message", [FULL, Draw("", 0), Draw("x", 1, Circle(1)), Done("ok"), Error("code", "text")])
def test_a_message_comes_back_as_it_went(message: Any) -> None:
    assert PROTOCOL.decode(PROTOCOL.encode(message)) == message


def test_an_integer_is_a_real_number() -> None:
    assert PROTOCOL.decode(body("Draw", {"name": "", "count": 1, "shape": ["Circle", {"radius": 2}]})).shape == Circle(
        2.0
    )


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"name": 5}, "type"),
        ({"name": b"x"}, "type"),
        ({"count": "5"}, "type"),
        ({"count": True}, "type"),
        ({"count": 1.0}, "type"),
        ({"urgent": 1}, "type"),
        ({"tags": "ab"}, "type"),
        ({"tags": [1]}, "type"),
        ({"pairs": [[1]]}, "type"),
        ({"pairs": [[1, 2, 3]]}, "type"),
        ({"table": [1]}, "type"),
        ({"table": {"x": math.nan}}, "type"),
        ({"shape": ["Draw", {}]}, "type"),
        ({"shape": ["Circle", []]}, "type"),
        ({"shape": ["Circle", {"radius": 1.0, "more": 1}]}, "type"),
        ({"to": "nobody"}, "type"),
        ({"to": []}, "type"),
        ({"colour": "blue"}, "type"),
        ({"place": 3}, "type"),
        ({"limited": 6}, "type"),
        ({"unknown": 1}, "type"),
    ],
)
def test_a_wrong_field_is_a_fault(changes: dict[str, object], code: str) -> None:
    with pytest.raises(RpcFault) as caught:
        PROTOCOL.decode(body("Draw", {"name": "n", "count": 1, **changes}))
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "garbage"),
        (b"\xc1", "garbage"),
        (msgpack.packb(["Done"]), "garbage"),
        (msgpack.packb({"Done": {}}), "garbage"),
        (body(1, {}), "garbage"),
        (body("Done", {}) + b"\0", "garbage"),
        (body("Nothing", {}), "tag"),
        (body("Done", None), "type"),
        (body("Done", []), "type"),
        (body("Draw", {"count": 1}), "type"),
        (msgpack.packb(msgpack.ExtType(1, b"")), "garbage"),
        (b"\xdd\xff\xff\xff\xff", "garbage"),
        (b"\x91" * 5000, "garbage"),
        (b"\xdd\x00\x01\x00\x00" * 5000, "garbage"),
    ],
)
def test_a_malformed_body_is_a_fault(data: bytes, code: str) -> None:
    with pytest.raises(RpcFault) as caught:
        PROTOCOL.decode(data)
    assert caught.value.code == code


def test_the_text_of_a_fault_does_not_repeat_values() -> None:
    with pytest.raises(RpcFault) as caught:
        PROTOCOL.decode(body("Draw", {"name": b"secret", "count": "secret", "limited": 9}))
    assert "secret" not in str(caught.value)


def test_only_messages_of_the_protocol_are_encoded() -> None:
    with pytest.raises(TypeError):
        PROTOCOL.encode(Circle(1.0))
    with pytest.raises(TypeError):
        Protocol(Draw, attrs.make_class("Draw", []))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
FIELD_NAMES = st.sampled_from([field.name for field in attrs.fields(Draw)])


@given(st.binary() | st.dictionaries(FIELD_NAMES, VALUES).map(lambda fields: body("Draw", fields)))
def test_any_body_is_a_message_or_a_fault(data: bytes) -> None:
    try:
        message = PROTOCOL.decode(data)
    except RpcFault:
        return
    assert PROTOCOL.decode(PROTOCOL.encode(message)) == message


# --- channels -----------------------------------------------------------------------------------------------


@contextmanager
def raw_and_channel(**limits: int) -> Iterator[tuple[socket.socket, Channel]]:
    near, far = socket.socketpair()
    with near, far:
        yield near, Channel(trio.socket.from_stdlib_socket(far), PROTOCOL, **limits)


@contextmanager
def two_channels() -> Iterator[tuple[Channel, Channel]]:
    near, far = socket.socketpair()
    with near, far:
        ends = [Channel(trio.socket.from_stdlib_socket(each), PROTOCOL) for each in (near, far)]
        yield ends[0], ends[1]


@contextmanager
def devnull() -> Iterator[int]:
    fd = os.open(os.devnull, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)


def framed(data: bytes) -> bytes:
    return struct.pack("!I", len(data)) + data


def open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


async def test_messages_and_descriptors_keep_together() -> None:
    with two_channels() as (one, other):
        read_end, write_end = os.pipe()
        await one.send(Done("first"))
        await one.send(Done("second"), [read_end, write_end])
        await one.send(Done("third"))
        assert await other.receive() == (Done("first"), [])
        message, fds = await other.receive()
        assert message == Done("second")
        assert await other.receive() == (Done("third"), [])
        os.write(write_end, b"x")
        assert os.read(fds[0], 1) == b"x"
        assert all(fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC for fd in fds)
        for fd in [read_end, write_end, *fds]:
            os.close(fd)


async def test_the_peer_is_told_by_the_kernel() -> None:
    with two_channels() as (one, _):
        assert one.peer == Peer(os.getpid(), os.getuid(), os.getgid())


async def test_too_many_descriptors_are_a_fault_and_all_are_closed() -> None:
    with raw_and_channel(max_fds=2) as (raw, channel), devnull() as some:
        before = open_fds()
        socket.send_fds(raw, [framed(PROTOCOL.encode(Done()))], [some] * 5)
        with pytest.raises(RpcFault) as caught:
            await channel.receive()
        assert caught.value.code == "fds"
        assert len(open_fds()) < len(before)


async def test_descriptors_of_a_malformed_message_are_closed() -> None:
    with raw_and_channel() as (raw, channel), devnull() as some:
        before = open_fds()
        socket.send_fds(raw, [framed(b"\xc1")], [some])
        with pytest.raises(RpcFault):
            await channel.receive()
        assert len(open_fds()) < len(before)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "closed"),
        (b"\0\0", "truncated"),
        (framed(b"abc")[:-1], "truncated"),
        (b"\xff\xff\xff\xff", "limit"),
        (struct.pack("!I", 1001), "limit"),
        (framed(b""), "garbage"),
        (framed(b"\xc1"), "garbage"),
    ],
)
async def test_a_broken_stream_is_a_fault_and_stays_closed(data: bytes, code: str) -> None:
    with raw_and_channel(limit_bytes=1000) as (raw, channel):
        raw.send(data)
        raw.shutdown(socket.SHUT_WR)
        with pytest.raises(RpcFault) as caught:
            await channel.receive()
        assert caught.value.code == code
        with pytest.raises(ChannelClosed):
            await channel.receive()
        with pytest.raises(ChannelClosed):
            await channel.send(Done())


async def test_a_message_above_the_limit_is_not_sent() -> None:
    with raw_and_channel(limit_bytes=1000) as (raw, channel):
        with pytest.raises(RpcFault) as caught:
            await channel.send(Done("x" * 2000))
        assert caught.value.code == "limit"
        await channel.send(Done())
        assert raw.recv(100) == framed(PROTOCOL.encode(Done()))


async def test_any_cutting_gives_the_same_messages() -> None:
    data = framed(PROTOCOL.encode(FULL)) + framed(PROTOCOL.encode(Done("x")))
    for cut in range(len(data)):
        with raw_and_channel() as (raw, channel):
            raw.send(data[:cut])
            with trio.move_on_after(0.0):  # cancelled somewhere within, nothing may be lost
                assert (await channel.receive())[0] == FULL
                raw.send(data[cut:])
                assert (await channel.receive())[0] == Done("x")
                continue
            raw.send(data[cut:])
            assert (await channel.receive())[0] == FULL
            assert (await channel.receive())[0] == Done("x")


async def test_a_cancelled_receive_loses_nothing() -> None:
    with raw_and_channel() as (raw, channel):
        data = framed(PROTOCOL.encode(FULL))
        for position in range(len(data) - 1):
            raw.send(data[position : position + 1])
            with trio.move_on_after(0) as scope:
                await channel.receive()
            assert scope.cancelled_caught
        raw.send(data[-1:])
        assert await channel.receive() == (FULL, [])


async def test_a_cancelled_send_is_finished_by_the_next_one() -> None:
    with two_channels() as (one, other):
        big = Done("x" * 900_000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.send, big)
            await trio.testing.wait_all_tasks_blocked()  # some of it is sent, and nobody reads
            nursery.cancel_scope.cancel()
        assert nursery.cancel_scope.cancelled_caught
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.send, Done("small"))
            assert await other.receive() == (big, [])
            assert await other.receive() == (Done("small"), [])


async def test_a_cancelled_call_closes_the_channel() -> None:
    with two_channels() as (one, _other):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.call, Done())
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        with pytest.raises(ChannelClosed):
            await one.call(Done())


async def test_closing_wakes_whoever_waits() -> None:
    with two_channels() as (one, _other):

        async def wait() -> None:
            with pytest.raises(ChannelClosed):
                await one.receive()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            await one.aclose()


def test_the_blocking_ends_speak_the_same() -> None:
    near, far = socket.socketpair()
    with near, far, devnull() as some:
        send_blocking(near, PROTOCOL, FULL, [some])
        message, fds = receive_blocking(far, PROTOCOL)
        assert message == FULL
        assert not os.get_inheritable(fds[0])
        os.close(fds[0])
        near.close()
        with pytest.raises(ChannelClosed):
            receive_blocking(far, PROTOCOL)
        with pytest.raises(ChannelClosed):
            send_blocking(far, PROTOCOL, Done())


def test_a_blocking_receive_refuses_garbage() -> None:
    near, far = socket.socketpair()
    with near, far:
        near.send(framed(b"\xc1"))
        with pytest.raises(RpcFault):
            receive_blocking(far, PROTOCOL)


# --- a service ----------------------------------------------------------------------------------------------


async def echo(channel: Channel) -> None:
    while True:
        message, fds = await channel.receive()
        await channel.send(message, fds)
        for fd in fds:
            os.close(fd)


@asynccontextmanager
async def serving(path: Path, handle: Callable[..., Any] = echo, **options: Any) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        options.setdefault("allowed_uids", None)

        async def start(task_status: trio.TaskStatus[None]) -> None:
            await serve(path, PROTOCOL, handle, task_status=task_status, **options)

        await nursery.start(start)
        yield
        nursery.cancel_scope.cancel()


async def test_a_service_answers_and_cleans_up(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    async with serving(path):
        assert path.stat().st_mode & 0o777 == 0o600
        async with await connect(path, PROTOCOL) as channel:
            assert await channel.call(FULL) == FULL
            read_end, write_end = os.pipe()
            _, fds = await channel.call_with_fds(Done(), [write_end])
            os.write(fds[0], b"y")
            assert os.read(read_end, 1) == b"y"
            for fd in (read_end, write_end, *fds):
                os.close(fd)
    assert os.listdir(tmp_path) == []


async def test_a_stale_socket_is_replaced_and_a_successor_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    async with serving(path):
        async with serving(path):
            async with await connect(path, PROTOCOL) as channel:
                assert await channel.call(Done()) == Done()
            path.rename(tmp_path / "kept")
            path.write_text("not ours")
        assert path.read_text() == "not ours"


async def test_a_long_path_works(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 150)
    deep.mkdir()
    async with serving(deep / "socket"), await connect(deep / "socket", PROTOCOL) as channel:
        assert await channel.call(Done()) == Done()


async def test_nobody_there_is_closed(tmp_path: Path) -> None:
    with pytest.raises(ChannelClosed):
        await connect(tmp_path / "nothing", PROTOCOL)


async def test_a_refusal_has_code_and_text_and_keeps_the_connection(tmp_path: Path) -> None:
    async with serving(tmp_path / "s"), await connect(tmp_path / "s", PROTOCOL) as channel:
        with pytest.raises(RpcRefused) as caught:
            await channel.call(Error("state", "not now"))
        assert (caught.value.code, caught.value.text) == ("state", "not now")
        assert await channel.call(Done()) == Done()


async def test_an_unwelcome_uid_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with serving(path, allowed_uids={os.getuid() + 1}), await connect(path, PROTOCOL) as channel:
        with pytest.raises(ChannelClosed):
            await channel.call(Done())


async def test_garbage_costs_its_own_connection_only(tmp_path: Path) -> None:
    faults: list[str] = []
    path = tmp_path / "s"
    serving_it = serving(path, on_fault=lambda _, fault: faults.append(fault.code))
    async with serving_it, await connect(path, PROTOCOL) as good:
        assert await good.call(Done("before")) == Done("before")
        async with await trio.open_unix_socket(str(path)) as stream:
            await stream.send_all(framed(b"\xc1"))
            assert await stream.receive_some() == b""
        assert await good.call(Done("after")) == Done("after")
    assert "garbage" in faults


async def test_a_fault_within_a_group_costs_its_own_connection_only(tmp_path: Path) -> None:
    async def with_nursery(channel: Channel) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(echo, channel)

    async with serving(tmp_path / "s", with_nursery):
        await (await connect(tmp_path / "s", PROTOCOL)).aclose()
        async with await connect(tmp_path / "s", PROTOCOL) as channel:
            assert await channel.call(Done()) == Done()


async def test_a_bug_of_ours_ends_the_service(tmp_path: Path) -> None:
    async def broken(channel: Channel) -> None:
        raise ZeroDivisionError

    with pytest.RaisesGroup(pytest.RaisesGroup(ZeroDivisionError)):
        async with serving(tmp_path / "s", broken), await connect(tmp_path / "s", PROTOCOL):
            await trio.sleep_forever()


async def test_a_service_that_lets_nobody_in_is_no_connection(tmp_path: Path) -> None:
    """Its queue is full: the system says EAGAIN, which trio takes for a connection under way."""
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
        busy.bind(str(tmp_path / "s"))
        busy.listen(0)
        waiting.connect(str(tmp_path / "s"))
        with pytest.raises(ChannelClosed):
            await connect(tmp_path / "s", PROTOCOL)
        accepted, _ = busy.accept()
        accepted.close()
        (await connect(tmp_path / "s", PROTOCOL)).close()


async def test_connections_above_the_limit_wait(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with serving(path, max_connections=1):
        first = await connect(path, PROTOCOL)
        assert await first.call(Done()) == Done()
        second = await connect(path, PROTOCOL)
        await second.send(Done("second"))
        with trio.move_on_after(0.02) as scope:
            await second.receive()
        assert scope.cancelled_caught
        await first.aclose()
        assert await second.receive() == (Done("second"), [])
        await second.aclose()


def test_a_prepared_protocol_has_nothing_left_to_find_out() -> None:
    prepared = Protocol(Draw, Done)
    prepared.prepare()
    hooks = prepared._converter._unstructure_func.dispatch
    before = hooks.cache_info().misses
    prepared.encode(Done(""))
    assert hooks.cache_info().misses == before
