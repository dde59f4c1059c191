"""The switch `userns`, made by an ordinary account: who the far side is, what it cannot reach, and how it ends."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import trio

from demo.accounts import Account
from pilot.calls import Call, CannotCall, Running
from pilot.control import Linger, parse_control, read_ended
from pilot.farside import Asking, open_call
from pilot.farsignal import signal_far
from pilot.outcomes import Exited, Misused, Outcome, Signalled, Unavailable
from pilot.switch import make_switch
from pilot.userns import Helper, Host, UsernsSwitch, classify_userns, hint, obstacle
from tests.jobwrapper.accounts_at_work import as_account
from tests.jobwrapper.farsides import Settings

needs_userns = pytest.mark.needs_userns(in_place=True)

# -- deciding ----


def host(tmp_path: Path, *, tools: tuple[str, ...] = ("newuidmap", "newgidmap"), **files: str) -> Host:
    (tmp_path / "bin").mkdir()
    for tool in tools:
        (tmp_path / "bin" / tool).write_text("#!/bin/sh\n")
        (tmp_path / "bin" / tool).chmod(0o755)
    for name, text in files.items():
        path = tmp_path / "proc" / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Host(tmp_path / "proc", str(tmp_path / "bin"))


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"sys__user__max_user_namespaces": "0\n"}, "max_user_namespaces is 0"),
        ({"sys__kernel__unprivileged_userns_clone": "0\n"}, "unprivileged_userns_clone is 0"),
        ({"self__status": "Name:\tx\nNoNewPrivs:\t1\nSeccomp:\t0\n"}, "NoNewPrivs"),
    ],
)
def test_what_a_host_takes_away_is_named(tmp_path: Path, files: Mapping[str, str], words: str) -> None:
    assert words in (obstacle(host(tmp_path, **files)) or "")


@pytest.mark.parametrize("there", ["newuidmap", "newgidmap"])
def test_a_missing_tool_names_its_package(tmp_path: Path, there: str) -> None:
    words = obstacle(host(tmp_path, tools=(there,))) or ""
    assert "uidmap" in words
    assert there not in words.split()[0]


def test_a_host_with_all_that_is_needed_has_no_obstacle(tmp_path: Path) -> None:
    good = host(tmp_path, sys__user__max_user_namespaces="9000\n", self__status="Name:\tx\nNoNewPrivs:\t0\nSe:\t1\n")
    assert obstacle(good) is None
    assert hint(good) == ""


def test_apparmors_restriction_is_a_hint(tmp_path: Path) -> None:
    assert "AppArmor" in hint(host(tmp_path, sys__kernel__apparmor_restrict_unprivileged_userns="1\n"))


@pytest.mark.parametrize(
    ("status", "authorised", "outcome"),
    [
        (0, False, Exited(0)),
        (201 << 8, False, Misused("words")),
        (202 << 8, False, Unavailable("words")),
        (203 << 8, False, Exited(203)),
        (204 << 8, False, Exited(204)),
        (201 << 8, True, Exited(201)),
        (202 << 8, True, Exited(202)),
        (9, False, Signalled(9)),
    ],
)
def test_what_a_status_means(status: int, authorised: bool, outcome: Outcome) -> None:
    assert classify_userns(status, "words", authorised=authorised) == outcome


def test_the_settings_choose_it() -> None:
    switch = make_switch(Settings(sailplane_switch="userns"))
    assert (switch.name, switch.isolates, switch.needs_credential) == ("userns", True, False)


# -- acting, at an ordinary account ----


def read_all(fd: int) -> str:
    with open(fd) as pipe:
        return pipe.read()


class Words:
    """Calls of one job, and what they print. For use inside `as_account`."""

    def __init__(self, directory: Path, name: str = "job") -> None:
        self.switch = UsernsSwitch(directory / "leases")
        self.place = directory / name
        self.place.mkdir(exist_ok=True)

    async def start(self, *argv: str, control: bool = False, uid: int | None = None) -> tuple[Running, int]:
        read, write = os.pipe()
        null = os.open(os.devnull, os.O_RDONLY)
        place = self.place if uid is None else None
        call = Call(argv, "t", None, null, write, control=control, place=place, uid=uid)
        try:
            return await self.switch.start(call), read
        finally:
            os.close(null)
            os.close(write)

    async def run(self, script: str, *, control: bool = False, uid: int | None = None) -> tuple[Outcome, str, str]:
        running, read = await self.start("/bin/sh", "-c", script, control=control, uid=uid)
        with trio.fail_after(30):
            outcome = await running.wait()
        out = read_all(read)
        errors = running.errors()
        running.close()
        return outcome, out, errors


@pytest.fixture
def home(accounts: Mapping[str, Account], open_dir: Path) -> Path:
    """A directory of the pilot's that others can pass through."""
    path = open_dir / "pilot"
    path.mkdir()
    os.chown(path, accounts["pilot"].uid, accounts["pilot"].gid)
    path.chmod(0o711)
    return path


