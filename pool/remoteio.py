"""What a job asks of its shadow for itself: attributes of its ad, its tokens, and files by chirp.

A job reads its own input and what it has written this way before; it writes files of its own, which come back with its
output. It reaches no other file: a name is looked up in these lists, and never becomes a path.
"""

from __future__ import annotations

import base64
import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attrs import define, field

from cedar import classads
from cedar.codec import Reader
from cedar.commands import OpenFlag, Syscall
from cedar.errors import PeerFault
from pool.ads import ClassAd, put
from pool.jobad import MAX_ATTRIBUTES, POOL_ONLY, BadJob, check_relative
from pool.transfers import Transfer

MAX_OPEN = 64
MAX_FILES = 1000
# Of one read or write, as starters ask for; more is refused.
MAX_PIECE_BYTES = 4 * 1024 * 1024
MAX_TOKEN_BYTES = 64 * 1024
_STATUS_BYTES = 1024
# Attributes that a job sets to be told with the next update begin so: the default of CHIRP_DELAYED_UPDATE_PREFIX; and
# where a starter has them in an update.
DELAYED_PREFIX = "chirp"
DELAYED_ATTRS = "ChirpDelayedAttrs"

Reply = tuple[Any, ...]


class NoToken(Exception):
    """A token that the job needs cannot be given; the text says which and why."""


@define
class _Open:
    fd: int
    name: str
    writable: bool


