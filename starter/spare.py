"""A starter that was forked ahead of its activation, as the spawner sees it.

It has nothing of any job in use: it is forked from the spawner, which runs none, and takes one activation in its life.
(What the spawner has passed on may still lie in memory that is free again; all of them have the pilot's account.)
"""

from __future__ import annotations

import os
import signal
import socket
from contextlib import suppress
from pathlib import Path

import attrs

from pilot.rpc import ChannelClosed, send_blocking
from starter.messages import SPAWNER, StartStarter

# A spare that somebody has stopped does not read: it must not keep the spawner, which everybody waits for.
GIVE_WITHIN_S = 2.0


@attrs.frozen
class Spare:
    """A child of this process, not yet waited for, and our end of its channel. Its end of file ends the spare."""

    pid: int
    channel: socket.socket

    def give(self, request: StartStarter, fds: list[int]) -> bool:
        """Hand over the one activation: it is an ordinary starter from now on. False when it has not got all of it,
        since it has died or stands still: ``dismiss`` it then."""
        if stands_still(self.pid):  # the socket would take most activations all the same
            return False
        self.channel.settimeout(GIVE_WITHIN_S)
        try:
            send_blocking(self.channel, SPAWNER, request, fds)
        except ChannelClosed:
            return False
        self.channel.close()
        return True

    def dismiss(self) -> None:
        """End it, also where it is stopped, and wait for it. It has begun nothing that a signal could tear apart."""
        self.channel.close()
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def forget(self) -> None:
        """It has ended, and was waited for."""
        self.channel.close()


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
    """Whether somebody has stopped this child of ours, or traces it (proc_pid_stat(5), state)."""
    return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] in (b"T", b"t")
