"""Reaping of what the job daemonised: a sub-reaper is given orphans, and somebody has to wait for them.

Never waits for a call of the switch: whoever started that waits for it (``pilot.calls.own_children``).
"""

from __future__ import annotations

import ctypes
import os
import signal

import trio

from pilot.calls import may_reap, own_children

# <sys/prctl.h>
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
# Opened once, before a spawner forks: opening it costs a starter 60 pages of its own.
_LIBC = ctypes.CDLL(None, use_errno=True)
# An orphan's zombie costs a slot in the process table until then, and nothing else.
LOOK_EVERY_S = 1.0


def become_subreaper() -> None:
    """Orphaned descendants of this process become its children, not pid 1's (prctl(2)).

    Raises:
        OSError: the kernel refused.
    """
    _prctl("PR_SET_CHILD_SUBREAPER", _PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(wanted: bool) -> None:
    """Whether the kernel kills this process when its parent ends (prctl(2)); of one that has ended nothing tells.

    Raises:
        OSError: the kernel refused.
    """
    _prctl("PR_SET_PDEATHSIG", _PR_SET_PDEATHSIG, signal.SIGKILL if wanted else 0)


def _prctl(name: str, option: int, value: int) -> None:
    if _LIBC.prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({name}): {os.strerror(number)}")


async def reap_orphans() -> None:
    """Until cancelled: wait for children that ended and that are no call of ours under way."""
    while True:
        await trio.sleep(LOOK_EVERY_S)
        for pid in set(_children()) - own_children() if may_reap() else ():
            _reap(pid)


def strangers() -> set[int]:
    """Our children that are no call of ours: orphans of the job. Those that have ended are waited for, and left out."""
    found = set()
    for pid in set(_children()) - own_children():
        if not _reap(pid):
            found.add(pid)
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


def _reap(pid: int) -> bool:
    """Whether it has ended; it is waited for then."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True
