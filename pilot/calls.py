"""One call of the identity switch under way: its process, descriptors and words on standard error.

Processes are started with posix_spawn and waited for by pidfd: trio's own process spawning and waiting needs
a worker thread, and a starter is to have none. Nobody here ever waits for a pid that it has not started itself.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import trio
from attrs import frozen

from pilot.outcomes import ERROR_BYTES, Outcome, clean_text

# The far end of the control socket is always this number in the switch: sudo -C wants a low one, and a plain
# /bin/sh can only name descriptors up to 9.
CONTROL_FD = 3
# What SIGKILL ends is gone at once, on a busy machine a little later.
KILLED_WITHIN_S = 1.0
# The PATH for the switch itself: ours is the pilot's business, the job's comes with the job.
SWITCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@frozen
class Call:
    """One call of the switch.

    `stdin` and `stdout` are descriptors of the caller, who keeps them (stdout None: /dev/null).
    `credential` is the job's proxy; with none, the switch is asked on the pilot's own behalf.
    `control` asks for a control socket; whether anybody answers on it is up to the switch.
    For a switch that gives away accounts itself: `place` is the pilot's directory around the job's sandbox, and
    names the job; `uid` is the account of a job that runs, whose processes are to be signalled by the host's pids.
    """

    argv: tuple[str, ...]
    audit_id: str
    credential: Path | None
    stdin: int
    stdout: int | None = None
    control: bool = False
    place: Path | None = None
    uid: int | None = None


class Cpu(NamedTuple):
    """CPU time in seconds."""

    user_s: float
    system_s: float


class CannotCall(Exception):
    """A call could not even be started; `outcome` says why."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(str(outcome))
        self.outcome = outcome


_children: set[int] = set()
_starting: list[object] = []


def own_children() -> frozenset[int]:
    """Pids of running calls of this process: whoever reaps orphans leaves these alone."""
    return frozenset(_children)


def may_reap() -> bool:
    """Whether `own_children` is complete now: somebody else may be making a child of ours."""
    return not _starting


@contextmanager
def starting() -> Iterator[None]:
    """While a call is started by another process, as a child of this one."""
    token = object()
    _starting.append(token)
    try:
        yield
    finally:
        _starting.remove(token)


