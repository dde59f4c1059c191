"""The place of a sandbox: directories of the pilot's in which the job's account makes exactly one of its own.

EXECUTE / dir_<random> / s / <random>: the first two belong to the pilot, the last to the job and is its
working directory. The middle one is open for a new entry (write and search for all, sticky) only between
`open_window` and `close_window`; names are unguessable, entries are compared by device and inode, and no link
is followed.

What this does not do: remove anything of the job's. That is done at the job's account (`starter.sandbox`).

The site's `mkgltempdir` works with a copy of this file, as root's installation made it, on the node's own
interpreter: standard library only, Python 3.6, nothing of ours imported.
"""

import errno
import json
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
STICKY = "s"
RECORD = "record.json"
# Others need write and search to make an entry, never read.
OPEN_MODE, CLOSED_MODE, PASSABLE_MODE = 0o1733, 0o711, 0o711


class Unsafe(Exception):
    """The file system is not as we left it, or never was as it must be; `path` says where."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{path}: {why}")
        self.path = path
        self.why = why


class Left(Exception):
    """Something could not be removed and stays; whoever cleans up later gets `path` and `why`."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path} is left: {why}")
        self.path = path
        self.why = why


class Place(NamedTuple):
    """`path` is the sandbox (it exists once stage-in said ready), `root` the pilot's directory around it."""

    path: Path
    root: Path
    device: int
    inode: int

    @property
    def sticky(self) -> Path:
        return self.root / STICKY

    @property
    def token(self) -> str:
        return self.path.name


class Made(NamedTuple):
    """What the far side says that it made."""

    device: int
    inode: int


def make_place(execute: Path) -> Place:
    """Make the pilot's directories for one sandbox below `execute`; nobody else can enter them yet.

    Raises Unsafe when `execute` could be changed under us by somebody else, OSError when the disk refuses.
    """
    base = os.path.realpath(execute)
    above = _open_trusted(base)
    try:
        name = "dir_" + secrets.token_hex(8)
        os.mkdir(name, 0o700, dir_fd=above)
        fd = os.open(name, DIRECTORY, dir_fd=above)
    finally:
        os.close(above)
    try:
        os.fchmod(fd, 0o700)  # whatever the umask
        os.mkdir(STICKY, 0o700, dir_fd=fd)
        found = os.fstat(fd)
        if found.st_uid != os.geteuid():
            raise Unsafe(name, "a directory just made is somebody else's")
    finally:
        os.close(fd)
    root = Path(base, name)
    return Place(root / STICKY / secrets.token_hex(16), root, found.st_dev, found.st_ino)


def open_window(place: Place) -> None:
    """From now on any account can enter and make an entry; call `close_window` as soon as the far side is
    ready."""
    root = _open_root(place)
    try:
        _set_sticky(root, OPEN_MODE)
        os.fchmod(root, PASSABLE_MODE)
    finally:
        os.close(root)


def close_window(place: Place) -> None:
    """No more entries from anybody but the pilot."""
    root = _open_root(place)
    try:
        _set_sticky(root, CLOSED_MODE)
    finally:
        os.close(root)


def _set_sticky(root: int, mode: int) -> None:
    sticky = os.open(STICKY, DIRECTORY, dir_fd=root)
    try:
        os.fchmod(sticky, mode)
    finally:
        os.close(sticky)


def check_made(place: Place, made: Made, uid: int) -> None:
    """After `close_window`: the one entry is the directory that the account `uid` says it made. Unsafe
    otherwise."""
    sticky = os.open(place.sticky, DIRECTORY)
    try:
        names = os.listdir(sticky)
        if names != [place.token]:
            raise Unsafe(str(place.sticky), f"{len(names)} entries instead of the sandbox alone")
        found = os.stat(place.token, dir_fd=sticky, follow_symlinks=False)
    finally:
        os.close(sticky)
    if not stat.S_ISDIR(found.st_mode):
        raise Unsafe(str(place.path), "not a directory")
    if found.st_uid != uid:
        raise Unsafe(str(place.path), f"belongs to uid {found.st_uid}, not to {uid}")
    if (found.st_dev, found.st_ino) != (made.device, made.inode):
        raise Unsafe(str(place.path), "not the directory that was made")