async def _identity(home: Path) -> tuple[list[str], list[str], list[str]]:
    first, again, other = [
        (await Words(home, name).run("id -u; id -g; id -G; umask >/dev/null; env"))[1].split()
        for name in ("one", "one", "two")
    ]
    return first, again, other


@pytest.mark.needs_root
@needs_userns
def test_a_job_keeps_its_sub_uid_and_another_job_has_another(accounts: Mapping[str, Account], home: Path) -> None:
    first, again, other = as_account(accounts["pilot"], _identity, home)
    assert first == again
    assert first[0] != other[0]
    assert first[1:3] == [first[0], first[0]]
    assert {word.partition("=")[0] for word in first[3:]} <= {"PATH", "PWD", "_", "SHLVL", "OLDPWD"}
    assert int(first[0]) not in (0, accounts["pilot"].uid)


async def _ends(home: Path) -> list[Outcome]:
    scripts = ["exit 0", "exit 7", "exit 203", "exit 255", "kill -9 $$", "kill -TERM $$", "kill -SEGV $$"]
    return [(await Words(home).run(script, control=control))[0] for script in scripts for control in (False, True)]


@pytest.mark.needs_root
@needs_userns
def test_ends_are_exact(accounts: Mapping[str, Account], home: Path) -> None:
    codes: list[Outcome] = [Exited(0), Exited(7), Exited(203), Exited(255), Signalled(9), Signalled(15), Signalled(11)]
    assert as_account(accounts["pilot"], _ends, home) == [end for end in codes for _ in range(2)]


def mask_proc() -> None:
    """As containers do: a part of /proc is covered, and then the kernel lets nobody mount another one."""
    if ctypes.CDLL(None).unshare(0x00020000):  # CLONE_NEWNS
        raise OSError("no mount namespace")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", "/proc/irq"], check=True)


async def _look_around(home: Path) -> tuple[Outcome, list[str]]:
    script = f"id -u; id -un; echo $$; [ -e /proc/{os.getpid()} ] && echo hosts || echo own"
    outcome, out, _ = await Words(home).run(script)
    return outcome, out.split()


@pytest.mark.needs_root
@needs_userns
@pytest.mark.parametrize("masked", [True, False])
def test_where_proc_is_masked_the_pid_namespace_stays_and_the_hosts_proc_is_kept(
    accounts: Mapping[str, Account], home: Path, masked: bool
) -> None:
    outcome, said = as_account(accounts["pilot"], _look_around, home, before=mask_proc if masked else None)
    assert outcome == Exited(0)
    uid, name, pid, proc = said
    assert name == f"userns-{uid}"
    assert int(pid) < 10
    assert proc == ("hosts" if masked else "own")


async def _not_there(home: Path) -> Outcome:
    running, read = await Words(home).start("/no/such/program")
    os.close(read)
    outcome = await running.wait()
    running.close()
    return outcome


@pytest.mark.needs_root
@needs_userns
def test_a_command_that_cannot_run_is_misuse(accounts: Mapping[str, Account], home: Path) -> None:
    outcome = as_account(accounts["pilot"], _not_there, home)
    assert isinstance(outcome, Misused)
    assert "/no/such/program" in outcome.text


