"""The identity switch's near side: what a status means, what a call is given, and what becomes of it."""

from __future__ import annotations

import json
import os
import signal
import socket
from functools import partial
from pathlib import Path
from typing import BinaryIO

import pytest
import trio
from attrs import evolve

from pilot.calls import Call, Cpu, own_children
from pilot.control import Ended, Linger, parse_control, read_ended, read_linger
from pilot.farside import Asking, CallFailed, open_call, without_hello
from pilot.inquiry import Patience
from pilot.ledger import Ledger, note_identity
from pilot.outcomes import (
    Broken,
    Denied,
    Exited,
    Misused,
    Outcome,
    Signalled,
    Unavailable,
    classify,
    classify_plain,
    clean_text,
)
from pilot.standing import ENDS, refused
from pilot.switch import (
    GlexecSwitch,
    NoneSwitch,
    Retries,
    clean_audit_id,
    compile_wrapper,
    glexec_environment,
    make_switch,
    wrapper_argv,
)
from starter.sandbox import Context
from tests.jobwrapper.farsides import Settings, hostile_context, open_fds, script, scripted_glexec

# 32 and 33 belong to the C library, whose posix_spawn ignores them in every child.
INTERNAL_SIGNALS = 1 << 31 | 1 << 32


def exited(status: int) -> int:
    return status << 8


# -- deciding
# -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wait_status", "authorised", "outcome"),
    [
        (exited(0), False, Exited(0)),
        (exited(1), False, Exited(1)),
        (exited(126), False, Exited(126)),
        (exited(200), False, Exited(200)),
        (exited(201), False, Misused("words")),
        (exited(202), False, Unavailable("words")),
        (exited(203), False, Denied("words")),
        (exited(204), False, Exited(204, masked=True)),
        (exited(205), False, Exited(205)),
        (exited(255), False, Exited(255)),
        (exited(0), True, Exited(0)),
        (exited(201), True, Exited(201)),
        (exited(202), True, Exited(202)),
        (exited(203), True, Exited(203)),
        (exited(204), True, Exited(204, masked=True)),
        (exited(255), True, Exited(255)),
        (9, False, Signalled(9)),
        (9, True, Signalled(9)),
        (11 | 0x80, True, Signalled(11, core=True)),
    ],
)
def test_what_a_wait_status_of_glexec_means(wait_status: int, authorised: bool, outcome: Outcome) -> None:
    assert classify(wait_status, "words", authorised=authorised) == outcome


@pytest.mark.parametrize("status", [0, 1, 126, 201, 202, 203, 204, 255])
@pytest.mark.parametrize("authorised", [False, True])
def test_without_a_switch_every_status_is_its_own(status: int, authorised: bool) -> None:
    assert classify_plain(exited(status), "", authorised=authorised) == Exited(status)


@pytest.mark.parametrize(
    ("outcome", "failures", "pause_s"),
    [
        (Denied(""), 1, 2.0),
        (Denied(""), 3, 2.0),
        (Denied(""), 4, None),
        (Unavailable(""), 1, 2.0),
        (Broken(""), 1, 2.0),
        (Misused(""), 1, None),
        (Exited(1), 1, None),
        (Signalled(9), 1, None),
    ],
)
def test_what_is_tried_again(outcome: Outcome, failures: int, pause_s: float | None) -> None:
    assert Retries(limit=3, delay_s=8.0).pause_s(failures, outcome, 0.25) == pause_s


def test_pauses_are_full_jitter() -> None:
    retries = Retries(limit=3, delay_s=5.0)
    pauses = [retries.pause_s(1, Denied(""), dice) for dice in (0.0, 0.5, 0.999)]
    assert pauses == [0.0, 2.5, pytest.approx(4.995)]


