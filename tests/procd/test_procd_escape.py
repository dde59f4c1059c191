"""None outlives its job: trees that hide, bombs that fork, jobs that attack whoever ends them; by every route."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import trio

from demo import accounts
from pilot.farsignal import _is_stopped
from procd.proc import ProcReader
from tests.glexec.conftest import Site
from tests.procd import escapes, world
from tests.procd.stage import Stage, stage
from tests.procd.test_procd_glexec import site  # noqa: F401 - a fixture

pytestmark = pytest.mark.needs_root

SWITCHES = ("linger", "become", "none")
ENDS = ("rm", "normal end", "starter killed", "startd killed")
# All pairs of switch and end turn up within twelve seeds.
QUICK = 15
SEEDS = [*range(QUICK), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(QUICK, 100))]


@pytest.mark.parametrize("seed", SEEDS)
async def test_no_tree_outlives_its_job(request: pytest.FixtureRequest, tmp_path: Path, seed: int) -> None:
    switch, end = SWITCHES[seed % 3], ENDS[(seed // 3) % 4]
    arguments = (str(seed), str(random.Random(seed).choice((2, 3, 4))), "leave" if end == "normal end" else "stay")
    if switch == "none":
        await end_at_own_account(tmp_path, arguments, end)
        return
    with stage(
        request.getfixturevalue("site"), linger=switch == "linger", program=escapes.TREE, arguments=arguments
    ) as on:
        await begun(on, end)
        await end_it(on, end)
        await world.until(lambda: not on.alive(), f"nobody of {on.alive()} is left")


async def begun(on: Stage, end: str) -> None:
    """Some of the tree is there; the rest is on its way, or has been."""
    if end != "normal end":
        await world.until(lambda: len(on.alive()) >= 2, "a tree")


async def end_it(on: Stage, end: str) -> None:
    if end == "starter killed":
        os.kill(on.starter.pid, signal.SIGKILL)
    elif end == "startd killed":
        on.hang_up()
    else:
        stopped = on.starter.ask("stop", deadline_s=30)
        assert stopped["empty"], stopped
        assert on.alive() == {}


async def end_at_own_account(tmp_path: Path, arguments: tuple[str, ...], end: str) -> None:
    go = tmp_path / "go"
    with world.job(escapes.TREE, str(go), *arguments) as job:
        async with world.procd(tmp_path / "s") as client:
            await world.register(client, job)
            go.touch()
            if end != "normal end":
                await world.until(lambda: len(job.alive()) >= 2, "a tree")
            if end == "starter killed":
                os.kill(job.starter_pid, signal.SIGKILL)
                await world.until(lambda: job.alive() == [], "the family's end")
            elif end != "startd killed":
                assert (await client.stop("job", deadline_s=30)).empty
        assert job.alive() == []


def test_a_traced_killer_is_held_as_a_stopped_one_is() -> None:
    """It cannot be traced any more once it is at work; but a tracer may have come before."""
    program = (
        "import ctypes, os, signal\nctypes.CDLL(None).ptrace(0, 0, None, None)\n"
        "os.kill(os.getpid(), signal.SIGSTOP)\nwhile True: signal.pause()"
    )
    with subprocess.Popen([world.PYTHON, "-IS", "-c", program]) as process:
        try:
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
            assert _is_stopped(process.pid)
        finally:
            os.kill(process.pid, signal.SIGKILL)  # Popen takes a traced child's stop for its end, and would not
            while not os.WIFSIGNALED(os.waitpid(process.pid, 0)[1]):
                continue


@pytest.mark.parametrize("linger", [True, False], ids=["linger", "become"])
async def test_a_descendant_of_another_uid_is_the_jobs(site: Site, linger: bool, tmp_path: Path) -> None:  # noqa: F811
    """A root part ends it; a call at the job's account may not, and then it is named."""
    switching = site.base / f"python-{linger}"
    shutil.copy(world.PYTHON, switching)
    os.chown(switching, site.bob.uid, -1)
    switching.chmod(0o4755)
    try:
        with stage(site, linger=linger, program=escapes.OTHER_UID, arguments=(str(switching),)) as on:
            await world.until(lambda: bool(accounts.processes_of([site.bob.uid])), "a process of another uid")
            (other,) = accounts.processes_of([site.bob.uid])
            stopped = on.starter.ask("stop", deadline_s=20 if linger else 3)
            assert on.alive() == {}
            if linger:
                assert (stopped["empty"], accounts.processes_of([site.bob.uid])) == (True, {})
            else:
                assert (stopped["empty"], stopped["survivors"]) == (False, [other])
            accounts.kill_all(site.bob.uid)  # or procd tries until its end
    finally:
        accounts.kill_all(site.bob.uid)


