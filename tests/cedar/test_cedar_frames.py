"""Framing and encryption without I/O: any cutting, any garbage, hand-over in the middle."""

from __future__ import annotations

from contextlib import suppress

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cedar.codec import Reader, encode
from cedar.errors import PeerFault
from cedar.frames import MAX_BODY_BYTES, Frames

KEY, IV = bytes(range(32)), bytes(range(16))
messages = st.lists(st.binary(min_size=1, max_size=200), min_size=1, max_size=8)


def pair(*, keyed: bool) -> tuple[Frames, Frames]:
    one, other = Frames(), Frames()
    if keyed:
        one.use_key(KEY)
        other.use_key(KEY)
    return one, other


def wire(frames: Frames, bodies: list[bytes]) -> bytes:
    return b"".join(bytes(packet) for body in bodies for packet in frames.packets(body))


def drain(frames: Frames) -> list[bytes]:
    found = []
    while (message := frames.next_message()) is not None:
        found.append(message)
    return found


@given(messages, st.booleans(), st.lists(st.integers(1, 60), min_size=1))
def test_any_cutting_gives_the_same_messages(bodies: list[bytes], keyed: bool, cuts: list[int]) -> None:
    one, other = pair(keyed=keyed)
    data, found, at = wire(one, bodies), [], 0
    while at < len(data):
        size = cuts[at % len(cuts)]
        other.feed(data[at : at + size])
        found += drain(other)
        at += size
    assert found == bodies
    assert (other.export()["unread"], other.export()["spent"]) == (b"", 0)


