"""A job that is led from rule to rule of its starter's life, and stands still at each until told to go on.

A starter halts right behind the line of its log that tells of the rule (`halt_hook`); what happens meanwhile waits in
its sockets, so that it is met in the state that the rule has led to. Users' commands are spoken over the pool's socket
from this process, at the user's uid: a command costs a Python's start each time.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import signal
import stat
import sys
import termios
import uuid
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import trio

from demo.grid import make_proxy
from demo.site import Site
from pilot import rpc
from pool import cli_fetch, cli_submit, submit_language
from pool import messages as m
from tests.e2e import halt_hook
from tests.e2e.conftest import SHORT_LEASE, STARTD_KNOBS
from tests.e2e.e2e_jobs import DEFAULTS, PATIENCE_S, Jobs, _parent
from tests.jobwrapper.farsides import script as write_script

# pidfd_getfd(2), which the standard library does not know.
_PIDFD_GETFD = 438
_LIBC = ctypes.CDLL(None)
MARGIN_S = 15.0
# What the margin's jitter may add (starter.job).
JITTER = 1.2
# So many killed starters in a row would have no job match any more.
KNOBS = STARTD_KNOBS | {
    "SAILPLANE_PROXY_MARGIN": MARGIN_S,
    "STARTER_UPDATE_INTERVAL": 60,
    "SAILPLANE_BLACK_HOLE_JOBS": 0,
    "PERIODIC_EXPR_INTERVAL": 0,
    "SAILPLANE_MAX_PROCESSES": 20,
    "SAILPLANE_LIMITS_INTERVAL": 0.5,
}


@attrs.define(eq=False)
class Walk:
    """One job's. ``halted``: the starter that stands still, if one does; ``log_began``: how long logs were before."""

    jobs: Jobs
    hooks: Path
    job: str = ""
    halted: int = 0
    log_began: dict[str, int] = attrs.field(factory=dict)
    gate: Path | None = None

    @property
    def site(self) -> Site:
        return self.jobs.site

    # --- the way -------------------------------------------------------------------------------------------------

    def to(self, rule: int | str, act: Callable[[], object] | None = None) -> None:
        """Do `act` while the starter stands still, and let it go on until it has passed `rule`; or until a spare is at
        this moment of `halt_hook`."""
        (self.hooks / str(rule)).touch()
        if act is not None:
            act()
        self.go()
        self.halted = self.jobs.until(f"rule {rule}", lambda: self._halted_at(rule))
        assert isinstance(rule, str) or self.times_at(rule)

    def times_at(self, rule: int) -> int:
        """How often starters have passed this rule since the walk began."""
        return self.log("StarterLog").count(f"(rule {rule})")

    def log(self, name: str) -> str:
        """What one of the pilot's logs has got since the walk began."""
        return self.jobs.log(name)[self.log_began[name] :]

    def _halted_at(self, rule: int | str) -> int | None:
        for found in self.hooks.glob(f"{rule}.*"):
            pid = int(found.suffix[1:])
            if state_of(pid) == "T":
                found.unlink()
                return pid
        return None

    def go(self) -> None:
        """Let the starter go on, if it is still there."""
        with contextlib.suppress(ProcessLookupError):
            if self.halted:
                os.kill(self.halted, signal.SIGCONT)
        self.halted = 0

    def over(self) -> None:
        """Everything is there again, and nothing of the job."""
        self.go()
        self.restart()
        for path in self.hooks.glob("[0-9dot]*"):
            path.unlink()
        if self.job and self.jobs.rows()[self.job]["state"] not in ("completed", "removed"):
            with contextlib.suppress(rpc.RpcRefused):
                self.remove(hard=True)
            self.jobs.wait_for(self.job, "completed", "removed")

    # --- what a user does ----------------------------------------------------------------------------------------

    def submit(self, script: str, *, proxy_s: float = 0.0, shell: str = "/bin/sh", **wishes: str) -> None:
        """Hand in a job of alice's that runs this script; `proxy_s`: the life of a proxy of its own."""
        user, stem = self.jobs.user("alice"), uuid.uuid4().hex[:8]
        self.site.put(user, f"{stem}.sh", f"#!{shell}\n{script}\n".encode(), mode=0o755)
        proxy = user.proxy
        if proxy_s:
            certified = self.site.grid.user(user.dn.rpartition("/CN=")[2])
            proxy = self.site.put(user, f"{stem}.proxy", make_proxy(certified, lifetime_s=proxy_s).pem, mode=0o600)
        lines = DEFAULTS | {"executable": f"{user.home}/{stem}.sh", "x509userproxy": str(proxy)}
        lines["initialdir"] = str(user.home)
        text = "".join(f"{key} = {value}\n" for key, value in (lines | wishes).items()) + "queue\n"
        file = self.site.put(user, f"{stem}.sub", text.encode())
        plan = submit_language.read(file, {}, user.uid)
        done = self.ask(lambda channel: cli_submit._submit(channel, plan))
        self.job = f"{done.cluster}.0"

    def gated(self) -> str:
        """A script that is done once the gate is open."""
        self.gate = self.site.layout.root / f"gate{uuid.uuid4().hex[:8]}"
        return f"while [ ! -e {self.gate} ]; do sleep 0.2; done; echo done"

    def open_gate(self) -> None:
        if self.gate is not None:
            self.gate.touch()

    def ask(self, question: Callable[[rpc.Channel], Awaitable[Any]]) -> Any:
        """One question of alice's to the pool: who asks is told by the kernel."""

        async def asking() -> Any:
            channel = await rpc.connect(self.site.layout.pool_socket, m.POOL, max_fds=m.MAX_FDS)
            async with channel:
                return await question(channel)

        account = self.site.accounts["alice"]
        with at_account(account.uid, account.gid):
            return trio.run(asking)

    @property
    def target(self) -> m.Target:
        cluster, proc = map(int, self.job.split("."))
        return m.Target(cluster, proc)

    def act(self, verb: m.Verb) -> None:
        """hold, suspend, ..., until the execution side has heard of it."""
        self._said(lambda channel: channel.call(m.Act(self.target, verb)))

    def remove(self, *, hard: bool = False) -> None:
        """rm, until the startd has told the starter."""
        self._said(lambda channel: channel.call(m.Remove(self.target, hard=hard)))

    def _said(self, question: Callable[[rpc.Channel], Awaitable[Any]]) -> None:
        before = unread(self.halted) if self.halted else 0
        self.ask(question)
        if self.halted:
            self.jobs.until("the starter to be told", lambda: unread(self.halted) > before)

    def fetch(self) -> dict[str, bytes]:
        """The job's output by name."""
        found: dict[str, bytes] = {}

        async def fetching(channel: rpc.Channel) -> None:
            page, fds = await channel.call_with_fds(m.Fetch(self.target.cluster, self.target.proc or 0, 0))
            left = iter(fds)
            for entry in page.entries:
                if entry.size is not None:
                    with os.fdopen(next(left), "rb") as file:
                        found[cli_fetch.placed(entry.name, page)] = file.read()

        self.ask(fetching)
        return found

    # --- the daemons ---------------------------------------------------------------------------------------------

    def kill_startd(self) -> None:
        startd, self.site.startd = self.site.startd, None
        assert startd is not None
        startd.process.kill()
        startd.wait(10.0)
        startd.close()
        self.halted = 0  # the kernel continues a process group that becomes an orphan

    def kill_pool(self) -> None:
        pool, self.site.pool = self.site.pool, None
        assert pool is not None
        pool.process.kill()
        pool.wait(10.0)
        pool.close()

    def start_pool(self, **knobs: object) -> None:
        self.site.start_pool(**SHORT_LEASE | knobs, SAILPLANE_POOL_PORT=self.jobs.collector_port())

    def restart(self) -> None:
        """What the way or the case has killed, and nobody else starts again. A startd's end takes all of its own
        processes along."""
        if self.site.pool is None:
            self.start_pool()
        if self.site.startd is None:
            self.jobs.until("no process of the pilot", lambda: not self.jobs.pids_of("python"))
            start_startd(self.site)

    # --- who is there --------------------------------------------------------------------------------------------

    def victims(self, kind: str) -> list[int]:
        """Living processes of this kind that belong to the job that stands still."""
        match kind:
            case "startd":
                return [] if self.site.startd is None else [self.site.startd.pid]
            case "pool":
                return [] if self.site.pool is None else [self.site.pool.pid]
            case "procd":
                return self.jobs.pids_of("procd", "--lifeline-fd")
            case "spawner":
                parent = _parent(self.halted) if self.halted else self.jobs.spawner()
                return [pid for pid in self.jobs.pids_of("--spawner-fd") if pid == parent]
            case "starter":
                return [self.halted]
            case "spare":
                return self.jobs.spares()
            case "job":
                return list(self.jobs.processes("alice"))
            case "front" | "sudo" | "root part":
                return [pid for pid in self._between() if kind_of(pid) == kind]
        raise AssertionError(kind)

    def _between(self) -> list[int]:
        """What stands between starter and job, the uppermost first."""
        uid, found, below = self.site.accounts["alice"].uid, list[int](), {self.halted}
        parents = {int(entry): _parent(int(entry)) for entry in os.listdir("/proc") if entry.isdigit()}
        while below := {pid for pid, parent in parents.items() if parent in below and uid_of(pid) not in (uid, None)}:
            found += sorted(pid for pid in below if state_of(pid) not in "ZX")
        return found


