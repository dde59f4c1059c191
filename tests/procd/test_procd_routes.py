"""procd.routes on their own: whom they signal, and whom never."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from demo import runtime
from demo.accounts import Account
from procd.proc import ProcReader, parse_stat
from procd.process import ProcessId
from procd.routes import Control, OwnRight, RouteFailed
from tests.procd import world


@pytest.fixture
def reader() -> Iterator[ProcReader]:
    made = ProcReader()
    yield made
    made.close()


def test_a_process_with_the_same_number_and_another_start_is_left_alone(reader: ProcReader) -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        ticks = world.ticks(process.pid)
        own = OwnRight(reader)
        assert own.send([ProcessId(process.pid, ticks - 1), ProcessId(process.pid, ticks + 1)], 9) == []
        assert process.poll() is None
        assert own.send([ProcessId(process.pid, ticks), ProcessId(1 << 22, 5)], signal.SIGTERM) == []
        assert process.wait(10) == -signal.SIGTERM


@pytest.mark.needs_root
def test_who_may_not_be_signalled_is_told_and_the_others_are(accounts: Mapping[str, Account], open_dir: Path) -> None:
    """As seen from another account: root's process refuses, our own takes the signal."""
    there = runtime.reachable(open_dir / "runtime")
    with subprocess.Popen(["sleep", "60"]) as foreign:
        code = (
            "import subprocess, sys\n"
            "from procd.proc import ProcReader\nfrom procd.process import ProcessId\n"
            "from procd.routes import OwnRight\n"
            "reader = ProcReader()\nown = subprocess.Popen(['sleep', '60'])\n"
            "ids = [ProcessId(pid, reader.ticks(pid)) for pid in (int(sys.argv[1]), own.pid)]\n"
            "print([each.pid for each in OwnRight(reader).send(ids, 9)], own.wait())\n"
        )
        done = subprocess.run(
            [str(there.python), "-c", code, str(foreign.pid)],
            env={"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1", **there.environment},
            user=accounts["pilot"].uid,
            group=accounts["pilot"].gid,
            extra_groups=[],
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout == f"[{foreign.pid}] -9\n", done.stderr
        assert foreign.poll() is None
        foreign.kill()


def test_control_says_what_the_far_side_understands() -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with far:
        control = Control(near.detach())
        control.signal(15, "all")
        control.kill_all()
        assert far.recv(512) == b'{"do": "signal", "number": 15, "to": "all"}'
        assert far.recv(512) == b'{"do": "kill-all"}'
        far.send(b'{"done": "kill-all", "left": 0}')  # for the starter: never read here
        far.close()
        with pytest.raises(RouteFailed):
            control.stop()
        assert not control.alive
        with pytest.raises(RouteFailed):
            control.resume()


def test_control_does_not_wait_for_a_far_side_that_does_not_read() -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with far:
        control = Control(near.detach())
        refused = False
        while not refused:
            try:
                control.stop()
            except RouteFailed:
                refused = True
        assert control.alive
        control.close()


# --- /proc --------------------------------------------------------------------------------------------------


def test_a_name_may_hold_anything() -> None:
    line = b"12 (a) R 1 (b) S 7 1 1 0 -1 4194304 1 2 3 4 10 20 30 40 20 0 3 0 999 4096000 50 184467"
    process = parse_stat(line, 5)
    assert process is not None
    assert (process.id, process.parent, process.state, process.threads) == (ProcessId(12, 999), 7, "S", 3)
    assert (process.user_ticks, process.system_ticks, process.reaped_user_ticks, process.reaped_system_ticks) == (
        10, 20, 30, 40,
    )  # fmt: skip
    assert (process.rss_kb, process.image_kb, process.uid) == (
        50 * os.sysconf("SC_PAGE_SIZE") // 1024,
        4000,
        5,
    )


@pytest.mark.parametrize("line", [b"", b"12 (a) S 7", b"garbage"])
def test_a_cut_line_is_nobody(line: bytes) -> None:
    assert parse_stat(line, 0) is None


def test_we_find_ourselves_and_our_children(reader: ProcReader) -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        me = reader.read(os.getpid())
        assert me is not None
        assert child.pid in reader.children(me)
        assert (me.parent, me.uid) == (os.getppid(), os.geteuid())
        assert {os.getpid(), child.pid} <= {process.id.pid for process in reader.scan()}
        share = reader.pss_kb(os.getpid())
        assert share is not None
        assert 0 < share <= me.rss_kb * 2
        assert reader.alike(os.getpid(), os.getpid())
        assert not reader.alike(os.getpid(), 1)
        child.kill()
    assert reader.read(child.pid) is None
    assert reader.read(1 << 22) is None


def test_a_long_list_of_children_is_read_to_its_end(reader: ProcReader) -> None:
    """More than a page of /proc/PID/task/PID/children."""
    program = (
        "import os, signal\nr, w = os.pipe()\n"
        "for _ in range(700):\n    if os.fork() == 0: os.close(w); os.read(r, 1); os._exit(0)\n"
        "print('up', flush=True); signal.pause()\n"
    )
    with subprocess.Popen([world.PYTHON, "-IS", "-c", program], stdout=subprocess.PIPE) as parent:
        assert parent.stdout
        parent.stdout.readline()
        process = reader.read(parent.pid)
        assert process is not None
        assert len(reader.children(process)) == 700
        parent.kill()  # the end of the pipe takes the children along


def test_a_process_whose_first_thread_has_ended_still_runs(reader: ProcReader) -> None:
    program = (
        "import ctypes, threading, time\n"
        "threading.Thread(target=lambda: time.sleep(60)).start()\n"
        "print('up', flush=True)\n"
        "ctypes.CDLL(None).syscall(60, 0)\n"  # exit(2) of this thread only
    )
    if os.uname().machine != "x86_64":
        pytest.skip("the number of exit(2) is x86-64's")
    with subprocess.Popen([world.PYTHON, "-IS", "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        found = reader.read(process.pid)
        while found is not None and found.state != "Z":
            found = reader.read(process.pid)
        assert found is not None
        assert found.running
        process.kill()
        process.wait()
