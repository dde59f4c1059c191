"""What a file transfer is made of: items, limits, acknowledgements, and which names are harmless. No I/O."""

from __future__ import annotations

import enum
import errno
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Final, Protocol, TypeAlias

import attrs
from classad2 import ClassAd

from cedar import classads
from cedar.commands import HoldCode

# What stock peers do: chunks of 256 KiB, and a number in place of the data of an empty file.
CHUNK_BYTES: Final = 262144
EMPTY_FILE: Final = 666
# Modes on the wire beside permission bits: none known, and "there is no such file".
MODE_UNKNOWN: Final = 0
MODE_MISSING: Final = 1 << 24
_PERMISSIONS: Final = 0o777
_DEFAULT_MODE: Final = 0o644
_REGULAR: Final = 0o100000
_DIRECTORY: Final = 0o040000
# A longer one says nothing more to the user who reads it in condor_q.
_MAX_REASON_CHARS: Final = 1024


class Kind(enum.IntEnum):
    """The number in front of an item."""

    FINISHED = 0
    FILE = 1
    FILE_ENCRYPTED = 2
    FILE_CLEAR = 3
    PROXY = 4
    URL = 5
    DIRECTORY = 6
    OTHER = 999


class Other(enum.IntEnum):
    """SubCommand in the ad of an OTHER item."""

    URL_SENT = 7
    REUSE = 8
    SIGN_URLS = 9


Piece: TypeAlias = bytes | bytearray | memoryview
FILES: Final = frozenset({Kind.FILE, Kind.FILE_ENCRYPTED, Kind.FILE_CLEAR})


@attrs.frozen
class File:
    """A file to send. `chunks` gives exactly `size` bytes in pieces of any size, each of them good until the next is
    asked for; it may raise ReadFailed."""

    name: str
    mode: int
    size: int
    chunks: AsyncIterator[Piece] = attrs.field(repr=False)


@attrs.frozen
class Directory:
    """A directory to make; it comes before what is in it."""

    name: str
    mode: int


@attrs.frozen
class ProxyItem:
    """A proxy that the receiver gets by delegation. `sign`: request DER -> certificates DER."""

    name: str
    sign: Callable[[bytes], Awaitable[bytes]] = attrs.field(repr=False)


@attrs.frozen
class Missing:
    """A file that was asked for and cannot be read: the receiver is told, and our acknowledgement says no."""

    name: str
    reason: str
    errno: int = errno.ENOENT


@attrs.frozen
class Link:
    """A file that the receiver is to fetch from a URL."""

    name: str
    url: str = attrs.field(repr=False)


@attrs.frozen
class SentByUrl:
    """A file that this side has sent to a URL by itself, or could not (`error`)."""

    name: str
    url: str = attrs.field(repr=False)
    error: str = ""


Item: TypeAlias = File | Directory | ProxyItem | Missing | Link | SentByUrl


class _Failed(Exception):
    """A failure of one item that leaves the protocol in step; `ack` is what the peer is told."""

    def __init__(self, hold_code: int, subcode: int, reason: str, *, retry: bool = False) -> None:
        super().__init__(reason)
        self.hold_code = hold_code
        self.subcode = subcode
        self.reason = reason
        self.ack = failed(hold_code, subcode, reason, retry=retry)


class StoreFailed(_Failed):
    """The sink could not store an item. The rest of it is read and dropped, the failure acknowledged."""


class ReadFailed(_Failed):
    """A file could not be read to its end. What is missing is sent as zeros, the failure acknowledged."""


class Sink(Protocol):
    """Where a receiver stores. Names are relative, without `..`, empty parts or NUL; modes only permissions.

    Each call may raise StoreFailed; any other exception ends the transfer.
    """

    async def directory(self, name: str, mode: int) -> None:
        """Make a directory; one that is there already is fine."""

    async def file(self, name: str, mode: int, size: int, chunks: AsyncIterator[bytes]) -> None:
        """Store a file of `size` bytes. What is left in `chunks` afterwards is dropped."""

    async def url(self, name: str, url: str) -> None:
        """A file that the receiver is to fetch from a URL by itself; by `finish` it must be there."""

    async def finish(self) -> Mapping[str, int | str]:
        """All items have come; statistics of what was fetched from URLs, for the acknowledgement."""

    async def proxy(self, name: str, exchange: Callable[[bytes], Awaitable[bytes]]) -> None:
        """Obtain a proxy by delegation and store it.

        `exchange` sends a request (DER) and returns certificates (DER, back to back); it may be called once.
        It raises Refused when the sender cannot delegate, which may be passed on. Without a call the
        proxy is declined, and the whole transfer fails: better ask and drop the answer.
        """