def kind_of(pid: int) -> str:
    """Of a process of the switch: the front has the pilot's uid, sudo is itself, what is left is the root part."""
    with contextlib.suppress(OSError):
        name = Path(f"/proc/{pid}/comm").read_text().strip()
        if uid_of(pid) != 0:
            return "front"
        return "sudo" if name == "sudo" else "root part"
    return ""


def state_of(pid: int) -> str:
    """As in /proc/PID/stat; X for one that is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return "X"


def uid_of(pid: int) -> int | None:
    """The effective one, None for a process that is gone."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("Uid:")).split()[2])
    return None


def unread(pid: int) -> int:
    """Bytes that wait in a process's sockets."""
    with contextlib.suppress(OSError):
        process = os.pidfd_open(pid)
        try:
            numbers = [int(name) for name in os.listdir(f"/proc/{pid}/fd")]
            return sum(_unread(process, number) for number in numbers)
        finally:
            os.close(process)
    return 0


def _unread(process: int, number: int) -> int:
    fd = _LIBC.syscall(_PIDFD_GETFD, process, number, 0)
    if fd < 0:
        return 0
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            return 0
        return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)
    except OSError:  # one that listens
        return 0
    finally:
        os.close(fd)


@contextlib.contextmanager
def at_account(uid: int, gid: int) -> Iterator[None]:
    """For the kernel, this process is somebody else for a while."""
    os.setegid(gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


# --- the site --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def walked_site() -> Iterator[tuple[Jobs, Path]]:
    """A site whose starters can be halted, and whose glexec is down while a file `down` lies beside the hooks."""
    with Site.open("test", linger=True) as site:
        hooks = site.layout.root / "halts"
        hooks.mkdir()
        shutil.copy(halt_hook.__file__, hooks / "sitecustomize.py")
        path = os.pathsep.join((str(hooks), site.runtime.environment["PYTHONPATH"]))
        variables = {**site.runtime.environment, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
        site.runtime = attrs.evolve(site.runtime, environment=variables)
        assert site.installed is not None
        front = f'[ ! -e {hooks}/down ] || exit 203\nexec {site.installed.front} "$@"\n'
        write_script(hooks / "glexec", front)
        os.chown(hooks, site.accounts["pilot"].uid, site.accounts["pilot"].gid)
        site.start_pool(**SHORT_LEASE)
        start_startd(site)
        yield Jobs(site), hooks
        site.stop()
        assert site.left == []


def start_startd(site: Site) -> None:
    """Start it and wait until jobs can come, however busy the machine is."""
    startd = site.start_startd(wait=False, **KNOBS, GLEXEC=site.layout.root / "halts" / "glexec")
    site.wait_until(startd.said_ready, what="startd to be ready", deadline_s=2 * PATIENCE_S)
