"""What a job may use, and what follows when it uses more. Pure: measurements and times in, a verdict out.

Memory is the slot's: where the job has a cgroup with the memory controller the kernel holds it to that, elsewhere it is
looked at every few seconds; what its processes map in common counts about once, what forks left in common for each.
Disk is the slot's, measured at the job's account. Processes are bounded for the node's sake, by a knob. Wall clock is
the job's own wish: its shadow keeps it, and a job that it leaves alone (it may be out of reach) is held here, later.

Not by RLIMIT_NPROC under one account: the kernel counts that per account, so that one job of a user's could keep
another one of the same user's, in another slot, from forking. Where each job has an account of its own it is used.
"""

from __future__ import annotations

import attrs

from cedar.commands import HoldCode, HoldSubcode
from starter.events import LimitExceeded
from starter.verdict import Hold, Requeue

# Threads count where the kernel bounds tasks; a job of that many processes may have this many tasks for each.
TASKS_PER_PROCESS = 4
# A job above this part of a limit, or growing towards it, is looked at more often.
NEAR = 0.5
NEAR_FACTOR, CLOSE_FACTOR = 4, 16
LEAST_PAUSE_S = 0.25
# Beyond the shadow's own interval: for its word to come, and clocks of whole seconds.
SHADOW_MARGIN_S = 5.0
# The walk through a sandbox costs a call of the switch: it is made when the file system's own numbers say that the job
# could have used up a quarter of what it had left, and anyway after so many intervals.
DISK_SHARE, DISK_RARELY = 0.25, 12
# Measured a moment before the kernel struck, a job that had come so far is taken for the one that went over.
OOM_SHARE = 0.9


@attrs.frozen
class Bounds:
    """Of one job in its slot; None: not policed. ``shadow_s``: how long after its times the shadow is waited for."""

    memory_kb: int | None = None
    disk_kb: int | None = None
    processes: int | None = None
    job_s: float | None = None
    execute_s: float | None = None
    shadow_s: float = 0.0

    @property
    def tasks(self) -> int | None:
        """For the kernel's own bounds."""
        return None if self.processes is None else self.processes * TASKS_PER_PROCESS


@attrs.frozen
class Measured:
    """What a job uses now. ``memory_kb`` is None where the kernel holds it to its limit by itself."""

    memory_kb: int | None
    processes: int


@attrs.frozen
class Named:
    """What reasons name."""

    job_id: str
    slot: str
    memory_mb: int
    disk_kb: int


def bounds_of(
    *, memory_mb: int, memory_percent: int, disk_kb: int, disk_percent: int, processes: int, job_s: float | None,
    execute_s: float | None, shadow_interval_s: float,
) -> Bounds:  # fmt: skip
    """From the slot, the knobs and the job's ad; 0 switches a knob's limit off."""
    return Bounds(
        memory_kb=memory_mb * 1024 * memory_percent // 100 or None,
        disk_kb=disk_kb * disk_percent // 100 or None,
        processes=processes or None,
        job_s=job_s,
        execute_s=execute_s,
        shadow_s=shadow_interval_s + SHADOW_MARGIN_S,
    )


def exceeded(bounds: Bounds, measured: Measured, named: Named) -> LimitExceeded | None:
    """Whether the job must end for what it uses of the node."""
    if bounds.memory_kb is not None and measured.memory_kb is not None and measured.memory_kb > bounds.memory_kb:
        return _out_of_memory(named, f"used {_mb(measured.memory_kb)} MB of memory")
    if bounds.processes is not None and measured.processes > bounds.processes:
        text = (
            f"Job {named.job_id} had {measured.processes} processes on {named.slot}; {bounds.processes} are allowed"
            " there (SAILPLANE_MAX_PROCESSES). Let it start fewer, or ask the pool's operator, and release it."
        )
        return LimitExceeded(Hold(HoldCode.JOB_OUT_OF_RESOURCES, TOO_MANY_PROCESSES, text), soft=False)
    return None


# Not one of HTCondor's own subcodes (102 memory, 104 disk), and beside them.
TOO_MANY_PROCESSES = 105


def disk_exceeded(bounds: Bounds, used_kb: int, named: Named) -> LimitExceeded | None:
    """The same for its sandbox."""
    if bounds.disk_kb is None or used_kb <= bounds.disk_kb:
        return None
    text = (
        f"Job {named.job_id} used {_mb(used_kb)} MB of disk in its sandbox on {named.slot}; its slot has"
        f" {_mb(named.disk_kb)} MB. Ask for more (request_disk = {used_kb * 5 // 4}, in KB) and release it."
    )
    return LimitExceeded(Hold(HoldCode.JOB_OUT_OF_RESOURCES, HoldSubcode.OUT_OF_DISK, text), soft=False)


