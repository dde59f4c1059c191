"""Local calls between our own processes: typed msgpack messages and descriptors over Unix stream sockets.

`Channel` is one connection, `serve` a service at a path, `connect` its client; `send_blocking` and
`receive_blocking` are the same for processes without an event loop. What a peer sends is hostile until
checked: every size is limited, and whatever is malformed costs its own connection only.

It does not retry, reconnect or log. The path of a socket must lie in a directory that only its owner may
write.
"""

import array
import errno
import os
import secrets
import socket
import struct
from collections.abc import Awaitable, Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import attrs
import trio

from pilot.rpc_codec import (
    ChannelClosed,
    Error,
    FrameBuffer,
    Protocol,
    RpcFault,
    RpcRefused,
    frame,
)

__all__ = [
    "Channel", "ChannelClosed", "Error", "Peer", "Protocol", "RpcFault", "RpcRefused",
    "connect", "receive_blocking", "send_blocking", "serve",
]  # fmt: skip

LIMIT_BYTES = 1 << 20
# A job's hand-over needs a handful of descriptors; the kernel's own limit is 253 (SCM_MAX_FD).
MAX_FDS = 16
# One starter keeps a connection or two; a node has hundreds of slots at most.
MAX_CONNECTIONS = 1024
_READ_BYTES = 65_536
# sizeof(sun_path) less its end mark (unix(7)).
_MAX_PATH_BYTES = 107
_OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})


@attrs.frozen
class Peer:
    """The other end as the kernel knew it when the connection was made (SO_PEERCRED)."""

    pid: int
    uid: int
    gid: int


def _peer_of(sock: Any) -> Peer:
    layout = struct.Struct("3i")
    return Peer(*layout.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, layout.size)))


class Channel:
    """One connection that carries the messages of one protocol.

    Args:
        sock: a connected Unix stream socket; owned by the channel from now on.
        limit_bytes: the largest body, both ways.
        max_fds: the most descriptors that one message may bring.
    """

    def __init__(
        self,
        sock: trio.socket.SocketType,
        protocol: Protocol,
        *,
        limit_bytes: int = LIMIT_BYTES,
        max_fds: int = MAX_FDS,
    ) -> None:
        self.peer = _peer_of(sock)
        self._sock = sock
        self._protocol = protocol
        self._limit_bytes = limit_bytes
        self._incoming = _Incoming(limit_bytes, max_fds)
        self._unsent = b""
        self._sending = trio.Lock()
        self._receiving = trio.Lock()
        self._calling = trio.Lock()

    async def send(self, message: Any, fds: Sequence[int] = ()) -> None:
        """Send one message; the descriptors are duplicated to the other end, the caller keeps its own.

        Cancelling: either nothing was sent, or the rest goes out in front of the next message; the other end
        never sees a broken frame.

        Raises:
            ChannelClosed: the other end is gone.
            RpcFault: "limit", the message is too long; nothing was sent.
        """
        data = frame(self._protocol.encode(message), self._limit_bytes)
        async with self._sending:
            with _closed_on_os_errors():
                await self._flush()
                sent = await self._sock.sendmsg([data], _rights(fds), socket.MSG_NOSIGNAL)
                self._unsent = data[sent:]
                await self._flush()

    async def _flush(self) -> None:
        while self._unsent:
            sent = await self._sock.send(self._unsent, socket.MSG_NOSIGNAL)
            self._unsent = self._unsent[sent:]

    async def receive(self) -> tuple[Any, list[int]]:
        """The next message and its descriptors: close-on-exec, now the caller's to close.

        Cancelling loses nothing: the next call goes on where this one stopped. After an RpcFault the channel
        is closed, and the descriptors of the faulty message with it.

        Raises:
            ChannelClosed: end of file between two messages, or a connection that was reset.
            RpcFault: anything malformed.
        """
        async with self._receiving:
            try:
                return await self._receive()
            except RpcFault:
                self.close()
                raise

    async def _receive(self) -> tuple[Any, list[int]]:
        incoming = self._incoming
        while (body := incoming.take()) is None:
            with _closed_on_os_errors():
                incoming.feed(*await self._sock.recvmsg(*incoming.arguments()))
        return incoming.finish(self._protocol, body)

    async def call(self, message: Any, fds: Sequence[int] = ()) -> Any:
        """Send a message and wait for its reply; calls on one channel queue up.

        Cancelling closes the channel: a reply that comes later could be taken for that of another call.

        Raises:
            RpcRefused: the reply was `Error`.
            RpcFault, ChannelClosed: as `send` and `receive`.
        """
        reply, received = await self.call_with_fds(message, fds)
        _close_all(received)
        return reply

    async def call_with_fds(self, message: Any, fds: Sequence[int] = ()) -> tuple[Any, list[int]]:
        """As `call`, for a reply that brings descriptors."""
        async with self._calling:
            done = False
            try:
                await self.send(message, fds)
                reply, received = await self.receive()
                done = True
            finally:
                if not done:
                    self.close()
        if isinstance(reply, Error):
            _close_all(received)
            raise RpcRefused(reply.code, reply.text)
        return reply, received

    def close(self) -> None:
        """Close at once; whoever waits in `send` or `receive` gets ChannelClosed."""
        self._sock.close()
        self._incoming.discard()

    async def aclose(self) -> None:
        """Close; a checkpoint, as trio's other resources."""
        self.close()
        await trio.lowlevel.checkpoint()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()


