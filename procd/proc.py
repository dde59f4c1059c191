"""The one reader of /proc: cheap reads, bytes, no caches.

It reports what the kernel says about one process or about all of them; it knows nothing of families. A
process that ends while it is read is simply not there. Unreadable files (hidepid) look the same as missing
ones. A lack of descriptors or memory of our own says nothing about anybody: that is an OSError everywhere here.
"""

import errno
import os
import time
from collections.abc import Callable, Iterator

from procd.process import Process, ProcessId

PAGE_KB = os.sysconf("SC_PAGE_SIZE") // 1024
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
# One line of at most 52 numbers of 20 digits and a name of 64 bytes (proc(5)).
_STAT_BYTES = 2048
_CHILDREN_BYTES = 65_536
# More than a kernel takes at an exec by default; what a job has put behind that is not looked at.
_ENVIRONMENT_BYTES = 4 << 20
# proc hands out such files in pages of at least 4 KiB; a piece shorter than this was the last one
# (fs/seq_file.c).
_MORE_BYTES = 2048
# Taken for "not there", these would prove that a job has ended.
_OUR_LACK = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


class ProcReader:
    """Reads processes through a descriptor of /proc.

    Args:
        root: where proc is mounted; tests may give a directory of their own.
        children_files: whether the kernel has them (CONFIG_PROC_CHILDREN); None finds out.
    """

    def __init__(self, root: str = "/proc", *, children_files: bool | None = None) -> None:
        self._root = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        if children_files is None:
            children_files = os.path.exists(f"/proc/self/task/{os.getpid()}/children")
        self.children_files = children_files

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self._root)

    def read(self, pid: int) -> Process | None:
        """One process, or None when there is none that we may see."""
        try:
            fd = os.open(f"{pid}/stat", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._root)
        except OSError as error:
            raise_if_ours(error)
            return None
        try:
            line = os.read(fd, _STAT_BYTES)
            uid = os.fstat(fd).st_uid
        except OSError as error:  # ESRCH: it ended meanwhile
            raise_if_ours(error)
            return None
        finally:
            os.close(fd)
        return parse_stat(line, self._owner(pid) if uid == 0 else uid)

    def _owner(self, pid: int) -> int:
        """Files of a process that can't be dumped belong to root; its directory tells the truth (proc(5))."""
        try:
            return os.stat(str(pid), dir_fd=self._root).st_uid
        except OSError:
            return 0

    def ticks(self, pid: int) -> int | None:
        """The start tick of whatever has this number now."""
        process = self.read(pid)
        return None if process is None else process.id.start_ticks

    def lister(self) -> Callable[[Process], list[int]]:
        """A function that tells a process's children, to be used for one walk: where the kernel does not tell, it has
        read everybody, once."""
        if self.children_files:
            return self.children
        children: dict[int, list[int]] = {}
        for process in self.scan():
            children.setdefault(process.parent, []).append(process.id.pid)
        return lambda process: children.get(process.id.pid, [])

    def children(self, process: Process) -> list[int]:
        """The numbers of its children. May miss some while any of them ends, so it proves nothing
        (proc(5))."""
        pid = process.id.pid
        if process.threads == 1:
            return self._children_of_thread(f"{pid}/task/{pid}/children")
        return [child for path in self._threads(pid) for child in self._children_of_thread(path)]

    def _threads(self, pid: int) -> list[str]:
        try:
            fd = os.open(f"{pid}/task", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._root)
        except OSError as error:
            raise_if_ours(error)
            return []
        try:
            return [f"{pid}/task/{thread}/children" for thread in os.listdir(fd)]
        except OSError as error:
            raise_if_ours(error)
            return []
        finally:
            os.close(fd)

    def _children_of_thread(self, path: str) -> list[int]:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._root)
        except OSError as error:
            raise_if_ours(error)
            return []
        try:
            return [int(child) for child in _read_all(fd).split()]
        except OSError as error:
            raise_if_ours(error)
            return []
        finally:
            os.close(fd)

    def pids(self) -> list[int]:
        """All numbers that have a directory now."""
        return [int(name) for name in os.listdir(self._root) if name.isdecimal()]

    def scan(self) -> Iterator[Process]:
        """Every process that we may see, one after the other: about 10 us each, so do it beside an event
        loop."""
        for pid in self.pids():
            process = self.read(pid)
            if process is not None:
                yield process

    def alike(self, one: int, other: int) -> bool:
        """Whether two processes have the same command line, as after a fork; True when that can't be told."""
        lines = [self._command_line(pid) for pid in (one, other)]
        return None in lines or lines[0] == lines[1]

    def _command_line(self, pid: int) -> bytes | None:
        """Where its first thread has ended, any other one's: they share it."""
        threads = (path.removesuffix("children") for path in self._threads(pid))
        texts = (self._text(pid, f"{path.partition('/')[2]}cmdline", 4096) for path in threads)
        return self._text(pid, "cmdline", 4096) or next(filter(None, texts), None)

    def _text(self, pid: int, name: str, limit_bytes: int) -> bytes | None:
        """One of a process's files; None where it is not there or not for us."""
        try:
            fd = os.open(f"{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._root)
        except OSError:
            return None
        try:
            pieces, left = [], limit_bytes
            while left > 0 and (piece := os.read(fd, left)):
                pieces.append(piece)
                left -= len(piece)
            return b"".join(pieces)
        except OSError:
            return None
        finally:
            os.close(fd)

    def cookie(self, pid: int, name: bytes) -> str | None:
        """A variable of the environment that the process began with; None where there is none, or not for us."""
        text = b"\0" + (self._text(pid, "environ", _ENVIRONMENT_BYTES) or b"")
        at = text.find(b"\0" + name + b"=")
        if at < 0:
            return None
        value = text[at + len(name) + 2 :].partition(b"\0")[0]
        return value.decode("ascii", "replace")

    def io_kb(self, pid: int) -> tuple[int, int] | None:
        """What it and those that it waited for have read from and written to storage; None as `pss_kb`."""
        words = dict(line.split(b": ") for line in (self._text(pid, "io", 4096) or b"").splitlines())
        try:
            return int(words[b"read_bytes"]) >> 10, int(words[b"write_bytes"]) >> 10
        except KeyError:
            return None

    def pss_kb(self, pid: int) -> int | None:
        """Its share of memory; None where the kernel does not tell us (another uid's process)."""
        lines = (self._text(pid, "smaps_rollup", 4096) or b"").splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith(b"Pss:")), None)

    def memory_kb(self, pid: int) -> tuple[int, int]:
        """Resident memory of its own, and what it maps of files and shared memory (statm, for everybody to read)."""
        words = (self._text(pid, "statm", 256) or b"").split()
        if len(words) < 3:
            return 0, 0
        resident, shared = int(words[1]), int(words[2])
        return max(0, resident - shared) * PAGE_KB, shared * PAGE_KB


