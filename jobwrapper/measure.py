"""measure: how much of the disk the sandbox takes.

Frame in: {"path": sandbox}. Frame out: {"kb": allocated blocks, "files": count, "whole": false when the time was over
or the tree too deep}. A file with several names counts once. Never follows a link, never leaves the file system.
"""

import os
import stat
from time import monotonic

from jobwrapper.frames import Gone, Line, to_bytes, trouble

# A million files on a slow disk; what is not seen by then is told as such.
LIMIT_S = 50.0
DEPTH = 256
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def main() -> int:
    line = Line()
    try:
        line.hello()
        wanted = line.receive()
        try:
            top = os.open(to_bytes(wanted["path"]), _DIRECTORY)
        except OSError as error:
            line.send({"failed": trouble("enter", error)})
            return 1
        blocks, files, whole = measure(top)
        line.send({"kb": blocks // 2, "files": files, "whole": whole})
        return 0
    except Gone:
        return 1


def measure(top: int, limit_s: float = LIMIT_S) -> "tuple[int, int, bool]":
    """Blocks of 512 bytes and entries below the directory `top` (a descriptor, closed here)."""
    end_s = monotonic() + limit_s
    found = os.fstat(top)
    device, blocks, files, whole = found.st_dev, found.st_blocks, 0, True
    seen = set()  # type: set[int]
    stack = [top]
    names = [_names(top)]
    shut = {}  # type: dict[int, int]
    while stack:
        if not names[-1] or monotonic() > end_s:
            whole = whole and not names[-1]
            _leave(stack.pop(), shut)
            names.pop()
            continue
        name = names[-1].pop()
        try:
            entry = os.stat(name, dir_fd=stack[-1], follow_symlinks=False)
        except FileNotFoundError:  # removed meanwhile
            continue
        except OSError:
            whole = False
            continue
        if entry.st_dev != device or entry.st_ino in seen:
            continue
        if entry.st_nlink > 1 and not stat.S_ISDIR(entry.st_mode):
            seen.add(entry.st_ino)
        files += 1
        blocks += entry.st_blocks
        if stat.S_ISDIR(entry.st_mode):
            whole = _enter(stack, names, shut, name, entry) and whole
    return blocks, files, whole


def _leave(fd: int, shut: "dict[int, int]") -> None:
    """Close a directory; one that was shut is so again."""
    mode = shut.pop(fd, None)
    try:
        if mode is not None:
            os.fchmod(fd, mode)
    except OSError:  # it is the job's own, and may be anything by now
        pass
    finally:
        os.close(fd)


def _enter(
    stack: "list[int]", names: "list[list[str]]", shut: "dict[int, int]", name: str, found: os.stat_result
) -> bool:
    """Go down one directory; false when it cannot be entered."""
    if len(stack) > DEPTH:
        return False
    try:
        if found.st_mode & 0o500 != 0o500 and found.st_uid == os.geteuid():
            fd = _open_shut(stack[-1], name)
            shut[fd] = stat.S_IMODE(found.st_mode)
        else:
            fd = os.open(name, _DIRECTORY, dir_fd=stack[-1])
    except OSError:
        return False
    stack.append(fd)
    names.append(_names(fd))
    return True


def _open_shut(above: int, name: str) -> int:
    """Open a directory that the job has shut to itself, and leave it open for as long as we are in it: nothing is to
    hide there. OSError when that is not possible."""
    path_fd = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
    try:
        through = "/proc/self/fd/%d" % path_fd
        os.chmod(through, stat.S_IMODE(os.fstat(path_fd).st_mode) | 0o500)
        return os.open(through, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        os.close(path_fd)


def _names(fd: int) -> "list[str]":
    try:
        return os.listdir(fd)
    except OSError:
        return []
