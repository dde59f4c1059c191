"""The pilot's own proxy, kept fresh: from a file that somebody renews, or from MyProxy.

SAILPLANE_PILOT_PROXY is what every call of the switch shows, read anew each time: a glidein script may as well replace
that file itself. A new one must be the same person's in the same role, and is put there in one step.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import attrs
import trio

from pilot import credentials, myproxy
from pilot.credentials import Credential, CredentialError
from pilot.settings import Settings
from pilot.threads import in_thread

LOOK_EVERY_S = 30.0
# What is asked of MyProxy, and how long before the present one ends. A server that refuses is asked again later.
LIFETIME_S, THRESHOLD_S = 24 * 3600.0, 6 * 3600.0
ASK_AGAIN_S = 600.0
# Pilots that were started together do not ask together.
JITTER_PART = 0.2


@attrs.define(eq=False)
class PilotProxy:
    """``source``: a file; ``server`` and ``username``: of MyProxy. Without either there is nothing to do."""

    proxy: Path
    certificates_dir: Path
    log: logging.LoggerAdapter[logging.Logger]
    source: Path | None = None
    server: myproxy.Server | None = None
    username: str = ""
    fetch: Callable[..., bytes] = myproxy.logon
    _spread: float = attrs.field(factory=random.random)
    _asked_s: float = float("-inf")
    _said: str = ""

    @classmethod
    def of(cls, settings: Settings, log: logging.LoggerAdapter[logging.Logger]) -> PilotProxy | None:
        """As the settings say; None for a pilot without a proxy."""
        if settings.sailplane_pilot_proxy is None:
            return None
        server, username = parse_myproxy(settings.sailplane_pilot_myproxy)
        return cls(
            settings.sailplane_pilot_proxy,
            settings.sailplane_certificates_dir,
            log,
            source=settings.sailplane_pilot_proxy_source,
            server=server,
            username=username,
        )

    async def run(self) -> None:
        """Until cancelled."""
        if self.source is None and self.server is None:
            return
        while True:
            await self.look()
            await trio.sleep(LOOK_EVERY_S)

    async def look(self) -> bool:
        """Once; whether the proxy was renewed."""
        try:
            new = await in_thread(partial(self._renewed, trio.current_time()), abandon_on_cancel=True)
        except (CredentialError, myproxy.MyProxyError, OSError) as fault:
            if str(fault) != self._said:  # each trouble once, not every half minute
                self.log.warning("the pilot's proxy was not renewed: %s; trying again", fault)
            self._said = str(fault)
            return False
        if new is not None:
            self._said = ""
            self.log.info("the pilot's proxy was renewed and ends on %s", credentials.when(new.expires_at))
        return new is not None

    def _renewed(self, now_s: float) -> Credential | None:
        """A new one, if there is one, and it is in its place now; blocks."""
        old = credentials.load(credentials.read_private(self.proxy))
        if self.source is not None:
            pem = credentials.read_private(self.source)
            if credentials.load(pem).expires_at > old.expires_at:
                return self._take(old, pem)
        if self.server is not None and self._due(old) and now_s - self._asked_s >= ASK_AGAIN_S:
            self._asked_s = now_s
            client = myproxy.Client(self.certificates_dir, old.pem)
            pem = self.fetch(self.server, client, self.username, old_pem=old.pem, lifetime_s=LIFETIME_S)
            return self._take(old, pem)
        return None

    def _due(self, old: Credential) -> bool:
        return old.expires_at - time.time() < THRESHOLD_S * (1 + JITTER_PART * self._spread)

    def _take(self, old: Credential, pem: bytes) -> Credential:
        new = credentials.verify(pem, self.certificates_dir, now=time.time())
        change = credentials.change_of(old, new)
        if change:
            raise CredentialError("wrong-identity", f"what came is no renewal: {change}")
        if new.expires_at <= old.expires_at:
            raise CredentialError("expired", "what came does not live longer than the one that is there")
        credentials.store_private(self.proxy, pem)
        return new


def parse_myproxy(text: str | None) -> tuple[myproxy.Server | None, str]:
    """`USERNAME@host` or `USERNAME@host:port`; (None, "") for nothing.

    Raises:
        ValueError: of another form.
    """
    if not text:
        return None, ""
    username, _, server = text.rpartition("@")
    if not username:
        raise ValueError(f"{text!r} is not USERNAME@host or USERNAME@host:port")
    return myproxy.Server.parse(server), username
