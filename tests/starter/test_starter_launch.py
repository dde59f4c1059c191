"""Launching: what the job gets, what it must not get, and every way in which starting it can go wrong."""

from __future__ import annotations

import errno
import os
import resource
import signal
from pathlib import Path

import attrs
import pytest
import trio

from pilot.calls import Cpu, Running, own_children
from pilot.farside import CallFailed, start_ticks
from pilot.outcomes import Broken, Exited, Signalled
from procd.messages import Usage
from starter.launch import Deadlines, ExecFailed, Launched, launch
from starter.sandbox import (
    Changed,
    Context,
    OutFile,
    Place,
    StageFailed,
    make_place,
    remove_place,
    stage_in,
    stage_out,
)
from starter.waited import at_least, less, of_switch
from tests.jobwrapper.farsides import (
    LIMITS,
    Settings,
    hostile_context,
    no_register,
    once,
    open_fds,
    scripted_glexec,
    wrapper_context,
)
from tests.starter.launches import finish, output, run, spec


async def test_a_job_from_start_to_output(tmp_path: Path) -> None:
    before = open_fds()
    place = make_place(tmp_path)
    async with stage_in(wrapper_context(), place, deadline_s=60) as inward:
        await inward.file("in.txt", 0o644, 3, once(b"abc"))
        catalogue = await inward.finish()
    job = "cat; echo $WORD >&2; echo new > made; exit 7"
    assert await finish(place, "/bin/sh", "-c", job, stdin="in.txt", environment={"WORD": "hey"}) == Exited(7)
    found = {}
    async with stage_out(wrapper_context(), place, Changed(catalogue), limits=LIMITS, deadline_s=60) as outward:
        async for entry in outward.entries():
            assert isinstance(entry, OutFile)
            found[entry.name] = b"".join([chunk async for chunk in entry.chunks])
        await outward.remove()
    remove_place(place)
    assert found == {"err": b"hey\n", "made": b"new\n", "out": b"abc"}
    assert list(Path(tmp_path).iterdir()) == []  # noqa: ASYNC240
    assert open_fds() == before
    assert own_children() == frozenset()


# -- what the job gets ----------------------------------------------------------------------------------------------


async def test_the_environment_is_the_given_one_and_no_more(place: Place, monkeypatch) -> None:
    monkeypatch.setenv("PILOT_SECRET", "1")
    given = {"A": "1", "EMPTY": "", "LINES": "a\nb", "BYTES": os.fsdecode(b"\xff\xfe"), "Ü": "ü=ü"}
    assert await finish(place, "/usr/bin/env", "-0", environment=given) == Exited(0)
    found = (place.path / "out").read_bytes().rstrip(b"\0").split(b"\0")
    assert sorted(found) == sorted(
        f"{name}={value}".encode("utf-8", "surrogateescape") for name, value in given.items()
    )


async def test_arguments_are_bytes(place: Place) -> None:
    words = ["a b", "", "'", "\n", os.fsdecode(b"\xff"), "ü", "-x"]
    assert await finish(place, "/usr/bin/printf", "%s\\0", *words) == Exited(0)
    assert (place.path / "out").read_bytes() == b"".join(os.fsencode(word) + b"\0" for word in words)


async def test_a_large_environment(place: Place) -> None:
    given = {f"V{i}": "x" * 1000 for i in range(500)}
    assert await output(place, "/bin/sh", "-c", "/usr/bin/env | /usr/bin/wc -l", environment=given) >= "500"


async def test_no_descriptor_but_three(place: Place) -> None:
    leaky, other = os.pipe()
    os.set_inheritable(leaky, True)
    try:
        listing = await output(place, "/bin/sh", "-c", "readlink /proc/$$/fd/*; ls /proc/$$/fd", stdin="in.txt")
    finally:
        os.close(leaky)
        os.close(other)
    lines = listing.splitlines()
    top = str(place.path)
    assert lines == [f"{top}/in.txt", f"{top}/out", f"{top}/err", "0", "1", "2"]


