"""The sender of a file transfer."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping

import attrs
from classad2 import ClassAd

from cedar import delegation
from cedar.classads import set_str
from cedar.commands import HoldCode
from cedar.errors import PeerFault
from cedar.stream import CedarStream
from cedar.transfergoahead import GoAhead, Stopped, ad_of, ask, get_ad, grant
from cedar.transferitems import (
    CHUNK_BYTES,
    EMPTY_FILE,
    MODE_MISSING,
    Ack,
    Directory,
    File,
    Item,
    Kind,
    Link,
    Missing,
    Other,
    Piece,
    ProxyItem,
    ReadFailed,
    SentByUrl,
    ack_ad,
    failed,
    read_ack,
    wire_mode,
)


async def send_files(
    stream: CedarStream,
    items: AsyncIterable[Item],
    *,
    final: bool,
    sandbox_bytes: int,
    own_failure: Callable[[], Ack | None] | None = None,
    over_limit_code: int = HoldCode.MAX_TRANSFER_OUTPUT_SIZE,
    stats: Mapping[str, int | str] | None = None,
    max_bytes: int | None = None,
) -> tuple[Ack, Ack]:
    """Send items, then exchange acknowledgements; the transfer succeeded if both are ok.

    Args:
        items: directories before what is in them; iterated once, and closed if it can be.
        final: the job's final output; False for input, checkpoints and intermediate files.
        sandbox_bytes: an estimate of the sum, for the peer's transfer queue.
        own_failure: asked after the last item: a failure of ours that no item told.
        stats: of what went to URLs, for the acknowledgement.
        max_bytes: what is sent at most; the peer may take less.
        over_limit_code: hold code when there is more than that; the rest is not sent then.

    Returns:
        (own, peer). The peer's is NO_ACK where it ends without one: after a refused go-ahead or delegation.

    Raises:
        Refused: TRANSFER_KEY.
        PeerFault: the peer broke the protocol or went away, "timeout" in the go-ahead.
        Exception: whatever `items` raises, except ReadFailed in a file's chunks.
    """
    sender = _Sender(stream, over_limit_code, stats or {}, max_bytes)
    await stream.put(int(final), ad_of(SandboxSize=sandbox_bytes))
    try:
        await _send_all(sender, items)
    except Stopped as stopped:
        return sender.counted(stopped.own), stopped.peer
    await stream.put(Kind.FINISHED)
    own = sender.counted(sender.failure or (own_failure() if own_failure is not None else None) or Ack(ok=True))
    await stream.put(ack_ad(own))
    return own, read_ack(await get_ad(stream))


async def _send_all(sender: _Sender, items: AsyncIterable[Item]) -> None:
    try:
        async for item in items:
            await sender.send(item)
            if sender.full:
                return
    finally:
        await _close(items)


class _Sender:
    def __init__(
        self, stream: CedarStream, over_limit_code: int, stats: Mapping[str, int | str], max_bytes: int | None
    ) -> None:
        self._max_bytes = max_bytes
        self._stats = stats
        self._stream = stream
        self._over_limit_code = over_limit_code
        self._peer = GoAhead()
        self._granted = False
        self._files = 0
        self._bytes = 0
        self.failure: Ack | None = None
        self.full = False  # the peer takes no more bytes: nothing further is sent

    def counted(self, own: Ack) -> Ack:
        return attrs.evolve(own, files=self._files, bytes=self._bytes, stats=self._stats)

    def _fits(self, item: File) -> bool:
        """Whether this one is within the limits, too; if not, that is our failure, and the end."""
        limits = [limit for limit in (self._peer.max_bytes, self._max_bytes) if limit is not None and limit >= 0]
        limit = min(limits, default=-1)
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
            case Link():
                await self._head(Kind.URL, item.name)
                await self._stream.put(item.url)
            case SentByUrl():
                await self._head(Kind.OTHER, item.name)
                await self._stream.put(_report(item))
            case Missing():
                await self._head(Kind.FILE, item.name)
                await self._missing()
                self._fail(failed(HoldCode.UPLOAD_FILE_ERROR, item.errno, item.reason))

    async def _head(self, kind: Kind, name: str) -> None:
        await self._stream.put(kind)
        await self._stream.put(name)
        if not self._peer.always:
            await ask(self._stream, self._peer)
        if not self._granted:
            await grant(self._stream)
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

    async def _piece(self, pieces: _Pieces, wanted: int, name: str) -> Piece:
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
            piece = bytes(piece).ljust(wanted, b"\0")
        return piece

    async def _proxy(self, item: ProxyItem) -> None:
        self._files += 1
        try:
            await delegation.give(self._stream, item.sign)
        except PeerFault:
            raise
        except Exception as error:  # whatever stops the signing, or the peer gave up: its acknowledgement follows
            own = failed(HoldCode.CORRUPTED_CREDENTIAL, 0, f"the proxy was not delegated: {error}", retry=True)
            raise Stopped(own, read_ack(await get_ad(self._stream))) from error


def _report(item: SentByUrl) -> ClassAd:
    ad = ClassAd()
    ad["ProtocolVersion"], ad["Command"], ad["SubCommand"] = 1, int(Kind.OTHER), int(Other.URL_SENT)
    ad["Result"] = 1 if item.error else 0
    set_str(ad, "Filename", item.name)
    set_str(ad, "OutputDestination", item.url)
    if item.error:
        set_str(ad, "ErrorString", item.error)
    return ad


class _Pieces:
    """Bytes in the sizes that are asked for, out of an iterator that gives them in its own."""

    def __init__(self, chunks: AsyncIterator[Piece]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")  # of the last chunk
        self._ended = False

    async def take(self, wanted: int) -> Piece:
        """So many bytes; fewer only at the end. What lies in one chunk comes without a copy."""
        if not self._rest:
            await self._next()
        piece = self._cut(wanted)
        if len(piece) == wanted or self._ended:
            return piece
        joined = bytearray(piece)
        while len(joined) < wanted and not self._ended:
            await self._next()
            joined += self._cut(wanted - len(joined))
        return joined

    async def _next(self) -> None:
        chunk = None if self._ended else await anext(self._chunks, None)
        self._ended = chunk is None
        self._rest = memoryview(chunk if chunk is not None else b"")

    def _cut(self, wanted: int) -> memoryview:
        piece, self._rest = self._rest[:wanted], self._rest[wanted:]
        return piece

    def stop(self) -> Piece:
        """Ask the iterator no more; nothing comes from here on."""
        self._ended, self._rest = True, memoryview(b"")
        return self._rest


async def _close(iterator: object) -> None:
    close = getattr(iterator, "aclose", None)
    if close is not None:
        await close()
