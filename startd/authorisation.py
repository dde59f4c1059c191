"""Who may do what at the startd's port: ALLOW_* and DENY_* by level. Pure.

A level includes lower ones: ADMINISTRATOR and DAEMON include WRITE, and WRITE includes READ. Whoever is allowed a level
is allowed what it includes; whoever is denied one is denied all that include it. Sessions of claims and capabilities do
not ask here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import attrs

from cedar.sessions import implied
from pilot.peers import Peers, exactly
from pilot.settings import Settings

LEVELS = ("READ", "WRITE", "ADMINISTRATOR", "DAEMON")


@attrs.frozen
class Rules:
    """Who is allowed and denied each level by name."""

    allow: Mapping[str, tuple[Peers, ...]]
    deny: Mapping[str, tuple[Peers, ...]]

    @classmethod
    def of(cls, settings: Settings, own: Iterable[str]) -> Rules:
        """As the settings say; `own` are the accounts that are the daemon's masters anyway, as name@domain."""
        us = tuple(map(exactly, own))
        allow = {
            "READ": settings.allow_read,
            "WRITE": us if settings.allow_write is None else settings.allow_write,
            "ADMINISTRATOR": us if settings.allow_administrator is None else settings.allow_administrator,
            "DAEMON": settings.allow_daemon or (),
        }
        deny = {level: getattr(settings, f"deny_{level.lower()}") or () for level in LEVELS}
        return cls(allow, deny)

    def permits(self, level: str, identity: str, host: str) -> bool:
        """Whether somebody of this name at this address may do what needs `level`."""
        including = (above for above in self.allow if level in implied(above))
        return any(
            self._listed(self.allow, above, identity, host) and not self._denied(above, identity, host)
            for above in including
        )

    def _denied(self, level: str, identity: str, host: str) -> bool:
        return any(self._listed(self.deny, below, identity, host) for below in implied(level))

    @staticmethod
    def _listed(lists: Mapping[str, tuple[Peers, ...]], level: str, identity: str, host: str) -> bool:
        return any(peers.match(identity, host) for peers in lists.get(level, ()))
