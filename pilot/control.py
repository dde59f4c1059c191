"""The near end of our glexec's control socket: what its root part says without being asked.

A lingering root part says once that it is there, and last how the payload ended. Its orders (signal, stop,
kill-all) are procd's business. A foreign glexec says nothing here.
"""

from __future__ import annotations

import errno
import json
import socket

import trio
from attrs import field, frozen


@frozen
class Linger:
    """The root part stays, and listens: the payload's pid and its own."""

    pid: int
    root_pid: int


@frozen
class Ended:
    """The payload ended: its full wait status, and how many of its family were left."""

    wait_status: int = field(converter=int)
    left: int = 0


def parse_control(datagram: bytes) -> Linger | Ended | None:
    """One message of the root part; None for anything else (it may know words that we do not)."""
    try:
        message = json.loads(datagram)
        if message.get("linger") is True:
            return Linger(int(message["pid"]), int(message["root_pid"]))
        if "ended" in message:
            return Ended(int(message["ended"]), int(message.get("left", 0)))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return None


async def read_linger(control: socket.socket) -> Linger | None:
    """The first message on a fresh control socket; None at end of file: nobody lingers, or nobody knows of
    it."""
    while True:
        try:
            datagram = control.recv(4096)
        except BlockingIOError:
            await trio.lowlevel.wait_readable(control)
            continue
        except OSError as error:
            if error.errno in (errno.ECONNRESET, errno.EPIPE):
                return None
            raise
        message = parse_control(datagram) if datagram else None
        if message is None or isinstance(message, Linger):
            return message


def peek_ended(control: socket.socket) -> Ended | None:
    """The exact end of the payload, if the root part has told it and nobody has read it yet. Takes
    nothing."""
    try:
        datagram = control.recv(4096, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except OSError:
        return None
    message = parse_control(datagram) if datagram else None
    return message if isinstance(message, Ended) else None
