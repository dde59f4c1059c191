"""HTCondor's file transfer in both roles: a sender of items, and a receiver that stores them in a sink.

One item at a time, in constant memory; the caller decides what is sent and where it is stored. After an exception the
stream is in an undefined state and must be closed. Cancelling has the same effect. There are no deadlines
except in the go-ahead: transfers may take days, and peers may be suspended; the caller sets one where it must.
"""

from __future__ import annotations

import errno
import math
from collections.abc import AsyncIterable, AsyncIterator, Callable
from typing import Final

import attrs
import trio
from classad2 import ClassAd

from cedar import classads, delegation
from cedar.client import Resume, connect
from cedar.codec import Reader
from cedar.commands import HoldCode
from cedar.errors import PeerFault, Refused
from cedar.sessions import Session
from cedar.sinful import Sinful
from cedar.stream import CedarStream
from cedar.transferitems import (
    CHUNK_BYTES,
    EMPTY_FILE,
    FILES,
    MODE_MISSING,
    NO_ACK,
    Ack,
    Directory,
    File,
    Item,
    Kind,
    Missing,
    Other,
    ProxyItem,
    ReadFailed,
    Sink,
    StoreFailed,
    TransferLimits,
    ack_ad,
    check_name,
    directory_mode,
    failed,
    file_mode,
    read_ack,
    refusal,
    wire_mode,
)

__all__ = [
    "Ack",
    "Directory",
    "File",
    "Item",
    "Missing",
    "ProxyItem",
    "ReadFailed",
    "Sink",
    "StoreFailed",
    "TransferLimits",
    "accept_transfer",
    "open_transfer",
    "receive_files",
    "refuse_transfer",
    "send_files",
]

# Seconds between signs of life while one side queues; what stock announces and asks for.
_ALIVE_S: Final = 300
# What a peer may need beyond the interval that it promised; stock reserves as much.
_ALIVE_SLACK_S: Final = 20
# A peer that wants us to wait longer without any sign of life is not believed.
_MAX_ALIVE_S: Final = 86400
_WAITING, _THIS_ITEM, _ALWAYS = 0, 1, 2
# Sixteen stock chunks; a message of more than the stream's limit could not be read anyway.
_MAX_CHUNK_BYTES: Final = 16 * CHUNK_BYTES
_ZEROS: Final = bytes(CHUNK_BYTES)


# --- opening ---


async def open_transfer(
    address: Sinful, command: int, session: Session, transfer_key: str, *, subsystem: str = "STARTER"
) -> CedarStream:
    """Connect to a transfer server: 61000 to receive input with receive_files, 61001 to send output with send_files.

    A wrong key is answered late, by the first Refused("TRANSFER_KEY") of those two.

    Raises:
        Refused, PeerFault: as cedar.client.connect.
    """
    stream = await connect(address, command, Resume(session), subsystem=subsystem)
    try:
        await stream.put(transfer_key)
    except BaseException:  # cancelled too: nobody else would close it
        await stream.aclose()
        raise
    return stream


async def accept_transfer(stream: CedarStream) -> str:
    """Server: the transfer key that the client presents, to be compared in constant time."""
    reader = await stream.get()
    key = reader.string()
    reader.end()
    return key


async def refuse_transfer(stream: CedarStream) -> None:
    """Server: tell the client that its key is not known. The caller closes."""
    await stream.put(0)


# --- the go-ahead, the same both ways ---


class _Stopped(Exception):
    """The transfer ends here, without further messages: what each side has to say."""

    def __init__(self, own: Ack, peer: Ack) -> None:
        super().__init__(own.reason or peer.reason)
        self.own = own
        self.peer = peer


@attrs.define
class _GoAhead:
    """Whether the peer let us go ahead for all further items, and the bytes that it takes (-1: any number)."""

    always: bool = False
    max_bytes: int = -1