@pytest.mark.parametrize(
    ("outcome", "meaning"),
    [
        (None, Unavailable("the switch neither answers nor ends: oops")),
        (Exited(0), Broken("exit status 0 before the wrapper spoke: oops")),
        (Exited(204, masked=True), Broken("exit status 204 before the wrapper spoke: oops")),
        (Signalled(9), Broken("killed by signal 9 before the wrapper spoke: oops")),
        (Denied("no"), Denied("no")),
    ],
)
def test_without_a_hello_a_status_has_no_meaning(outcome: Outcome | None, meaning: Outcome) -> None:
    assert without_hello(outcome, "oops") == meaning


def test_what_the_switch_prints_cannot_forge_a_line() -> None:
    raw = b"one\n\n  two\x1b[31m \r\nthree\xff\xe2\x80\xa8pthread_mutex_init: bad\nfour"
    assert clean_text(raw) == "one; two?[31m; three\N{REPLACEMENT CHARACTER}; four"


def test_only_the_end_of_what_is_printed_is_kept() -> None:
    assert len(clean_text(b"x" * 100_000)) == 2048


def test_the_audit_id_is_one_word() -> None:
    assert clean_audit_id('a#1\n{"forged": 1}\0é' + "x" * 500) == 'a#1_{"forged":_1}__' + "x" * 181


def test_the_whole_environment_of_a_call() -> None:
    call = Call(("x",), "job#1", Path("/user.pem"), stdin=0, control=True)
    assert glexec_environment(call, "/pilot.pem") == {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "GLEXEC_CLIENT_CERT": "/user.pem",
        "X509_USER_PROXY": "/pilot.pem",
        "GLEXEC_TARGET_PROXY": "/dev/null",
        "GLEXEC_ID": "job#1",
        "GLEXEC_CONTROL_FD": "3",
    }


def test_without_a_credential_the_pilot_asks_for_itself() -> None:
    environment = glexec_environment(Call(("x",), "", None, stdin=0), "/pilot.pem")
    assert environment["GLEXEC_CLIENT_CERT"] == environment["X509_USER_PROXY"] == "/pilot.pem"
    assert "GLEXEC_CONTROL_FD" not in environment


@pytest.mark.parametrize(
    ("datagram", "message"),
    [
        (b'{"linger": true, "pid": 7, "root_pid": 6}', Linger(7, 6)),
        (b'{"ended": 256, "left": 0}', Ended(256, 0)),
        (b'{"ended": 256}', Ended(256, 0)),
        (b'{"ended": 0, "left": 1, "user_ms": 1250, "system_ms": 0}', Ended(0, 1, Cpu(1.25, 0.0))),
        (b'{"ended": 0, "user_ms": 1}', None),
        (b'{"ended": 0, "user_ms": 1%s, "system_ms": 0}' % (b"0" * 400), None),
        (b'{"linger": true}', None),
        (b'{"linger": true, "pid": "x", "root_pid": 6}', None),
        (b'{"ended": null}', None),
        (b'{"do": "stop"}', None),
        (b"[1]", None),
        (b"\xff", None),
        (b"[" * 4000, None),
    ],
)
def test_words_of_the_root_part(datagram: bytes, message: object) -> None:
    assert parse_control(datagram) == message


def test_the_settings_choose_the_switch() -> None:
    assert isinstance(make_switch(Settings()), NoneSwitch)
    assert isinstance(make_switch(Settings(sailplane_switch="glexec", glexec="/usr/sbin/glexec")), GlexecSwitch)
    with pytest.raises(ValueError, match="GLEXEC"):
        make_switch(Settings(sailplane_switch="glexec"))


def test_the_wrapper_is_called_by_a_path_that_is_no_link() -> None:
    python, *rest = wrapper_argv(Settings(sailplane_wrapper_dir="/w"), "launch")
    assert not os.path.islink(python)
    assert rest == ["-IS", "/w/__main__.py", "launch"]


# -- acting
# -------------------------------------------------------------------------------------------------------


def opened_null() -> BinaryIO:
    return open(os.devnull, "rb")


def read_all(fd: int) -> bytes:
    with open(fd, "rb") as pipe:
        return pipe.read()


