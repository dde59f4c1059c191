"""Stage-out: the far side says what is there and sends it; then AGAIN, REMOVE, or nothing (KEEP).

The stream is not trusted: every entry must be the next one of the manifest, which itself has been checked and
limited. Nothing of the job's is stored or opened here by a path.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator
from contextlib import asynccontextmanager
from typing import Any, Protocol

from attrs import frozen

from pilot.farside import FarSide, open_call, text_of
from starter.entries import (
    STALL_S,
    CatalogueEntry,
    Context,
    Listed,
    Manifest,
    OutDirectory,
    OutFile,
    Rows,
    StageFailed,
    Wanted,
    check_owner,
    deadline,
    filled_list_of,
    int_of,
    name_bytes,
    pair_of,
    raise_if_failed,
)
from starter.places import Place
from starter.plugins import Order
from starter.tarstream import Data, Entry, Event, Limits, TarFault, TarReader

# What a read asks for: headers and small files together, or the content of a large one alone, in the pieces that the
# wire has: they go on without being joined or cut.
MIXED_BYTES = 256 * 1024
CONTENT_BYTES = 256 * 1024
# The far side stops emptying after 240 s (jobwrapper/clear.py) and reports.
REMOVE_S = 270.0
MISSING_NAMES = 1000
# 64 KiB of a plugin's words, up to 6 characters each in JSON, and some more.
PLUGIN_FRAME_BYTES = 512 * 1024
LEFT_OUT_NAMES = 20


@frozen
class Search:
    """What the far side is to look for outside the sandbox: entries of its account that were changed since then.
    `alone`: no other job of ours has that account."""

    since_ns: int
    alone: bool


@frozen
class Elsewhere:
    """What it found there. `named`: some of what is left, in words."""

    removed: int = 0
    left: int = 0
    named: str = ""


def _elsewhere(answer: object) -> Elsewhere:
    if not isinstance(answer, dict):
        return Elsewhere()
    return Elsewhere(int_of(answer.get("removed")), int_of(answer.get("left")), text_of(answer.get("named")))


@asynccontextmanager
async def stage_out(
    context: Context,
    place: Place,
    wanted: Wanted,
    *,
    limits: Limits,
    deadline_s: float,
    far: FarSide | None = None,
    uploads: Uploads | None = None,
    see_out: Callable[[FarSide], None] | None = None,
) -> AsyncIterator[Outward]:
    """Fetch what the job left; inside the block the manifest is known and the content can be read.

    `deadline_s` is for each step until the manifest has begun; from then on STALL_S without a byte end it.
    Leaving without `remove()`, also by an exception or when cancelled, keeps the sandbox as it is.
    `far`: a call that was opened ahead; it is this block's then.
    `uploads`: asked which output goes to URLs; plugins send it before the block is entered, and it is not
    in the manifest. For each it may last as long as its order says.
    `see_out`: takes over a call whose sandbox was removed; else its end is waited for here.

    Raises StageFailed; code "limit" when the output exceeds `limits`, before any of it is read.
    """
    if far is None:
        far = await open_call(context, "stage-out", deadline_s=deadline_s)
    outward = Outward(far, limits)
    try:
        check_owner(place, far.hello.uid)
        with deadline("ask for the output", deadline_s):
            await far.send(_request(place, wanted) | ({"ask": True} if uploads is not None else {}))
        if uploads is not None:
            await outward.upload(uploads)
        await outward.begin()
        yield outward
    finally:
        if outward.removed and see_out is not None:
            see_out(far)
        else:
            await far.end()


def _request(place: Place, wanted: Wanted) -> dict[str, Any]:
    common = {"path": str(place.path), "manifest": wanted.manifest}
    if isinstance(wanted, Listed):
        return common | {"listed": list(wanted.names), "preserve": wanted.preserve}
    rows = [[e.name, e.kind, e.mode, e.size, e.mtime_ns] for e in wanted.catalogue.entries]
    return common | {"changed": rows}


class Uploads(Protocol):
    """Who knows which output goes to URLs. Names are those in the sandbox."""

    def orders(self, manifest: Manifest) -> list[Order]:
        """What plugins are to do."""

    def answered(self, order: Order, answer: Any) -> None:
        """What the far side says of one."""


class Outward:
    """The way out of the sandbox. One task."""

    def __init__(self, far: FarSide, limits: Limits) -> None:
        self.manifest = Manifest((), ())
        self.removed = False
        self._far = far
        self._limits = limits
        self._reader = TarReader(limits)
        self._events = _nothing()
        self._piece = memoryview(bytearray(CONTENT_BYTES))

    async def begin(self) -> None:
        """Read the manifest; done by `stage_out` and `again`."""
        with deadline("list the output", STALL_S):
            self.manifest = await self._receive_manifest()
        total = sum(entry.size for entry in self.manifest.entries if entry.kind == "file")
        if total > self._limits.max_bytes:
            raise StageFailed("limit", f"the output has {total} bytes, allowed are {self._limits.max_bytes}")
        self._reader = TarReader(self._limits)
        self._events = _nothing()

    async def upload(self, uploads: Uploads) -> None:
        """Have plugins send what goes to URLs; done by `stage_out`."""
        with deadline("list the output", STALL_S):
            orders = uploads.orders(await self._receive_manifest())
            sent = [wish.name for order in orders for wish in order.wishes]
            await self._far.send({"plugins": [order.as_sent() for order in orders], "except": sent})
        for order in orders:
            with deadline("run a file transfer plugin", order.limit_s + STALL_S):
                answer = await self._far.receive(PLUGIN_FRAME_BYTES)
            raise_if_failed(answer)
            uploads.answered(order, answer.get("plugin"))

    def entries(self) -> AsyncIterator[OutFile | OutDirectory]:
        """What the manifest announced, in its order.

        A file's chunks must be read before the next entry is asked for; what is left of them is skipped then.
        """
        return _Entries(self)

    async def again(self) -> None:
        """All of it once more, from the sandbox as it is now: a new manifest, then `entries()` again."""
        await self._drain()
        with deadline("list the output again", STALL_S):
            await self._far.send({"word": "AGAIN"})
        await self.begin()

    async def remove(self, search: Search | None = None) -> Elsewhere:
        """Empty the sandbox, once the other end has everything. StageFailed("left") when something stays.

        `search`: look for what the job has left elsewhere, too, and take it away if it can be nobody else's.
        """
        await self._drain()
        with deadline("empty the sandbox", REMOVE_S):
            word: dict[str, Any] = {"word": "REMOVE"}
            if search is not None:
                word["elsewhere"] = {"since_ns": search.since_ns, "alone": search.alone}
            await self._far.send(word)
            answer = await self._far.receive()
        left = int_of(answer.get("left"))
        if left:
            raise StageFailed("left", f"{left} entries could not be removed: {text_of(answer.get('named'))}")
        self.removed = True
        return _elsewhere(answer.get("elsewhere"))

    async def _receive_manifest(self) -> Manifest:
        rows = Rows(self._limits.max_files, self._limits.names_bytes)
        missing: list[tuple[str, str]] = []
        left_out: list[tuple[str, str]] = []
        while True:
            answer = await self._far.receive()
            raise_if_failed(answer)
            if answer.get("done") is True:
                break
            if "entries" in answer:
                rows.add(answer["entries"])
                continue
            if "left_out" in answer:
                left_out += [pair_of(row) for row in filled_list_of(answer["left_out"])]
                if len(left_out) > LEFT_OUT_NAMES:
                    raise StageFailed("framing", f"more than {LEFT_OUT_NAMES} names that were left out")
                continue
            missing += [pair_of(row) for row in filled_list_of(answer.get("missing"))]
            if len(missing) > MISSING_NAMES:
                raise StageFailed("limit", f"more than {MISSING_NAMES} missing names")
        if any(entry.kind == "other" for entry in rows.entries):
            raise StageFailed("framing", "an entry that is neither a file nor a directory")
        names, reasons = zip(*missing, strict=True) if missing else ((), ())
        return Manifest(tuple(rows.entries), names, reasons, tuple(left_out))

    async def next_entry(self, expected: CatalogueEntry) -> Entry:
        """The next header of the stream, which must be the one that the manifest announced."""
        event = await self.next_event()
        size = 0 if expected.kind == "dir" else expected.size
        if (
            not isinstance(event, Entry)
            or event.directory != (expected.kind == "dir")
            or event.name != name_bytes(expected.name)
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

    async def whole_piece(self) -> memoryview:
        """CONTENT_BYTES of a file that has so many left, read past the reader; valid until the next is asked for."""
        self._events.close()
        self._events = _nothing()
        filled = self._reader.take(self._piece)
        while filled < CONTENT_BYTES:
            with deadline("send the output", STALL_S):
                count = await self._far.receive_into(self._piece[filled:])
            if not count:
                raise self._far.gone()
            self._reader.passed(count)
            filled += count
        return self._piece

    async def _receive(self) -> bytes:
        with deadline("send the output", STALL_S):
            data = await self._far.receive_some(MIXED_BYTES)
        if not data:
            raise self._far.gone()
        return data

    async def _drain(self) -> None:
        """Read to the end mark, so that the conversation can go on. Bounded by the limits."""
        while await self.next_event() is not None:
            pass


def _nothing() -> Generator[Event, None, None]:
    yield from ()


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

    async def __anext__(self) -> bytes | memoryview:
        if not self._left:
            raise StopAsyncIteration
        if self._left >= CONTENT_BYTES:
            self._left -= CONTENT_BYTES
            return await self._outward.whole_piece()
        event = await self._outward.next_event()
        if not isinstance(event, Data):
            raise StageFailed("tar", "a file is shorter than announced")
        self._left -= len(event.content)
        return event.content

    async def skip(self) -> None:
        async for _ in self:
            pass