def owner_of(place: Place) -> int:
    """The uid that the sandbox belongs to. OSError when there is none."""
    return os.lstat(place.path).st_uid


def write_record(place: Place, content: "dict[str, Any]") -> None:
    """A note beside the sandbox for whoever cleans up after a crash; 0600."""
    root = _open_root(place)
    try:
        fd = os.open(RECORD, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=root)
        with open(fd, "w", encoding="ascii") as record:
            json.dump(content, record)
    finally:
        os.close(root)


def empty_place(place: Place) -> None:
    """Make the place as it was before a sandbox was made in it. The sandbox must be empty by now; another one may be
    made then. OSError, Unsafe when that cannot be done."""
    root = _open_root(place)
    try:
        _remove_entries(root)
    finally:
        os.close(root)


def remove_place(place: Place) -> None:
    """Remove the pilot's directories and the sandbox, which must be empty by now.

    A place that is gone already is fine. Left when something stays; nothing of the job's is removed or
    followed here.
    """
    try:
        root = _open_root(place)
    except FileNotFoundError:
        return
    except (OSError, Unsafe) as error:
        raise Left(place.root, str(error)) from error
    try:
        _remove_inside(root)
        os.rmdir(place.root)
    except OSError as error:
        why = "not empty" if error.errno == errno.ENOTEMPTY else error.strerror
        raise Left(place.path if os.path.lexists(place.path) else place.root, str(why)) from error
    finally:
        os.close(root)


def _remove_inside(root: int) -> None:
    _remove_entries(root)
    with suppress(FileNotFoundError):
        os.rmdir(STICKY, dir_fd=root)


def _remove_entries(root: int) -> None:
    with suppress(FileNotFoundError):
        sticky = os.open(STICKY, DIRECTORY, dir_fd=root)
        try:
            os.fchmod(sticky, CLOSED_MODE)
            for name in os.listdir(sticky):
                _remove_entry(name, sticky)
        finally:
            os.close(sticky)
    with suppress(FileNotFoundError):
        os.unlink(RECORD, dir_fd=root)


def _remove_entry(name: str, sticky: int) -> None:
    """The sandbox, or what somebody planted beside it while the window was open. The sticky directory is
    ours."""
    try:
        os.rmdir(name, dir_fd=sticky)
    except NotADirectoryError:
        os.unlink(name, dir_fd=sticky)


def _open_root(place: Place) -> int:
    fd = os.open(place.root, DIRECTORY)
    found = os.fstat(fd)
    if (found.st_dev, found.st_ino, found.st_uid) != (place.device, place.inode, os.geteuid()):
        os.close(fd)
        raise Unsafe(str(place.root), "not the directory that we made")
    return fd


def _open_trusted(base: str) -> int:
    """Open an absolute path without links, component by component; nobody but root and we may own or change
    one."""
    fd = os.open("/", DIRECTORY)
    try:
        walked = "/"
        for part in [""] + [part for part in base.split("/") if part]:
            if part:
                walked = os.path.join(walked, part)
                inner = os.open(part, _walking_flags(walked == base), dir_fd=fd)
                os.close(fd)
                fd = inner
            _check_trusted(walked, os.fstat(fd))
        return fd
    except BaseException:
        os.close(fd)
        raise


def _walking_flags(last: bool) -> int:
    """On the way down only the right to search is needed, and often all that there is."""
    return DIRECTORY if last else (DIRECTORY | os.O_PATH)


def _check_trusted(path: str, found: os.stat_result) -> None:
    if found.st_uid not in (0, os.geteuid()):
        raise Unsafe(path, f"belongs to uid {found.st_uid}, neither to root nor to us")
    if found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX and found.st_mode & 0o002:
        raise Unsafe(path, "writable by everybody, without the sticky bit")
