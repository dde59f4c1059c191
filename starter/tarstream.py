"""Tar streams between the starter and the sandbox: making one, and reading one that is not trusted.

No I/O: `header` and `padding` give bytes, `TarReader` takes bytes (cut anyhow) and gives events, or a
TarFault. The dialect is the one that jobwrapper speaks: GNU tar with files, directories and long names.
Everything else (links, devices, sparse files, pax headers, names that lead out) is refused, not skipped.
Memory is bounded by the limits.
"""

from __future__ import annotations

from collections.abc import Generator

from attrs import field, frozen

BLOCK = 512
END = bytes(2 * BLOCK)
# PATH_MAX and NAME_MAX of Linux.
PATH_BYTES = 4095
COMPONENT_BYTES = 255
# Octal sizes end here (11 digits); larger ones are written in base 256.
OCTAL_LIMIT = 8**11
_FILE, _OLD_FILE, _DIRECTORY, _LONG_NAME, _ORDER = b"0", b"\0", b"5", b"L", b"X"


class TarFault(Exception):
    """The stream is not one that we take. `code`: "header", "name", "kind", "limit", "duplicate",
    "truncated"."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code
        self.text = text


@frozen
class Limits:
    """What one stream may hold: bytes of content in all, entries (files and directories), bytes of all
    names and of the directories that they lie in."""

    max_bytes: int
    max_files: int
    # Kept in memory, for finding duplicates: 64 MiB is half a million names of usual length.
    names_bytes: int = 64 * 1024 * 1024


@frozen
class Entry:
    """The start of an entry; `size` bytes of `Data` follow. `mode` has permission bits only."""

    name: bytes
    directory: bool
    mode: int
    size: int


@frozen
class Data:
    content: bytes = field(repr=False)


@frozen
class End:
    """The end mark. What follows it is not read."""


Event = Entry | Data | End


def header(name: bytes, *, mode: int, size: int = 0, directory: bool = False) -> bytes:
    """The header of one entry; its content and `padding(size)` follow."""
    before = b""
    if len(name) > 99:
        text = name + b"\0"
        before = _header(b"././@LongLink", 0o644, len(text), _LONG_NAME) + text + padding(len(text))
        name = name[:99]
    return before + _header(name, mode, size, _DIRECTORY if directory else _FILE)


def order(text: bytes) -> bytes:
    """An entry of our own for the far side of stage-in: what it is to do now. The reader takes none."""
    return _header(b"order", 0o600, len(text), _ORDER) + text + padding(len(text))


def padding(size: int) -> bytes:
    return bytes(-size % BLOCK)


def check_name(name: bytes) -> bytes:
    """A relative name, without a trailing slash; TarFault("name") for any that could lead elsewhere."""
    shown = ascii(name[:80])
    name = name.rstrip(b"/") if not name.startswith(b"/") else name
    if not name or len(name) > PATH_BYTES or b"\0" in name:
        raise TarFault("name", f"empty, too long or with a NUL: {shown}")
    for part in name.split(b"/"):
        if part in (b"", b".", b"..") or len(part) > COMPONENT_BYTES:
            raise TarFault("name", f"not a plain relative path: {shown}")
    return name


class TarReader:
    """Bytes in, events out. After a TarFault it must not be used any more."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._buffer = bytearray()
        self._content = 0  # bytes of the current entry still to come
        self._padding = 0
        self._long_name: bytes | None = None
        self._names: dict[bytes, bool] = {}  # name -> directory
        self._above: set[bytes] = set()  # directories that a name lies in
        self._names_bytes = 0
        self._total = 0
        self.ended = False

    def take(self, view: memoryview) -> int:
        """Content of the current entry that has been fed and not told of yet, into `view`; how many bytes.

        What is still missing of `view` must then be read past this reader, and told by `passed`. No other events may
        be waiting: a suspended `feed` has to be closed first.
        """
        count = min(len(view), self._content, len(self._buffer))
        view[:count] = self._buffer[:count]
        del self._buffer[:count]
        self._content -= count
        return count

    def passed(self, count: int) -> None:
        """So many bytes of the current entry's content went by without being fed."""
        self._content -= count

    def feed(self, data: bytes) -> Generator[Event, None, None]:
        """The events in the next piece of the stream."""
        if self._content >= len(data) and not self._buffer and data:
            self._content -= len(data)
            yield Data(data)
            return
        self._buffer += data
        yield from self._events()

    def finish(self) -> None:
        """Call at end of file: TarFault("truncated") unless the end mark has been seen."""
        if not self.ended:
            raise TarFault("truncated", "the stream ended before its end mark")

    def _events(self) -> Generator[Event, None, None]:
        position = 0
        available = len(self._buffer)
        view = memoryview(self._buffer)
        try:
            while not self.ended:
                if self._content:
                    piece = min(self._content, available - position)
                    if not piece:
                        break
                    self._content -= piece
                    position += piece
                    yield Data(bytes(view[position - piece : position]))
                elif self._padding:
                    piece = min(self._padding, available - position)
                    if not piece:
                        break
                    self._padding -= piece
                    position += piece
                else:
                    used, event = self._header(view, position, available)
                    if not used:
                        break
                    position += used
                    if event is not None:
                        yield event
        finally:
            view.release()
            del self._buffer[:position]

    def _header(self, view: memoryview, position: int, available: int) -> tuple[int, Event | None]:
        """One header, if all of it is there: bytes used (0: more are needed), and its event if it has one."""
        if available - position < BLOCK:
            return 0, None
        block = bytes(view[position : position + BLOCK])
        if not any(block):
            self.ended = True
            return BLOCK, End()
        size = _checked_size(block)
        kind = block[156:157]
        if kind == _LONG_NAME:
            used = BLOCK + size + -size % BLOCK
            self._check_long_name(size)
            if available - position < used:
                return 0, None
            self._long_name = bytes(view[position + BLOCK : position + BLOCK + size]).rstrip(b"\0")
            return used, None
        return BLOCK, self._entry(block, kind, size)

    def _check_long_name(self, size: int) -> None:
        if self._long_name is not None or not 0 < size <= PATH_BYTES + 1:
            raise TarFault("name", f"a long name of {size} bytes, or two in a row")

    def _entry(self, block: bytes, kind: bytes, size: int) -> Entry:
        if kind not in (_FILE, _OLD_FILE, _DIRECTORY):
            raise TarFault("kind", f"an entry of kind {kind!a}")
        name = check_name(_name_in(block) if self._long_name is None else self._long_name)
        self._long_name = None
        directory = kind == _DIRECTORY
        if directory and size:
            raise TarFault("header", "a directory with content")
        self._count(name, directory, size)
        self._content, self._padding = size, -size % BLOCK
        return Entry(name, directory, _number(block[100:108]) & 0o777, size)

    def _count(self, name: bytes, directory: bool, size: int) -> None:
        self._total += size
        limits = self._limits
        if self._total > limits.max_bytes:
            raise TarFault("limit", f"more than {limits.max_bytes} bytes")
        if name in self._names:
            raise TarFault("duplicate", f"two entries of one name: {name[:80]!a}")
        if not directory and name in self._above:
            raise TarFault("duplicate", f"a directory that is also a file: {name[:80]!a}")
        self._names_bytes += len(name)
        above = name.rpartition(b"/")[0]
        while above and above not in self._above:
            if self._names.get(above) is False:
                raise TarFault("duplicate", f"a file that is also a directory: {above[:80]!a}")
            self._above.add(above)
            self._names_bytes += len(above)
            above = above.rpartition(b"/")[0]
        if len(self._names) >= limits.max_files or self._names_bytes > limits.names_bytes:
            raise TarFault("limit", f"more than {limits.max_files} entries, or their names are too long")
        self._names[name] = directory


