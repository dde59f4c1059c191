"""What a job may use: the pure rules, and where the numbers come from."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import attrs
import pytest
import trio
import trio.testing
from classad2 import ClassAd
from hypothesis import given
from hypothesis import strategies as st

from jobwrapper.measure import measure
from procd.groups import Bounds as GroupBounds
from procd.groups import Group
from procd.messages import Usage
from procd.proc import ProcReader
from starter.description import describe
from starter.events import Event, LimitExceeded
from starter.life import State
from starter.limits import (
    SHADOW_MARGIN_S,
    Bounds,
    Measured,
    Named,
    OomSigns,
    bounds_of,
    disk_due,
    disk_exceeded,
    exceeded,
    oom_verdict,
    pause_s,
    time_left_s,
    time_up,
)
from starter.places import make_place
from starter.police import Police, measured_of, oom_kills
from starter.verdict import Hold, Requeue
from starter.visits import Visits
from starter.work import Work
from tests.jobwrapper.farsides import hostile_context

MB = 1024
BOUNDS = Bounds(memory_kb=100 * MB, disk_kb=200 * MB, processes=50, job_s=600.0, execute_s=300.0)
NAMED = Named("7.0", "slot1_1@node", 100, 200 * MB)


def test_a_job_within_its_limits_is_left_alone() -> None:
    assert exceeded(BOUNDS, Measured(100 * MB, 50), NAMED) is None
    assert disk_exceeded(BOUNDS, 200 * MB, NAMED) is None
    assert time_up(BOUNDS, NAMED, job_s=599.9, execute_s=299.9) is None


def test_memory_says_what_was_measured_and_what_is_allowed() -> None:
    over = exceeded(BOUNDS, Measured(150 * MB, 1), NAMED)
    assert over is not None
    assert (over.hold.code, over.hold.subcode, over.soft) == (34, 102, False)
    assert "150 MB" in over.hold.text
    assert "100 MB" in over.hold.text
    assert "request_memory" in over.hold.text
    assert "slot1_1@node" in over.hold.text


def test_disk_says_so_too() -> None:
    over = disk_exceeded(BOUNDS, 300 * MB, NAMED)
    assert over is not None
    assert (over.hold.code, over.hold.subcode) == (34, 104)
    assert "300 MB" in over.hold.text
    assert "request_disk" in over.hold.text


def test_too_many_processes_are_told_by_their_number() -> None:
    over = exceeded(BOUNDS, Measured(1, 51), NAMED)
    assert over is not None
    assert (over.hold.code, over.hold.subcode, over.soft) == (34, 105, False)
    assert "51 processes" in over.hold.text


@pytest.mark.parametrize(
    ("job_s", "execute_s", "code", "word"),
    [(600.0, 10.0, 46, "allowed_job_duration"), (400.0, 300.0, 47, "allowed_execute_duration"), (700.0, 400.0, 46, "")],
)
def test_wall_clock_ends_softly(job_s: float, execute_s: float, code: int, word: str) -> None:
    late = time_up(BOUNDS, NAMED, job_s=job_s, execute_s=execute_s)
    assert late is not None
    assert (late.hold.code, late.soft) == (code, True)
    assert word in late.hold.text


def test_the_shadow_is_given_time_to_keep_wall_clock_itself() -> None:
    later = attrs.evolve(BOUNDS, shadow_s=65.0)
    assert time_up(later, NAMED, job_s=664.9, execute_s=364.9) is None
    assert time_left_s(later, job_s=600.0, execute_s=300.0) == 65.0
    over = time_up(later, NAMED, job_s=500.0, execute_s=365.0)
    assert over is not None
    assert (over.hold.code, "is 300 s" in over.hold.text) == (47, True)


def test_a_job_that_does_not_run_yet_has_no_time_of_execution() -> None:
    assert time_up(Bounds(execute_s=1.0), NAMED, job_s=100.0, execute_s=None) is None
    assert time_left_s(Bounds(execute_s=1.0), job_s=100.0, execute_s=None) is None
    assert time_left_s(BOUNDS, job_s=590.0, execute_s=100.0) == 10.0
    assert time_left_s(BOUNDS, job_s=0.0, execute_s=295.0) == 5.0


def test_what_is_switched_off_is_not_policed() -> None:
    off = bounds_of(
        memory_mb=1, memory_percent=0, disk_kb=1, disk_percent=0, processes=0, job_s=None, execute_s=None,
        shadow_interval_s=60.0,
    )  # fmt: skip
    assert attrs.evolve(off, shadow_s=0.0) == Bounds()
    assert exceeded(off, Measured(1 << 40, 1 << 20), NAMED) is None
    assert disk_exceeded(off, 1 << 40, NAMED) is None
    assert time_up(off, NAMED, job_s=1e9, execute_s=1e9) is None


def test_percentages_are_of_the_slot() -> None:
    bounds = bounds_of(
        memory_mb=100, memory_percent=150, disk_kb=1000, disk_percent=50, processes=9, job_s=1.0, execute_s=2.0,
        shadow_interval_s=60.0,
    )  # fmt: skip
    assert bounds == Bounds(150 * MB, 500, 9, 1.0, 2.0, 60.0 + SHADOW_MARGIN_S)
    assert bounds.tasks == 36


def test_a_bomb_is_looked_at_sooner() -> None:
    calm = pause_s(BOUNDS, Measured(10 * MB, 3), Measured(10 * MB, 3), 5.0)
    near = pause_s(BOUNDS, Measured(60 * MB, 3), Measured(60 * MB, 3), 5.0)
    growing = pause_s(BOUNDS, Measured(10 * MB, 30), Measured(10 * MB, 2), 5.0)
    assert (calm, near, growing) == (5.0, 1.25, 0.3125)


@given(
    now=st.builds(Measured, st.integers(0, 1 << 40) | st.none(), st.integers(0, 1 << 22)),
    before=st.builds(Measured, st.integers(0, 1 << 40) | st.none(), st.integers(0, 1 << 22)),
    interval_s=st.floats(0.1, 3600),
)
def test_the_pause_is_never_longer_than_the_interval_nor_nothing(
    now: Measured, before: Measured, interval_s: float
) -> None:
    assert min(0.1, interval_s) <= pause_s(BOUNDS, now, before, interval_s) <= interval_s


def test_the_sandbox_is_measured_when_the_file_system_says_so_and_rarely_else() -> None:
    assert not disk_due(since_s=299, interval_s=300, grown_kb=1 << 40, left_kb=0)
    assert disk_due(since_s=300, interval_s=300, grown_kb=25, left_kb=100)
    assert not disk_due(since_s=300, interval_s=300, grown_kb=24, left_kb=100)
    assert disk_due(since_s=3600, interval_s=300, grown_kb=-5, left_kb=100)


# --- killed for want of memory ---------------------------------------------------------------------------------------


def test_a_kill_in_the_jobs_own_group_is_the_jobs_fault() -> None:
    found = oom_verdict(OomSigns(own_kills=1, other_kills=0, peak_kb=99 * MB), BOUNDS, NAMED)
    assert isinstance(found, Hold)
    assert (found.code, found.subcode) == (34, 102)
    assert "99 MB" in found.text


def test_a_kill_on_the_node_is_the_jobs_fault_only_when_it_was_at_its_limit() -> None:
    assert isinstance(oom_verdict(OomSigns(None, 1, 95 * MB), BOUNDS, NAMED), Hold)
    innocent = oom_verdict(OomSigns(None, 1, 20 * MB), BOUNDS, NAMED)
    assert isinstance(innocent, Requeue)
    assert "only 20 of its 100 MB" in innocent.text
    assert isinstance(oom_verdict(OomSigns(0, 1, 95 * MB), BOUNDS, NAMED), Requeue)


def test_a_sigkill_without_any_sign_is_the_jobs_own_affair() -> None:
    assert oom_verdict(OomSigns(None, 0, 99 * MB), BOUNDS, NAMED) is None
    assert oom_verdict(OomSigns(0, 0, 99 * MB), BOUNDS, NAMED) is None


def test_kills_are_counted_in_our_own_group_or_on_the_node(tmp_path: Path) -> None:
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroups"
    (proc / "self").mkdir(parents=True)
    (cgroups / "pilot").mkdir(parents=True)
    assert oom_kills(proc, cgroups) == 0
    (proc / "vmstat").write_text("nr_free 7\noom_kill 3\n")
    assert oom_kills(proc, cgroups) == 3
    (proc / "self" / "cgroup").write_text("0::/pilot\n")
    (cgroups / "pilot" / "memory.events").write_text("oom 2\noom_kill 1\n")
    assert oom_kills(proc, cgroups) == 1


# --- the numbers -----------------------------------------------------------------------------------------------------


def test_proportional_memory_counts_where_the_kernel_shows_it() -> None:
    usage = Usage(rss_kb=300, pss_kb=200, processes=2)
    assert measured_of(usage) == Measured(200, 2)
    assert measured_of(attrs.evolve(usage, pss_kb=None)) == Measured(300, 2)
    assert measured_of(attrs.evolve(usage, pss_kb=None, own_kb=250)) == Measured(250, 2)
    assert measured_of(attrs.evolve(usage, memory_limit_kb=100)) == Measured(None, 2)


def test_memory_of_its_own_is_told_from_what_is_mapped() -> None:
    reader = ProcReader()
    before, shared = reader.memory_kb(os.getpid())
    block = bytearray(os.urandom(64 << 20))
    after, _ = reader.memory_kb(os.getpid())
    assert 60 * MB <= after - before <= 80 * MB
    assert shared > 0
    assert reader.memory_kb(1 << 22) == (0, 0)
    assert len(block) == 64 << 20


def test_a_group_is_held_to_what_its_controllers_can(tmp_path: Path) -> None:
    """A directory stands in for the kernel's: names and numbers are those of cgroup v2."""
    for name in ("memory.max", "memory.oom.group", "pids.max"):
        (tmp_path / name).write_text("max")
    (tmp_path / "cpu.stat").write_text("user_usec 1000000\nsystem_usec 500000\n")
    (tmp_path / "memory.events").write_text("oom 1\noom_kill 2\n")
    group = Group(tmp_path)
    group.bound(GroupBounds(memory_kb=1024, tasks=200))
    assert (tmp_path / "memory.max").read_text() == "1048576"
    assert (tmp_path / "memory.oom.group").read_text().startswith("1")
    assert (tmp_path / "pids.max").read_text() == "200"
    counted = group.counted()
    assert counted is not None
    assert (counted.memory_limit_kb, counted.oom_kills) == (1024, 2)


