"""Signals to a family of real processes, through the wrapper."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from attrs import frozen

from jobwrapper.processes import read_children
from pilot.farside import Asking, start_ticks
from pilot.farsignal import Farewell, signal_far
from pilot.switch import NoneSwitch

WRAPPER = Path(__file__).resolve().parents[2] / "jobwrapper"
# Forks until it has a tree of 2 * 5 processes, with one that left its parent, then waits.
TREE = """
import os, signal, sys, time
for outer in range(2):
    if os.fork() == 0:
        for inner in range(4):
            if os.fork() == 0:
                signal.pause()
        signal.pause()
sys.stdout.write("up\\n"); sys.stdout.flush()
signal.pause()
"""
# Never stops forking: each generation lives for a moment.
STORM = """
import os, sys, time
sys.stdout.write("up\\n"); sys.stdout.flush()
while True:
    pid = os.fork()
    if pid:
        time.sleep(0.005)
        if os.getppid() != int(sys.argv[1]):
            os._exit(0)
        os.waitpid(pid, os.WNOHANG)
    else:
        time.sleep(0.002)
        os._exit(0)
"""
SLEEP = """
import signal, sys
sys.stdout.write("up\\n"); sys.stdout.flush()
while True: signal.pause()
"""
VFORK = """
import os, signal, sys
sys.stdout.write("up\\n"); sys.stdout.flush()
os.posix_spawn("/bin/true", ["true"], {{}}, file_actions=[(os.POSIX_SPAWN_OPEN, 0, {!r}, os.O_RDONLY, 0)])
"""


@frozen
class Settings:
    sailplane_switch: str = "none"
    glexec: str | None = None
    glexec_retries: int = 0
    glexec_retry_delay: float = 0
    sailplane_pilot_proxy: str | None = None
    sailplane_wrapper_python: str = "/usr/bin/python3"
    sailplane_wrapper_dir: str = str(WRAPPER)


ASKING = Asking(switch=NoneSwitch(), settings=Settings(), audit_id="t", credential=None)


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[bytes]]]:
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        for pid in members(process.pid):  # also when the first of them has ended
            os.kill(pid, signal.SIGKILL)
        process.wait()
        assert process.stdout
        process.stdout.close()


def start(started: list[subprocess.Popen[bytes]], program: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-IS", "-c", program, str(os.getpid())],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    started.append(process)
    assert process.stdout
    assert process.stdout.readline() == b"up\n"
    return process


def members(group: int) -> dict[int, str]:
    """pid -> state of a session's processes."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                words = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(words[3]) == group and words[0] not in "ZX":
                found[int(name)] = words[0]
    return found


# Of a call, for as long as the family is not what was asked for.
LIMIT_S = 30.0


def wait_for(condition, what: str) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.005)


async def send(process: subprocess.Popen[bytes], number: int, *, tree: bool = False, tick: int = 0):
    target = (process.pid, start_ticks(process.pid) + tick)
    return await signal_far(ASKING, number, [target], tree=tree, limit_s=LIMIT_S, deadline_s=60)


async def test_kill_takes_the_whole_tree(started) -> None:
    process = start(started, TREE)
    wait_for(lambda: len(members(process.pid)) == 11, "the tree is not up")
    told = await send(process, signal.SIGKILL)
    assert members(process.pid) == {}
    assert told.left_count == 0
    assert told.gone == 11
    assert process.wait() == -signal.SIGKILL


async def test_kill_takes_a_family_that_never_stops_forking(started) -> None:
    process = start(started, STORM)
    told = await send(process, signal.SIGKILL)
    assert told.left_count == 0
    assert members(process.pid) == {}


async def test_stop_reaches_all_and_cont_frees_them(started) -> None:
    process = start(started, TREE)
    wait_for(lambda: len(members(process.pid)) == 11, "the tree is not up")
    told = await send(process, signal.SIGSTOP)
    assert set(members(process.pid).values()) == {"T"}
    assert told.left_count == 0
    await send(process, signal.SIGCONT, tree=True)
    wait_for(lambda: set(members(process.pid).values()) == {"S"}, "still stopped")


async def test_a_plain_signal_goes_to_the_targets_alone(started) -> None:
    process = start(started, TREE)
    wait_for(lambda: len(members(process.pid)) == 11, "the tree is not up")
    told = await send(process, signal.SIGTERM)
    assert told.sent == 1
    assert process.wait() == -signal.SIGTERM
    assert len(members(process.pid)) == 10


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGSTOP])
async def test_a_signal_for_another_start_tick_is_not_delivered(started, number: int) -> None:
    process = start(started, SLEEP)
    told = await send(process, number, tick=1)
    assert (told.sent, told.left_count) == (0, 0)
    assert set(members(process.pid).values()) <= set("RS")
    assert process.poll() is None


