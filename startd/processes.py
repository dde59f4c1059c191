"""The startd's own processes: spawner and procd, started, watched, and started again with growing pauses."""

from __future__ import annotations

import logging
import os
import random
import shlex
import socket
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import attrs
import trio

from pilot.rpc import Channel, ChannelClosed, RpcFault, RpcRefused
from procd.client import ProcdClient
from starter import messages

# Pauses before a new try: doubled from the first to the last, with full jitter. The last is half of what a starter's
# call waits for procd (procd.client.PATIENCE_S): afterwards the starter would give up, and with it the job.
FIRST_PAUSE_S, LAST_PAUSE_S = 0.1, 10.0
# A process that lived so long was fine: the next pause is short again.
HEALTHY_AFTER_S = 60.0
READY_WITHIN_S = 30.0
# Whether a process has ended of which the kernel cannot tell us.
LOOK_AGAIN_S = 0.1
# sockaddr_un(7), with the byte that ends it.
MAX_SOCKET_PATH_BYTES = 108
DESCRIBED_WITHIN_S = 5.0


class NotReady(Exception):
    """A process of ours did not become ready; the text names it."""


@attrs.define
class Spawner:
    """The near side of the spawner process. ``run`` keeps one running."""

    config: Path | None
    log: logging.LoggerAdapter[logging.Logger]
    heard: Callable[[object], None]
    lost: Callable[[], None]
    starter_command: str = ""
    _channel: Channel | None = None
    _nursery: trio.Nursery | None = None

    async def start(self, ticket: int, activation: messages.Activation, fds: tuple[int, int]) -> None:
        """Ask for a starter; the answer comes through ``heard``.

        Raises:
            ChannelClosed: no spawner runs, or SAILPLANE_STARTER_COMMAND cannot be started.
        """
        if self._channel is None or self._nursery is None:
            raise ChannelClosed("no spawner runs")
        if self.starter_command:
            try:
                await self._nursery.start(self._run_one, messages.StartStarter(ticket, activation), fds)
            except OSError as fault:
                text = f"SAILPLANE_STARTER_COMMAND = {self.starter_command} cannot be started: {fault.strerror}"
                raise ChannelClosed(text) from fault
        else:
            await self._channel.send(messages.StartStarter(ticket, activation), fds)

    async def clean(self, private_dir: Path) -> None:
        """Ask for the removal of what a dead starter left. No ticket: nobody waits for it.

        Raises:
            ChannelClosed: no spawner runs.
        """
        if self._channel is None:
            raise ChannelClosed("no spawner runs")
        await self._channel.send(messages.CleanUp(0, str(private_dir)))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled. Ready when the first spawner can fork. Cancelling closes the channel: it then ends by
        itself, when its last starter has ended."""
        async with trio.open_nursery() as self._nursery:
            await keep_running("spawner", self._run_once, self.log, task_status)

    async def _run_one(
        self,
        request: messages.StartStarter,
        fds: tuple[int, int],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """A starter of a command's, for debugging: it speaks as a spawner does, of itself alone."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with ExitStack() as on_failure, theirs:
            on_failure.callback(ours.close)
            arguments = [*shlex.split(self.starter_command), "--spawner-fd", str(theirs.fileno())]
            process = _start(arguments, self.config, [theirs.fileno()])
            on_failure.pop_all()
        channel = Channel(trio.socket.from_stdlib_socket(ours), messages.SPAWNER)
        told: list[object] = []
        sent = False
        try:
            await self._wait_ready(channel, process)
            await channel.send(request, fds)
            sent = True
            task_status.started()
            while True:
                told.append((await channel.receive())[0])
                self.heard(told[-1])
        except (ChannelClosed, RpcFault) as fault:
            self.log.info("the starter of ticket %d is gone: %s", request.ticket, fault)
            if not sent:
                task_status.started()
        finally:
            with trio.CancelScope(shield=True):
                await channel.aclose()
                await reap(process)
            self._tell_of_end(request.ticket, told, process)

    def _tell_of_end(self, ticket: int, told: list[object], process: subprocess.Popen[bytes]) -> None:
        """What a spawner would have said of a starter that could not say it itself."""
        match told:
            case []:
                self.heard(messages.StarterFailed(ticket, f"{self.starter_command} ended with {process.returncode}"))
            case [messages.StarterStarted(pid=pid)]:
                self.heard(messages.StarterEnded(pid, _wait_status(process)))

    async def _run_once(self, ready: Callable[[], None]) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with ExitStack() as on_failure, theirs:
            on_failure.callback(ours.close)
            process = _python("starter.main", ["--spawner-fd", str(theirs.fileno())], self.config, [theirs.fileno()])
            on_failure.pop_all()
        channel = Channel(trio.socket.from_stdlib_socket(ours), messages.SPAWNER)
        try:
            await self._wait_ready(channel, process)
            self._channel = channel
            ready()
            while True:
                message, _ = await channel.receive()
                self.heard(message)
        except (ChannelClosed, RpcFault):
            self.lost()
        finally:
            self._channel = None
            with trio.CancelScope(shield=True):  # it ends by itself when it sees its channel closed
                await channel.aclose()
                await reap(process)

    async def _wait_ready(self, channel: Channel, process: subprocess.Popen[bytes]) -> None:
        """Until it can fork; one that takes longer than READY_WITHIN_S is killed."""
        with trio.move_on_after(READY_WITHIN_S):
            message, _ = await channel.receive()
            if isinstance(message, messages.SpawnerReady):
                return
        self.log.warning("the spawner (pid %d) was not ready in time; see StarterLog", process.pid)
        process.kill()
        raise ChannelClosed("the spawner was not ready in time")


