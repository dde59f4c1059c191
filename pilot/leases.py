"""Which sub-uid of this account belongs to which job on this host: one file a lease, in one directory a host.

All pilots of the account share the directory, so that no two of them give away the same sub-uid. A lease is a file
named by the sub-uid; it says where the job's sandbox is, and whoever uses it holds a shared lock on it (the kernel
gives that back, whatever dies). It is free again when nobody holds the lock and the sandbox is gone: so a sandbox
that a crash left keeps its sub-uid until it has been removed, and nothing leaks.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pwd
import secrets
import stat
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

from attrs import frozen

# Of a lease: the path of a sandbox, and two numbers.
_LEASE_BYTES = 16384
_TABLE = "table"
# Of a lease that cannot be read: no gid, and nobody's path.
_BROKEN = (-1, "")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class LeaseFault(Exception):
    """No lease can be given; the text says why, `passing` whether it may work later."""

    def __init__(self, text: str, *, passing: bool) -> None:
        super().__init__(text)
        self.passing = passing


class TableBusy(Exception):
    """Another process of the account is at the table at this moment."""


@frozen
class Lease:
    """A sub-uid and its sub-gid; `fd` holds the lock, and belongs to who got it."""

    uid: int
    gid: int
    fd: int


@frozen
class Ranges:
    """Sub-ids of an account: (first, count) each, as subuid(5) has them."""

    uids: tuple[tuple[int, int], ...]
    gids: tuple[tuple[int, int], ...]

    @property
    def count(self) -> int:
        """How many pairs of a sub-uid and a sub-gid there are."""
        return min(sum(count for _, count in self.uids), sum(count for _, count in self.gids))

    def pair(self, number: int) -> tuple[int, int]:
        return _nth(self.uids, number), _nth(self.gids, number)


def _nth(ranges: Sequence[tuple[int, int]], number: int) -> int:
    for first, count in ranges:
        if number < count:
            return first + number
        number -= count
    raise IndexError(number)


def parse_ranges(text: str, names: Sequence[str], own: int) -> tuple[tuple[int, int], ...]:
    """The lines of subuid(5) for an account (its name, its uid); none that has root's id or `own` in it."""
    found = []
    for line in text.splitlines():
        name, _, numbers = line.partition(":")
        first, _, count = numbers.partition(":")
        if name in names and first.isdigit() and count.isdigit():
            span = int(first), int(count)
            if span[1] > 0 and 0 < span[0] < 2**32 - span[1] and not span[0] <= own < sum(span):
                found.append(span)
    return tuple(found)


def read_ranges(subuid: Path = Path("/etc/subuid"), subgid: Path = Path("/etc/subgid")) -> Ranges:
    """This account's; LeaseFault when it has none."""
    names = [str(os.getuid())]
    with suppress(KeyError):
        names.append(pwd.getpwuid(os.getuid()).pw_name)
    found = []
    for path, own in ((subuid, os.getuid()), (subgid, os.getgid())):
        try:
            ranges = parse_ranges(path.read_text(encoding="utf-8", errors="replace"), names, own)
        except OSError:
            ranges = ()
        if not ranges:
            words = f"{path} has no range for {names[-1]}: root adds one by usermod --add-subuids and --add-subgids"
            raise LeaseFault(words, passing=False)
        found.append(ranges)
    return Ranges(found[0], found[1])


def usual_directory() -> Path:
    """The same for all pilots of the account, whatever their environment, and there after a restart of the host."""
    return Path(f"/var/tmp/sailplane-userns-{os.getuid()}")


