"""Processes as /proc shows them, and signals that reach the one that is meant.

A process is (pid, start tick). What this module reads it reads as the job's account: who is hidden from that (hidepid)
looks as if it had ended, unless `is_hidden` is asked. Who belongs to a family is decided in `send_signals`.
"""

import os

# As typing.TYPE_CHECKING, which costs an import; so does the front of _signal.
TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable
else:
    import _signal

DEAD = b"ZXx"
STOPPED = b"Tt"
HANGING = b"D"
# Links of a directory, and one for each thread.
ONE_THREAD = 3
# Who starts while /proc is read is listed by the next reading; on a machine that is never quiet a few may be missed.
READINGS = 5
# What became of one signal.
GONE, SENT, REFUSED = range(3)


class Process:
    """One line of /proc/PID/stat."""

    __slots__ = ("dead", "parent", "state", "tick")

    def __init__(self, stat: bytes) -> None:
        words = stat[stat.rindex(b")") + 2 :].split(None, 20)
        self.state = words[0]
        self.parent = int(words[1])
        self.tick = int(words[19])
        # A leader that has ended while other threads run on looks like a zombie, and is none.
        self.dead = self.state in DEAD and int(words[17]) <= 1


def read_process(pid: int) -> "Process | None":
    try:
        fd = os.open("/proc/%d/stat" % pid, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return Process(os.read(fd, 4096))
    except (OSError, ValueError, IndexError):
        return None
    finally:
        os.close(fd)


def is_held(pid: int, process: Process) -> bool:
    """Whether a process is stopped, or will be before it does anything: it hangs in the kernel, where a vfork(2) waits
    for its child for as long as that is stopped, and has the signal pending (proc(5), ShdPnd).
    """
    if process.state != HANGING:
        return process.state in STOPPED
    try:
        fd = os.open("/proc/%d/status" % pid, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        for line in os.read(fd, 8192).splitlines():
            if line.startswith(b"ShdPnd:"):
                return bool(int(line.split()[1], 16) >> (_signal.SIGSTOP - 1) & 1)
    except (OSError, ValueError, IndexError):
        pass
    finally:
        os.close(fd)
    return False


def read_all() -> "dict[int, Process]":
    """Everybody; and who came while these were read, until nobody new is listed."""
    found = {}  # type: dict[int, Process]
    listed = set()  # type: set[int]
    for _ in range(READINGS):
        new = [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) not in listed]
        if not new:
            break
        for pid in new:
            process = read_process(pid)
            if process is not None:
                found[pid] = process
        listed.update(new)
    return found


def is_hidden(pid: int) -> bool:
    """Whether there is a process of another account with this number; for one that /proc does not show us (hidepid).

    The pilot's sub-reaper is one: its children still say whose they are.
    """
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        pass
    return False


def read_children(pid: int) -> "list[int]":
    """By the kernel's lists, one a thread; complete if the process is stopped. Not all kernels have them."""
    found = []  # type: list[int]
    try:
        for thread in _threads(pid):
            fd = os.open("/proc/%d/task/%d/children" % (pid, thread), os.O_RDONLY | os.O_CLOEXEC)
            try:
                found.extend(map(int, _read_to_end(fd).split()))
            finally:
                os.close(fd)
    except OSError:
        pass  # it has ended, or there are no such lists: the look at everybody finds its children
    return found


def _threads(pid: int) -> "list[int]":
    """The directory's links tell how many there are (fs/proc/base.c), which is cheaper to ask for than their names."""
    path = "/proc/%d/task" % pid
    return [pid] if os.stat(path).st_nlink == ONE_THREAD else [int(name) for name in os.listdir(path)]


def _read_to_end(fd: int) -> bytes:
    data = b""
    while True:
        piece = os.read(fd, 65536)
        data += piece
        if not piece:
            return data


def ourselves() -> "set[int]":
    """This process and those that started it."""
    mine = set()  # type: set[int]
    pid = os.getpid()
    while pid and pid not in mine:
        mine.add(pid)
        process = read_process(pid)
        pid = process.parent if process is not None else 0
    return mine


def aim(
    pid: int, is_it: "Callable[[Process], bool]", number: int, *, keep: bool = False
) -> "tuple[Process | None, int, int]":
    """Signal a process (0: nobody) if it is the right one, and nobody else.

    By a descriptor of the process where the kernel has them, so that the number cannot be reused in between. Gives the
    process, or None; what became of the signal; with `keep` the descriptor, else -1.
    """
    fd = -1
    try:
        if hasattr(os, "pidfd_open"):
            fd = os.pidfd_open(pid)
        process = read_process(pid)
        if process is None or not is_it(process):
            return None, GONE, -1
        outcome = shoot(fd, pid, number)
        kept, fd = (fd, -1) if keep else (-1, fd)
        return process, outcome, kept
    except OSError:
        return None, GONE, -1
    finally:
        if fd >= 0:
            os.close(fd)


def shoot(fd: int, pid: int, number: int) -> int:
    if number == 0:
        return GONE
    try:
        if fd >= 0:
            _signal.pidfd_send_signal(fd, number)
        else:
            os.kill(pid, number)
        return SENT
    except PermissionError:
        return REFUSED
    except OSError:
        return GONE
