"""A pilot as a job of a real Slurm: what its end, its suspension and its accounting mean for the payloads."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import attrs
import pytest

from demo import leftovers
from tests.e2e.e2e_glidein import Glidein, pool_for_glideins, prepare
from tests.e2e.e2e_jobs import Jobs
from tests.slurm.batchsystem import Slurm, open_slurm, why_not

pytestmark = [pytest.mark.needs_root, pytest.mark.slow, pytest.mark.timeout(600)]

SLOTS = 4
# A payload of several processes: one in a session of its own, one that its parent does not wait for.
FAMILY = "setsid sleep 1000 & (setsid sh -c 'sleep 1000 & sleep 1000' &) ; sleep 1000 & sleep 1000; wait"


@attrs.frozen
class Grid:
    """A pool for whose jobs pilots are handed to a batch system."""

    jobs: Jobs
    slurm: Slurm
    tracker: str

    def pilot(self, name: str, lines: dict[str, object] | None = None) -> str:
        """Hand in a pilot; its id in the batch system, once jobs can come."""
        made = prepare(self.jobs, name, {"GLIDEIN_Max_Walltime": 3600, "GLIDEIN_CPUS": SLOTS} | (lines or {}))
        job = self.slurm.submit(
            _script(made, times="GLIDEIN_Max_Idle" in (lines or {})), made.home, "--output", str(self._output(name))
        )
        self.slurm.until("the pilot", lambda: "ready, pid" in self.said(name) or None)
        return job

    def _output(self, name: str) -> Path:
        return self.jobs.site.layout.pilot / f"{name}.out"

    def said(self, name: str) -> str:
        """What a pilot's script has printed."""
        path = self._output(name)
        return path.read_text() if path.exists() else ""

    def processes(self) -> dict[int, str]:
        """States of everything that is the site's, at whatever account, the pool apart."""
        site = self.jobs.site
        assert site.pool is not None
        ours = set(leftovers.processes_in(site.layout.root)) - _tree(site.pool.pid)
        users = {site.accounts[role].uid for role in ("alice", "bob", "pilot")}
        return {pid: _status(pid).get("State", "?")[0] for pid in ours} | _of_accounts(users)

    def until_gone(self) -> None:
        """No process of any account is left."""
        self.slurm.until("every process to be gone", lambda: None if self.processes() else True)


def _script(made: Glidein, *, times: bool) -> str:
    """The batch script is the glidein's own: where the first process of a job ends, Slurm ends all others."""
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in made.environment.items())
    run = f"{shlex.join(made.argv)} 2>&1"
    return f"{exports}cd {shlex.quote(str(made.home))}\n" + (f"{run}\ntimes\n" if times else f"exec {run}\n")


def _status(pid: int) -> dict[str, str]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _of_accounts(uids: set[int]) -> dict[int, str]:
    """States of the living processes of these accounts."""
    found = {int(entry.name): _status(int(entry.name)) for entry in Path("/proc").iterdir() if entry.name.isdigit()}
    living = {pid: status for pid, status in found.items() if status.get("State", "Z")[0] != "Z"}
    return {pid: status["State"][0] for pid, status in living.items() if int(status["Uid"].split()[0]) in uids}


def _tree(root: int) -> set[int]:
    found = {root}
    for children in Path(f"/proc/{root}/task").glob("*/children"):
        for pid in children.read_text().split():
            found |= _tree(int(pid))
    return found


@pytest.fixture(scope="module", params=["linuxproc", "cgroup"])
def grid(request: pytest.FixtureRequest) -> Iterator[Grid]:
    """One pool and one batch system for each way of following processes."""
    if reason := why_not(request.param):
        pytest.skip(reason)
    with pool_for_glideins() as jobs, open_slurm(jobs.site.accounts["pilot"], request.param, cpus=SLOTS) as slurm:
        yield Grid(jobs, slurm, request.param)


@pytest.fixture(autouse=True)
def no_pilot(grid: Grid) -> Iterator[None]:
    """A test that fails leaves the next one an empty node."""
    yield
    grid.slurm.ask("scancel", "--user", grid.slurm.account.name)
    grid.slurm.until("an empty node", lambda: None if grid.slurm.ask("squeue", "-h") else True)


def running(grid: Grid, role: str, script: str, **lines: str) -> str:
    job = grid.jobs.submit(role, script, **lines)
    grid.jobs.wait_for(job, "running")
    return job


def payloads(grid: Grid, role: str) -> dict[int, str]:
    """States of a user's processes."""
    return _of_accounts({grid.jobs.site.accounts[role].uid})