def _header(name: bytes, mode: int, size: int, kind: bytes) -> bytes:
    length = b"%011o\0" % size if size < OCTAL_LIMIT else b"\x80" + size.to_bytes(11, "big")
    head = b"%s%07o\0%07o\0%07o\0%s%011o\0" % (name.ljust(100, b"\0"), mode, 0, 0, length, 0)
    tail = b"%s%s%s" % (kind, bytes(100), b"ustar  \0")
    total = sum(head) + sum(tail) + 8 * 32
    return (head + b"%06o\0 " % total + tail).ljust(BLOCK, b"\0")


def _name_in(block: bytes) -> bytes:
    """The name field; the prefix field of POSIX archives is not ours and must be empty."""
    if block[257:263] == b"ustar\0" and block[345:500].strip(b"\0"):
        raise TarFault("header", "a name in two parts")
    return block[:100].split(b"\0", 1)[0]


def _checked_size(block: bytes) -> int:
    expected = sum(block) - sum(block[148:156]) + 8 * 32
    if _number(block[148:156]) != expected:
        raise TarFault("header", "wrong checksum")
    return _number(block[124:136])


def _number(text: bytes) -> int:
    """A header's number: octal, or base 256 when the first bit is set (never negative)."""
    if text[0] & 0x80:
        if text[0] != 0x80:
            raise TarFault("header", "a negative or absurd number")
        return int.from_bytes(text[1:], "big")
    digits = text.split(b"\0", 1)[0].strip(b" ")
    if not digits.isdigit() or b"8" in digits or b"9" in digits:
        raise TarFault("header", f"not a number: {text!a}")
    return int(digits, 8)
