"""Throw-away accounts with an unmistakable prefix, for the demo and the tests; only root can.

An account is made without a password and without a shell, with a group of its own, and removed
only if its name has the prefix and its comment says that this module made it. The comment also
names the maker (pid, start tick, boot), so that what a killed run left is told from what a
running one uses. Accounts have no home directory.
"""

from __future__ import annotations

import grp
import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import attrs

from demo import interrupts

COMMENT = "Sailplane throw-away account"
_MAKER = re.compile(re.escape(COMMENT) + r" of pid (\d+) tick (\d+) boot ([0-9a-f]{8})")
ROLES = ("pool", "pilot", "alice", "bob")
# sp = Sailplane; demo or test; four hexadecimal digits; the role. Nobody's account looks like it.
_NAME = re.compile(r"sp(?:demo|test)[0-9a-f]{4}-[a-z]{2,8}")
# useradd and userdel fail when another one holds the files' lock; each holds it for some 50 ms.
_LAST_LOCK_S = 30.0
# Their words in English: one of them is looked for.
_TOOLS_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
_LAST_KILL_S = 10.0
# userdel(8): user currently logged in, which it says of any process at the uid.
_IN_USE = 8


class AccountError(Exception):
    """An account could not be made or removed; the text has the system tool's words."""


class InUseError(AccountError):
    """An account has processes."""


@attrs.frozen
class Account:
    """A made account."""

    name: str
    uid: int
    gid: int


def fresh_prefix(kind: str) -> str:
    """A prefix that no account has yet: `spdemo3fa9-`; `kind` is demo or test."""
    taken = {entry.pw_name for entry in pwd.getpwall()}
    while True:
        prefix = f"sp{kind}{secrets.token_hex(2)}-"
        if not any(name.startswith(prefix) for name in taken):
            return prefix


def create(prefix: str, roles: Sequence[str] = ROLES) -> dict[str, Account]:
    """Make the accounts `prefix + role`; all or none. AccountError when a system tool refuses."""
    made: dict[str, Account] = {}
    try:
        for role in roles:
            made[role] = _create(prefix + role)
    except BaseException:
        for account in made.values():
            remove(account.name)
        raise
    return made


def _create(name: str) -> Account:
    if _NAME.fullmatch(name) is None:
        raise AccountError(f"{name} is not a throw-away account's name")
    # --no-log-init: lastlog is a sparse file as long as the highest uid.
    _run(
        "useradd", "--no-create-home", "--home-dir", "/nonexistent", "--shell", "/usr/sbin/nologin",
        "--no-log-init", "--user-group", "--comment", _comment(), name,
    )  # fmt: skip
    entry = pwd.getpwnam(name)
    return Account(name, entry.pw_uid, entry.pw_gid)


def remove(name: str) -> None:
    """Kill what runs at the account and remove it. Absent is fine; one we did not make is an error."""
    if _NAME.fullmatch(name) is None:
        raise AccountError(f"{name} is not a throw-away account's name")
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return
    if not entry.pw_gecos.startswith(COMMENT):
        raise AccountError(f"account {name} was not made by Sailplane; leaving it")
    _delete(name, entry.pw_uid)
    shutil.rmtree(f"/var/tmp/sailplane-userns-{entry.pw_uid}", ignore_errors=True)  # its table of sub-uids
    with suppress(KeyError):
        grp.getgrnam(name)
        _run("groupdel", name)


def _delete(name: str, uid: int) -> None:
    """Kill and userdel, again if a child that was on its way took the uid after the last look."""
    end_s = time.monotonic() + _LAST_KILL_S
    while True:
        kill_all(uid)
        try:
            return _run("userdel", name)
        except InUseError:
            if time.monotonic() > end_s:
                raise


def start_ticks(pid: int) -> int | None:
    """Start tick of a live process, None when there is none; (pid, tick) names a process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    fields = stat[stat.rindex(")") + 2 :].split()
    return None if fields[0] in "ZX" else int(fields[19])


def boot() -> str:
    """The first digits of this boot's id; pids and ticks of another boot mean nothing."""
    return Path("/proc/sys/kernel/random/boot_id").read_text()[:8]


def _comment() -> str:
    return f"{COMMENT} of pid {os.getpid()} tick {start_ticks(os.getpid())} boot {boot()}"


def _maker_lives(comment: str) -> bool:
    match = _MAKER.match(comment)
    return match is not None and match[3] == boot() and start_ticks(int(match[1])) == int(match[2])


def abandoned() -> list[str]:
    """Throw-away accounts whose maker is no longer there."""
    return [
        entry.pw_name
        for entry in pwd.getpwall()
        if _NAME.fullmatch(entry.pw_name) and entry.pw_gecos.startswith(COMMENT) and not _maker_lives(entry.pw_gecos)
    ]


def processes_of(uids: Sequence[int]) -> dict[int, str]:
    """Live processes (zombies left out) that have one of these uids as real or effective uid."""
    found: dict[int, str] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        with suppress(OSError):
            fields = dict(
                line.split(":", 1) for line in Path("/proc", entry, "status").read_text(errors="replace").splitlines()
            )
            if fields["State"].split()[0] not in "ZX" and {int(u) for u in fields["Uid"].split()[:2]} & set(uids):
                found[int(entry)] = fields["Name"].strip()
    return found


def kill_all(uid: int) -> None:
    """SIGKILL every process of a throw-away account until none is left; AccountError after 10 s."""
    end_s = time.monotonic() + _LAST_KILL_S
    while left := processes_of([uid]):
        if time.monotonic() > end_s:
            raise AccountError(f"processes of uid {uid} survive SIGKILL: {left}")
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


@contextmanager
def throw_away(kind: str, roles: Sequence[str] = ROLES) -> Iterator[Mapping[str, Account]]:
    """Accounts by role for the length of a block; removed with all their processes afterwards."""
    prefix = fresh_prefix(kind)
    made = create(prefix, roles)
    try:
        yield made
    finally:
        for account in made.values():
            remove(account.name)


def _run(*argv: str) -> None:
    """Run a tool of the system; while another one holds the account files, try again."""
    end_s = time.monotonic() + _LAST_LOCK_S
    while True:
        with interrupts.held():  # killed half-way, useradd leaves a group, copies and locks of the files
            done = subprocess.run(
                argv, capture_output=True, text=True, check=False, env=_TOOLS_ENVIRONMENT, start_new_session=True
            )
        if done.returncode == 0:
            return
        if (argv[0], done.returncode) == ("userdel", _IN_USE):
            raise InUseError(f"{argv[0]} {argv[-1]} failed ({done.returncode}): {done.stderr.strip()}")
        if "lock" not in done.stderr or time.monotonic() > end_s:
            raise AccountError(f"{argv[0]} {argv[-1]} failed ({done.returncode}): {done.stderr.strip()}")
        time.sleep(0.05)
