"""What benches ask a site's pool while it runs: over its socket, not by a command for each question."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from demo.daemons import SiteError
from demo.site import Site
from pilot import rpc
from pool import messages

T = TypeVar("T")
LOOK_S = 0.005


def ask(site: Site, question: Callable[[rpc.Channel], Awaitable[T]]) -> T:
    """One question."""

    async def asking() -> T:
        channel = await rpc.connect(site.layout.pool_socket, messages.POOL)
        try:
            return await question(channel)
        finally:
            await channel.aclose()

    return trio.run(asking)


def until(condition: Callable[[], T | None], what: str, *, within_s: float = 120.0) -> T:
    """Look until there is something; SiteError after ``within_s``."""
    end_s = time.monotonic() + within_s
    while time.monotonic() < end_s:
        found = condition()
        if found is not None:
            return found
        time.sleep(LOOK_S)
    raise SiteError(f"{what}: not within {within_s:g} s")
