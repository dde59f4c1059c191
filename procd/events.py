"""Process events from the kernel (the proc connector): who forked whom, and who ended, as it happens. Acting.

They tell of processes that were born and gone between two looks. Not every kernel gives them to everybody, so they
are an addition: nothing is lost without them but those numbers. When the machine forks so wildly that listening would
cost too much, it is given up for a while.
"""

import errno
import os
import select
import socket
import struct
import threading
from collections.abc import Callable
from typing import NamedTuple, NoReturn

import trio

# linux/netlink.h, linux/connector.h, linux/cn_proc.h
_NETLINK_CONNECTOR = 11
_CN_IDX_PROC = _CN_VAL_PROC = 1
_LISTEN, _IGNORE = 1, 2
_NLMSG_DONE = 3
_ANSWER, _FORK, _EXIT = 0x0, 0x1, 0x80000000
_HEADERS = struct.Struct("=IHHIIIIIIHH")
# An event: what, cpu, time; then for a fork parent's thread and process, child's thread and process; for an end thread
# and process first.
_EVENT = struct.Struct("=IIQIIII")
_ANSWER_WITHIN_MS = 100
_DATAGRAM_BYTES = 1024
# The kernel caps this at net.core.rmem_max, and doubles it; an event takes about 800 of them.
_BUFFER_BYTES = 1 << 20

# Reading is done in lots: a fork storm wakes us twenty times a second, not at each fork.
BETWEEN_LOTS_S = 0.05
# A lot of this many is 2 % of a core at 5 us an event; the socket's buffer holds about as many.
MAX_LOT = 200
# How long we do without events after a lot that was too large, or lost some.
QUIET_S = 30.0


# PID_NS_INIT_INO of linux/nsfs.h. The kernel numbers processes as this namespace does, whoever listens; in a container
# it does not begin to send, but what another listener made it send comes there, too.
_FIRST_PID_NAMESPACE = 0xEFFFFFFC


class Event(NamedTuple):
    """A fork (`parent` is set) or an end of a process; threads are left out."""

    pid: int
    parent: int | None = None


class Overrun(Exception):
    """More events than we want to pay for, or than the kernel kept for us."""


class Connector:
    """An open socket that listens. OSError when the kernel does not let us."""

    def __init__(self) -> None:
        if _pid_namespace() != _FIRST_PID_NAMESPACE:
            raise PermissionError("process events have the numbers of another PID namespace")
        self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, _NETLINK_CONNECTOR)
        try:
            self.socket.bind((0, _CN_IDX_PROC))
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
            # Kernels before 6.6 know no mask and do not answer a message that has one.
            if not (self._ask(struct.pack("=II", _LISTEN, _FORK | _EXIT)) or self._ask(struct.pack("=I", _LISTEN))):
                raise PermissionError("the kernel gives no process events")
        except BaseException:  # raised again at once
            self.socket.close()
            raise

    def _ask(self, body: bytes) -> bool:
        """Send one request; whether events come then. An acknowledgement need not: the mask holds it back."""
        length = _HEADERS.size + len(body)
        head = _HEADERS.pack(length, _NLMSG_DONE, 0, 0, os.getpid(), _CN_IDX_PROC, _CN_VAL_PROC, 0, 0, len(body), 0)
        self.socket.send(head + body)
        _stir()
        poller = select.poll()
        poller.register(self.socket, select.POLLIN)
        while poller.poll(_ANSWER_WITHIN_MS):
            try:
                datagram = self.socket.recv(_DATAGRAM_BYTES)
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    return True  # so many that some were lost: then there are events
                raise
            what, _, _, refusal, *_ = _EVENT.unpack_from(datagram, _HEADERS.size)
            if what != _ANSWER or refusal:
                return bool(what != _ANSWER)
        return False

    def close(self) -> None:
        """Stop listening."""
        self.socket.close()

    def lot(self) -> list[Event]:
        """What has come since the last time; Overrun when that is too much."""
        events: list[Event] = []
        for _ in range(MAX_LOT):
            try:
                event = parse(self.socket.recv(_DATAGRAM_BYTES))
            except BlockingIOError:
                return events
            except OSError as error:  # ENOBUFS: the kernel threw some away
                raise Overrun(error.strerror or "lost") from None
            if event is not None:
                events.append(event)
        raise Overrun(f"more than {MAX_LOT} in {BETWEEN_LOTS_S:g} s")


def _stir() -> None:
    """Have an event in any case. OSError where we may have no more threads, as in a job's fork bomb."""
    try:
        threading.Thread(target=int).start()
    except RuntimeError as error:
        raise BlockingIOError(errno.EAGAIN, str(error)) from None


def parse(datagram: bytes) -> Event | None:
    """The event in a datagram; None for any other, and for threads."""
    if len(datagram) < _HEADERS.size + _EVENT.size:
        return None
    what, _, _, first, second, third, fourth = _EVENT.unpack_from(datagram, _HEADERS.size)
    if what == _FORK and third == fourth:
        return Event(fourth, second)
    if what == _EXIT and first == second:
        return Event(second)
    return None


def _pid_namespace() -> int:
    """The number of our PID namespace. OSError when /proc does not tell."""
    return os.stat("/proc/self/ns/pid").st_ino


def connector_works() -> bool:
    """Whether this kernel gives us process events."""
    try:
        Connector().close()
    except OSError:
        return False
    return True


async def listen(
    began: Callable[[], None],
    tell: Callable[[list[Event]], None],
    lost: Callable[[str], None],
    wanted: Callable[[], bool],
) -> NoReturn:
    """Until cancelled: hand over lots of events while they are wanted.

    Args:
        began: events come from now on.
        tell: gets each lot, in the kernel's order.
        lost: some were missed, and for a while there are none; gets the reason.
        wanted: whether anybody wants to know, asked between lots.
    """
    while True:
        if wanted():
            try:
                await _listen_once(began, tell, wanted)
            except (Overrun, OSError) as why:
                lost(str(why))
                await trio.sleep(QUIET_S)
        await trio.sleep(BETWEEN_LOTS_S)


async def _listen_once(
    began: Callable[[], None], tell: Callable[[list[Event]], None], wanted: Callable[[], bool]
) -> None:
    connector = Connector()
    try:
        began()
        while wanted():
            with trio.move_on_after(1.0):
                await trio.lowlevel.wait_readable(connector.socket)
            events = connector.lot()
            if events:
                tell(events)
            await trio.sleep(BETWEEN_LOTS_S)
    finally:
        connector.close()
