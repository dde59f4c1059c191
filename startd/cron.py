"""Runs the programs of STARTD_CRON_JOBLIST and keeps what they say for the slots' ads. Acting code.

They run at the pilot's uid, with the startd's environment: they are the pilot's own, as the startd's settings are. Each
is the leader of a process group of its own, which ends with the startd.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import IO

import attrs
import trio
from classad2 import ClassAd, ExprTree

from cedar.classads import evaluate
from startd.cronjobs import LINE_BYTES, CronJob, Output, Published, Record, first_pause_s
from startd.processes import ended_unreaped, reap, start_program
from starter.updates import one_line

# As stock: after a TERM, so long until the KILL.
KILL_AFTER_S = 1.0
# What was printed before the end is still read, for so long.
READ_ON_S = 1.0
# What a program may print in one run; it is ended when it prints more.
OUTPUT_BYTES = 4 << 20
# Of what it says as errors in one run, so many lines go into the log, and so much of each.
MAX_ERRORS, ERROR_BYTES = 20, 400
# A program whose condition does not hold, or for which there is no room, is looked at again after this.
LOOK_AGAIN_S = 1.0
INTERFACE = {"STARTD_CRON_INTERFACE_VERSION": "1", "STARTD_CRON_NAME": "STARTD_CRON"}


@attrs.define(eq=False)
class Scheduled:
    """One program's turns. ``process``: its present run."""

    job: CronJob
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    over: trio.Event = attrs.field(factory=trio.Event)
    process: subprocess.Popen[bytes] | None = None
    runs: int = 0


@attrs.define
class Cron:
    """``ad`` gives the startd's ad, for conditions; ``changed`` is called when something new was said, ``measured``
    when a program with metrics has spoken."""

    jobs: tuple[CronJob, ...]
    max_load: float
    autopublish: str
    ad: Callable[[], ClassAd]
    changed: Callable[[], None]
    log: logging.LoggerAdapter[logging.Logger]
    measured: Callable[[], None] = lambda: None
    published: Published = attrs.field(factory=Published)
    _load: float = 0.0
    _scheduled: dict[str, Scheduled] = attrs.field(factory=dict)
    _nursery: trio.Nursery | None = None

    async def run(self) -> None:
        """Until cancelled; then what still runs is killed."""
        async with trio.open_nursery() as self._nursery:
            for job in self.jobs:
                self._schedule(job)
            await trio.sleep_forever()

    def reconfigure(self, jobs: tuple[CronJob, ...], max_load: float, autopublish: str) -> None:
        """The settings were read again: programs that are new or described in another way begin anew, those that are
        named no more end, and their answers go. The others go on, or hear of it, as they wish."""
        self.jobs, self.max_load, self.autopublish = jobs, max_load, autopublish
        if self._nursery is None:
            return
        now = {job.name: job for job in jobs}
        for name in [name for name in self._scheduled if name not in now]:
            self.log.info("cron %s: is named no more", name)
            self._scheduled.pop(name).scope.cancel()
            self.published.drop(name)
        for job in jobs:
            scheduled = self._scheduled.get(job.name)
            if scheduled is None or scheduled.job != job:
                self._schedule(job)
            else:
                self._tell(scheduled)
        self.changed()

    def _tell(self, scheduled: Scheduled) -> None:
        """As stock does: a program that runs has a SIGHUP, one that has run and runs no more may run once more."""
        job, process = scheduled.job, scheduled.process
        if process is not None:
            if job.reconfig:
                _signal(process, signal.SIGHUP)
        elif job.reconfig_rerun and scheduled.runs:
            self._schedule(job)

    def _schedule(self, job: CronJob) -> None:
        """In place of what there was of it; it begins when that has ended."""
        assert self._nursery is not None
        before = self._scheduled.get(job.name)
        if before is not None:
            before.scope.cancel()
        self._scheduled[job.name] = scheduled = Scheduled(job)
        self._nursery.start_soon(self._keep, scheduled, before)

    async def _keep(self, scheduled: Scheduled, before: Scheduled | None) -> None:
        job = scheduled.job
        try:
            if before is not None:
                await before.over.wait()
            with scheduled.scope:
                match job.mode:
                    case "periodic":
                        await self._periodic(scheduled)
                    case "waitforexit":
                        await self._again_and_again(scheduled)
                    case "oneshot":
                        await self._once(scheduled)
                    case "ondemand":
                        self.log.info("cron %s: runs on demand only, and nobody demands it here", job.name)
        finally:
            scheduled.over.set()

    async def _periodic(self, scheduled: Scheduled) -> None:
        """At every turn of its clock; a run that takes longer is ended, or goes on and takes the next turn's place."""
        job, turn_s = scheduled.job, trio.current_time()
        while True:
            turn_s += job.period_s
            with trio.move_on_at(turn_s if job.kill else float("inf")) as turn:
                await self._once(scheduled)
            if turn.cancelled_caught:
                self.log.warning("cron %s: still ran after %g s, and was ended", job.name, job.period_s)
            while turn_s < trio.current_time():
                turn_s += job.period_s
            await trio.sleep_until(turn_s)

    async def _again_and_again(self, scheduled: Scheduled) -> None:
        failures = 0
        while True:
            failures = 0 if await self._once(scheduled) else failures + 1
            await trio.sleep(first_pause_s(scheduled.job, failures))

    async def _once(self, scheduled: Scheduled) -> bool:
        """One run, when it may; whether it ended well."""
        job = scheduled.job
        await self._its_turn(job)
        self._load += job.load
        well = False
        try:
            well = await self._run(scheduled)
        except* OSError as faults:  # a program that is not there; no descriptor to be had for what it prints
            for fault in _single(faults):
                self.log.warning("cron %s: %s: %s", job.name, job.executable, fault.strerror or fault)
        finally:
            self._load = max(0.0, self._load - job.load)
        return well

    async def _its_turn(self, job: CronJob) -> None:
        """Until its condition holds and there is room for its load."""
        while True:
            room = not self._load or self._load + job.load <= self.max_load
            if room and (not job.condition or self._holds(job.condition)):
                return
            await trio.sleep(LOOK_AGAIN_S)

    def _holds(self, condition: str) -> bool:
        ad = self.ad()
        ad["SailplaneCronCondition"] = ExprTree(condition)
        return evaluate(ad, "SailplaneCronCondition") is True

    async def _run(self, scheduled: Scheduled) -> bool:
        job = scheduled.job
        environment = {**os.environ, **INTERFACE, **dict(job.env)}
        environment.pop("CONDOR_CONFIG", None)  # ours points to nothing
        process, output = (
            start_program((job.executable, *job.args), environment, job.cwd),
            Output(job, int(time.time())),
        )
        scheduled.process, scheduled.runs = process, scheduled.runs + 1
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._log_errors, job, process)
                with trio.CancelScope() as reading:
                    nursery.start_soon(_see_end, process, reading)
                    async for line in _lines(process.stdout):
                        self._publish(job, output.line(line))
                await ended_unreaped(process.pid)
                nursery.cancel_scope.deadline = trio.current_time() + READ_ON_S
        finally:
            scheduled.process = None
            for pipe in (process.stdout, process.stderr):  # of which nobody has read
                if pipe is not None:
                    pipe.close()
            await _end(process)
        self._publish(job, output.ended())
        for why in output.refused:
            self.log.warning("cron %s: %s; left out", job.name, one_line(why))
        if process.returncode > 0:
            self.log.warning("cron %s: %s ended with exit status %d", job.name, job.executable, process.returncode)
        elif process.returncode < 0:
            self.log.warning("cron %s: %s ended by signal %d", job.name, job.executable, -process.returncode)
        return process.returncode == 0

    def _publish(self, job: CronJob, record: Record | None) -> None:
        if record is None:
            return
        news = self.published.put(job, record)
        if job.metrics:
            self.measured()
        if record.update or self.autopublish == "always" or (news and self.autopublish == "if_changed"):
            self.changed()

    async def _log_errors(self, job: CronJob, process: subprocess.Popen[bytes]) -> None:
        count = 0
        async for line in _lines(process.stderr):
            count += 1
            if count <= MAX_ERRORS:
                self.log.info("cron %s says: %s", job.name, one_line(line[:ERROR_BYTES].decode("utf-8", "replace")))


