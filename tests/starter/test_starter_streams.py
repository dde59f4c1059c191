"""Streams to the submit side: in order, each byte once, bounded; a shadow that is another one, or refuses."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest
import trio
import trio.testing

from cedar.commands import OpenFlag, Syscall
from cedar.errors import PeerFault
from starter.shadow import ShadowRefused
from starter.streams import Stream, StreamBroken, close_all, open_streams
from tests.jobwrapper.farsides import open_fds


class Files:
    """A shadow's files. ``most``: of one write; ``lose``: how many calls go by until the next connection is lost."""

    def __init__(self, *, most: int = 1 << 20, lose: int = -1, refuse: Syscall | None = None) -> None:
        self.kept: dict[str, bytearray] = {}
        self.most, self.lose, self.refuse = most, lose, refuse
        self.takes = 0
        self.open_files: dict[int, str] = {}
        self.flags: list[int] = []

    async def wait_connected(self) -> None:
        await trio.lowlevel.checkpoint()

    async def remote(self, call: Syscall, *arguments: Any, to: int | None = None) -> tuple[int, object]:
        await trio.lowlevel.checkpoint()
        if to != self.takes:
            raise ShadowRefused(call, errno.EBADF)
        if call is self.refuse:
            raise ShadowRefused(call, errno.EACCES)
        if self.lose == 0:
            self.takes, self.open_files = self.takes + 1, {3: "the shadow's own log"}
            self.lose = -1
            raise PeerFault("closed", "lost")
        self.lose -= 1
        return self._answer(call, *arguments), None

    def _answer(self, call: Syscall, *arguments: Any) -> int:
        match call:
            case Syscall.OPEN:
                flags, _mode, path = arguments
                self.flags.append(flags)
                if flags & OpenFlag.TRUNC or path not in self.kept:
                    self.kept[path] = bytearray()
                number = 4 + len(self.open_files)
                self.open_files[number] = path
                return number
            case Syscall.LSEEK:
                return len(self.kept[self.open_files[arguments[0]]])
            case Syscall.PWRITE:
                number, length, offset, data = arguments
                data = data[: self.most]
                file = self.kept[self.open_files[number]]
                file.extend(bytes(max(0, offset - len(file))))
                file[offset : offset + len(data)] = data
                assert length <= 65536
                return len(data)
        return 0


def stream(files: Files, path: str = "out") -> Stream:
    return Stream(files, path, "node")  # type: ignore[arg-type]


async def through(files: Files, data: bytes, *, append: bool = False) -> None:
    made = stream(files)
    end = await made.open(append=append)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.run)
            await trio.to_thread.run_sync(write_all, end, data)
    assert made.over.is_set()


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    os.close(fd)


@pytest.mark.parametrize("most", [1 << 20, 1000])
@pytest.mark.parametrize("lose", [-1, 1, 2, 5])
async def test_each_byte_arrives_once(most: int, lose: int) -> None:
    before = open_fds()
    files = Files(most=most, lose=lose)
    data = os.urandom(300_000)
    await through(files, data)
    assert files.kept == {"out": data}
    assert files.flags[0] & OpenFlag.TRUNC
    assert not any(flags & OpenFlag.TRUNC for flags in files.flags[1:]), "a file that was begun must not be cut"
    assert open_fds() == before


async def test_the_end_of_a_stream_whose_shadow_is_another_one_by_now_is_no_failure() -> None:
    files = Files()
    made = stream(files)
    end = await made.open(append=False)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.run)
            os.write(end, b"all of it")
            await trio.testing.wait_all_tasks_blocked()
            files.takes, files.open_files = 1, {}
            os.close(end)
    assert (made.broken, files.kept) == (None, {"out": b"all of it"})


async def test_a_shadow_that_writes_nothing_is_not_asked_for_ever() -> None:
    made = stream(Files(most=0))
    end = await made.open(append=False)
    os.write(end, b"x")
    os.close(end)
    with trio.fail_after(60), pytest.raises(StreamBroken) as broken:
        await made.run()
    assert broken.value.hold.subcode == errno.ENOSPC


async def test_a_file_that_cannot_be_closed_holds_the_job() -> None:
    files = Files(refuse=Syscall.CLOSE)
    made = stream(files)
    os.close(await made.open(append=False))
    with pytest.raises(StreamBroken):
        await made.run()


async def test_a_later_leg_goes_on_behind_the_first() -> None:
    files = Files()
    await through(files, b"one")
    await through(files, b"two", append=True)
    assert files.kept["out"] == b"onetwo"


async def test_a_refusal_is_a_hold_with_words() -> None:
    before = open_fds()
    with pytest.raises(StreamBroken) as refused:
        await stream(Files(refuse=Syscall.OPEN)).open(append=False)
    assert (refused.value.hold.code, refused.value.hold.subcode) == (9, errno.EACCES)
    assert "stream_output" in refused.value.hold.text
    files = Files(refuse=Syscall.PWRITE)
    made = stream(files)
    end = await made.open(append=False)
    os.write(end, b"x")
    with pytest.raises(StreamBroken):
        await made.run()
    assert made.broken is not None
    with pytest.raises(BrokenPipeError):
        os.write(end, b"y")
    os.close(end)
    assert open_fds() == before


async def test_two_of_one_file_share_a_pipe_and_none_stays_open() -> None:
    before = open_fds()
    files = Files()
    streams, ends = await open_streams(
        lambda path: stream(files, path), {"stdout": "both", "stderr": "both"}, append=False
    )
    assert (len(streams), set(ends)) == (1, {"stdout", "stderr"})
    close_all(ends, streams)
    files.refuse = Syscall.LSEEK
    with pytest.raises(StreamBroken):
        await open_streams(lambda path: stream(files, path), {"stdout": "a", "stderr": "b"}, append=True)
    assert open_fds() == before
