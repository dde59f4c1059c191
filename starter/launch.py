"""Launch: the near side of the call that becomes the job.

The far side says hello; procd gets the family; then environment, arguments and limits go over, and one end of
a fresh pipe that closes on exec. 'going' and end of file on it: the job runs. End of file alone: the wrapper
was killed before it could start anything, so the call is made again. Anything else is the typed reason why
the job cannot run.
"""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, TypeGuard

import trio
from attrs import field, frozen

from pilot.calls import Cpu, Running
from pilot.control import Ended, read_ended, read_linger
from pilot.farside import CallFailed, FarSide, open_call, parse_object, start_ticks, text_of
from pilot.outcomes import Broken, Exited, Outcome, Signalled
from pilot.switch import Retries, draw, make_retries
from starter.entries import Account, Context, check_owner
from starter.places import Place
from starter.waited import less, of_switch

GOING, WAITING = b"g", b"w"
REASON_BYTES = 4096
# Of the frame that a wrapper sends which stays beside its job; and how long it may take when its process has ended.
LAST_WORD_BYTES = 4096
LAST_WORD_S = 5.0
# As stock: the kernel's choice when memory is short, before anything that has no such score.
OOM_SCORE = 800
# Our glexec speaks on the control socket while the wrapper still starts; one that does not know it never
# does.
LINGER_S = 0.3

Register = Callable[[int, int, Running], Awaitable[None]]
Take = Callable[[], Awaitable[FarSide | None]]


@frozen
class Deadlines:
    """Seconds for each step: the hello of one attempt, procd's registration, from sending the job to exec."""

    hello_s: float = 60.0
    register_s: float = 20.0
    exec_s: float = 60.0


@frozen
class Command:
    """A command before or after the job. `success`: the wait status that lets the job start; None: any. `unless`: the
    job's wait status after which it is not run (a checkpoint, and the job goes on)."""

    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)
    success: int | None = None
    unless: int | None = None


@frozen
class LaunchSpec:
    """What to run. The environment is the whole one; `cwd` is the sandbox; stream names are relative to it.

    `rlimits`: name (as in RLIMIT_<NAME>, any case) -> (soft, hard), -1 for unlimited; never above what there
    is. `cpus`: the cores that it may use, none for all. `files`: files of the sandbox whose descriptors the
    caller gets, as (name, "read" or "write"). `connection`: a descriptor of the caller's that becomes standard
    input and output instead of files. `append`: output goes behind what is there.
    `streamed`: descriptors of the caller's that are "stdout" or "stderr" instead of files. `manifest`: a directory of
    the sandbox into which the environment is written.
    """

    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)
    cwd: str
    stdin: str | None
    stdout: str
    stderr: str
    umask: int = 0o022
    rlimits: Mapping[str, tuple[int, int]] = field(factory=dict)
    nice: int = 0
    cpus: tuple[int, ...] = ()
    files: tuple[tuple[str, str], ...] = ()
    pre: Command | None = None
    post: Command | None = None
    connection: int | None = None
    append: bool = False
    streamed: Mapping[str, int] = field(factory=dict)
    manifest: str = ""


@frozen
class ExecFailed:
    """The job cannot run, and trying again will not help. `step`: "cwd", "stdio", "exec", ..."""

    errno: int
    text: str
    step: str


@frozen
class After:
    """How the command after the job ended, by its own account's word: a wait status, or why it could not run."""

    wait_status: int | None
    trouble: ExecFailed | None