async def answer(switch: GlexecSwitch | NoneSwitch, *argv: str, **changes) -> tuple[Outcome, bytes, str]:
    """Run one call to its end: outcome, standard output, standard error."""
    before = open_fds()
    read, write = os.pipe()
    with opened_null() as null:
        call = Call(argv, "job#1", None, stdin=null.fileno(), stdout=write, **changes)
        running = await switch.start(call)
    os.close(write)
    assert running.pid in own_children()
    with trio.fail_after(60):
        outcome = await running.wait()
    assert running.pid not in own_children()
    out = read_all(read)
    errors = running.errors()
    running.close()
    assert open_fds() == before
    return outcome, out, errors


async def test_glexec_gets_its_command_and_nothing_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_PILOT", "1")
    switch = scripted_glexec(tmp_path / "glexec", 'echo "$@"; exec env', pilot_proxy="/p.pem")
    outcome, out, errors = await answer(switch, "cmd", "a b")
    lines = out.decode().splitlines()
    assert (outcome, errors, lines[0]) == (Exited(0), "", "cmd a b")
    names = {line.partition("=")[0] for line in lines[1:]}
    assert names - {"PWD", "_", "SHLVL", "OLDPWD"} == {
        "PATH", "GLEXEC_CLIENT_CERT", "X509_USER_PROXY", "GLEXEC_TARGET_PROXY", "GLEXEC_ID",
    }  # fmt: skip


async def test_without_a_switch_there_is_a_path_only() -> None:
    _outcome, out, _errors = await answer(NoneSwitch(), "/usr/bin/env")
    assert [line.partition("=")[0] for line in out.decode().splitlines()] == ["PATH"]


async def test_only_the_descriptors_of_the_call_are_open_in_it() -> None:
    leaky, other = os.pipe()
    os.set_inheritable(leaky, True)
    os.set_inheritable(other, True)
    try:
        _outcome, out, _errors = await answer(NoneSwitch(), "/bin/ls", "/proc/self/fd")
    finally:
        os.close(leaky)
        os.close(other)
    assert out.split() == [b"0", b"1", b"2", b"3"]  # 3 is ls's own


async def test_signals_of_the_caller_do_not_reach_the_call() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        _outcome, out, _errors = await answer(NoneSwitch(), "/bin/grep", "^Sig[BI]", "/proc/self/status")
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
    blocked, ignored = (int(line.split()[1], 16) for line in out.splitlines())
    assert blocked == 0
    assert ignored & ~INTERNAL_SIGNALS == 0


async def test_standard_error_is_kept_for_the_outcome(tmp_path: Path) -> None:
    switch = scripted_glexec(tmp_path / "glexec", "echo 'You are banned' >&2; exit 203")
    outcome, _out, _errors = await answer(switch, "x")
    assert outcome == Denied("You are banned")


async def test_a_flood_on_standard_error_stops_nobody(tmp_path: Path) -> None:
    switch = scripted_glexec(tmp_path / "glexec", "yes complaint | head -c 1000000 >&2; exit 5")
    outcome, _out, errors = await answer(switch, "x")
    assert outcome == Exited(5)
    assert 0 < len(errors) <= 4096


async def test_a_dead_front_is_a_signal(tmp_path: Path) -> None:
    assert (await answer(scripted_glexec(tmp_path / "g", "kill -TERM $$"), "x"))[0] == Signalled(15)


async def test_a_command_that_is_not_there() -> None:
    before = open_fds()
    with opened_null() as null, pytest.raises(FileNotFoundError):
        await GlexecSwitch("/nowhere/glexec", None).start(Call(("x",), "", None, stdin=null.fileno(), control=True))
    assert open_fds() == before


async def test_two_tasks_may_wait_and_one_may_give_up(tmp_path: Path) -> None:
    near, far = os.pipe()
    running = await NoneSwitch().start(Call(("/bin/cat",), "", None, stdin=near))
    os.close(near)
    results = []

    async def wait() -> None:
        results.append(await running.wait())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        nursery.start_soon(wait)
        with trio.move_on_after(0.01):
            await running.wait()
        os.close(far)
    assert results == [Exited(0), Exited(0)]
    running.close()


