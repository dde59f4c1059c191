"""What a host lets us see and do, and what follows where it shows less than it might. Pure: `procd.probe` looks.

Each lack has one word, which the startd advertises and an operator can match on; nothing here is fatal.
"""

from typing import Literal

import attrs

# What of /proc works: all of it; own account only; another pid namespace's (its numbers mean other processes);
# nothing.
ProcView = Literal["whole", "own", "foreign", "masked"]
# Why there is no cgroup of ours: no v2 hierarchy, one too old for cgroup.kill (before 5.14), none that we may divide.
CgroupLack = Literal["", "none", "too-old", "not-delegated"]


@attrs.frozen
class Facts:
    """A host, as seen by the account that looked.

    cgroup: where groups for jobs can be made, a path; None with the reason in `cgroup_lack`. hybrid: the controllers
    of memory or CPU are with v1, so a v2 group counts no memory.
    """

    proc: ProcView = "whole"
    hidepid: str = ""
    children_files: bool = True
    connector: bool = True
    cgroup: str | None = None
    cgroup_lack: CgroupLack = ""
    hybrid: bool = False


@attrs.frozen
class Lack:
    """Something that this host does not give: a word, and a sentence that says what is used instead."""

    word: str
    text: str


_CGROUP_WORDS = {
    "none": ("no-cgroup", "no cgroup v2: families are followed by descent and killed one process at a time"),
    "too-old": ("cgroup-without-kill", "cgroup v2 without cgroup.kill: families are followed by descent"),
    "not-delegated": (
        "cgroup-not-delegated",
        "no cgroup that this account may divide: families are followed by descent, memory peaks are those of snapshots",
    ),
}


def lacks(facts: Facts, *, isolates: bool) -> tuple[Lack, ...]:
    """What is missing, the gravest first.

    Args:
        isolates: jobs run at other accounts; what hides only other accounts' processes does no harm otherwise.
    """
    found = []
    proc = _proc_lack(facts, isolates)
    if proc is not None:
        found.append(proc)
    if not facts.children_files and facts.proc in ("whole", "own"):
        found.append(
            Lack("no-children-files", "no /proc/PID/task/TID/children: each look reads every process of the machine")
        )
    if not facts.connector:
        found.append(
            Lack("no-connector", "no process events: processes that live between two snapshots are not counted")
        )
    if facts.cgroup is None:
        found.append(Lack(*_CGROUP_WORDS[facts.cgroup_lack or "none"]))
    elif facts.hybrid:
        found.append(Lack("hybrid-cgroup", "memory is counted by cgroup v1: memory peaks are those of snapshots"))
    return tuple(found)


def _proc_lack(facts: Facts, isolates: bool) -> Lack | None:
    instead = _instead(facts)
    if facts.proc == "masked":
        return Lack("proc-masked", f"/proc shows no processes: {instead}")
    if facts.proc == "foreign":
        return Lack("proc-foreign", f"/proc is that of another pid namespace: {instead}")
    if facts.proc == "own" and isolates:
        how = f"hidepid={facts.hidepid}" if facts.hidepid else "hidden"
        return Lack("hidepid", f"/proc does not show other accounts' processes ({how}): {instead}")
    return None


def _instead(facts: Facts) -> str:
    if facts.cgroup is not None:
        return "families are known by their cgroup only"
    return (
        "a job's CPU is known at its end, its memory not at all; without a lingering switch what makes itself"
        " undumpable is found, and not killed for certain"
    )


def sees_jobs(facts: Facts, *, isolates: bool) -> bool:
    """Whether /proc shows the jobs' processes at all."""
    return facts.proc == "whole" or (facts.proc == "own" and not isolates)
