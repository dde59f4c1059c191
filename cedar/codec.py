"""Items of one whole message: integers, strings, raw bytes, reals, ads.

Every integer type is 8 bytes, big endian. On a keyed stream each string has a
length in front. Text is UTF-8; bytes that are not travel as surrogate escapes.
"""

from __future__ import annotations

import builtins
import math
import struct
from collections.abc import Iterable
from typing import TypeAlias

from classad2 import ClassAd

from cedar import classads
from cedar.errors import PeerFault
from cedar.expressions import MAX_TOKENS

Item: TypeAlias = int | bool | float | str | bytes | bytearray | memoryview | ClassAd

_INT = struct.Struct(">q")
# frexp's mantissa is scaled by this (2^31 - 1).
_REAL_SCALE = 2147483647
# An expression "ZKM" says: the next string is the real one, sent as a secret.
_SECRET_MARKER = "ZKM"
_NO_STRING = b"\xad"


class Reader:
    """Takes items off the front of one message. Any misfit is PeerFault("codec"). ``most_tokens``: of an ad."""

    def __init__(self, body: bytes, *, keyed: bool, most_tokens: builtins.int = MAX_TOKENS) -> None:
        self._body = body
        self._most_tokens = most_tokens
        self._at = 0
        self._keyed = keyed

    def remaining(self) -> builtins.int:
        """Bytes that are left."""
        return len(self._body) - self._at

    def end(self) -> None:
        """Raises PeerFault("codec") when bytes are left."""
        if self.remaining():
            raise PeerFault("codec", f"{self.remaining()} bytes too many in a message")

    def raw(self, n: builtins.int) -> bytes:
        """Exactly n bytes; a whole untouched message comes without a copy."""
        if not 0 <= n <= self.remaining():
            raise PeerFault("codec", "a message ends too early")
        start, self._at = self._at, self._at + n
        return self._body[start : self._at]

    def int(self) -> builtins.int:
        """A signed 64-bit integer."""
        value: int = _INT.unpack(self.raw(8))[0]
        return value

    def real(self) -> float:
        """A float in the frexp form."""
        mantissa, exponent = self.int(), self.int()
        try:
            return math.ldexp(mantissa / _REAL_SCALE, exponent)
        except OverflowError as error:
            raise PeerFault("codec", "a real is out of range") from error

    def string(self) -> str:
        """A string; the NULL marker reads as an empty one."""
        body = self._string_body()
        return "" if body == _NO_STRING else body.decode("utf-8", "surrogateescape")

    def _string_body(self) -> bytes:
        if not self._keyed:
            end = self._body.find(b"\0", self._at)
            if end < 0:
                raise PeerFault("codec", "a string has no end")
            return self.raw(end + 1 - self._at)[:-1]
        body = self.raw(self.int())
        if not body or body.find(b"\0") != len(body) - 1:
            raise PeerFault("codec", "a string's length does not fit")
        return body[:-1]

    def ad(self) -> ClassAd:
        """A ClassAd. Raises PeerFault("classad") for its text, PeerFault("limit") for its size."""
        count = self.int()
        if not 0 <= count <= classads.MAX_ATTRIBUTES:
            raise PeerFault("limit", "an ad has too many attributes")
        lines = [self._expression() for _ in range(count)]
        self.string(), self.string()  # MyType, TargetType: the real ones are attributes
        return classads.from_wire(lines, self._most_tokens)

    def _expression(self) -> str:
        text = self.string()
        return self.string() if text == _SECRET_MARKER else text


def encode(items: Iterable[Item], *, keyed: bool) -> bytes:
    """The body of a message made of these items; bytes go raw."""
    parts: list[bytes | bytearray | memoryview] = []
    for item in items:
        _append(parts, item, keyed)
    return b"".join(parts)


def _append(parts: list[bytes | bytearray | memoryview], item: Item, keyed: bool) -> None:
    match item:
        case int():  # bool too
            parts.append(_int(item))
        case str():
            parts.append(_string(item, keyed))
        case bytes() | bytearray() | memoryview():
            parts.append(item)
        case float():
            parts.extend(map(_int, _split_real(item)))
        case ClassAd():
            lines = classads.to_wire(item)
            parts.append(_int(len(lines)))
            parts.extend(_string(line, keyed) for line in (*lines, "", ""))
        case _:
            raise TypeError(f"{type(item).__name__} has no form on the wire")


def _int(value: int) -> bytes:
    try:
        return _INT.pack(value)
    except struct.error as error:
        raise ValueError("an integer needs more than 64 bits") from error


def _split_real(value: float) -> tuple[int, int]:
    if not math.isfinite(value):
        raise ValueError("a real on the wire must be finite")
    mantissa, exponent = math.frexp(value)
    return int(mantissa * _REAL_SCALE), exponent


def _string(text: str, keyed: bool) -> bytes:
    body = text.encode("utf-8", "surrogateescape")
    if b"\0" in body:
        raise ValueError("a string on the wire cannot hold NUL")
    return (_INT.pack(len(body) + 1) if keyed else b"") + body + b"\0"
