"""The lingering root part: control socket, escapes, deaths of either side, forwarded signals."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.glexec.conftest import PATIENCE_S, wait_for

pytestmark = pytest.mark.needs_root

# Leaves its session, its parent, its name and its streams behind, twice; "up" on stdout when all are there.
ESCAPE = """
import os, sys, signal
def away(n):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for fd in range(3):
                os.dup2(os.open("/dev/null", os.O_RDWR), fd)
            os.write(ready, b"x")
            signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.signal(signal.SIGHUP, signal.SIG_IGN)
            while True:
                signal.pause()
        os._exit(0)
    os.wait()
wait, ready = os.pipe()
for n in range(3):
    away(n)
for n in range(3):
    os.read(wait, 1)
print("up", flush=True)
"""
WAIT = "signal.pause()\n"
LEAVE = "sys.exit(7)\n"


def python(script: str) -> tuple[str, ...]:
    return ("/usr/bin/python3", "-IS", "-c", script)


class Call:
    """A steered call under way."""

    def __init__(self, process: subprocess.Popen[bytes], near: socket.socket) -> None:
        self.process = process
        self.near = near
        self.used_s: dict[str, float] = {}
        near.settimeout(PATIENCE_S)

    def ask(self, **request: object) -> dict[str, object]:
        self.near.send(json.dumps(request).encode())
        return self.hear()

    def hear(self) -> dict[str, object]:
        """The next word; what the last one says of CPU is kept apart."""
        data = self.near.recv(1000)
        heard = json.loads(data) if data else {}
        if "ended" in heard:
            self.used_s = {name: heard.pop(f"{name}_ms") / 1000 for name in ("user", "system")}
        return heard


@contextmanager
def steered(site, *command: str, fd: int = 3, linger: bool = True, **more: object) -> Iterator[Call]:
    """A call with a control socket, passed as descriptor `fd`."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with near:
        os.set_inheritable(far.fileno(), True)
        passed = far.fileno()
        script = f'exec {fd}<&{passed}; exec "$@"' if passed != fd else 'exec "$@"'
        env = site.environment(GLEXEC_CONTROL_FD=str(fd))
        front = site.installed[linger].front
        process = subprocess.Popen(
            ["/bin/bash", "-c", script, "sh", str(front), *command],
            env=env,
            user=site.pilot.uid,
            group=site.pilot.gid,
            extra_groups=[],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            pass_fds=(passed,),
            cwd="/",
            **more,
        )
        far.close()
        with process:
            try:
                yield Call(process, near)
            finally:
                near.close()
                process.stdout.read()


def states(pids: list[int]) -> set[str]:
    found = set()
    for pid in pids:
        stat = Path(f"/proc/{pid}/stat").read_text()
        found.add(stat[stat.rindex(")") + 2])
    return found


def members(site) -> list[int]:
    from demo import accounts

    return sorted(accounts.processes_of([site.alice.uid]))


# The control socket


@pytest.mark.parametrize("fd", [3, 7, 8, 9, 15])
def test_hello_and_the_last_word(site, fd):
    with steered(site, "/bin/sh", "-c", "ls /proc/self/fd; exit 9", fd=fd) as call:
        hello = call.hear()
        assert set(hello) == {"linger", "pid", "root_pid"}
        assert hello["linger"] is True
        assert call.hear() == {"ended": 9 << 8, "left": 0}
        assert call.hear() == {}
        assert call.process.wait() == 9
        assert call.process.stdout.read().split() == [b"0", b"1", b"2", b"3"]
        assert site.last("start")["pid"] == hello["pid"]


BURN = "import time\nwhile time.process_time() < 0.3: pass\n"
CHILD = f"import os\nif os.fork() == 0:\n    exec({BURN!r})\n    os._exit(0)\nos.wait()\n"
# Gone from its parents, and over before the payload.
DAEMON = (
    f"import os\nheld, told = os.pipe()\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
    f"        exec({BURN!r})\n        os._exit(0)\n    os._exit(0)\nos.wait()\nos.close(told)\nos.read(held, 1)\n"
)