@given(messages, st.booleans(), st.integers(1, 50))
def test_any_packet_size_gives_the_same_messages(bodies: list[bytes], keyed: bool, size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cedar.frames.PACKET_BYTES", size)
        one, other = pair(keyed=keyed)
        other.feed(wire(one, bodies))
    assert drain(other) == bodies


@given(messages, st.data())
def test_a_changed_bit_is_a_fault(bodies: list[bytes], data: st.DataObject) -> None:
    one, other = pair(keyed=True)
    mutated = bytearray(wire(one, bodies))
    bit = data.draw(st.integers(0, len(mutated) * 8 - 1))
    mutated[bit // 8] ^= 1 << bit % 8
    other.feed(mutated)
    found = []
    with suppress(PeerFault):
        while (message := other.next_message()) is not None:
            found.append(message)
    # A changed length may leave it waiting; what did come out is what was sent.
    assert found == bodies[: len(found)]
    assert len(found) < len(bodies)


@given(messages, st.permutations(range(3)))
def test_packets_out_of_order_or_again_are_faults(bodies: list[bytes], order: list[int]) -> None:
    one, other = pair(keyed=True)
    packets = [wire(one, [body]) for body in (bodies * 3)[:3]]
    if order == [0, 1, 2]:
        order = [0, 1, 1]
    for at in order:
        other.feed(packets[at])
    with pytest.raises(PeerFault) as caught:
        drain(other)
    assert caught.value.code in ("crypto", "framing", "limit")


@given(st.binary(max_size=400), st.booleans())
def test_garbage_gives_messages_or_a_fault(garbage: bytes, keyed: bool) -> None:
    _, other = pair(keyed=keyed)
    other.feed(garbage)
    with suppress(PeerFault):
        drain(other)


@given(messages, messages, st.integers(0, 2000), st.booleans())
def test_state_survives_a_hand_over_anywhere(before: list[bytes], after: list[bytes], cut: int, keyed: bool) -> None:
    one, other = pair(keyed=keyed)
    data = wire(one, before)
    cut %= len(data) + 1
    other.feed(data[:cut])
    found = drain(other)
    other = Frames.adopt(msgpack.unpackb(msgpack.packb(other.export())))
    one = Frames.adopt(msgpack.unpackb(msgpack.packb(one.export())))
    other.feed(data[cut:])
    if not keyed:
        found += drain(other)
        one.use_key(KEY)
        other.use_key(KEY)
    other.feed(wire(one, after))
    assert found + drain(other) == before + after
    one.feed(wire(other, before))
    assert drain(one) == before


state = Frames()
state.use_key(KEY)
STATE = state.export()
junk = st.one_of(st.none(), st.integers(), st.binary(max_size=40), st.text(max_size=5), st.lists(st.integers()))


@given(st.sampled_from(sorted(STATE)), junk)
def test_a_malformed_state_is_refused(name: str, value: object) -> None:
    with suppress(PeerFault):
        frames = Frames.adopt(STATE | {name: value})
        frames.feed(wire(frames, [b"x"])[:3])
        drain(Frames.adopt(frames.export()))


def test_zero_digests_after_a_reset() -> None:
    one, other = Frames(), Frames()
    wire(one, [b"to another process"])
    one.reset_digests()
    one.use_key(KEY, iv=IV)
    other.use_key(KEY)
    other.feed(wire(one, [b"x"]))
    assert drain(other) == [b"x"]


def test_clear_bytes_are_part_of_the_first_packets() -> None:
    one, other = Frames(), Frames()
    other.feed(wire(one, [b"hello"]))
    drain(other)
    wire(other, [b"this one was lost"])
    one.use_key(KEY)
    other.use_key(KEY)
    other.feed(wire(one, [b"x"]))
    with pytest.raises(PeerFault, match="verify"):
        drain(other)


@pytest.mark.parametrize("header", [b"\x0b\0\0\0\1", b"\1\0\0\0\0", b"\1\0\x10\0\1", b"\0\xff\xff\xff\xff"])
def test_bad_headers_are_faults_before_their_bodies_come(header: bytes) -> None:
    frames = Frames()
    frames.feed(header)
    with pytest.raises(PeerFault) as caught:
        frames.space()
    assert caught.value.code == "framing"


def test_large_end_flags_end_a_message() -> None:
    frames = Frames()
    frames.feed(b"\x0a\0\0\0\1a\0\0\0\0\1b\1\0\0\0\1c")
    assert drain(frames) == [b"a", b"bc"]


def test_the_largest_packet() -> None:
    frames = Frames()
    frames.feed(b"\1" + MAX_BODY_BYTES.to_bytes(4, "big") + bytes(MAX_BODY_BYTES))
    assert drain(frames) == [bytes(MAX_BODY_BYTES)]


@pytest.mark.parametrize("keyed", [True, False])
def test_messages_are_limited(keyed: bool) -> None:
    one, _ = pair(keyed=keyed)
    other = Frames(limit_bytes=100)
    if keyed:
        other.use_key(KEY)
    other.feed(wire(one, [b"x" * 100]))
    assert len(drain(other)) == 1
    other.feed(wire(one, [b"x" * 101]))
    with pytest.raises(PeerFault) as caught:
        drain(other)
    assert caught.value.code == "limit"


def test_endless_empty_packets_hit_the_limit() -> None:
    one, other = pair(keyed=True)
    other.limit_bytes = 50
    for _ in range(60):
        other.feed(one._packet(memoryview(b""), last=False))
    with pytest.raises(PeerFault) as caught:
        drain(other)
    assert caught.value.code == "limit"


def test_a_message_without_bytes_cannot_be_sent() -> None:
    with pytest.raises(ValueError, match="without bytes"):
        wire(Frames(), [b""])


def test_the_key_is_not_shown() -> None:
    frames = Frames()
    frames.use_key(KEY)
    assert KEY.hex() not in repr(frames)
    assert repr(KEY) not in repr(frames)


items = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.text(st.characters(exclude_characters="\0"), max_size=30).filter(lambda text: text != ""),
)


@given(st.lists(items, max_size=10), st.booleans())
def test_items_round_trip(values: list[int | str], keyed: bool) -> None:
    values = [v for v in values if isinstance(v, int) or not any(0xD800 <= ord(c) < 0xE000 for c in v)]
    reader = Reader(encode(values, keyed=keyed), keyed=keyed)
    assert [reader.int() if isinstance(value, int) else reader.string() for value in values] == values
    reader.end()


@given(st.binary(max_size=30).map(lambda raw: raw.replace(b"\0", b"")), st.booleans())
def test_any_bytes_are_a_string(raw: bytes, keyed: bool) -> None:
    text = raw.decode("utf-8", "surrogateescape")
    assert Reader(encode([text], keyed=keyed), keyed=keyed).string() == ("" if raw == b"\xad" else text)


@given(st.binary(max_size=200), st.booleans(), st.lists(st.sampled_from("isradre"), max_size=6))
def test_garbage_bodies_are_faults_or_values(body: bytes, keyed: bool, calls: list[str]) -> None:
    reader = Reader(body, keyed=keyed)
    try:
        for call in calls:
            match call:
                case "i":
                    reader.int()
                case "s":
                    reader.string()
                case "r":
                    reader.real()
                case "a":
                    reader.ad()
                case "d":
                    reader.raw(5)
                case _:
                    reader.end()
    except PeerFault:
        return


@settings(max_examples=50)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_reals_round_trip_closely(value: float) -> None:
    try:
        back = Reader(encode([value], keyed=False), keyed=False).real()
    except PeerFault:  # rounded up beyond the largest float
        assert abs(value) > 1e308
        return
    assert back == pytest.approx(value, rel=1e-8, abs=1e-300)


def test_a_secret_marker_stands_for_the_next_string() -> None:
    reader = Reader(encode([2, "A = 1", "ZKM", 'B = "s"', "", ""], keyed=True), keyed=True)
    ad = reader.ad()
    assert (ad["A"], ad["B"]) == (1, "s")
    reader.end()


def test_too_large_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="64 bits"):
        encode([2**63], keyed=True)
    with pytest.raises(PeerFault) as caught:
        Reader(encode([10**9], keyed=True), keyed=True).ad()
    assert caught.value.code == "limit"
