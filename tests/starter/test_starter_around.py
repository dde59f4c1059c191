"""What is set up for a job beside its files, and the commands before and after it."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pytest
import trio

from pilot.outcomes import Exited, Signalled
from starter.keptfiles import close, overwrite, trusted
from starter.launch import After, Command, Deadlines, ExecFailed, Launched, launch
from starter.sandbox import Place, make_place
from tests.jobwrapper.farsides import hostile_context, no_register, open_fds, wrapper_context
from tests.starter.launches import output, run, spec

# -- what is set up for it ------------------------------------------------------------------------------------------


async def test_a_job_is_bound_to_its_cores(place: Place) -> None:
    core = max(os.sched_getaffinity(0))
    text = await output(place, "/usr/bin/grep", "Cpus_allowed_list", "/proc/self/status", cpus=(core,))
    assert text.split() == ["Cpus_allowed_list:", str(core)]


async def test_the_kernel_takes_a_job_before_what_looks_after_it(place: Place) -> None:
    assert int(await output(place, "/usr/bin/cat", "/proc/self/oom_score_adj")) == 800
    assert int(Path("/proc/self/oom_score_adj").read_text()) < 800  # noqa: ASYNC240


async def test_limits_of_memory_and_niceness(place: Place) -> None:
    script = "ulimit -v; ulimit -c; nice"
    limits = {"as": (1 << 30, 1 << 30), "core": (0, 0)}
    assert (await output(place, "/bin/sh", "-c", script, rlimits=limits, nice=7)).split() == [str(1 << 20), "0", "7"]


# -- descriptors of the sandbox's files -----------------------------------------------------------------------------


async def test_files_that_are_asked_for_come_as_descriptors(place: Place) -> None:
    before = open_fds()
    asked = (("in.txt", "read"), ("missing", "read"), ("plain", "write"), ("link", "read"))
    (place.path / "link").symlink_to("/etc/passwd")
    launched = await run(place, "./tool", files=asked)
    assert isinstance(launched, Launched)
    assert set(launched.files) == {"in.txt", "plain"}
    assert os.pread(launched.files["in.txt"], 100, 0) == b"hello\n"
    assert overwrite(launched.files["plain"], b"new")
    assert not any(os.get_inheritable(fd) for fd in launched.files.values())
    await launched.wait()
    launched.running.close()
    assert (place.path / "plain").read_bytes().strip() == b"new"
    close(dict(launched.files))
    assert open_fds() == before


@pytest.mark.parametrize(
    "made",
    ["os.pipe()[1]", "os.open('/dev/null', os.O_RDWR)", "os.open('/etc/passwd', 0)", "socket.socketpair()[0].detach()"],
)
async def test_a_far_side_that_gives_other_descriptors_gets_nothing_written(tmp_path: Path, made: str) -> None:
    """Pipes and devices could block us, another's file is not ours to write."""
    before = open_fds()
    far = hostile_context(
        tmp_path / "far",
        f"""
        hello()
        receive()
        report = socket.recv_fds(line, 1, 1)[1][0]
        fd = {made}
        for number in (0, 0, 7):
            line.sendmsg([bytes([number])], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])
        line.sendmsg([b"12"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd, fd]))])
        os.write(report, b"g")
        """,
    )
    place = make_place(tmp_path)
    place.path.mkdir()
    launched = await run(place, "x", context=far, files=((".update.ad", "write"), ("other", "read")))
    assert isinstance(launched, Launched)
    assert trusted(launched.files, uid=os.geteuid() + 1, device=place.device) == {}
    await launched.wait()
    launched.running.close()
    assert open_fds() == before