@pytest.mark.parametrize("program", [BURN, CHILD, DAEMON], ids=["itself", "a child", "a daemon"])
def test_the_last_word_has_what_was_used_to_the_end(site, program):
    """Not what the decision and this supervisor have cost."""
    with steered(site, *python(program)) as call:
        call.hear()
        assert call.hear() == {"ended": 0, "left": 0}
        assert 0.3 <= sum(call.used_s.values()) < 0.6
        assert call.process.wait() == 0
        logged = site.last("end")
        assert abs(logged["user_s"] + logged["system_s"] - sum(call.used_s.values())) < 0.01


def test_the_last_word_has_the_whole_status(site):
    with steered(site, "/bin/sh", "-c", "kill -TERM $$") as call:
        call.hear()
        assert call.hear() == {"ended": signal.SIGTERM, "left": 0}
        assert call.process.wait() == -signal.SIGTERM


def test_without_linger_there_is_no_control(site):
    with steered(site, "/bin/sh", "-c", "exit 3", linger=False) as call:
        assert call.hear() == {}
        assert call.process.wait() == 3


def test_a_refused_call_closes_the_control(site):
    with steered(site, "/nowhere/command", stderr=subprocess.DEVNULL) as call:
        assert call.hear() == {}
        assert call.process.wait() == 201


def test_stop_cont_signal_and_kill_all(site):
    with steered(site, *python(ESCAPE + WAIT)) as call:
        hello = call.hear()
        assert call.process.stdout.readline() == b"up\n"
        family = members(site)
        assert len(family) == 4
        assert call.ask(do="stop") == {"done": "stop", "left": 4}
        wait_for(lambda: states(family) == {"T"}, "all stopped")
        assert call.ask(do="cont") == {"done": "cont", "left": 4}
        wait_for(lambda: states(family) == {"S"}, "all running")
        assert call.ask(do="signal", number=int(signal.SIGSTOP), to="root") == {"done": "signal", "left": 4}
        wait_for(lambda: states([hello["pid"]]) == {"T"}, "the root stopped")
        assert states([pid for pid in family if pid != hello["pid"]]) == {"S"}
        assert call.ask(do="signal", number=int(signal.SIGCONT), to="all") == {"done": "signal", "left": 4}
        assert call.ask(do="kill-all") == {"done": "kill-all", "left": 0}
        assert members(site) == []
        assert call.hear() == {"ended": signal.SIGKILL, "left": 0}
        assert call.process.wait() == -signal.SIGKILL
        assert site.last("end")["why"] == "kill-all"


def test_a_signal_to_the_root_alone(site):
    with steered(site, *python(ESCAPE + WAIT)) as call:
        call.hear()
        assert call.process.stdout.readline() == b"up\n"
        call.near.send(b'{"do":"signal","number":15,"to":"root"}')
        heard = [call.hear(), call.hear()]
        assert {"ended": signal.SIGTERM, "left": 0} in heard
        assert members(site) == []


MALFORMED = [
    b"x",
    b"{}",
    b"[]",
    b"null",
    b'{"do":"exec"}',
    b'{"do":["stop"]}',
    b'{"do":"stop","more":1}',
    b'{"do":"signal","number":0,"to":"all"}',
    b'{"do":"signal","number":65,"to":"all"}',
    b'{"do":"signal","number":true,"to":"all"}',
    b'{"do":"signal","number":15.0,"to":"all"}',
    b'{"do":"signal","number":15,"to":["all"]}',
    b'{"do":"signal","number":15}',
    b'{"do":"stop"}' + b" " * 1000,
    b"[" * 500,
    b"\xff\xfe",
]


@pytest.mark.parametrize("message", MALFORMED)
def test_the_first_malformed_message_ends_the_family(site, message):
    with steered(site, *python(ESCAPE + WAIT)) as call:
        call.hear()
        assert call.process.stdout.readline() == b"up\n"
        call.near.send(message)
        assert call.hear() == {}
        assert call.process.wait(PATIENCE_S) == -signal.SIGKILL
        assert members(site) == []


