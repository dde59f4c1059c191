"""A CEDAR connection over a trio socket: whole messages out and in.

Thin: framing and encryption are `frames`, items are `codec`. One task may put while another gets.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import trio

from cedar.codec import Item, Reader, encode
from cedar.crypto import Buffer
from cedar.errors import PeerFault
from cedar.expressions import MAX_TOKENS
from cedar.frames import DEFAULT_LIMIT_BYTES, Frames
from cedar.sessions import Session

# trio lets 16 KiB wait unsent; a sender of 256 KiB packets then sleeps and wakes for each part. Between two
# processes on loopback this gave 1,800 MB/s instead of 1,100 (sendall of plain bytes: 2,900).
_UNSENT_BYTES = 1 << 19
# Of an ad in a handshake, where all that is said is literals: 64 KiB of tokens would take 30 ms to read.
_HANDSHAKE_TOKENS = 1_000
_TCP_NOTSENT_LOWAT = 25  # linux/tcp.h; not in the socket module


class CedarStream(trio.abc.AsyncResource):
    """One connection.

    An interrupted `put` (cancelled, or the peer gone) leaves half a message on the wire: the stream is
    broken then and says PeerFault("closed"). A cancelled `get` loses nothing.
    """

    def __init__(
        self,
        transport: trio.SocketStream,
        *,
        limit_bytes: int = DEFAULT_LIMIT_BYTES,
        handshake_limit_bytes: int | None = None,
        frames: Frames | None = None,
    ) -> None:
        """`handshake_limit_bytes` holds until `lift_limit` instead of `limit_bytes`; so long ads have to be simple."""
        self._transport = transport
        with suppress(OSError):  # no TCP: a Unix socket in tests
            transport.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
        self._limit_bytes = limit_bytes
        self._most_tokens = MAX_TOKENS if handshake_limit_bytes is None else _HANDSHAKE_TOKENS
        self._frames = Frames(limit_bytes=handshake_limit_bytes or limit_bytes) if frames is None else frames
        # The session that the handshake ended in, for whoever wants to resume it.
        self.session: Session | None = None
        self._broken = False
        self._putting = False
        self._exported = False
        self.peer = _peer_name(transport)
        # The name behind a shared port that this connection was passed on to.
        self.shared_port: str | None = None

    def __repr__(self) -> str:
        return f"<CedarStream {self.peer}{' keyed' if self.keyed else ''}>"

    @property
    def keyed(self) -> bool:
        """True once everything is encrypted."""
        return self._frames.keyed

    @property
    def whole(self) -> bool:
        """Whether a message may be put: none was interrupted, and the peer's have been in order."""
        return not self._broken

    @property
    def exported(self) -> bool:
        """True when the socket was given away."""
        return self._exported

    def endpoints(self) -> tuple[tuple[str, int], tuple[str, int]]:
        """Address and port of this end and of the other; ("", 0) where there is none (a Unix socket)."""
        return _endpoint(self._transport.socket.getsockname), _endpoint(self._transport.socket.getpeername)

    def lift_limit(self) -> None:
        """The peer is known: messages may have the full size, and ads be what they like."""
        self._most_tokens = MAX_TOKENS
        self._frames.limit_bytes = self._limit_bytes

    def use_key(self, key: bytes) -> None:
        """Encrypt everything from here on (AES-256-GCM, 32 bytes of key)."""
        self._frames.use_key(key)

    def reset_digests(self) -> None:
        """Forget the clear bytes so far (after a shared-port or reverse-connect message)."""
        self._frames.reset_digests()

    async def put(self, *items: Item) -> None:
        """Send one message and its end. Cancelling breaks the stream. Raises PeerFault("closed")."""
        body: Buffer
        if len(items) == 1 and isinstance(items[0], bytes | bytearray | memoryview):
            body = items[0]
        else:
            body = encode(items, keyed=self.keyed)
        with self._exclusive():
            for packet in self._frames.packets(body):
                await self._send(packet)

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        if self._putting:
            raise trio.BusyResourceError("another task is putting a message")
        if self._broken:
            raise PeerFault("closed", "the connection was interrupted before")
        self._putting = True
        try:
            yield
        except BaseException:  # cancelled too: part of a message may be on the wire
            self._broken = True
            raise
        finally:
            self._putting = False

    async def _send(self, packet: Buffer) -> None:
        try:
            await self._transport.send_all(packet)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise PeerFault("closed", "the peer is gone") from error

    async def get(self) -> Reader:
        """The next whole message. Cancelling loses nothing.

        Raises PeerFault: "closed" at the end of the stream, "framing", "crypto", "limit".
        """
        if self._broken:
            raise PeerFault("closed", "the connection was interrupted before")
        try:
            while (body := self._frames.next_message()) is None:
                await self._receive()
        except PeerFault:
            self._broken = True
            raise
        return Reader(body, keyed=self.keyed, most_tokens=self._most_tokens)

    async def _receive(self) -> None:
        try:
            with self._frames.space() as space:
                count = await self._transport.socket.recv_into(space)
        except trio.ClosedResourceError as error:
            raise PeerFault("closed", "the connection was closed on our side") from error
        except OSError as error:
            raise PeerFault("closed", "the peer is gone") from error
        if count == 0:
            raise PeerFault("closed", "the peer closed the connection")
        self._frames.received(count)

    def export(self) -> tuple[socket.socket, dict[str, Any]]:
        """Give up the socket: it and the state (msgpack-able, holds the key) go on elsewhere.

        Only between messages of ours; bytes that were read and not used go along.
        """
        if self._putting or self._broken:
            raise PeerFault("closed", "a connection in mid-message cannot be handed over")
        self._broken = self._exported = True
        return socket.socket(fileno=self._transport.socket.detach()), self._frames.export()

    def detach(self) -> trio.SocketStream:
        """Give up the connection; what was put on it in clear counts for nobody's digests."""
        self._broken = self._exported = True
        return self._transport

    @classmethod
    def adopt(cls, sock: socket.socket, state: Mapping[str, Any]) -> CedarStream:
        """Go on with an exported connection. Raises PeerFault("state"); the socket is the caller's then."""
        frames = Frames.adopt(state)
        return cls(trio.SocketStream(trio.socket.from_stdlib_socket(sock)), frames=frames)

    async def aclose(self) -> None:
        """Close the connection; harmless when it was exported or closed."""
        self._broken = True
        if not self._exported:
            await self._transport.aclose()


def _endpoint(name_of: Callable[[], object]) -> tuple[str, int]:
    try:
        name = name_of()
    except OSError:
        return "", 0
    return (str(name[0]), int(name[1])) if isinstance(name, tuple) else ("", 0)


def _peer_name(transport: trio.SocketStream) -> str:
    try:
        name = transport.socket.getpeername()
    except OSError:
        return "?"
    return f"{name[0]}:{name[1]}" if isinstance(name, tuple) else "local"
