"""Finds out what this host shows us, once, at start. Acting, and harmless: what it makes it takes away again."""

import os
import re
from pathlib import Path

from procd.events import connector_works
from procd.facts import Facts, ProcView
from procd.groups import find_groups
from procd.proc import ProcReader

# capabilities(7): who has it sees through hidepid.
_CAP_SYS_PTRACE = 19
# The kernel's names since 5.8, numbers before (proc(5)).
_HIDING = {"1": "1", "noaccess": "1", "2": "2", "invisible": "2", "4": "4", "ptraceable": "4"}


def look_around(reader: ProcReader, *, cgroup: Path | None = None) -> Facts:
    """The facts of this host, for our own account.

    Args:
        cgroup: the knob's value: where groups are to be made; None looks for a place.
    """
    proc, hidepid = _proc_view(reader)
    found = find_groups(cgroup)
    return Facts(
        proc=proc,
        hidepid=hidepid,
        children_files=reader.children_files,
        connector=connector_works(),
        cgroup=str(found.parent) if found.parent is not None else None,
        cgroup_lack=found.lack,
        hybrid=found.hybrid,
    )


def _proc_view(reader: ProcReader) -> tuple[ProcView, str]:
    try:
        named = os.readlink("/proc/self")
    except OSError:
        return "masked", ""
    if named != str(os.getpid()):
        return "foreign", ""
    if reader.read(os.getpid()) is None:
        return "masked", ""
    hidepid = _hidepid()
    # Process 1 is another account's in nearly every case; where it is not, the mount's options tell.
    if hidepid or reader.read(1) is None:
        return "own", hidepid
    return "whole", ""


def _hidepid() -> str:
    """How /proc hides others from us; "" when it does not."""
    options = mount_options(_text("/proc/self/mountinfo"), "/proc")
    hiding = _HIDING.get(options.get("hidepid", ""), "")
    if not hiding or _may_trace(_text("/proc/self/status")):
        return ""
    exempt = int(options.get("gid", "0"))
    if hiding != "4" and exempt in {os.getegid(), *os.getgroups()}:
        return ""
    return hiding


def mount_options(mountinfo: str, place: str) -> dict[str, str]:
    """Options of the file system that is mounted at `place`: of the last one, which covers the others."""
    found: dict[str, str] = {}
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        words, rest = before.split(), after.split()
        if len(words) >= 6 and words[4] == place and len(rest) >= 3:
            found = dict(option.partition("=")[::2] for option in (*words[5].split(","), *rest[2].split(",")))
    return found


def _may_trace(status: str) -> bool:
    match = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return match is not None and bool(int(match[1], 16) >> _CAP_SYS_PTRACE & 1)


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