async def test_no_signal_is_blocked_or_ignored(place: Place) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        found = await output(place, "/bin/grep", "^Sig[BI]", "/proc/self/status")
    finally:
        signal.signal(signal.SIGHUP, old)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
    # 32 and 33 belong to the C library, whose posix_spawn ignores them in every child.
    assert [int(line.split()[1], 16) & ~(3 << 31) for line in found.splitlines()] == [0, 0]


async def test_limits_are_the_given_ones(place: Place) -> None:
    given = {"core": (0, 0), "NOFILE": (64, 128), "fsize": (1 << 40, -1), "stack": (1 << 23, 1 << 24)}
    found = await output(place, "/bin/cat", "/proc/self/limits", rlimits=given)
    limits = {line[:26].strip(): line[26:].split()[:2] for line in found.splitlines()}
    assert limits["Max core file size"] == ["0", "0"]
    assert limits["Max open files"] == ["64", "128"]
    assert limits["Max stack size"] == [str(1 << 23), str(1 << 24)]
    assert limits["Max file size"][0] == str(1 << 40)


async def test_a_limit_above_what_there_is_becomes_what_there_is(place: Place) -> None:
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = await output(place, "/bin/sh", "-c", "ulimit -Sn; ulimit -Hn", rlimits={"nofile": (-1, -1)})
    assert found.split() == [str(hard), str(hard)]


async def test_umask_nice_and_directory(place: Place) -> None:
    own = os.getpriority(os.PRIO_PROCESS, 0)
    found = await output(place, "/bin/sh", "-c", "umask; nice; pwd", umask=0o027, nice=3)
    assert found.split() == ["0027", str(min(own + 3, 19)), str(place.path)]


async def test_the_job_has_a_session_and_a_group_of_its_own(place: Place) -> None:
    """So that its `kill 0` does not reach the pilot, nor its terminal ours."""
    assert await finish(place, "/bin/sh", "-c", "kill -TERM 0; sleep 10") == Signalled(signal.SIGTERM)


async def test_streams(place: Place) -> None:
    found = await output(place, "/bin/sh", "-c", "echo one; echo two >&2; echo three", stderr="out")
    assert found == "one\ntwo\nthree\n"
    assert await output(place, "/bin/cat", stdout="out", stderr="/dev/null") == ""
    mode = (place.path / "out").stat().st_mode & 0o777
    assert mode == 0o644


@pytest.mark.parametrize("status", [0, 1, 126, 201, 203, 204, 255])
async def test_exit_statuses(place: Place, status: int) -> None:
    assert await finish(place, "/bin/sh", "-c", f"exit {status}") == Exited(status)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV])
async def test_deaths_by_signal(place: Place, number: int) -> None:
    outcome = await finish(place, "/bin/sh", "-c", f"kill -{number} $$", rlimits={"core": (0, 0)})
    assert outcome == Signalled(number)


async def test_the_switch_shows_203_and_the_job_meant_it(place: Place, tmp_path: Path) -> None:
    switch = scripted_glexec(tmp_path / "glexec", 'exec "$@"')
    context = Context(switch=switch, settings=Settings(), audit_id="t", credential=None)
    assert await finish(place, "/bin/sh", "-c", "exit 203", context=context) == Exited(203)


