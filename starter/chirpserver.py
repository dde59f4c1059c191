"""The chirp server of one job: on loopback, behind a cookie that only the job's account can read.

Any account of the host can connect, so nobody gets anything but a refusal without the cookie, connections that do not
show it are few and short-lived, and one more pushes the oldest of them out. With the cookie the peer is the job:
hostile, too. Lines, data, open files and connections are bounded; a file number is one of the job's own or none; calls
to the submit side are made one at a time, in the shadow's turn with our own.
"""

from __future__ import annotations

import hmac
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

import attrs
import trio
from classad2 import ClassAd

from cedar.codec import Item, Reader
from cedar.commands import Syscall
from cedar.errors import PeerFault
from starter import chirp
from starter.chirp import Code, Refused, Request
from starter.entries import StageFailed
from starter.shadow import ShadowRefused

# A job's processes that talk to us at one time; and strangers that have not shown the cookie yet.
MAX_CONNECTIONS, MAX_STRANGERS = 32, 8
COOKIE_WITHIN_S = 10.0
# A wrong cookie is answered so much later.
WRONG_COOKIE_S = 1.0
# A client that takes or gives nothing for so long, in the middle of an answer or of data, is gone.
STALL_S = 120.0
MAX_OPEN_FILES = 64
# An answer begins with its length, so what is read lies here as a whole (DATA_BYTES at most) until it is taken.
MAX_LONG_READS = 2
CHUNK_BYTES = 256 * 1024
# A stock shadow refuses to be asked for a longer name, and the wheel's client asks for 5,120 bytes.
NAME_BYTES = 1024
# A path as the submit side maps it (wire reference 4.3: get_file_info_new), with these in front where it is old.
_PREFIXES = ("buffer:remote:", "remote:")


class SubmitSide(Protocol):
    """The part of ``starter.shadow.Shadow`` that is used."""

    takes: int

    async def remote(self, call: Syscall, *arguments: Item, to: int | None = None) -> tuple[int, Reader]: ...
    async def log_event(self, event: ClassAd) -> None: ...


@attrs.define(eq=False)
class ChirpServer:
    """``wishes``: files, updates, delayed: what the job asked for and the site allows. ``run`` serves."""

    submit_side: SubmitSide
    wishes: frozenset[str]
    delayed: chirp.Delayed
    job_ad: ClassAd = attrs.field(repr=False)
    log: logging.LoggerAdapter[logging.Logger]
    cookie: str = attrs.field(factory=lambda: secrets.token_hex(16), repr=False)
    long_reads: trio.Semaphore = attrs.field(factory=lambda: trio.Semaphore(MAX_LONG_READS))
    _listener: trio.SocketListener | None = None
    _strangers: list[trio.CancelScope] = attrs.field(factory=list)
    _served: int = 0

    async def open(self) -> bytes:
        """Begin to listen; gives the text of `.chirp.config`. StageFailed when the host gives no port."""
        try:
            (self._listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        except OSError as fault:
            raise StageFailed("chirp", f"no port for the job's chirp: {fault.strerror}") from fault
        port = self._listener.socket.getsockname()[1]
        return chirp.config_line(port, self.cookie)

    async def aclose(self) -> None:
        """Listen no more; of a server that was opened and never run."""
        if self._listener is not None:
            await self._listener.aclose()

    async def run(self) -> None:
        """Serve until cancelled."""
        assert self._listener is not None
        async with self._listener, trio.open_nursery() as nursery:
            while True:
                try:
                    stream = await self._listener.accept()
                except OSError as fault:  # out of descriptors: others end meanwhile
                    self.log.info("chirp: a connection could not be taken: %s", fault.strerror)
                    await trio.sleep(WRONG_COOKIE_S)
                    continue
                nursery.start_soon(self._meet, stream)

    async def _meet(self, stream: trio.SocketStream) -> None:
        async with stream:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError, _Gone):
                lines = _Lines(stream)
                if self._served < MAX_CONNECTIONS and await self._is_the_job(lines):
                    self._served += 1
                    try:
                        await _Conversation(self, lines).run()
                    finally:
                        self._served -= 1

    async def _is_the_job(self, lines: _Lines) -> bool:
        """Whether the cookie comes in time."""
        scope = trio.CancelScope(deadline=trio.current_time() + COOKIE_WITHIN_S)
        self._strangers.append(scope)
        if len(self._strangers) > MAX_STRANGERS:
            self._strangers[0].cancel()
        try:
            with scope:
                words = chirp.split_words(await lines.line())
                if (
                    len(words) == 2
                    and words[0] == "cookie"
                    and hmac.compare_digest(*map(_bytes, (words[1], self.cookie)))
                ):
                    await lines.answer(0)
                    return True
                await trio.sleep(WRONG_COOKIE_S)
                await lines.answer(Code.NOT_AUTHENTICATED)
        finally:
            self._strangers.remove(scope)
        return False


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


