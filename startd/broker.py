"""Keeps a place at a broker (CCB_ADDRESS) for a startd that nobody can connect to. Acting code.

Connections that others want are made by us, and come to the startd's server as if they had made them.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Iterator, Sequence

import attrs
import trio
from classad2 import ClassAd

from cedar import ccb
from cedar.client import Negotiate, connect
from cedar.commands import Command
from cedar.errors import PeerFault, Refused
from cedar.sinful import Sinful
from cedar.stream import CedarStream
from starter.updates import one_line

SUBSYSTEM = "STARTD"
# A broker that ends has lost all its daemons at once (stock comes back after 60 s).
FIRST_PAUSE_S, LAST_PAUSE_S = 1.0, 60.0
# So many signs of life may be missing, as in stock.
MISSED = 3
# Whoever asked waits some 20 s himself.
CALL_BACK_WITHIN_S = 20.0
# A broker is believed, but not to let us call the whole world at once.
MAX_CALLS = 64
REGISTER_WITHIN_S = 20.0


@attrs.define(eq=False)
class Broker(trio.abc.Listener[trio.SocketStream]):
    """One broker. ``moved`` is called when it knows us by another id than before.

    A listener: what it accepts are connections that we have made for others.
    """

    address: Callable[[], Sinful]
    wishes: Callable[[], Negotiate]
    own_name: str
    heartbeat_s: float
    log: logging.LoggerAdapter[logging.Logger]
    moved: Callable[[], None] = lambda: None
    registration: ccb.Registration | None = None
    registered: trio.Event = attrs.field(factory=trio.Event)
    _calls: int = 0
    _sending: trio.Lock = attrs.field(factory=trio.Lock)
    _made: tuple[trio.MemorySendChannel[trio.SocketStream], trio.MemoryReceiveChannel[trio.SocketStream]] = attrs.field(
        factory=lambda: trio.open_memory_channel[trio.SocketStream](MAX_CALLS)
    )

    async def accept(self) -> trio.SocketStream:
        """The next connection that was made. Cancelling loses none."""
        return await self._made[1].receive()

    async def aclose(self) -> None:
        """Close connections that nobody has accepted."""
        while True:
            try:
                await trio.aclose_forcefully(self._made[1].receive_nowait())
            except trio.WouldBlock:
                return

    async def run(self) -> None:
        """Until cancelled: registered, or trying to be."""
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                await self._once()
            except* (PeerFault, Refused, OSError, trio.TooSlowError) as group:
                said = "; ".join(_texts(group))
                self.log.warning("broker: %s; nobody new reaches this startd until it answers again", one_line(said))
            if self.registered.is_set():
                self.registered, pause_s = trio.Event(), FIRST_PAUSE_S
            await trio.sleep(random.uniform(0.1, 1.0) * pause_s)
            pause_s = min(2 * pause_s, LAST_PAUSE_S)

    async def _once(self) -> None:
        """One connection to it, for as long as it lasts."""
        stream = await connect(self.address(), Command.CCB_REGISTER, self.wishes(), subsystem=SUBSYSTEM)
        async with stream:
            with trio.fail_after(REGISTER_WITHIN_S):
                found = await ccb.register(stream, f"{SUBSYSTEM} {self.own_name}", self.registration)
            before, self.registration = self.registration, found
            self.log.info("reached through the broker as %s", found.ccbid)
            if before is None or before.ccbid != found.ccbid:
                self.moved()
            self.registered.set()
            await self._serve(stream)

    async def _serve(self, stream: CedarStream) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._beat, stream)
            silence_s = MISSED * self.heartbeat_s if self.heartbeat_s else math.inf
            while True:
                with trio.move_on_after(silence_s) as waiting:
                    request = ccb.request_of((await stream.get()).ad())
                    if request is not None:
                        nursery.start_soon(self._answer, stream, request)
                if waiting.cancelled_caught:
                    raise PeerFault("timeout", f"it said nothing for {silence_s:.0f} s")

    async def _beat(self, stream: CedarStream) -> None:
        while self.heartbeat_s:
            await trio.sleep(self.heartbeat_s)
            await self._put(stream, ccb.heartbeat())

    async def _answer(self, stream: CedarStream, request: ccb.Request) -> None:
        """Connect, and tell the broker how that went."""
        if self._calls >= MAX_CALLS:
            await self._put(stream, ccb.outcome(request, "too many others are being called back"))
            return
        self._calls += 1
        try:
            transport = await ccb.call_back(request, SUBSYSTEM, CALL_BACK_WITHIN_S)
        except PeerFault as fault:
            self.log.info("broker: request %s: %s", one_line(request.request_id), one_line(str(fault)))
            await self._put(stream, ccb.outcome(request, str(fault)))
            return
        finally:
            self._calls -= 1
        try:
            self._made[0].send_nowait(transport)
        except trio.WouldBlock:  # the server takes none now
            await trio.aclose_forcefully(transport)
            await self._put(stream, ccb.outcome(request, "the startd takes no connection now"))
            return
        await self._put(stream, ccb.outcome(request))

    async def _put(self, stream: CedarStream, ad: ClassAd) -> None:
        """One message at a time. A broker that does not take it is as good as away."""
        async with self._sending:
            with trio.fail_after(REGISTER_WITHIN_S):
                await stream.put(ad)


def _texts(group: BaseExceptionGroup[Exception]) -> Iterator[str]:
    for inner in group.exceptions:
        if isinstance(inner, BaseExceptionGroup):
            yield from _texts(inner)
        else:
            yield str(inner) or "it is silent"


def reached_by(address: Sinful, brokers: Sequence[Broker], network: str | None) -> Sinful:
    """The address to tell: who is in the same private network connects, all others ask one of the brokers."""
    ids = [broker.registration.ccbid for broker in brokers if broker.registration is not None]
    more = {"CCBID": " ".join(ids)} if ids else {}
    if network and brokers:
        more["PrivNet"] = network
    return Sinful(address.host, address.port, {**address.params, **more})
