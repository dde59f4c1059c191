"""Families of processes for the benchmarks: sleepers that end by themselves, and a starter's part beside procd.

Nothing here may outlive a bench, however that ends: a sleeper has an alarm clock, dies with its parent where the kernel
allows it, and stays in the process group of the first.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bench import pilotside
from bench.pilotside import PYTHON
from demo import accounts, daemons
from demo.accounts import Account
from demo.cgroups import MAIN
from demo.site import Site

# Longer than any single measurement; after that a sleeper ends whatever has become of the bench.
LIFE_S = 300
PATIENCE_S = 60.0

# Says its number, waits for a byte, forks until it is `argv[1]` processes, says "up". All in one process group.
FAMILY = f"""
import os, signal, sys
if os.getsid(0) != os.getpid(): os.setpgid(0, 0)
os.write(1, b"%d\\n" % os.getpid())
os.read(0, 1)
def rest():
    signal.alarm({LIFE_S})
    while True:
        signal.pause()
for _ in range(int(sys.argv[1]) - 1):
    if os.fork() == 0:
        rest()
os.write(1, b"up\\n")
rest()
"""

# Forks `argv[1]` processes of root's own that only sleep; they die with it, with its group, and at the alarm.
CROWD = f"""
import ctypes, os, signal, sys
prctl = ctypes.CDLL(None).prctl
first = os.getpid()
def rest(parent):
    prctl(1, signal.SIGKILL, 0, 0, 0)
    signal.alarm({LIFE_S})
    while os.getppid() == parent:
        signal.pause()
above = os.getppid()
for _ in range(int(sys.argv[1])):
    if os.fork() == 0:
        rest(first)
        os._exit(0)
os.write(1, b"up\\n")
rest(above)
"""

# A sub-reaper with the program `argv[1]` and its arguments below it; dies with its parent, and takes it along.
ABOVE = """
import ctypes, os, signal, sys
prctl = ctypes.CDLL(None).prctl
prctl(36, 1, 0, 0, 0)
prctl(1, signal.SIGTERM, 0, 0, 0)
pid = os.fork()
if pid == 0:
    os.execv(sys.executable, [sys.executable, "-IS", "-c"] + sys.argv[1:])
def leave(*_):
    os.killpg(pid, signal.SIGKILL)
    os._exit(0)
signal.signal(signal.SIGTERM, leave)
while True:
    signal.pause()
"""

# The starter's part at the pilot's account: launches FAMILY through the switch, registers it, has procd end it.
STARTER = """
import json, os, sys
from pathlib import Path
import trio
from pilot.control import read_linger
from pilot.calls import Call
from pilot.switch import GlexecSwitch, NoneSwitch
from pilot.userns import UsernsSwitch
from procd.client import ProcdClient
from procd.proc import ProcReader
from starter.orphans import become_subreaper, reap_orphans

async def line(fd):
    said = b""
    while not said.endswith(b"\\n"):
        await trio.lowlevel.wait_readable(fd)
        piece = os.read(fd, 100)
        if not piece:
            raise EOFError
        said += piece
    return said

def root_of(pid, reader):
    # below the call's own process and the namespace's pid 1; the numbers that the job sees are others
    for _ in range(2):
        pid = reader.children(reader.read(pid))[0]
    return pid

async def main(path, kind, front, credential, control, *command):
    client = await ProcdClient.connect(path)
    switch = {"glexec": lambda: GlexecSwitch(front, None), "userns": UsernsSwitch, "none": NoneSwitch}[kind]()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reap_orphans)
        while True:
            try:
                asked = json.loads(await line(0))
            except EOFError:
                break
            ended = await one(client, switch, Path(credential), control == "yes", command, **asked)
            print(json.dumps(ended), flush=True)
        nursery.cancel_scope.cancel()

async def one(client, switch, credential, control, command, processes):
    heard, told = os.pipe()
    taken, given = os.pipe()
    place = credential.parent
    call = Call((*command, str(processes)), "bench#kill", credential, taken, told, control=control, place=place)
    running = await switch.start(call)
    os.close(told); os.close(taken)
    near = None
    if running.control is not None and await read_linger(running.control) is not None:
        near = running.control.fileno()
    pid = int(await line(heard))
    reader = ProcReader()
    if switch.name == "userns":
        pid = root_of(running.pid, reader)
    await client.register("job", root_pid=pid, root_ticks=reader.ticks(pid), starter_pid=os.getpid(),
                          credential=str(credential), audit_id="bench#kill", control_fd=near)
    reader.close()
    os.write(given, b".")
    await line(heard)
    begun_s = trio.current_time()
    stopped = await client.stop("job", urgent=True, deadline_s=60)
    took_ms = (trio.current_time() - begun_s) * 1000
    usage = await client.unregister("job")
    await running.end(10)
    running.close()
    os.close(heard); os.close(given)
    return {"ms": took_ms, "empty": stopped.empty, "route": stopped.route, "calls": stopped.switch_calls,
            "seen": usage.processes_seen}

become_subreaper()
trio.run(main, *sys.argv[1:])
"""


class Starter:
    """A stand-in for a starter at the pilot's account, with a procd beside it; made by `starting`."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def kill(self, processes: int) -> dict[str, Any]:
        """Start a family of this size, and have procd end it: how long that took, by which route, with how many calls.

        Raises:
            SiteError: something of it was left, or nobody answered.
        """
        told = answer(self._process, json.dumps({"processes": processes}))
        found: dict[str, Any] = json.loads(told)
        if not found["empty"] or found["seen"] < processes:
            raise daemons.SiteError(f"a family of {processes} was not ended: {told}")
        return found


