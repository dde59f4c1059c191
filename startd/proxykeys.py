"""RSA keys for delegated proxies, made ahead: 40 to 300 ms each, which no job's start should wait for."""

from __future__ import annotations

from collections import deque

import attrs
import trio

from pilot import credentials
from pilot.threads import in_thread

# Of one activation: the delegation before any file, the one of the file transfer, and a renewal.
KEYS_A_JOB = 3
# Enough for a burst of activations; made in some seconds of one core.
STOCK = 24
# After the host gave us no thread.
NO_THREAD_PAUSE_S = 5.0


@attrs.define
class ProxyKeys:
    """A stock of keys; ``run`` keeps it filled. Nothing where the settings want elliptic curves."""

    wanted: bool
    stock: int = STOCK
    _keys: deque[bytes] = attrs.field(factory=deque, repr=False)
    _taken: trio.Event = attrs.field(factory=trio.Event)

    def take(self) -> tuple[bytes, ...]:
        """For one activation; fewer, when many have been taken at once. None is given out twice."""
        taken = tuple(self._keys.popleft() for _ in range(min(KEYS_A_JOB, len(self._keys))))
        self._taken.set()
        return taken

    async def run(self) -> None:
        """Make keys in a thread, one at a time; until cancelled."""
        while self.wanted:
            self._taken = trio.Event()
            while len(self._keys) < self.stock:
                await self._add()
            await self._taken.wait()

    async def _add(self) -> None:
        try:
            self._keys.append(await in_thread(credentials.make_rsa_key, abandon_on_cancel=True))
        except BlockingIOError:
            await trio.sleep(NO_THREAD_PAUSE_S)
