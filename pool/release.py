"""Claims that are given back: told to the startd until it is certain that nothing of them can run any more."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import trio

from cedar.claims import ClaimId
from cedar.sinful import Sinful
from pool.claims import ClaimClient, started_at
from pool.matching import StartdKey

# Between two tries to release a claim at a startd that cannot be reached.
RETRY_S = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


@attrs.frozen(eq=False)
class _Ending:
    """A claim that is being released; ``done`` is set when nothing of it can run any more."""

    startd: StartdKey
    started_at: int
    done: trio.Event = attrs.field(factory=trio.Event)


@attrs.define(eq=False)
class Releases:
    """``drop`` is told of each claim that is gone for certain."""

    client: ClaimClient
    lease_s: float
    drop: Callable[[ClaimId], None]
    _endings: set[_Ending] = attrs.field(factory=set)

    async def release(self, claim_id: ClaimId, address: Sinful, startd: StartdKey) -> None:
        """Until nothing of it can run: told, unknown there, its startd started anew, or the lease over."""
        ending = _Ending(startd, started_at(claim_id))
        self._endings.add(ending)
        self.client.forget(claim_id)
        try:
            with trio.move_on_after(self.lease_s):
                tries = 0
                while not ending.done.is_set() and not await self.client.release(claim_id, address):
                    with trio.move_on_after(RETRY_S[min(tries, len(RETRY_S) - 1)]):
                        await ending.done.wait()
                    tries += 1
        finally:
            self._endings.discard(ending)
        self.drop(claim_id)

    def startd_started(self, startd: StartdKey, since: int) -> None:
        """Claims of its former life hold nothing any more."""
        for ending in self._endings:
            if ending.startd == startd and ending.started_at < since:
                ending.done.set()
