"""START_SSHD: the set-up at the job's account, the keys on their way, and a real sshd and ssh over one connection."""

from __future__ import annotations

import base64
import contextlib
import os
import pwd
import socket
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import attrs
import pytest
import trio
from classad2 import ClassAd

from cedar.classads import get_str
from cedar.commands import Command
from jobwrapper import ssh_setup
from pilot.rpc import ChannelClosed, RpcFault, RpcRefused
from starter import ssh, sshprograms, stopping
from starter.entries import StageFailed
from starter.events import FamilyStopped
from starter.life import State
from starter.work import Guests, Work
from tests.jobwrapper.farsides import wrapper_context
from tests.starter.test_starter_peek import Job, job, request

__all__ = ["job"]  # the fixture

needs_sshd = pytest.mark.skipif(not sshprograms.available(), reason="no sshd or ssh-keygen on this host")


class FakeProcd:
    """Knows families, and kills nobody."""

    def __init__(self) -> None:
        self.families: list[str] = []
        self.stopped: list[str] = []

    async def register(self, family: str, **_: Any) -> None:
        self.families.append(family)

    async def stop(self, family: str, **_: Any) -> Any:
        if family not in self.families:
            raise RpcRefused("unknown-family", "over")
        self.stopped.append(family)
        return SimpleNamespace(empty=True, survivors=(7,))

    async def unregister(self, family: str) -> None:
        self.families.remove(family)


def grown(job: Job, monkeypatch: pytest.MonkeyPatch) -> FakeProcd:
    """What a session needs of the work beyond a look."""
    work, procd = cast(Any, job.visits.work), FakeProcd()
    work.guests, work.procd, work.family, work.credential_path = Guests(), procd, "family", None
    work.launched, work.activation = SimpleNamespace(pid=os.getpid()), SimpleNamespace(slot="slot1_1@x")
    work.switch, work.account = SimpleNamespace(isolates=False), None
    environment = {"PATH": "/usr/bin:/bin", "_CONDOR_JOB_IWD": str(job.place.path), "A": "it's\n$HOME", "no-name": "x"}
    monkeypatch.setattr("starter.visits.job_environment", lambda work: dict(environment))
    return procd


def sessions(job: Job) -> list[Path]:
    return list(job.place.path.glob(".condor_ssh_to_job_*"))


PASS_ON = """\
import socket, sys
near = socket.socket(socket.AF_UNIX)
near.connect(sys.argv[1])
_, fds, _, _ = socket.recv_fds(near, 1, 1)
out = socket.socket(fileno=1)
socket.send_fds(out, [b"x"], fds)
out.detach()
"""


