"""A starter on a host that hides, as a program for root: `python -m tests.procd.hiddenstand` and these arguments:
procd's socket, the uids of pilot and job, where groups can be made, a group to enter before (or nothing), a marker.

Starts a job at the job's uid, becomes the pilot, starts procd, registers and stops the job. Prints one JSON object.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import NoReturn

import attrs
import trio

from pilot.rpc import RpcRefused
from procd.client import ProcdClient
from starter.orphans import become_subreaper, reap_orphans
from tests.procd import world

_PR_SET_DUMPABLE = 4
# Daemonises a child; both burn a little and stay.
JOB = """
import os, signal, sys, time
os.read(int(sys.argv[1]), 1)
if os.fork() == 0:
    os.setsid()
    if os.fork():
        os._exit(0)
end = time.process_time() + 0.1
while time.process_time() < end:
    pass
while True: signal.pause()
"""


def start_job(uid: int, marker: str) -> tuple[int, int]:
    """Its pid, and a descriptor to let it run by."""
    held, release = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.set_inheritable(held, True)
        os.dup2(os.open(os.devnull, os.O_RDWR), 1)
        os.dup2(1, 2)
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        os.execv(world.PYTHON, [world.PYTHON, "-IS", "-c", JOB, str(held), marker])
    return pid, release


async def try_to_end(client: ProcdClient, job: int, orders: int) -> dict[str, object]:
    """Stops of a family that no call reaches: with its root, with an orphan of it only, and when nobody is there."""

    def orphans() -> list[int]:
        listed = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        return [int(pid) for pid in listed if int(pid) != job and not Path(f"/proc/{pid}").exists()]

    await world.until(lambda: len(orphans()) == 1, "the daemon")
    (daemon,) = orphans()
    said: dict[str, object] = {"with_root": attrs.asdict(await client.stop("job", deadline_s=1))}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reap_orphans)
        for number, name in ((job, "without_root"), (daemon, "gone")):
            os.write(orders, b"%d\n" % number)
            said[name] = attrs.asdict(await client.stop("job", deadline_s=4))
        nursery.cancel_scope.cancel()
    return said


async def steer(
    path: Path, job: int, ticks: int, release: int, uid: int, *, can_end: bool, orders: int
) -> dict[str, object]:
    client = await ProcdClient.connect(path)
    said: dict[str, object] = {"words": [lack.word for lack in (await client.describe()).degraded]}
    try:
        await client.register(
            "job", root_pid=job, root_ticks=ticks, starter_pid=os.getpid(), credential=None, audit_id="hidden",
            control_fd=None, uid=uid,
        )  # fmt: skip
    except RpcRefused as refused:
        return said | {"refused": refused.code}
    os.write(release, b"g")
    if not can_end:
        return said | await try_to_end(client, job, orders)

    async def burnt() -> bool:
        usage = await client.usage("job")
        return usage.user_s + usage.system_s >= 0.2 and usage.processes == 2

    await world.until(burnt, "two processes that have burnt")
    stopped = await client.stop("job", deadline_s=60)
    return said | {"stopped": attrs.asdict(stopped), "usage": attrs.asdict(await client.unregister("job"))}


def kill_as_told(told: int, starter: int) -> NoReturn:
    """Root's part: ends whom the starter cannot."""
    with open(told) as numbers:
        for number in numbers:
            os.kill(int(number), signal.SIGKILL)
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(starter, 0)[1]))


def main(socket: str, pilot: int, job: int, cgroup: str, group: str, marker: str) -> None:
    told, orders = os.pipe()
    if starter := os.fork():
        os.close(orders)
        kill_as_told(told, starter)
    os.close(told)
    become_subreaper()
    pid, release = start_job(job, marker)
    for inside in (pid, os.getpid()) if group else ():
        Path(group, "cgroup.procs").write_text(str(inside))
    ticks = world.ticks(pid)
    os.setgroups([])
    os.setresgid(pilot, pilot, pilot)
    os.setresuid(pilot, pilot, pilot)
    # As after an exec; who has just changed its account is hidden from that account as well.
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)
    knobs = {"_CONDOR_SAILPLANE_SWITCH": "glexec", "_CONDOR_GLEXEC": "/bin/false", "_CONDOR_SAILPLANE_CGROUP": cgroup}
    daemon = subprocess.Popen([sys.executable, "-m", "procd", "--socket", socket, "--log", "-"], env=os.environ | knobs)
    try:
        steering = partial(steer, Path(socket), pid, ticks, release, job, can_end=bool(group), orders=orders)
        print(json.dumps(trio.run(steering)))
    finally:
        daemon.kill()
        daemon.wait()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:7])