async def test_who_waits_for_a_stopped_vfork_is_stopped(started, tmp_path: Path) -> None:
    """As any posix_spawn(3) that is under way: it cannot stop before its child goes on, and does nothing meanwhile."""
    os.mkfifo(tmp_path / "fifo")  # opened between vfork and exec, where nobody writes
    process = start(started, VFORK.format(str(tmp_path / "fifo")))
    wait_for(lambda: sorted(members(process.pid).values()) == ["D", "S"], "a vfork")
    with trio.fail_after(LIMIT_S - 5):  # it is not the limit that ends it
        told = await send(process, signal.SIGSTOP)
    assert told.left_count == 0
    assert sorted(members(process.pid).values()) == ["D", "T"]


async def test_another_start_tick_is_another_process(started) -> None:
    process = start(started, TREE)
    wait_for(lambda: len(members(process.pid)) == 11, "the tree is not up")
    told = await send(process, signal.SIGKILL, tick=1)
    assert (told.sent, told.left_count) == (0, 0)
    assert len(members(process.pid)) == 11


async def test_those_who_asked_are_not_of_the_family() -> None:
    """The tests themselves, who are the wrapper's parents, as a target: nobody is hurt."""
    told = await signal_far(
        ASKING,
        signal.SIGKILL,
        [(os.getpid(), start_ticks(os.getpid()))],
        tree=False,
        limit_s=5,
        deadline_s=60,
    )
    assert told.sent == 0


# The main thread ends; another one runs on, and /proc calls the whole process a zombie.
HEADLESS = """
import ctypes, sys, threading, time
def run():
    time.sleep(0.05)
    sys.stdout.write("up\\n"); sys.stdout.flush()
    time.sleep(1000)
threading.Thread(target=run).start()
ctypes.CDLL(None).pthread_exit(None)
"""


async def test_a_process_without_its_first_thread_is_no_zombie(started) -> None:
    process = start(started, HEADLESS)
    told = await send(process, signal.SIGKILL)
    assert told.sent >= 2
    assert told.left_count == 0
    assert process.wait() == -signal.SIGKILL


# A job that takes its leave when it is asked to, and one that does not listen.
POLITE = """
import signal, sys, time
def leave(*_):
    open(sys.argv[2], "w").write("bye"); sys.exit(3)
signal.signal(signal.SIGTERM, leave)
sys.stdout.write("up\\n"); sys.stdout.flush()
time.sleep(1000)
"""
DEAF = """
import signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
sys.stdout.write("up\\n"); sys.stdout.flush()
time.sleep(1000)
"""


async def bid_farewell(process: subprocess.Popen[bytes], grace_s: float):
    target = (process.pid, start_ticks(process.pid))
    farewell = (Farewell(signal.SIGTERM, grace_s), target)
    return await signal_far(
        ASKING, signal.SIGKILL, [target], tree=False, limit_s=LIMIT_S, deadline_s=60, farewell=farewell
    )


async def test_a_farewell_gives_the_root_its_time_in_the_same_call(started, tmp_path: Path) -> None:
    process = start(started, POLITE.replace("sys.argv[2]", repr(str(tmp_path / "bye"))))
    told = await bid_farewell(process, grace_s=60.0)
    assert process.wait() == 3
    assert (tmp_path / "bye").read_text() == "bye"
    assert told.left_count == 0


async def test_after_the_grace_comes_the_kill(started) -> None:
    process = start(started, DEAF)
    before = time.monotonic()
    told = await bid_farewell(process, grace_s=0.3)
    assert time.monotonic() - before >= 0.3
    assert process.wait() == -signal.SIGKILL
    assert told.left_count == 0


def test_children_of_every_thread_are_listed() -> None:
    """Each thread has a list of its own; how many there are is told by the directory's links."""
    program = (
        "import os, signal, sys, threading\n"
        "def fork():\n"
        "    pid = os.fork()\n"
        "    if pid: print(pid, flush=True)\n"
        "    signal.pause() if not pid else threading.Event().wait()\n"
        "fork_in_main = os.fork()\n"
        "if not fork_in_main: signal.pause()\n"
        "print(fork_in_main, flush=True)\n"
        "threading.Thread(target=fork).start()\n"
        "threading.Event().wait()"
    )
    with subprocess.Popen([sys.executable, "-IS", "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout
        children = sorted(int(process.stdout.readline()) for _ in range(2))
        try:
            assert sorted(read_children(process.pid)) == children
        finally:
            for pid in (*children, process.pid):
                os.kill(pid, signal.SIGKILL)