async def test_end_kills_what_does_not_end() -> None:
    near, far = os.pipe()
    running = await NoneSwitch().start(Call(("/bin/cat",), "", None, stdin=near))
    os.close(near)
    assert await running.end(0.05) == Signalled(signal.SIGKILL)
    assert await running.end(0.05) == Signalled(signal.SIGKILL)
    running.close()
    running.close()
    os.close(far)


CONTROL = """
import json, os, socket, sys
line = socket.socket(fileno=int(os.environ["GLEXEC_CONTROL_FD"]))
line.send(json.dumps({"linger": True, "pid": 1, "root_pid": os.getpid()}).encode())
word = json.loads(line.recv(100))
line.send(json.dumps({"ended": word["number"], "left": 0}).encode())
"""


async def test_the_control_socket_is_descriptor_3_and_talks(tmp_path: Path) -> None:
    (tmp_path / "root.py").write_text(CONTROL)
    switch = scripted_glexec(tmp_path / "glexec", f"exec /usr/bin/python3 -IS {tmp_path}/root.py")
    with opened_null() as null:
        running = await switch.start(Call(("x",), "", None, stdin=null.fileno(), control=True))
    assert running.control is not None
    assert running.control.type == socket.SOCK_SEQPACKET
    with trio.fail_after(60):
        assert await read_linger(running.control) == Linger(1, running.pid)
        assert read_ended(running.control) == (None, False)
        running.control.send(json.dumps({"do": "signal", "number": 15, "to": "all"}).encode())
        assert await running.wait() == Exited(0)
    assert read_ended(running.control) == (Ended(15, 0), True)
    running.close()


async def test_nobody_on_the_control_socket(tmp_path: Path) -> None:
    with opened_null() as null:
        running = await scripted_glexec(tmp_path / "glexec", "exit 0").start(
            Call(("x",), "", None, stdin=null.fileno(), control=True)
        )
    assert running.control is not None
    with trio.fail_after(60):
        assert await read_linger(running.control) is None
        await running.wait()
    running.close()


# -- a call with its hello
# ------------------------------------------------------------------------------------------


def glexec_context(path: Path, text: str, *, retries: int) -> Context:
    return Context(
        switch=scripted_glexec(path, text),
        settings=Settings(glexec_retries=retries),
        audit_id="t",
        credential=None,
    )


async def failure(context: Context, *, deadline_s: float = 20) -> CallFailed:
    before = open_fds()
    with pytest.raises(CallFailed) as caught, trio.fail_after(30):
        await open_call(context, "launch", deadline_s=deadline_s)
    assert open_fds() == before
    assert own_children() == frozenset()
    return caught.value


@pytest.mark.parametrize(
    ("text", "attempts", "code", "outcome"),
    [
        ("echo no >&2; exit 203", 3, "denied", Denied("no")),
        ("echo down >&2; exit 202", 3, "unavailable", Unavailable("down")),
        ("echo expired >&2; exit 201", 1, "misused", Misused("expired")),
        ("exit 0", 3, "broken", Broken("exit status 0 before the wrapper spoke")),
        ("kill -9 $$", 3, "broken", Broken("killed by signal 9 before the wrapper spoke")),
    ],
)
async def test_a_call_without_a_hello(tmp_path: Path, text: str, attempts: int, code: str, outcome: Outcome) -> None:
    count = tmp_path / "count"
    ledger = Ledger.of(tmp_path)
    context = glexec_context(tmp_path / "glexec", f"echo >> {count}\n{text}", retries=2)
    failed = await failure(evolve(context, patience=Patience(ledger, 60.0)))
    assert (failed.code, failed.outcome) == (code, outcome)
    assert len(count.read_text().splitlines()) == attempts
    assert ledger.counts() == {**dict.fromkeys(ENDS, 0), code: attempts}