async def tool(answer: ClassAd, directory: Path, connection: socket.socket, command: str) -> tuple[str, int]:
    """What the stock tool does with an answer: its own ssh over the connection that it has. Output and exit status."""
    key, known, door, program = (directory / name for name in ("key", "known", "door", "pass_on.py"))
    key.touch(mode=0o600)
    key.write_bytes(base64.b64decode(get_str(answer, "SSHPrivateClientKey")))
    known.write_bytes(b"* " + base64.b64decode(get_str(answer, "SSHPublicServerKey")))
    program.write_text(PASS_ON)
    options = {
        "User": get_str(answer, "RemoteUser"), "IdentityFile": key, "IdentitiesOnly": "yes", "BatchMode": "yes",
        "UserKnownHostsFile": known, "GlobalKnownHostsFile": "/dev/null", "StrictHostKeyChecking": "yes",
        "ProxyCommand": f"/usr/bin/python3 -IS {program} {door}", "ProxyUseFdpass": "yes",
    }  # fmt: skip
    words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    connection.setblocking(True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(door))
        listener.listen()
        with subprocess.Popen(  # noqa: ASYNC220 - returns at once
            ["ssh", "-F", "/dev/null", *words, "job", command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
        ) as there:
            await trio.lowlevel.wait_readable(listener)
            with listener.accept()[0] as near:
                socket.send_fds(near, [b"x"], [connection.fileno()])
            assert there.stdout is not None
            printed = await read_all(there.stdout.fileno())
            return printed.decode(), there.wait(20)


@needs_sshd
@pytest.mark.skipif(not os.access("/usr/bin/ssh", os.X_OK), reason="no ssh on this host")
@pytest.mark.skipif("nologin" in pwd.getpwuid(os.geteuid()).pw_shell, reason="this account has no shell")
@pytest.mark.skipif(os.geteuid() == 0 and not os.path.isdir("/run/sshd"), reason="root's sshd wants /run/sshd")
async def test_a_session_is_at_the_jobs_account_in_its_sandbox(
    job: Job, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    procd = grown(job, monkeypatch)
    async with job.ask(request(Shell="/nonexistent,/bin/sh"), command=Command.START_SSHD) as peer:
        answer = await peer.answer()
        assert answer["Result"] is True, get_str(answer, "ErrorString", "")
        for name in ("SSHPublicServerKey", "SSHPrivateClientKey"):
            assert get_str(answer, name).endswith("\n")
        assert max(map(len, get_str(answer, "SSHPrivateClientKey").splitlines())) <= 76
        directory = sessions(job)[0]
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert not (directory / "client").exists()
        assert "BEGIN" in (directory / "host").read_text()
        sock, _ = peer.stream.export()
        with sock, trio.fail_after(60):
            printed, status = await tool(answer, tmp_path, sock, 'id -un; pwd; printf %s "$A"; exit 7')
    me = pwd.getpwuid(os.geteuid()).pw_name
    assert printed.split("\n", 2) == [me, str(job.place.path), "it's\n$HOME"]
    assert status == 7
    assert procd.stopped == ["family.ssh1"]
    assert procd.families == []
    assert not cast(Any, job.visits.work).guests.families


async def read_all(fd: int) -> bytes:
    data = b""
    while True:
        await trio.lowlevel.wait_readable(fd)
        piece = os.read(fd, 65536)
        if not piece:
            return data
        data += piece


@needs_sshd
async def test_a_job_that_ends_meanwhile_gets_no_session(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    procd = grown(job, monkeypatch)
    prepare = ssh.prepare

    async def slow(*arguments: Any, **options: Any) -> ssh.Prepared:
        made = await prepare(*arguments, **options)
        job.state = State.STOPPING
        return made

    monkeypatch.setattr(ssh, "prepare", slow)
    async with job.ask(request(), command=Command.START_SSHD) as peer:
        assert (await peer.answer())["Result"] is True
        with trio.fail_after(60), contextlib.suppress(trio.BrokenResourceError):
            sock, _ = peer.stream.export()
            async with trio.SocketStream(trio.socket.from_stdlib_socket(sock)) as raw:
                assert await raw.receive_some(100) == b""
    assert procd.families == []
    assert not cast(Any, job.visits.work).guests.families


PROCD_TROUBLE = [RpcRefused("no-such-process", "it was killed"), ChannelClosed("procd is away"), RpcFault("type", "x")]


@pytest.mark.parametrize("fault", PROCD_TROUBLE)
async def test_a_session_that_procd_does_not_track_costs_the_job_nothing(
    fault: Exception, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is at the job's account can kill what is to be sshd before procd has seen it."""
    grown(job, monkeypatch)

    async def prepare(*_: Any, **__: Any) -> ssh.Prepared:
        return ssh.Prepared("alice", ".condor_ssh_to_job_1", "key\n", "key\n")

    async def launch(*_: Any, register: Any, **__: Any) -> Any:
        await register(1, 1, cast(Any, SimpleNamespace(control=None)))

    async def register(family: str, **_: Any) -> None:
        raise fault

    monkeypatch.setattr(sshprograms, "available", lambda: True)
    monkeypatch.setattr(ssh, "prepare", prepare)
    monkeypatch.setattr(ssh, "launch", launch)
    cast(Any, job.visits.work).procd.register = register
    cast(Any, job.visits.work).description = attrs.evolve(job.visits.work.description, global_job_id="x#1.0")
    async with job.ask(request(), command=Command.START_SSHD) as peer:
        assert (await peer.answer())["Result"] is True
    assert not cast(Any, job.visits.work).guests.families


@pytest.mark.parametrize("fault", PROCD_TROUBLE)
async def test_a_session_ends_also_without_procd(fault: Exception, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    procd = grown(job, monkeypatch)

    async def stop(family: str, **_: Any) -> Any:
        raise fault

    procd.stop = stop  # type: ignore[method-assign]
    session = ssh.Session(job.visits.work, "f.ssh1", lambda: None)
    session._registered = True
    job.visits.work.guests.families.add("f.ssh1")
    await session.close()
    assert not job.visits.work.guests.families


async def test_without_sshd_there_is_none(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    grown(job, monkeypatch)
    monkeypatch.setattr(sshprograms, "available", lambda: False)
    async with job.ask(request(), command=Command.START_SSHD) as peer:
        answer = await peer.answer()
    assert (answer["Result"], answer["Retry"]) == (False, False)
    assert job.visits.calls == 0


async def test_sessions_end_with_the_job() -> None:
    procd = FakeProcd()
    procd.families = ["f", "f.ssh1"]
    guests = Guests({"f.ssh1", "f.ssh2"})

    async def stop(family: str, **_: Any) -> Any:
        stopped = await FakeProcd.stop(procd, family)
        stopped.empty = False
        return stopped

    procd.stop = stop  # type: ignore[method-assign]
    work = SimpleNamespace(
        registered=True, suspended=False, ended=trio.Event(), family="f", procd=procd, guests=guests, launched=None,
        settings=SimpleNamespace(killing_timeout=1), description=SimpleNamespace(vacate_s=-1),
        activation=SimpleNamespace(vacate_max_s=1), credential=None,
    )  # fmt: skip
    assert await stopping.stop(cast(Work, work), soft=False) == FamilyStopped((7, 7))
    assert procd.stopped == ["f", "f.ssh1"]


async def test_the_activation_waits_for_the_last_session() -> None:
    guests = Guests({"a", "b"})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(guests.wait_none)
        for family in ("a", "b"):
            await trio.testing.wait_all_tasks_blocked()
            assert len(nursery.child_tasks) == 1
            guests.leave(family)


# -- the far side's words ----


GOOD = {
    "user": "alice", "directory": "/box/.condor_ssh_to_job_1", "host_key": f"ssh-ed25519 {'A' * 68}\n",
    "client_key": f"-----BEGIN OPENSSH PRIVATE KEY-----\n{'A' * 70}\n-----END OPENSSH PRIVATE KEY-----\n",
}  # fmt: skip


def test_a_good_answer_is_taken() -> None:
    made = ssh.prepared_of(GOOD, "/box")
    assert (made.user, made.directory) == ("alice", ".condor_ssh_to_job_1")
    assert "PRIVATE" not in repr(made)


@pytest.mark.parametrize(
    "wrong",
    [
        {"user": "-oProxyCommand=x"}, {"user": "a b"}, {"user": 7}, {"user": None},
        {"directory": "/elsewhere/.condor_ssh_to_job_1"}, {"directory": "/box/../x/.condor_ssh_to_job_1"},
        {"directory": "/box/x"}, {"directory": ["x"]},
        {"host_key": GOOD["host_key"] + "* ssh-rsa x\n"}, {"host_key": "A" * 100_000}, {"host_key": ""},
        {"client_key": "x"}, {"client_key": GOOD["client_key"] * 2}, {"client_key": "ProxyCommand x\n"},
    ],
)  # fmt: skip
def test_words_that_could_become_something_else_at_the_tool_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(StageFailed):
        ssh.prepared_of({**GOOD, **wrong}, "/box")


# -- at the job's account ----


def account(**values: Any) -> pwd.struct_passwd:
    fields = {"name": "alice", "shell": "/bin/sh", **values}
    return pwd.struct_passwd((fields["name"], "x", 1, 1, "", "/", fields["shell"]))


@pytest.mark.parametrize("shell", ["/usr/sbin/nologin", "/bin/false", "/nonexistent/sh"])
def test_an_account_without_a_shell_is_refused_in_words(shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: account(shell=shell))
    with pytest.raises(ssh_setup.Unfit, match="account alice has no login shell"):
        ssh_setup.fit_account()


def test_a_uid_without_an_entry_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(uid: int) -> pwd.struct_passwd:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with pytest.raises(ssh_setup.Unfit, match="no entry"):
        ssh_setup.fit_account()


@pytest.mark.parametrize("act", [ssh_setup.own_directory])
def test_each_session_has_a_directory_of_its_own(act: Callable[[bytes], str], tmp_path: Path) -> None:
    (tmp_path / ".condor_ssh_to_job_1").symlink_to("/etc")  # planted by the job
    assert [Path(act(os.fsencode(tmp_path))).name[-2:] for _ in range(2)] == ["_2", "_3"]


def test_the_environment_comes_back_from_a_shell_as_it_was() -> None:
    environment = {"A": "it's", "B": "$(touch x) `id`\n\\", "DISPLAY": ":0", "x-y": "1", "_": "", "é": "1", "C": ""}
    environment["XAUTHORITY"] = "/nowhere"
    text = ssh_setup.saved(environment)
    shown = subprocess.run(
        ["/bin/sh", "-c", text + 'printf "%s|%s|%s|%s" "$A" "$B" "${C-unset}" "${DISPLAY-unset}"; echo "$XAUTHORITY"'],
        env={"XAUTHORITY": "as sshd set it"}, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert shown == f"it's|{environment['B']}||unsetas sshd set it\n"
    assert "x-y" not in text
    assert "é" not in text


def test_what_sshd_is_given_lets_files_and_screens_through(tmp_path: Path) -> None:
    """Keys of a stand-in: a real sshd is asked in tests/interop/test_interop_ssh.py."""
    keygen = tmp_path / "keygen"
    keygen.write_text(
        '#!/bin/sh\nwhile [ "$1" != -f ]; do shift; done\necho secret >"$2"\necho "kind AAAA" >"$2.pub"\n'
    )
    keygen.chmod(0o755)
    wanted = {
        "path": str(tmp_path), "keygen": str(keygen), "sftp": "/there/sftp-server", "environment": {}, "slot": "slot1",
        "shells": [], "pids": [1],
    }  # fmt: skip
    made = ssh_setup.prepare(wanted, pwd.getpwuid(os.geteuid()))
    here = Path(made["directory"])
    configured = (here / "sshd_config").read_text().splitlines()
    assert {"Subsystem sftp /there/sftp-server", "X11Forwarding yes"} <= set(configured)
    only = [line for line in configured if line.startswith("PermitUserEnvironment")]
    assert only == ["PermitUserEnvironment XAUTHORITY"], "not what somebody left in ~/.ssh/environment"
    line = (here / "authorized_keys").read_text()
    assert line.startswith(f'environment="XAUTHORITY={here}/Xauthority",command="exec /bin/sh ')
    assert not (here / "client").exists()


@pytest.mark.parametrize("there", [0, 1, 2, 3])
def test_the_program_for_files_is_where_a_distribution_has_it(
    there: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = tuple(str(tmp_path / str(number)) for number in range(4))
    monkeypatch.setattr(sshprograms, "SFTP_PLACES", places)
    assert sshprograms.sftp_server() == places[0]  # where it is missed
    Path(places[there]).touch(mode=0o755)
    assert sshprograms.sftp_server() == places[there]


async def test_the_real_verb_says_why_not(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    grown(job, monkeypatch)
    monkeypatch.setattr(ssh, "KEYGEN", "/bin/false")
    with pytest.raises(ssh.NotShown):
        await ssh.prepare(wrapper_context(), cast(Work, job.visits.work), request(), {}, deadline_s=60)
