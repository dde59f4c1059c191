"""What procd's tests with real processes share: a stand-in for spawner and starter, job programs, a procd to
talk to."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import attrs
import trio

from pilot import logs
from pilot.configuration import from_values
from pilot.settings import Settings
from procd.client import ProcdClient
from procd.main import Daemon
from procd.proc import ProcReader

ROOT = Path(__file__).resolve().parents[2]
PYTHON = os.path.realpath("/usr/bin/python3")
DEADLINE_S = 60.0

# A sub-reaper that starts one child and reaps whatever comes to it. `starter` is below `spawner`; both say
# who they and their children are.
STAND_IN = """
import ctypes, os, signal, sys
kind, uid, wrapped = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
pid = os.fork()
if pid == 0:
    if kind == "spawner":
        os.execv(sys.executable, [sys.executable, "-IS", "-c", os.environ["STAND_IN"], "starter", str(uid)] +
        wrapped)
    if uid:
        os.setgroups([]); os.setresgid(uid, uid, uid); os.setresuid(uid, uid, uid)
    os.setsid()
    os.execv(wrapped[0], wrapped)
if kind == "starter":
    print(os.getpid(), pid, flush=True)
while True:
    try:
        os.wait()
    except ChildProcessError:
        signal.pause()
"""

# A tree that does everything to get lost: forks, double forks, new sessions, no environment, parents that
# leave. Its leaves only sleep, at least two of them; the marker is on the command line of each.
HIDE = """
import os, random, signal, sys
seed, budget = int(sys.argv[1]), int(sys.argv[2])
def child(path):
    draw = random.Random("%d %s" % (seed, path))
    if draw.random() < 0.5 and os.getpid() != os.getsid(0):
        os.setsid()
    if draw.random() < 0.3:
        os.environ.clear(); os.chdir("/")
    inner = len(path) < budget
    if inner:
        for number in range(draw.choice((1, 2)) if path else 2):
            if os.fork() == 0:
                child(path + str(number))
    if inner and path and draw.random() < 0.6:
        os._exit(0)
    if draw.random() < 0.3:
        rest = "import signal\\nwhile True: signal.pause()"
        os.execve(sys.executable, [sys.executable, "-IS", "-c", rest] + sys.argv[1:], {})
    while True:
        signal.pause()
child("")
"""
SLEEP = "import signal\nwhile True: signal.pause()"
# Four processes that never stay: each forks and leaves its child behind, 200 times a second in all.
STORM = """
import os, signal, time
for _ in range(4):
    if os.fork() == 0:
        while True:
            time.sleep(0.02)
            if os.fork():
                os._exit(0)
while True: signal.pause()
"""
# Children that burn, one after the other, each waited for.
BURN = """
import os, signal, sys, time
for _ in range(int(sys.argv[1])):
    if os.fork() == 0:
        end = time.process_time() + 0.05
        while time.process_time() < end:
            pass
        os._exit(0)
    os.wait()
if "end" in sys.argv:
    os._exit(0)
while True: signal.pause()
"""


@attrs.define
class Job:
    """A stand-in's job."""

    starter_pid: int
    pid: int
    marker: str
    stand_in: subprocess.Popen[bytes]

    @property
    def ticks(self) -> int:
        return ticks(self.pid)

    def alive(self) -> list[int]:
        """Processes with the job's marker on their command line; zombies are not alive."""
        return marked(self.marker)


def ticks(pid: int) -> int:
    reader = ProcReader()
    try:
        found = reader.ticks(pid)
    finally:
        reader.close()
    assert found is not None
    return found


def marked(marker: str) -> list[int]:
    reader = ProcReader()
    try:
        return [each.id.pid for each in reader.scan() if each.running and _has(each.id.pid, marker)]
    finally:
        reader.close()


def uid_of(pid: int) -> int | None:
    """Its owner; None when it is gone."""
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None


def traceable_by(pid: int) -> int | None:
    """Whose its files are: root's where it cannot be traced (proc(5)), while its directory stays its own.

    None when it is gone.
    """
    try:
        return os.stat(f"/proc/{pid}/environ").st_uid
    except OSError:
        return None