async def _ask(stream: CedarStream, state: _GoAhead) -> None:
    """Wait for the peer's word; it may take as long as its queue, if it gives signs of life."""
    await stream.put(_ALIVE_S)
    wait_s = _ALIVE_S
    while True:
        ad = await _get_ad(stream, within_s=wait_s + _ALIVE_SLACK_S)
        result = classads.get_int(ad, "Result")
        state.max_bytes = classads.get_int(ad, "MaxTransferBytes", state.max_bytes)
        if result == _WAITING:
            wait_s = min(max(classads.get_int(ad, "Timeout", wait_s), _ALIVE_S), _MAX_ALIVE_S)
            continue
        if result < 0:
            peer = refusal(ad, retry=classads.get_bool(ad, "TryAgain", True))
            raise _Stopped(
                failed(peer.hold_code, peer.hold_subcode, "the peer gave no go-ahead", retry=True), peer
            )
        state.always = result == _ALWAYS
        return


async def _grant(stream: CedarStream, *, max_bytes: int | None = None, announce: bool = False) -> None:
    """Let the peer go ahead, for all items."""
    interval_s = await _get_int(stream)
    if interval_s < _ALIVE_S:
        await stream.put(_ad(Timeout=_ALIVE_S, Result=_WAITING))
    if announce:
        await stream.put(_ad(Result=_ALWAYS, MaxTransferBytes=-1 if max_bytes is None else max_bytes))
    else:
        await stream.put(_ad(Result=_ALWAYS))


def _ad(**values: int) -> ClassAd:
    ad = ClassAd()
    for name, value in values.items():
        ad[name] = value
    return ad


async def _get_ad(stream: CedarStream, *, within_s: float = math.inf) -> ClassAd:
    with trio.move_on_after(within_s):
        reader = await stream.get()
        if reader.remaining() == 8:  # shorter than any ad: a server's answer to a wrong key
            _check_key_refusal(reader)
        ad = reader.ad()
        reader.end()
        return ad
    raise PeerFault("timeout", f"no go-ahead and no sign of life within {within_s} s")


def _check_key_refusal(reader: Reader) -> None:
    if reader.int() == 0:
        raise Refused("TRANSFER_KEY", "the peer does not know the transfer key")
    raise PeerFault("codec", "a number came where an ad belongs")


async def _get_int(stream: CedarStream) -> int:
    reader = await stream.get()
    value = reader.int()
    reader.end()
    return value


# --- sending ---


async def send_files(
    stream: CedarStream,
    items: AsyncIterable[Item],
    *,
    final: bool,
    sandbox_bytes: int,
    own_failure: Callable[[], Ack | None] | None = None,
    over_limit_code: int = HoldCode.MAX_TRANSFER_OUTPUT_SIZE,
) -> tuple[Ack, Ack]:
    """Send items, then exchange acknowledgements; the transfer succeeded if both are ok.

    Args:
        items: directories before what is in them; iterated once, and closed if it can be.
        final: the job's final output; False for input, checkpoints and intermediate files.
        sandbox_bytes: an estimate of the sum, for the peer's transfer queue.
        own_failure: asked after the last item: a failure of ours that no item told.
        over_limit_code: hold code when the peer takes fewer bytes than there are; the rest is not sent then.

    Returns:
        (own, peer). The peer's is NO_ACK where it ends without one: after a refused go-ahead or delegation.

    Raises:
        Refused: TRANSFER_KEY.
        PeerFault: the peer broke the protocol or went away, "timeout" in the go-ahead.
        Exception: whatever `items` raises, except ReadFailed in a file's chunks.
    """
    sender = _Sender(stream, over_limit_code)
    await stream.put(int(final), _ad(SandboxSize=sandbox_bytes))
    try:
        await _send_all(sender, items)
    except _Stopped as stopped:
        return sender.counted(stopped.own), stopped.peer
    await stream.put(Kind.FINISHED)
    own = sender.failure or (own_failure() if own_failure is not None else None) or Ack(ok=True)
    await stream.put(ack_ad(own))
    return sender.counted(own), read_ack(await _get_ad(stream))


async def _send_all(sender: _Sender, items: AsyncIterable[Item]) -> None:
    try:
        async for item in items:
            await sender.send(item)
            if sender.full:
                return
    finally:
        await _close(items)