class Launched:
    """A running job. `pid` is its first process, `running` the switch's own (the same without a lingering
    switch). `files`: descriptors of the files that were asked for, where the far side gave one; the caller's to
    close. `after` is known once the job has ended, if a command followed it. `before` is what the switch had used
    before the job began."""

    def __init__(
        self,
        *,
        pid: int,
        ticks: int,
        account: Account,
        running: Running,
        files: Mapping[str, int] | None = None,
        before: Cpu | None = None,
    ) -> None:
        self.pid = pid
        self.start_ticks = ticks
        self.account = account
        self.running = running
        self.files = files or {}
        self.after: After | None = None
        self._line: FarSide | None = None
        self._ended: Ended | None = None
        self._listening = False
        self._lingers = running.control is not None
        self._closed_there = False
        self._before = before

    @property
    def cpu(self) -> Cpu | None:
        """What the kernel has counted for the job and all of it that was waited for, once it has ended: by the word of
        a switch that lingers, else by what the call has used beyond the switch. None where neither is known."""
        if self._ended is not None:
            return self._ended.cpu
        return None if self._lingers else less(self.running.cpu, self._before)

    @property
    def control(self) -> socket.socket | None:
        return self.running.control

    async def wait(self) -> Outcome:
        """The job's end: exact where the switch shows it, or its root part tells it; cancelling changes
        nothing."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen)
            outcome = await self.running.wait()
            nursery.cancel_scope.cancel()
        self._hear()
        if self._line is not None:
            return await self._last_word() or outcome
        return outcome if self._ended is None else exact_outcome(self._ended.wait_status)

    def stays(self, line: FarSide) -> None:
        """The wrapper stays beside the job, and will tell on this line how it ended."""
        self._line = line

    async def _last_word(self) -> Outcome | None:
        """Of a wrapper that stayed. None when it was killed before it could say anything."""
        line, self._line = self._line, None
        assert line is not None
        try:
            with trio.fail_after(LAST_WORD_S):
                said = await line.receive(LAST_WORD_BYTES)
        except (CallFailed, trio.TooSlowError):
            return None
        finally:
            line.hang_up()
        word = last_word(said)
        if word is None:
            return None
        status, self.after = word
        return exact_outcome(status)

    def hang_up(self) -> None:
        """Close our end of the control socket; once procd has closed its own too, that ends the family."""
        if self.running.control is not None:
            trio.lowlevel.notify_closing(self.running.control)
            self.running.control.close()
            self.running.control = None

    async def _listen(self) -> None:
        """Keep the control socket empty; one task does it, whoever waits first."""
        if self._listening or self.control is None:
            return
        self._listening = True
        try:
            while self.control is not None and not self._closed_there:
                await trio.lowlevel.wait_readable(self.control)
                self._hear()
        except trio.ClosedResourceError:  # hang_up
            return
        finally:
            self._listening = False

    def _hear(self) -> None:
        control = self.running.control or self.running.unheard
        if control is not None:
            ended, self._closed_there = read_ended(control)
            self._ended = ended or self._ended


def last_word(said: Mapping[str, Any]) -> tuple[int, After] | None:
    """The job's wait status and how the command after it ended, by the word of a wrapper that stayed; None if it is
    none."""
    status, after, failed = said.get("ended"), said.get("after"), said.get("failed")
    if not _is_wait_status(status):
        return None
    return status, After(
        after if _is_wait_status(after) else None, _reason(failed) if isinstance(failed, dict) else None
    )


def _is_wait_status(value: object) -> TypeGuard[int]:
    """An end as wait(2) gives it: an exit code, or a signal with or without a core."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 16:
        return False
    return value & 0xFF == 0 or (value < 1 << 8 and 0 < value & 0x7F <= 64)


def exact_outcome(wait_status: int) -> Exited | Signalled:
    """A wait status that the root part saw itself."""
    if os.WIFSIGNALED(wait_status):
        return Signalled(os.WTERMSIG(wait_status), os.WCOREDUMP(wait_status))
    return Exited(os.waitstatus_to_exitcode(wait_status))


async def launch(
    context: Context,
    place: Place,
    spec: LaunchSpec,
    *,
    register: Register,
    deadlines: Deadlines | None = None,
    take: Take | None = None,
) -> Launched | ExecFailed:
    """Run the job in its sandbox.

    `take()` gives a call that was opened ahead (`starter.ahead`), or None; only the first attempt asks for it.
    `register(pid, start_ticks, running)` is awaited before the far side learns what to run; if it raises,
    nothing runs. When the wrapper is killed before 'going' the call is made again (GLEXEC_RETRIES), and
    `register` is called again with the new pid. Raises StageFailed when the switch fails, or a deadline
    passes: in the latter case after the job was sent nobody knows whether it runs, so the family must be
    stopped. Cancelling may leave that open as well.
    """
    limits = deadlines or Deadlines()
    retries = make_retries(context.settings)
    failures = 0
    while True:
        far = await take() if take is not None and failures == 0 else None
        result = await _attempt(far, context, place, spec, register, limits)
        if not isinstance(result, Broken):
            return result
        failures += 1
        await _pause(retries, failures, result)


async def _pause(retries: Retries, failures: int, broken: Broken) -> None:
    pause_s = retries.pause_s(failures, broken, draw())
    if pause_s is None:
        raise CallFailed("broken", broken.text, broken)
    await trio.sleep(pause_s)


async def _attempt(
    far: FarSide | None, context: Context, place: Place, spec: LaunchSpec, register: Register, limits: Deadlines
) -> Launched | ExecFailed | Broken:
    if far is None:
        far = await open_call(context, "launch", deadline_s=limits.hello_s, control=True)
    running = far.running
    try:
        result = await _hand_over(far, place, spec, register, limits)
    except BaseException:
        await far.end()
        raise
    if isinstance(result, Launched):
        if spec.post is not None:
            result.stays(far)
        else:
            far.hang_up()
        return result
    await far.end()
    if isinstance(result, Broken):
        printed = running.errors()
        return Broken(result.text + (f": {printed}" if printed else ""))
    return result