# -- how it can fail ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "changes", "step", "number"),
    [
        (("./nothing",), {}, "exec", errno.ENOENT),
        (("./plain",), {}, "exec", errno.EACCES),
        (("./dir",), {}, "exec", errno.EACCES),
        (("./garbage",), {}, "exec", errno.ENOEXEC),
        (("./in.txt/x",), {}, "exec", errno.ENOTDIR),
        (("",), {}, "exec", errno.EINVAL),
        ((), {}, "exec", errno.EINVAL),
        (("./tool\0x",), {}, "exec", errno.EINVAL),
        (("./tool",), {"environment": {"A=B": "c"}}, "exec", errno.EINVAL),
        (("./tool", "x" * 200_000), {}, "exec", errno.E2BIG),
        (("./tool",), {"stdin": "missing"}, "stdin", errno.ENOENT),
        (("./tool",), {"stdin": "dir"}, "stdin", errno.EISDIR),
        (("./tool",), {"stdout": "dir"}, "stdout", errno.EISDIR),
        (("./tool",), {"stdout": "no/where"}, "stdout", errno.ENOENT),
        (("./tool",), {"stderr": "link"}, "stderr", errno.ELOOP),
        (("./tool",), {"stdin": "link"}, "stdin", errno.ELOOP),
        (("./tool",), {"stdout": "fifo"}, "stdout", errno.ENXIO),
        (("./tool",), {"cwd": "/nowhere"}, "cwd", errno.ENOENT),
        (("./tool",), {"rlimits": {"nonsense": (0, 0)}}, "exec", errno.EINVAL),
    ],
)
async def test_why_a_job_cannot_run(place: Place, argv, changes, step: str, number: int) -> None:
    (place.path / "link").symlink_to("in.txt")
    os.mkfifo(place.path / "fifo")
    before = open_fds()
    failed = await run(place, *argv, **changes)
    assert isinstance(failed, ExecFailed)
    assert (failed.step, failed.errno) == (step, number)
    assert failed.text
    assert own_children() == frozenset()
    assert open_fds() == before


async def test_the_family_is_registered_before_the_job_may_run(place: Place) -> None:
    seen = []

    async def register(pid: int, ticks: int, running: Running) -> None:
        seen.append((pid, ticks, (place.path / "ran").exists()))
        assert start_ticks(pid) == ticks

    launched = await launch(wrapper_context(), place, spec(place, "/bin/touch", "ran"), register=register)
    assert isinstance(launched, Launched)
    assert seen == [(launched.pid, launched.start_ticks, False)]
    assert await launched.wait() == Exited(0)
    launched.running.close()


async def test_nothing_runs_when_the_family_cannot_be_registered(place: Place) -> None:
    async def register(pid: int, ticks: int, running: Running) -> None:
        raise KeyError

    with pytest.raises(KeyError):
        await launch(wrapper_context(), place, spec(place, "/bin/touch", "ran"), register=register)
    assert not (place.path / "ran").exists()
    assert own_children() == frozenset()


async def test_registering_has_a_deadline(place: Place) -> None:
    async def register(pid: int, ticks: int, running: Running) -> None:
        await trio.sleep_forever()

    with pytest.raises(StageFailed) as caught:
        await launch(
            wrapper_context(),
            place,
            spec(place, "./tool"),
            register=register,
            deadlines=Deadlines(register_s=0.05),
        )
    assert caught.value.code == "timeout"
    assert own_children() == frozenset()


async def killed_in(place: Place, tmp_path: Path, program: str, *, retries: int = 0):
    """Launch with a far side that dies somewhere; result or failure, and how often it was tried."""
    mark = tmp_path / "mark"
    context = hostile_context(tmp_path / "far", f"open({str(mark)!r}, 'a').write('x')\n{program}", retries=retries)
    try:
        with trio.fail_after(60):
            result = await launch(context, place, spec(place, "./tool"), register=no_register)
    except CallFailed as failed:
        assert own_children() == frozenset()
        return failed, len(mark.read_text())
    return result, len(mark.read_text())