def test_only_a_plain_file_of_the_jobs_account_in_its_file_system_is_used(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    uid, device = os.geteuid(), tmp_path.stat().st_dev
    cases = (("file", uid, device, True), ("fifo", uid, device, False), ("file", uid + 1, device, False),
             ("file", uid, device + 1, False), (".", uid, device, False))  # fmt: skip
    for name, owner, where, used in cases:
        fd = os.open(tmp_path / name, os.O_RDONLY | os.O_NONBLOCK)
        kept = trusted({"x": fd}, uid=owner, device=where)
        assert bool(kept) == used, (name, owner, where)
        close(kept)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_a_text_is_written_over_the_old_one_in_whole_pages(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "ad", os.O_RDWR | os.O_CREAT)
    for text in (b"long " * 1000, b"short", b""):
        assert overwrite(fd, text)
        found = (tmp_path / "ad").read_bytes()
        assert found.rstrip(b"\n") == text.rstrip(b"\n")
        assert len(found) % 4096 == 0
    assert not overwrite(fd, b"x" * 20_000)
    assert not overwrite(None, b"x")
    os.close(fd)
    assert not overwrite(fd, b"x")


# -- commands around the job ----------------------------------------------------------------------------------------


def shell(script: str, success: int | None = None) -> Command:
    return Command(argv=("/bin/sh", "-c", script), environment={"PATH": "/usr/bin:/bin", "ITS": "own"}, success=success)


async def test_a_command_before_the_job_runs_to_its_end_first(place: Place) -> None:
    text = await output(place, "/usr/bin/cat", "made", pre=shell("sleep 0.3; echo $ITS > made; echo lost"))
    assert text == "own\n"


@pytest.mark.slow
async def test_a_command_before_the_job_may_take_its_time(place: Place) -> None:
    """The deadline for the start counts without it."""
    with trio.fail_after(30):
        launched = await launch(
            wrapper_context(),
            place,
            spec(place, "./tool", pre=shell("sleep 3.5")),
            register=no_register,
            deadlines=Deadlines(exec_s=3),
        )
        assert isinstance(launched, Launched)
        assert await launched.wait() == Exited(42)
    launched.running.close()


@pytest.mark.parametrize(
    ("script", "success", "number"),
    [("exit 3", 0, 3), ("kill -9 $$", 0, 9), ("exit 0", 3 << 8, 0), ("exit 3", 4 << 8, 3)],
)
async def test_a_command_that_fails_before_the_job_keeps_it_from_starting(
    place: Place, script: str, success: int, number: int
) -> None:
    failed = await run(place, "/usr/bin/touch", "ran", pre=shell(script, success))
    assert isinstance(failed, ExecFailed)
    assert (failed.step, failed.errno) == ("pre", number)
    assert not (place.path / "ran").exists()


async def test_a_command_before_the_job_whose_end_does_not_count(place: Place) -> None:
    assert await output(place, "/bin/echo", "ran", pre=shell("exit 3")) == "ran\n"


async def test_a_command_before_the_job_that_is_not_there(place: Place) -> None:
    missing = Command(argv=("/no/such",), environment={})
    failed = await run(place, "/bin/true", pre=missing)
    assert failed == ExecFailed(errno.ENOENT, os.strerror(errno.ENOENT), "pre")


async def test_a_wrapper_that_dies_while_the_command_before_runs_is_not_called_again(place: Place) -> None:
    context = wrapper_context(retries=3)
    failed = await run(place, "/bin/true", context=context, pre=shell("echo x >> count; kill -9 $PPID"))
    assert isinstance(failed, ExecFailed)
    assert failed.step == "pre"
    assert (place.path / "count").read_text() == "x\n"


async def launched_with_after(place: Place, script: str, after: Command) -> tuple[Exited | Signalled, After | None]:
    launched = await run(place, "/bin/sh", "-c", script, post=after)
    assert isinstance(launched, Launched)
    with trio.fail_after(60):
        outcome = await launched.wait()
    launched.running.close()
    assert isinstance(outcome, Exited | Signalled)
    return outcome, launched.after


@pytest.mark.parametrize(
    ("script", "outcome", "told"),
    [
        ("exit 0", Exited(0), "code 0"),
        ("exit 203", Exited(203), "code 203"),
        ("kill -TERM $$", Signalled(15, False), "signal 15"),
    ],
)
async def test_a_command_after_the_job_knows_its_end_and_does_not_hide_it(
    place: Place, script: str, outcome: Exited | Signalled, told: str
) -> None:
    say = "echo ${_CONDOR_MAINJOB_EXIT_CODE+code} ${_CONDOR_MAINJOB_EXIT_SIGNAL+signal} "
    say += "$_CONDOR_MAINJOB_EXIT_CODE$_CONDOR_MAINJOB_EXIT_SIGNAL > told; exit 5"
    found, after = await launched_with_after(place, script, shell(say))
    assert found == outcome
    assert after == After(5 << 8, None)
    assert (place.path / "told").read_text().split() == told.split()


async def test_nothing_is_run_after_a_job_that_has_only_written_its_checkpoint(place: Place) -> None:
    after = Command(argv=("/usr/bin/touch", "after"), environment={}, unless=85 << 8)
    outcome, word = await launched_with_after(place, "exit 85", after)
    assert (outcome, word) == (Exited(85), After(None, None))
    assert not (place.path / "after").exists()
    await launched_with_after(place, "exit 84", after)
    assert (place.path / "after").exists()


async def test_a_command_after_the_job_that_is_not_there(place: Place) -> None:
    outcome, after = await launched_with_after(place, "exit 4", Command(argv=("/no/such",), environment={}))
    assert outcome == Exited(4)
    assert after == After(None, ExecFailed(errno.ENOENT, os.strerror(errno.ENOENT), "post"))


async def test_a_job_that_cannot_start_has_nothing_run_after_it(place: Place) -> None:
    failed = await run(place, "/no/such", post=shell("touch after"))
    assert isinstance(failed, ExecFailed)
    assert failed.step == "exec"
    assert not (place.path / "after").exists()


async def test_signals_reach_the_job_under_a_wrapper_that_stays(place: Place) -> None:
    script = "trap 'echo heard; exit 9' TERM; echo ready > ready; while :; do sleep 0.05; done"
    launched = await run(place, "/bin/sh", "-c", script, post=shell("touch after"))
    assert isinstance(launched, Launched)
    with trio.fail_after(60):
        while not (place.path / "ready").exists():  # noqa: ASYNC110 - a file, made by another process
            await trio.sleep(0.01)
        os.kill(launched.pid, signal.SIGTERM)
        assert await launched.wait() == Exited(9)
    launched.running.close()
    assert (place.path / "out").read_text() == "heard\n"
    assert (place.path / "after").exists()


async def test_a_job_that_kills_the_wrapper_that_stays_is_its_own_loss(place: Place) -> None:
    outcome, after = await launched_with_after(place, "kill -9 $PPID; exit 0", shell("touch after"))
    assert outcome == Signalled(9, False)
    assert after is None


async def test_a_job_that_signals_its_whole_group_does_not_reach_the_wrapper(place: Place) -> None:
    outcome, after = await launched_with_after(place, "kill -KILL 0", shell("touch after"))
    assert outcome == Signalled(9, False)
    assert after == After(0, None)
    assert (place.path / "after").exists()


@pytest.mark.parametrize(
    "said", ['{"ended": 70000}', '{"ended": "0"}', '{"ended": 128}', '{"after": 0}', "x" * 9000, "[]"]
)
async def test_a_last_word_that_is_none_changes_nothing(tmp_path: Path, said: str) -> None:
    far = hostile_context(
        tmp_path / "far",
        f"""
        hello()
        receive()
        report = socket.recv_fds(line, 1, 1)[1][0]
        os.write(report, b"g")
        os.close(report)
        body = {said.encode()!r}
        line.sendall(struct.pack(">I", len(body)) + body)
        sys.exit(6)
        """,
    )
    place = make_place(tmp_path)
    place.path.mkdir()
    launched = await run(place, "x", context=far, post=shell("true"))
    assert isinstance(launched, Launched)
    with trio.fail_after(60):
        assert await launched.wait() == Exited(6)
    launched.running.close()
    assert launched.after is None