def time_up(bounds: Bounds, named: Named, *, job_s: float, execute_s: float | None) -> LimitExceeded | None:
    """``job_s``: since the activation began. ``execute_s``: since the job, or its last leg, began to run."""
    late_s = bounds.shadow_s
    if bounds.job_s is not None and job_s >= bounds.job_s + late_s:
        what, code, words = "allowed_job_duration", HoldCode.JOB_DURATION_EXCEEDED, "with its input transfer"
        allowed_s, took_s = bounds.job_s, job_s
    elif bounds.execute_s is not None and execute_s is not None and execute_s >= bounds.execute_s + late_s:
        what, code, words = "allowed_execute_duration", HoldCode.JOB_EXECUTE_EXCEEDED, "without its input transfer"
        allowed_s, took_s = bounds.execute_s, execute_s
    else:
        return None
    text = (
        f"Job {named.job_id} took {took_s:.0f} s on {named.slot} ({words}); its {what} is {allowed_s:.0f} s. Allow it"
        " more and release it, or submit it in smaller parts."
    )
    return LimitExceeded(Hold(code, 0, text), soft=True)


def time_left_s(bounds: Bounds, *, job_s: float, execute_s: float | None) -> float | None:
    """Until the next of its times is up; None: never."""
    left = [bounds.job_s - job_s] if bounds.job_s is not None else []
    if bounds.execute_s is not None and execute_s is not None:
        left.append(bounds.execute_s - execute_s)
    return max(0.0, min(left) + bounds.shadow_s) if left else None


def pause_s(bounds: Bounds, measured: Measured, before: Measured, interval_s: float) -> float:
    """Until the next look: the interval, or less where the limit is near or would be reached within one."""
    share = max(_share(bounds, measured), _share(bounds, _projected(measured, before)))
    factor = CLOSE_FACTOR if share >= 1 else NEAR_FACTOR if share >= NEAR else 1
    return max(interval_s / factor, min(LEAST_PAUSE_S, interval_s))


def _projected(now: Measured, before: Measured) -> Measured:
    """After as much growth again as since the last look."""
    memory_kb = None if now.memory_kb is None else 2 * now.memory_kb - (before.memory_kb or 0)
    return Measured(memory_kb, 2 * now.processes - before.processes)


def _share(bounds: Bounds, measured: Measured) -> float:
    pairs = ((measured.memory_kb, bounds.memory_kb), (measured.processes, bounds.processes))
    return max((used / most for used, most in pairs if used is not None and most), default=0.0)


def disk_due(*, since_s: float, interval_s: float, grown_kb: int, left_kb: int) -> bool:
    """Whether the sandbox is to be measured. ``grown_kb``: of the whole file system since the last time; ``left_kb``:
    what the job had left then."""
    if since_s < interval_s:
        return False
    return grown_kb >= left_kb * DISK_SHARE or since_s >= interval_s * DISK_RARELY


@attrs.frozen
class OomSigns:
    """What is known about a job whose first process was killed by a SIGKILL that was not ours.

    ``own_kills``: kills for want of memory in the job's own cgroup, None without one; ``other_kills``: in the pilot's
    group, or else on the node, while the job ran; ``peak_kb``: the most that was seen of it.
    """

    own_kills: int | None
    other_kills: int
    peak_kb: int


def oom_verdict(signs: OomSigns, bounds: Bounds, named: Named) -> Hold | Requeue | None:
    """Whose fault it was. None: nothing says that memory had run out, so the signal is the job's own affair."""
    limit_kb = bounds.memory_kb or named.memory_mb * 1024
    if signs.own_kills or (signs.own_kills is None and signs.other_kills and signs.peak_kb >= limit_kb * OOM_SHARE):
        words = f"was killed by the kernel for want of memory, having used {_mb(signs.peak_kb)} MB"
        return _out_of_memory(named, words).hold
    if signs.other_kills:
        text = (
            f"the kernel of {named.slot} killed job {named.job_id} for want of memory, though it had used only"
            f" {_mb(signs.peak_kb)} of its {named.memory_mb} MB"
        )
        return Requeue(HoldCode.JOB_OUT_OF_RESOURCES, text)
    return None


def _out_of_memory(named: Named, words: str) -> LimitExceeded:
    text = (
        f"Job {named.job_id} {words} on {named.slot}; its slot has {named.memory_mb} MB. Ask for more (request_memory)"
        " and release it."
    )
    return LimitExceeded(Hold(HoldCode.JOB_OUT_OF_RESOURCES, HoldSubcode.OUT_OF_MEMORY, text), soft=False)


def _mb(kb: int) -> int:
    return -(-kb // 1024)
