"""What killed runs of the demo or the tests left behind, and how it is removed: `./dev clean`.

A site writes a marker into its directory before anything else exists: who made it (pid, start
tick, boot) and what it made outside the directory. If the maker is gone, everything that the
marker names is removed: processes, accounts, the sudoers drop-in, the directory. What has no
marker, or belongs to somebody else, is never touched.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs

from demo import accounts

MARKER = "sailplane-site.json"
PREFIX = "sailplane-"
BASES = (Path("/var/tmp"), Path("/tmp"), Path("/dev/shm"))
# In the environment of every process that a site starts; names the site's directory.
VARIABLE = "SAILPLANE_SITE"
# Inside a site's directory: the installed switch, and the sandboxes.
SWITCH = "glexec"
SANDBOXES = "pilot/execute"
_INTERPRETERS = (b"sh", b"dash", b"bash", b"python3", b"sudo")
SUDOERS_DIR = Path("/etc/sudoers.d")
# A whole machine's load may be on it; a killed process in disk sleep is told, not waited for for ever.
_LAST_KILL_S = 10.0


class LeftoverError(Exception):
    """Something could not be removed; the text says what."""


@attrs.frozen
class Marker:
    """Who made a site, and what it made outside its directory."""

    pid: int
    ticks: int
    boot: str
    accounts: tuple[str, ...] = ()
    sudoers: str | None = None
    processes: tuple[tuple[int, int], ...] = ()
    kept: bool = False

    @classmethod
    def mine(cls) -> Marker:
        """A marker of this process, of nothing so far."""
        pid = os.getpid()
        return cls(pid, accounts.start_ticks(pid) or 0, accounts.boot())

    def alive(self) -> bool:
        """Whether the maker still runs."""
        return self.boot == accounts.boot() and accounts.start_ticks(self.pid) == self.ticks

    def write(self, directory: Path) -> None:
        """Store it (0600), replacing an older one as a whole."""
        new = directory / (MARKER + ".new")
        handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(handle, "w") as file:
            json.dump(attrs.asdict(self), file)
        new.rename(directory / MARKER)


def read_marker(directory: Path) -> Marker | None:
    """The marker of a directory that is ours (a real directory and file of this account), else None."""
    try:
        outer, inner = directory.lstat(), (directory / MARKER).lstat()
        if not stat.S_ISDIR(outer.st_mode) or not stat.S_ISREG(inner.st_mode):
            return None
        if {outer.st_uid, inner.st_uid} != {os.geteuid()}:
            return None
        return _marker(json.loads((directory / MARKER).read_text()))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _marker(record: Mapping[str, Any]) -> Marker:
    return Marker(
        pid=int(record["pid"]),
        ticks=int(record["ticks"]),
        boot=str(record["boot"]),
        accounts=tuple(str(name) for name in record["accounts"]),
        sudoers=None if record["sudoers"] is None else str(record["sudoers"]),
        processes=tuple((int(pid), int(ticks)) for pid, ticks in record["processes"]),
        kept=bool(record["kept"]),
    )


def processes_in(directory: Path) -> dict[int, str]:
    """Live processes that are the site's: started by it, its root part, or at work in a sandbox of it.

    A reader's `less` or shell in the directory is not one of them.
    """
    found: dict[int, str] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            with suppress(OSError):
                process = Path("/proc", entry)
                if _belongs(process, directory) and accounts.start_ticks(int(entry)) is not None:
                    found[int(entry)] = (process / "comm").read_text(errors="replace").strip()
    return found


def _belongs(process: Path, directory: Path) -> bool:
    with suppress(OSError):
        started = (process / "environ").read_bytes().split(b"\0")
        if f"{VARIABLE}={directory}".encode() in started:
            return True
    with suppress(OSError):
        argv = (process / "cmdline").read_bytes().split(b"\0")
        programs = [argv[0]] if os.path.basename(argv[0]) not in _INTERPRETERS else argv[1:4]
        if any(program.startswith(f"{directory}/{SWITCH}/".encode()) for program in programs):
            return True
    with suppress(OSError):
        where = os.readlink(bytes(process / "cwd"))
        return where.startswith(f"{directory}/{SANDBOXES}/".encode())
    return False


def remove_site(directory: Path, marker: Marker, *, keep: bool = False) -> None:
    """Remove what a marker names, in the order in which nothing comes back. LeftoverError if it cannot.

    With `keep` the directory stays, as the maker's own; only `./dev clean` removes it then.
    """
    for pid, ticks in marker.processes:
        if marker.boot == accounts.boot() and accounts.start_ticks(pid) == ticks:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    if marker.sudoers is not None:
        _remove_sudoers(Path(marker.sudoers))  # before the account that it lets become root
    _kill_in(directory)
    for name in marker.accounts:
        accounts.remove(name)
    if keep:
        _own_tree(directory)
        attrs.evolve(marker, accounts=(), sudoers=None, processes=(), kept=True).write(directory)
    else:
        _remove_tree(directory)


def _own_tree(directory: Path) -> None:
    """The accounts are gone: nobody who gets their uids later shall own what they left."""
    for where, names, files in os.walk(directory):
        for name in (*names, *files):
            os.lchown(os.path.join(where, name), os.geteuid(), os.getegid())


def _kill_in(directory: Path) -> None:
    end_s = time.monotonic() + _LAST_KILL_S
    while left := processes_in(directory):
        if time.monotonic() > end_s:
            raise LeftoverError(f"processes of {directory} survive SIGKILL: {left}")
        for pid in left:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def _remove_sudoers(path: Path) -> None:
    if path.parent != SUDOERS_DIR or not path.name.startswith(PREFIX):
        raise LeftoverError(f"{path} is no drop-in of ours; leaving it")
    path.unlink(missing_ok=True)


def _remove_tree(directory: Path) -> None:
    """Remove a tree that jobs may have made hard to remove; never through a link."""
    if os.geteuid() != 0:
        for where, names, _files in os.walk(directory):
            for name in names:
                path = Path(where, name)
                if not path.is_symlink() and path.stat().st_uid == os.geteuid():
                    path.chmod(0o700)
    shutil.rmtree(directory)


def abandoned() -> Iterator[tuple[Path, Marker]]:
    """Sites whose maker is gone, below the usual directories."""
    bases = {*BASES, Path(os.environ.get("TMPDIR", "/tmp"))}
    for base in sorted(bases):
        with suppress(OSError):
            for directory in sorted(base.glob(PREFIX + "*")):
                marker = read_marker(directory)
                if marker is not None and not marker.alive():
                    yield directory, marker


def remove_abandoned(*, kept: bool = False) -> list[str]:
    """Remove everything that killed runs left, and with `kept` what `--keep` kept; what it was, in words."""
    removed = []
    for directory, marker in list(abandoned()):
        if kept or not marker.kept:
            remove_site(directory, marker)
            removed.append(f"{directory} of a run that is over")
    if os.geteuid() == 0:
        for name in accounts.abandoned():
            accounts.remove(name)
            removed.append(f"account {name} of a run that was killed")
    return removed


def main() -> None:
    """Remove, and name what was removed."""
    for what in remove_abandoned(kept=True):
        print(f"removed {what}")


if __name__ == "__main__":
    main()