async def _lines(pipe: IO[bytes] | None) -> AsyncIterator[bytes]:
    """Without their ends; the pipe is closed afterwards. A longer line than LINE_BYTES is cut there, and the output
    after OUTPUT_BYTES: the program then gets SIGPIPE."""
    assert pipe is not None
    rest, total, cut = b"", 0, False
    with pipe:
        stream = trio.lowlevel.FdStream(os.dup(pipe.fileno()))
    async with stream:
        while total <= OUTPUT_BYTES and (piece := await stream.receive_some(LINE_BYTES)):
            total += len(piece)
            *whole, rest = (rest + piece).split(b"\n")
            for line in whole:
                yield b"" if cut else line
                cut = False
            if len(rest) > LINE_BYTES:
                yield rest  # too long to be taken; what follows of it is nothing
                rest, cut = b"", True
        if rest and not cut:
            yield rest


async def _see_end(process: subprocess.Popen[bytes], reading: trio.CancelScope) -> None:
    """What a program left behind in its group ends with it. What else of it holds the pipe open is not waited for."""
    await ended_unreaped(process.pid)
    _signal(process, signal.SIGKILL)
    reading.deadline = trio.current_time() + READ_ON_S


async def _end(process: subprocess.Popen[bytes]) -> None:
    """Whatever of it still runs: a TERM, and a KILL when that does not help. Also when cancelled. Until it is reaped no
    other group can have its number."""
    with trio.CancelScope(shield=True):
        _signal(process, signal.SIGTERM)
        with trio.move_on_after(KILL_AFTER_S):
            await ended_unreaped(process.pid)
        _signal(process, signal.SIGKILL)
        await reap(process)


def _single(faults: BaseExceptionGroup[OSError]) -> Iterator[OSError]:
    for fault in faults.exceptions:
        if isinstance(fault, BaseExceptionGroup):
            yield from _single(fault)
        else:
            yield fault


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """To its group, which may outlive it."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
