"""A whole throw-away site in one directory: accounts, grid, switch, pool and startd as real processes.

Used by the demo, the end-to-end tests and the benchmarks:

    with Site.open("demo", linger=True) as site:
        site.start_pool()
        site.start_startd()
        site.sailplane(site.users["alice"], "submit", "job.sub")

As root, pool, pilot and both users have accounts of their own, and jobs are switched by sudo and
glexec. As an ordinary user everything runs at that account, but the jobs, each at a sub-uid of it;
where that cannot be (`userns.why`) nothing is isolated. The users are told apart by the proxies
that they delegate. Leaving the block stops everything in order, collects what was wrongly left in
`left`, and removes all that was made.
"""

from __future__ import annotations

import json
import os
import pwd
import secrets
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import attrs

from demo import accounts, daemons, interrupts, layout, leftovers, runtime, userns
from demo.accounts import Account
from demo.daemons import Daemon, SiteError
from demo.grid import Grid, make_grid, make_proxy, write_private
from glexec.install import Installed, install
from pilot import audit

__all__ = ["Site", "SiteError", "User"]

# A start takes about a second on an idle machine; tests run on busy ones.
START_S = 60.0
# Graceful ends wait for jobs; a site that is closed has none that matter.
STOP_S = 40.0
# One command of a user, Python's start included, on a busy machine.
COMMAND_S = 120.0
_PEOPLE = {"alice": "Alice Adams", "bob": "Bob Baker"}


@attrs.frozen
class User:
    """A user of the pool: an account (None: the maker's own), a proxy, a directory."""

    role: str
    account: Account | None
    uid: int
    name: str
    dn: str
    home: Path
    proxy: Path


