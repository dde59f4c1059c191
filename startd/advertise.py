"""Keeps the collectors informed: ads on change and by interval, over one kept connection each; invalidated at the end.

A collector that is away is tried again with growing pauses; meanwhile nothing is lost, since every update is whole.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from pathlib import Path

import attrs
import trio
from classad2 import ClassAd

from cedar.client import Negotiate, Resume, connect
from cedar.commands import Command
from cedar.errors import PeerFault, Refused
from cedar.security import HANDSHAKE_DEADLINE_S
from cedar.sessions import Session
from cedar.sinful import Sinful
from cedar.stream import CedarStream
from startd.contact import is_own, where_now
from startd.slotads import SLOT, invalidation
from starter.updates import one_line

# Changes that come closer together than this go out in one update.
COALESCE_S = 0.02
# Many slots with short jobs change all the time: of a core their ads take a twenty-fifth, the collector's work about as
# much again. So long a wait at most.
PAUSE_PER_CPU, LONGEST_PAUSE_S = 25.0, 1.0
FIRST_PAUSE_S, LAST_PAUSE_S = 0.2, 60.0
# A collector that was lost has lost all its pilots at once: they come back spread over this.
LOST_PAUSE_S = 5.0
GOODBYE_WITHIN_S = 3.0
# A collector that does not take an update for so long is as good as away.
SEND_WITHIN_S = 20.0

# Public ad, private ad, of every slot that there is; the startd's own ad has no private one.
Ads = Callable[[], list[tuple[ClassAd, ClassAd | None]]]


def rest_s(cpu_s: float) -> float:
    """How long after an update that took so much of the processor the next one waits."""
    return min(PAUSE_PER_CPU * cpu_s, LONGEST_PAUSE_S)


@attrs.define
class Advertiser:
    """One collector. ``wake`` after a change; ``gone`` for a slot that exists no more."""

    collector: Sinful
    wishes: Callable[[], Negotiate]
    own_address: str
    ads: Ads
    interval_s: float
    log: logging.LoggerAdapter[logging.Logger]
    address_file: Path = Path("/dev/null")
    """Where a collector without a port has left its address."""
    family: Session | None = None
    """What daemons of one master know each other by."""
    dial_within_s: float = HANDSHAKE_DEADLINE_S
    send_within_s: float = SEND_WITHIN_S
    lost_pause_s: float = LOST_PAUSE_S
    advertised: trio.Event = attrs.field(factory=trio.Event)
    _changed: trio.Event = attrs.field(factory=trio.Event)
    _destroyed: list[str] = attrs.field(factory=list)
    _stream: CedarStream | None = None
    _said: str = ""

    def wake(self) -> None:
        """Send all ads again soon."""
        self._changed.set()

    def gone(self, name: str) -> None:
        """The slot ``name`` is destroyed: its ad is to be taken back. Once, however many slots of the name come and go
        while the collector is away."""
        if name not in self._destroyed:
            self._destroyed.append(name)
        self.wake()

    async def run(self) -> None:
        """Until cancelled; then takes every ad back, within GOODBYE_WITHIN_S."""
        pause_s = FIRST_PAUSE_S
        try:
            while True:
                try:
                    await self._talk()
                except (PeerFault, Refused, OSError) as fault:
                    if self._stream is not None:
                        pause_s = self.lost_pause_s
                    self._say(str(fault))
                    await self._hang_up()
                    await trio.sleep(random.uniform(0.1, 1.0) * pause_s)
                    pause_s = min(pause_s * 2, LAST_PAUSE_S)
        finally:
            with trio.move_on_after(GOODBYE_WITHIN_S, shield=True):
                await self._goodbye()

    def _say(self, trouble: str) -> None:
        """Each trouble once, until another one comes or it is over."""
        if trouble and trouble != self._said:
            self.log.warning("collector %s: %s; trying again", self.collector, one_line(trouble))
        elif self._said and not trouble:
            self.log.info("collector %s has our ads", self.collector)
        self._said = trouble

    async def _talk(self) -> None:
        """One connection for as long as it lasts."""
        self._stream = stream = await self._dial()
        first = True
        while True:
            self._changed = trio.Event()
            begun_s = time.thread_time()
            with trio.move_on_after(self.send_within_s) as sending:
                await self._send_all(stream, first)
            if sending.cancelled_caught:
                raise PeerFault("timeout", f"it did not take an update within {self.send_within_s:g} s")
            not_before_s = trio.current_time() + rest_s(time.thread_time() - begun_s)
            first = False
            self._say("")
            self.advertised.set()
            await self._wait_for_change(stream)
            await trio.sleep(max(COALESCE_S, not_before_s - trio.current_time()))

    async def _wait_for_change(self, stream: CedarStream) -> None:
        """Or for the interval's end. A collector says nothing here: what comes is the connection's end, or nonsense."""
        lost: list[PeerFault] = []

        async def listen() -> None:
            try:
                await stream.get()
                lost.append(PeerFault("state", "it sent something on a connection for updates"))
            except PeerFault as fault:
                lost.append(fault)
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            with trio.move_on_after(self.interval_s):
                await self._changed.wait()
            nursery.cancel_scope.cancel()
        if lost:
            raise lost[0]

    async def _dial(self, command: Command = Command.UPDATE_STARTD_AD) -> CedarStream:
        address = where_now(self.collector, self.address_file)
        if self.family is not None and is_own(address.host):
            try:
                return await self._connect(address, Resume(self.family), command)
            except Refused:  # another master's collector
                self.family = None
        return await self._connect(address, self.wishes(), command)

    async def _connect(self, address: Sinful, security: Resume | Negotiate, command: Command) -> CedarStream:
        return await connect(
            address,
            command,
            security,
            subsystem="STARTD",
            own_address=self.own_address,
            deadline_s=self.dial_within_s,
        )

    async def _send_all(self, stream: CedarStream, first: bool) -> None:
        """Every ad. The first message on a connection is its payload alone; later ones begin with their command."""
        ads = self.ads()
        there = {str(public["Name"]) for public, _ in ads}  # a later slot of the same name has taken its place
        self._destroyed = [name for name in self._destroyed if name not in there]
        for public, private in ads:
            head = [] if first else [int(Command.UPDATE_STARTD_AD)]
            first = False
            await stream.put(*head, public, *([] if private is None else [private]))
        while self._destroyed:  # also what was destroyed meanwhile, and was among them
            await stream.put(int(Command.INVALIDATE_STARTD_ADS), invalidation(self._destroyed[0], self.own_address))
            self._destroyed.pop(0)

    async def _goodbye(self) -> None:
        """Also for slots that were destroyed a moment ago and are not yet taken back."""
        if not self.advertised.is_set():
            return
        going = [(name, SLOT) for name in self._destroyed]
        going += [(str(public["Name"]), str(public["MyType"])) for public, _ in self.ads()]
        try:
            stream, first = await self._last_stream()
            for name, kind in going:
                head = [] if first else [int(Command.INVALIDATE_STARTD_ADS)]
                first = False
                await stream.put(*head, invalidation(name, self.own_address, kind))
            await stream.aclose()
        except (PeerFault, Refused, OSError, trio.BrokenResourceError):
            return  # the ads expire by themselves

    async def _last_stream(self) -> tuple[CedarStream, bool]:
        """The connection, or a new one (True) where an update was interrupted: the end of the last claim is told in the
        same moment as the startd's end begins."""
        if self._stream is not None and self._stream.whole:
            return self._stream, False
        await self._hang_up()
        self._stream = await self._dial(Command.INVALIDATE_STARTD_ADS)
        return self._stream, True

    async def _hang_up(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.aclose()
