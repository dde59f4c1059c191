"""How long it takes to end a family of 1, 10, 100 and 1,000 processes of another account, until it is proved empty.

Ours: procd through a glexec that does not linger (one call of the switch), and by the routes that need no call: the
control socket of one that lingers, the control socket of a user namespace's pid 1, a delegated cgroup, the right over
processes of the same account. The reference is root, who needs no switch: stop all, look again, kill, look until nobody
is left; measured in turns with ours. Beside them the way of HTCondor 8.8: a call of the switch for each process.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from bench import pilotside
from bench.families import family, starting
from bench.figures import Figure
from demo import daemons
from demo.accounts import Account, processes_of
from demo.cgroups import NoCgroupError, delegated
from demo.site import Site
from pilot.userns import Host, obstacle

SIZES = (1, 10, 100, 1000)
RUNS = 9

# Root's own: everybody of uid argv[1] is stopped, looked for again, killed, until nobody is left; milliseconds.
ROOT = """
import os, sys, time
def those_of(uid):
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open("/proc/%s/stat" % name, "rb") as file:
                    if os.fstat(file.fileno()).st_uid == uid:
                        words = file.read().rpartition(b")")[2].split()
                        if words[0] not in b"ZX":
                            found[int(name)] = words[0]
            except OSError:
                pass
    return found
def send(pids, number):
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass
uid, begun_s = int(sys.argv[1]), time.monotonic()
while any(state != b"T" for state in those_of(uid).values()):
    send(those_of(uid), 19)
while found := those_of(uid):
    send(found, 9)
    time.sleep(0.001)
print((time.monotonic() - begun_s) * 1000)
"""


def why_not() -> str:
    """Why this bench cannot run here; empty if it can."""
    return pilotside.why_not()


def run() -> list[Figure]:
    """The figures of this bench; takes about two minutes, or three where the cores are busy."""
    figures: list[Figure] = []
    with Site.open("test", linger=False) as site, starting(site) as starter:
        starter.kill(1)
        for size in SIZES:
            ours, by_root, calls = [], [], []
            for _ in range(RUNS):
                before = _calls(site)
                ours.append(starter.kill(size)["ms"])
                # A family's first call is the one that started it.
                calls.append(_calls(site) - before - 1.0)
                by_root.append(_by_root(site, size))
            goal = "<= 2" if size == SIZES[-1] else ""
            figures.append(Figure(f"kill_{size}", ours, "ms", goal, by_root))
        figures.append(Figure("kill_1000_calls", calls, "calls", "== 1", note="in the site's root log"))
        figures += _one_by_one(site)
        with suppress(NoCgroupError), delegated(site.accounts["pilot"]) as group:
            figures += _free(site, "cgroup", cgroup=group)
        figures += _free(site, "own", switch="none")
        if obstacle(Host()) is None:
            figures += _free(site, "userns", switch="userns")
    with Site.open("test", linger=True) as site:
        figures += _free(site, "control")
    return figures


def _free(site: Site, name: str, *, switch: str = "glexec", cgroup: Path | None = None) -> list[Figure]:
    """By a route that costs no call."""
    figures = []
    with starting(site, switch, cgroup) as starter:
        starter.kill(1)
        for size in SIZES:
            ended = [starter.kill(size) for _ in range(RUNS)]
            routes = {each["route"] for each in ended}
            if routes != {"control" if switch == "userns" else name}:
                raise daemons.SiteError(f"ended by {' '.join(routes)} instead of {name}")
            figures.append(
                Figure(
                    f"kill_{size}_{name}",
                    [each["ms"] for each in ended],
                    "ms",
                    note=f"{sum(each['calls'] for each in ended)} calls",
                )
            )
    return figures


def _calls(site: Site) -> int:
    return sum(record["event"] == "decision" for record in site.switch_log())


def _by_root(site: Site, size: int) -> float:
    """Milliseconds of root's own way; its interpreter is started before."""
    uid = site.accounts["alice"].uid
    with family(site.accounts["alice"], size):
        done = subprocess.run(
            [pilotside.PYTHON, "-IS", "-c", ROOT, str(uid)],
            capture_output=True, text=True, check=True, timeout=60,
        )  # fmt: skip
    return float(done.stdout)


def _one_by_one(site: Site) -> list[Figure]:
    """HTCondor 8.8: `glexec kill PID`, one process after the other."""
    assert site.installed is not None
    alice, pilot = site.accounts["alice"], site.accounts["pilot"]
    environment = pilotside.call_environment(site, pilotside.credential(site, "bench88"), "bench#88")
    note = "calls, one after the other, as HTCondor 8.8's procd makes them; its single pass"
    return [
        Figure(
            f"kill_{size}_htcondor88",
            [_killed_one_by_one(alice, pilot, size, site.installed.front, environment)],
            "ms",
            note=f"{size} {note}",
        )
        for size in SIZES
    ]


def _killed_one_by_one(alice: Account, pilot: Account, size: int, front: Path, environment: Mapping[str, str]) -> float:
    """Milliseconds for a family of this size."""
    with family(alice, size):
        members = sorted(processes_of([alice.uid]))
        start_s = time.perf_counter()
        for pid in members:
            done = subprocess.run(
                [str(front), pilotside.SHELL, "-c", f"kill -9 {pid}"],
                env=environment, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, check=False,
                **daemons.switched(pilot),
            )  # fmt: skip
            if done.returncode != 0:
                raise daemons.SiteError(f"kill by glexec: {done.returncode} {done.stderr!r}")
        return (time.perf_counter() - start_s) * 1000
