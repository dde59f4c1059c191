"""The condor_master that started us, if one did: what it left us, what it has to hear, and its end.

Whoever starts us otherwise (a glidein script) is no master: then there is none of this. What the variables say is read
by ``cedar.inheritance``; nothing here decides about jobs.
"""

from __future__ import annotations

import logging
import os
import pwd
import random
import re
import signal
import socket
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import attrs
import trio
from classad2 import ClassAd

from cedar.claims import ClaimId
from cedar.classads import set_str
from cedar.client import Resume, connect
from cedar.codec import Item
from cedar.commands import Command
from cedar.errors import PeerFault, Refused
from cedar.inheritance import COOKIE, PARENT, PRIVATE, PUBLIC, RELATIVE, Endpoint, Inheritance, parse, usable
from cedar.sessions import Session
from cedar.sinful import Sinful

# Ancestors that are looked at: a wrapper script may stand between a master and us.
MAX_GENERATIONS = 8
# As stock's: three signs of life in the time after which one counts as hung, each half a minute early.
SIGNS, EARLY_S, SHORTEST_PERIOD_S = 3, 30.0, 1.0
# Stock adds up to a tenth (timer_fuzz), so that many daemons do not speak at once.
FUZZ = 0.1
TELL_WITHIN_S = 20.0
# A pool that does not answer must not make the master believe that we hang in our start.
READY_WITHIN_S = 30.0
_UNABLE = "the master's session has no AES: no signs of life, no readiness (SEC_DEFAULT_ENCRYPTION)"


@attrs.define(eq=False)
class Master:
    """Our parent. ``run`` keeps it informed, ``wait_end`` waits for its end."""

    pid: int
    address: Sinful
    pidfd: int
    listeners: tuple[socket.socket, ...] = ()
    endpoint: tuple[str, socket.socket] | None = None
    """Our name behind a shared port, and where connections come from it."""
    session: Session | None = None
    family: Session | None = None

    @classmethod
    def of(cls, environ: dict[str, str] | os._Environ[str]) -> Master | None:
        """The master of this process; None if it has none. Takes the variables out of ``environ``, and closes what was
        inherited and is not used.

        Raises:
            PeerFault: the variables are not what a master gives.
        """
        public, private, _ = (environ.pop(name, "") for name in (PUBLIC, PRIVATE, COOKIE))
        if environ is os.environ:
            for name in (PRIVATE, COOKIE, *([PUBLIC] if "SharedPort:" in public else [])):
                forget(name)
        if not public:
            return None
        inherited = parse(public, private)
        pidfd = _open_ancestor(inherited.parent_pid)
        if pidfd is None:  # handed down from somebody's somebody: its descriptors may be anything by now
            return None
        return cls(
            inherited.parent_pid, inherited.parent, pidfd, _listeners(inherited), _endpoint(inherited.endpoint),
            _session(inherited.session, PARENT), _session(inherited.family, RELATIVE),
        )  # fmt: skip

    def sessions(self) -> Iterable[Session]:
        """Those by which the master and its other daemons may come to us."""
        return [session for session in (self.session, self.family) if session is not None]

    def accounts(self) -> set[str]:
        """Names of the accounts that it runs at: as root it acts for the account that HTCondor has."""
        names = set()
        with suppress(OSError):
            text = Path(f"/proc/{self.pid}/status").read_text("ascii", "replace")
            line = next((line for line in text.splitlines() if line.startswith("Uid:")), "")
            for uid in map(int, line.split()[1:]):
                with suppress(KeyError):
                    names.add(pwd.getpwuid(uid).pw_name)
        return names

    async def wait_end(self) -> None:
        """Until the master has ended, whoever ended it."""
        await trio.lowlevel.wait_readable(self.pidfd)

    def end(self) -> None:
        """Ask it to end everything that it runs here."""
        with suppress(ProcessLookupError, PermissionError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGTERM)

    async def tell_alive(self, timeout_s: float, own_address: str, log: logging.LoggerAdapter[logging.Logger]) -> None:
        """Signs of life until cancelled: a master kills a daemon that has stopped to send them for ``timeout_s``.

        Sent by the one thread that does everything else, so that they stop when that hangs.
        """
        timeout_s *= 1 + random.uniform(0, FUZZ)
        period_s = max(timeout_s / SIGNS - EARLY_S, SHORTEST_PERIOD_S)
        told = ""
        while True:
            fault = await self._tell(Command.CHILDALIVE, own_address, os.getpid(), int(timeout_s), 0.0)
            if fault and fault != told:
                log.warning("the master (pid %d) at %s does not take signs of life: %s", self.pid, self.address, fault)
            told = fault
            await trio.sleep(min(period_s, SHORTEST_PERIOD_S) if fault else period_s)

    async def tell_ready(self, own_address: str, log: logging.LoggerAdapter[logging.Logger]) -> None:
        """Say that jobs can come. Not being heard is no reason to end."""
        ad = ClassAd()
        ad["DaemonPID"] = os.getpid()
        set_str(ad, "DaemonName", "STARTD")
        set_str(ad, "DaemonState", "Ready")
        fault = await self._tell(Command.SET_READY, own_address, ad)
        if fault:
            log.warning("the master (pid %d) at %s was not told that we are ready: %s", self.pid, self.address, fault)

    async def _tell(self, command: Command, own_address: str, *items: Item) -> str:
        """One message that has no answer; why it was not sent, or nothing."""
        if self.session is None:
            return _UNABLE
        try:
            stream = await connect(
                self.address, command, Resume(self.session), subsystem="STARTD", own_address=own_address,
                deadline_s=TELL_WITHIN_S,
            )  # fmt: skip
            async with stream:
                await stream.put(*items)
        except (PeerFault, Refused, OSError) as fault:
            return str(fault)
        return ""