async def _hand_over(
    far: FarSide, place: Place, spec: LaunchSpec, register: Register, limits: Deadlines
) -> Launched | ExecFailed | Broken:
    hello = far.hello
    check_owner(place, hello.uid)
    await _settle_control(far.running)
    try:
        ticks = start_ticks(hello.pid, hello.ticks)
    except CallFailed:
        return Broken("the wrapper died after its hello")
    before = of_switch(hello.pid, far.running.pid)
    await _within(limits.register_s, "register the family", register, hello.pid, ticks, far.running)
    report, report_far = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        try:
            await _within(limits.exec_s, "take the job", _send_job, far, spec, report_far)
        except CallFailed as failure:
            if failure.code != "closed":
                raise
            return Broken("the wrapper died before it had the job")
        finally:
            os.close(report_far)
        said = await _read_report(report, limits.exec_s)
    finally:
        os.close(report)
    judged = judge(said)
    if judged is not None:
        return judged
    account = Account(hello.uid, hello.gid, hello.name)
    files = take_files(far, spec.files)
    return Launched(pid=hello.pid, ticks=ticks, account=account, running=far.running, files=files, before=before)


def take_files(far: FarSide, asked: tuple[tuple[str, str], ...]) -> dict[str, int]:
    """Descriptors that the wrapper passed before the job began: by number of what was asked for, each at most once.

    Whatever they are of is the far side's word only: the caller looks before it writes or reads.
    """
    found: dict[str, int] = {}
    for _ in asked:
        message = far.take_descriptor()
        if message is None:
            break
        number, fd = message
        if number < len(asked) and asked[number][0] not in found:
            found[asked[number][0]] = fd
        else:
            os.close(fd)
    return found


def judge(said: bytes) -> ExecFailed | Broken | None:
    """What the wrapper's last words mean; None when the job runs."""
    waited = said.startswith(WAITING)
    said = said[1:] if waited else said
    if said == GOING:
        return None
    if not said and waited:  # not to be run a second time
        return ExecFailed(errno=0, text="the wrapper was killed while the command before the job ran", step="pre")
    if not said:
        return Broken("the wrapper died before the job could start")
    return _reason(parse_object(said[1:] if said.startswith(GOING) else said))


def _reason(reason: Mapping[str, Any]) -> ExecFailed:
    number = reason.get("errno")
    return ExecFailed(
        errno=number if isinstance(number, int) and 0 <= number < 4096 else 0,
        text=text_of(reason.get("text")),
        step=text_of(reason.get("step"), 40),
    )


async def _settle_control(running: Running) -> None:
    """Find out whether anybody listens on the control socket; if not, there is none."""
    if running.control is None:
        return
    with trio.move_on_after(LINGER_S) as patience:
        if await read_linger(running.control) is not None:
            return
    if patience.cancelled_caught:
        running.unheard = running.control
    else:
        running.control.close()
    running.control = None


async def _within(limit_s: float, what: str, act: Callable[..., Awaitable[None]], *arguments: object) -> None:
    try:
        with trio.fail_after(limit_s):
            await act(*arguments)
    except trio.TooSlowError:
        raise CallFailed("timeout", f"could not {what} within {limit_s:g} s") from None


async def _send_job(far: FarSide, spec: LaunchSpec, report: int) -> None:
    await far.send(
        {
            "argv": list(spec.argv),
            "environment": dict(spec.environment),
            "cwd": spec.cwd,
            "stdin": spec.stdin,
            "stdout": spec.stdout,
            "stderr": spec.stderr,
            "umask": spec.umask,
            "rlimits": {name: list(pair) for name, pair in spec.rlimits.items()},
            "nice": spec.nice,
            "cpus": list(spec.cpus),
            "oom_score": OOM_SCORE,
            "files": [list(pair) for pair in spec.files],
            "pre": _command(spec.pre),
            "post": _command(spec.post),
            "connection": spec.connection is not None,
            "append": spec.append,
            "streamed": list(spec.streamed),
            "manifest": spec.manifest,
        }
    )
    await far.send_descriptor(report)
    if spec.connection is not None:
        await far.send_descriptor(spec.connection)
    for fd in spec.streamed.values():
        await far.send_descriptor(fd)


def _command(command: Command | None) -> dict[str, Any] | None:
    if command is None:
        return None
    return {
        "argv": list(command.argv),
        "environment": dict(command.environment),
        "success": command.success,
        "unless": command.unless,
    }


async def _read_report(report: int, limit_s: float) -> bytes:
    """All that the wrapper writes until the pipe closes; as long as a command before the job runs, without a limit."""
    said = b""
    try:
        with trio.fail_after(limit_s) as patience:
            while len(said) < REASON_BYTES:
                with suppress(BlockingIOError):
                    piece = os.read(report, REASON_BYTES)
                    if not piece:
                        return said
                    said += piece
                    if said.startswith(WAITING):
                        patience.deadline = trio.current_time() + limit_s if said[1:] else math.inf
                    continue
                await trio.lowlevel.wait_readable(report)
    except trio.TooSlowError:
        raise CallFailed("timeout", f"the wrapper did not start the job within {limit_s:g} s") from None
    raise CallFailed("framing", "the wrapper's reason does not end")
