"""What goes in and out of a sandbox, in types; and the checking of what the far side says about it.

The far side is the job's account: shapes, numbers and names are checked here, once, before anybody uses them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import trio
from attrs import field, frozen

from pilot.farside import Asking, CallFailed, text_of
from starter.places import Place, Unsafe, owner_of
from starter.tarstream import TarFault, check_name

# Local and in memory on both sides: one that moves nothing for so long is stuck (a dead disk, a stopped far
# side).
STALL_S = 300.0

StageFailed = CallFailed
Context = Asking


@frozen
class Account:
    """The job's account: uid and gid told by the kernel, the name by the far side, for people."""

    uid: int
    gid: int
    name: str


@frozen
class CatalogueEntry:
    """`kind` is "file", "dir" or "other"."""

    name: str
    kind: str
    mode: int
    size: int
    mtime_ns: int


@frozen
class Catalogue:
    """The sandbox's top directory as stage-in left it."""

    entries: tuple[CatalogueEntry, ...]


@frozen
class Listed:
    """Exactly these: files, directories with their contents, `dir/` for the contents alone. `preserve`: below the
    directories that their names have."""

    names: tuple[str, ...]
    preserve: bool = False
    manifest: str = ""
    """A directory of the sandbox that gets a list of what is there, and comes too."""


@frozen
class Changed:
    """Plain files of the top directory that are new or changed since the catalogue."""

    catalogue: Catalogue
    manifest: str = ""


Wanted = Listed | Changed


@frozen
class Manifest:
    """What will come (names are those at the destination), and what was asked for but cannot, with the
    reasons. `left_out`: what lies in a directory that was asked for, and is no file (name, why)."""

    entries: tuple[CatalogueEntry, ...]
    missing: tuple[str, ...]
    reasons: tuple[str, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()


@frozen
class OutDirectory:
    name: str
    mode: int


@frozen
class OutFile:
    """One file of the output; `chunks` gives exactly `size` bytes, each piece good until the next is asked for; what
    is not read is skipped."""

    name: str
    mode: int
    size: int
    chunks: AsyncIterator[bytes | memoryview] = field(repr=False)


class Rows:
    """Lists of entries from the far side: shapes checked, numbers limited, no name twice."""

    def __init__(self, max_entries: int, max_names_bytes: int) -> None:
        self.entries: list[CatalogueEntry] = []
        self._names: set[str] = set()
        self._left = max_entries
        self._left_bytes = max_names_bytes

    def add(self, rows: Any) -> None:
        for row in filled_list_of(rows):
            entry = _entry(row)
            self._left -= 1
            self._left_bytes -= len(entry.name)
            if self._left < 0 or self._left_bytes < 0:
                raise StageFailed("limit", "too many entries, or their names are too long")
            if entry.name in self._names:
                raise StageFailed("framing", f"two entries of one name: {text_of(entry.name)}")
            self._names.add(entry.name)
            self.entries.append(entry)


def _entry(row: Any) -> CatalogueEntry:
    fields = list_of(row)
    if len(fields) != 5 or not isinstance(fields[0], str) or fields[1] not in ("file", "dir", "other"):
        raise StageFailed("framing", "not an entry")
    checked_name(fields[0])
    mode, size, mtime_ns = (int_of(number) for number in fields[2:])
    if size < 0:
        raise StageFailed("framing", "a negative size")
    return CatalogueEntry(fields[0], fields[1], mode, size, mtime_ns)


def pair_of(row: Any) -> tuple[str, str]:
    fields = list_of(row)
    if len(fields) != 2 or not all(isinstance(word, str) for word in fields):
        raise StageFailed("framing", "not a missing name and its reason")
    return fields[0][:4096], text_of(fields[1])


def checked_name(name: str) -> bytes:
    try:
        return check_name(name_bytes(name))
    except TarFault as fault:
        raise StageFailed("name", fault.text) from fault


def name_bytes(name: str) -> bytes:
    try:
        return name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise StageFailed("framing", "a name that stands for no bytes") from None


def int_of(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= 1 << 63:
        raise StageFailed("framing", "not a number")
    return value


def list_of(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise StageFailed("framing", "not a list")
    return value


def filled_list_of(value: Any) -> list[Any]:
    """Frames that bring nothing could go on for ever."""
    if not list_of(value):
        raise StageFailed("framing", "an empty list")
    return list_of(value)


def dict_of(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise StageFailed("framing", "not an object")
    return value


def refusal_in(answer: dict[str, Any]) -> StageFailed | None:
    """What the far side could not do, if that is what the frame says."""
    if "failed" not in answer:
        return None
    failed = dict_of(answer["failed"])
    where = f" {text_of(failed['name'])}" if "name" in failed else ""
    text = f"{text_of(failed.get('step'))}{where}: {text_of(failed.get('text'))}"
    number = failed.get("errno")
    return StageFailed("store", text, errno=number if isinstance(number, int) and 0 < number < 4096 else 0)


def raise_if_failed(answer: dict[str, Any]) -> None:
    failed = refusal_in(answer)
    if failed is not None:
        raise failed


def check_owner(place: Place, uid: int) -> None:
    """The switch must have given us the account that the sandbox belongs to."""
    try:
        owner = owner_of(place)
    except OSError as error:
        raise StageFailed("place", f"the sandbox is gone: {error.strerror}") from error
    if owner != uid:
        raise StageFailed("account", f"the sandbox belongs to uid {owner}, the switch now gives {uid}")


@contextmanager
def guarded(place: Place) -> Iterator[None]:
    try:
        yield
    except Unsafe as fault:
        raise StageFailed("place", str(fault)) from fault
    except OSError as error:
        raise StageFailed("place", f"{place.root}: {error.strerror}") from error


@contextmanager
def deadline(what: str, limit_s: float) -> Iterator[None]:
    try:
        with trio.fail_after(limit_s):
            yield
    except trio.TooSlowError:
        raise StageFailed("timeout", f"the far side did not {what} within {limit_s:g} s") from None
