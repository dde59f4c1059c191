"""The payload's processes: everything below this process, which is their sub-reaper.

Finds them by the kernel's children files (cheap; complete for stopped processes) and by a scan of
all parents where these show nobody. Signals a process only while it is the one that was found.
"""

import os
import time

from glexec import signals

TYPE_CHECKING = False  # the typing module costs milliseconds
if TYPE_CHECKING:
    from collections.abc import Callable

_DEAD = "ZXx"
_STOP_S = 1.0  # then what was found is killed, and stopping goes on with the rest
_PAUSE_S = (0.0005, 0.02)  # between looks while processes die: first and largest


class Process:
    """One look at one process."""

    def __init__(self, pid: int, parent: int, state: str, ticks: int, threads: int) -> None:
        self.pid = pid
        self.parent = parent
        self.ticks = ticks
        # A first thread that has ended while others run on looks like a zombie, and is none.
        self.dead = state in _DEAD and threads <= 1


def look(pid: int) -> "Process | None":
    """The process now; None if it is gone."""
    try:
        with open("/proc/%d/stat" % pid, "rb") as file:
            data = file.read()
    except OSError:
        return None
    fields = data[data.rindex(b")") + 2 :].split()
    return Process(pid, int(fields[1]), fields[0].decode(), int(fields[19]), int(fields[17]))


def _children(pid: int) -> "list[int]":
    found = []  # type: list[int]
    try:
        for task in os.listdir("/proc/%d/task" % pid):
            with open("/proc/%d/task/%s/children" % (pid, task), "rb") as file:
                found += [int(item) for item in file.read().split()]
    except OSError:
        pass  # gone meanwhile; its children are somebody else's now, and found there
    return found


def below(root: int) -> "dict[int, Process]":
    """Living and dead descendants by the children files."""
    found = {}  # type: dict[int, Process]
    waiting = _children(root)
    while waiting:
        pid = waiting.pop()
        process = None if pid in found else look(pid)
        if process is not None:
            found[pid] = process
            waiting += _children(pid)
    return found


def below_by_scan(root: int) -> "dict[int, Process]":
    """The same by a scan of all processes: much slower (15 us each), whatever the kernel offers."""
    everyone = {}  # type: dict[int, Process]
    for name in os.listdir("/proc"):
        process = look(int(name)) if name.isdigit() else None
        if process is not None:
            everyone[process.pid] = process
    by_parent = {}  # type: dict[int, list[Process]]
    for process in everyone.values():
        by_parent.setdefault(process.parent, []).append(process)
    found, waiting = {}, [root]
    while waiting:
        for process in by_parent.pop(waiting.pop(), ()):
            found[process.pid] = process
            waiting.append(process.pid)
    return found


def send(process: Process, number: int) -> bool:
    """Signal this very process, not a later one with its number. True if it was there."""
    opener = getattr(os, "pidfd_open", None)  # Python 3.9, Linux 5.3
    handle = -1
    try:
        if opener is not None:
            try:
                handle = opener(process.pid)
            except OSError:
                opener = None
        now = look(process.pid)
        if now is None or now.ticks != process.ticks:
            return False
        if opener is None:
            os.kill(process.pid, number)
        else:
            signals.pidfd_send_signal(handle, number)
        return True
    except ProcessLookupError:
        return False
    finally:
        if handle >= 0:
            os.close(handle)


def alive(processes: "dict[int, Process]") -> "list[Process]":
    """Those that can still run or hold anything: no zombies."""
    return [process for process in processes.values() if not process.dead]


def stop(root: int, deadline_s: float) -> int:
    """SIGSTOP all, again and again until none is new. How many.

    Each is stopped before its children are asked for: then these cannot change any more. What forks and ends at once
    is the root's own child by then, if an orphan: that list is read again and again.
    """
    until_s = time.monotonic() + deadline_s
    seen = {}  # type: dict[tuple[int, int], bool]
    while _stop_below(root, seen) and time.monotonic() < until_s:
        continue
    return len(seen)


def _stop_below(root: int, seen: "dict[tuple[int, int], bool]") -> bool:
    """One way down. True if anybody is new, or was listed and has gone already."""
    moved = False
    met = set()  # type: set[int]
    waiting = _children(root)
    while waiting:
        pid = waiting.pop()
        if pid in met:
            continue
        met.add(pid)
        process = look(pid)
        if process is None:
            moved = True
            continue
        if (pid, process.ticks) not in seen:
            moved = True
            seen[pid, process.ticks] = not process.dead and send(process, signals.SIGSTOP)
        waiting += _children(pid)
    return moved


def signal_all(root: int, number: int) -> int:
    """One signal to each that is found now. How many are there."""
    found = alive(below(root))
    for process in found:
        send(process, number)
    return len(found)


def kill(root: int, reap: "Callable[[], bool]", deadline_s: float) -> int:
    """Stop, look again, kill, until none is left or the deadline. How many are left.

    `reap` collects the dead and is true when the kernel says that this process has no child: every
    descendant hangs below a child of its sub-reaper, so that is the proof that none is left.
    """
    until_s = time.monotonic() + deadline_s
    pause_s = _PAUSE_S[0]
    while not reap():
        stop(root, min(_STOP_S, max(0.0, until_s - time.monotonic())))
        if not signal_all(root, signals.SIGKILL):
            for process in alive(below_by_scan(root)):  # whom the children files did not show
                send(process, signals.SIGKILL)
        if time.monotonic() >= until_s:
            return 0 if reap() else len(alive(below_by_scan(root)))
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _PAUSE_S[1])
    return 0