# --- bombs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [0, pytest.param(40, marks=pytest.mark.slow)], ids=["many", "few"])
@pytest.mark.parametrize("linger", [True, False], ids=["linger", "become"])
# Hoppers may die out by themselves at the account's limit on a busy machine: then there is nothing to lose to.
@pytest.mark.parametrize("bomb", ["BOMB", pytest.param("HOPPERS", marks=pytest.mark.slow)])
async def test_a_fork_bomb_loses(site: Site, linger: bool, bomb: str, processes: int) -> None:  # noqa: F811
    """The account may have 120 processes; "few": whoever kills may have fewer than these."""
    program = getattr(escapes, bomb)
    with stage(site, linger=linger, program=program, arguments=("120",), processes=processes) as on:
        await forking()
        stopped = on.starter.ask("stop", deadline_s=40)
        assert stopped["empty"], stopped
        assert on.alive() == {}


async def forking() -> None:
    """Until some hundreds of processes were made; nobody can count a bomb's own."""
    begun = forks()
    await world.until(lambda: forks() - begun > 500, "a bomb")


def forks() -> int:
    text = Path("/proc/stat").read_text()
    return int(next(line for line in text.splitlines() if line.startswith("processes ")).split()[1])


# --- attacks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["kill", "stop"])
async def test_a_root_part_ends_a_job_that_attacks(site: Site, number: int) -> None:  # noqa: F811
    with stage(site, linger=True, program=escapes.ATTACK, arguments=("120", str(int(number)))) as on:
        stopped = on.starter.ask("stop", deadline_s=60)
        assert (stopped["empty"], stopped["route"]) == (True, "control")
        assert on.alive() == {}


@pytest.mark.parametrize(
    ("program", "how"),
    [
        (escapes.ATTACK, str(int(signal.SIGKILL))),
        (escapes.ATTACK, str(int(signal.SIGSTOP))),
        (escapes.TRACER, "0.03"),
        pytest.param(escapes.TRACER, "0", marks=pytest.mark.slow),
    ],
    ids=["kill", "stop", "trace", "trace at once"],
)
async def test_without_one_it_is_tried_again_and_told(site: Site, program: str, how: str) -> None:  # noqa: F811
    """At the job's account the killer can be beaten. Then that is said, in time."""
    with stage(site, linger=False, program=program, arguments=("120", how)) as on:
        begun_s = time.monotonic()
        stopped = on.starter.ask("stop", deadline_s=3)
        assert time.monotonic() - begun_s < 60
        assert stopped["switch_calls"] >= 1
        if stopped["empty"]:
            return
        assert stopped["survivors"]
        assert stopped["text"]


async def test_a_killer_that_was_stopped_does_not_stay(site: Site) -> None:  # noqa: F811
    """Nor is it waited for: the next one is called at once. A stopped one would be a stray for good."""
    deaf = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: signal.pause()"
    with stage(site, linger=False, program=deaf, arguments=()) as on:
        told: list[dict[str, Any]] = []

        def ask() -> None:
            told.append(on.starter.ask("stop", deadline_s=180, soft=int(signal.SIGTERM), grace_s=120.0))

        begun_s = time.monotonic()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, ask)
            seen: list[int] = []
            await world.until(lambda: bool(seen.extend(killers()) or seen), "a killer at work")
            killer = seen[0]
            os.kill(killer, signal.SIGSTOP)
            await world.until(lambda: killer not in on.alive(), "the stopped killer's end")
        assert time.monotonic() - begun_s < 60
        assert (told[0]["empty"], told[0]["switch_calls"]) == (True, 2)


def killers() -> list[int]:
    """Those that have spoken: files of what cannot be traced are root's (proc(5))."""
    return [pid for pid in world.marked("__main__.py\0signal") if world.traceable_by(pid) == 0 and world.uid_of(pid)]


# --- what was found by these tests --------------------------------------------------------------------------


def test_a_process_without_its_first_thread_still_has_a_command_line() -> None:
    """Without one it looked like a starter: these are known by their command line."""
    program = (
        "import threading, time\nthreading.Thread(target=lambda: time.sleep(30)).start()\n"
        "print('up', flush=True)\n__import__('ct' + 'ypes').CDLL(None).pthread_exit(None)"
    )
    reader = ProcReader()
    with subprocess.Popen([world.PYTHON, "-IS", "-c", program], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            process.stdout.readline()
            end_s = time.monotonic() + world.DEADLINE_S
            while (seen := reader.read(process.pid)) is None or seen.state != "Z":
                assert time.monotonic() < end_s
                time.sleep(0.002)
            assert seen.running
            assert not reader.alike(process.pid, os.getpid())
        finally:
            process.kill()
            reader.close()