def test_who_does_not_read_ends_the_family(site):
    with steered(site, *python(ESCAPE + WAIT)) as call:
        call.hear()
        for _ in range(100_000):
            try:
                call.near.send(b'{"do":"cont"}')
            except OSError:
                break
        else:
            pytest.fail("nobody minds")
        assert call.process.wait(PATIENCE_S) == -signal.SIGKILL
        assert members(site) == []


def test_descriptors_in_a_message_go_nowhere(site):
    with steered(site, "/bin/sleep", "100") as call:
        hello = call.hear()
        reading, writing = os.pipe()
        socket.send_fds(call.near, [b'{"do":"cont"}'], [writing])
        os.close(writing)
        assert call.hear() == {"done": "cont", "left": 1}
        assert os.read(reading, 1) == b""  # nobody else holds the other end
        os.close(reading)
        held = {os.readlink(f"/proc/{hello['root_pid']}/fd/{fd}") for fd in (0, 1, 2)}
        assert held == {"/dev/null"}
        call.ask(do="kill-all")


def test_end_of_file_ends_the_family(site):
    with steered(site, *python(ESCAPE + WAIT)) as call:
        call.hear()
        assert call.process.stdout.readline() == b"up\n"
        second = call.near.dup()  # starter and procd both hold it
        call.near.close()
        assert len(members(site)) == 4
        second.close()
        assert call.process.wait(PATIENCE_S) == -signal.SIGKILL
        assert members(site) == []
        assert site.last("end")["why"] == "control closed"


def test_with_control_the_front_may_die(site):
    """Who holds the control socket is responsible: a starter that dies leaves it to procd."""
    with steered(site, "/bin/sleep", "100") as call:
        hello = call.hear()
        call.process.kill()
        call.process.wait()
        assert call.ask(do="cont") == {"done": "cont", "left": 1}
        assert states([hello["pid"]]) == {"S"}
        assert call.ask(do="kill-all") == {"done": "kill-all", "left": 0}
        assert call.hear() == {"ended": signal.SIGKILL, "left": 0}


def test_the_payload_cannot_reach_its_keeper(site):
    """Not by signal, not by tracing, not through the door for the front's signals."""
    probe = """
import os, socket
for line in open("/proc/net/unix"):
    name = line.split()[-1]
    if name.startswith("@") and len(name) == 6:
        door = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            door.sendto(b"15", b"\\0" + name[1:].encode())
        except OSError:
            pass
for action in (lambda: os.kill(os.getppid(), 9), lambda: open("/proc/%d/mem" % os.getppid()),
               lambda: os.listdir("/proc/%d/fd" % os.getppid()), lambda: open("/proc/%d/environ" % os.getppid())):
    try:
        action()
        print("done")
    except PermissionError:
        print("refused")
"""
    result = site.call(*python(probe))
    assert (result.code, result.out) == (0, b"refused\n" * 4)


# Ends


def test_what_escapes_ends_with_the_payload(site):
    with site.start(*python(ESCAPE + LEAVE)) as process:
        out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, out, err) == (7, b"up\n", b"")
    assert members(site) == []
    assert site.last("end")["left"] == 0


FORKING = """
import os, time
for n in range(60):
    if os.fork() == 0:
        end = time.monotonic() + 100
        while time.monotonic() < end:
            if os.fork() == 0:
                os.setsid()
                time.sleep(0.005)
                os._exit(0)
            try:
                while os.waitpid(-1, os.WNOHANG)[0]: pass
            except OSError: pass
            time.sleep(0.02)
        os._exit(0)
print("up", flush=True)
time.sleep(100)
"""


@pytest.mark.slow
def test_a_family_that_keeps_forking_is_ended(site):
    with steered(site, *python(FORKING)) as call:
        call.hear()
        call.process.stdout.readline()
        assert call.ask(do="kill-all") == {"done": "kill-all", "left": 0}
        assert members(site) == []


