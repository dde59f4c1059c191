"""A submit side that answers chirp's calls as a stock shadow does (wire reference 4.3), on the files of one directory.

The same requests go to a stock shadow in tests/interop, and to the embedded pool in tests/e2e.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from classad2 import ClassAd

from cedar.codec import Item, Reader, encode
from cedar.commands import OpenFlag, Syscall
from cedar.errors import PeerFault
from starter.shadow import ShadowRefused

_FLAGS = {
    OpenFlag.WRONLY: os.O_WRONLY, OpenFlag.RDWR: os.O_RDWR, OpenFlag.CREAT: os.O_CREAT, OpenFlag.TRUNC: os.O_TRUNC,
    OpenFlag.EXCL: os.O_EXCL, OpenFlag.APPEND: os.O_APPEND,
}  # fmt: skip


class SubmitSide:
    """``calls``: what was asked, in order. ``lost``: the socket is gone; ``takes``: shadows so far."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ad = ClassAd({"Owner": "alice", "ClaimId": "secret"})
        self.calls: list[Syscall] = []
        self.events: list[ClassAd] = []
        self.lost = False
        self.takes = 0

    async def log_event(self, event: ClassAd) -> None:
        self.events.append(event)

    async def remote(self, call: Syscall, *arguments: Item, to: int | None = None) -> tuple[int, Reader]:
        if to is not None and to != self.takes:
            raise ShadowRefused(call, errno.EBADF)
        self.calls.append(call)
        if self.lost:
            raise PeerFault("closed", "gone")
        asked = Reader(encode(arguments, keyed=True), keyed=True)
        try:
            rval, *rest = getattr(self, f"_{call.name.lower()}")(asked)
        except OSError as error:
            raise ShadowRefused(call, error.errno or errno.EIO) from error
        asked.end()
        return rval, Reader(encode(rest, keyed=True), keyed=True)

    def path(self, name: str) -> str:
        return os.path.join(self.directory, name)

    def _get_file_info_new(self, asked: Reader) -> tuple[Item, ...]:
        return 0, "remote:" + self.path(asked.string())

    def _open(self, asked: Reader) -> tuple[Item, ...]:
        flags, mode, path = asked.int(), asked.int(), asked.string()
        return (os.open(path, sum(here for there, here in _FLAGS.items() if flags & there) | os.O_CLOEXEC, mode),)

    def _close(self, asked: Reader) -> tuple[Item, ...]:
        os.close(asked.int())
        return (0,)

    def _status(self, found: os.stat_result) -> tuple[Item, ...]:
        numbers = (found.st_dev, found.st_ino, found.st_mode, found.st_nlink, found.st_uid, found.st_gid, found.st_rdev,
                   found.st_size, found.st_blksize, found.st_blocks, *map(int, found[7:10]))  # fmt: skip
        return 0, (" ".join(map(str, numbers)) + "\n").encode().ljust(1024, b"\0")

    def _fstat(self, asked: Reader) -> tuple[Item, ...]:
        return self._status(os.fstat(asked.int()))

    def _stat(self, asked: Reader) -> tuple[Item, ...]:
        return self._status(os.stat(self.path(asked.string())))

    def _read(self, asked: Reader) -> tuple[Item, ...]:
        data = os.read(asked.int(), asked.int())
        return len(data), data

    def _pread(self, asked: Reader) -> tuple[Item, ...]:
        data = os.pread(asked.int(), asked.int(), asked.int())
        return len(data), data

    def _write(self, asked: Reader) -> tuple[Item, ...]:
        number, length = asked.int(), asked.int()
        return (os.write(number, asked.raw(length)),)

    def _pwrite(self, asked: Reader) -> tuple[Item, ...]:
        number, length, offset = asked.int(), asked.int(), asked.int()
        return (os.pwrite(number, asked.raw(length), offset),)

    def _lseek(self, asked: Reader) -> tuple[Item, ...]:
        return (os.lseek(asked.int(), asked.int(), asked.int()),)

    def _fsync(self, asked: Reader) -> tuple[Item, ...]:
        os.fsync(asked.int())
        return (0,)

    def _unlink(self, asked: Reader) -> tuple[Item, ...]:
        os.unlink(self.path(asked.string()))
        return (0,)

    def _rename(self, asked: Reader) -> tuple[Item, ...]:
        os.rename(self.path(asked.string()), self.path(asked.string()))
        return (0,)

    def _mkdir(self, asked: Reader) -> tuple[Item, ...]:
        os.mkdir(self.path(asked.string()), asked.int())
        return (0,)

    def _getdir(self, asked: Reader) -> tuple[Item, ...]:
        text = "".join(f"{name}\n" for name in sorted(os.listdir(self.path(asked.string()))))
        return len(text), text

    def _whoami(self, asked: Reader) -> tuple[Item, ...]:
        if not 0 < asked.int() <= 1024:
            raise OSError(errno.EINVAL, "")
        return 5, b"alice"

    def _get_job_attr(self, asked: Reader) -> tuple[Item, ...]:
        name = asked.string()
        return 0, str(self.ad.lookup(name)) if name in self.ad else "UNDEFINED"

    def _set_job_attr(self, asked: Reader) -> tuple[Item, ...]:
        expression, name = asked.string(), asked.string()
        self.ad[name] = ClassAd(f"[X = {expression}]")["X"]
        return (0,)