@contextmanager
def procd_socket(run_dir: Path) -> Iterator[Path]:
    """Where procd listens: in ``run_dir``, or in a private directory of the system's where that path is too long."""
    usual = run_dir / "procd"
    if len(os.fsencode(usual)) < MAX_SOCKET_PATH_BYTES:
        yield usual
        return
    with tempfile.TemporaryDirectory(prefix="sailplane-") as short:
        yield Path(short) / "procd"


async def run_procd(
    socket_path: Path,
    config: Path | None,
    log: logging.LoggerAdapter[logging.Logger],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Keep procd running until cancelled; ready when its socket answers. Cancelling closes its lifeline: it stops every
    family that is left, and ends."""

    async def once(ready: Callable[[], None]) -> None:
        readable, lifeline = os.pipe2(os.O_CLOEXEC)
        try:
            arguments = ["--socket", str(socket_path), "--lifeline-fd", str(readable)]
            process = _python("procd", arguments, config, [readable])
        finally:
            os.close(readable)
        try:
            await _socket_answers(socket_path, process)
            ready()
            await _ended(process)
        finally:
            os.close(lifeline)
            await reap(process)

    await keep_running("procd", once, log, task_status)


async def degradations(socket_path: Path, log: logging.LoggerAdapter[logging.Logger]) -> tuple[str, ...]:
    """What the host does not give procd, one word each; each is logged once. Empty when procd does not say."""
    try:
        described = await ProcdClient(socket_path, patience_s=DESCRIBED_WITHIN_S).describe()
    except (RpcFault, RpcRefused) as fault:
        log.warning("procd does not say what this host gives it (%s); advertising nothing about it", fault)
        return ()
    for lack in described.degraded:
        log.info("this host: %s: %s", lack.word, lack.text)
    return tuple(lack.word for lack in described.degraded)


async def keep_running(
    name: str,
    once: Callable[[Callable[[], None]], Awaitable[None]],
    log: logging.LoggerAdapter[logging.Logger],
    task_status: trio.TaskStatus[None],
) -> None:
    """Run ``once`` again and again; its argument is to be called when the process is ready for work.

    Raises:
        NotReady: the first one did not become ready. A later one that does not is tried again like one that died.
    """
    pause_s = FIRST_PAUSE_S
    told = False

    def ready() -> None:
        nonlocal told
        if not told:
            told = True
            task_status.started()

    while True:
        started_s = trio.current_time()
        try:
            await once(ready)
        except (NotReady, OSError) as fault:  # OSError: a job's fork bomb has left us no process, for a while
            if not told:
                raise
            log.warning("%s: %s", name, fault)
        if trio.current_time() - started_s > HEALTHY_AFTER_S:
            pause_s = FIRST_PAUSE_S
        log.warning("%s ended; starting another in at most %.1f s", name, pause_s)
        await trio.sleep(random.uniform(0, pause_s))
        pause_s = min(pause_s * 2, LAST_PAUSE_S)


def _python(module: str, arguments: list[str], config: Path | None, fds: list[int]) -> subprocess.Popen[bytes]:
    """A daemon of ours: same interpreter, own process group (a terminal's Ctrl-C is the startd's business)."""
    return _start([sys.executable, "-m", module, *arguments], config, fds)


def _wait_status(process: subprocess.Popen[bytes]) -> int:
    """As wait(2) gives it."""
    code = process.returncode or 0
    return -code if code < 0 else code << 8


def _start(command: list[str], config: Path | None, fds: list[int]) -> subprocess.Popen[bytes]:
    if config is not None:
        command += ["--config", str(config)]
    process = subprocess.Popen(command, pass_fds=fds, stdin=subprocess.DEVNULL, process_group=0)
    _owned.add(process.pid)
    return process


def start_program(
    argv: Sequence[str], environment: Mapping[str, str], directory: str | None
) -> subprocess.Popen[bytes]:
    """A program that is not ours, in a process group of its own, with pipes for what it prints. ``reap`` it.

    Raises:
        OSError: it cannot be started.
    """
    process = subprocess.Popen(
        argv, env=environment, cwd=directory, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        process_group=0, bufsize=0,
    )  # fmt: skip
    _owned.add(process.pid)
    return process


async def _ended(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:  # else it is reaped, and the number may be another's by now
        await ended_unreaped(process.pid)


async def ended_unreaped(child: int) -> None:
    """Until a child that nobody reaps meanwhile has ended; by its pidfd, without a thread. A process without a free
    descriptor looks now and then."""
    try:
        pidfd = os.pidfd_open(child)
    except OSError:
        while not _has_ended(child):  # noqa: ASYNC110 -- nobody could set an event
            await trio.sleep(LOOK_AGAIN_S)
        return
    try:
        await trio.lowlevel.wait_readable(pidfd)
    finally:
        os.close(pidfd)


def _has_ended(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


async def reap(process: subprocess.Popen[bytes]) -> None:
    """Wait for a process whose lifeline is closed; also when cancelled."""
    with trio.CancelScope(shield=True):
        await _ended(process)
    process.wait()
    _owned.discard(process.pid)


_owned: set[int] = set()


def owned_pids() -> frozenset[int]:
    """Children that somebody here waits for: whoever reaps adopted ones leaves these alone."""
    return frozenset(_owned)


async def _socket_answers(path: Path, process: subprocess.Popen[bytes]) -> None:
    """Until somebody listens at ``path``.

    Raises:
        NotReady: the process ended, or took more than READY_WITHIN_S.
    """
    with trio.move_on_after(READY_WITHIN_S):
        while process.poll() is None:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                if probe.connect_ex(str(path)) == 0:
                    return
            await trio.sleep(0.01)
    raise NotReady(f"procd (pid {process.pid}) does not listen at {path}; see its log")
