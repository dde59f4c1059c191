"""A shared port in small: accepts, reads who is wanted, passes the connection on; by the public protocol."""

from __future__ import annotations

import array
import os
import socket
import struct
from pathlib import Path

import trio
from attrs import define, field

from cedar.codec import Reader
from cedar.commands import Command

ANNOUNCE = struct.pack(">BIq", 1, 8, Command.SHARED_PORT_PASS_SOCK)


def pass_on(path: Path, fds: list[int], *, announce: bytes = ANNOUNCE) -> None:
    """Say and send to who listens at ``path``."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as way:
        way.connect(str(path))
        if announce:
            way.sendall(announce)
        if fds:
            way.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])


@define
class SharedPort:
    """Serves the sockets of a directory."""

    directory: Path
    port: int = 0
    asked: list[str] = field(factory=list)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        await trio.serve_listeners(self._pass, listeners, task_status=task_status)  # type: ignore[arg-type]

    async def _pass(self, stream: trio.SocketStream) -> None:
        head = await stream.receive_some(5)
        reader = Reader(bytes(await stream.receive_some(struct.unpack(">BI", head)[1])), keyed=False)
        assert reader.int() == Command.SHARED_PORT_CONNECT
        self.asked.append(reader.string())
        pass_on(self.directory / os.path.basename(self.asked[-1]), [stream.socket.fileno()])
        await stream.aclose()
