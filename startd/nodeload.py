"""How busy the node and its keyboards are, for policies: read each time, cheap, never on the way of a request."""

from __future__ import annotations

import os
import time

import attrs
import psutil
from classad2 import ClassAd


@attrs.frozen
class NodeLoad:
    """LoadAvg of the last minute, and seconds since somebody typed on a terminal of this machine (since the machine's
    start, if nobody has)."""

    load: float = 0.0
    keyboard_idle_s: int = 0

    def put(self, ad: ClassAd, all_jobs: float, slots_job: float) -> None:
        """Into a slot's ad. ``all_jobs``, ``slots_job``: CPU seconds a second of our jobs (TotalCondorLoadAvg)."""
        ad["LoadAvg"] = ad["TotalLoadAvg"] = round(self.load, 2)
        ad["CondorLoadAvg"], ad["TotalCondorLoadAvg"] = round(slots_job, 2), round(all_jobs, 2)
        ad["KeyboardIdle"] = ad["ConsoleIdle"] = self.keyboard_idle_s


def look() -> NodeLoad:
    """As it is now."""
    now = time.time()
    typed = [stamp for user in psutil.users() if (stamp := _last_typed(user.terminal)) is not None]
    return NodeLoad(os.getloadavg()[0], max(0, int(now - max(typed, default=psutil.boot_time()))))


def _last_typed(terminal: str | None) -> float | None:
    try:
        return os.stat(f"/dev/{terminal}").st_atime if terminal else None
    except OSError:
        return None
