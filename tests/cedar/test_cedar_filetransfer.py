"""File transfer: both roles against each other, failures, garbage."""

from __future__ import annotations

import errno

import attrs
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from cedar import filetransfer
from cedar.errors import PeerFault, Refused
from cedar.filetransfer import (
    Directory,
    Item,
    StoreFailed,
    receive_files,
)
from cedar.stream import CedarStream
from tests.cedar.transferpeer import (
    CHUNK,
    OK,
    MemorySink,
    both,
    file,
    integer,
    streams,
)


async def test_a_sink_that_fails_is_reported_and_the_rest_goes_on() -> None:
    sink = MemorySink(refuse={"a": StoreFailed(12, errno.ENOSPC, "disk full", retry=True)})
    (_, told), (own, theirs) = await both([file("a", b"x" * 600_000), Directory("d", 0o700), file("b", b"y")], sink)
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


names = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20)
names = names.filter(lambda name: name not in (".", ".."))
sizes = st.one_of(st.integers(0, 40), st.sampled_from([CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 7]))
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
            file(name, data, mode=mode, piece=max(piece, size // 50 + 1)) if is_file else Directory(name, mode)
        )
        expected[name] = (mode, data if is_file else None)
    sink = MemorySink()
    (own, told), (receivers, theirs) = trio.run(both, items, sink)
    assert sink.stored == expected
    assert own == receivers
    assert (told, theirs) == (OK, OK)


@given(messages=st.lists(st.one_of(st.binary(min_size=1, max_size=60), st.integers(-2, 1000).map(integer)), max_size=8))
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
