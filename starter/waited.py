"""What the kernel has counted for a job that has ended, and for all of it that somebody has waited for.

procd looks at the living. What one of them used after the last look is told by whoever waited for it, who may be gone
before the next one, as a part of the switch is whose job has ended. Whoever waited last knows it all.
"""

from __future__ import annotations

import os
from pathlib import Path

import attrs

from pilot.calls import Cpu
from procd.messages import Usage

# More than any switch puts between us and the job.
_MOST_PARTS = 16
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def of_switch(job: int, call: int) -> Cpu | None:
    """What stands between the job's first process and us has used so far, from the process of the call down: the job's
    own is then the rest. None where the host does not show it. Each number is rounded up: rather too little is left
    for the job than another's time."""
    total = Cpu(0.0, 0.0)
    at = job
    for _ in range(_MOST_PARTS):
        if at == call:
            return total
        try:
            at = int(_fields(at)[1])
            fields = _fields(at)
        except OSError:
            return None
        user, system, waited_user, waited_system = (_up(int(word)) for word in fields[11:15])
        total = Cpu(total.user_s + (user + waited_user) * _TICK_S, total.system_s + (system + waited_system) * _TICK_S)
    return None


def _up(ticks: int) -> int:
    """The kernel has rounded down. Nothing at all stays nothing: a part of a tick is within what the next one has."""
    return ticks + 1 if ticks else 0


def _fields(pid: int) -> list[bytes]:
    """Of /proc/PID/stat, from the state on (proc_pid_stat(5))."""
    return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()


def less(whole: Cpu | None, part: Cpu | None) -> Cpu | None:
    """What is left of a whole; None where one of both is not known."""
    if whole is None or part is None:
        return None
    return Cpu(max(0.0, whole.user_s - part.user_s), max(0.0, whole.system_s - part.system_s))


def at_least(usage: Usage, cpu: Cpu | None) -> Usage:
    """Both are what the job has used at the least: procd's number has those for whom nobody waited, the kernel's has
    the last moments of the others. Nobody is counted twice, since the larger one is taken and not the sum."""
    if cpu is None:
        return usage
    return attrs.evolve(usage, user_s=max(usage.user_s, cpu.user_s), system_s=max(usage.system_s, cpu.system_s))
