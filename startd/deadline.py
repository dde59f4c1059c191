"""The time that one command at the startd's port may take."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from cedar.errors import PeerFault
from cedar.server import Request

# One message each way; the longest wait of our own is for a starter to be reaped. Stock waits 45 s on a startd.
COMMAND_WITHIN_S = 45.0

Handler = Callable[[Request], Awaitable[None]]


def within_deadline(handle: Handler) -> Handler:
    """The same handler; who is slower loses its connection."""

    async def bounded(request: Request) -> None:
        with trio.move_on_after(COMMAND_WITHIN_S) as scope:
            await handle(request)
        if scope.cancelled_caught:
            raise PeerFault("timeout", f"command {request.command} took more than {COMMAND_WITHIN_S:.0f} s")

    return bounded
