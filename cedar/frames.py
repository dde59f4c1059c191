"""CEDAR's packets without I/O: bytes in, messages out; messages in, packets out.

A packet is a 5-byte header (end flag, u32 length) and a body; a message is the
bodies up to a packet with a non-zero end flag. Once a key is set, each body is one
AES-GCM operation. The connection's whole state can be exported as plain data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cedar.crypto import (
    DIGEST_BYTES,
    IV_BYTES,
    KEY_BYTES,
    MAX_HASHED_BYTES,
    MAX_PACKETS,
    TAG_BYTES,
    Buffer,
    Direction,
    digest,
    new_iv,
)
from cedar.errors import PeerFault

HEADER_BYTES = 5
# What a stock receiver accepts, header not counted.
MAX_BODY_BYTES = 1 << 20
MAX_END_FLAG = 10
# Content of one packet when we send: one file chunk (262144) is one packet. Measured over loopback, two
# processes: 16 KiB 260 MB/s, 64 KiB 400, 128 KiB 450, 256 KiB 600 on the same busy machine.
PACKET_BYTES = 1 << 18
DEFAULT_LIMIT_BYTES = 16 << 20
# First size of the input buffer: small messages only until a larger packet is announced. A starter's connections
# are idle for most of their life, and pages once written to stay its own.
_BUFFER_BYTES = 1 << 12
# Room behind an announced packet for what follows it, at most.
_MORE_BYTES = 1 << 16
_OVERHEAD_BYTES = IV_BYTES + TAG_BYTES
_STATE_VERSION = 1


class Frames:
    """One connection's framing and encryption in both directions."""

    def __init__(self, *, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self._buffer = bytearray(_BUFFER_BYTES)
        self._start = 0
        self._end = 0
        self._partial = bytearray()
        self._spent = 0  # of the limit, by the message being put together
        self._clear_sent = bytearray()
        self._clear_received = bytearray()
        self._digests = (b"", b"")  # (sent, received), frozen with the key
        self._key: bytes | None = None
        self._sender: Direction | None = None
        self._receiver: Direction | None = None

    @property
    def keyed(self) -> bool:
        """True once everything is encrypted; there is no way back."""
        return self._key is not None

    # --- keys ---

    def use_key(self, key: bytes, *, iv: bytes | None = None) -> None:
        """Encrypt from here on. `iv` only for tests: it is drawn otherwise."""
        if len(key) != KEY_BYTES:
            raise ValueError(f"an AES key has {KEY_BYTES} bytes")
        if self._key is not None:
            raise ValueError("the stream is keyed already")
        self._digests = (digest(self._clear_sent), digest(self._clear_received))
        self._clear_sent, self._clear_received = bytearray(), bytearray()
        self._make_ciphers(key, new_iv() if iv is None else iv, None)

    def _make_ciphers(
        self, key: bytes, send_iv: bytes, receive_iv: bytes | None, sent: int = 0, received: int = 0
    ) -> None:
        aead = AESGCM(key)
        mine, theirs = self._digests
        self._sender = Direction(aead, send_iv, mine + theirs, sent)
        self._receiver = Direction(aead, receive_iv, theirs + mine, received)
        self._key = key

    def reset_digests(self) -> None:
        """Forget the clear bytes so far: the process behind the socket has changed."""
        if self._key is not None:
            raise ValueError("the stream is keyed already")
        self._clear_sent, self._clear_received = bytearray(), bytearray()

    # --- out ---

    def packets(self, body: Buffer) -> Iterator[Buffer]:
        """The packets of one message. Each must be sent before the next is asked for."""
        if not body:
            raise ValueError("a message without bytes does not exist")
        view = memoryview(body)
        for at in range(0, len(view), PACKET_BYTES):
            content = view[at : at + PACKET_BYTES]
            yield self._packet(content, last=at + PACKET_BYTES >= len(view))

    def _packet(self, content: memoryview, *, last: bool) -> Buffer:
        extra = self._sender.overhead() if self._sender is not None else 0
        header = bytes((last,)) + (len(content) + extra).to_bytes(4, "big")
        if self._sender is not None:
            return self._sender.seal(header, content)
        packet = header + content
        _remember(self._clear_sent, packet)
        return packet

    # --- in ---

    def space(self) -> memoryview:
        """Room for bytes from the wire, at least one; tell `received` how many came."""
        if self._start == self._end:
            self._start = self._end = 0
        wanted = self._wanted_bytes()
        if len(self._buffer) - self._start < wanted:
            self._make_room(wanted)
        return memoryview(self._buffer)[self._end :]

    def _wanted_bytes(self) -> int:
        """Size of the packet at the front, as far as it is known."""
        if self._end - self._start < HEADER_BYTES:
            return HEADER_BYTES
        return HEADER_BYTES + self._body_length()

    def _make_room(self, wanted: int) -> None:
        waiting = self._buffer[self._start : self._end]
        if len(self._buffer) < wanted:
            self._buffer = bytearray(wanted + min(wanted, _MORE_BYTES))
        self._buffer[: len(waiting)] = waiting
        self._start, self._end = 0, len(waiting)

    def received(self, count: int) -> None:
        """`count` bytes were put into `space()`."""
        self._end += count

    def feed(self, data: Buffer) -> None:
        """Take bytes of any number from the wire."""
        view = memoryview(data)
        if len(self._buffer) - self._end < len(view):
            self._make_room(self._end - self._start + len(view))
        self._buffer[self._end : self._end + len(view)] = view
        self._end += len(view)

    def next_message(self) -> bytes | None:
        """The next whole message, or None when more bytes are needed.

        Raises PeerFault("framing" | "crypto" | "limit"); the connection is of no use then.
        """
        while (packet := self._next_packet()) is not None:
            last, content = packet
            # A packet without content costs too: an endless row of them must hit the limit.
            self._spent += max(len(content), 1)
            if self._spent > self.limit_bytes:
                raise PeerFault("limit", f"a message is larger than {self.limit_bytes} bytes")
            if not last:
                self._partial += content
                continue
            message = bytes(self._partial + content) if self._partial else content
            self._partial, self._spent = bytearray(), 0
            return message
        return None

    def _body_length(self) -> int:
        at = self._start
        length = int.from_bytes(self._buffer[at + 1 : at + HEADER_BYTES], "big")
        if self._buffer[at] > MAX_END_FLAG:
            raise PeerFault("framing", "a packet's end flag is out of range")
        if not 0 < length <= MAX_BODY_BYTES:
            raise PeerFault("framing", "a packet's length is out of range")
        if length > self.limit_bytes + _OVERHEAD_BYTES:  # before room is made for it
            raise PeerFault("limit", f"a message is larger than {self.limit_bytes} bytes")
        return length

    def _next_packet(self) -> tuple[bool, bytes] | None:
        have = self._end - self._start
        if have < HEADER_BYTES:
            return None
        length = self._body_length()
        if have < HEADER_BYTES + length:
            return None
        at = self._start
        view = memoryview(self._buffer)
        header = bytes(view[at : at + HEADER_BYTES])
        body = view[at + HEADER_BYTES : at + HEADER_BYTES + length]
        if self._receiver is not None:
            content = self._receiver.open(header, body)
        else:
            content = bytes(body)
            _remember(self._clear_received, header + content)
        self._start += HEADER_BYTES + length
        return header[0] != 0, content

    # --- hand-over to another process ---

    def export(self) -> dict[str, Any]:
        """Everything that another process needs to go on, as plain data. Holds the key: keep it private."""
        sender, receiver = self._sender, self._receiver
        return {
            "version": _STATE_VERSION,
            "limit_bytes": self.limit_bytes,
            "key": self._key,
            "send_iv": sender.iv if sender else None,
            "send_count": sender.count if sender else 0,
            "receive_iv": receiver.iv if receiver else None,
            "receive_count": receiver.count if receiver else 0,
            "digests": list(self._digests),
            "clear_sent": bytes(self._clear_sent),
            "clear_received": bytes(self._clear_received),
            "partial": bytes(self._partial),
            "spent": self._spent,
            "unread": bytes(self._buffer[self._start : self._end]),
        }

    @classmethod
    def adopt(cls, state: Mapping[str, Any]) -> Frames:
        """Go on from an exported state. Raises PeerFault("state") on anything malformed."""
        _check_state(state)
        frames = cls(limit_bytes=state["limit_bytes"])
        frames._clear_sent = bytearray(state["clear_sent"])
        frames._clear_received = bytearray(state["clear_received"])
        frames._partial = bytearray(state["partial"])
        frames._spent = state["spent"]
        frames.feed(state["unread"])
        if state["key"] is not None:
            mine, theirs = state["digests"]
            frames._digests = (mine, theirs)
            ivs = state["send_iv"], state["receive_iv"]
            frames._make_ciphers(state["key"], *ivs, state["send_count"], state["receive_count"])
        return frames


def _remember(clear: bytearray, packet: Buffer) -> None:
    room = MAX_HASHED_BYTES - len(clear)
    if room > 0:
        clear += packet[:room]


_STATE_BYTES = ("clear_sent", "clear_received", "partial", "unread")
_STATE_COUNTS = ("limit_bytes", "spent", "send_count", "receive_count")


def _check_state(state: Mapping[str, Any]) -> None:
    """Refuse what `export` would not have written."""

    def want(holds: bool, what: str) -> None:
        if not holds:
            raise PeerFault("state", f"an adopted stream's {what} is malformed")

    want(state.get("version") == _STATE_VERSION, "version")
    for name in _STATE_BYTES:
        want(isinstance(state.get(name), bytes), name)
    for name in _STATE_COUNTS:
        want(type(state.get(name)) is int and 0 <= state[name] <= MAX_PACKETS, name)
    want(state["limit_bytes"] > 0, "limit_bytes")
    if state.get("key") is None:
        return
    want(_is_bytes(state["key"], KEY_BYTES), "key")
    want(_is_bytes(state.get("send_iv"), IV_BYTES), "send_iv")
    fresh = state["receive_count"] == 0 and state.get("receive_iv") is None
    want(fresh or _is_bytes(state.get("receive_iv"), IV_BYTES), "receive_iv")
    digests = state.get("digests")
    want(isinstance(digests, list | tuple) and len(digests) == 2, "digests")
    want(all(_is_bytes(one, DIGEST_BYTES) for one in digests or ()), "digests")


def _is_bytes(value: object, length: int) -> bool:
    return isinstance(value, bytes) and len(value) == length