class Leases:
    """The table of one account on one host. Blocks for a fraction of a millisecond; never waits for anybody."""

    def __init__(self, directory: Path, ranges: Ranges) -> None:
        self._directory = directory
        self._ranges = ranges

    def take(self, root: Path | None) -> Lease:
        """The lease of the sandbox in `root`: the one that it has, or a new one. None: as long as the lock is held.

        Raises TableBusy, LeaseFault.
        """
        fd, table = self._lock_table()
        try:
            held = {uid: kept for uid in _numbers(fd) if (kept := _look(fd, uid)) is not None}
            if root is not None:
                for uid, (gid, where) in held.items():
                    if where == str(root):
                        return Lease(uid, gid, _lock(fd, uid))
            return self._make(fd, held.keys(), root)
        finally:
            os.close(table)
            os.close(fd)

    def join(self, uid: int) -> Lease:
        """The lease of a sub-uid that is in use. Raises TableBusy, LeaseFault."""
        fd, table = self._lock_table()
        try:
            kept = _look(fd, uid)
            if kept is None or kept == _BROKEN:
                raise LeaseFault(f"no job has the account {uid}", passing=False)
            return Lease(uid, kept[0], _lock(fd, uid))
        finally:
            os.close(table)
            os.close(fd)

    def _make(self, directory: int, taken: Collection[int], root: Path | None) -> Lease:
        """A free one by chance: what a former holder left elsewhere does not soon belong to another job."""
        count = self._ranges.count
        start = secrets.randbelow(count)
        for number in range(min(count, len(taken) + 1)):
            uid, gid = self._ranges.pair((start + number) % count)
            if uid not in taken:
                return Lease(uid, gid, _write(directory, uid, gid, root))
        raise LeaseFault(f"all {count} sub-uids of this account are in use on this host", passing=True)

    def _lock_table(self) -> tuple[int, int]:
        """Descriptors of the directory and of the table's lock."""
        try:
            with suppress(FileExistsError):
                os.mkdir(self._directory, 0o700)
            fd = os.open(self._directory, _DIRECTORY)
        except OSError as error:
            raise LeaseFault(f"{self._directory}: {error.strerror}", passing=False) from error
        try:
            found = os.fstat(fd)
            if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
                words = f"{self._directory} must belong to this account and be closed to others (mode 0700)"
                raise LeaseFault(words, passing=False)
            table = os.open(_TABLE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=fd)
            try:
                fcntl.flock(table, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(table)
                raise TableBusy() from None
            return fd, table
        except BaseException:
            os.close(fd)
            raise


def _numbers(directory: int) -> list[int]:
    return [int(name) for name in os.listdir(directory) if name.isdigit()]


def _look(directory: int, uid: int) -> tuple[int, str | None] | None:
    """(gid, root) of a lease; None when there is none, or none any more: then it is removed."""
    try:
        fd = os.open(str(uid), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        return None
    try:
        gid, root = _parse(os.read(fd, _LEASE_BYTES))
        if gid == _BROKEN[0] or _is_there(root) or not _unused(fd):
            return gid, root
        os.unlink(str(uid), dir_fd=directory)
        return None
    finally:
        os.close(fd)


def _parse(content: bytes) -> tuple[int, str | None]:
    """What a lease says. A broken one (a host that lost power) may be anybody's: it stays until somebody looks."""
    try:
        words = json.loads(content)
        gid, root = words["gid"], words["root"]
        if isinstance(gid, int) and (root is None or isinstance(root, str)):
            return gid, root
    except (ValueError, KeyError, TypeError):
        pass
    return _BROKEN


def _unused(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_there(root: str | None) -> bool:
    """Whether a sandbox may exist: what we may not look at does."""
    try:
        return root is not None and bool(os.lstat(root))
    except OSError as error:
        return error.errno not in (errno.ENOENT, errno.ENOTDIR)


def _lock(directory: int, uid: int) -> int:
    fd = os.open(str(uid), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # nobody locks it otherwise without the table's lock
    return fd


def _write(directory: int, uid: int, gid: int, root: Path | None) -> int:
    """A whole file or none: it gets its name last."""
    name = f".{uid}.new"
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(name, flags, 0o600, dir_fd=directory)
    try:
        os.write(fd, json.dumps({"gid": gid, "root": None if root is None else str(root)}).encode("ascii"))
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        os.rename(name, str(uid), src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        os.close(fd)
        raise
    return fd
