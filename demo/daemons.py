"""One daemon of a site as a process of its own: start, readiness, log tails, stop.

Waiting is for a condition, with a deadline, and ends at once when a daemon dies; the failure
carries the ends of the logs. Nothing here knows what a daemon does.
"""

from __future__ import annotations

import os
import select
import signal as signals
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypedDict, TypeVar

import attrs

from demo import accounts

T = TypeVar("T")

# Conditions are looked at this often; a daemon's death is noticed at once.
LOOK_S = 0.02
_TAIL_LINES = 15


class Switched(TypedDict, total=False):
    """Arguments of `subprocess` for another account."""

    user: int
    group: int
    extra_groups: list[int]


class SiteError(Exception):
    """The site did not do what it should; the text has the ends of the logs."""


@attrs.define(eq=False)
class Daemon:
    """A started daemon, in a session of its own so that a terminal's Ctrl-C does not reach it."""

    name: str
    process: subprocess.Popen[bytes]
    output: Path
    logs: Path
    ticks: int
    pidfd: int
    ready: int

    @property
    def pid(self) -> int:
        """The process id; with `ticks` the process's identity."""
        return self.process.pid

    def died(self) -> int | None:
        """The exit status as `subprocess` states it, None while it runs."""
        return self.process.poll()

    def signal(self, number: int) -> None:
        """Send a signal; nothing happens to a process that has ended."""
        self.process.send_signal(number)

    def tails(self) -> str:
        """The last lines of its output and of every log in its log directory."""
        files = [self.output, *sorted(self.logs.glob("*"))] if self.logs.is_dir() else [self.output]
        return "\n".join(_tail(file) for file in files if file.is_file())

    def wait(self, deadline_s: float) -> int | None:
        """Wait for its end; None if it still runs after `deadline_s`."""
        try:
            return self.process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            return None

    def stop(self, number: int = signals.SIGTERM, *, deadline_s: float) -> int | None:
        """Signal it and wait; SIGKILL after `deadline_s`, then the answer is None."""
        self.signal(number)
        status = self.wait(deadline_s)
        if status is None:
            self.process.kill()
            self.process.wait()
        self.close()
        return status

    def said_ready(self) -> bool | None:
        """True once the daemon has written its line to `--ready-fd`, None until then."""
        try:
            return True if os.read(self.ready, 64) else None
        except BlockingIOError:
            return None

    def close(self) -> None:
        """Give back the descriptors; for a daemon that has ended."""
        for handle in (self.pidfd, self.ready):
            if handle >= 0:
                os.close(handle)
        self.pidfd = self.ready = -1


def _tail(file: Path) -> str:
    with suppress(OSError), file.open("rb") as opened:
        opened.seek(max(0, file.stat().st_size - 8192))
        lines = opened.read().decode(errors="replace").splitlines()[-_TAIL_LINES:]
        return "\n".join([f"--- {file.name}", *(f"    {line}" for line in lines)])
    return f"--- {file.name}: cannot be read"


def start(
    name: str,
    argv: list[str],
    *,
    account: accounts.Account | None,
    environment: Mapping[str, str],
    cwd: Path,
    output: Path,
    logs: Path,
) -> Daemon:
    """Start a daemon, at another account if one is given (then the caller must be root).

    `argv` is completed by `--ready-fd N`.
    """
    handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    ready, told = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        process = subprocess.Popen(
            [*argv, "--ready-fd", str(told)],
            stdin=subprocess.DEVNULL,
            stdout=handle,
            stderr=handle,
            env=dict(environment),
            cwd=cwd,
            start_new_session=True,
            umask=0o022,
            pass_fds=(told,),
            **switched(account),
        )
    finally:
        os.close(handle)
        os.close(told)
    ticks = accounts.start_ticks(process.pid) or 0
    return Daemon(name, process, output, logs, ticks, os.pidfd_open(process.pid), ready)


def switched(account: accounts.Account | None) -> Switched:
    """Arguments of `subprocess` that run a child at an account with no further groups."""
    if account is None:
        return {}
    return Switched(user=account.uid, group=account.gid, extra_groups=[])


def wait_until(
    condition: Callable[[], T | None],
    *,
    what: str,
    deadline_s: float,
    daemons: Iterable[Daemon],
    look_s: float = LOOK_S,
) -> T:
    """Wait until `condition` gives something; it is looked at every `look_s`.

    Raises:
        SiteError: a daemon died, or the deadline passed; with the ends of all logs.
    """
    watched = list(daemons)
    deaths = select.poll()
    for daemon in watched:
        deaths.register(daemon.pidfd, select.POLLIN)
    end, late = time.monotonic() + deadline_s, False
    while (value := condition()) is None:
        dead = [daemon for daemon in watched if daemon.died() is not None]
        if dead:
            raise SiteError(f"waiting for {what}: {_deaths(dead)}\n{_tails(watched)}")
        if late:
            raise SiteError(f"waiting for {what}: not within {deadline_s:g} s\n{_tails(watched)}")
        late = time.monotonic() > end  # then one more look: it may be this process that stood still
        deaths.poll(look_s * 1000)
    return value


def _deaths(dead: list[Daemon]) -> str:
    return ", ".join(f"{daemon.name} ended with status {daemon.died()}" for daemon in dead)


def _tails(daemons: list[Daemon]) -> str:
    return "\n".join(f"{daemon.name}:\n{daemon.tails()}" for daemon in daemons)
