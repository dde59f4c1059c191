"""The beginning of an activation in a process of its own, so that what it takes of memory does not stay.

A starter lives as long as its job. What it needs before the job runs (the job's ad, the proxy's verification, the
input's transfer) is never needed again, but in Python every page that was looked at is a page of one's own. So a
starter forks a forerunner first, which does all up to the launch, hands over what is left of that, and ends. One that
does not get so far (its job was refused, removed, held) ends the activation itself.

The forerunner never outlives its starter. The other way round the starter ends as one that has failed.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
from collections.abc import Callable

import attrs
import trio

from pilot.farside import Asking
from pilot.rpc import Channel, ChannelClosed, send_blocking
from starter.handover import HANDOVER, Catalogued, DropLaunch, HandOver, OpenLaunch, catalogued, entries_in
from starter.job import Job
from starter.sandbox import Catalogue, CatalogueEntry
from starter.spawner import EXIT_BUG, end_with
from starter.work import Work

_PR_SET_PDEATHSIG = 1


# --- in the starter ----------------------------------------------------------------------------------------------


@attrs.define
class Forerunner:
    """A forerunner, as the starter sees it: its process, and what it says."""

    pid: int
    socket: socket.socket

    async def listen(self, open_launch: Callable[[OpenLaunch | None], None]) -> Handed | None:
        """Until it hands over; None when it has ended without. ``open_launch`` is told of the launch's call meanwhile:
        that it may be opened; with None, that it is not wanted."""
        channel = Channel(trio.socket.from_stdlib_socket(self.socket), HANDOVER)
        entries: list[CatalogueEntry] = []
        async with channel:
            while True:
                try:
                    message, fds = await channel.receive()
                except ChannelClosed:
                    return None
                match message:
                    case OpenLaunch():
                        open_launch(message)
                    case DropLaunch():
                        open_launch(None)
                    case Catalogued():
                        entries.extend(entries_in(message))
                    case HandOver():
                        return Handed(message, fds, Catalogue(tuple(entries)))

    async def ended(self) -> int:
        """The exit status of one that has ended the activation itself: the starter's, too. One that was killed has
        failed."""
        pidfd = os.pidfd_open(self.pid)
        try:
            await trio.lowlevel.wait_readable(pidfd)
            found = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)  # noqa: ASYNC222 - it has ended
        finally:
            os.close(pidfd)
        return found.si_status if found is not None and found.si_code == os.CLD_EXITED else EXIT_BUG


@attrs.frozen
class Handed:
    """What was handed over, with its descriptors and the catalogue that came before."""

    message: HandOver
    fds: list[int]
    catalogue: Catalogue


def fork(work: Callable[[socket.socket], int], log: logging.LoggerAdapter[logging.Logger]) -> Forerunner:
    """A child of this process, which has no event loop yet, that does ``work`` with its end of a socket to us, and ends
    with the status that this gives.

    Raises:
        OSError: the host has no process left, or no memory.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    starter = os.getpid()
    try:
        pid = os.fork()
    except OSError:
        ours.close()
        theirs.close()
        raise
    if pid == 0:
        end_with(lambda: _forerun(work, starter, ours, theirs), log)
    theirs.close()
    return Forerunner(pid, ours)


# --- in the forerunner -------------------------------------------------------------------------------------------


def _forerun(work: Callable[[socket.socket], int], starter: int, ours: socket.socket, theirs: socket.socket) -> int:
    ours.close()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    return work(theirs) if os.getppid() == starter else EXIT_BUG


def tell_of_launch(starter: socket.socket, asking: Asking | None) -> None:
    """Have the starter open the launch's call, or (None) drop it. One that is gone ends us."""
    message = DropLaunch() if asking is None else OpenLaunch(asking.audit_id, asking.credential, asking.place)
    send_blocking(starter, HANDOVER, message)


def hand_over(starter: socket.socket, work: Work, job: Job) -> None:
    """Send what ``job`` leaves, which has stopped before its launch.

    Raises:
        PeerFault: the shadow went away in this very moment.
    """
    message, fds = job.hand_over()
    for piece in catalogued(work):
        send_blocking(starter, HANDOVER, piece)
    send_blocking(starter, HANDOVER, message, fds)
