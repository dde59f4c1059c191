"""File transfer over TCP through our own server, on the session that both ends derive from a claim."""

from __future__ import annotations

import contextlib
import hmac
from collections.abc import AsyncIterator

import pytest
import trio

from cedar.claims import EXECUTE_SIDE, ClaimId, filetransfer_session
from cedar.commands import VERSION, Command
from cedar.errors import PeerFault, Refused
from cedar.filetransfer import (
    accept_transfer,
    open_transfer,
    receive_files,
    refuse_transfer,
    send_files,
)
from cedar.server import Request, Served, Server, ServerPolicy
from cedar.sessions import SessionTable
from cedar.sinful import Sinful
from tests.cedar.transferpeer import Items, MemorySink, file

TRANSFER_KEY = "1#65f0c3#9bd1"
CLAIM = ClaimId.mint("<127.0.0.1:9618>", 1_700_000_000, 1, VERSION)


@contextlib.asynccontextmanager
async def pool(sink: MemorySink) -> AsyncIterator[Sinful]:
    """A pool's side: serves one input file, takes output into the sink."""

    async def serve(request: Request) -> None:
        if not hmac.compare_digest((await accept_transfer(request.stream)).encode(), TRANSFER_KEY.encode()):
            await refuse_transfer(request.stream)
        elif request.command == Command.FILETRANS_UPLOAD:
            items = Items([file("in.txt", b"input" * 100_000)])
            await send_files(request.stream, items, final=False, sandbox_bytes=500_000)
        else:
            await receive_files(request.stream, sink)

    sessions = SessionTable()
    sessions.add(filetransfer_session(CLAIM, EXECUTE_SIDE))
    served = Served("WRITE", serve)
    table: dict[int, Served] = {Command.FILETRANS_UPLOAD: served, Command.FILETRANS_DOWNLOAD: served}
    server = Server(table, sessions, ServerPolicy())
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            await nursery.start(server.serve, listeners)
            yield Sinful("127.0.0.1", listeners[0].socket.getsockname()[1], {})
            nursery.cancel_scope.cancel()


async def test_input_and_output() -> None:
    outputs = MemorySink()
    async with pool(outputs) as address:
        inputs = MemorySink()
        stream = await open_transfer(address, Command.FILETRANS_UPLOAD, filetransfer_session(CLAIM), TRANSFER_KEY)
        own, peer = await receive_files(stream, inputs)
        await stream.aclose()
        assert own.ok
        assert peer.ok
        assert inputs.stored == {"in.txt": (0o644, b"input" * 100_000)}
        stream = await open_transfer(address, Command.FILETRANS_DOWNLOAD, filetransfer_session(CLAIM), TRANSFER_KEY)
        own, peer = await send_files(stream, Items([file("out", b"output")]), final=True, sandbox_bytes=6)
        await stream.aclose()
        assert own.ok
        assert peer.ok
    assert outputs.stored == {"out": (0o644, b"output")}


async def test_a_wrong_key() -> None:
    async with pool(MemorySink()) as address:
        session = filetransfer_session(CLAIM)
        stream = await open_transfer(address, Command.FILETRANS_UPLOAD, session, "1#65f0c3#9bd0")
        with pytest.raises(Refused, match="TRANSFER_KEY"):
            await receive_files(stream, MemorySink())
        await stream.aclose()
        stream = await open_transfer(address, Command.FILETRANS_DOWNLOAD, session, "")
        with pytest.raises((Refused, PeerFault)):  # the server may have closed before we had said all
            await send_files(stream, Items([file("out", b"x")]), final=True, sandbox_bytes=1)
        await stream.aclose()


async def test_another_claims_session() -> None:
    other = ClaimId.mint("<127.0.0.1:9618>", 1_700_000_000, 2, VERSION)
    async with pool(MemorySink()) as address:
        with pytest.raises(Refused):
            await open_transfer(address, Command.FILETRANS_UPLOAD, filetransfer_session(other), TRANSFER_KEY)