class _Incoming:
    """What has arrived of the next message: bytes and descriptors."""

    def __init__(self, limit_bytes: int, max_fds: int) -> None:
        self._frame = FrameBuffer(limit_bytes)
        self._max_fds = max_fds
        self._fds: list[int] = []

    def arguments(self) -> tuple[int, int, int]:
        """For recvmsg: never more than this frame, so that descriptors can't be the next one's."""
        ancillary_bytes = socket.CMSG_SPACE(self._max_fds * array.array("i").itemsize)
        return min(self._frame.missing, _READ_BYTES), ancillary_bytes, socket.MSG_CMSG_CLOEXEC

    def feed(self, data: bytes, ancillary: list[tuple[int, int, bytes]], flags: int, _address: Any) -> None:
        self._fds += _descriptors(ancillary)
        if flags & socket.MSG_CTRUNC or len(self._fds) > self._max_fds:
            raise RpcFault("fds", f"more than {self._max_fds} descriptors with one message")
        if not data:
            raise (RpcFault("truncated", "end of file within a message") if self._frame.begun else ChannelClosed())
        self._frame.feed(data)

    def take(self) -> bytes | None:
        return self._frame.take()

    def finish(self, protocol: Protocol, body: bytes) -> tuple[Any, list[int]]:
        message = protocol.decode(body)
        fds, self._fds = self._fds, []
        return message, fds

    def discard(self) -> None:
        _close_all(self._fds)
        self._fds = []


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return list(fds)


def _rights(fds: Sequence[int]) -> list[tuple[int, int, bytes]]:
    if not fds:
        return []
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds).tobytes())]


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


@contextmanager
def _closed_on_os_errors() -> Iterator[None]:
    """A socket that fails is a connection that is gone: one error for both."""
    try:
        yield
    except trio.ClosedResourceError:
        raise ChannelClosed("this end was closed") from None
    except OSError as error:
        raise ChannelClosed(os.strerror(error.errno) if error.errno else "the socket failed") from None


@contextmanager
def _reachable(path: Path) -> Iterator[str]:
    """An address for `path` that fits sockaddr_un: a long one goes through a descriptor of its directory."""
    if len(os.fsencode(path)) <= _MAX_PATH_BYTES:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


async def connect(path: str | os.PathLike[str], protocol: Protocol, **limits: int) -> Channel:
    """Connect to a service. `limits` as the arguments of `Channel`.

    Raises:
        ChannelClosed: nobody listens there, too many are waiting to be let in, or we may not connect.
    """
    sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _closed_on_os_errors(), _reachable(Path(path)) as address:
            await sock.connect(address)
            sock.getpeername()  # one whose queue is full takes nobody, which trio takes for a connection on its way
        return Channel(sock, protocol, **limits)
    except BaseException:  # closed on cancellation too; raised again at once
        sock.close()
        raise


Handler = Callable[[Channel], Awaitable[None]]


