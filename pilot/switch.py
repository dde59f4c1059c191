"""The near side of the identity switch: one call, and a typed outcome instead of a bare number.

For everybody at the pilot's account who needs something done at a job's account (starter, procd). It starts
the switch, builds the environment of the call, keeps what the switch says on standard error, and turns a wait
status into an `Outcome`. It knows nothing of what runs at the far side (pilot/farside.py does), does not
decide about holds, and never waits for a pid that it has not started itself.

Processes are started with posix_spawn and waited for by pidfd: trio's own process spawning and waiting needs
a worker thread, and a starter is to have none.
"""

from __future__ import annotations

import fcntl
import os
import random
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Protocol

import trio
from attrs import frozen

# What glexec exits with on its own account (glexec manual, 0.6.0 and later).
MISUSED, UNAVAILABLE, DENIED, MASKED = 201, 202, 203, 204
# The far end of the control socket is always this number in the switch: sudo -C wants a low one, and a plain
# /bin/sh can only name descriptors up to 9.
CONTROL_FD = 3
# A pipe's capacity on Linux is 64 KiB; of it people want to read the end.
ERROR_BYTES = 2048
# GLEXEC_ID ends up in somebody's log line.
AUDIT_ID_CHARACTERS = 200
# The PATH for the switch itself: ours is the pilot's business, the job's comes with the job.
SWITCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@frozen
class Exited:
    """The far side ran and exited. `masked`: a 204 that may stand for any of 201 to 204."""

    status: int
    masked: bool = False


@frozen
class Signalled:
    """The far side, or the switch itself, died by a signal."""

    number: int
    core: bool = False


@frozen
class Denied:
    """The switch said no, or could not ask: glexec's 203 means both."""

    text: str


@frozen
class Unavailable:
    """The switch is out of order, or did not answer in time."""

    text: str


@frozen
class Misused:
    """We (or the credential we were given) did not satisfy the switch's contract; trying again is useless."""

    text: str


@frozen
class Broken:
    """The call ended in a way that has no meaning in the contract."""

    text: str


Outcome = Exited | Signalled | Denied | Unavailable | Misused | Broken


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


class CannotCall(Exception):
    """A call could not even be started; `outcome` says why."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(str(outcome))
        self.outcome = outcome


class SwitchSettings(Protocol):
    """The knobs that this module reads (fields of pilot.settings.Settings)."""

    @property
    def sailplane_switch(self) -> str: ...
    @property
    def glexec(self) -> Path | str | None: ...
    @property
    def glexec_retries(self) -> int: ...
    @property
    def glexec_retry_delay(self) -> float: ...
    @property
    def sailplane_pilot_proxy(self) -> Path | str | None: ...
    @property
    def sailplane_wrapper_python(self) -> Path | str: ...
    @property
    def sailplane_wrapper_dir(self) -> Path | str: ...


# -- deciding: values in, values out ----


def classify(wait_status: int, text: str, *, authorised: bool) -> Outcome:
    """What the wait status of a glexec call means.

    `authorised` is true once the far side has spoken: from then on 201 to 203 are the payload's own words (a
    switch that exec'ed shows them as they are), and 204 may hide any of them.
    """
    if os.WIFSIGNALED(wait_status):
        return Signalled(os.WTERMSIG(wait_status), os.WCOREDUMP(wait_status))
    status = os.waitstatus_to_exitcode(wait_status)
    if authorised:
        return Exited(status, masked=status == MASKED)
    refusals: Mapping[int, Callable[[str], Outcome]] = {
        MISUSED: Misused,
        UNAVAILABLE: Unavailable,
        DENIED: Denied,
        MASKED: lambda text: Exited(MASKED, masked=True),
    }
    return refusals[status](text) if status in refusals else Exited(status)


def classify_plain(wait_status: int, text: str, *, authorised: bool) -> Outcome:
    """The same where nothing stands between us and the far side: every status is its own."""
    if os.WIFSIGNALED(wait_status):
        return Signalled(os.WTERMSIG(wait_status), os.WCOREDUMP(wait_status))
    return Exited(os.waitstatus_to_exitcode(wait_status))


@frozen
class Retries:
    """How often a call that failed before its far side spoke is tried again.

    GLEXEC_RETRIES further attempts; between two of them a time drawn evenly from 0 to GLEXEC_RETRY_DELAY
    seconds ("full jitter"), because the calls of many jobs fail at once when a site's service goes down.
    """

    limit: int
    delay_s: float

    def pause_s(self, failures: int, outcome: Outcome, dice: float) -> float | None:
        """Seconds until the next attempt after `failures` failed ones, or None for "give up". 0 <= dice <
        1."""
        if failures > self.limit or not isinstance(outcome, Denied | Unavailable | Broken):
            return None
        return dice * self.delay_s


def clean_text(raw: bytes, limit: int = ERROR_BYTES) -> str:
    """The end of what a program printed, as one line that can forge nothing in a log or an ad."""
    text = raw[-limit:].decode("utf-8", "replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # glibc noise that old glexec versions print on success (HTCondor strips the same line).
    kept = [line for line in lines if "pthread_mutex_init" not in line]
    return "".join(c if c.isprintable() else "?" for c in "; ".join(kept))


def clean_audit_id(text: str) -> str:
    """GLEXEC_ID: printable ASCII, no blanks, limited."""
    return "".join(c if "!" <= c <= "~" else "_" for c in text[:AUDIT_ID_CHARACTERS])


def glexec_environment(call: Call, pilot_proxy: str | None) -> dict[str, str]:
    """The whole environment of a glexec call; nothing of the caller's own gets in."""
    credential = str(call.credential) if call.credential is not None else pilot_proxy
    environment = {
        "PATH": SWITCH_PATH,
        "GLEXEC_TARGET_PROXY": "/dev/null",  # leave no copy that nobody cleans up
        "GLEXEC_ID": clean_audit_id(call.audit_id),
    }
    if credential is not None:
        environment["GLEXEC_CLIENT_CERT"] = credential
    if pilot_proxy is not None:
        environment["X509_USER_PROXY"] = pilot_proxy
    if call.control:
        environment["GLEXEC_CONTROL_FD"] = str(CONTROL_FD)
    return environment


