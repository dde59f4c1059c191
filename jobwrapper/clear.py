"""Empty the sandbox, whatever the job has left in it.

Never follows a link, never leaves the file system, needs no recursion: directories found below the top are
moved to the top first, so that a tree of any depth costs two descriptors and no stack. What cannot be removed
(somebody else's files in a directory that the job opened to all, a mount) is counted and named, not fought.
"""

import os
import stat
from time import monotonic

# Long enough for a million files on a slow disk, short of the pilot's own deadline.
LIMIT_S = 240.0
# How many leftovers are named; the rest is counted.
NAMED = 20
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Leftovers:
    """What could not be removed."""

    def __init__(self) -> None:
        self.count = 0
        self.named = []  # type: list[tuple[bytes, str]]
        self.at_top = set()  # type: set[bytes]

    def add(self, name: bytes, error: OSError) -> None:
        self.count += 1
        if len(self.named) < NAMED:
            self.named.append((name, error.strerror or str(error)))


def clear(top: int, limit_s: float = LIMIT_S) -> Leftovers:
    """Empty the directory `top` (a descriptor); stops after `limit_s` seconds with what is left."""
    end_s = monotonic() + limit_s
    left = Leftovers()
    device = os.fstat(top).st_dev
    _open_up(top)
    while True:
        names = [name for name in _names(top) if name not in left.at_top]
        if not names:
            return left
        for name in names:
            if monotonic() > end_s:
                left.add(name, TimeoutError(110, "out of time"))
                return left
            _remove(top, name, device, left)


def _remove(top: int, name: bytes, device: int, left: Leftovers) -> None:
    try:
        found = os.stat(name, dir_fd=top, follow_symlinks=False)
        if stat.S_ISDIR(found.st_mode):
            _remove_directory(top, name, found, device, left)
        else:
            os.unlink(name, dir_fd=top)
    except FileNotFoundError:
        pass
    except OSError as error:
        left.add(name, error)
        left.at_top.add(name)


def _remove_directory(top: int, name: bytes, found: os.stat_result, device: int, left: Leftovers) -> None:
    try:
        os.rmdir(name, dir_fd=top)
        return
    except OSError:
        pass
    if found.st_dev != device:
        raise OSError(18, "another file system")
    fd = _open(top, name, found)
    try:
        before = left.count
        for inner in _names(fd):
            _pull_up(top, fd, inner, left)
    finally:
        os.close(fd)
    if left.count == before:
        os.rmdir(name, dir_fd=top)
    else:
        left.at_top.add(name)


def _pull_up(top: int, fd: int, inner: bytes, left: Leftovers) -> None:
    """Remove a file or an empty directory; move any other directory to the top, where its turn comes."""
    try:
        found = os.stat(inner, dir_fd=fd, follow_symlinks=False)
        if not stat.S_ISDIR(found.st_mode):
            os.unlink(inner, dir_fd=fd)
            return
        try:
            os.rmdir(inner, dir_fd=fd)
            return
        except OSError:
            pass
        os.close(_open(fd, inner, found))  # moving a directory needs the right to write to it
        os.rename(inner, _fresh(top), src_dir_fd=fd, dst_dir_fd=top)
    except FileNotFoundError:
        pass
    except OSError as error:
        left.add(inner, error)


def _open(above: int, name: bytes, found: os.stat_result) -> int:
    """Open a directory for emptying; the job may have taken its own rights away."""
    if found.st_mode & 0o700 != 0o700 and found.st_uid == os.geteuid():
        # Opened without rights and changed through the descriptor, so that no link is followed.
        path_fd = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
        try:
            os.chmod("/proc/self/fd/%d" % path_fd, 0o700)
        finally:
            os.close(path_fd)
    return os.open(name, DIRECTORY, dir_fd=above)


def _open_up(top: int) -> None:
    if os.fstat(top).st_uid == os.geteuid():
        os.fchmod(top, 0o700)


def _names(fd: int) -> "list[bytes]":
    return [os.fsencode(name) for name in os.listdir(fd)]


def _fresh(top: int) -> bytes:
    while True:
        name = b".moved-" + os.urandom(8).hex().encode("ascii")
        try:
            os.stat(name, dir_fd=top, follow_symlinks=False)
        except FileNotFoundError:
            return name
