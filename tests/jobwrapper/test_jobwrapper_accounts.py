"""The three calls of a job through the real switch, sudo and glexec, at real accounts; and jobs that attack."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import evolve, frozen

from demo import runtime
from demo.accounts import Account
from demo.grid import make_grid, make_proxy, write_private
from glexec.install import Installed, install, uninstall
from pilot.calls import Running
from pilot.farside import start_ticks
from pilot.farsignal import signal_far
from pilot.outcomes import Denied, Exited, Signalled
from pilot.switch import GlexecSwitch
from starter.launch import Launched, LaunchSpec, launch
from starter.sandbox import (
    Account as JobAccount,
)
from starter.sandbox import (
    Changed,
    Context,
    Listed,
    OutFile,
    Place,
    StageFailed,
    make_place,
    remove_place,
    stage_in,
    stage_out,
)
from tests.jobwrapper.accounts_at_work import as_account
from tests.jobwrapper.farsides import LIMITS, WRAPPER, Settings, once, tree

pytestmark = pytest.mark.needs_root


@frozen
class Site:
    """Two installations of glexec, credentials of the pilot's, a work directory of the pilot's."""

    base: Path
    execute: Path
    pilot: Account
    alice: Account
    bob: Account
    installed: dict[bool, Installed]

    def context(self, linger: bool, user: str = "alice") -> Context:
        settings = Settings(sailplane_wrapper_dir=str(self.base / "jobwrapper"))
        switch = GlexecSwitch(self.installed[linger].front, self.base / "private" / "pilot.pem")
        credential = self.base / "private" / f"{user}.pem"
        return Context(switch=switch, settings=settings, audit_id=f"test#{user}", credential=credential)

    def decisions(self, linger: bool) -> int:
        """How often this installation was asked so far."""
        log = self.installed[linger].log
        lines = log.read_text().splitlines() if log.exists() else []
        return sum(json.loads(line)["event"] == "decision" for line in lines)


@pytest.fixture
def site(whole_site: Site, tmp_path: Path) -> Site:
    """The site, with a work directory of this test's own."""
    execute = whole_site.base / "execute" / tmp_path.name
    execute.mkdir()
    execute.chmod(0o711)
    os.chown(execute, whole_site.pilot.uid, whole_site.pilot.gid)
    return evolve(whole_site, execute=execute)


@pytest.fixture(scope="module")
def whole_site(accounts: Mapping[str, Account]) -> Iterator[Site]:
    pilot, alice, bob = accounts["pilot"], accounts["alice"], accounts["bob"]
    base = Path(tempfile.mkdtemp(prefix="sptest-wrapper-", dir="/var/tmp"))
    base.chmod(0o755)
    shutil.copytree(WRAPPER, base / "jobwrapper", ignore=shutil.ignore_patterns("__pycache__"))
    runtime.open_up(base / "jobwrapper")
    for name, mode in (("execute", 0o711), ("private", 0o700)):
        (base / name).mkdir()
        (base / name).chmod(mode)
        os.chown(base / name, pilot.uid, pilot.gid)
    grid = make_grid(base / "grid")
    users = {name: grid.user(name.capitalize()) for name in ("alice", "bob", "eve", "pilot")}
    for name, user in users.items():
        write_private(base / "private" / f"{name}.pem", make_proxy(user).pem, owner=(pilot.uid, pilot.gid))
    mapfile = f'"{users["alice"].identity}" {alice.name}\n"{users["bob"].identity}" {bob.name}\n'
    installed = {
        linger: install(
            base / f"glexec-{linger}",
            linger=linger,
            allowed_callers=[pilot.name],
            certificates_dir=grid.certificates_dir,
            grid_mapfile=mapfile,
            sudoers_path=Path("/etc/sudoers.d") / f"{base.name}-{linger}",
            log=base / f"glexec-{linger}" / "log/glexec.log",
        )
        for linger in (True, False)
    }
    yield Site(base, base / "execute", pilot, alice, bob, installed)
    for made in installed.values():
        uninstall(made)
    shutil.rmtree(base)


