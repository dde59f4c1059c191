"""What a job leaves outside its sandbox: whether it is looked for, and whether the account may be another job's.

The look is part of the last call of the switch (jobwrapper/elsewhere.py), so it costs none of its own.
"""

from __future__ import annotations

import os
from pathlib import Path

from pilot.settings import Settings
from pilot.switch import Switch
from starter.places import STICKY
from starter.sandbox import Elsewhere, Place, Search


def search(settings: Settings, switch: Switch, place: Place, since_ns: int) -> Search | None:
    """What the far side is told to look for. None: at the pilot's own account everything may be somebody else's."""
    if not switch.isolates or settings.sailplane_left_overs == "ignore":
        return None
    try:
        uid = os.lstat(place.path).st_uid
    except OSError:
        return None
    alone = settings.sailplane_left_overs == "remove" and not shared(Path(settings.execute), place, uid)
    return Search(since_ns, alone)


def shared(execute: Path, place: Place, uid: int) -> bool:
    """Whether another sandbox of ours belongs to this account. Processes are the far side's to look for."""
    for other in execute.glob(f"*/{STICKY}/*"):
        try:
            if other != place.path and os.lstat(other).st_uid == uid:
                return True
        except OSError:  # it has just gone
            continue
    return False


def words(found: Elsewhere) -> str:
    """What is left, in one line; empty when nothing is."""
    return f"{found.left} things of the job's are left outside its sandbox: {found.named}" if found.left else ""