def test_the_fronts_death_ends_the_payload(site, shell):
    """A SIGKILL of the caller's process, by the caller's own account, without a control socket."""
    with site.start(*python(ESCAPE + WAIT), shell=shell) as process:
        assert process.stdout.readline() == b"up\n"
        process.kill()
        process.wait()
        wait_for(lambda: site.no_process_of(site.alice), "an end of the family")
        wait_for(lambda: site.last("end")["why"] == "front gone", "its record")


def test_a_front_that_dies_early_starts_nothing(site):
    for pause_s in (0.0, 0.002, 0.005, 0.01, 0.015, 0.02):
        with site.start("/bin/sleep", "100") as process:
            time.sleep(pause_s)  # not waiting for anything: the moment is the test
            process.kill()
    wait_for(lambda: site.no_process_of(site.alice), "nothing of the payload")


def test_the_root_parts_death_ends_the_payload(site):
    with steered(site, "/bin/sleep", "100") as call:
        hello = call.hear()
        comm = Path("/proc", str(hello["pid"]), "comm")
        wait_for(lambda: comm.read_text() == "sleep\n", "the payload")  # before, 202 is right: nothing was started
        os.kill(hello["root_pid"], signal.SIGKILL)
        assert call.process.wait(PATIENCE_S) == -signal.SIGKILL
        wait_for(lambda: site.no_process_of(site.alice), "an end of the payload")


TELL = """
import signal, sys
names = [signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTSTP]
signal.pthread_sigmask(signal.SIG_BLOCK, names)
print("up", flush=True)
while True:
    number = signal.sigwait(names)
    print(int(number), flush=True)
    if number == signal.SIGTERM:
        sys.exit(5)
"""


def test_signals_of_the_caller_reach_the_payload_once(site, shell):
    with site.start(*python(TELL), shell=shell) as process:
        assert process.stdout.readline() == b"up\n"
        for name in ("HUP", "INT", "QUIT", "USR1", "USR2", "TSTP", "CONT", "TERM"):
            number = signal.Signals["SIG" + name]
            # as the pilot, who may signal its front and nothing behind it
            subprocess.run(["/bin/kill", f"-{name}", str(process.pid)], user=site.pilot.uid, check=True)
            if name != "CONT":
                assert process.stdout.readline() == b"%d\n" % number
        assert process.wait(PATIENCE_S) == 5
        assert process.stdout.read() == b""