async def test_failed_calls_of_a_users_and_the_pilots_own_are_counted(tmp_path: Path) -> None:
    mark, ledger = tmp_path / "mark", Ledger.of(tmp_path)
    ledger.begin(probe=True)
    glexec = script(tmp_path / "glexec", f'echo >> {mark}; [ $(wc -l < {mark}) -gt 2 ] && exec "$@"; exit 203')
    asking = Asking(
        GlexecSwitch(glexec, None, log_only=True), Settings(), "t", tmp_path / "proxy.pem",
        patience=Patience(ledger, 60.0),
    )  # fmt: skip
    far = await open_call(asking, "launch", deadline_s=60)
    await far.end()
    assert ledger.counts() == {**dict.fromkeys(ENDS, 0), "denied": 2, "passed": 2}


async def test_a_call_that_is_cancelled_is_counted_as_abandoned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pilot.farside.END_GRACE_S", 0.1)
    monkeypatch.setattr("pilot.calls.KILLED_WITHIN_S", 30.0)
    ledger = Ledger.of(tmp_path)
    context = glexec_context(tmp_path / "glexec", f"echo $$ > {tmp_path}/pid; exec sleep 600", retries=0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(open_call, evolve(context, patience=Patience(ledger, 60.0)), "x", deadline_s=60))
        with trio.fail_after(60):
            while not (tmp_path / "pid").exists():  # noqa: ASYNC110 - a file, written by a process
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert ledger.counts() == {**dict.fromkeys(ENDS, 0), "abandoned": 1}