def draw() -> float:
    """The dice of `Retries.pause_s`."""
    return random.random()


# -- acting ----

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
    root part, if it is only late, takes its end of file for the order to end everything.
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
        """See the call out: wait `grace_s`, then kill it and wait as long again.

        Runs to its end when cancelled, hence at most 2 * grace_s seconds. None: it is still there.
        """
        with trio.CancelScope(shield=True):
            for last in (False, True):
                with trio.move_on_after(grace_s):
                    return await self.wait()
                if not last:
                    self.kill()
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
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid:
            self._status = status
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


class Switch(Protocol):
    """What all switches have in common."""

    @property
    def name(self) -> str: ...
    @property
    def isolates(self) -> bool: ...
    @property
    def needs_credential(self) -> bool: ...
    async def start(self, call: Call) -> Running: ...


class GlexecSwitch:
    """Any glexec-compatible command."""

    name = "glexec"
    isolates = True
    needs_credential = True

    def __init__(self, command: Path | str, pilot_proxy: Path | str | None, *, log_only: bool = False) -> None:
        self.isolates = not log_only
        self._command = str(command)
        self._pilot_proxy = str(pilot_proxy) if pilot_proxy else None

    async def start(self, call: Call) -> Running:
        """Start the call; OSError when the command itself cannot be executed."""
        environment = glexec_environment(call, self._pilot_proxy)
        return spawn((self._command, *call.argv), environment, call, control=call.control, classify=classify)


class NoneSwitch:
    """No switch: the far side runs at the pilot's own account, and nothing is isolated."""

    name = "none"
    isolates = False
    needs_credential = False

    async def start(self, call: Call) -> Running:
        """Start the call; OSError when its program cannot be executed."""
        return spawn(call.argv, {"PATH": SWITCH_PATH}, call, control=False, classify=classify_plain)


def make_switch(settings: SwitchSettings) -> Switch:
    """The switch that the settings name; ValueError when they do not say enough."""
    if settings.sailplane_switch == "none":
        return NoneSwitch()
    if settings.sailplane_switch == "userns":
        from pilot.userns import UsernsSwitch  # which imports from here

        return UsernsSwitch()
    if not settings.glexec:
        raise ValueError(f"SAILPLANE_SWITCH is {settings.sailplane_switch}, but GLEXEC names no command")
    log_only = settings.sailplane_switch == "glexec-log-only"
    return GlexecSwitch(settings.glexec, settings.sailplane_pilot_proxy, log_only=log_only)


def make_retries(settings: SwitchSettings) -> Retries:
    return Retries(limit=settings.glexec_retries, delay_s=settings.glexec_retry_delay)


def wrapper_argv(settings: SwitchSettings, verb: str) -> tuple[str, ...]:
    """The command line of one wrapper verb.

    The interpreter's path is resolved, because glexec refuses a symbolic link as its command. The script is
    named instead of its directory, because running a directory imports runpy: 4 of 10 ms.
    """
    python = os.path.realpath(settings.sailplane_wrapper_python)
    return (python, "-IS", os.path.join(settings.sailplane_wrapper_dir, "__main__.py"), verb)


def compile_wrapper(settings: SwitchSettings) -> None:
    """Byte-compile the wrapper for the interpreter that will run it, readable by all; saves some ms in every
    call.

    Once at a daemon's start; blocks for about 50 ms. A directory that is not ours to write stays as it is.
    """
    subprocess.run(
        [settings.sailplane_wrapper_python, "-IS", "-m", "compileall", "-q", settings.sailplane_wrapper_dir],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={"PATH": SWITCH_PATH},
        umask=0o022,
        timeout=30,
        check=False,
    )


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