REPORT = """
hello(); receive()
_data, fds, _flags, _address = socket.recv_fds(line, 1, 1)
report = fds[0]
die = lambda: os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("program", ["die = 0; hello(); os.kill(os.getpid(), 9)", REPORT + "die()"])
async def test_a_wrapper_killed_before_going_is_tried_again(place: Place, tmp_path: Path, program: str) -> None:
    failed, attempts = await killed_in(place, tmp_path, program, retries=2)
    assert isinstance(failed, CallFailed)
    assert isinstance(failed.outcome, Broken)
    assert attempts == 3


async def test_a_wrapper_killed_after_going_was_a_job(place: Place, tmp_path: Path) -> None:
    launched, attempts = await killed_in(place, tmp_path, REPORT + "os.write(report, b'g'); die()", retries=2)
    assert isinstance(launched, Launched)
    assert await launched.wait() == Signalled(signal.SIGKILL)
    assert attempts == 1
    launched.running.close()


@pytest.mark.parametrize(
    ("program", "code"),
    [
        ("os.write(report, b'nonsense')", "framing"),
        ("os.write(report, b'gg')", "framing"),
        ("os.write(report, b'[]')", "framing"),
        ("os.write(report, b'x' * 60000)", "framing"),
    ],
)
async def test_a_reason_that_is_none(place: Place, tmp_path: Path, program: str, code: str) -> None:
    failed, attempts = await killed_in(place, tmp_path, REPORT + program, retries=2)
    assert isinstance(failed, CallFailed)
    assert (failed.code, attempts) == (code, 1)


async def test_a_reason_cannot_forge_a_line(place: Place, tmp_path: Path) -> None:
    program = REPORT + r"""os.write(report, b'g{"step": "a\\nb", "errno": true, "text": ["\\u001b[31m"]}')"""
    result, _ = await killed_in(place, tmp_path, program)
    assert isinstance(result, ExecFailed)
    assert result.step == "a?b"
    assert "\x1b" not in result.text


async def test_the_wrapper_hangs_after_it_has_the_job(place: Place, tmp_path: Path, monkeypatch) -> None:
    """Nobody knows then whether the job runs: not tried again."""
    monkeypatch.setattr("pilot.farside.END_GRACE_S", 0.1)
    monkeypatch.setattr("pilot.calls.KILLED_WITHIN_S", 30.0)
    context = hostile_context(tmp_path / "far", REPORT + "signal.pause()", retries=2)
    with pytest.raises(StageFailed) as caught:
        await launch(context, place, spec(place, "./tool"), register=no_register, deadlines=Deadlines(exec_s=0.1))
    assert caught.value.code == "timeout"
    assert own_children() == frozenset()


async def test_a_lingering_switch_that_keeps_the_socket(place: Place, tmp_path: Path) -> None:
    """It holds a copy of standard input for the whole life of the job, and knows nothing of a control socket."""
    switch = scripted_glexec(tmp_path / "glexec", 'exec 8<&0; "$@" <&8 8<&- & wait $!')
    context = Context(switch=switch, settings=Settings(), audit_id="t", credential=None)
    launched = await run(place, "/bin/sh", "-c", "cat > seen; exit 9", context=context, stdin="in.txt")
    assert isinstance(launched, Launched)
    assert launched.control is None
    assert launched.pid != launched.running.pid
    with trio.fail_after(60):
        assert await launched.wait() == Exited(9)
    launched.running.close()
    assert (place.path / "seen").read_text() == "hello\n"


CONTROL = """
import json, os, socket, subprocess, sys
line = socket.socket(fileno=int(os.environ["GLEXEC_CONTROL_FD"]))
child = subprocess.Popen(sys.argv[1:], stdin=0)
line.send(json.dumps({"linger": True, "pid": child.pid, "root_pid": os.getpid()}).encode())
status = os.waitpid(child.pid, 0)[1]
for _ in range(5):
    line.send(json.dumps({"done": "signal", "left": 3}).encode())