class _Sender:
    def __init__(self, stream: CedarStream, over_limit_code: int) -> None:
        self._stream = stream
        self._over_limit_code = over_limit_code
        self._peer = _GoAhead()
        self._granted = False
        self._files = 0
        self._bytes = 0
        self.failure: Ack | None = None
        self.full = False  # the peer takes no more bytes: nothing further is sent

    def counted(self, own: Ack) -> Ack:
        return attrs.evolve(own, files=self._files, bytes=self._bytes)

    def _fits(self, item: File) -> bool:
        """Whether the peer takes this one too; if not, that is our failure, and the end."""
        limit = self._peer.max_bytes
        if limit < 0 or self._bytes + item.size <= limit:
            return True
        reason = f"more than the {limit} bytes that are allowed, with {item.name[:200]!a}"
        self._fail(failed(self._over_limit_code, 0, reason))
        self.full = True
        return False

    def _fail(self, ack: Ack) -> None:
        self.failure = self.failure or ack  # the first failure is the cause, others may follow from it

    async def send(self, item: Item) -> None:
        match item:
            case File():
                await self._head(Kind.FILE, item.name)
                if self._fits(item):  # the limit comes with the go-ahead, so its name is out already
                    await self._file(item)
                else:
                    await self._missing()
            case Directory():
                await self._head(Kind.DIRECTORY, item.name)
                await self._stream.put(wire_mode(item))
            case ProxyItem():
                await self._head(Kind.PROXY, item.name)
                await self._proxy(item)
            case Missing():
                await self._head(Kind.FILE, item.name)
                await self._missing()
                self._fail(failed(HoldCode.UPLOAD_FILE_ERROR, item.errno, item.reason))

    async def _head(self, kind: Kind, name: str) -> None:
        await self._stream.put(kind)
        await self._stream.put(name)
        if not self._peer.always:
            await _ask(self._stream, self._peer)
        if not self._granted:
            await _grant(self._stream)
            self._granted = True

    async def _missing(self) -> None:
        await self._stream.put(MODE_MISSING)
        await self._stream.put(0, 1)
        await self._stream.put(EMPTY_FILE)

    async def _file(self, item: File) -> None:
        pieces = _Pieces(item.chunks)
        try:
            await self._stream.put(wire_mode(item))
            await self._stream.put(item.size, CHUNK_BYTES)
            if item.size == 0:
                await self._stream.put(EMPTY_FILE)
            left = item.size
            while left > 0:
                piece = await self._piece(pieces, min(CHUNK_BYTES, left), item.name)
                await self._stream.put(piece)
                left -= len(piece)
        finally:
            await _close(item.chunks)
        self._files += 1
        self._bytes += item.size

    async def _piece(self, pieces: _Pieces, wanted: int, name: str) -> bytes:
        """Exactly the bytes wanted. Zeros keep the protocol in step where some are missing: the
        acknowledgement voids the file."""
        try:
            piece = await pieces.take(wanted)
        except ReadFailed as error:
            self._fail(error.ack)
            piece = pieces.stop()
        if len(piece) < wanted:
            reason = f"{name[:200]!a} became shorter while it was sent"
            self._fail(failed(HoldCode.UPLOAD_FILE_ERROR, errno.EIO, reason))
            piece = piece.ljust(wanted, b"\0")
        return piece

    async def _proxy(self, item: ProxyItem) -> None:
        self._files += 1
        try:
            await delegation.give(self._stream, item.sign)
        except PeerFault:
            raise
        except (
            Exception
        ) as error:  # whatever stops the signing, or the peer gave up: its acknowledgement follows
            own = failed(
                HoldCode.CORRUPTED_CREDENTIAL, 0, f"the proxy was not delegated: {error}", retry=True
            )
            raise _Stopped(own, read_ack(await _get_ad(self._stream))) from error


