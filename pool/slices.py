"""Long work in the daemon's one thread, in slices: whoever else waits for it runs in between."""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import TypeVar

import trio
from attrs import define, field

# A user at a command does not notice, and no deadline of a peer is near it.
SLICE_S = 0.005

Result = TypeVar("Result")


@define
class Slices:
    """One task's long works, one behind the other: many short ones keep others waiting as one long one does."""

    _end_s: float = field(factory=lambda: time.monotonic() + SLICE_S)

    async def run(self, work: Generator[None, None, Result]) -> Result:
        """What ``work`` returns. It is left where it yields, whenever a slice of time is over. Cancelled there, it
        ends."""
        while True:
            if time.monotonic() >= self._end_s:
                await trio.lowlevel.checkpoint()
                self._end_s = time.monotonic() + SLICE_S
            try:
                next(work)
            except StopIteration as end:
                result: Result = end.value
                return result


async def in_slices(work: Generator[None, None, Result]) -> Result:
    """A work of its own, as ``Slices.run``."""
    return await Slices().run(work)