def _has(pid: int, marker: str) -> bool:
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
        if not line:  # its first thread has ended, and any other one knows
            line = b"".join(path.read_bytes() for path in Path(f"/proc/{pid}/task").glob("*/cmdline"))
    except OSError:
        return False
    # The stand-ins carry the job's command line too.
    return marker.encode() in line and b"ctypes" not in line


@contextmanager
def job(program: str, *arguments: str, uid: int = 0) -> Iterator[Job]:
    """A program that runs below a spawner and a starter of its own, at the pilot's uid or another one."""
    marker = "sptest-" + secrets.token_hex(6)
    command = [PYTHON, "-IS", "-c", program, *arguments, marker]
    stand_in = subprocess.Popen(
        [PYTHON, "-IS", "-c", STAND_IN, "spawner", str(uid), *command],
        stdout=subprocess.PIPE,
        env={"STAND_IN": STAND_IN},
    )
    assert stand_in.stdout
    starter, pid = (int(word) for word in stand_in.stdout.readline().split())
    try:
        yield Job(starter, pid, marker, stand_in)
    finally:
        # A storm can't be killed one by one, but it never leaves the job's process group.
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        for each in (stand_in.pid, starter):
            _kill(each)
        end_s = time.monotonic() + DEADLINE_S
        while left := marked(marker):
            assert time.monotonic() < end_s, f"killed again and again, and still there: {left}"
            for each in left:
                _kill(each)
        stand_in.stdout.close()
        stand_in.wait()


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def settings(**values: str) -> Settings:
    base = {
        "SAILPLANE_SWITCH": "none",
        "SAILPLANE_KILL_JITTER": "0",
        "SAILPLANE_SWITCH_RATE": "0",
        "GLEXEC_RETRIES": "0",
    }
    return from_values(base | values, source=None)


@asynccontextmanager
async def procd(path: Path, given: Settings | None = None) -> AsyncIterator[ProcdClient]:
    """A procd in this process, and a client of it. It ends as at the end of its lifeline."""
    readable, lifeline = os.pipe()
    daemon = Daemon(given or settings(), path, lifeline_fd=readable)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(daemon.run, logs.get("test"))
            client = await ProcdClient.connect(path)
            try:
                yield client
            finally:
                client.close()
                os.close(lifeline)
    finally:
        os.close(readable)


async def register(client: ProcdClient, job: Job, family: str = "job", **options: object) -> None:
    given: dict[str, object] = {"credential": None, "audit_id": "test", "control_fd": None} | options
    await client.register(
        family,
        root_pid=job.pid,
        root_ticks=job.ticks,
        starter_pid=job.starter_pid,
        **given,  # type: ignore[arg-type]
    )


async def until(condition: Callable[[], bool | Awaitable[bool]], what: str) -> None:
    """Poll a condition; AssertionError with `what` after DEADLINE_S."""
    end_s = time.monotonic() + DEADLINE_S
    while True:
        met = condition()
        if met if isinstance(met, bool) else await met:
            return
        assert time.monotonic() < end_s, what
        await trio.sleep(0.01)


async def storming(client: ProcdClient) -> None:
    """Until a STORM has begun; its processes are gone before they can be asked for their command line."""

    async def seen() -> bool:
        return (await client.usage("job")).processes_seen >= 30

    await until(seen, "a storm")


@contextmanager
def daemon(path: Path, *, log: str = "-", **environment: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A procd as a process of its own; it and the write end of its lifeline. Ended by SIGKILL if need be."""
    readable, lifeline = os.pipe()
    knobs = {"_CONDOR_SAILPLANE_SWITCH": "none", **environment}
    process = subprocess.Popen(
        [sys.executable, "-m", "procd", "--socket", str(path), "--lifeline-fd", str(readable), "--log", log],
        pass_fds=[readable],
        cwd=ROOT,
        env=os.environ | knobs,
    )
    os.close(readable)
    try:
        yield process, lifeline
    finally:
        process.kill()
        process.wait()
        with suppress(OSError):  # the test has closed it
            os.close(lifeline)
