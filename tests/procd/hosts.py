"""Hosts that give more or less than this one: delegated cgroups, a /proc that hides. Root makes them, others live in
them."""

from __future__ import annotations

import ctypes
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import pytest

from demo import cgroups
from demo.accounts import Account
from tests.procd import world

# <sched.h>
_CLONE_NEWNS = 0x00020000


def reachable() -> bool:
    """Whether other accounts reach this checkout and its interpreter."""
    places = (world.ROOT, Path(sys.executable).resolve().parent)
    return all(each.stat().st_mode & 0o001 for place in places for each in (place, *place.parents))


def hiding(mount: str, account: Account | None, command: list[str]) -> subprocess.CompletedProcess[bytes]:
    """Run a command at an account (None: root), in a mount namespace with another /proc.

    A new instance: remounting the one that is there would change it for the whole machine.
    """
    if tuple(map(int, platform.release().split(".")[:2])) < (5, 8):
        pytest.skip("before 5.8 all instances of proc share their options")
    switch = f"setpriv --reuid {account.uid} --regid {account.gid} --clear-groups" if account else ""
    script = f"mount {mount} /proc && exec {switch} {shlex.join(command)}"
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", script], cwd=world.ROOT, capture_output=True, timeout=60, check=False
    )


@contextmanager
def hiding_proc(mount: str = "-t proc -o hidepid=2 proc") -> Iterator[None]:
    """What this process starts meanwhile has another /proc, in a mount namespace."""
    libc, here = ctypes.CDLL(None, use_errno=True), os.getcwd()
    before = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    if libc.unshare(_CLONE_NEWNS) != 0:
        os.close(before)
        pytest.skip(f"no mount namespace can be made here: {os.strerror(ctypes.get_errno())}")
    try:
        for command in ("mount --make-rprivate /", f"mount {mount} /proc"):
            subprocess.run(command.split(), check=True)
        yield
    finally:
        assert libc.setns(before, _CLONE_NEWNS) == 0
        os.close(before)
        os.chdir(here)


@attrs.frozen
class Delegated:
    """A cgroup that an account may divide, and the group in it for its processes."""

    path: Path

    @property
    def main(self) -> Path:
        return self.path / cgroups.MAIN


@contextmanager
def delegated(account: Account | None) -> Iterator[Delegated]:
    """As `demo.cgroups.delegated`. Skips where the host gives none."""
    try:
        with cgroups.delegated(account) as path:
            yield Delegated(path)
    except cgroups.NoCgroupError as error:
        pytest.skip(str(error))