line.send(json.dumps({"ended": status, "left": 0}).encode())
os._exit(204)
"""


async def test_a_root_part_that_is_late(place: Place, tmp_path: Path, monkeypatch) -> None:
    """It is not steered any more, but neither does it take our silence for the order to end everything."""
    monkeypatch.setattr("starter.launch.LINGER_S", 0.01)
    late = CONTROL.replace("line.send", "import time; time.sleep(0.2); line.send", 1)
    ending = "import select\nif select.select([line], [], [], 0)[0]: child.kill()\nstatus = "
    (tmp_path / "root.py").write_text(late.replace("status = ", ending))
    switch = scripted_glexec(tmp_path / "glexec", f'exec /usr/bin/python3 -IS {tmp_path}/root.py "$@"')
    context = Context(switch=switch, settings=Settings(), audit_id="t", credential=None)
    launched = await run(place, "/bin/sh", "-c", "exit 203", context=context)
    assert isinstance(launched, Launched)
    assert launched.control is None
    with trio.fail_after(60):
        assert await launched.wait() == Exited(203)
    launched.running.close()


@pytest.mark.parametrize(("job", "outcome"), [("exit 203", Exited(203)), ("kill -9 $$", Signalled(9))])
async def test_the_root_part_tells_the_exact_end(place: Place, tmp_path: Path, job: str, outcome) -> None:
    (tmp_path / "root.py").write_text(CONTROL)
    switch = scripted_glexec(tmp_path / "glexec", f'exec /usr/bin/python3 -IS {tmp_path}/root.py "$@"')
    context = Context(switch=switch, settings=Settings(), audit_id="t", credential=None)
    launched = await run(place, "/bin/sh", "-c", job, context=context)
    assert isinstance(launched, Launched)
    assert launched.control is not None
    with trio.fail_after(60):
        assert await launched.wait() == outcome
    launched.running.close()


async def test_another_account_than_at_stage_in(place: Place, monkeypatch) -> None:
    monkeypatch.setattr("starter.entries.owner_of", lambda place: 12345)
    with pytest.raises(StageFailed) as caught:
        await run(place, "./tool")
    assert caught.value.code == "account"
    assert own_children() == frozenset()


# -- what it has used ------------------------------------------------------------------------------------------------

BURN = "import time\nwhile time.process_time() < 0.3: pass\n"
BURN_BELOW = f"import os\nif os.fork() == 0:\n    exec({BURN!r})\n    os._exit(0)\nos.wait()\n"


@pytest.mark.parametrize("program", [BURN, BURN_BELOW], ids=["itself", "a child"])
async def test_cpu_is_known_to_the_end_where_nobody_stands_between(place: Place, program: str) -> None:
    launched = await run(place, "/usr/bin/python3", "-ISc", program)
    assert isinstance(launched, Launched)
    assert launched.cpu is None
    with trio.fail_after(20):
        assert await launched.wait() == Exited(0)
    launched.running.close()
    assert launched.cpu is not None
    assert 0.3 <= sum(launched.cpu) < 0.6


async def test_a_switch_is_no_part_of_its_jobs_cpu(place: Place, tmp_path: Path) -> None:
    """It has used as much before the job began, and its process is what we wait for."""
    burn = "import time\nwhile time.process_time() < 0.5: pass"
    switch = scripted_glexec(tmp_path / "glexec", f"/usr/bin/python3 -ISc '{burn}'\n\"$@\"\nexit $?")
    launched = await run(
        place, "/usr/bin/python3", "-ISc", BURN, context=attrs.evolve(wrapper_context(), switch=switch)
    )
    assert isinstance(launched, Launched)
    with trio.fail_after(20):
        assert await launched.wait() == Exited(0)
    launched.running.close()
    assert launched.cpu is not None
    assert 0.25 <= sum(launched.cpu) < 0.5


def test_what_procd_saw_and_what_the_kernel_counted_are_not_added() -> None:
    seen = Usage(user_s=2.0, system_s=0.1, processes_seen=3)
    assert at_least(seen, Cpu(1.0, 0.3)) == attrs.evolve(seen, system_s=0.3)
    assert at_least(seen, None) == seen


def test_a_chain_that_is_not_shown_gives_no_number() -> None:
    assert of_switch(os.getpid(), os.getpid()) == Cpu(0.0, 0.0)
    assert of_switch(os.getpid(), 1 << 22) is None
    assert of_switch(1 << 22, os.getpid()) is None
    assert less(None, Cpu(0.0, 0.0)) is less(Cpu(0.0, 0.0), None) is None
