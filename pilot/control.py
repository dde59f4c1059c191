"""The near end of our glexec's control socket: what its root part says without being asked.

A lingering root part says once that it is there, and last how the payload ended. Its orders (signal, stop,
kill-all) are procd's business. A foreign glexec says nothing here.
"""

from __future__ import annotations

import errno
import json
import socket
from collections.abc import Mapping
from typing import Any

import trio
from attrs import field, frozen

from pilot.calls import Cpu


@frozen
class Linger:
    """The root part stays, and listens: the payload's pid and its own."""

    pid: int
    root_pid: int


@frozen
class Ended:
    """The payload ended: its full wait status, and how many of its family were left. ``cpu``: what it and all that it
    started have used, as far as somebody has waited for it; None where the root part does not say."""

    wait_status: int = field(converter=int)
    left: int = 0
    cpu: Cpu | None = None


def parse_control(datagram: bytes) -> Linger | Ended | None:
    """One message of the root part; None for anything else (it may know words that we do not)."""
    try:
        message = json.loads(datagram)
        if message.get("linger") is True:
            return Linger(int(message["pid"]), int(message["root_pid"]))
        if "ended" in message:
            return Ended(int(message["ended"]), int(message.get("left", 0)), _cpu(message))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
        return None
    return None


def _cpu(message: Mapping[str, Any]) -> Cpu | None:
    if "user_ms" not in message:
        return None
    return Cpu(int(message["user_ms"]) / 1000, int(message["system_ms"]) / 1000)


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


def read_ended(control: socket.socket) -> tuple[Ended | None, bool]:
    """Read all that is there, without waiting: the exact end of the payload if it is among it, and whether
    this was the last that will ever come.

    Answers to procd's orders are dropped: procd looks at the processes instead, and unread ones would in time
    stop the root part from speaking.
    """
    ended = None
    while True:
        try:
            datagram = control.recv(4096, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return ended, False
        except OSError:
            return ended, True
        if not datagram:
            return ended, True
        message = parse_control(datagram)
        ended = message if isinstance(message, Ended) else ended
