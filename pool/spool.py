"""The pool's own files: what users gave and what came back, under numbers, never under names that others chose.

DIR/<cluster>/in/<key>, DIR/<cluster>/proxy.pem, DIR/<cluster>/out/<run>/<key>, DIR/<cluster>/kept/<proc>.<n>/<key>
(what a job is started again from); files 0600, directories 0700. A name
that a user or a job gave lives in the queue and is never a path here. Blocking work runs in threads.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import trio
from attrs import frozen

CHUNK_BYTES = 256 * 1024


class SpoolTrouble(Exception):
    """A file cannot be taken or kept; the text says which and why. `full`: the disk is."""

    def __init__(self, text: str, *, full: bool = False) -> None:
        super().__init__(text)
        self.full = full


@frozen
class Spool:
    root: Path

    def cluster(self, number: int) -> Path:
        return self.root / str(number)

    def input(self, cluster: int, key: int) -> Path:
        return self.cluster(cluster) / "in" / str(key)

    def proxy(self, cluster: int) -> Path:
        return self.cluster(cluster) / "proxy.pem"

    def outputs(self, cluster: int, run: int) -> Path:
        return self.cluster(cluster) / "out" / str(run)

    def kept(self, cluster: int, directory: str) -> Path:
        return self.cluster(cluster) / "kept" / directory

    def keep(self, arrived: Path, cluster: int, directory: str) -> None:
        """Make what has arrived whole a checkpoint; one of that name was never entered into the queue."""
        target = self.kept(cluster, directory)
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(mode=0o700, exist_ok=True)
        arrived.rename(target)
        sync_directory(target.parent)

    def remove_kept(self, cluster: int, directory: str) -> None:
        shutil.rmtree(self.kept(cluster, directory), ignore_errors=True)

    def written(self, cluster: int, run: int) -> Path:
        """What a run writes by chirp while it runs."""
        return self.cluster(cluster) / "out" / f"{run}.chirp"

    def make_cluster(self, number: int) -> None:
        """Directories of a new cluster; what an unfinished submission of a former life left there goes."""
        self.remove_cluster(number)
        for path in (self.cluster(number), self.cluster(number) / "in", self.cluster(number) / "out"):
            path.mkdir(mode=0o700)

    def make_outputs(self, cluster: int, run: int) -> Path:
        path = self.outputs(cluster, run)
        path.mkdir(mode=0o700, exist_ok=True)
        return path

    def remove_cluster(self, number: int) -> None:
        shutil.rmtree(self.cluster(number), ignore_errors=True)

    def remove_outputs(self, cluster: int, run: int) -> None:
        shutil.rmtree(self.outputs(cluster, run), ignore_errors=True)

    def remove_inputs(self, cluster: int) -> None:
        """Inputs, checkpoints and proxy of a cluster whose jobs are all over; what came back stays."""
        for name in ("in", "kept"):
            shutil.rmtree(self.cluster(cluster) / name, ignore_errors=True)
        self.proxy(cluster).unlink(missing_ok=True)


async def take(source: int, target: Path, *, limit_bytes: int) -> int:
    """Copy a user's open file into the spool and sync it. Returns its size; the descriptor stays the caller's.

    Cancelling waits for the copy to end (it runs in a thread); the caller removes the cluster's directory.
    Raises SpoolTrouble: not a plain file, longer than `limit_bytes`, or the disk.
    """
    return await trio.to_thread.run_sync(_take, source, target, limit_bytes)


def _take(source: int, target: Path, limit_bytes: int) -> int:
    status = os.fstat(source)
    if not stat.S_ISREG(status.st_mode):
        raise SpoolTrouble("only plain files can be given")
    if status.st_size > limit_bytes:
        raise SpoolTrouble(f"{status.st_size} bytes, where {limit_bytes} are left of the submission's limit")
    try:
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            copied = _copy(source, fd, limit_bytes)
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise SpoolTrouble(f"cannot be copied: {error.strerror}", full=error.errno == 28) from error
    return copied


def _copy(source: int, target: int, limit_bytes: int) -> int:
    done = 0
    # The offset is given, so that the position in the user's open file description does not count.
    while sent := os.sendfile(target, source, done, CHUNK_BYTES):
        done += sent
        if done > limit_bytes:
            raise SpoolTrouble(f"grew over the {limit_bytes} bytes that are left of the submission's limit")
    return done


async def write(target: Path, chunks: AsyncIterator[bytes]) -> int:
    """Write what arrives into a new file; `sync_files` makes it last. Raises SpoolTrouble; the chunks are then not all
    consumed."""
    done = 0
    try:
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            async for chunk in chunks:
                # A write of 256 KiB goes to the page cache: cheaper here than the way to a thread.
                view = memoryview(chunk)
                while view:
                    view = view[os.write(fd, view) :]
                done += len(chunk)
            if done <= CHUNK_BYTES:  # on its way to the disk while others still arrive; a long one is by itself
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)
    except OSError as error:
        raise SpoolTrouble(f"the pool cannot store a file: {error.strerror}", full=error.errno == 28) from error
    return done


def sync_files(directory: Path, keys: Sequence[int]) -> None:
    """Files of a directory, and itself. Blocks. Raises SpoolTrouble."""
    try:
        for key in keys:
            fd = os.open(directory / str(key), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        sync_directory(directory)
    except OSError as error:
        raise SpoolTrouble(f"the pool cannot store a file: {error.strerror}", full=error.errno == 28) from error


async def read(path: Path) -> AsyncIterator[bytes]:
    """The file's bytes in chunks. OSError when it cannot be read."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        while chunk := os.read(fd, CHUNK_BYTES):
            yield chunk
    finally:
        os.close(fd)


def sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