@pytest.fixture(params=[True, False], ids=["linger", "become"])
def linger(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


async def fill(context: Context, place: Place, files: dict[str, bytes]) -> tuple[JobAccount, Any]:
    async with stage_in(context, place, deadline_s=60) as inward:
        for name, content in files.items():
            await inward.file(name, 0o755, len(content), once(content))
        return inward.account, await inward.finish()


async def ignore(pid: int, ticks: int, running: Running) -> None:
    pass


def spec(place: Place, *argv: str) -> LaunchSpec:
    return LaunchSpec(
        argv=argv,
        environment={"PATH": "/usr/bin:/bin"},
        cwd=str(place.path),
        stdin=None,
        stdout="out",
        stderr="err",
    )


async def start(context: Context, place: Place, *argv: str) -> Launched:
    with trio.fail_after(30):
        launched = await launch(context, place, spec(place, *argv), register=ignore)
    assert isinstance(launched, Launched), launched
    return launched


async def fetch(context: Context, place: Place, wanted: Changed | Listed) -> dict[str, bytes]:
    found = {}
    async with stage_out(context, place, wanted, limits=LIMITS, deadline_s=60) as outward:
        async for entry in outward.entries():
            if isinstance(entry, OutFile):
                found[entry.name] = b"".join([chunk async for chunk in entry.chunks])
        await outward.remove()
    remove_place(place)
    return found


async def whole_job(context: Context, execute: Path, script: str) -> dict[str, Any]:
    """A shell script from stage-in to an empty work directory."""
    place = make_place(execute)
    account, catalogue = await fill(context, place, {"job.sh": b"#!/bin/sh\n" + script.encode()})
    sandbox = os.lstat(place.path)
    launched = await start(context, place, "./job.sh")
    control = launched.control is not None
    with trio.fail_after(30):
        outcome = await launched.wait()
    launched.running.close()
    return {
        "uid": account.uid,
        "name": account.name,
        "owner": sandbox.st_uid,
        "mode": stat.S_IMODE(sandbox.st_mode),
        "window": stat.S_IMODE(os.stat(place.sticky).st_mode),
        "pid": launched.account.uid,
        "control": control,
        "outcome": outcome,
        "files": await fetch(context, place, Changed(catalogue)),
        "path": str(place.path),
    }


def run_job(site: Site, linger: bool, script: str, user: str = "alice") -> dict[str, Any]:
    return as_account(site.pilot, whole_job, site.context(linger, user), site.execute, script)


def test_a_job_at_its_users_account_costs_three_calls(site: Site, linger: bool) -> None:
    before = site.decisions(linger)
    result = run_job(site, linger, "id -u; id -G; echo made > new; mkdir dir; exit 7")
    assert site.decisions(linger) - before == 3
    assert (result["uid"], result["owner"], result["name"]) == (
        site.alice.uid,
        site.alice.uid,
        site.alice.name,
    )
    assert (result["mode"], result["window"]) == (0o700, 0o711)
    assert result["outcome"] == Exited(7)
    assert result["control"] is linger
    assert result["files"]["out"].split() == [str(site.alice.uid).encode(), str(site.alice.gid).encode()]
    assert result["files"]["new"] == b"made\n"
    assert tree(site.execute) == {}


@pytest.mark.parametrize("status", [0, 1, 126, 200, 201, 202, 203, 204, 205, 255])
def test_exit_statuses_through_the_switch(site: Site, linger: bool, status: int) -> None:
    outcome = run_job(site, linger, f"exit {status}")["outcome"]
    if linger or not 201 <= status <= 204:
        assert outcome == Exited(status)
    else:
        assert outcome in (Exited(204, masked=True), Exited(status))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV])
def test_deaths_through_the_switch(site: Site, linger: bool, number: int) -> None:
    outcome = run_job(site, linger, f"ulimit -c 0; kill -{number} $$")["outcome"]
    assert isinstance(outcome, Signalled)
    assert outcome.number == number


def test_a_user_whom_the_site_does_not_know(site: Site, linger: bool) -> None:
    before = site.decisions(linger)
    place, outcome = as_account(site.pilot, refused, site.context(linger, "eve"), site.execute)
    assert isinstance(outcome, Denied)
    assert outcome.text
    assert site.decisions(linger) - before == 1
    assert tree(site.execute) == {}
    assert not Path(place).exists()


async def refused(context: Context, execute: Path) -> tuple[str, Any]:
    place = make_place(execute)
    try:
        async with stage_in(context, place, deadline_s=60):
            raise AssertionError("let in")
    except StageFailed as failed:
        remove_place(place)
        return str(place.root), failed.outcome


# -- attacks ----------------------------------------------------------------------------------------------------------

