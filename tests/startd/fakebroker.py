"""A broker and those who ask it, in one: what a collector does of CCB; the interop tests show it with a real one."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from attrs import define, field
from classad2 import ClassAd

from cedar import handshake, security_client
from cedar.classads import get_int, get_str
from cedar.client import Negotiate, _handshake
from cedar.commands import VERSION, Command
from cedar.server import Request, Served, Server, ServerPolicy
from cedar.sessions import SessionTable
from cedar.sinful import Sinful
from cedar.stream import CedarStream


@define(eq=False)
class FakeBroker:
    """``keeps``: whether who comes back with its cookie keeps its id, as a broker that was not started anew."""

    address: Sinful
    keeps: bool = True
    streams: list[CedarStream] = field(factory=list)
    names: list[str] = field(factory=list)
    outcomes: list[ClassAd] = field(factory=list)
    beats: int = 0
    silent: bool = False
    _numbers: itertools.count[int] = field(factory=lambda: itertools.count(1))
    _given: dict[str, str] = field(factory=dict)
    _change: trio.Event = field(factory=trio.Event)

    async def register(self, request: Request) -> None:
        """CCB_REGISTER, and what the daemon says afterwards."""
        ad = (await request.stream.get()).ad()
        ccbid, cookie = get_str(ad, "CCBID", ""), get_str(ad, "ClaimId", "")
        if not (self.keeps and cookie and self._given.get(ccbid) == cookie):
            number = next(self._numbers)
            ccbid, cookie = f"{str(self.address)[1:-1]}#{number}", f"{number}77"
            self._given[ccbid] = cookie
        answer = ClassAd({"Command": int(Command.CCB_REGISTER), "CCBID": ccbid, "ClaimId": cookie})
        await request.stream.put(answer)
        self.names.append(get_str(ad, "Name"))
        self.streams.append(request.stream)
        self._changed()
        while True:
            said = (await request.stream.get()).ad()
            if get_int(said, "Command", 0) == Command.ALIVE:
                self.beats += 1
                if not self.silent:
                    await request.stream.put(ClassAd({"Command": int(Command.ALIVE)}))
            else:
                self.outcomes.append(said)
            self._changed()

    def _changed(self) -> None:
        self._change.set()
        self._change = trio.Event()

    async def until(self, holds: object) -> None:
        """Until a condition (a function) is true."""
        assert callable(holds)
        with trio.fail_after(60):
            while not holds():
                await self._change.wait()

    async def ask(self, address: Sinful | str, *, number: str = "1", connect_id: str = "secret") -> None:
        """Have the last one that registered connect to ``address``."""
        ad = {"Command": int(Command.CCB_REQUEST), "MyAddress": str(address), "RequestID": number, "Name": "TOOL"}
        await self.streams[-1].put(ClassAd(ad | ({"ClaimId": connect_id} if connect_id else {})))


@asynccontextmanager
async def fake_broker(port: int = 0) -> AsyncIterator[FakeBroker]:
    """One that anybody of this account may register at."""
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
        broker = FakeBroker(Sinful("127.0.0.1", listeners[0].socket.getsockname()[1], {"addrs": "127.0.0.1-9618"}))
        table = {int(Command.CCB_REGISTER): Served("DAEMON", broker.register)}
        policy = ServerPolicy(None, "x", ("FS",), lambda caller, level: True)
        await nursery.start(Server(table, SessionTable(), policy).serve, listeners)
        yield broker
        nursery.cancel_scope.cancel()


async def called_back(transport: trio.SocketStream, command: int, security: Negotiate) -> tuple[ClassAd, CedarStream]:
    """The end of one who asked: hears who calls, and then is the client."""
    stream = CedarStream(transport)
    reader = await stream.get()
    assert reader.int() == Command.CCB_REVERSE_CONNECT
    said = reader.ad()
    stream.reset_digests()
    opening = security_client.Opening(command, "<127.0.0.1:1>", "TOOL", VERSION, None, 1)
    stream.session = await handshake.run(stream, _handshake(Sinful("127.0.0.1", 1), opening, security))
    return said, stream