class Running:
    """A call under way. Whoever started it waits for it (`wait` or `end`), else a zombie stays.

    `authorised` is set by the one who heard the far side speak. `control` is this side's end of the control
    socket, or None. `unheard` is the same after nobody has spoken on it in time: kept open, because our own
    root part, if it is only late, takes its end of file for the order to end everything. `cpu` is known once it has
    ended: of the switch's own process, and of everybody below that was waited for.
    """

    def __init__(
        self,
        pid: int,
        *,
        errors: int,
        control: socket.socket | None,
        classify: Callable[..., Outcome],
    ) -> None:
        self.pid = pid
        self.control = control
        self.unheard: socket.socket | None = None
        self.authorised = False
        self.cpu: Cpu | None = None
        _children.add(pid)
        self._pidfd = os.pidfd_open(pid)
        self._errors = errors
        self._printed = b""
        self._classify = classify
        self._status: int | None = None

    @property
    def ended(self) -> bool:
        return self._status is not None

    async def wait(self) -> Outcome:
        """Wait for the end of the switch's own process. Any number of tasks may; cancelling leaves it
        running."""
        while self._status is None:
            # A descriptor of this task's own: trio lets only one task wait for each.
            mine = os.dup(self._pidfd)
            try:
                await trio.lowlevel.wait_readable(mine)
            finally:
                os.close(mine)
            self.reap()
        return self._classify(self._status, self.errors(), authorised=self.authorised)

    def errors(self) -> str:
        """What the switch printed on standard error so far: its end, cleaned and limited."""
        self._drain()
        return clean_text(self._printed)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Signal the switch's own process, which may be beyond our rights; says nothing either way."""
        if self._status is None:
            with suppress(PermissionError, ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    async def end(self, grace_s: float) -> Outcome | None:
        """See the call out: wait `grace_s`, then kill it and wait as long again, KILLED_WITHIN_S at least.

        Runs to its end when cancelled, hence at most 2 * grace_s seconds, or that. None: it is still there.
        """
        with trio.CancelScope(shield=True):
            with trio.move_on_after(grace_s):
                return await self.wait()
            self.kill()
            with trio.move_on_after(max(grace_s, KILLED_WITHIN_S)):
                return await self.wait()
        return None

    def close(self) -> None:
        """Give back the descriptors; `wait` is of no use afterwards unless the call has ended."""
        self.reap()
        for fd in (self._pidfd, self._errors):
            if fd >= 0:
                os.close(fd)
        self._pidfd = self._errors = -1
        for end in (self.control, self.unheard):
            if end is not None:
                end.close()
        self.control = self.unheard = None

    def reap(self) -> None:
        """Wait for it if it has ended."""
        if self._status is not None:
            return
        pid, status, used = os.wait4(self.pid, os.WNOHANG)
        if pid:
            self._status, self.cpu = status, Cpu(used.ru_utime, used.ru_stime)
            _children.discard(pid)
            self._drain()

    def _drain(self) -> None:
        while self._errors >= 0:
            try:
                piece = os.read(self._errors, 65536)
            except BlockingIOError:
                return
            if not piece:
                return
            self._printed = (self._printed + piece)[-2 * ERROR_BYTES :]


def spawn(
    argv: tuple[str, ...],
    environment: Mapping[str, str],
    call: Call,
    *,
    control: bool,
    classify: Callable[..., Outcome],
    more: Mapping[int, int] | None = None,
) -> Running:
    """For switches: start their own process. `more`: further descriptors, target to source, above CONTROL_FD."""
    with ExitStack() as always, ExitStack() as on_failure:
        fds, errors, near = call_descriptors(call, always, on_failure, control=control)
        descriptors = dict(enumerate(fds)) | dict(more or {})
        pid = os.posix_spawn(
            argv[0],
            argv,
            environment,
            file_actions=_file_actions(descriptors, always),
            # A session of its own: see jobwrapper/send_signals.py, and a terminal's keys are not for the switch.
            setsid=True,
            setsigmask=(),
            setsigdef=signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP},
        )
        running = Running(pid, errors=errors, control=near, classify=classify)
        on_failure.pop_all()
    return running


def call_descriptors(
    call: Call, always: ExitStack, on_failure: ExitStack, *, control: bool | None = None
) -> tuple[list[int], int, socket.socket | None]:
    """Descriptors 0 to 2 of a call, or to CONTROL_FD; our ends of its standard error and of its control socket."""
    errors, errors_far = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    on_failure.callback(os.close, errors)
    always.callback(os.close, errors_far)
    near, far = _control_pair(always, on_failure) if (call.control if control is None else control) else (None, None)
    fds = [call.stdin, _null(always) if call.stdout is None else call.stdout, errors_far]
    return fds if far is None else [*fds, far.fileno()], errors, near


def _control_pair(always: ExitStack, on_failure: ExitStack) -> tuple[socket.socket, socket.socket]:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    on_failure.callback(near.close)
    always.callback(far.close)
    near.setblocking(False)
    return near, far


def _null(always: ExitStack) -> int:
    fd = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    always.callback(os.close, fd)
    return fd


def _file_actions(descriptors: Mapping[int, int], always: ExitStack) -> list[tuple[int, int, int] | tuple[int, int]]:
    """Exactly these descriptors in the child; sources are first moved out of the targets' way."""
    actions: list[tuple[int, int, int] | tuple[int, int]] = []
    for target, source in descriptors.items():
        moved = fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, max(CONTROL_FD, *descriptors) + 1)
        always.callback(os.close, moved)
        actions.append((os.POSIX_SPAWN_DUP2, moved, target))
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in descriptors and _inheritable(int(name)):
            actions.append((os.POSIX_SPAWN_CLOSE, int(name)))
    return actions


def _inheritable(fd: int) -> bool:
    try:
        return os.get_inheritable(fd)
    except OSError:  # the listing's own descriptor, gone by now
        return False