ATTACK = """
cat {secret} /proc/{pid}/environ /proc/1/environ /proc/1/maps 2>/dev/null
ls /proc/1/fd {leases} 2>/dev/null; readlink /proc/1/exe
for s in TERM KILL STOP; do kill -$s 1 2>/dev/null && echo signalled 1
    kill -$s {pid} 2>/dev/null && echo signalled {pid}; done
(cd {home} && echo x >made) 2>/dev/null && echo wrote
echo end
"""


async def _attack(home: Path) -> tuple[str, list[str]]:
    secret = home / "secret"
    secret.write_text("secret")
    secret.chmod(0o600)
    job = Words(home)
    script = ATTACK.format(secret=secret, pid=os.getpid(), leases=home / "leases", home=home)
    _, own, _ = await job.run(script, control=True)
    uid = int((await job.run("id -u"))[1])
    # The same in the host's own pid space, where every pid means what it says.
    _, beside, _ = await job.run(script, uid=uid)
    return own, beside.split()


@pytest.mark.needs_root
@needs_userns
def test_the_pilot_and_pid_1_are_out_of_reach(accounts: Mapping[str, Account], home: Path) -> None:
    own, beside = as_account(accounts["pilot"], _attack, home)
    assert own.split() == ["end"]
    assert beside == ["end"]