# Each line tries one thing and says whether it worked. $PILOT is the starter's pid, $PRIVATE and $EXECUTE its places.
ATTACKS = """
try() { if eval "$2" >/dev/null 2>&1; then echo "$1: worked"; else echo "$1: no"; fi; }
try credential 'cat $PRIVATE/alice.pem'
try pilots-credential 'cat $PRIVATE/pilot.pem'
try private 'ls $PRIVATE'
try environ 'cat /proc/$PILOT/environ'
try fds 'ls /proc/$PILOT/fd'
try memory 'head -c 1 /proc/$PILOT/mem'
try kill 'kill -CONT $PILOT'
try execute 'ls $EXECUTE'
try root 'ls ../..'
try sticky 'ls ..'
try plant 'touch ../planted'
try plant-root 'touch ../../planted'
try rename 'mv ../* ../other'
try record 'cat ../../record.json'
try wrapper 'touch $WRAPPER/launch.py'
try wrapper-new 'touch $WRAPPER/socket.py'
try own 'touch mine'
exit 0
"""


@frozen
class _Attack:
    context: Context
    execute: Path
    private: Path
    wrapper: Path


async def attack(given: _Attack) -> dict[str, bytes]:
    names = {
        "PILOT": os.getpid(),
        "PRIVATE": given.private,
        "EXECUTE": given.execute,
        "WRAPPER": given.wrapper,
    }
    head = "".join(f"{name}={value}\n" for name, value in names.items())
    result = await whole_job(given.context, given.execute, head + ATTACKS)
    return result["files"]


def test_a_job_reaches_nothing_of_the_pilot(site: Site, linger: bool) -> None:
    given = _Attack(site.context(linger), site.execute, site.base / "private", site.base / "jobwrapper")
    lines = as_account(site.pilot, attack, given)["out"].decode().splitlines()
    assert len(lines) == 17
    assert [line for line in lines if line.endswith("worked")] == ["own: worked"]


def test_a_job_gets_nothing_of_the_pilot(site: Site, linger: bool) -> None:
    script = """
    ls /proc/$$/fd > fds; grep '^Sig[BI]' /proc/self/status > signals; env | sed 's/=.*//' > names; tty > tty
    cat /proc/self/limits > limits; cut -d' ' -f 5,6,7 /proc/$$/stat > session; echo $$ >> session
    """
    files = run_job(site, linger, script)["files"]
    # From 10 on they are the shell's own: its script, and what a redirection saves.
    assert set(files["fds"].split()) <= {b"0", b"1", b"2", b"10", b"11"}
    masks = [int(line.split()[1], 16) & ~(3 << 31) for line in files["signals"].splitlines()]
    assert masks == [0, 0]
    assert set(files["names"].split()) <= {b"PATH", b"PWD", b"_", b"SHLVL", b"OLDPWD"}
    assert files["tty"] == b"not a tty\n"
    group, session, _tty, pid = (int(word) for word in files["session"].split())
    assert group == session
    assert pid > 0


def test_another_user_does_not_see_the_sandbox(site: Site, linger: bool) -> None:
    async def two(alice: Context, bob: Context, execute: Path) -> dict[str, bytes]:
        place = make_place(execute)
        await fill(alice, place, {"secret": b"secret"})
        script = f"cat {place.path}/secret; ls {place.path} {place.sticky}; touch {place.sticky}/x; exit 0"
        result = await whole_job(bob, execute, script)
        await fetch(alice, place, Listed(()))
        return result["files"]

    files = as_account(site.pilot, two, site.context(linger), site.context(linger, "bob"), site.execute)
    assert files["out"] == b""
    assert files["err"].count(b"denied") == 4


def test_links_on_return_lead_nowhere(site: Site, linger: bool) -> None:
    """The pilot's files behind links are the user's to read or not; what comes back is plain files."""
    script = f"""
    ln -s {site.base}/private/alice.pem proxy
    ln -s /etc/hostname hostname
    ln -s / root
    mkdir dir; ln -s {site.base}/private dir/private; ln -s ../../.. dir/up; mkfifo dir/fifo; echo x > dir/plain
    """

    async def listed(context: Context, execute: Path, wanted: tuple[str, ...]) -> tuple[dict[str, bytes], Any]:
        place = make_place(execute)
        await fill(context, place, {"job.sh": b"#!/bin/sh\n" + script.encode()})
        launched = await start(context, place, "./job.sh")
        await launched.wait()
        found = {}
        async with stage_out(context, place, Listed(wanted), limits=LIMITS, deadline_s=60) as outward:
            missing = outward.manifest.missing
            async for entry in outward.entries():
                if isinstance(entry, OutFile):
                    found[entry.name] = b"".join([chunk async for chunk in entry.chunks])
            await outward.remove()
        remove_place(place)
        return found, missing

    found, missing = as_account(site.pilot, listed, site.context(linger), site.execute, ("proxy", "dir"))
    assert found == {"dir/plain": b"x\n"}
    assert set(missing) == {"proxy"}
    assert tree(site.execute) == {}