def ticks_now() -> int:
    """The start tick of a process that is made now."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * TICKS_PER_S)


def raise_if_ours(error: OSError) -> None:
    """Raise it again if it tells of our own lack of descriptors or memory, not of a process."""
    if error.errno in _OUR_LACK:
        raise error


def _read_all(fd: int) -> bytes:
    pieces = []
    while piece := os.read(fd, _CHILDREN_BYTES):
        pieces.append(piece)
        if len(piece) < _MORE_BYTES:
            break
    return b"".join(pieces)


def parse_stat(line: bytes, uid: int) -> Process | None:
    """A line of /proc/PID/stat; None when it is cut. The name may hold anything, so count from its last
    ')'."""
    close = line.rfind(b")")
    # Numbers of the fields as in proc(5), less 3: state is the first one after the name.
    fields = line[close + 2 :].split(None, 22)
    if close < 0 or len(fields) < 22:
        return None
    return Process(
        id=ProcessId(int(line[: line.index(b" ")]), int(fields[19])),
        parent=int(fields[1]),
        state=fields[0].decode("ascii", "replace"),
        uid=uid,
        threads=int(fields[17]),
        user_ticks=int(fields[11]),
        system_ticks=int(fields[12]),
        reaped_user_ticks=int(fields[13]),
        reaped_system_ticks=int(fields[14]),
        rss_kb=int(fields[21]) * PAGE_KB,
        image_kb=int(fields[20]) >> 10,
    )