async def test_a_call_that_works_the_second_time(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    context = glexec_context(tmp_path / "glexec", f'test -e {mark} && exec "$@"; : > {mark}; exit 203', retries=1)
    far = await open_call(context, "launch", deadline_s=60)
    assert far.hello.uid == os.getuid()
    assert far.running.authorised
    await far.end()


async def test_a_switch_that_does_not_answer(tmp_path: Path) -> None:
    failed = await failure(glexec_context(tmp_path / "glexec", "exec sleep 100", retries=0), deadline_s=0.05)
    assert failed.outcome == Unavailable("no answer within 0.05 s")


async def test_a_switch_that_is_not_there() -> None:
    settings = Settings(glexec_retries=1, glexec_retry_delay=0.01)
    context = Context(switch=GlexecSwitch("/nowhere/glexec", None), settings=settings, audit_id="t", credential=None)
    outcome = (await failure(context)).outcome
    assert outcome == Unavailable("cannot start glexec: No such file or directory")


@pytest.mark.parametrize(
    "program",
    [
        'line.sendall(b"\\xff\\xff\\xff\\xff")',
        'line.sendall(b"\\0\\0\\0\\2[]")',
        'line.sendall(b"\\0\\0\\0\\4abcd")',
        'send({"hello": 99})',
        'send({"hi": 1})',
        'line.sendall(b"\\0\\0")',
    ],
)
async def test_something_else_than_a_hello(tmp_path: Path, program: str) -> None:
    failed = await failure(hostile_context(tmp_path / "far", program))
    assert isinstance(failed.outcome, Broken)


async def test_a_hello_by_two_processes(tmp_path: Path) -> None:
    program = """
    body = json.dumps({"hello": 1}).encode()
    line.sendall(struct.pack(">I", len(body)))
    if os.fork() == 0:
        line.sendall(body)
        os._exit(0)
    os.wait()
    """
    assert isinstance((await failure(hostile_context(tmp_path / "far", program))).outcome, Broken)


async def test_who_speaks_is_told_by_the_kernel(tmp_path: Path) -> None:
    program = 'send({"hello": 1, "pid": 1, "uid": 0, "name": "a\\nb"}); exactly(1)'
    far = await open_call(hostile_context(tmp_path / "far", program), "x", deadline_s=60)
    assert (far.hello.pid, far.hello.uid, far.hello.gid) == (far.running.pid, os.getuid(), os.getgid())
    assert far.hello.name == str(os.getuid())
    await far.end()


async def test_a_cancelled_call_leaves_nothing(tmp_path: Path) -> None:
    before = open_fds()
    with trio.move_on_after(0.05):
        await open_call(hostile_context(tmp_path / "far", "exactly(1)"), "x", deadline_s=60)
    assert own_children() == frozenset()
    assert open_fds() == before


def test_the_wrapper_is_compiled_for_its_own_interpreter(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text("x = 1\n")
    old = os.umask(0o077)
    try:
        compile_wrapper(Settings(sailplane_wrapper_dir=str(tmp_path)))
    finally:
        os.umask(old)
    (made,) = (tmp_path / "__pycache__").iterdir()
    assert made.name.startswith("module.cpython-")
    assert made.stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "__pycache__").stat().st_mode & 0o777 == 0o755


def test_a_wrapper_that_cannot_be_compiled_is_no_failure(tmp_path: Path) -> None:
    compile_wrapper(Settings(sailplane_wrapper_python=str(script(tmp_path / "python", "exit 1"))))


# -- accounts that no user may have
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", ["root", "root's group", "the pilot's own"])
async def test_a_user_whom_the_site_maps_to_an_account_that_no_user_may_have_runs_nothing(
    tmp_path: Path, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The far side says hello from this test's own account; who the pilot is, is what differs."""
    become = ""
    if wrong != "the pilot's own":
        if os.geteuid() != 0:
            pytest.skip("only root can be what root is")
        if wrong == "root's group":
            become = "setpriv --reuid=65534 --regid=0 --clear-groups"
        monkeypatch.setattr("pilot.farside.os.geteuid", lambda: 4711)
    ledger = Ledger.of(tmp_path)
    ledger.begin(probe=True)
    credential = tmp_path / "proxy.pem"
    note_identity(credential, "/CN=Alice", "")
    count = tmp_path / "count"
    switch = scripted_glexec(tmp_path / "glexec", f'echo >> {count}; exec {become} "$@"')
    asking = Asking(
        switch=switch,
        settings=Settings(glexec_retries=2),
        audit_id="t",
        credential=credential,
        patience=Patience(ledger, 10.0),
    )
    for code, calls in (("misused", 1), ("unavailable", 1)):
        failed = await failure(asking)
        assert failed.code == code
        assert ("pilot's own account" if wrong == "the pilot's own" else "to root") in failed.text
        assert len(count.read_text().splitlines()) == calls
    assert refused(ledger.read(), now_s=ledger.clock()) == ("/CN=Alice",)


@pytest.mark.parametrize(
    ("text", "deadline_s", "words"),
    [
        ("exit 126", 20.0, "exit status 126"),
        ("exit 127", 20.0, "exit status 127"),
        ("exit 255", 20.0, "exit status 255"),
        ("kill -SEGV $$", 20.0, "signal 11"),
        ("exec sleep 100", 0.1, "no answer within 0.1 s"),
        ("head -c 1G /dev/zero; exit 1", 20.0, "exit status 1"),
        ("head -c 1G /dev/zero >&2; exit 1", 20.0, "exit status 1"),
    ],
)
async def test_a_switch_that_does_what_no_switch_should_breaks_one_call_only(
    tmp_path: Path, text: str, deadline_s: float, words: str
) -> None:
    before = open_fds()
    failed = await failure(glexec_context(tmp_path / "glexec", text, retries=0), deadline_s=deadline_s)
    assert words in failed.text
    assert len(failed.text) < 3000
    assert open_fds() == before


async def test_a_switch_that_writes_to_standard_error_on_success_has_succeeded(tmp_path: Path) -> None:
    context = glexec_context(tmp_path / "glexec", 'echo >&2 "libfoo: deprecated"; exec "$@"', retries=0)
    far = await open_call(context, "peek", deadline_s=60)
    assert far.hello.uid == os.getuid()
    assert "deprecated" in far.running.errors()
    await far.end()
