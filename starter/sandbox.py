"""Stage-in and stage-out: the near side of what jobwrapper does with the sandbox, through the identity
switch.

Stage-in: the far side makes the sandbox in a place of ours, says ready, unpacks a tar stream made here on the
fly. Stage-out: the far side says what is there and sends it; the stream is not trusted: every entry must be
the next one of the manifest, which itself has been checked and limited. Then AGAIN, REMOVE, or nothing
(KEEP).

Nothing of the job's is stored or opened here by a path.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import trio
from attrs import field, frozen

from pilot.farside import Asking, CallFailed, FarSide, open_call, text_of
from starter.places import (
    Left,
    Made,
    Place,
    Unsafe,
    check_made,
    close_window,
    make_place,
    open_window,
    owner_of,
    remove_place,
    write_record,
)
from starter.tarstream import (
    END,
    Data,
    Entry,
    Event,
    Limits,
    TarFault,
    TarReader,
    check_name,
    header,
    padding,
)

__all__ = [
    "Account",
    "Catalogue",
    "CatalogueEntry",
    "Changed",
    "Context",
    "Inward",
    "Left",
    "Limits",
    "Listed",
    "Manifest",
    "OutDirectory",
    "OutFile",
    "Outward",
    "Place",
    "StageFailed",
    "Unsafe",
    "Wanted",
    "make_place",
    "remove_place",
    "stage_in",
    "stage_out",
]

# Small files are collected into pieces of this size; larger ones go as they come.
COLLECT_BYTES = 256 * 1024
READ_BYTES = 1024 * 1024
# Local and in memory on both sides: one that moves nothing for so long is stuck (a dead disk, a stopped far
# side).
STALL_S = 300.0
# The far side stops emptying after 240 s (jobwrapper/clear.py) and reports.
REMOVE_S = 270.0
# Entries of a sandbox's top directory that are remembered: more than any input has, 100 MB at most.
CATALOGUE_ENTRIES = 1_000_000
CATALOGUE_NAMES_BYTES = 64 * 1024 * 1024
MISSING_NAMES = 1000
# An input that was given up half-way is removed by the far side before it ends.
CLEAR_GRACE_S = 30.0
SANDBOX_MODE = 0o700

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
    """Exactly these: files, directories with their contents, `dir/` for the contents alone."""

    names: tuple[str, ...]


@frozen
class Changed:
    """Plain files of the top directory that are new or changed since the catalogue."""

    catalogue: Catalogue


Wanted = Listed | Changed


@frozen
class Manifest:
    """What will come (names are those at the destination), and what was asked for but cannot, with the
    reasons."""

    entries: tuple[CatalogueEntry, ...]
    missing: tuple[str, ...]
    reasons: tuple[str, ...] = ()


@frozen
class OutDirectory:
    name: str
    mode: int


@frozen
class OutFile:
    """One file of the output; `chunks` gives exactly `size` bytes, and what is not read is skipped."""

    name: str
    mode: int
    size: int
    chunks: AsyncIterator[bytes] = field(repr=False)


# -- stage-in
# --------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def stage_in(context: Context, place: Place, *, deadline_s: float) -> AsyncIterator[Inward]:
    """Make the sandbox at the job's account; inside the block it can be filled.

    Entered once the far side is authorised, has made the directory and the window is closed again; each of
    these within `deadline_s` seconds (an attempt of the call counts alone). Leaving without `finish()`, also
    by an exception or when cancelled, makes the far side empty the sandbox; the block then waits for that,
    2 * CLEAR_GRACE_S at most.

    Raises StageFailed; `outcome` tells what the switch said when the far side never spoke.
    """
    far = await open_call(context, "stage-in", deadline_s=deadline_s)
    inward = None
    try:
        account = Account(far.hello.uid, far.hello.gid, far.hello.name)
        if context.switch.isolates and account.uid == os.geteuid():
            raise StageFailed(
                "not-isolated", f"{context.switch.name} left the job at the pilot's own account"
            )
        with _deadline("make the sandbox", deadline_s):
            made = await _make_directory(far, place)
        _keep_record(place, context, account, made)
        inward = Inward(far, account)
        yield inward
    finally:
        given_up = inward is not None and not inward.finished
        await far.end(CLEAR_GRACE_S if given_up else None)


async def _make_directory(far: FarSide, place: Place) -> Made:
    with _guarded(place):
        open_window(place)
        try:
            await far.send({"parent": str(place.sticky), "name": place.token, "mode": SANDBOX_MODE})
            answer = await far.receive()
        finally:
            close_window(place)
        _raise_if_failed(answer)
        made = Made(_int(_dict(answer.get("ready")).get("dev")), _int(_dict(answer.get("ready")).get("ino")))
        check_made(place, made, far.hello.uid)
    return made


def _keep_record(place: Place, context: Context, account: Account, made: Made) -> None:
    content = {
        "id": context.audit_id,
        "uid": account.uid,
        "gid": account.gid,
        "account": account.name,
        "pid": os.getpid(),
        "device": made.device,
        "inode": made.inode,
    }
    with _guarded(place):
        write_record(place, content)


class Inward:
    """The way into the sandbox. A sink for cedar.filetransfer; the names are checked here."""

    def __init__(self, far: FarSide, account: Account) -> None:
        self.account = account
        self.finished = False
        self._far = far
        self._collected = bytearray()

    async def directory(self, name: str, mode: int) -> None:
        """Make a directory, with those above it."""
        await self._add(header(_checked(name), mode=mode & 0o777, directory=True))

    async def file(self, name: str, mode: int, size: int, chunks: AsyncIterator[bytes]) -> None:
        """Store a file of exactly `size` bytes; StageFailed("size") when `chunks` gives another number."""
        await self._raise_if_refused()
        await self._add(header(_checked(name), mode=mode & 0o777, size=size))
        left = size
        async for chunk in chunks:
            left -= len(chunk)
            if left < 0:
                break
            await self._add(chunk)
        if left:
            raise StageFailed("size", f"{text_of(name)} has not the {size} bytes that were announced")
        await self._add(padding(size))

    async def finish(self) -> Catalogue:
        """No more to come: wait until all of it is stored, and return what lies in the top directory."""
        await self._add(END)
        await self._flush()
        with _deadline("store the input", STALL_S):
            await self._far.stream.send_eof()
            rows = _Rows(CATALOGUE_ENTRIES, CATALOGUE_NAMES_BYTES)
            while True:
                answer = await self._far.receive()
                _raise_if_failed(answer)
                if answer.get("done") is True:
                    self.finished = True
                    return Catalogue(tuple(rows.entries))
                rows.add(answer.get("entries"))

    async def _add(self, data: bytes) -> None:
        if len(data) >= COLLECT_BYTES:
            await self._flush()
            await self._send(data)
            return
        self._collected += data
        if len(self._collected) >= COLLECT_BYTES:
            await self._flush()

    async def _flush(self) -> None:
        data, self._collected = self._collected, bytearray()
        if data:
            await self._send(data)

    async def _send(self, data: bytes | bytearray) -> None:
        with _deadline("store the input", STALL_S):
            try:
                await self._far.send_bytes(data)
            except StageFailed:
                await self._raise_if_refused()
                raise

    async def _raise_if_refused(self) -> None:
        if self._far.pending():
            with _deadline("say why", STALL_S):
                _raise_if_failed(await self._far.receive())


# -- stage-out
# -------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def stage_out(
    context: Context, place: Place, wanted: Wanted, *, limits: Limits, deadline_s: float
) -> AsyncIterator[Outward]:
    """Fetch what the job left; inside the block the manifest is known and the content can be read.

    `deadline_s` is for each step until the manifest has begun; from then on STALL_S without a byte end it.
    Leaving without `remove()`, also by an exception or when cancelled, keeps the sandbox as it is.

    Raises StageFailed; code "limit" when the output exceeds `limits`, before any of it is read.
    """
    far = await open_call(context, "stage-out", deadline_s=deadline_s)
    try:
        _check_owner(place, far)
        with _deadline("ask for the output", deadline_s):
            await far.send(_request(place, wanted))
        outward = Outward(far, limits)
        await outward.begin()
        yield outward
    finally:
        await far.end()


def _request(place: Place, wanted: Wanted) -> dict[str, Any]:
    if isinstance(wanted, Listed):
        return {"path": str(place.path), "listed": list(wanted.names)}
    rows = [[e.name, e.kind, e.mode, e.size, e.mtime_ns] for e in wanted.catalogue.entries]
    return {"path": str(place.path), "changed": rows}


class Outward:
    """The way out of the sandbox. One task."""

    def __init__(self, far: FarSide, limits: Limits) -> None:
        self.manifest = Manifest((), ())
        self._far = far
        self._limits = limits
        self._reader = TarReader(limits)
        self._events: Iterator[Event] = iter(())

    async def begin(self) -> None:
        """Read the manifest; done by `stage_out` and `again`."""
        with _deadline("list the output", STALL_S):
            self.manifest = await self._receive_manifest()
        total = sum(entry.size for entry in self.manifest.entries if entry.kind == "file")
        if total > self._limits.max_bytes:
            raise StageFailed("limit", f"the output has {total} bytes, allowed are {self._limits.max_bytes}")
        self._reader = TarReader(self._limits)
        self._events = iter(())

    def entries(self) -> AsyncIterator[OutFile | OutDirectory]:
        """What the manifest announced, in its order.

        A file's chunks must be read before the next entry is asked for; what is left of them is skipped then.
        """
        return _Entries(self)

    async def again(self) -> None:
        """All of it once more, from the sandbox as it is now: a new manifest, then `entries()` again."""
        await self._drain()
        with _deadline("list the output again", STALL_S):
            await self._far.send({"word": "AGAIN"})
        await self.begin()

    async def remove(self) -> None:
        """Empty the sandbox, once the other end has everything. StageFailed("left") when something stays."""
        await self._drain()
        with _deadline("empty the sandbox", REMOVE_S):
            await self._far.send({"word": "REMOVE"})
            answer = await self._far.receive()
        left = _int(answer.get("left"))
        if left:
            raise StageFailed("left", f"{left} entries could not be removed: {text_of(answer.get('named'))}")

    async def _receive_manifest(self) -> Manifest:
        rows = _Rows(self._limits.max_files, self._limits.names_bytes)
        missing: list[tuple[str, str]] = []
        while True:
            answer = await self._far.receive()
            _raise_if_failed(answer)
            if answer.get("done") is True:
                break
            if "entries" in answer:
                rows.add(answer["entries"])
                continue
            missing += [_pair(row) for row in _filled_list(answer.get("missing"))]
            if len(missing) > MISSING_NAMES:
                raise StageFailed("limit", f"more than {MISSING_NAMES} missing names")
        if any(entry.kind == "other" for entry in rows.entries):
            raise StageFailed("framing", "an entry that is neither a file nor a directory")
        names, reasons = zip(*missing, strict=True) if missing else ((), ())
        return Manifest(tuple(rows.entries), names, reasons)

    async def next_entry(self, expected: CatalogueEntry) -> Entry:
        """The next header of the stream, which must be the one that the manifest announced."""
        event = await self.next_event()
        size = 0 if expected.kind == "dir" else expected.size
        if (
            not isinstance(event, Entry)
            or event.directory != (expected.kind == "dir")
            or event.name != _bytes(expected.name)
            or event.size != size
        ):
            raise StageFailed("tar", f"{text_of(expected.name)} was announced, something else came")
        return event

    async def next_event(self) -> Entry | Data | None:
        """The next event of the stream; None at its end mark."""
        while not self._reader.ended:
            try:
                for event in self._events:
                    if isinstance(event, Entry | Data):
                        return event
                if not self._reader.ended:
                    self._events = self._reader.feed(await self._receive())
            except TarFault as fault:
                raise StageFailed("tar", str(fault)) from fault
        return None

    async def _receive(self) -> bytes:
        content = self._reader.content_to_come
        limit = min(content, READ_BYTES) if content >= COLLECT_BYTES else COLLECT_BYTES
        with _deadline("send the output", STALL_S):
            data = await self._far.receive_some(limit)
        if not data:
            raise self._far.gone()
        return data

    async def _drain(self) -> None:
        """Read to the end mark, so that the conversation can go on. Bounded by the limits."""
        while await self.next_event() is not None:
            pass


class _Entries:
    """The entries of one tar stream. Not a generator: those complain when nobody finishes them."""

    def __init__(self, outward: Outward) -> None:
        self._outward = outward
        self._expected = iter(outward.manifest.entries)
        self._content: _Content | None = None

    def __aiter__(self) -> _Entries:
        return self

    async def __anext__(self) -> OutFile | OutDirectory:
        if self._content is not None:
            await self._content.skip()
            self._content = None
        expected = next(self._expected, None)
        if expected is None:
            if await self._outward.next_event() is not None:
                raise StageFailed("tar", "more entries than were announced")
            raise StopAsyncIteration
        entry = await self._outward.next_entry(expected)
        if entry.directory:
            return OutDirectory(expected.name, entry.mode)
        self._content = _Content(self._outward, entry.size)
        return OutFile(expected.name, entry.mode, entry.size, self._content)


class _Content:
    """The content of one file, read once."""

    def __init__(self, outward: Outward, size: int) -> None:
        self._outward = outward
        self._left = size

    def __aiter__(self) -> _Content:
        return self

    async def __anext__(self) -> bytes:
        if not self._left:
            raise StopAsyncIteration
        event = await self._outward.next_event()
        if not isinstance(event, Data):
            raise StageFailed("tar", "a file is shorter than announced")
        self._left -= len(event.content)
        return event.content

    async def skip(self) -> None:
        async for _ in self:
            pass


# -- what both need
# ----------------------------------------------------------------------------------------------------


class _Rows:
    """Lists of entries from the far side: shapes checked, numbers limited, no name twice."""

    def __init__(self, max_entries: int, max_names_bytes: int) -> None:
        self.entries: list[CatalogueEntry] = []
        self._names: set[str] = set()
        self._left = max_entries
        self._left_bytes = max_names_bytes

    def add(self, rows: Any) -> None:
        for row in _filled_list(rows):
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
    fields = _list(row)
    if len(fields) != 5 or not isinstance(fields[0], str) or fields[1] not in ("file", "dir", "other"):
        raise StageFailed("framing", "not an entry")
    _checked(fields[0])
    mode, size, mtime_ns = (_int(number) for number in fields[2:])
    if size < 0:
        raise StageFailed("framing", "a negative size")
    return CatalogueEntry(fields[0], fields[1], mode, size, mtime_ns)


def _pair(row: Any) -> tuple[str, str]:
    fields = _list(row)
    if len(fields) != 2 or not all(isinstance(word, str) for word in fields):
        raise StageFailed("framing", "not a missing name and its reason")
    return fields[0][:4096], text_of(fields[1])


def _checked(name: str) -> bytes:
    try:
        return check_name(_bytes(name))
    except TarFault as fault:
        raise StageFailed("name", fault.text) from fault


def _bytes(name: str) -> bytes:
    try:
        return name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise StageFailed("framing", "a name that stands for no bytes") from None


def _int(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= 1 << 63:
        raise StageFailed("framing", "not a number")
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise StageFailed("framing", "not a list")
    return value


def _filled_list(value: Any) -> list[Any]:
    """Frames that bring nothing could go on for ever."""
    if not _list(value):
        raise StageFailed("framing", "an empty list")
    return _list(value)


def _dict(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise StageFailed("framing", "not an object")
    return value


def _raise_if_failed(answer: dict[str, Any]) -> None:
    if "failed" in answer:
        failed = _dict(answer["failed"])
        where = f" {text_of(failed['name'])}" if "name" in failed else ""
        raise StageFailed("store", f"{text_of(failed.get('step'))}{where}: {text_of(failed.get('text'))}")


def _check_owner(place: Place, far: FarSide) -> None:
    """The switch must have given us the account that the sandbox belongs to."""
    try:
        owner = owner_of(place)
    except OSError as error:
        raise StageFailed("place", f"the sandbox is gone: {error.strerror}") from error
    if owner != far.hello.uid:
        raise StageFailed(
            "account", f"the sandbox belongs to uid {owner}, the switch now gives {far.hello.uid}"
        )


@contextmanager
def _guarded(place: Place) -> Iterator[None]:
    try:
        yield
    except Unsafe as fault:
        raise StageFailed("place", str(fault)) from fault
    except OSError as error:
        raise StageFailed("place", f"{place.root}: {error.strerror}") from error


@contextmanager
def _deadline(what: str, limit_s: float) -> Iterator[None]:
    try:
        with trio.fail_after(limit_s):
            yield
    except trio.TooSlowError:
        raise StageFailed("timeout", f"the far side did not {what} within {limit_s:g} s") from None
