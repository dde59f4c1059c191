"""What a running job costs of memory: private dirty pages of its starter, and of every process beside it.

Private dirty pages are those that would be given back if the process had never been: what it shares with the spawner
that it was forked from, or with a library's file, is not in it (``smaps_rollup``). Read while the jobs sleep, some time
after they have begun and have reported their usage more than once.
"""

from __future__ import annotations

import re
import statistics
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from bench import pilotside
from bench.figures import Figure
from demo.site import Site
from procd.proc import TICKS_PER_S, ProcReader, ticks_now

JOBS = 4
KB_PER_MB = 1024
# Updates and looks at limits that a starter has made when it is measured: what they leave behind is in the figure.
KNOBS: dict[str, Any] = {
    "NUM_CPUS": JOBS,
    "STARTER_INITIAL_UPDATE_INTERVAL": 0.2,
    "STARTER_UPDATE_INTERVAL": 1,
    "SAILPLANE_LIMITS_INTERVAL": 0.5,
}
SUBMIT = """
universe = vanilla
executable = /bin/sleep
arguments = 600
transfer_executable = false
x509userproxy = {proxy}
request_memory = 128
request_disk = 4096
should_transfer_files = YES
queue {jobs}
"""
# After so many updates the allocator has what it needs.
UPDATES = 3
# How figures of processes begin that there is one of for each job: the switch that stays beside it, and the job.
CHAIN = "chain_"


def why_not() -> str:
    """Why this bench cannot run here; empty if it can."""
    return pilotside.why_not()


def run() -> list[Figure]:
    """The figures of this bench; takes about ten seconds."""
    with Site.open("test", linger=True) as site:
        site.start_pool()
        site.start_startd(**KNOBS)
        alice = site.users["alice"]
        site.put(alice, "job.sub", SUBMIT.format(proxy=alice.proxy, jobs=JOBS).encode())
        site.ask(alice, "submit", "job.sub")
        with closing(ProcReader()) as reader:
            found = site.wait_until(
                lambda: _measured(site, reader), what="all jobs to run for a while", deadline_s=120.0
            )
    rest = {name: values for name, values in found.items() if name != "starter"}
    beside = sum(statistics.median(values) for name, values in rest.items() if name.startswith(CHAIN))
    note = f"the chain of one job below it: {beside:.1f} MB"
    return [
        Figure("memory_starter", found["starter"], "MB", "<= 8", note=note),
        *(Figure(f"memory_{name}", values, "MB") for name, values in sorted(rest.items())),
    ]


def _measured(site: Site, reader: ProcReader) -> dict[str, list[float]] | None:
    """MB by kind of process, once all jobs run and have reported."""
    log = (site.layout.pilot / "log" / "StarterLog").read_text()
    if log.count("-> running ") < JOBS:
        return None
    assert site.startd is not None
    parents = {process.id.pid: process.parent for process in reader.scan()}
    daemons = {pid: _kind(_command(pid)) for pid, parent in parents.items() if parent == site.startd.pid}
    spawners = {pid for pid, kind in daemons.items() if kind == "spawner"}
    forked = {pid: _name(pid) for pid, parent in parents.items() if parent in spawners}
    starters = {pid for pid, name in forked.items() if name != "spare"}
    spares = {pid for pid, name in forked.items() if name == "spare"}
    if len(starters) < JOBS or not all(_has_reported(reader, pid) for pid in starters):
        return None
    kinds = {
        site.startd.pid: "startd",
        **daemons,
        **dict.fromkeys(starters, "starter"),
        **dict.fromkeys(spares, "spare"),
    }
    below = set(starters)
    while below := {pid for pid, parent in parents.items() if parent in below}:
        kinds |= {pid: CHAIN + _name(pid) for pid in below}
    found: dict[str, list[float]] = {}
    for pid, kind in kinds.items():
        if kind and (size_mb := private_dirty_mb(pid)) is not None:
            found.setdefault(kind, []).append(size_mb)
    return found


def private_dirty_mb(pid: int) -> float | None:
    """None when the process has gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) / KB_PER_MB for line in lines if line.startswith("Private_Dirty:"))


def _kind(line: str) -> str:
    return next((kind for word, kind in (("--spawner-fd", "spawner"), ("procd", "procd")) if word in line), "")


def _command(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    return ""


def _name(pid: int) -> str:
    """As it calls itself, fit for a figure's name."""
    with suppress(OSError):
        return re.sub(r"[^a-z0-9]+", "_", Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip().lower())
    return "gone"


def _has_reported(reader: ProcReader, pid: int) -> bool:
    """By its age: it has lived through some updates."""
    began_ticks = reader.ticks(pid)
    if began_ticks is None:
        return False
    lived_s = (ticks_now() - began_ticks) / TICKS_PER_S
    return bool(lived_s > UPDATES * KNOBS["STARTER_UPDATE_INTERVAL"] + 1.0)