def test_a_group_without_controllers_is_not_bounded(tmp_path: Path) -> None:
    (tmp_path / "cpu.stat").write_text("user_usec 1\nsystem_usec 1\n")
    Group(tmp_path).bound(GroupBounds(memory_kb=1024, tasks=200))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cpu.stat"]
    counted = Group(tmp_path).counted()
    assert counted is not None
    assert (counted.memory_limit_kb, counted.oom_kills) == (None, None)


def test_the_ads_durations() -> None:
    ad = ClassAd({"ClusterId": 1, "ProcId": 0, "Cmd": "a", "AllowedJobDuration": 60})
    assert (describe(ad).job_limit_s, describe(ad).execute_limit_s) == (60.0, None)
    ad["AllowedExecuteDuration"] = "soon"
    assert describe(ad).execute_limit_s is None


# --- the far side ----------------------------------------------------------------------------------------------------


def measured(path: Path) -> tuple[int, int, bool]:
    return measure(os.open(path, os.O_RDONLY | os.O_DIRECTORY))


def test_a_sandbox_is_measured_as_the_kernel_counts_it(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "data").write_bytes(b"x" * 100_000)
    (tmp_path / "link").symlink_to("/")
    os.link(tmp_path / "a" / "data", tmp_path / "again")
    os.truncate(os.open(tmp_path / "sparse", os.O_CREAT | os.O_WRONLY), 1 << 40)
    blocks, files, whole = measured(tmp_path)
    told = {path.lstat().st_ino: path.lstat().st_blocks for path in (tmp_path, *tmp_path.rglob("*"))}
    assert (blocks, files, whole) == (sum(told.values()), 5, True)