class _Pieces:
    """Bytes in the sizes that are asked for, out of an iterator that gives them in its own."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self._waiting = bytearray()
        self._ended = False

    async def take(self, wanted: int) -> bytes:
        """So many bytes; fewer only at the end. A chunk of just this size comes without a copy."""
        while not self._ended and len(self._waiting) < wanted:
            chunk = await anext(self._chunks, None)
            if chunk is None:
                self._ended = True
            elif len(chunk) == wanted and not self._waiting:
                return chunk
            else:
                self._waiting += chunk
        piece = bytes(self._waiting[:wanted])
        del self._waiting[:wanted]
        return piece

    def stop(self) -> bytes:
        """Ask the iterator no more; nothing comes from here on."""
        self._ended = True
        self._waiting.clear()
        return b""


async def _close(iterator: object) -> None:
    close = getattr(iterator, "aclose", None)
    if close is not None:
        await close()


# --- receiving ---


async def receive_files(
    stream: CedarStream,
    sink: Sink,
    *,
    limits: TransferLimits | None = None,
    on_header: Callable[[bool, int], None] | None = None,
) -> tuple[Ack, Ack]:
    """Receive items into a sink, then exchange acknowledgements; the transfer succeeded if both are ok.

    Args:
        limits: what is taken at most; the byte limit is announced to the sender.
        on_header: called first with (final, sandbox_bytes) as the sender states them.

    Returns:
        (own, peer). Items with illegal names, of kinds that are not supported, or refused by the
        sink are read to their end and reported in `own`; of several the first.

    Raises:
        Refused: TRANSFER_KEY.
        PeerFault: the peer broke the protocol or a limit, or went away.
        Exception: whatever the sink raises, except StoreFailed.
    """
    receiver = _Receiver(stream, sink, limits if limits is not None else TransferLimits())
    final, sandbox_bytes = await _get_header(stream)
    if on_header is not None:
        on_header(final, sandbox_bytes)
    try:
        while (kind := await _get_int(stream)) != Kind.FINISHED:
            await receiver.item(kind)
    except _Stopped as stopped:
        return receiver.counted(stopped.own), stopped.peer
    peer = read_ack(await _get_ad(stream))
    own = receiver.failure or Ack(ok=True)
    await stream.put(ack_ad(own))
    return receiver.counted(own), peer


async def _get_header(stream: CedarStream) -> tuple[bool, int]:
    reader = await stream.get()
    if reader.remaining() == 8:
        _check_key_refusal(reader)
    final = reader.int() != 0
    ad = reader.ad()
    reader.end()
    return final, classads.get_int(ad, "SandboxSize", 0)


class _Receiver:
    def __init__(self, stream: CedarStream, sink: Sink, limits: TransferLimits) -> None:
        self._stream = stream
        self._sink = sink
        self._limits = limits
        self._peer = _GoAhead()
        self._granted = False
        self._items = 0
        self._files = 0
        self._bytes = 0
        self.failure: Ack | None = None

    def counted(self, own: Ack) -> Ack:
        return attrs.evolve(own, files=self._files, bytes=self._bytes)

    def _fail(self, ack: Ack) -> None:
        self.failure = self.failure or ack  # the first failure is the cause, others may follow from it

    async def item(self, number: int) -> None:
        """One item behind its number."""
        kind = _kind(number)
        self._items += 1
        if self._items > self._limits.max_files:
            raise PeerFault("limit", f"more than {self._limits.max_files} files")
        reader = await self._stream.get()
        name = reader.string()
        reader.end()
        await self._go_ahead()
        if kind in FILES:
            await self._file(name)
        elif kind is Kind.DIRECTORY:
            await self._directory(name)
        elif kind is Kind.PROXY:
            await self._proxy(name)
        elif kind is Kind.URL:
            await self._url(name)
        else:
            await self._other()

    async def _go_ahead(self) -> None:
        if not self._granted:
            await _grant(self._stream, max_bytes=self._limits.max_bytes, announce=True)
            self._granted = True
        if not self._peer.always:
            await _ask(self._stream, self._peer)

    async def _file(self, name: str) -> None:
        mode = await _get_int(self._stream)
        body = await self._body()
        try:
            check_name(name, self._limits)
            if mode == MODE_MISSING:
                reason = f"the sender could not read {name[:200]!a}"
                raise StoreFailed(HoldCode.DOWNLOAD_FILE_ERROR, errno.ENOENT, reason)
            await self._sink.file(name, file_mode(mode), body.size, body)
            self._files += 1
        except StoreFailed as error:
            self._fail(error.ack)
        await body.drain()
        self._bytes += body.size

    async def _body(self) -> _Body:
        reader = await self._stream.get()
        size, chunk_bytes = reader.int(), reader.int()
        reader.end()
        if size < 0 or not 1 <= chunk_bytes <= _MAX_CHUNK_BYTES:
            raise PeerFault("codec", f"a file of {size} bytes in chunks of {chunk_bytes}")
        limit = self._limits.max_bytes
        if limit is not None and self._bytes + size > limit + self._limits.max_bytes_slack:
            raise PeerFault("limit", f"more than {limit} bytes")
        if size == 0 and await _get_int(self._stream) != EMPTY_FILE:
            raise PeerFault("codec", "an empty file is not marked as one")
        return _Body(self._stream, size, chunk_bytes)

    async def _directory(self, name: str) -> None:
        mode = directory_mode(await _get_int(self._stream))
        try:
            check_name(name, self._limits)
            await self._sink.directory(name, mode)
        except StoreFailed as error:
            self._fail(error.ack)

    async def _proxy(self, name: str) -> None:
        exchange = _Exchange(self._stream)
        try:
            check_name(name, self._limits)
            await self._sink.proxy(name, exchange)
            self._files += 1
        except StoreFailed as error:
            self._fail(error.ack)
        except Refused as error:
            self._fail(failed(HoldCode.CORRUPTED_CREDENTIAL, 0, str(error), retry=True))
        if not exchange.done:
            await self._give_up(exchange)

    async def _give_up(self, exchange: _Exchange) -> None:
        """No proxy: the sender waits for our acknowledgement at once, and closes on it without its own."""
        if not exchange.begun:
            await delegation.decline(self._stream)
        cause = self.failure or failed(HoldCode.CORRUPTED_CREDENTIAL, 0, "the proxy was declined")
        own = attrs.evolve(cause, retry=True)
        await self._stream.put(ack_ad(own))
        raise _Stopped(own, NO_ACK)

    async def _url(self, name: str) -> None:
        reader = await self._stream.get()
        reader.string()
        reader.end()
        reason = f"{name[:200]!a} is to be fetched from a URL, which is not supported here"
        self._fail(failed(HoldCode.DOWNLOAD_FILE_ERROR, errno.EOPNOTSUPP, reason))

    async def _other(self) -> None:
        ad = await _get_ad(self._stream)
        match classads.get_int(ad, "SubCommand", -1):
            case Other.URL_SENT:
                self._url_sent(ad)
            case Other.REUSE:
                await self._stream.put(_ad(Result=1))
            case Other.SIGN_URLS:
                await self._stream.put(_unsigned(ad))
            case number:
                raise PeerFault("codec", f"an unknown request in a file transfer: {number}")

    def _url_sent(self, ad: ClassAd) -> None:
        result = classads.get_int(ad, "Result", -1)
        if result != 0:
            name, words = classads.get_str(ad, "Filename", "?"), classads.get_str(ad, "ErrorString", "")
            reason = f"the sender could not send {name[:200]!a} to its URL: {words}"
            self._fail(failed(HoldCode.DOWNLOAD_FILE_ERROR, result, reason))


def _kind(number: int) -> Kind:
    try:
        return Kind(number)
    except ValueError:
        raise PeerFault("codec", f"an unknown kind of item: {number}") from None


def _unsigned(request: ClassAd) -> ClassAd:
    """One empty entry a URL: "cannot sign"."""
    urls = classads.evaluate(request, "SignList")
    answer = ClassAd()
    answer["SignList"] = ["" for _ in urls] if isinstance(urls, list) else []
    return answer


class _Body:
    """The bytes of one file as they come off the stream, as an asynchronous iterator."""

    def __init__(self, stream: CedarStream, size: int, chunk_bytes: int) -> None:
        self.size = size
        self._stream = stream
        self._left = size
        self._chunk_bytes = chunk_bytes

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._left == 0:
            raise StopAsyncIteration
        reader = await self._stream.get()
        piece = reader.raw(min(self._chunk_bytes, self._left))
        reader.end()
        self._left -= len(piece)
        return piece

    async def drain(self) -> None:
        """Read what nobody wanted."""
        async for _ in self:
            pass


class _Exchange:
    """What a sink calls to have its request signed, once."""

    def __init__(self, stream: CedarStream) -> None:
        self._stream = stream
        self.begun = False
        self.done = False

    async def __call__(self, request_der: bytes) -> bytes:
        if self.begun:
            raise RuntimeError("a proxy is delegated once an item")
        self.begun = True
        certificates = await delegation.receive(self._stream, request_der)
        self.done = True
        return certificates
