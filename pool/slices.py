"""Long work in the daemon's one thread, in slices: whoever else waits for it runs in between."""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import TypeVar

import trio

# A user at a command does not notice, and no deadline of a peer is near it.
SLICE_S = 0.005

Result = TypeVar("Result")


async def in_slices(work: Generator[None, None, Result]) -> Result:
    """What ``work`` returns. It is left where it yields, whenever a slice of time is over. Cancelled there, it ends."""
    end_s = time.monotonic() + SLICE_S
    while True:
        try:
            next(work)
        except StopIteration as end:
            result: Result = end.value
            return result
        if time.monotonic() >= end_s:
            await trio.lowlevel.checkpoint()
            end_s = time.monotonic() + SLICE_S