def at_account(uid: int, path: Path) -> tuple[int, int, bool]:
    """The same, by a process of that account: root is stopped by no mode."""
    top = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            os.write(writable, json.dumps(measure(top)).encode())
        finally:
            os._exit(0)
    os.close(writable)
    os.close(top)
    said = os.read(readable, 1000)
    os.close(readable)
    os.waitpid(child, 0)
    blocks, files, whole = json.loads(said)
    return blocks, files, whole


@pytest.mark.needs_root
def test_nothing_is_hidden_in_a_directory_that_is_shut(tmp_path: Path) -> None:
    shut = tmp_path / "shut"
    shut.mkdir()
    (shut / "data").write_bytes(b"x" * 100_000)
    for path in (tmp_path, shut, shut / "data"):
        os.chown(path, 54321, 54321)
    before = at_account(54321, tmp_path)
    shut.chmod(0)
    assert at_account(54321, tmp_path) == before
    assert before[0] * 512 >= 100_000
    assert shut.stat().st_mode & 0o777 == 0


@pytest.mark.needs_root
def test_what_belongs_to_somebody_else_and_is_shut_is_told_as_not_counted(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir(mode=0o700)
    os.chown(tmp_path, 54321, 54321)
    assert at_account(54321, tmp_path)[2] is False


def test_a_measurement_without_end_ends(tmp_path: Path) -> None:
    for name in range(50):
        (tmp_path / str(name)).touch()
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    assert measure(fd, limit_s=-1.0)[2] is False


# -- when there is nothing to look at, or nonsense comes back ----


def police(tmp_path: Path, far: Any, state: Callable[[], State]) -> tuple[Police, list[Event]]:
    told: list[Event] = []

    async def post(event: Event) -> None:
        told.append(event)

    @contextlib.asynccontextmanager
    async def turn(_what: str) -> AsyncIterator[Any]:
        yield far

    place = make_place(tmp_path)
    place.path.mkdir()
    work = SimpleNamespace(
        bounds=Bounds(disk_kb=100), place=place, disk=None, named=Named("1.0", "slot1@h", 1, 100),
        settings=SimpleNamespace(sailplane_disk_interval=1, sailplane_switch_deadline=20),
    )  # fmt: skip
    log = logging.LoggerAdapter(logging.getLogger("test"), {})
    return Police(cast(Work, work), cast(Visits, SimpleNamespace(turn=turn)), state, post, log), told


async def test_a_sandbox_that_is_gone_is_not_looked_at(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    """A report may wait for its shadow for days after the sandbox was removed."""
    state = State.RUNNING
    made, told = police(tmp_path, None, lambda: state)
    with trio.move_on_after(100):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.watch_disk)
            await trio.testing.wait_all_tasks_blocked()
            state = State.REPORTING
            shutil.rmtree(made.work.place.root)
    assert told == []


async def test_a_job_that_its_shadow_leaves_alone_is_held_here(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    made, told = police(tmp_path, None, lambda: State.RUNNING)
    made.work.__dict__.update(bounds=Bounds(execute_s=2.0, shadow_s=65.0), started_at_s=trio.current_time())
    began_s = trio.current_time()
    await made.watch_time()
    (event,) = told
    assert isinstance(event, LimitExceeded)
    assert (event.hold.code, trio.current_time() - began_s) == (47, pytest.approx(67.0))


@pytest.mark.parametrize("answer", ["{'kb': 'many', 'files': 1}", "{'kb': 1}", "{'kb': 1 << 80, 'files': 1}", "[]"])
async def test_a_measurement_that_is_none_is_left_for_later(tmp_path: Path, answer: str) -> None:
    far = hostile_context(tmp_path / "far", f"hello(); receive(); send({answer})")
    made, _ = police(tmp_path, far, lambda: State.RUNNING)
    assert await made._measure_disk() is None