def at(uid: int) -> list[int]:
    """Pids of an account's processes, zombies left out."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.stat(f"/proc/{name}").st_uid == uid and b") Z " not in Path(f"/proc/{name}/stat").read_bytes():
                found.append(int(name))
        except OSError:
            continue
    return found


async def until_nobody(uid: int) -> None:
    with trio.fail_after(60):
        while at(uid):  # noqa: ASYNC110 - processes of another account tell us nothing
            await trio.sleep(0.01)


async def line_of(read: int) -> str:
    with trio.fail_after(60):
        await trio.lowlevel.wait_readable(read)
    return os.read(read, 4096).decode()


async def _two_jobs(home: Path) -> tuple[str, bool]:
    victim, read = await Words(home, "one").start("/bin/sh", "-c", "id -u; exec sleep 60")
    victim_uid = int(await line_of(read))
    with trio.fail_after(60):
        while len(victims := at(victim_uid)) != 1:  # noqa: ASYNC110 - as above
            await trio.sleep(0.01)
    attacker = Words(home, "two")
    uid = int((await attacker.run("id -u"))[1])
    pids = " ".join(map(str, victims))
    _, out, _ = await attacker.run(
        f"for p in {pids}; do kill -9 $p 2>/dev/null && echo hit $p; done; echo end", uid=uid
    )
    alive = at(victim_uid) == victims
    victim.kill()
    await victim.wait()
    victim.close()
    os.close(read)
    return out, alive


@pytest.mark.needs_root
@needs_userns
def test_two_jobs_cannot_touch_each_other(accounts: Mapping[str, Account], home: Path) -> None:
    assert as_account(accounts["pilot"], _two_jobs, home) == ("end\n", True)


TREE = """
id -u; trap '' TERM HUP
for i in 1 2 3; do setsid sh -c 'trap "" TERM; (setsid sleep 60 &); sleep 60' & done
sleep 60; sleep 60
"""


async def _tree(home: Path, how: str) -> tuple[Outcome, list[bytes]]:
    running, read = await Words(home).start("/bin/sh", "-c", TREE, control=True)
    uid = int(await line_of(read))
    with trio.fail_after(60):
        while len(at(uid)) < 8:  # noqa: ASYNC110 - as above
            await trio.sleep(0.01)
    control = running.control
    assert control is not None
    told = control.recv(4096)
    if how == "kill-all":
        control.send(json.dumps({"do": "kill-all"}).encode())
    elif how == "end of file":
        control.shutdown(socket.SHUT_RDWR)
    elif how == "root":
        control.send(json.dumps({"do": "signal", "number": 9, "to": "root"}).encode())
    elif how == "pid 1":
        os.kill(_child_of(running.pid), signal.SIGKILL)
    else:
        running.kill()
    with trio.fail_after(60):
        outcome = await running.wait()
    await until_nobody(uid)
    if how in ("kill-all", "root"):
        ended, _ = read_ended(control)
        assert ended is not None
        assert (ended.wait_status, ended.left) == (9, 0)
        assert ended.cpu is not None
        assert 0.0 < sum(ended.cpu) < 5.0
    running.close()
    os.close(read)
    return outcome, [told]


def _child_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


@pytest.mark.needs_root
@needs_userns
@pytest.mark.parametrize("how", ["kill-all", "end of file", "root", "pid 1", "the switch's process"])
def test_a_daemonised_tree_dies_by_every_way(accounts: Mapping[str, Account], home: Path, how: str) -> None:
    outcome, (told,) = as_account(accounts["pilot"], _tree, home, how)
    assert outcome == Signalled(9)
    assert isinstance(parse_control(told), Linger)


async def _orders(home: Path) -> str:
    script = "trap 'echo got; exit 3' USR1; id -u; while :; do sleep 0.05; done"
    running, read = await Words(home).start("/bin/sh", "-c", script, control=True)
    uid = int(await line_of(read))
    control = running.control
    assert control is not None
    control.send(b"not json")
    control.send(b'{"do": "signal", "number": "9", "to": "root"')
    control.send(b'{"do": "stop"}')
    with trio.fail_after(60):
        while not _all_stopped(uid):  # noqa: ASYNC110 - as above
            await trio.sleep(0.01)
    control.send(b'{"do": "cont"}')
    running.kill(signal.SIGUSR1)  # is forwarded
    words = await line_of(read)
    outcome = await running.wait()
    running.close()
    os.close(read)
    return f"{words.strip()} {outcome}"


def _all_stopped(uid: int) -> bool:
    try:
        states = {Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2][:1] for pid in at(uid)}
    except OSError:
        return False
    return b"T" in states and states <= {b"T", b"Z"}  # a sleep may end when its parent can't reap it any more


@pytest.mark.needs_root
@needs_userns
def test_orders_and_signals_reach_the_job(accounts: Mapping[str, Account], home: Path) -> None:
    assert as_account(accounts["pilot"], _orders, home) == f"got {Exited(3)}"


async def _hello(home: Path) -> tuple[int, str, int, int]:
    job = Words(home)
    asking = Asking(job.switch, Settings(), "t", None, place=job.place)
    far = await open_call(asking, "launch", deadline_s=30, control=True)
    hello = far.hello
    owner = os.stat(f"/proc/{hello.pid}").st_uid
    sent = await signal_far(
        Asking(job.switch, Settings(), "t", None, uid=hello.uid),
        signal.SIGKILL,
        [(hello.pid, _ticks(hello.pid))],
        tree=True,
        limit_s=10,
        deadline_s=30,
    )
    await far.end()
    return hello.uid, hello.name, owner, sent.left_count if sent.sent else -1


def _ticks(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])


@pytest.mark.needs_root
@needs_userns
def test_the_hello_shows_the_sub_uid_and_a_signal_by_the_switch_arrives(
    accounts: Mapping[str, Account], home: Path
) -> None:
    uid, name, owner, left = as_account(accounts["pilot"], _hello, home)
    assert uid == owner != accounts["pilot"].uid
    assert name == f"userns-{uid}"
    assert left == 0


async def _helpers(home: Path) -> list[list[str]]:
    """Of three calls: the account, and what children we have then."""
    job = Words(home)
    mine: list[list[str]] = []

    async def look() -> None:
        outcome, out, _ = await job.run("id -u")
        assert outcome == Exited(0), outcome
        mine.append([out.strip(), *filter(None, _commands_of_children())])  # one that was killed may be a zombie yet

    await look()
    await look()
    (helper,) = [pid for pid in _children_of_ours() if "usernsstart" in _command_line(pid)]
    running, read = await job.start("/bin/sh", "-c", "id -u; read x; exit 5")
    os.kill(helper, signal.SIGKILL)
    assert await running.wait() == Exited(5)  # it lives on without its helper
    os.close(read)
    running.close()
    await look()
    return mine


def _children_of_ours() -> list[int]:
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def _command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


def _commands_of_children() -> list[str]:
    return [_command_line(pid).partition("usernsstart.py")[1] for pid in _children_of_ours()]


@pytest.mark.needs_root
@needs_userns
def test_one_helper_starts_all_calls_and_is_replaced(accounts: Mapping[str, Account], home: Path) -> None:
    first, second, after = as_account(accounts["pilot"], _helpers, home)
    assert first == second == after
    assert first[1:] == ["usernsstart.py"]


async def _idle(home: Path) -> tuple[set[str], int, bool]:
    """Calls that come just when their helper leaves: the accounts that they ran at, how often a helper began anew, and
    whether the last one left by itself."""
    job = Words(home)
    job.switch = UsernsSwitch(home / "leases", idle_s=0.01)
    uids, helpers = set(), set()
    for number in range(30):
        outcome, out, errors = await job.run("id -u")
        assert outcome == Exited(0), (outcome, errors)
        uids.add(out.strip())
        helpers.update(_children_of_ours())
        await trio.sleep(0.001 * (number % 15))
    with trio.move_on_after(20) as waiting:
        while not all(_is_zombie(pid) for pid in _children_of_ours()):  # noqa: ASYNC110 - nobody tells
            await trio.sleep(0.01)
    return uids, len(helpers), not waiting.cancelled_caught


async def _at_once(home: Path) -> tuple[list[tuple[Outcome, str, str]], list[str]]:
    """Two first calls of one sandbox: how they ended, and what children are left."""
    job = Words(home)
    ended: list[tuple[Outcome, str, str]] = []

    async def run() -> None:
        ended.append(await job.run("id -u"))

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(run)
    return ended, _commands_of_children()


@pytest.mark.needs_root
@needs_userns
def test_first_calls_at_once_have_one_helper(accounts: Mapping[str, Account], home: Path) -> None:
    ended, children = as_account(accounts["pilot"], _at_once, home)
    assert [(outcome, errors) for outcome, _, errors in ended] == [(Exited(0), "")] * 4
    assert len({account for _, account, _ in ended}) == 1
    assert children == ["usernsstart.py"]


async def _many_helpers(home: Path) -> tuple[int, int, int]:
    """Descriptors before and after many helpers that have ended, those for another's account among them."""
    job = Words(home)
    job.switch = UsernsSwitch(home / "leases", idle_s=0.01)
    running, read = await job.start("/bin/sh", "-c", "id -u; read x")
    uid = int(await line_of(read))
    counts, helpers = [], set()
    for _ in range(12):
        for account in (None, uid):
            assert (await job.run("true", uid=account))[0] == Exited(0)
            helpers.update(pid for pid in _children_of_ours() if pid != running.pid)
        counts.append(len(os.listdir("/proc/self/fd")))
        with trio.fail_after(20):
            while not all(_is_zombie(pid) for pid in _children_of_ours() if pid != running.pid):  # noqa: ASYNC110
                await trio.sleep(0.01)
    running.kill()
    await running.wait()
    running.close()
    os.close(read)
    return len(helpers), counts[2], counts[-1]


