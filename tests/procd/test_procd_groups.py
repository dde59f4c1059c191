"""What procd reads from a cgroup's files and writes into them, with a directory in the kernel's place.

The texts are as in the kernel's admin-guide, cgroup-v2. Where this machine's kernel has the controllers of CPU and
memory in cgroup v1, this is all that can be tried of them here; `test_procd_trackers` has the rest with real groups.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from procd.account import Cpu
from procd.groups import Counted, Group, GroupFailed
from procd.messages import Usage
from procd.trackers import _with_counted

CPU = "usage_usec 2500000\nuser_usec 1500000\nsystem_usec 1000000\nnr_periods 0\n"


def group(path: Path, **files: str) -> Group:
    path.mkdir(exist_ok=True)
    for name, text in files.items():
        (path / name.replace("_", ".", 1)).write_text(text)
    return Group(path)


def used(user_s: float) -> Usage:
    return Usage(user_s=user_s, system_s=0.1, rss_kb=100, rss_peak_kb=200, image_kb=300, processes=1, processes_seen=1)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu_stat": CPU}, Counted(1.5, 1.0)),
        ({"cpu_stat": CPU, "memory_peak": "1073741824\n", "memory_max": "max\n"}, Counted(1.5, 1.0, 1 << 20)),
        ({"cpu_stat": CPU, "memory_peak": "4095\n"}, Counted(1.5, 1.0, 3)),
        ({"cpu_stat": CPU, "memory_peak": "\n"}, Counted(1.5, 1.0)),
        ({"cpu_stat": CPU, "memory_peak": "max\n"}, Counted(1.5, 1.0)),
        ({"cpu_stat": CPU + "\nnonsense\ncore_sched.force_idle_usec 0\n"}, Counted(1.5, 1.0)),
        ({"cpu_stat": "usage_usec 1\n"}, None),
        ({}, None),
    ],
)
def test_usage_is_what_the_files_say(tmp_path: Path, files: dict[str, str], expected: Counted | None) -> None:
    assert group(tmp_path / "g", **files).counted() == expected


def test_a_group_that_is_gone_has_no_usage_and_nobody_in_it(tmp_path: Path) -> None:
    gone = Group(tmp_path / "gone")
    assert gone.counted() is None
    assert gone.pids() == []
    assert [gone.populated, gone.frozen, gone.settled] == [False, False, False]
    with pytest.raises(GroupFailed, match=r"cgroup\.kill"):
        gone.kill()
    assert gone.remove()


def test_the_kernels_count_and_peak_are_told(tmp_path: Path) -> None:
    counted = group(tmp_path / "g", cpu_stat=CPU, memory_peak="10240000\n").counted()
    told = _with_counted(used(0.2), counted, Cpu(50, 0))
    assert (told.user_s, told.system_s, told.memory_peak_kb) == (2.0, 1.0, 10000)
    assert told.rss_peak_kb == 200
    # What an earlier procd knew of a family is never undercut.
    told = _with_counted(used(20.0), counted, Cpu(50, 0))
    assert (told.user_s, told.system_s) == (20.0, 0.1)


def test_members_are_those_of_the_groups_below_too(tmp_path: Path) -> None:
    top = group(tmp_path / "g", cgroup_procs="10\n11\n")
    group(tmp_path / "g" / "jobs-own", cgroup_procs="12\n0\n")  # 0: of another pid namespace
    (tmp_path / "g" / "link").symlink_to(tmp_path)
    assert sorted(top.pids()) == [10, 11, 12]


@pytest.mark.parametrize(
    ("events", "populated", "settled"),
    [("populated 1\nfrozen 0\n", True, False), ("populated 0\nfrozen 1\n", False, True), ("", False, False)],
)
def test_events_are_read(tmp_path: Path, events: str, populated: bool, settled: bool) -> None:
    made = group(tmp_path / "g", cgroup_events=events)
    assert (made.populated, made.settled) == (populated, settled)


def test_orders_are_written_into_files_that_the_kernel_has(tmp_path: Path) -> None:
    made = group(tmp_path / "g", cgroup_kill="", cgroup_freeze="0\n")
    made.kill()
    made.freeze()
    assert ((tmp_path / "g" / "cgroup.kill").read_text(), made.frozen) == ("1", True)
    made.thaw()
    assert not made.frozen
    (tmp_path / "g" / "cgroup.kill").unlink()
    with pytest.raises(GroupFailed):
        made.kill()
    assert not (tmp_path / "g" / "cgroup.kill").exists()
