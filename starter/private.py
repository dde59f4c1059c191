"""The private directory of one starter (0700, pilot's): the job's proxy, and a note of its sandbox for the clean-up.

Its name carries the starter's identity (pid and start tick), so that a startd can tell a dead one's from a live one's.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import attrs

from starter.sandbox import Place

JOBS_DIR = "jobs"
NOTE = "sandbox.json"
PROXY = "proxy.pem"


@attrs.frozen
class Note:
    """What is needed to empty a sandbox again."""

    place: Place
    audit_id: str
    has_proxy: bool


def make_private_dir(run_dir: Path, pid: int, start_ticks: int) -> Path:
    """``RUN_DIR/jobs/PID-TICKS``, 0700."""
    path = run_dir / JOBS_DIR / f"{pid}-{start_ticks}"
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.mkdir(mode=0o700)
    return path


def write_note(private_dir: Path, place: Place, audit_id: str) -> None:
    """Written before the sandbox can exist."""
    content = {
        "path": str(place.path), "root": str(place.root), "device": place.device, "inode": place.inode,
        "audit_id": audit_id,
    }  # fmt: skip
    new = private_dir / f"{NOTE}.new"  # whole or not at all: the startd reads it, too
    new.write_text(json.dumps(content), encoding="utf-8")
    new.rename(private_dir / NOTE)


def read_note(private_dir: Path) -> Note | None:
    """None where a starter died before it had made a sandbox.

    Raises:
        OSError: it cannot be read, or is damaged (the node went down).
    """
    try:
        content = json.loads((private_dir / NOTE).read_text(encoding="utf-8"))
        place = Place(Path(content["path"]), Path(content["root"]), content["device"], content["inode"])
        return Note(place, content["audit_id"], (private_dir / PROXY).exists())
    except FileNotFoundError:
        return None
    except (ValueError, LookupError, TypeError) as fault:
        raise OSError(errno.EINVAL, f"{private_dir / NOTE} is damaged") from fault


def private_dir_of(run_dir: Path, pid: int) -> Path | None:
    """That of a starter that runs, by its pid."""
    found = (run_dir / JOBS_DIR).glob(f"{pid}-*")
    return next((path for path in found if ticks_of(pid) == int(path.name.partition("-")[2])), None)


def remove_private_dir(private_dir: Path) -> None:
    """Proxy and all; a directory that is gone is fine."""
    shutil.rmtree(private_dir, ignore_errors=True)


def abandoned(run_dir: Path) -> Iterator[Path]:
    """Private directories whose starter does not run any more."""
    for path in sorted((run_dir / JOBS_DIR).glob("*-*")):
        pid, _, ticks = path.name.partition("-")
        if not (pid.isdigit() and ticks.isdigit() and _runs(int(pid), int(ticks))):
            yield path


def _runs(pid: int, start_ticks: int) -> bool:
    return ticks_of(pid) == start_ticks


def ticks_of(pid: int) -> int | None:
    """Start tick of a process (field 22 of /proc/PID/stat); None if there is none, or only its zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(b")")[2].split()
    return None if fields[0] == b"Z" else int(fields[19])


def own_identity() -> tuple[int, int]:
    """(pid, start tick) of this process."""
    ticks = ticks_of(os.getpid())
    assert ticks is not None
    return os.getpid(), ticks