def test_a_cancelled_pilot_leaves_no_process_of_any_account(grid: Grid) -> None:
    pilot = grid.pilot("cancelled")
    alice, bob = running(grid, "alice", FAMILY), running(grid, "bob", f"trap '' TERM; {FAMILY}")
    grid.slurm.until("all payloads", lambda: len(payloads(grid, "bob")) >= 6 or None)
    grid.slurm.ask("scancel", pilot)
    grid.slurm.until_over(pilot)
    grid.until_gone()
    for role, job in (("alice", alice), ("bob", bob)):
        grid.jobs.wait_for(job, "idle")
        grid.jobs.remove(role, job)


def test_a_batch_system_that_kills_at_once_leaves_no_process(grid: Grid) -> None:
    """As a node does that is out of memory, or an administrator in a hurry."""
    pilot = grid.pilot("killed")
    job = running(grid, "alice", FAMILY)
    grid.slurm.until("all payloads", lambda: len(payloads(grid, "alice")) >= 6 or None)
    grid.slurm.ask("scancel", "--signal=KILL", "--full", pilot)
    grid.slurm.until_over(pilot)
    grid.until_gone()
    grid.jobs.wait_for(job, "idle")
    grid.jobs.remove("alice", job)


def test_the_grace_after_sigterm_brings_output_home(grid: Grid) -> None:
    """Slurm's own way sends SIGTERM to every process, payloads too: these have not ended by themselves then."""
    script = (
        "if [ -f state ]; then cat state; exit 0; fi\n"
        "trap 'echo saved >>state; exit 0' TERM\n"
        "echo begun >state; touch here; sleep 1000 & wait\n"
    )
    pilot = grid.pilot("graceful")
    job = running(
        grid, "alice", script, when_to_transfer_output="ON_EXIT_OR_EVICT", transfer_output_files="state",
    )  # fmt: skip
    grid.jobs.until("its first words", lambda: any(grid.jobs.site.layout.pilot.glob("execute/**/here")))
    grid.slurm.ask("scancel", pilot)
    grid.slurm.until_over(pilot)
    grid.until_gone()
    row = grid.jobs.wait_for(job, "idle", "completed")
    assert row["state"] == "idle", "ended by the batch system, not by itself"
    second = grid.pilot("second")
    grid.jobs.done(job)
    assert grid.jobs.fetch("alice", job)["out"] == b"begun\nsaved\n"
    grid.slurm.ask("scancel", second)
    grid.slurm.until_over(second)


def test_a_suspended_pilots_payloads_stand_still_and_go_on(grid: Grid) -> None:
    pilot = grid.pilot("suspended")
    job = running(grid, "alice", FAMILY)
    grid.slurm.until("all payloads", lambda: len(payloads(grid, "alice")) >= 6 or None)
    for _ in range(4):
        grid.slurm.admin("scontrol", "suspend", pilot)
        grid.slurm.until("all to stand still", lambda: set(payloads(grid, "alice").values()) <= {"T", "D"} or None)
        grid.slurm.admin("scontrol", "resume", pilot)
        grid.slurm.until("all to go on", lambda: set(payloads(grid, "alice").values()) == {"S"} or None)
        grid.slurm.until("nothing to stay stopped", lambda: "T" not in grid.processes().values() or None)
    assert len(payloads(grid, "alice")) >= 6
    assert grid.jobs.output("bob", "echo still here").strip() == "still here"
    grid.jobs.remove("alice", job)
    grid.slurm.ask("scancel", pilot)
    grid.slurm.until_over(pilot)


# Two processes of a payload that each use two seconds; the second is nobody's child when it ends.
BURN = "timeout 2 sh -c 'while :; do :; done'"
BURNT_S = 3.0  # the machine may have other work


def test_what_payloads_use_is_accounted_to_the_pilot(grid: Grid) -> None:
    pilot = grid.pilot("accounted", {"GLIDEIN_Max_Idle": 6})
    grid.jobs.done(grid.jobs.submit("alice", f"{BURN}; (setsid {BURN} &); sleep 4"))
    if grid.tracker == "cgroup":  # by Slurm's own count, which needs the group for what has ended
        told = partial(grid.slurm.admin, "sstat", "-n", "-P", "-o", "AveCPU", "-j", f"{pilot}.batch")
        grid.slurm.until("the payload's time", lambda: _seconds(told()) >= BURNT_S or None)
    grid.slurm.until_over(pilot)
    children = re.findall(r"\d+m[\d.]+s", grid.said("accounted").splitlines()[-1])
    assert sum(map(_seconds, children)) >= BURNT_S, "what a batch system sees by wait(2)"


def _seconds(text: str) -> float:
    """0m3.21s of a shell, 00:00:03 of Slurm."""
    found = re.fullmatch(r"(?:(\d+)[:m])?(?:(\d+):)?([\d.]+)s?", text)
    assert found is not None, text
    parts = [float(part) for part in found.groups() if part]
    return sum(value * 60**power for power, value in enumerate(reversed(parts)))
