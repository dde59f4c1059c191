"""A starter that was forked ahead of its activation, as the spawner sees it.

It has nothing of any job in use: it is forked from the spawner, which runs none, and takes one activation in its life.
(What the spawner has passed on may still lie in memory that is free again; all of them have the pilot's account.)
"""

from __future__ import annotations

import os
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs

from pilot.rpc import ChannelClosed, receive_blocking, send_blocking
from starter.messages import SPAWNER, StartStarter
from starter.orphans import die_with_parent

# So long a spare may take until it says that it has its activation: it may be in its rehearsal still, some 40 ms on a
# quiet machine.
TAKE_WITHIN_S = 5.0
# Its one word.
_TAKEN = b"+"


@attrs.frozen
class Spare:
    """A child of this process, not yet waited for, and our end of its channel. Its end of file ends the spare. Nobody
    here waits for a spare: it may stand still, or be in the kernel, where no signal ends it."""

    pid: int
    channel: socket.socket

    def give(self, request: StartStarter, fds: list[int]) -> bool:
        """Offer it the one activation: ``has_taken`` tells what becomes of it. False when it has not got all of it,
        since it has died, stands still, or reads slower than we write: ``dismiss`` it then."""
        if stands_still(self.pid):  # the socket would take most activations all the same
            return False
        self.channel.setblocking(False)
        try:
            send_blocking(self.channel, SPAWNER, request, fds)
        except ChannelClosed:
            return False
        return True

    def has_taken(self) -> bool:
        """Whether it has said that it has the activation: it is an ordinary starter then. If it has not, it never will,
        nor begin: its word would meet a closed channel. So either it runs the job, or whoever is started for it now."""
        with suppress(OSError):  # it has died, and closed its end
            self.channel.shutdown(socket.SHUT_RDWR)
        try:
            return self.channel.recv(1) == _TAKEN
        except OSError:
            return False
        finally:
            self.channel.close()

    def dismiss(self) -> None:
        """End it, also where it is stopped. It has begun nothing that a signal could tear apart."""
        self.channel.close()
        os.kill(self.pid, signal.SIGKILL)

    def forget(self) -> None:
        """It has ended, and was waited for."""
        self.channel.close()


@attrs.frozen
class Offer:
    """An activation that a spare was given, and has not taken yet; the descriptors are ours until then."""

    spare: Spare
    request: StartStarter
    fds: list[int]
    until_s: float = attrs.field(factory=lambda: time.monotonic() + TAKE_WITHIN_S)


def take(channel: socket.socket) -> tuple[Any, list[int]]:
    """In a spare that dies with its parent: the activation, once we have said that we have it; from then on it lives.

    Raises:
        ChannelClosed: the spawner is gone, has none for us, or wants it no more.
    """
    request, fds = receive_blocking(channel, SPAWNER)
    try:
        channel.sendall(_TAKEN)
    except OSError as fault:
        raise ChannelClosed("the activation is somebody else's by now") from fault
    die_with_parent(False)
    channel.close()
    return request, fds


def call_itself(name: str) -> None:
    """The name that this process shows in lists of processes (proc(5), comm); at most 15 bytes of it count. Where no
    descriptor is to be had it keeps the one that it has."""
    with suppress(OSError):
        comm = os.open("/proc/self/comm", os.O_WRONLY | os.O_CLOEXEC)  # less to be copied by a fork than a text file
        try:
            os.write(comm, name.encode("ascii"))
        finally:
            os.close(comm)


def stands_still(pid: int) -> bool:
    """Whether somebody has stopped this child of ours, or traces it (proc_pid_stat(5), state). False also where it
    cannot be told, for want of a descriptor."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] in (b"T", b"t")
    return False