async def serve(
    path: str | os.PathLike[str],
    protocol: Protocol,
    handle: Handler,
    *,
    allowed_uids: Container[int] | None,
    mode: int = 0o600,
    limit_bytes: int = LIMIT_BYTES,
    max_fds: int = MAX_FDS,
    max_connections: int = MAX_CONNECTIONS,
    on_fault: Callable[[Peer, RpcFault], None] | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Listen at a path, replacing what is there, and run `handle(channel)` in a task for each connection.

    The channel is closed when `handle` returns. An RpcFault out of it (also within a group) ends its
    connection and is shown to `on_fault`; any other exception is our bug and ends the service. A peer of
    another uid than `allowed_uids` (None: any) is closed without a word.

    Cancelling ends all connections and removes the socket. Reports "started" when clients can connect.

    Raises:
        OSError: the socket could not be made.
    """
    place = Path(path)
    listener, identity = _listen(place, mode)
    free = trio.Semaphore(max_connections)

    async def converse(sock: trio.socket.SocketType) -> None:
        with sock:
            channel = Channel(sock, protocol, limit_bytes=limit_bytes, max_fds=max_fds)
            try:
                if allowed_uids is None or channel.peer.uid in allowed_uids:
                    await _own_faults_only(channel, handle, on_fault)
            finally:
                channel.close()
                free.release()

    try:
        async with trio.open_nursery() as nursery:
            task_status.started()
            while True:
                await free.acquire()
                nursery.start_soon(converse, await _accept(listener))
    finally:
        listener.close()
        _remove_socket(place, identity)


async def _own_faults_only(
    channel: Channel, handle: Handler, on_fault: Callable[[Peer, RpcFault], None] | None
) -> None:
    try:
        await handle(channel)
    except* RpcFault as group:
        if on_fault is not None:
            on_fault(channel.peer, _first(group))


def _first(group: BaseExceptionGroup[RpcFault]) -> RpcFault:
    inner = group.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner


def _listen(path: Path, mode: int) -> tuple[trio.socket.SocketType, tuple[int, int]]:
    """Bind under another name, set the mode, listen, then rename: never open to others, never half there."""
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _reachable(temporary) as address:
            sock.bind(address)
        os.chmod(temporary, mode)
        sock.listen(MAX_CONNECTIONS)
        status = os.stat(temporary)
        os.rename(temporary, path)
    except BaseException:  # leaves nothing behind; raised again at once
        sock.close()
        temporary.unlink(missing_ok=True)
        raise
    return trio.socket.from_stdlib_socket(sock), (status.st_dev, status.st_ino)


def _remove_socket(path: Path, identity: tuple[int, int]) -> None:
    """Remove our own socket, not that of a successor which took over the path."""
    try:
        status = os.stat(path)
        if (status.st_dev, status.st_ino) == identity:
            path.unlink()
    except FileNotFoundError:
        return


async def _accept(listener: trio.socket.SocketType) -> trio.socket.SocketType:
    while True:
        try:
            sock, _ = await listener.accept()
            return sock
        except OSError as error:
            if error.errno in _OUT_OF_RESOURCES:
                await trio.sleep(0.1)  # as trio's serve_listeners: others may free some meanwhile
            elif error.errno != errno.ECONNABORTED:
                raise


def send_blocking(
    sock: socket.socket,
    protocol: Protocol,
    message: Any,
    fds: Sequence[int] = (),
    *,
    limit_bytes: int = LIMIT_BYTES,
) -> None:
    """`Channel.send` for a process without an event loop. A time-out of the socket is ChannelClosed too."""
    data = frame(protocol.encode(message), limit_bytes)
    with _closed_on_os_errors():
        sent = sock.sendmsg([data], _rights(fds), socket.MSG_NOSIGNAL)
        if sent < len(data):  # a receiver that has it all may be gone
            sock.sendall(data[sent:], socket.MSG_NOSIGNAL)


def receive_blocking(
    sock: socket.socket, protocol: Protocol, *, limit_bytes: int = LIMIT_BYTES, max_fds: int = MAX_FDS
) -> tuple[Any, list[int]]:
    """`Channel.receive` for a process without an event loop; after an RpcFault the caller closes the
    socket."""
    incoming = _Incoming(limit_bytes, max_fds)
    try:
        while (body := incoming.take()) is None:
            with _closed_on_os_errors():
                incoming.feed(*sock.recvmsg(*incoming.arguments()))
        return incoming.finish(protocol, body)
    except RpcFault:
        incoming.discard()
        raise
