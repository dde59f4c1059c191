"""What a host lacks, in words; and what a host is found to give, also in places that hide."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from demo.accounts import Account
from procd.facts import Facts, lacks, sees_jobs
from procd.probe import mount_options
from procd.proc import parse_stat
from procd.process import ProcessId
from tests.procd import world
from tests.procd.hosts import Delegated, delegated, hiding, reachable

WHOLE = Facts(cgroup="/sys/fs/cgroup/x")


def words(facts: Facts, *, isolates: bool = True) -> list[str]:
    return [lack.word for lack in lacks(facts, isolates=isolates)]


def test_a_host_that_gives_everything_lacks_nothing() -> None:
    assert words(WHOLE) == []
    assert sees_jobs(WHOLE, isolates=True)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (Facts(proc="own", hidepid="2", cgroup="/x"), ["hidepid"]),
        (Facts(proc="masked", cgroup="/x", children_files=False), ["proc-masked"]),
        (Facts(proc="foreign", cgroup="/x"), ["proc-foreign"]),
        (Facts(cgroup="/x", children_files=False, connector=False), ["no-children-files", "no-connector"]),
        (Facts(cgroup_lack="none"), ["no-cgroup"]),
        (Facts(cgroup_lack="too-old"), ["cgroup-without-kill"]),
        (Facts(cgroup_lack="not-delegated", hybrid=True), ["cgroup-not-delegated"]),
        (Facts(cgroup="/x", hybrid=True), ["hybrid-cgroup"]),
    ],
)
def test_each_lack_has_a_word(facts: Facts, expected: list[str]) -> None:
    assert words(facts) == expected


def test_hidden_processes_of_others_do_no_harm_where_jobs_run_at_our_account() -> None:
    facts = Facts(proc="own", hidepid="2", cgroup="/x")
    assert words(facts, isolates=False) == []
    assert sees_jobs(facts, isolates=False)
    assert not sees_jobs(facts, isolates=True)


def test_options_are_those_of_the_mount_on_top() -> None:
    table = (
        "1 2 0:5 / /proc rw,nosuid - proc proc rw\n"
        "3 2 0:6 / /proc rw shared:1 - proc proc rw,gid=7,hidepid=invisible\n"
        "broken\n4 2 0:7 / /proc/x rw - proc proc rw,hidepid=1"
    )
    assert mount_options(table, "/proc") == {"rw": "", "gid": "7", "hidepid": "invisible"}
    assert mount_options("", "/proc") == {}


LOOK = """
import os, sys
from pathlib import Path
from procd.probe import look_around
from procd.proc import ProcReader
facts = look_around(ProcReader())
print(facts.proc, facts.hidepid or "-", facts.cgroup, facts.cgroup_lack or "-")
"""


@pytest.mark.needs_root
@pytest.mark.skipif(not reachable(), reason="other accounts can't reach this checkout or its interpreter")
@pytest.mark.parametrize(
    ("mount", "expected"),
    [
        ("-t proc -o hidepid=2 proc", "own 2"),
        ("-t proc -o hidepid=1 proc", "own 1"),
        ("-t proc -o hidepid=2,gid={gid} proc", "whole -"),
        ("-t proc proc", "whole -"),
        ("-t tmpfs none", "masked -"),
    ],
)
def test_a_proc_that_hides_is_found_out(accounts: Mapping[str, Account], mount: str, expected: str) -> None:
    pilot = accounts["pilot"]
    done = hiding(mount.format(gid=pilot.gid), pilot, [sys.executable, "-c", LOOK])
    assert done.stdout.decode().split()[:2] == expected.split(), done.stderr.decode()


@pytest.mark.needs_root
@pytest.mark.skipif(not reachable(), reason="other accounts can't reach this checkout or its interpreter")
def test_a_delegated_cgroup_is_found(accounts: Mapping[str, Account]) -> None:
    """The batch system puts the pilot into a group beside which it may make others."""
    with delegated(accounts["pilot"]) as place:
        inside = _look_inside(place, accounts["pilot"])
        assert inside[2:] == [str(place.path), "-"]
    with delegated(None) as place:
        assert _look_inside(place, accounts["pilot"])[2:] == ["None", "not-delegated"]


def _look_inside(place: Delegated, account: Account) -> list[str]:
    enter = (
        f"import os; open({str(place.main / 'cgroup.procs')!r}, 'w').write('0');"
        f"os.setgroups([]); os.setresgid(*[{account.gid}] * 3); os.setresuid(*[{account.uid}] * 3)"
    )
    done = subprocess.run(
        [sys.executable, "-c", enter + "\n" + LOOK], cwd=world.ROOT, capture_output=True, timeout=30, check=True
    )
    return done.stdout.decode().split()


@pytest.mark.needs_root
@pytest.mark.skipif(not reachable(), reason="other accounts can't reach this checkout or its interpreter")
def test_a_job_that_proc_hides_is_followed_and_ended_by_its_cgroup(
    accounts: Mapping[str, Account], open_dir: Path
) -> None:
    pilot, alice = accounts["pilot"], accounts["alice"]
    with delegated(pilot) as place:
        said = _hidden(open_dir, pilot, alice, cgroup=str(place.path), group=str(place.main))
    assert said["words"][0] == "hidepid"
    stopped, usage = said["stopped"], said["usage"]
    assert (stopped["empty"], stopped["route"], stopped["switch_calls"]) == (True, "cgroup", 0)
    assert 0.2 <= usage["user_s"] + usage["system_s"] < 1.0
    assert usage["processes"] == 0


@pytest.mark.needs_root
@pytest.mark.skipif(not reachable(), reason="other accounts can't reach this checkout or its interpreter")
def test_a_hidden_job_is_never_called_ended_while_it_lives(accounts: Mapping[str, Account], open_dir: Path) -> None:
    """Here no call of the switch succeeds; neither the root nor the daemon below the starter is overlooked."""
    said = _hidden(open_dir, accounts["pilot"], accounts["alice"], cgroup="/nonexistent", group="")
    assert said["words"][0] == "hidepid"
    assert not said["with_root"]["empty"]
    assert said["with_root"]["text"]
    assert not said["without_root"]["empty"]
    assert said["gone"]["empty"]


def _hidden(directory: Path, pilot: Account, job: Account, *, cgroup: str, group: str) -> dict[str, Any]:
    marker = f"sptest-hidden-{os.urandom(4).hex()}"
    module = [sys.executable, "-m", "tests.procd.hiddenstand", str(directory / "s"), str(pilot.uid), str(job.uid)]
    try:
        done = hiding("-t proc -o hidepid=2 proc", None, [*module, cgroup, group, marker])
        assert done.returncode == 0, done.stderr.decode()
        left = [pid for pid in world.marked(marker) if world.uid_of(pid) == job.uid]
        answer: dict[str, Any] = json.loads(done.stdout)
        assert left == []
        return answer
    finally:
        for pid in world.marked(marker):
            os.kill(pid, signal.SIGKILL)


def test_this_host_is_looked_at_in_no_time() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOOK], cwd=world.ROOT, capture_output=True, timeout=30, check=True, env=os.environ
    )
    assert done.stdout.split()[0] in (b"whole", b"own", b"foreign", b"masked")
    assert Path("/proc/self").exists()


@pytest.mark.parametrize("name", [b"sleep", b"x) Z 1 1 1", b")", b"a b\nc", b"((", b""])
def test_no_name_of_a_process_changes_what_is_read(name: bytes) -> None:
    """A process may call itself anything (proc(5)), as one that has ended."""
    numbers = b" ".join(str(number).encode() for number in range(4, 53))
    made = parse_stat(b"7 (" + name + b") S " + numbers + b"\n", 1000)
    assert made is not None
    assert (made.id, made.parent, made.state, made.threads) == (ProcessId(7, 22), 4, "S", 20)
    assert (made.user_ticks, made.reaped_system_ticks, made.image_kb) == (14, 17, 0)