def _session(claim: ClaimId | None, identity: str) -> Session | None:
    return None if claim is None else usable(claim, identity)


# --- processes ---------------------------------------------------------------------------------------------------


def _open_ancestor(pid: int) -> int | None:
    """A pidfd of ``pid``, if it is our parent or stands above it."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return None
    if pid in _ancestors():
        return pidfd
    os.close(pidfd)
    return None


def _ancestors() -> list[int]:
    found = [os.getppid()]
    while len(found) < MAX_GENERATIONS and found[-1] > 1:
        try:
            found.append(
                int(Path(f"/proc/{found[-1]}/stat").read_text("ascii", "replace").rpartition(")")[2].split()[1])
            )
        except (OSError, ValueError, IndexError):
            break
    return found


def forget(name: str) -> None:
    """Blank a variable in what the kernel shows of this process (/proc/PID/environ): taking it out of the environment
    leaves it there, for root and for this account's other processes."""
    fields = Path("/proc/self/stat").read_text("ascii", "replace").rpartition(")")[2].split()
    start, end = int(fields[47]), int(fields[48])  # env_start, env_end: the 50th and 51st of proc(5)
    with Path("/proc/self/mem").open("r+b", buffering=0) as memory:
        memory.seek(start)
        block = memory.read(end - start)
        for found in re.finditer(rb"(?:^|\0)" + re.escape(name.encode()) + rb"=([^\0]+)", block):
            memory.seek(start + found.start(1))
            memory.write(b"0" * len(found[1]))


# --- descriptors -------------------------------------------------------------------------------------------------


def _listeners(inherited: Inheritance) -> tuple[socket.socket, ...]:
    """The sockets to listen on; all that was inherited closes with the next exec, what is not wanted now."""
    for fd in inherited.unwanted:
        if _is_socket(fd):
            os.close(fd)
    internet = (socket.AF_INET, socket.AF_INET6)
    return tuple(found for fd in inherited.listeners if (found := _listener(fd, internet)) is not None)


def _endpoint(said: Endpoint | None) -> tuple[str, socket.socket] | None:
    found = None if said is None else _listener(said.fd, (socket.AF_UNIX,))
    return None if said is None or found is None else (said.name, found)


def _listener(fd: int, families: tuple[int, ...]) -> socket.socket | None:
    if not _is_socket(fd):
        return None
    found = socket.socket(fileno=fd)
    found.set_inheritable(False)
    listens = found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if listens and found.family in families:
        return found
    found.close()
    return None


def _is_socket(fd: int) -> bool:
    """Whether it is one, and not one of our standard descriptors."""
    try:
        return fd > 2 and stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError:
        return False