@define(eq=False)
class RemoteIO:
    """The job's calls of one run. ``close`` at its end."""

    ad: Any
    transfer: Transfer
    owner: str
    tokens_dir: Path | None
    # attributes that the job has set, as they were told
    changed: dict[str, str] = field(factory=dict)
    _open_files: dict[int, _Open] = field(factory=dict)
    _written: dict[str, int] = field(factory=dict)
    _made: int = 0
    _act: dict[int, Callable[[Reader], Reply]] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._act = {
            Syscall.GET_JOB_ATTR: self._get, Syscall.SET_JOB_ATTR: self._set,
            Syscall.GET_FILE_INFO_NEW: lambda asked: (0, asked.string()), Syscall.OPEN: self._open,
            Syscall.CLOSE: self._close, Syscall.READ: self._read, Syscall.PREAD: self._pread,
            Syscall.WRITE: self._write, Syscall.PWRITE: self._pwrite, Syscall.LSEEK: self._lseek,
            Syscall.FSYNC: self._fsync, Syscall.FSTAT: self._fstat, Syscall.UNLINK: self._unlink,
            Syscall.RENAME: self._rename, Syscall.GETDIR: self._getdir, Syscall.WHOAMI: self._whoami,
        }  # fmt: skip

    def serves(self, op: int) -> bool:
        return op in self._act

    def answer(self, op: int, asked: Reader) -> Reply:
        """The answer to a call; what goes wrong is its errno."""
        try:
            return self._act[op](asked)
        except OSError as error:
            return -1, error.errno or errno.EIO
        except BadJob:
            return -1, errno.EACCES

    def close(self) -> None:
        """Nothing stays open; what was written is in the output by now, or lost with the run."""
        for number in list(self._open_files):
            os.close(self._open_files.pop(number).fd)
        shutil.rmtree(self._directory, ignore_errors=True)

    def add_outputs(self, directory: Path, names: set[str], first: int) -> list[tuple[str, int, int]]:
        """Put what was written beside the output in ``directory``, under numbers from ``first``: (name, size, number).

        A file of that name in the output itself wins.
        """
        added: list[tuple[str, int, int]] = []
        for name, key in self._written.items():
            if name not in names:
                number = first + len(added)
                target = directory / str(number)
                os.link(self._directory / str(key), target)
                added.append((name, target.stat().st_size, number))
        return added

    # Attributes

    def _get(self, asked: Reader) -> Reply:
        name = asked.string()
        if not name.isascii():  # the library has no words for half a character
            return -1, errno.EINVAL
        if classads.is_private(name):
            return -1, errno.EACCES
        found = [line.partition(" = ")[2] for line in classads.to_wire(self.ad) if line.split(" ", 1)[0] == name]
        if found or name not in self.ad:
            return 0, found[0] if found else "UNDEFINED"
        return 0, str(self.ad.lookup(name))  # another spelling of its name

    def learn(self, update: Any) -> None:
        """What the job has set to be told with an update; what it may not set is left out. A starter has it in an ad of
        its own since 25.4, before that in the update itself (docs/versions.md)."""
        own = update.get(DELAYED_ATTRS, None)
        found = own if isinstance(own, ClassAd) else update
        for name in found:
            if name.lower().startswith(DELAYED_PREFIX) and name.lower() != DELAYED_ATTRS.lower():
                self._put(name, str(found.lookup(name)))

    def _set(self, asked: Reader) -> Reply:
        expression, name = asked.string(), asked.string()
        return self._put(name, expression)

    def _put(self, name: str, expression: str) -> Reply:
        if name.lower() in POOL_ONLY or name.lower().startswith("_condor") or classads.is_private(name):
            return -1, errno.EACCES
        if not name.isascii() or (name not in self.ad and len(self.ad) >= MAX_ATTRIBUTES):
            return -1, errno.EINVAL
        try:
            parsed = classads.from_wire([f"{name} = {expression}"])
        except PeerFault:
            return -1, errno.EINVAL
        if list(parsed) != [name]:
            return -1, errno.EINVAL
        self.ad[name] = parsed.lookup(name)
        self.changed = {old: text for old, text in self.changed.items() if old.lower() != name.lower()}
        self.changed[name] = expression
        return (0,)

    # Tokens

    def tokens(self, services: list[str]) -> Reply:
        """getcreds: an ad each, then 0.

        Raises:
            NoToken: one is missing, or not kept as it must be.
        """
        answer: list[Any] = []
        for service in services:
            ad = ClassAd()
            put(ad, "Service", service)
            put(ad, "Data", base64.b64encode(self._token(service)).decode("ascii"))
            answer += [1, ad]
        return (*answer, 0)

    def _token(self, service: str) -> bytes:
        name = service.replace("*", "_") + ".use"
        if self.tokens_dir is None:
            raise NoToken("this pool gives no tokens (SEC_CREDENTIAL_DIRECTORY_OAUTH is not set)")
        if any("/" in part or part.startswith(".") or not part.isprintable() for part in (name, self.owner)):
            raise NoToken(f"{service!r} cannot be a token's name")
        try:
            fd = os.open(
                self.tokens_dir / self.owner / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            )
        except OSError as error:
            raise NoToken(f"{self.owner} has no token for {service}: {error.strerror}") from error
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode) or found.st_mode & 0o077 or found.st_uid not in (0, os.geteuid()):
                raise NoToken(f"the token of {self.owner} for {service} is not a file of mode 0600 of the pool's")
            data = os.read(fd, MAX_TOKEN_BYTES + 1)
        finally:
            os.close(fd)
        if not 0 < len(data) <= MAX_TOKEN_BYTES:
            raise NoToken(f"the token of {self.owner} for {service} is empty, or larger than {MAX_TOKEN_BYTES} bytes")
        return data

    # Files

    @property
    def _directory(self) -> Path:
        return self.transfer.spool.written(self.transfer.cluster, self.transfer.run)

    def _open(self, asked: Reader) -> Reply:
        flags, _mode, name = OpenFlag(asked.int()), asked.int(), _plain(asked.string())
        if len(self._open_files) >= MAX_OPEN:
            return -1, errno.EMFILE
        writing = bool(flags & (OpenFlag.WRONLY | OpenFlag.RDWR))
        fd = self._open_written(name, flags) if writing or name in self._written else self._open_input(name)
        number = next(n for n in range(3, MAX_OPEN + 4) if n not in self._open_files)
        self._open_files[number] = _Open(fd, name, writing)
        return (number,)

    def _open_input(self, name: str) -> int:
        for entry in self.transfer.entries:
            if entry.name == name and entry.key is not None:
                path = self.transfer.spool.input(self.transfer.cluster, entry.key)
                return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        raise FileNotFoundError(errno.ENOENT, name)

    def _open_written(self, name: str, flags: OpenFlag) -> int:
        if name in self._written and flags & OpenFlag.EXCL:
            raise FileExistsError(errno.EEXIST, name)
        if name not in self._written:
            if not flags & OpenFlag.CREAT:
                raise FileNotFoundError(errno.ENOENT, name)
            if len(self._written) >= MAX_FILES:
                raise OSError(errno.ENOSPC, name)
            self._directory.mkdir(mode=0o700, exist_ok=True)
            self._written[name], self._made = self._made, self._made + 1
        here = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        here |= os.O_TRUNC if flags & OpenFlag.TRUNC else 0
        here |= os.O_APPEND if flags & OpenFlag.APPEND else 0
        return os.open(self._directory / str(self._written[name]), here, 0o600)

    def _file(self, number: int, *, writing: bool = False) -> int:
        found = self._open_files.get(number)
        if found is None or (writing and not found.writable):
            raise OSError(errno.EBADF, "")
        return found.fd

    def _close(self, asked: Reader) -> Reply:
        number = asked.int()
        os.close(self._file(number))
        del self._open_files[number]
        return (0,)

    def _read(self, asked: Reader) -> Reply:
        data = os.read(self._file(asked.int()), _length(asked.int()))
        return len(data), data

    def _pread(self, asked: Reader) -> Reply:
        data = os.pread(self._file(asked.int()), _length(asked.int()), asked.int())
        return len(data), data

    def _write(self, asked: Reader) -> Reply:
        fd, length = self._file(asked.int(), writing=True), _length(asked.int())
        self._check_room(fd, os.lseek(fd, 0, os.SEEK_CUR) + length)
        return (os.write(fd, asked.raw(length)),)

    def _pwrite(self, asked: Reader) -> Reply:
        fd, length, offset = self._file(asked.int(), writing=True), _length(asked.int()), asked.int()
        self._check_room(fd, offset + length)
        return (os.pwrite(fd, asked.raw(length), offset),)

    def _check_room(self, fd: int, end: int) -> None:
        """Whether ``fd`` may be written up to ``end``. A file with a hole counts as if it had none, and one that was
        removed as long as it is open."""
        own = os.fstat(fd)
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND:  # also of pwrite, on Linux
            end += own.st_size
        found = [(self._directory / str(key)).stat() for key in self._written.values()]
        found += [os.fstat(each.fd) for each in self._open_files.values() if each.writable]
        have = sum({each.st_ino: each.st_size for each in found}.values())
        most = self.transfer.limits.max_bytes
        if most is not None and have + max(0, end - own.st_size) > most:
            raise OSError(errno.ENOSPC, "")

    def _lseek(self, asked: Reader) -> Reply:
        fd, offset, whence = self._file(asked.int()), asked.int(), asked.int()
        if whence not in (os.SEEK_SET, os.SEEK_CUR, os.SEEK_END):
            raise OSError(errno.EINVAL, "")
        return (os.lseek(fd, offset, whence),)

    def _fsync(self, asked: Reader) -> Reply:
        self._file(asked.int())  # the output is synced when it is entered
        return (0,)

    def _fstat(self, asked: Reader) -> Reply:
        found = os.fstat(self._file(asked.int()))
        times = (int(found.st_atime), int(found.st_mtime), int(found.st_ctime))
        # The pool's own numbers (device, inode, account) are nobody's business.
        numbers = (0, 0, stat.S_IFREG | 0o600, 1, 0, 0, 0, found.st_size, 4096, found.st_blocks, *times)
        return 0, (" ".join(map(str, numbers)) + "\n").encode().ljust(_STATUS_BYTES, b"\0")

    def _unlink(self, asked: Reader) -> Reply:
        name = _plain(asked.string())
        if name not in self._written:
            return -1, errno.ENOENT
        os.unlink(self._directory / str(self._written.pop(name)))
        return (0,)

    def _rename(self, asked: Reader) -> Reply:
        old, new = _plain(asked.string()), _plain(asked.string())
        if old not in self._written:
            return -1, errno.ENOENT
        replaced = self._written.pop(new, None) if new != old else None
        if replaced is not None:
            os.unlink(self._directory / str(replaced))
        self._written[new] = self._written.pop(old)
        return (0,)

    def _getdir(self, asked: Reader) -> Reply:
        if asked.string() not in (".", "./", ""):
            return -1, errno.ENOENT
        names = {entry.name for entry in self.transfer.entries if "/" not in entry.name} | set(self._written)
        text = "".join(f"{name}\n" for name in sorted(names))
        return len(text.encode("utf-8", "surrogateescape")), text

    def _whoami(self, asked: Reader) -> Reply:
        name = self.owner.encode()[: max(0, asked.int())]
        return len(name), name


def _plain(name: str) -> str:
    """A file's name in the job's own directory, which has no others."""
    name = name.removeprefix("./")
    check_relative(name, "chirp")
    if "/" in name or name == "." or not name.isprintable():
        raise BadJob(f"chirp: {name!r} is not a plain name")
    return name


def _length(length: int) -> int:
    if not 0 <= length <= MAX_PIECE_BYTES:
        raise OSError(errno.EINVAL, "")
    return length
