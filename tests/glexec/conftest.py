"""A throw-away site for the tests of glexec: two installations (linger and not), real accounts and proxies."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from demo import accounts as demo_accounts
from demo.grid import Certified, Grid, make_grid, make_proxy, write_private
from glexec.install import Installed, InstallError, install, uninstall
from tests.glexec.judges import World, made_world

PATIENCE_S = 60.0


class Result(NamedTuple):
    """How a call ended: `code` is negative for a death by signal."""

    code: int
    out: bytes
    err: bytes


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    """The first true value of the condition; fails with `what` after the deadline."""
    until = time.monotonic() + PATIENCE_S
    while not (value := condition()):
        if time.monotonic() > until:
            pytest.fail(f"waited in vain for {what}")
        time.sleep(0.002)
    return value


class Site:
    """Both installations, and the pilot's calls of them."""

    def __init__(self, base: Path, accounts: Mapping[str, demo_accounts.Account]) -> None:
        self.base = base
        self.pilot, self.alice, self.bob = accounts["pilot"], accounts["alice"], accounts["bob"]
        self.grid: Grid = make_grid(base / "grid")
        self.users: dict[str, Certified] = {name: self.grid.user(name) for name in ("Alice", "Bob", "Eve")}
        self.private = base / "pilot"
        self.private.mkdir(mode=0o700)
        os.chown(self.private, self.pilot.uid, self.pilot.gid)
        for name, user in self.users.items():
            self.proxy(name.lower(), make_proxy(user).pem)
        self.installed: dict[bool, Installed] = {linger: self.install(linger) for linger in (True, False)}

    def install(self, linger: bool, name: str = "", **more: Any) -> Installed:
        """One installation; `name` makes it a further one."""
        name = name or ("linger" if linger else "become")
        settings: dict[str, Any] = {
            "allowed_callers": [self.pilot.name],
            "certificates_dir": self.grid.certificates_dir,
            "grid_mapfile": f'"{self.users["Alice"].identity}" {self.alice.name}\n'
            f'"{self.users["Bob"].identity}" {self.bob.name}\n',
            "sudoers_path": Path("/etc/sudoers.d") / f"{self.base.name}-{name}",
            "log": self.base / name / "log/glexec.log",
        }
        return install(self.base / name, linger=linger, **{**settings, **more})

    def proxy(self, name: str, pem: bytes) -> Path:
        """A credential file of the pilot's."""
        return write_private(self.private / f"{name}.pem", pem, owner=(self.pilot.uid, self.pilot.gid))

    def environment(self, proxy: str | Path | None = "alice", **more: str | None) -> dict[str, str]:
        """The pilot's environment for a call; None removes a variable."""
        path = self.private / f"{proxy}.pem" if isinstance(proxy, str) else proxy
        variables: dict[str, str | None] = {
            "PATH": "/usr/bin:/bin",
            "GLEXEC_CLIENT_CERT": None if path is None else str(path),
            "GLEXEC_TARGET_PROXY": "/dev/null",
            "GLEXEC_ID": "test#1",
            **more,
        }
        return {name: value for name, value in variables.items() if value is not None}

    def start(
        self,
        *command: str | bytes,
        linger: bool = True,
        installed: Installed | None = None,
        shell: Path | None = None,
        env: Mapping[str, str] | Mapping[bytes, bytes] | None = None,
        account: demo_accounts.Account | None = None,
        **more: Any,
    ) -> subprocess.Popen[bytes]:
        """A call by the pilot (or another account), under way."""
        front = (installed or self.installed[linger]).front
        account = account or self.pilot
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": "/"}
        return subprocess.Popen(
            [*([str(shell)] if shell else []), str(front), *command],
            env=self.environment() if env is None else env,
            user=account.uid,
            group=account.gid,
            extra_groups=[],
            **{**streams, **more},
        )

    def call(self, *command: str | bytes, input: bytes | None = None, **more: Any) -> Result:
        """A call by the pilot, to its end."""
        if input is not None:
            more["stdin"] = subprocess.PIPE
        with self.start(*command, **more) as process:
            out, err = process.communicate(input, timeout=PATIENCE_S)
            return Result(process.returncode, out or b"", err or b"")

    def sh(self, script: str, **more: Any) -> Result:
        """A call of a shell script."""
        return self.call("/bin/sh", "-c", script, **more)

    def log(self, linger: bool = True, installed: Installed | None = None) -> list[dict[str, Any]]:
        """All events so far; every line must be JSON of its own."""
        file = (installed or self.installed[linger]).log
        return [json.loads(line) for line in file.read_bytes().split(b"\n")[:-1]] if file.exists() else []

    def last(self, event: str, linger: bool = True, installed: Installed | None = None) -> dict[str, Any]:
        """The newest event of a kind."""
        return [line for line in self.log(linger, installed) if line["event"] == event][-1]

    def no_process_of(self, account: demo_accounts.Account) -> bool:
        """Does nothing run at this account?"""
        return not demo_accounts.processes_of([account.uid])


def take_down(base: Path) -> None:
    """Remove a site with every installation that is still in it."""
    for place in base.iterdir():
        with suppress(InstallError):
            uninstall(Installed.load(place), remove_log=True)
    shutil.rmtree(base)


@pytest.fixture(scope="session")
def site(accounts: Mapping[str, demo_accounts.Account]) -> Iterator[Site]:
    """The site, taken down afterwards."""
    for left in Path("/var/tmp").glob("sptest-glexec-*"):
        if not Path("/proc", left.name.split("-")[2]).exists():
            take_down(left)  # of a run that was killed
    base = Path(tempfile.mkdtemp(prefix=f"sptest-glexec-{os.getpid()}-", dir="/var/tmp"))
    base.chmod(0o755)
    try:
        yield Site(base, accounts)
    finally:
        take_down(base)


@pytest.fixture(params=[True, False], ids=["linger", "become"])
def linger(request: pytest.FixtureRequest) -> bool:
    """Both ways of running the payload."""
    return bool(request.param)


@pytest.fixture(params=["dash", "bash"])
def shell(request: pytest.FixtureRequest, site: Site) -> Path:
    """A shell under the name sh, as which both keep to POSIX."""
    found = shutil.which(request.param)
    if found is None:
        pytest.skip(f"no {request.param} here")
    directory = site.base / request.param
    if not directory.exists():
        directory.mkdir()
        (directory / "sh").symlink_to(found)
    return directory / "sh"


@pytest.fixture
def spare(site: Site, linger: bool, request: pytest.FixtureRequest) -> Iterator[Installed]:
    """An installation to spoil."""
    name = "spare-" + re.sub(r"[^a-z0-9]", "-", request.node.name.lower())[:60]
    made = site.install(linger, name)
    yield made
    uninstall(made, remove_log=True)


@pytest.fixture(scope="session")
def world(site: Site) -> Iterator[World]:
    """Both judges' glexecs, taken down afterwards."""
    with made_world(site) as made:
        yield made


@pytest.fixture
def policy(world: World) -> Iterator[Callable[[str], None]]:
    """Gives both judges the same policy; the old one comes back."""
    old = {made: made.lcmaps_db.read_text() for made in world.installed.values()}

    def give(text: str) -> None:
        for made in world.installed.values():
            made.lcmaps_db.write_text(text)

    yield give
    for made, text in old.items():
        made.lcmaps_db.write_text(text)