@pytest.mark.needs_root
@needs_userns
def test_helpers_that_have_ended_keep_no_descriptor(accounts: Mapping[str, Account], home: Path) -> None:
    helpers, before, after = as_account(accounts["pilot"], _many_helpers, home)
    assert helpers > 10
    assert after <= before


def _is_zombie(pid: int) -> bool:
    return b") Z " in Path(f"/proc/{pid}/stat").read_bytes()


@pytest.mark.needs_root
@needs_userns
def test_a_call_that_meets_a_leaving_helper_is_made(accounts: Mapping[str, Account], home: Path) -> None:
    uids, helpers, left = as_account(accounts["pilot"], _idle, home)
    assert len(uids) == 1
    assert helpers > 1
    assert left


async def _late(home: Path) -> Outcome:
    """A call that comes long after its helper has begun: this process gets no processor meanwhile."""
    job = Words(home)
    job.switch = UsernsSwitch(home / "leases", idle_s=0.01)
    begin = Helper.begin

    async def begin_late(*arguments: Any, **more: Any) -> Helper:
        helper = await begin(*arguments, **more)
        with trio.move_on_after(0.2):
            await trio.lowlevel.wait_readable(helper._near)  # the end of its socket, when it leaves
        return helper

    with mock.patch.object(Helper, "begin", begin_late):
        return (await job.run("exit 7"))[0]


