"""One syscall socket: whole messages to a shadow and its answers, strictly one call at a time (wire reference 4.1).

A lost connection is noticed also between calls. What a loss means, and whether there will be another socket, is not
known here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from cedar.codec import Item, Reader
from cedar.errors import PeerFault
from cedar.stream import CedarStream

# Stock waits 300 s on this socket (wire reference 4.1); a shadow that blocks longer than this has other troubles.
CALL_DEADLINE_S = 120.0
T = TypeVar("T")


class SyscallSocket:
    """The connection to one shadow. ``listen`` must run as long as calls are made; its owner lets one call in."""

    def __init__(self, stream: CedarStream) -> None:
        self._stream = stream
        self._answers, self._answer = trio.open_memory_channel[Reader](0)
        self._calling = False
        self._gone = trio.Event()
        self.fault: PeerFault | None = None
        self.peer = stream.peer

    async def listen(self) -> PeerFault:
        """Read answers until the connection ends; returns why it ended. Cancelling it ends all further calls."""
        try:
            while True:
                reader = await self._stream.get()
                if not self._calling:
                    raise PeerFault("protocol", "the shadow spoke out of turn")
                await self._answers.send(reader)
        except PeerFault as fault:
            self.fault = self.fault or fault
        except trio.BrokenResourceError:
            pass  # dropped by a caller, who has said why
        finally:
            self.fault = self.fault or PeerFault("closed", "the syscall socket is no longer read")
            self._gone.set()
            self._answers.close()
        return self.fault

    async def wait_gone(self) -> None:
        """Until the connection has ended."""
        await self._gone.wait()

    async def drop(self, fault: PeerFault) -> None:
        """Close it, for this reason; ``listen`` ends then. Harmless when it has ended already."""
        self.fault = self.fault or fault
        self._answer.close()
        await self._stream.aclose()

    async def turn(self, make: Callable[[SyscallSocket], Awaitable[T]]) -> T:
        """``make`` one call: shielded from cancelling, so that a call is never cut off in the middle, and bounded.

        Raises:
            PeerFault: the connection is lost, the answer is none, or came not within CALL_DEADLINE_S.
        """
        with trio.move_on_after(CALL_DEADLINE_S, shield=True):
            self._calling = True
            try:
                return await make(self)
            finally:
                self._calling = False
        raise PeerFault("timeout", f"the shadow did not answer within {CALL_DEADLINE_S:.0f} s")

    async def put(self, *items: Item) -> None:
        if self.fault is not None:
            raise self.fault
        await self._stream.put(*items)

    async def exchange(self, *items: Item) -> Reader:
        """One message there, one back; within a ``turn``."""
        await self.put(*items)
        try:
            return await self._answer.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError):
            raise self.fault or PeerFault("closed", "the syscall socket ended") from None
