"""Looks at what a running job uses and how long it takes, and tells the life when it is too much. The rules are in
``starter.limits``; here are the clock, procd and the call that measures the sandbox."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import attrs
import trio

from pilot.farside import open_call
from pilot.outcomes import Signalled
from pilot.rpc import RpcFault, RpcRefused
from procd.messages import Usage
from starter import limits, updates
from starter.entries import StageFailed, check_owner, deadline, int_of, raise_if_failed
from starter.events import Event
from starter.life import State
from starter.limits import Measured, OomSigns
from starter.peek import NotShown
from starter.verdict import Hold, Requeue, Verdict
from starter.visits import Visits
from starter.work import Work

_RUNS = frozenset({State.RUNNING, State.SUSPENDED})
# The walk itself ends after 50 s (jobwrapper/measure.py).
MEASURE_S = 60.0
# With the longest of these sleeps a job that is suspended, or waits for its launch, is looked at again.
LONGEST_SLEEP_S = 60.0
# A job that has just begun uses nothing yet, and a short one is over by then.
FIRST_LOOK_S = 0.2
_SIGKILL = 9


@attrs.define(eq=False)
class Police:
    """Of one job. ``state`` tells where it is; ``post`` takes what was found."""

    work: Work
    visits: Visits
    state: Callable[[], State]
    post: Callable[[Event], Awaitable[None]]
    log: logging.LoggerAdapter[logging.Logger]
    began_s: float = attrs.field(factory=trio.current_time)
    _kills_before: int = 0

    async def watch_time(self) -> None:
        """Wall clock, from the job's ad being known to the end."""
        bounds, named = self.work.bounds, self.work.named
        if bounds.job_s is None and bounds.execute_s is None:
            return
        while True:
            job_s, execute_s = trio.current_time() - self.began_s, self._execute_s()
            late = limits.time_up(bounds, named, job_s=job_s, execute_s=execute_s)
            if late is not None:
                await self.post(late)
                return
            left_s = limits.time_left_s(bounds, job_s=job_s, execute_s=execute_s)
            waits_s = EXECUTE_LOOK_S if execute_s is None and bounds.execute_s is not None else LONGEST_SLEEP_S
            await trio.sleep(waits_s if left_s is None else min(waits_s, left_s))

    def _execute_s(self) -> float | None:
        started_s = self.work.started_at_s
        return trio.current_time() - started_s if started_s is not None and self.state() in _RUNS else None

    async def watch_use(self) -> None:
        """Memory and processes, while the job runs; once for all of its legs."""
        bounds, interval_s = self.work.bounds, self.work.settings.sailplane_limits_interval
        if bounds.memory_kb is None and bounds.processes is None:
            return
        before = Measured(None, 0)
        await trio.sleep(min(interval_s, FIRST_LOOK_S))
        while True:
            now = await self._measured()
            if now is None:
                await trio.sleep(interval_s)
                continue
            over = limits.exceeded(bounds, now, self.work.named)
            if over is not None:
                await self.post(over)
                await trio.sleep(interval_s)
                continue
            await trio.sleep(limits.pause_s(bounds, now, before, interval_s))
            before = now

    async def _measured(self) -> Measured | None:
        if self.state() not in _RUNS:
            return None
        try:
            usage = await self.work.procd.usage(self.work.family)
            if usage.rss_kb > (self.work.bounds.memory_kb or math.inf):  # much of it may be counted many times
                usage = await self.work.procd.usage(self.work.family, exactly=True)
        except (RpcRefused, RpcFault):  # it is over, or procd is away for a moment
            return None
        return measured_of(usage)

    async def watch_disk(self) -> None:
        """The sandbox, by a call of the switch where it may be due."""
        bounds, interval_s = self.work.bounds, self.work.settings.sailplane_disk_interval
        if bounds.disk_kb is None or not interval_s:
            return
        filled_kb, left_kb, last_s = _filled_kb(self.work.place.root), bounds.disk_kb, trio.current_time()
        while True:
            await trio.sleep(min(interval_s, LONGEST_SLEEP_S))
            if self.state() is not State.RUNNING:  # there may be no sandbox any more
                continue
            since_s, grown_kb = trio.current_time() - last_s, _filled_kb(self.work.place.root) - filled_kb
            due = limits.disk_due(since_s=since_s, interval_s=interval_s, grown_kb=grown_kb, left_kb=left_kb)
            if not due:
                continue
            filled_kb, last_s = filled_kb + grown_kb, trio.current_time()
            used_kb = await self._measure_disk()
            if used_kb is None:
                continue
            left_kb = max(0, bounds.disk_kb - used_kb)
            over = limits.disk_exceeded(bounds, used_kb, self.work.named)
            if over is not None:
                await self.post(over)

    async def _measure_disk(self) -> int | None:
        """KB; None when it could not be found out now."""
        work = self.work
        try:
            async with self.visits.turn("measure") as context:
                far = await open_call(context, "measure", deadline_s=work.settings.sailplane_switch_deadline)
                try:
                    check_owner(work.place, far.hello.uid)
                    with deadline("measure the sandbox", MEASURE_S):
                        await far.send({"path": str(work.place.path)})
                        answer = await far.receive()
                    raise_if_failed(answer)
                    used_kb, files = int_of(answer.get("kb")), int_of(answer.get("files"))
                finally:
                    await far.end()
        except (StageFailed, NotShown) as fault:
            self.log.info("the sandbox was not measured: %s", fault)
            return None
        if answer.get("whole") is not True:
            self.log.warning("the sandbox has more than the %d KB in %d entries that could be counted", used_kb, files)
        work.disk = (used_kb, files)
        return used_kb

    # --- the kernel's kills --------------------------------------------------------------------------------------

    def note_launch(self) -> None:
        """From here on the kernel's kills for want of memory are counted."""
        self._kills_before = oom_kills()

    async def verdict(self, outcome: object) -> Verdict | None:
        """What becomes of a job that a SIGKILL ended which was not ours; None where its end decides that."""
        if not (isinstance(outcome, Signalled) and outcome.number == _SIGKILL) or self.state() not in _RUNS:
            return None
        try:
            usage = await self.work.procd.usage(self.work.family)
        except (RpcRefused, RpcFault):
            usage = Usage()
        peak_kb = max(usage.memory_peak_kb or 0, usage.rss_peak_kb)
        signs = OomSigns(usage.oom_kills, oom_kills() - self._kills_before, peak_kb)
        found = limits.oom_verdict(signs, self.work.bounds, self.work.named)
        return attrs.evolve(found, text=updates.one_line(found.text)) if isinstance(found, Hold | Requeue) else None


# A job that waits for its launch is not executed yet; how soon after it its time begins to be kept.
EXECUTE_LOOK_S = 1.0


def measured_of(usage: Usage) -> Measured:
    """The most exact number there is; nothing where the kernel itself keeps the limit."""
    if usage.memory_limit_kb is not None:
        return Measured(None, usage.processes)
    known = (usage.pss_kb, usage.own_kb, usage.rss_kb)
    return Measured(next(each for each in known if each is not None), usage.processes)


def _filled_kb(path: Path) -> int:
    found = os.statvfs(path)
    return (found.f_blocks - found.f_bfree) * found.f_frsize // 1024


def oom_kills(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """How often the kernel has killed for want of memory: in our own cgroup where that says so, else on the node."""
    own = next((line[3:] for line in _lines(proc / "self/cgroup") if line.startswith("0::")), "")
    places = ((cgroups / own.lstrip("/") / "memory.events", "oom_kill"), (proc / "vmstat", "oom_kill"))
    for path, name in places:
        for line in _lines(path):
            word, _, number = line.partition(" ")
            if word == name and number.isdecimal():
                return int(number)
    return 0


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