def test_without_linger_signals_stop_at_the_front(site):
    """Nobody is there to pass them on; a front that died of them would tell its caller a lie."""
    with site.start("/bin/sh", "-c", "echo up; read line; exit 6", linger=False, stdin=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"up\n"
        for name in ("HUP", "TERM", "INT"):
            subprocess.run(["/bin/kill", f"-{name}", str(process.pid)], user=site.pilot.uid, check=True)
        process.stdin.write(b"\n")
        process.stdin.close()
        assert process.wait(PATIENCE_S) == 6


def test_others_cannot_send_signals_through_the_front(site):
    """A datagram at the door counts only if the kernel says that the front's process sent it."""
    with site.start(*python(TELL)) as process:
        assert process.stdout.readline() == b"up\n"
        names = [line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines()]
        sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        reached = 0
        for name in names:
            if len(name) == 6 and name[0] == "@":
                try:
                    sender.sendto(b"15", b"\0" + name[1:].encode())  # as root, even
                    reached += 1
                except OSError:
                    continue
        sender.close()
        assert reached
        process.send_signal(signal.SIGUSR1)
        assert process.stdout.readline() == b"%d\n" % signal.SIGUSR1
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 5


def test_the_keepers_hold_no_stream(site, linger):
    """An end of file reaches whoever waits for it while the payload still runs."""
    ours, theirs = socket.socketpair()
    extra, kept = os.pipe()
    with ours, theirs:
        script = "exec 0<&- 1>&- 2>&-; exec /bin/sleep 100"
        process = site.start("/bin/sh", "-c", script, linger=linger, stdin=theirs, stdout=theirs, pass_fds=(kept,))
        theirs.close()
        os.close(kept)
        ours.settimeout(PATIENCE_S)
        assert ours.recv(1) == b""
        assert os.read(extra, 1) == b""
        os.close(extra)
        for pid in members(site):
            os.kill(pid, signal.SIGKILL)
        assert process.wait(PATIENCE_S) == -signal.SIGKILL
        process.stderr.close()


def test_the_session_is_the_callers(site, linger):
    """Batch systems kill by session or process group; nothing may leave it."""
    with site.start("/bin/sh", "-c", "echo up; sleep 100", linger=linger, start_new_session=True) as process:
        assert process.stdout.readline() == b"up\n"
        for pid in members(site):
            assert os.getsid(pid) == process.pid
            assert os.getpgid(pid) == process.pid
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        wait_for(lambda: site.no_process_of(site.alice), "an end of the session")


def test_processor_time_is_the_callers(site, linger):
    """What the payload used shows up in its caller's account of children, and in the log."""
    import resource

    burn = "import os, time\nwhile sum(os.times()[:2]) < 0.3: pass\n"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert site.call(*python(burn), linger=linger).code == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime >= 0.29
    if linger:
        end = site.last("end")
        assert 0.29 <= end["user_s"] + end["system_s"] < 2


def test_a_terminal_interrupts_once(site):
    """Control-C goes to the whole group by the kernel; nobody passes it on a second time."""
    import pty

    leader, follower = pty.openpty()
    script = """
import signal, sys, time
count = []
signal.signal(signal.SIGINT, lambda *_: count.append(1))
print("up", flush=True)
while not count:
    time.sleep(0.01)
time.sleep(0.3)
sys.exit(len(count))
"""

    def control() -> None:
        import fcntl
        import termios

        fcntl.ioctl(follower, termios.TIOCSCTTY, 0)

    with site.start(
        *python(script), start_new_session=True, stdin=follower, pass_fds=(follower,), preexec_fn=control
    ) as process:
        assert process.stdout.readline() == b"up\n"
        os.write(leader, b"\x03")
        assert process.wait(PATIENCE_S) == 1
    os.close(leader)
    os.close(follower)


def test_credentials_of_the_front_are_what_counts():
    """The kernel's struct ucred is three ints here: what the door unpacks."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        ours.send(b"x")
        _, ancillary, _, _ = theirs.recvmsg(1, 100)
    assert struct.unpack("3i", ancillary[0][2]) == (os.getpid(), os.getuid(), os.getgid())


def test_a_caller_cannot_starve_the_keeper(site):
    """Limits of the caller's are the payload's, not the root part's: the log keeps its last line."""
    import resource

    size = site.installed[True].log.stat().st_size

    def lower() -> None:
        hard = resource.RLIM_INFINITY
        for limit, value in ((resource.RLIMIT_FSIZE, size + 600), (resource.RLIMIT_NOFILE, 30)):
            resource.setrlimit(limit, (value, hard if limit != resource.RLIMIT_NOFILE else 4096))

    before = len(site.log())
    result = site.call("/bin/cat", "/proc/self/limits", preexec_fn=lower)
    assert result.code == 0
    assert f"Max file size             {size + 600}".encode() in result.out
    assert [line["event"] for line in site.log()[before:]] == ["decision", "start", "end"]


def test_a_front_that_is_not_above_is_no_front():
    """Without a pidfd the process is looked at: its number alone proves nothing."""
    from glexec import codes, frontpid

    with pytest.raises(codes.Failure):
        frontpid.Front(os.getpid())
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        front = frontpid.Front(os.getppid())
        front.fd = -1
        verdicts = [front.is_gone()]
        front._first.ticks -= 1
        verdicts.append(front.is_gone())
        os.write(writing, repr(verdicts).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 100) == b"[False, True]"
    os.close(reading)
    os.close(writing)