@attrs.frozen
class TransferLimits:
    """What a receiver takes. Beyond the first three it closes the connection (PeerFault "limit").

    Attributes:
        max_bytes: of all files together; announced to the sender, which stops by itself. None: no limit.
        max_files: items of all kinds.
        max_bytes_slack: over max_bytes; sender and receiver count some things differently (64 KiB in stock).
        max_name_bytes, max_part_bytes: Linux' PATH_MAX and NAME_MAX.
        max_depth: parts of a name.
    """

    max_bytes: int | None = None
    max_files: int = 1_000_000
    max_bytes_slack: int = 65535
    max_name_bytes: int = 4095
    max_part_bytes: int = 255
    max_depth: int = 128


@attrs.frozen
class Ack:
    """What one side says at the end.

    Attributes:
        ok: it did its part.
        hold_code, hold_subcode, reason: why not.
        retry: a later attempt may succeed; otherwise the job is to be held.
        files, bytes: what this side sent or received (0 in a peer's).
        stats: of what went by URL, as the ad TransferStats has it; the rest of that ad is made of files and bytes.
    """

    ok: bool
    hold_code: int = 0
    hold_subcode: int = 0
    reason: str = ""
    retry: bool = False
    files: int = 0
    bytes: int = 0
    stats: Mapping[str, int | str] = attrs.field(factory=dict)


def failed(hold_code: int, subcode: int, reason: str, *, retry: bool = False) -> Ack:
    """An acknowledgement that says no."""
    return Ack(ok=False, hold_code=hold_code, hold_subcode=subcode, reason=one_line(reason), retry=retry)


# A side that closes without its acknowledgement leaves this.
NO_ACK: Final = Ack(ok=False, reason="the peer gave up without an acknowledgement", retry=True)


def one_line(text: str) -> str:
    """Printable text on one line, as reasons have to be; whatever else there was becomes `?`."""
    return re.sub(r"[^\x20-\x7e]", "?", text.replace("\n", " "))[:_MAX_REASON_CHARS]


def ack_ad(ack: Ack) -> ClassAd:
    """The ad that carries an acknowledgement: Result 0 ok, 1 transient failure, -1 hold."""
    ad = ClassAd()
    ad["Result"] = 0 if ack.ok else 1 if ack.retry else -1
    ad["TransferStats"] = _stats(ack)
    if not ack.ok:
        ad["HoldReasonCode"] = ack.hold_code
        ad["HoldReasonSubCode"] = ack.hold_subcode
        ad["HoldReason"] = one_line(ack.reason)
    return ad


def _stats(ack: Ack) -> ClassAd:
    """As stock's: the submit side adds these to its own, and shows them as TransferInputStats, TransferOutputStats."""
    ad = ClassAd()
    if ack.files:
        ad["CedarFilesCount"] = ack.files
    if ack.bytes:
        ad["CedarSizeBytes"] = ack.bytes
    for name, value in ack.stats.items():
        ad[name] = value
    protocols = ["cedar"] if ack.bytes else []
    protocols += [name.removesuffix("FilesCount") for name in ack.stats if name.endswith("FilesCount")]
    ad["Protocols"] = ",".join(protocols)
    return ad


def read_ack(ad: ClassAd) -> Ack:
    """A peer's acknowledgement. Raises PeerFault("classad") without a Result."""
    result = classads.get_int(ad, "Result")
    if result == 0:
        return Ack(ok=True)
    return refusal(ad, retry=result > 0)


def refusal(ad: ClassAd, *, retry: bool) -> Ack:
    """The reasons in an ad that says no."""
    return failed(
        classads.get_int(ad, "HoldReasonCode", 0),
        classads.get_int(ad, "HoldReasonSubCode", 0),
        classads.get_str(ad, "HoldReason", "no reason given"),
        retry=retry,
    )


def check_name(name: str, limits: TransferLimits) -> None:
    """Refuse a name that could leave the sandbox or exceed a limit.

    Raises:
        StoreFailed: with EPERM, as stock receivers report it.
    """
    raw = name.encode("utf-8", "surrogateescape")
    parts = raw.split(b"/")
    too_long = len(raw) > limits.max_name_bytes or max(map(len, parts)) > limits.max_part_bytes
    # An empty part: an absolute name, a doubled or a trailing slash, or no name at all.
    if b"\0" in raw or any(part in (b"", b".", b"..") for part in parts):
        raise _unsafe("an illegal name", name)
    if too_long or len(parts) > limits.max_depth:
        raise _unsafe("a name that is too long or too deep", name)


def _unsafe(what: str, name: str) -> StoreFailed:
    return StoreFailed(HoldCode.DOWNLOAD_FILE_ERROR, errno.EPERM, f"{what} was sent: {name[:200]!a}")


def file_mode(mode: int) -> int:
    """Permission bits out of what the wire carries."""
    return _DEFAULT_MODE if mode in (MODE_UNKNOWN, MODE_MISSING) else mode & _PERMISSIONS


def directory_mode(mode: int) -> int:
    """Permission bits of a directory."""
    return mode & _PERMISSIONS


def wire_mode(item: File | Directory) -> int:
    """The mode as stock sends it, with the kind of file in it; never the number for "none known"."""
    return (_REGULAR if isinstance(item, File) else _DIRECTORY) | (item.mode & _PERMISSIONS)
