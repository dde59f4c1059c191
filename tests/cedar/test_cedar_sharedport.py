"""A place behind a shared port: what comes through it is served, what is no connection is not, and costs nothing."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from attrs import define, field

from cedar import sharedport
from cedar.client import Negotiate, connect
from cedar.commands import Command
from cedar.server import Request, Served, Server, ServerPolicy
from cedar.sessions import SessionTable
from cedar.sharedport import Passed
from cedar.sinful import Sinful
from tests.cedar.passingport import ANNOUNCE, SharedPort, pass_on


@define
class Place:
    """A listener under test, and what it said."""

    path: Path
    listener: Passed
    said: list[str] = field(factory=list)


@asynccontextmanager
async def place(directory: Path) -> AsyncIterator[Place]:
    path = directory / "startd_1_2"
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind(str(path))
    sock.listen()
    said: list[str] = []
    async with Passed(sock, report=lambda fault: said.append(str(fault))) as listener:
        yield Place(path, listener, said)


async def test_a_command_comes_through(tmp_path: Path) -> None:
    served: list[str] = []

    async def hear(request: Request) -> None:
        served.append((await request.stream.get()).string())
        await request.stream.put("heard")

    async with place(tmp_path) as own, trio.open_nursery() as nursery:
        port = SharedPort(tmp_path)
        await nursery.start(port.run)
        table = {Command.NOP_READ: Served("READ", hear)}
        await nursery.start(Server(table, SessionTable(), ServerPolicy()).serve, [own.listener])
        for text in ("one", "two"):
            address = Sinful("127.0.0.1", port.port, {"sock": "startd_1_2"})
            security = Negotiate(authentication="OPTIONAL", methods=("FS",))
            async with await connect(address, Command.NOP_READ, security, subsystem="TOOL", deadline_s=5) as stream:
                await stream.put(text)
                assert (await stream.get()).string() == "heard"
        nursery.cancel_scope.cancel()
    assert served == ["one", "two"]
    assert port.asked == ["startd_1_2"] * 2
    assert own.said == []


def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)


async def test_what_comes_closes_with_the_next_exec(tmp_path: Path) -> None:
    ours, theirs = pair()
    with ours, theirs:
        async with place(tmp_path) as own:
            pass_on(own.path, [theirs.fileno()])
            async with await own.listener.accept() as got:
                assert fcntl.fcntl(got.socket.fileno(), fcntl.F_GETFD) & fcntl.FD_CLOEXEC
                ours.sendall(b"hello")
                assert await got.receive_some(5) == b"hello"


WRONG: dict[str, tuple[Callable[[Path, int], None], str]] = {
    "nothing": (lambda path, fd: pass_on(path, [], announce=b""), "ended"),
    "another command": (lambda path, fd: pass_on(path, [fd], announce=ANNOUNCE[:-1] + b"\x4b"), "not the message"),
    "half a command": (lambda path, fd: pass_on(path, [], announce=ANNOUNCE[:7]), "ended"),
    "no connection": (lambda path, fd: pass_on(path, []), "one connection"),
    "two": (lambda path, fd: pass_on(path, [fd, fd]), "one connection"),
    "a file": (lambda path, fd: pass_on(path, [os.open("/dev/null", os.O_RDONLY)]), "no socket"),
    "a listener": (lambda path, fd: pass_on(path, [listening()]), "no connection"),
    "a datagram socket": (lambda path, fd: pass_on(path, [datagrams()]), "no connection"),
}


def listening() -> int:
    return socket.create_server(("127.0.0.1", 0)).detach()


def datagrams() -> int:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM).detach()


def descriptors() -> set[int]:
    """Without the one by which they are listed."""
    return {int(fd) for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")}


@pytest.mark.parametrize("what", WRONG)
async def test_what_is_no_connection_is_left_and_the_next_one_served(tmp_path: Path, what: str) -> None:
    do, words = WRONG[what]
    ours, theirs = pair()
    with ours, theirs:
        async with place(tmp_path) as own:
            before = descriptors()
            do(own.path, theirs.fileno())
            mine = descriptors() - before  # what the test itself has opened to pass it
            pass_on(own.path, [theirs.fileno()])
            with trio.fail_after(30):
                got = await own.listener.accept()
            async with got:
                assert len(own.said) == 1
                assert words in own.said[0]
            assert descriptors() - before == mine
            for fd in mine:
                os.close(fd)


async def test_who_is_silent_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharedport, "PASS_WITHIN_S", 0.05)
    ours, theirs = pair()
    with ours, theirs, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
        async with place(tmp_path) as own:
            silent.connect(str(own.path))
            pass_on(own.path, [theirs.fileno()])
            with trio.fail_after(30):
                await (await own.listener.accept()).aclose()
            assert ["timeout" in words for words in own.said] == [True]


def pass_as_nobody(path: Path, fd: int) -> None:
    """From the directory, whose parents are closed to that account."""
    path.chmod(0o777)
    path.parent.chmod(0o755)
    if (child := os.fork()) == 0:
        os.chdir(path.parent)
        os.setuid(65534)
        pass_on(Path(path.name), [fd])
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.needs_root
async def test_other_accounts_pass_nothing(tmp_path: Path) -> None:
    ours, theirs = pair()
    with ours, theirs:
        async with place(tmp_path) as own:
            pass_as_nobody(own.path, theirs.fileno())
            pass_on(own.path, [theirs.fileno()])
            with trio.fail_after(30):
                await (await own.listener.accept()).aclose()
            assert own.said == ["handshake: account 65534 may not pass connections to this daemon"]
