"""What the node's calls of the identity switch have shown (`pilot.standing`), for the ads; and the look at a site that
is down.

While the site is down nobody but this asks it anything: one call on the pilot's own behalf, at growing intervals. Its
pass makes the slots match again. The same call finds out whether a pilot whose own proxy had ended can vouch for the
site again.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable

import attrs
import trio

from pilot import standing
from pilot.inquiry import note_pilot
from pilot.ledger import Ledger
from pilot.outcomes import Outcome
from pilot.standing import Standing

# The file is small, and mostly unchanged.
READ_EVERY_S = 1.0


@attrs.define(eq=False)
class SwitchWatch:
    """``ask`` makes one call on the pilot's own behalf; ``changed`` is called when ads should be sent again."""

    ledger: Ledger
    ask: Callable[[], Awaitable[Outcome]]
    changed: Callable[[], None]
    log: logging.LoggerAdapter[logging.Logger]
    _now: Standing = attrs.field(factory=Standing)

    def refused(self) -> tuple[str, ...]:
        """Identities that do not match here now."""
        return standing.refused(self._now, now_s=self.ledger.clock())

    @property
    def down(self) -> str:
        """Why the site's authorisation is down; empty while it is not."""
        return self._now.down

    async def run(self) -> None:
        """Until cancelled."""
        shown: tuple[object, ...] = ((), "")
        while True:
            self._now = self.ledger.read()
            if (self.refused(), self.down) != shown:
                self._tell(shown[1])
                shown = (self.refused(), self.down)
                self.changed()
            if standing.asks_again(self._now, now_s=self.ledger.clock()):
                await note_pilot(self.ledger, await self.ask(), random.random())
                continue
            await trio.sleep(READ_EVERY_S)

    def _tell(self, was_down: object) -> None:
        if self.down and not was_down:
            self.log.warning("the site's authorisation is down, no job matches until it is back: %s", self.down)
        elif was_down and not self.down:
            self.log.info("the site's authorisation is back")
        for identity in self.refused():
            self.log.info("jobs of %s do not match here for a while", identity)
