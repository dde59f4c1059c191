"""Reaping of what the job daemonised: a sub-reaper is given orphans, and somebody has to wait for them.

Never waits for a process of trio's: those end and are waited for at once, an orphan's zombie stays.
"""

from __future__ import annotations

import ctypes
import os

import trio

_PR_SET_CHILD_SUBREAPER = 36
# A child that trio waits for is reaped within milliseconds of its death; a zombie that two looks this far apart both saw
# is nobody's but ours.
LOOK_EVERY_S = 1.0


def become_subreaper() -> None:
    """Orphaned descendants of this process become its children, not pid 1's (prctl(2)).

    Raises:
        OSError: the kernel refused.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_CHILD_SUBREAPER): {os.strerror(number)}")


async def reap_orphans() -> None:
    """Until cancelled: wait for children that stayed zombies between two looks."""
    before: set[int] = set()
    while True:
        await trio.sleep(LOOK_EVERY_S)
        now = set(zombie_children())
        for pid in before & now:
            _reap(pid)
        before = now


def zombie_children() -> list[int]:
    """Pids of children that have ended and were not waited for."""
    found = []
    for pid in _children():
        try:
            state = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            continue
        if state is not None:
            found.append(pid)
    return found


def _children() -> list[int]:
    pids: list[int] = []
    for thread in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{thread}/children", "rb") as listing:
                pids.extend(int(word) for word in listing.read().split())
        except FileNotFoundError:
            continue
    return pids


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return