@contextmanager
def starting(site: Site, switch: str = "glexec", cgroup: Path | None = None) -> Iterator[Starter]:
    """A starter's stand-in and a procd, both at the pilot's account of a site, ended afterwards.

    Args:
        switch: SAILPLANE_SWITCH.
        cgroup: where groups can be made, as `demo.cgroups.delegated` gives it.
    """
    assert site.installed is not None
    proxy = pilotside.credential(site, f"bench-{time.monotonic_ns()}")
    socket = site.layout.pilot / "run" / "procd"
    control = "yes" if site.linger or switch == "userns" else "no"
    given = [str(socket), switch, str(site.installed.front), str(proxy), control]
    command = [str(site.runtime.python), "-c", STARTER, *given, PYTHON, "-IS", "-c", FAMILY]
    with _procd(site, switch, cgroup, socket), ExitStack() as stack:
        with _inside(cgroup):
            process = stack.enter_context(
                speaking(command, site.environment(site.layout.pilot), site.accounts["pilot"])
            )
        yield Starter(process)


@contextmanager
def _procd(site: Site, switch: str, cgroup: Path | None, socket: Path) -> Iterator[None]:
    """A procd at the pilot's account that answers at `socket`, ended afterwards."""
    assert site.installed is not None
    knobs = {
        "_CONDOR_SAILPLANE_SWITCH": switch,
        "_CONDOR_SAILPLANE_CGROUP": str(cgroup or "/nonexistent"),
        "_CONDOR_GLEXEC": str(site.installed.front),
        "_CONDOR_SAILPLANE_KILL_JITTER": "0",
        "_CONDOR_SAILPLANE_SWITCH_RATE": "0",  # spreading has figures of its own
    }
    log = site.layout.pilot / "log"
    with _inside(cgroup):
        procd = daemons.start(
            "procd",
            site.runtime.argv("sailplane-procd", "--socket", str(socket), "--log", str(log / "ProcLog")),
            account=site.accounts["pilot"],
            environment=site.environment(site.layout.pilot) | knobs,
            cwd=site.layout.pilot,
            output=site.layout.logs / "procd.out",
            logs=log,
        )
    try:
        daemons.wait_until(procd.said_ready, what="procd to be ready", deadline_s=PATIENCE_S, daemons=[procd])
        yield
    finally:
        procd.stop(deadline_s=PATIENCE_S)


@contextmanager
def _inside(cgroup: Path | None) -> Iterator[None]:
    """What is started meanwhile begins in the main group of a delegated one."""
    if cgroup is None:
        yield
        return
    own = next(line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    (cgroup / MAIN / "cgroup.procs").write_text("0")
    try:
        yield
    finally:
        Path(cgroup.parent, own.lstrip("/"), "cgroup.procs").write_text("0")


@contextmanager
def family(account: Account, processes: int) -> Iterator[int]:
    """A family at an account, started by root without a switch; its process group, ended afterwards."""
    command = [PYTHON, "-IS", "-c", FAMILY, str(processes)]
    with speaking(command, {}, account) as process:
        pid = int(answer(process, None))
        try:
            assert process.stdin is not None
            process.stdin.write(b".")
            process.stdin.flush()
            answer(process, None)
            yield pid
        finally:
            accounts.kill_all(account.uid)


@contextmanager
def started_family(processes: int) -> Iterator[tuple[int, int]]:
    """A family at our own account below a sub-reaper; the numbers of sub-reaper and root. Ended afterwards."""
    command = [PYTHON, "-IS", "-c", ABOVE, FAMILY, str(processes)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        root = int(answer(process, ""))
        answer(process, None)
        yield process.pid, root
    finally:
        process.terminate()
        process.communicate()


@contextmanager
def crowd(processes: int) -> Iterator[None]:
    """Sleeping processes of root's own that have nothing to do with anybody; ended afterwards."""
    command = [PYTHON, "-IS", "-c", CROWD, str(processes)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        answer(process, None)
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # the leader is not waited for yet: nobody else has the number
        _wait_for_group(process.pid)
        process.communicate()


def _wait_for_group(leader: int) -> None:
    """Until all of a killed group have ended; the leader, not waited for, keeps the number ours."""
    end_s = time.monotonic() + PATIENCE_S
    while any(_group(pid) == leader for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if pid != leader):
        if time.monotonic() > end_s:
            raise daemons.SiteError(f"processes of group {leader} survive SIGKILL")
        time.sleep(0.05)


def _group(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return 0


@contextmanager
def speaking(argv: list[str], environment: dict[str, str], account: Account) -> Iterator[subprocess.Popen[bytes]]:
    """A process at an account, to be talked with by `answer`. Its input ends afterwards; then it has 5 s to end."""
    process = subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        cwd="/",
        **daemons.switched(account),
    )
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(5.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()


def answer(process: subprocess.Popen[bytes], asked: str | None) -> str:
    """The next line of a process, after telling it something; SiteError when it says nothing in time."""
    assert process.stdout is not None
    if asked is not None:
        assert process.stdin is not None
        process.stdin.write(asked.encode() + b"\n")
        process.stdin.flush()
    ready, _, _ = select.select([process.stdout], [], [], PATIENCE_S)
    line = process.stdout.readline() if ready else b""
    if not line:
        raise daemons.SiteError(f"process {process.pid} says nothing, exit status {process.poll()}")
    return line.decode()
