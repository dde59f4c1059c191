"""One look at the node for ``startd.health``: can a directory be made below EXECUTE, and how much is free there."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from startd.health import Look

LOOK_EVERY_S = 30.0
# A dead network disk hangs for ever.
LOOK_WITHIN_S = 20.0


def look_at(execute: Path) -> Look:
    """Makes a directory and removes it; blocks as long as the disk does."""
    try:
        probe = execute / f".health-{secrets.token_hex(8)}"
        probe.mkdir(mode=0o700)
        probe.rmdir()
        found = os.statvfs(execute)
    except OSError as fault:
        return Look(fault=f"EXECUTE ({execute}) cannot be used: {fault.strerror}")
    if found.f_files and not found.f_favail:
        return Look(fault=f"EXECUTE ({execute}) has no free inode")
    return Look(free_kb=found.f_bavail * found.f_frsize >> 10)