class _Gone(Exception):
    """The client went away, stands still, or says what cannot be answered."""


class _Lines:
    """A connection as lines and pieces of data."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._buffer = bytearray()

    async def line(self) -> bytes:
        """The next line, without its end; waits as long as the job likes for its first byte."""
        while (end := chirp.line_end(self._buffer)) < 0:
            if len(self._buffer) >= chirp.LINE_BYTES:
                await self.answer(Code.TOO_BIG)
                raise _Gone
            await self._more(STALL_S if self._buffer else None)
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    async def data(self, count: int) -> bytes:
        """Exactly so many bytes."""
        while len(self._buffer) < count:
            await self._more(STALL_S)
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        return data

    async def _more(self, limit_s: float | None) -> None:
        piece = b""
        with trio.move_on_after(limit_s if limit_s is not None else float("inf")):
            piece = await self._stream.receive_some(CHUNK_BYTES)
        if not piece:
            raise _Gone
        self._buffer += piece

    async def answer(self, number: int, data: bytes = b"") -> None:
        await self.send(b"%d\n" % number + data)

    async def send(self, data: bytes | bytearray) -> None:
        with trio.move_on_after(STALL_S) as patience:
            await self._stream.send_all(data)
        if patience.cancelled_caught:
            raise _Gone


@attrs.define(eq=False)
class _Conversation:
    """One connection of the job. Its open files are its own, and are closed with it."""

    server: ChirpServer
    lines: _Lines
    # number at the submit side -> the shadow that opened it; another's number could be anything of that one's own
    files: dict[int, int] = attrs.field(factory=dict)

    async def run(self) -> None:
        try:
            while True:
                line = await self.lines.line()
                try:
                    await self._answered(chirp.parse(line, self.server.wishes))
                except Refused as refused:
                    await self.lines.answer(refused.code)
        finally:
            with trio.move_on_after(STALL_S, shield=True):
                await self._close_all()

    async def _answered(self, request: Request) -> None:
        """Serve one request; what the submit side refuses is answered by its code."""
        try:
            await self._serve(request)
        except ShadowRefused as refused:
            await self.lines.answer(chirp.code_of(refused.errno))
        except PeerFault as fault:
            self.server.log.info("chirp: %s: %s", request.name, fault)
            await self.lines.answer(Code.OFFLINE)

    async def _close_all(self) -> None:
        for number in list(self.files):
            await self._drop(number)

    async def _serve(self, request: Request) -> None:
        name = request.name
        if name in chirp.PLAIN:
            rval, _ = await self._call(chirp.PLAIN[name], *self._arguments(request))
            await self.lines.answer(rval)
        elif name in chirp.STATUS:
            rval, reader = await self._call(chirp.STATUS[name], *self._arguments(request))
            await self.lines.answer(rval, _text(reader))
        elif name in chirp.LISTS:
            _, reader = await self._call(chirp.LISTS[name], *self._arguments(request))
            text = _bytes(reader.string())
            await self.lines.answer(len(text), text)
        elif name in chirp.BYTES:
            await self._bytes(request)
        elif name in chirp.READS:
            await self._read(request)
        elif name in chirp.WRITES:
            await self._write(request)
        else:
            act: dict[str, Callable[[Request], Awaitable[None]]] = {
                "version": self._version, "open": self._open, "close": self._close, "getfile": self._getfile,
                "putfile": self._putfile, "get_job_attr": self._get_attribute, "set_job_attr": self._set_attribute,
                "constrain": self._constrain, "ulog": self._ulog, "get_job_attr_delayed": self._get_delayed,
                "set_job_attr_delayed": self._set_delayed,
            }  # fmt: skip
            await act[name](request)

    async def _call(self, call: Syscall, *arguments: Item) -> tuple[int, Reader]:
        """A call about an open file goes only to the shadow that opened it."""
        opener = self.files[arguments[0]] if call in chirp.OF_FILES and isinstance(arguments[0], int) else None
        return await self.server.submit_side.remote(call, *arguments, to=opener)

    def _arguments(self, request: Request) -> list[Item]:
        """The request's words for the submit side: the job's file numbers become those of there."""
        _, kinds = chirp.SIGNATURES[request.name]
        return [self._file(request, place) if kind == "f" else request.words[place] for place, kind in enumerate(kinds)]

    def _file(self, request: Request, place: int = 0) -> int:
        number = request.number(place)
        if number not in self.files:
            raise Refused(Code.BAD_FD)
        return number

    # --- files ---------------------------------------------------------------------------------------------------

    async def _version(self, request: Request) -> None:
        await self.lines.answer(chirp.VERSION)

    async def _mapped(self, path: str) -> str:
        """Where the submit side has this file (its own remaps)."""
        _, reader = await self._call(Syscall.GET_FILE_INFO_NEW, path)
        url = reader.string()
        for prefix in _PREFIXES:
            url = url.removeprefix(prefix)
        return url

    async def _opened(self, path: str, flags: int, mode: int) -> int:
        if len(self.files) >= MAX_OPEN_FILES:
            raise Refused(Code.TOO_MANY_OPEN)
        mapped, by = await self._mapped(path), self.server.submit_side.takes
        number, _ = await self._call(Syscall.OPEN, flags, mode, mapped)
        self.files[number] = by
        return number

    async def _drop(self, number: int) -> None:
        """Close a file whatever comes; the submit side closes what is left when the job ends."""
        with suppress(PeerFault, ShadowRefused):
            await self._call(Syscall.CLOSE, number)
        del self.files[number]

    async def _open(self, request: Request) -> None:
        number = await self._opened(request.text(0), chirp.open_flags(request.text(1)), request.number(2))
        try:
            _, reader = await self._call(Syscall.FSTAT, number)
        except BaseException:
            await self._drop(number)
            raise
        await self.lines.answer(number, _text(reader) or b"\n")

    async def _close(self, request: Request) -> None:
        rval, _ = await self._call(Syscall.CLOSE, self._file(request))
        del self.files[request.number(0)]
        await self.lines.answer(rval)

    async def _bytes(self, request: Request) -> None:
        place = len(request.words) - 1
        if not 0 < request.number(place) <= chirp.LINE_BYTES:
            raise Refused(Code.INVALID_REQUEST)
        arguments = self._arguments(request)
        arguments[place] = min(request.number(place), NAME_BYTES)
        rval, reader = await self._call(chirp.BYTES[request.name], *arguments)
        await self.lines.answer(rval, _exactly(reader, rval, NAME_BYTES))

    async def _read(self, request: Request) -> None:
        """As much as was asked for, or all that is there: the client takes a short read for the end."""
        length, arguments = chirp.checked_length(request.number(1)), self._arguments(request)
        if request.name == "sread":
            if length > CHUNK_BYTES:
                raise Refused(Code.TOO_BIG)
            data = await self._piece(Syscall.SREAD, *arguments)
            await self.lines.answer(len(data), data)
            return
        async with self.server.long_reads:
            found = await self._found(request, length, arguments)
            await self.lines.answer(len(found))
            await self.lines.send(found)

    async def _found(self, request: Request, length: int, arguments: list[Item]) -> bytearray:
        found = bytearray()
        while len(found) < length:
            wanted = arguments[1] = min(CHUNK_BYTES, length - len(found))
            if request.name == "pread":
                arguments[2] = request.number(2) + len(found)
            data = await self._piece(chirp.READS[request.name], *arguments)
            found += data
            if len(data) < wanted:
                break
        return found

    async def _piece(self, call: Syscall, *arguments: Item) -> bytes:
        rval, reader = await self._call(call, *arguments)
        return _exactly(reader, rval, CHUNK_BYTES)

    async def _write(self, request: Request) -> None:
        """The data follows the request, so all of it is taken whatever is refused; in pieces, which go on at once."""
        try:
            length = chirp.checked_length(request.number(1))
        except Refused as refused:
            await self.lines.answer(refused.code)
            raise _Gone from refused  # what follows would be taken for requests
        trouble = self._write_refused(request, length)
        taken = done = 0
        while taken < length:
            piece = await self.lines.data(min(CHUNK_BYTES, length - taken))
            if trouble is None and taken == done:  # nothing was written short so far
                try:
                    done += await self._written(request, done, piece)
                except (Refused, ShadowRefused, PeerFault) as fault:
                    trouble = fault
            taken += len(piece)
        if trouble is not None:
            raise trouble
        await self.lines.answer(done)

    def _write_refused(self, request: Request, length: int) -> Exception | None:
        if request.name == "swrite" and length > CHUNK_BYTES:
            return Refused(Code.TOO_BIG)
        return None if request.number(0) in self.files else Refused(Code.BAD_FD)

    async def _written(self, request: Request, done: int, piece: bytes) -> int:
        """How much of one piece the submit side took."""
        arguments = self._arguments(request)
        if request.name != "swrite":
            arguments[1] = len(piece)
        if request.name == "pwrite":
            arguments[2] = request.number(2) + done
        rval, _ = await self._call(chirp.WRITES[request.name], *arguments, piece)
        return min(rval, len(piece))

    async def _getfile(self, request: Request) -> None:
        """In pieces: neither end holds the whole file."""
        number = await self._opened(request.text(0), 0, 0)
        try:
            _, reader = await self._call(Syscall.FSTAT, number)
            left = _size(_text(reader))
            await self.lines.answer(left)
            with _nothing_else_can_be_said():
                while left:
                    data = await self._piece(Syscall.READ, number, min(left, CHUNK_BYTES))
                    if not data:
                        raise _Gone  # it has become shorter; its length has been told
                    await self.lines.send(data)
                    left -= len(data)
        finally:
            await self._drop(number)

    async def _putfile(self, request: Request) -> None:
        length = request.number(2)
        if length < 0:
            raise Refused(Code.INVALID_REQUEST)
        number = await self._opened(request.text(0), chirp.open_flags("wct"), request.number(1))
        try:
            await self.lines.answer(0)
            with _nothing_else_can_be_said():
                left = length
                while left:
                    data = await self.lines.data(min(CHUNK_BYTES, left))
                    rval, _ = await self._call(Syscall.WRITE, number, len(data), data)
                    if rval != len(data):
                        raise _Gone
                    left -= len(data)
            await self.lines.answer(length)
        finally:
            await self._drop(number)

    # --- attributes and the user's log ---------------------------------------------------------------------------

    async def _get_attribute(self, request: Request) -> None:
        _, reader = await self._call(Syscall.GET_JOB_ATTR, chirp.checked_attribute(request.text(0)))
        text = _bytes(reader.string())
        await self.lines.answer(len(text), text)

    async def _set_attribute(self, request: Request) -> None:
        name, expression = chirp.checked_attribute(request.text(0)), chirp.checked_expression(request.text(1))
        rval, _ = await self._call(Syscall.SET_JOB_ATTR, expression, name)
        await self.lines.answer(rval)

    async def _constrain(self, request: Request) -> None:
        rval, _ = await self._call(Syscall.CONSTRAIN, chirp.checked_expression(request.text(0)))
        await self.lines.answer(rval)

    async def _ulog(self, request: Request) -> None:
        await self.server.submit_side.log_event(chirp.event(request.text(0)))
        await self.lines.answer(0)

    async def _get_delayed(self, request: Request) -> None:
        text = _bytes(self.server.delayed.get(request.text(0), self.server.job_ad))
        await self.lines.answer(len(text), text)

    async def _set_delayed(self, request: Request) -> None:
        self.server.delayed.set(request.text(0), request.text(1))
        await self.lines.answer(0)


@contextmanager
def _nothing_else_can_be_said() -> Iterator[None]:
    """In the middle of data: a code would be taken for data, or the rest of the data for requests."""
    try:
        yield
    except (PeerFault, ShadowRefused) as fault:
        raise _Gone from fault


def _text(reader: Reader) -> bytes:
    """A line that the submit side pads with NUL characters."""
    return reader.raw(reader.remaining()).partition(b"\0")[0]


def _exactly(reader: Reader, count: int, most: int) -> bytes:
    if not 0 <= count <= most:
        raise PeerFault("codec", f"the shadow gives {count} bytes where {most} are allowed")
    return reader.raw(count)


def _size(status: bytes) -> int:
    """The eighth word of a status line."""
    words = status.split()
    if len(words) < 8 or not words[7].isdigit():
        raise PeerFault("codec", "the shadow's file status cannot be read")
    return int(words[7])
