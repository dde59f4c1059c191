"""A daemon's place behind a shared port: connections that another process has accepted come over a Unix socket.

Whoever accepts for all (condor_shared_port, or a daemon of this machine that takes the short way) connects, says
SHARED_PORT_PASS_SOCK and sends one byte with the connection's descriptor. Nothing is answered.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable

import trio

from cedar.commands import Command
from cedar.errors import PeerFault

# The one message: end flag, length, command.
_MESSAGE = struct.pack(">BIq", 1, 8, Command.SHARED_PORT_PASS_SOCK)
# Two writes in a row of a process that has the connection at hand.
PASS_WITHIN_S = 5.0
_CREDENTIALS = struct.Struct("iII")
_FD_BYTES = socket.CMSG_SPACE(struct.calcsize("i"))


def _ignore(_fault: Exception) -> None:
    return None


class Passed(trio.abc.Listener[trio.SocketStream]):
    """Listens at ``sock`` (a Unix socket that listens already) for connections of others."""

    def __init__(self, sock: socket.socket, *, report: Callable[[Exception], None] = _ignore) -> None:
        """`report` hears of what was no connection."""
        sock.set_inheritable(False)
        self._socket = trio.socket.from_stdlib_socket(sock)
        self._report = report

    async def accept(self) -> trio.SocketStream:
        """The next connection. Only root and this account may pass any; whoever is slow or says something else is hung
        up on. Cancelling loses nothing that was received as a whole.

        Raises OSError as accept(2), trio.ClosedResourceError.
        """
        while True:
            peer, _ = await self._socket.accept()
            with peer:
                try:
                    with trio.fail_after(PASS_WITHIN_S):
                        return await _received(peer)
                except trio.TooSlowError:
                    self._report(PeerFault("timeout", "a connection was announced, and did not come"))
                except (PeerFault, OSError) as fault:
                    self._report(fault)

    async def aclose(self) -> None:
        """Close the socket; its name stays for whoever made it."""
        self._socket.close()
        await trio.lowlevel.checkpoint()


async def _received(peer: trio.socket.SocketType) -> trio.SocketStream:
    _check_account(peer)
    said = b""
    while len(said) < len(_MESSAGE):
        part = await peer.recv(len(_MESSAGE) - len(said))
        if not part:
            raise PeerFault("closed", "it ended before it passed a connection")
        said += part
    if said != _MESSAGE:
        raise PeerFault("framing", "not the message that passes a connection")
    _, control, _, _ = await peer.recvmsg(1, _FD_BYTES, socket.MSG_CMSG_CLOEXEC)
    fds = [
        fd
        for level, kind, data in control
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
        for (fd,) in struct.iter_unpack("i", data[: len(data) // 4 * 4])
    ]
    return _stream(fds)


def _check_account(peer: trio.socket.SocketType) -> None:
    raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(raw)
    if uid not in (0, os.geteuid()):
        raise PeerFault("handshake", f"account {uid} may not pass connections to this daemon")


def _stream(fds: list[int]) -> trio.SocketStream:
    """Of the one descriptor that must have come; all others are closed."""
    if len(fds) != 1:
        for fd in fds:
            os.close(fd)
        raise PeerFault("framing", "one connection was to be passed")
    try:
        found = socket.socket(fileno=fds[0])
    except OSError:
        os.close(fds[0])
        raise PeerFault("framing", "what was passed is no socket") from None
    if found.type != socket.SOCK_STREAM or found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        found.close()
        raise PeerFault("framing", "what was passed is no connection")
    return trio.SocketStream(trio.socket.from_stdlib_socket(found))
