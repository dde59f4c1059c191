"""The receiver of a file transfer."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Final

import attrs
from classad2 import ClassAd

from cedar import classads, delegation
from cedar.commands import HoldCode
from cedar.errors import PeerFault, Refused
from cedar.stream import CedarStream
from cedar.transfergoahead import GoAhead, Stopped, ad_of, ask, check_key_refusal, get_ad, get_int, grant
from cedar.transferitems import (
    CHUNK_BYTES,
    EMPTY_FILE,
    FILES,
    MODE_MISSING,
    NO_ACK,
    Ack,
    Kind,
    Other,
    Sink,
    StoreFailed,
    TransferLimits,
    ack_ad,
    check_name,
    directory_mode,
    failed,
    file_mode,
    read_ack,
)

# Sixteen stock chunks; a message of more than the stream's limit could not be read anyway.
_MAX_CHUNK_BYTES: Final = 16 * CHUNK_BYTES


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
        while (kind := await get_int(stream)) != Kind.FINISHED:
            await receiver.item(kind)
    except Stopped as stopped:
        return receiver.counted(stopped.own), stopped.peer
    await receiver.finish()
    peer = read_ack(await get_ad(stream))
    own = receiver.counted(receiver.failure or Ack(ok=True))
    await stream.put(ack_ad(own))
    return own, peer


async def _get_header(stream: CedarStream) -> tuple[bool, int]:
    reader = await stream.get()
    check_key_refusal(reader)
    final = reader.int() != 0
    ad = reader.ad()
    reader.end()
    return final, classads.get_int(ad, "SandboxSize", 0)


class _Receiver:
    def __init__(self, stream: CedarStream, sink: Sink, limits: TransferLimits) -> None:
        self._stream = stream
        self._sink = sink
        self._limits = limits
        self._peer = GoAhead()
        self._granted = False
        self._items = 0
        self._files = 0
        self._bytes = 0
        self._stats: Mapping[str, int | str] = {}
        self.failure: Ack | None = None

    def counted(self, own: Ack) -> Ack:
        return attrs.evolve(own, files=self._files, bytes=self._bytes, stats=self._stats)

    async def finish(self) -> None:
        """All items are there. After a failure nothing is fetched from URLs any more."""
        if self.failure is None:
            try:
                self._stats = await self._sink.finish()
            except StoreFailed as error:
                self._fail(error.ack)

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
            await grant(self._stream, max_bytes=self._limits.max_bytes, announce=True)
            self._granted = True
        if not self._peer.always:
            await ask(self._stream, self._peer)

    async def _file(self, name: str) -> None:
        mode = await get_int(self._stream)
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
        if size == 0 and await get_int(self._stream) != EMPTY_FILE:
            raise PeerFault("codec", "an empty file is not marked as one")
        return _Body(self._stream, size, chunk_bytes)

    async def _directory(self, name: str) -> None:
        mode = directory_mode(await get_int(self._stream))
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
        raise Stopped(own, NO_ACK)

    async def _url(self, name: str) -> None:
        reader = await self._stream.get()
        url = reader.string()
        reader.end()
        try:
            check_name(name, self._limits)
            await self._sink.url(name, url)
        except StoreFailed as error:
            self._fail(error.ack)

    async def _other(self) -> None:
        ad = await get_ad(self._stream)
        match classads.get_int(ad, "SubCommand", -1):
            case Other.URL_SENT:
                self._url_sent(ad)
            case Other.REUSE:
                await self._stream.put(ad_of(Result=1))
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