@attrs.define(eq=False)
class Site:
    """A site that is there; made by `open`. Not for use by several threads."""

    layout: layout.Layout
    linger: bool
    grid: Grid
    runtime: runtime.Runtime
    accounts: Mapping[str, Account]
    users: Mapping[str, User]
    installed: Installed | None
    marker: leftovers.Marker
    userns: userns.Found
    pool: Daemon | None = None
    startd: Daemon | None = None
    left: list[str] = attrs.Factory(list)

    @classmethod
    @contextmanager
    def open(
        cls,
        kind: str = "test",
        *,
        linger: bool = True,
        base: Path | None = None,
        keep: bool = False,
        switch: bool = True,
    ) -> Iterator[Site]:
        """Make a site and remove it afterwards; no daemon is started.

        Args:
            kind: demo or test; part of the names of directory and accounts.
            linger: the site's glexec stays as the job's parent, and takes signals for it.
            base: a directory that other accounts can pass through; None takes the first that is.
            keep: leave the directory with the logs behind (`./dev clean` removes it).
            switch: False runs an ordinary user's jobs at that user's account, also where sub-uids are there.

        Raises:
            SiteError, accounts.AccountError, runtime.RuntimeMissingError: with what is missing.
        """
        with ExitStack() as undo:
            with interrupts.held():
                directory = Path(tempfile.mkdtemp(prefix=f"{leftovers.PREFIX}{kind}-", dir=base or _base()))
                directory.chmod(0o711)
                marker = leftovers.Marker.mine()
                marker.write(directory)
                undo.callback(_take_down, directory, keep=keep)
            site = cls._make(directory, kind, linger, marker, switch)
            undo.callback(site.stop)
            yield site

    @classmethod
    def _make(cls, directory: Path, kind: str, linger: bool, marker: leftovers.Marker, switch: bool) -> Site:
        where = layout.Layout(directory)
        people: dict[str, Account] = {}
        if os.geteuid() == 0:
            prefix = accounts.fresh_prefix(kind)
            marker = attrs.evolve(
                marker,
                accounts=tuple(prefix + role for role in accounts.ROLES),
                sudoers=str(leftovers.SUDOERS_DIR / f"{leftovers.PREFIX}{secrets.token_hex(4)}"),
            )
            marker.write(directory)
            people = accounts.create(prefix)
        _directories(where, people)
        grid = make_grid(where.grid)
        users = {role: _user(where, grid, role, people.get(role)) for role in _PEOPLE}
        pilot = grid.user("Pilot Factory")
        _private(where.pilot_proxy, make_proxy(pilot).pem, people.get("pilot"))
        installed = _install(where, marker, grid, linger, people, users, pilot.identity) if people else None
        running = runtime.reachable(where.runtime) if people else runtime.in_place()
        sub_uids = userns.look(where.wrapper) if switch and not people else userns.Found(None, "not asked for")
        site = cls(where, linger, grid, running, people, users, installed, marker, sub_uids)
        _readable(where.user_config, layout.text(layout.common(where)))
        return site

    @property
    def isolated(self) -> bool:
        """Whether jobs run at their users' accounts."""
        return self.installed is not None

    def start_pool(self, **knobs: object) -> Daemon:
        """Start the pool and wait until users are served; `knobs` are added to its configuration."""
        values = layout.pool_values(self.layout, owner_from_proxy=not self.isolated)
        self.pool = self._start("pool", self.layout.pool, values | knobs)
        return self.pool

    def start_startd(self, *, wait: bool = True, **knobs: object) -> Daemon:
        """Start the startd and wait until jobs can come (if `wait`); the pool must have run once."""
        address = self.layout.collector_address.read_text().splitlines()[0]
        token = self.layout.pilot / "tokens.d" / "startd.token"
        token.unlink(missing_ok=True)  # a restarted startd gets the pool's present one
        _private(token, self.layout.startd_token.read_bytes(), self.accounts.get("pilot"))
        switch = self.installed.front if self.installed else None
        values = layout.startd_values(self.layout, collector=address, switch=switch, wrapper=self.userns.wrapper)
        self.startd = self._start("startd", self.layout.pilot, values | knobs, wait=wait)
        return self.startd

    def _start(self, name: str, home: Path, values: Mapping[str, object], *, wait: bool = True) -> Daemon:
        config = home / f"{name}.conf"
        _readable(config, layout.text(values))
        with interrupts.held():
            daemon = daemons.start(
                name,
                self.runtime.argv(f"sailplane-{name}", "--config", str(config)),
                account=self.accounts.get("pilot" if name == "startd" else name),
                environment=self.environment(home),
                cwd=home,
                output=self.layout.logs / f"{name}.out",
                logs=home / "log",
            )
            self.marker = attrs.evolve(self.marker, processes=(*self.marker.processes, (daemon.pid, daemon.ticks)))
            self.marker.write(self.layout.root)
        if wait:
            self.wait_until(daemon.said_ready, what=f"{name} to be ready", also=daemon, deadline_s=START_S)
        return daemon

    def wait_until(
        self,
        condition: Callable[[], daemons.T | None],
        *,
        what: str,
        deadline_s: float = 60.0,
        also: Daemon | None = None,
        look_s: float = daemons.LOOK_S,
    ) -> daemons.T:
        """Wait for a condition; SiteError with the logs' ends when a daemon dies or time is up."""
        watched = [daemon for daemon in (self.pool, self.startd, also) if daemon is not None]
        return daemons.wait_until(condition, what=what, deadline_s=deadline_s, daemons=watched, look_s=look_s)

    def environment(self, home: Path) -> dict[str, str]:
        """The whole environment of a process of the site; nothing of the maker's own."""
        return {
            "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin",
            "HOME": str(home),
            "LANG": "C.UTF-8",
            leftovers.VARIABLE: str(self.layout.root),
            **self.runtime.environment,
        }

    def run_as(
        self, user: User, argv: list[str], variables: Mapping[str, str] | None = None, *, deadline_s: float = COMMAND_S
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as a user in the user's directory; its outcome is the caller's to judge."""
        environment = self.environment(user.home) | {
            "SAILPLANE_CONFIG": str(self.layout.user_config),
            "X509_USER_PROXY": str(user.proxy),
        }
        return subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=environment | dict(variables or {}),
            cwd=user.home,
            umask=0o022,
            timeout=deadline_s,
            check=False,
            **daemons.switched(user.account),
        )

    def sailplane(self, user: User, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run `sailplane ARGUMENTS` as a user."""
        return self.run_as(user, self.runtime.argv("sailplane", *arguments), variables)

    def ask(self, user: User, *arguments: str) -> Any:
        """Run `sailplane ARGUMENTS --json` as a user; SiteError with its words when it fails."""
        done = self.sailplane(user, *arguments, "--json")
        if done.returncode != 0:
            words = done.stderr.strip() or done.stdout.strip()
            raise SiteError(
                f"sailplane {' '.join(arguments)} as {user.name}: exit {done.returncode}: {words}\n{self._tails()}"
            )
        return json.loads(done.stdout)

    def _tails(self) -> str:
        alive = [daemon for daemon in (self.pool, self.startd) if daemon is not None]
        return "\n".join(f"{daemon.name}, exit status {daemon.died()}:\n{daemon.tails()}" for daemon in alive)

    def put(self, user: User, name: str, data: bytes, *, mode: int = 0o644) -> Path:
        """A new file of the user's in the user's directory."""
        path = user.home / name
        _write(path, data, mode, user.account)
        return path

    def switch_log(self) -> list[dict[str, Any]]:
        """The records of the site's root log; empty without a switch."""
        if self.installed is None or not self.installed.log.exists():
            return []
        return list(audit.read(self.installed.log))

    @interrupts.ignored()
    def stop(self) -> None:
        """Stop startd, then pool; note in `left` what is still there. Takes at most 80 s."""
        for daemon, number in ((self.startd, signal.SIGQUIT), (self.pool, signal.SIGTERM)):
            if daemon is not None and daemon.pidfd >= 0 and daemon.stop(number, deadline_s=STOP_S) is None:
                self.left.append(f"{daemon.name} did not end within {STOP_S:g} s of signal {number:d}")
        self.pool = self.startd = None
        uids = [account.uid for account in self.accounts.values()]
        still = accounts.processes_of(uids) | leftovers.processes_in(self.layout.root)
        self.left += [f"process {pid} ({name})" for pid, name in still.items()]
        if self.layout.execute.is_dir():
            self.left += [f"sandbox {path}" for path in self.layout.execute.iterdir()]


def _base() -> Path:
    """Where sites go: the first directory that can be written and, if root, that other accounts can pass through."""
    wanted = os.environ.get("TMPDIR")
    for base in ([Path(wanted)] if wanted else []) + list(leftovers.BASES):
        passable = os.geteuid() != 0 or runtime.traversable(base / "x")
        if base.is_dir() and os.access(base, os.W_OK) and passable:
            return base
    raise SiteError("no temporary directory that other accounts can pass through; set TMPDIR to one")


def _directories(where: layout.Layout, people: Mapping[str, Account]) -> None:
    where.logs.mkdir(mode=0o755)
    _directory(where.pool, 0o711, people.get("pool"))
    _directory(where.pool / "log", 0o700, people.get("pool"))
    _directory(where.pilot, 0o711, people.get("pilot"))
    for name, mode in (("log", 0o700), ("run", 0o700), ("tokens.d", 0o700), ("execute", 0o711)):
        _directory(where.pilot / name, mode, people.get("pilot"))
    for role in _PEOPLE:
        _directory(where.home(role), 0o700, people.get(role))


def _directory(path: Path, mode: int, owner: Account | None) -> None:
    path.mkdir(mode=0o700)
    if owner is not None:
        os.chown(path, owner.uid, owner.gid)
    path.chmod(mode)


def _user(where: layout.Layout, grid: Grid, role: str, account: Account | None) -> User:
    certified = grid.user(_PEOPLE[role])
    home = where.home(role)
    _private(home / "proxy", make_proxy(certified).pem, account)
    name = account.name if account else pwd.getpwuid(os.getuid()).pw_name
    uid = account.uid if account else os.getuid()
    return User(role, account, uid, name, certified.identity, home, home / "proxy")


def _install(
    where: layout.Layout,
    marker: leftovers.Marker,
    grid: Grid,
    linger: bool,
    people: Mapping[str, Account],
    users: Mapping[str, User],
    pilot_dn: str,
) -> Installed:
    rows = [(user.dn, user.name) for user in users.values()] + [(pilot_dn, people["pilot"].name)]
    assert marker.sudoers is not None  # root's marker names one
    return install(
        where.switch,
        linger=linger,
        allowed_callers=[people["pilot"].name],
        certificates_dir=grid.certificates_dir,
        grid_mapfile="".join(f'"{dn}" {name}\n' for dn, name in rows),
        sudoers_path=Path(marker.sudoers),
        log=where.switch / "glexec.log",
    )


def _private(path: Path, data: bytes, owner: Account | None) -> None:
    write_private(path, data, owner=(owner.uid, owner.gid) if owner else None)


def _readable(path: Path, text: str) -> None:
    """A file that everybody may read; in a daemon's own directory it replaces what lies there."""
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    _write(new, text.encode(), 0o644, None)
    new.rename(path)


def _write(path: Path, data: bytes, mode: int, owner: Account | None) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        os.fchmod(handle, mode)
        if owner is not None:
            os.fchown(handle, owner.uid, owner.gid)


@interrupts.ignored()
def _take_down(directory: Path, *, keep: bool) -> None:
    """Remove what the marker names; with `keep` the directory stays, as the maker's own."""
    marker = leftovers.read_marker(directory)
    if marker is None:
        raise SiteError(f"the marker of {directory} is gone; leaving the directory")
    leftovers.remove_site(directory, marker, keep=keep)
