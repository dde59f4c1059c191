"""Just enough DER for what X.509 libraries do not decode: proxyCertInfo, VOMS attributes, canonical names.

Reads definite lengths only, within the bytes given; it does not decode values, and it never recurses.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import attrs

INTEGER: Final = 0x02
OCTET_STRING: Final = 0x04
OBJECT_ID: Final = 0x06
UTF8_STRING: Final = 0x0C
SEQUENCE: Final = 0x30
SET: Final = 0x31


class DerError(ValueError):
    """The bytes are not DER, or not the DER that was expected."""


@attrs.frozen
class Element:
    """One tag, length, value; `end` is the offset behind it in the bytes it was read from."""

    tag: int
    value: bytes = attrs.field(repr=False)
    end: int

    def expect(self, tag: int) -> bytes:
        """The value, if the tag is this one; DerError otherwise."""
        if self.tag != tag:
            raise DerError(f"tag 0x{self.tag:02x} where 0x{tag:02x} belongs")
        return self.value


def read(data: bytes, offset: int = 0) -> Element:
    """The element that starts at `offset`.

    Raises:
        DerError: cut short, an indefinite or padded length, or a tag of more than one byte.
    """
    if len(data) - offset < 2:
        raise DerError("cut short")
    tag, first = data[offset], data[offset + 1]
    if tag & 0x1F == 0x1F:
        raise DerError("a tag of more than one byte")
    start, size = _length(data, offset + 2, first)
    if size > len(data) - start:
        raise DerError("a length that goes beyond the end")
    return Element(tag, bytes(data[start : start + size]), start + size)


def _length(data: bytes, offset: int, first: int) -> tuple[int, int]:
    """Where the value starts and its size in bytes."""
    if first < 0x80:
        return offset, first
    count = first & 0x7F
    # Four bytes hold 4 GiB, more than anything that reaches us.
    if not 1 <= count <= 4 or len(data) - offset < count:
        raise DerError("an indefinite, too long or cut length")
    size = int.from_bytes(data[offset : offset + count], "big")
    if size < 0x80 or size >> (8 * (count - 1)) == 0:
        raise DerError("a length that is not in its shortest form")
    return offset + count, size


def elements(data: bytes, *, limit: int) -> Iterator[Element]:
    """The elements that lie back to back in `data`, at most `limit` of them (DerError beyond)."""
    offset = count = 0
    while offset < len(data):
        if count == limit:
            raise DerError(f"more than {limit} elements")
        element = read(data, offset)
        offset, count = element.end, count + 1
        yield element


def encode(tag: int, *parts: bytes) -> bytes:
    """One element whose value is the parts joined."""
    value = b"".join(parts)
    size = len(value)
    if size < 0x80:
        return bytes((tag, size)) + value
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + value


def encode_oid(dotted: str) -> bytes:
    """An object identifier element from its dotted text."""
    first, second, *rest = (int(part) for part in dotted.split("."))
    return encode(OBJECT_ID, b"".join(_base128(number) for number in (40 * first + second, *rest)))


def _base128(number: int) -> bytes:
    out = [number & 0x7F]
    while number := number >> 7:
        out.append(0x80 | number & 0x7F)
    return bytes(reversed(out))


def encode_int(number: int) -> bytes:
    """A non-negative integer element."""
    return encode(INTEGER, number.to_bytes(number.bit_length() // 8 + 1, "big"))


def decode_int(value: bytes) -> int:
    """A non-negative integer of at most 8 bytes (DerError otherwise)."""
    if not value or len(value) > 8 or value[0] & 0x80:
        raise DerError("an integer out of range")
    return int.from_bytes(value, "big")
