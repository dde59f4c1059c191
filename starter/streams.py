"""Standard output and error that go to the submit side while the job runs (stream_output, stream_error).

The job writes into a pipe; what it has written goes to a file of the shadow's, opened by its own name there. A pipe
that nobody empties stops its writer: memory is bounded, and a job that waits for its shadow loses nothing.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Mapping

import attrs
import trio

from cedar.commands import HoldCode, OpenFlag, Syscall
from cedar.errors import PeerFault
from starter.shadow import Shadow, ShadowRefused
from starter.updates import one_line
from starter.verdict import Hold

# Of one write to the shadow, and what a pipe holds.
PIECE_BYTES = 64 * 1024
# What the last writer has left in a pipe is on its way within this, or the shadow is waited for in vain.
END_WITHIN_S = 120.0
_SEEK_END = 2


class StreamBroken(Exception):
    """The submit side does not take the job's output; ``hold`` tells its owner."""

    def __init__(self, hold: Hold) -> None:
        super().__init__(hold.text)
        self.hold = hold


@attrs.define(eq=False)
class Stream:
    """One pipe and one file at the submit side."""

    shadow: Shadow
    path: str
    host: str
    _read: int = -1
    _number: int = -1
    _takes: int | None = None
    _offset: int = 0
    broken: StreamBroken | None = None
    over: trio.Event = attrs.field(factory=trio.Event)

    async def open(self, *, append: bool) -> int:
        """The end that the job writes to; it is the caller's.

        Raises:
            StreamBroken: the submit side refuses.
            PeerFault: the shadow was given up.
        """
        await self._open(OpenFlag(0) if append else OpenFlag.TRUNC)
        if append:
            self._offset, _ = await self._call(Syscall.LSEEK, self._number, 0, _SEEK_END)
        self._read, write = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._read, False)
        return write

    async def run(self) -> None:
        """Until every writer has closed it. Cancelling loses what is in the pipe. Raises as ``open``."""
        try:
            while piece := await self._piece():
                await self._send(piece)
            await self._finish()
        except StreamBroken as broken:
            self.broken = broken
            raise
        finally:
            self.close()

    def close(self) -> None:
        """Nobody reads any more: a writer gets SIGPIPE. Harmless when it is closed."""
        if self._read >= 0:
            os.close(self._read)
        self._read = -1
        self.over.set()

    async def _piece(self) -> bytes:
        while True:
            try:
                return os.read(self._read, PIECE_BYTES)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._read)

    async def _send(self, piece: bytes) -> None:
        """All of it, each part at its place. Another shadow, or one that has come back, knows nothing of our file."""
        view = memoryview(piece)
        while view:
            try:
                if self._takes != self.shadow.takes:
                    await self._open(OpenFlag(0))
                part = bytes(view)
                arguments = (self._number, len(part), self._offset, part)
                written, _ = await self.shadow.remote(Syscall.PWRITE, *arguments, to=self._takes)
            except PeerFault:
                await self.shadow.wait_connected()
                self._takes = None
                continue
            except ShadowRefused as refused:
                if refused.errno == errno.EBADF and self._takes != self.shadow.takes:
                    continue
                raise self._broken(refused.errno) from refused
            if not 0 < written <= len(view):
                raise self._broken(errno.ENOSPC)
            self._offset += written
            view = view[written:]

    async def _finish(self) -> None:
        """At the shadow that has the file open. One that came after it has nothing to close."""
        for call in (Syscall.FSYNC, Syscall.CLOSE):
            try:
                await self.shadow.remote(call, self._number, to=self._takes)
            except ShadowRefused as refused:
                if self._takes == self.shadow.takes:
                    raise self._broken(refused.errno) from refused

    async def _open(self, more: OpenFlag) -> None:
        self._takes = self.shadow.takes
        flags = OpenFlag.WRONLY | OpenFlag.CREAT | more
        self._number, _ = await self._call(Syscall.OPEN, int(flags), 0o666, self.path)

    async def _call(self, call: Syscall, *arguments: int | str | bytes) -> tuple[int, object]:
        """To the shadow at which the file is open."""
        try:
            return await self.shadow.remote(call, *arguments, to=self._takes)
        except ShadowRefused as refused:
            raise self._broken(refused.errno) from refused

    def _broken(self, number: int) -> StreamBroken:
        text = (
            f"What the job on {self.host} writes is streamed to {self.path} at the submit side, which refuses it:"
            f" {os.strerror(number)}. See that the file can be written there, or leave out stream_output, stream_error"
        )
        return StreamBroken(Hold(HoldCode.UNABLE_TO_OPEN_OUTPUT_STREAM, number, one_line(text)))


async def open_streams(
    make: Callable[[str], Stream], paths: Mapping[str, str], *, append: bool
) -> tuple[list[Stream], dict[str, int]]:
    """Streams by their files, and the ends for the job by name ("stdout", "stderr"): one pipe for two of one file.

    Raises as ``Stream.open``; nothing is open then.
    """
    streams: dict[str, Stream] = {}
    ends: dict[str, int] = {}
    try:
        for name, path in paths.items():
            if path in streams:
                ends[name] = os.dup(next(fd for other, fd in ends.items() if paths[other] == path))
                continue
            streams[path] = make(path)
            ends[name] = await streams[path].open(append=append)
    except BaseException:  # cancelled, too: nobody else would close them
        close_all(ends, streams.values())
        raise
    return list(streams.values()), ends


def close_all(ends: Mapping[str, int], streams: Iterable[Stream] = ()) -> None:
    """The job has its own copies of the ends."""
    for fd in ends.values():
        os.close(fd)
    for stream in streams:
        stream.close()
