"""What one look of procd at a family of 10 processes costs, beside 0, 1,000 and 3,000 processes of others.

CPU time of the looking thread, which is what a worker node loses; the clock on the wall would also count who else runs.
The reference is a scan of all processes with the same reader, which is what a tracker without children files does.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable

from bench.families import crowd, started_family
from bench.figures import Figure
from procd.families import Families, Family
from procd.lookout import Lookout
from procd.proc import ProcReader
from procd.process import ProcessId

MEMBERS = 10
CROWDS = (0, 1000, 3000)
SAMPLES, LOOKS, SCANS = 15, 100, 3
# A crowd takes a few MB for each 100 processes, and numbers from the kernel's table.
_ROOM = 4000


def why_not() -> str:
    """Why this bench cannot run here; empty if it can."""
    with open("/proc/sys/kernel/pid_max", encoding="ascii") as file:
        room = int(file.read()) - len(os.listdir("/proc"))
    return "" if room > 2 * _ROOM else "too few process numbers are free (kernel.pid_max)"


def run() -> list[Figure]:
    """The figures of this bench; takes about ten seconds."""
    found: dict[int, list[float]] = {}
    scans: dict[int, list[float]] = {}
    reader = ProcReader()
    try:
        with started_family(MEMBERS) as (starter, root):
            lookout, family = _family(reader, starter, root)
            for others in CROWDS:
                with crowd(others):
                    found[others] = _sampled(lambda: lookout.look(family), LOOKS)
                    scans[others] = _sampled(lambda: list(reader.scan()), SCANS)
    finally:
        reader.close()
    most = CROWDS[-1]
    scan = f"reference: a scan of all processes, {statistics.median(scans[most]):.1f} ms"
    return [
        Figure(f"snapshot_10_of_{most}", found[most], "ms", "<= 0.5", scans[most], note=scan, goal_of="ours"),
        *(Figure(f"snapshot_10_of_{n}", found[n], "ms", "", scans[n]) for n in CROWDS[:-1]),
        Figure("snapshot_flat", found[most], "ms", "<= 1.25", found[0], note="beside 3,000 against beside none"),
    ]


def _family(reader: ProcReader, starter: int, root: int) -> tuple[Lookout, Family]:
    families = Families(os.geteuid())
    lookout = Lookout(families, reader)
    above, first = (ProcessId(pid, reader.ticks(pid) or 0) for pid in (starter, root))
    family = families.register("bench", first, above, lookout.survey(first, above))
    lookout.look(family)
    assert len(families.running(family)) == MEMBERS
    return lookout, family


def _sampled(act: Callable[[], object], times: int) -> list[float]:
    """CPU milliseconds of one go."""
    samples = []
    for _ in range(SAMPLES):
        begun_s = time.thread_time()
        for _ in range(times):
            act()
        samples.append((time.thread_time() - begun_s) * 1000 / times)
    return samples