@pytest.mark.needs_root
@needs_userns
def test_a_helper_never_leaves_before_its_first_call(accounts: Mapping[str, Account], home: Path) -> None:
    assert as_account(accounts["pilot"], _late, home) == Exited(7)


async def _hung(home: Path) -> str:
    job = Words(home)
    await job.run("true")
    (helper,) = _children_of_ours()
    os.kill(helper, signal.SIGSTOP)
    try:
        with mock.patch("pilot.userns._ANSWER_S", 0.2):
            await job.run("true")
    except CannotCall as refusal:
        return str(refusal.outcome) + str((await job.run("true"))[0])
    return "made"


@pytest.mark.needs_root
@needs_userns
def test_a_helper_that_hangs_is_replaced(accounts: Mapping[str, Account], home: Path) -> None:
    words = as_account(accounts["pilot"], _hung, home)
    assert words == str(Unavailable("the helper in the user namespace does not answer")) + str(Exited(0))


async def _two_pilots(home: Path) -> list[int]:
    """Two switches of one account that call at once, each for sandboxes of its own."""
    uids: list[int] = []

    async def one(pilot: str, number: int) -> None:
        uids.append(int((await Words(home, f"{pilot}{number}").run("id -u"))[1]))

    async with trio.open_nursery() as nursery:
        for pilot in ("a", "b"):
            for number in range(4):
                nursery.start_soon(one, pilot, number)
    return uids


@pytest.mark.needs_root
@needs_userns
def test_two_pilots_of_one_account_never_share_a_sub_uid(accounts: Mapping[str, Account], home: Path) -> None:
    assert len(set(as_account(accounts["pilot"], _two_pilots, home))) == 8


async def _refused(home: Path, host: Host) -> tuple[str, str]:
    try:
        await UsernsSwitch(home / "leases", host).start(Call(("/bin/true",), "t", None, 0))
    except CannotCall as refusal:
        return type(refusal.outcome).__name__, str(refusal.outcome)
    return "started", ""


@pytest.mark.needs_root
def test_an_account_without_a_range_is_refused_in_words(open_dir: Path) -> None:
    nobody = Account("nobody", 65534, 65534)
    kind, words = as_account(nobody, _refused, open_dir, Host())
    assert kind == "Misused"
    assert "subuid has no range" in words or "uidmap" in words


@pytest.mark.needs_root
def test_a_host_without_the_tools_is_refused_in_words(accounts: Mapping[str, Account], home: Path) -> None:
    kind, words = as_account(accounts["pilot"], _refused, home, Host(tools="/nowhere"))
    assert kind == "Misused"
    assert "package uidmap" in words


async def _cleaned(home: Path) -> list[str]:
    """A sandbox that a dead pilot left is removed by another one's call."""
    job = Words(home)
    job.place.chmod(0o1733)
    await job.run(f"umask 077; mkdir -p {job.place}/left/deep; echo x >{job.place}/left/deep/file")
    before = os.listdir(job.place)
    outcome, _, errors = await Words(home).run(f"rm -rf {job.place}/left")
    assert outcome == Exited(0), errors
    return before + os.listdir(job.place)


@pytest.mark.needs_root
@needs_userns
def test_another_namespace_with_the_same_map_cleans_up(accounts: Mapping[str, Account], home: Path) -> None:
    assert as_account(accounts["pilot"], _cleaned, home) == ["left"]