def test_what_a_job_spoils_is_removed(site: Site, linger: bool) -> None:
    script = """
    mkdir -p a/b/c closed/inner; touch a/b/c/f closed/inner/f; chmod 000 closed/inner closed a/b/c/f
    mkdir "$(printf 'new\\nline')"; ln -s / away; chmod 000 .
    """
    run_job(site, linger, script + "exit 0")
    assert tree(site.execute) == {}


# -- signals ----------------------------------------------------------------------------------------------------------


def alive(uid: int) -> list[str]:
    found = []
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and os.stat(f"/proc/{name}").st_uid == uid:
                words = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
                found += [name] if words[0] not in "ZX" else []
        except OSError:
            continue
    return found


async def killed(context: Context, execute: Path) -> tuple[Any, Any, int]:
    place = make_place(execute)
    script = b"#!/bin/sh\nfor i in 1 2 3 4 5 6 7 8; do (sleep 1000 & wait) & done; echo up > up; wait\n"
    account, _ = await fill(context, place, {"job.sh": script})
    launched = await start(context, place, "./job.sh")
    with trio.fail_after(60):
        while len(alive(account.uid)) < 17:  # noqa: ASYNC110 - processes have no event
            await trio.sleep(0.01)
    target = (launched.pid, start_ticks(launched.pid))
    told = await signal_far(context, signal.SIGKILL, [target], tree=True, limit_s=30, deadline_s=60)
    with trio.fail_after(60):
        outcome = await launched.wait()
    launched.running.close()
    left = len(alive(account.uid))
    await fetch(context, place, Listed(()))
    return told, outcome, left


def test_one_call_kills_a_family(site: Site, linger: bool) -> None:
    before = site.decisions(linger)
    told, outcome, left = as_account(site.pilot, killed, site.context(linger), site.execute)
    assert (told.left_count, told.gone, left) == (0, 17, 0)
    assert outcome == Signalled(signal.SIGKILL)
    assert site.decisions(linger) - before == 4


def test_hanging_up_ends_a_lingering_family(site: Site) -> None:
    """The control socket's end of file is the last resort for a family: no call, no right to signal needed."""

    async def hang_up(context: Context, execute: Path) -> int:
        place = make_place(execute)
        account, _ = await fill(context, place, {"job.sh": b"#!/bin/sh\nsleep 1000 & sleep 1000\n"})
        launched = await start(context, place, "./job.sh")
        assert launched.control is not None
        launched.hang_up()
        with trio.fail_after(60):
            await launched.wait()
        launched.running.close()
        await fetch(context, place, Listed(()))
        return account.uid

    uid = as_account(site.pilot, hang_up, site.context(True), site.execute)
    end = time.monotonic() + 60
    while alive(uid):
        assert time.monotonic() < end
    assert tree(site.execute) == {}


def test_a_wrapper_killed_in_mid_transfer(site: Site, linger: bool) -> None:
    """The user's own processes can do that at any time: a typed failure, and the sandbox can still be emptied."""

    async def interrupted(context: Context, execute: Path, kill: Any) -> str:
        place = make_place(execute)
        code = ""
        try:
            async with stage_in(context, place, deadline_s=60) as inward:
                await inward.file("first", 0o644, 300_000, once(bytes(300_000)))
                await trio.lowlevel.checkpoint()
                far_pid = inward._far.hello.pid
                await signal_far(
                    context,
                    signal.SIGKILL,
                    [(far_pid, start_ticks(far_pid))],
                    tree=False,
                    limit_s=5,
                    deadline_s=60,
                )
                await inward.file("second", 0o644, 3_000_000, once(bytes(3_000_000)))
                await inward.finish()
        except StageFailed as failed:
            code = failed.code
        await fetch(context, place, Listed(()))
        return code

    code = as_account(site.pilot, functools.partial(interrupted, site.context(linger), site.execute, None))
    assert code == "closed"
    assert tree(site.execute) == {}
