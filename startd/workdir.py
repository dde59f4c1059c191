"""The way to the work directory: jobs at other accounts must be able to pass through its parents.

Adds search permission for others (o+x, never o+r) only on directories that we own, under a lock with one marker file
per pilot beside, so that pilots sharing a parent restore it only when the last of them leaves.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from starter.private import own_identity, ticks_of

# Beside the directory's own entries; only its owner could have opened the directory, so only he can place it.
_RECORD = ".sailplane-opened"


class Unreachable(Exception):
    """A parent that we do not own keeps other accounts out; the text names it."""


@attrs.define
class Opened:
    """Directories that this process opened; ``close`` restores those that nobody else needs."""

    directories: list[Path]

    def close(self) -> None:
        """Restore modes; a directory that is gone, or that another pilot still needs, is left alone."""
        for directory in reversed(self.directories):
            try:
                with _locked(directory) as record:
                    _leave(directory, record)
            except OSError:
                continue  # taken away by its owner meanwhile: nothing to restore
        self.directories.clear()


def open_way(target: Path) -> Opened:
    """Make every parent of ``target``, and itself, searchable by others.

    Raises:
        Unreachable: a parent is closed to others and not ours; everything done so far is undone.
    """
    opened = Opened([])
    target = target.resolve(strict=True)
    for directory in (*reversed(target.parents), target):
        mode = stat.S_IMODE(directory.stat().st_mode)
        if mode & stat.S_IXOTH and not (directory / _RECORD).exists():
            continue
        if directory.stat().st_uid != os.geteuid():
            if mode & stat.S_IXOTH:
                continue
            opened.close()
            raise Unreachable(
                f"{directory} (mode {mode:04o}) is closed to other accounts and belongs to another owner:"
                f" jobs cannot reach {target}. Set EXECUTE to a directory whose parents others may search (o+x)."
            )
        with _locked(directory) as record:
            _enter(directory, record)
        opened.directories.append(directory)
    return opened


@contextmanager
def _locked(directory: Path) -> Iterator[int]:
    """The record file of a directory, locked. Another pilot may have removed it while we waited: then a new one."""
    path = directory / _RECORD
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
        if _is_at(fd, path):
            break
        os.close(fd)
    try:
        yield fd
    finally:
        os.close(fd)


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def _read(record: int) -> dict[str, int]:
    text = os.pread(record, 1 << 16, 0)
    if not text:
        return {}
    return {str(k): int(v) for k, v in json.loads(text).items()}


def _write(record: int, content: dict[str, int]) -> None:
    os.ftruncate(record, 0)
    os.pwrite(record, json.dumps(content).encode(), 0)


def _mine() -> str:
    """A process by number and start tick: a number alone may be another's by now."""
    return "{}-{}".format(*own_identity())


def _alive(process: str) -> bool:
    pid, _, ticks = process.partition("-")
    return pid.isdigit() and ticks.isdigit() and ticks_of(int(pid)) == int(ticks)


def _enter(directory: Path, record: int) -> None:
    content = _read(record)
    mode = stat.S_IMODE(directory.stat().st_mode)
    users = {pid: v for pid, v in content.items() if pid != "mode" and _alive(pid)}
    _write(record, {"mode": content.get("mode", mode), **users, _mine(): 1})
    os.chmod(directory, mode | stat.S_IXOTH)


def _leave(directory: Path, record: int) -> None:
    content = _read(record)
    users = {pid: v for pid, v in content.items() if pid not in ("mode", _mine()) and _alive(pid)}
    if users:
        _write(record, {"mode": content["mode"], **users})
        return
    if "mode" in content:
        os.chmod(directory, content["mode"])
    os.unlink(directory / _RECORD)
