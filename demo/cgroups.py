"""A throw-away cgroup (v2) as a batch system delegates one to a pilot; only root can make it.

For tests and benchmarks of what procd does with such a group.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from demo.accounts import Account
from demo.leftovers import LeftoverError

# In the group that an account may divide: where its processes are. A group with processes has no controllers below it.
MAIN = "main"
# What an account must own to make groups and to move its processes into them (cgroup v2, "Model of Delegation").
_DELEGATED = (".", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads")
# What was killed takes its time to end on a busy machine.
_LAST_REMOVAL_S = 30.0


class NoCgroupError(Exception):
    """This host has no such group to give; the text says why."""


@contextmanager
def delegated(account: Account | None) -> Iterator[Path]:
    """A group that the account may divide, with `MAIN` in it; None: one that nobody but root may divide.

    Whoever is in it at the end is killed.

    Raises:
        NoCgroupError: no cgroup v2, none that can be made, or one too old for cgroup.kill (Linux 5.14).
        LeftoverError: somebody in it survives SIGKILL.
    """
    path = _mount() / f"sptest-{secrets.token_hex(4)}"
    try:
        (path / MAIN).mkdir(parents=True)
    except OSError as error:
        raise NoCgroupError(f"no cgroup can be made in {path.parent}: {error.strerror}") from None
    try:
        if not (path / "cgroup.kill").exists():
            raise NoCgroupError("this kernel has no cgroup.kill")
        if account is not None:
            for place in (path, path / MAIN):
                for name in _DELEGATED:
                    os.chown(place / name, account.uid, account.gid)
        yield path
    finally:
        _remove(path)


def _mount() -> Path:
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        before, _, after = line.partition(" - ")
        if after.startswith("cgroup2 "):
            return Path(before.split()[4])
    raise NoCgroupError("no cgroup v2 is mounted on this host")


def _remove(path: Path) -> None:
    if (path / "cgroup.kill").exists():
        (path / "cgroup.kill").write_text("1")
    end_s = time.monotonic() + _LAST_REMOVAL_S
    for group in sorted((each for each in path.rglob("*") if each.is_dir()), reverse=True):
        _rmdir(group, end_s)
    _rmdir(path, end_s)


def _rmdir(group: Path, end_s: float) -> None:
    while True:
        try:
            return group.rmdir()
        except OSError as error:
            if time.monotonic() > end_s:
                raise LeftoverError(
                    f"{group} cannot be removed, as if somebody lived in it: {error.strerror}"
                ) from None
        time.sleep(0.01)
