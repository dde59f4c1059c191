"""procd at the pilot's account, the job at its user's, our glexec between them: with linger and without."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from demo.accounts import Account
from tests.glexec.conftest import Site
from tests.procd import world

pytestmark = pytest.mark.needs_root


def reachable(path: Path) -> bool:
    return all(parent.stat().st_mode & 0o001 for parent in (path, *path.parents))


@pytest.fixture(scope="module")
def site(accounts: Mapping[str, Account]) -> Iterator[Site]:
    if not (reachable(world.ROOT) and reachable(Path(sys.executable).resolve().parent)):
        pytest.skip("other accounts can't reach this checkout or its interpreter")
    base = Path(tempfile.mkdtemp(prefix="sptest-procd-", dir="/var/tmp"))
    base.chmod(0o755)
    made = None
    try:
        made = Site(base, accounts)
        yield made
    finally:
        if made is not None:
            from glexec.install import uninstall

            for installed in made.installed.values():
                uninstall(installed, remove_log=True)
        shutil.rmtree(base)


class Starter:
    """The stand-in, spoken to."""

    def __init__(self, process: subprocess.Popen[bytes], marker: str) -> None:
        self.process = process
        self.marker = marker
        self.pid: int = self._read()["pid"]

    def ask(self, method: str, **arguments: Any) -> Any:
        assert self.process.stdin
        self.process.stdin.write(json.dumps({"method": method, "arguments": arguments}).encode() + b"\n")
        self.process.stdin.flush()
        return self._read()

    def _read(self) -> Any:
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line, "the stand-in has ended"
        return json.loads(line)

    def alive(self, uid: int) -> list[int]:
        return [pid for pid in world.marked(self.marker) if world.uid_of(pid) == uid]


@contextmanager
def running(site: Site, *, linger: bool, program: str, arguments: tuple[str, ...] = ()) -> Iterator[Starter]:
    marker = "sptest-" + secrets.token_hex(6)
    path = site.private / marker
    front = site.installed[linger].front
    knobs = {
        "_CONDOR_SAILPLANE_SWITCH": "glexec", "_CONDOR_GLEXEC": str(front), "_CONDOR_SAILPLANE_KILL_JITTER": "0",
        "PATH": os.environ["PATH"], "PYTHONPATH": str(world.ROOT), "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    account: dict[str, Any] = {
        "user": site.pilot.uid,
        "group": site.pilot.gid,
        "extra_groups": [],
        "cwd": "/",
    }
    procd: Any = subprocess.Popen(
        [sys.executable, "-m", "procd", "--socket", str(path), "--log", "-"], env=knobs, **account
    )
    command = [world.PYTHON, "-IS", "-c", program, *arguments, marker]
    stand_in: Any = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tests.procd.standin",
            str(path),
            str(front),
            str(site.private / "alice.pem"),
            *command,
        ],
        env=knobs,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        **account,
    )
    try:
        yield Starter(stand_in, marker)
    finally:
        procd.send_signal(signal.SIGINT)
        procd.wait(30)
        stand_in.kill()  # the spawner; the starter reads end of file
        stand_in.communicate()


@pytest.mark.parametrize("linger", [True, False], ids=["linger", "become"])
async def test_a_family_behind_glexec_is_stopped(site: Site, linger: bool) -> None:
    calls = len([line for line in site.log(linger) if line["event"] == "decision"])
    uid = site.alice.uid
    with running(site, linger=linger, program=world.HIDE, arguments=("5", "4")) as starter:
        await world.until(lambda: len(starter.alive(uid)) >= 2, "a tree")
        usage = starter.ask("usage")
        assert usage["processes"] >= 1
        starter.ask("suspend")
        starter.ask("resume")
        stopped = starter.ask("stop", deadline_s=30)
        assert (stopped["empty"], stopped["route"]) == (True, "control" if linger else "switch")
        assert starter.alive(uid) == []
    made = len([line for line in site.log(linger) if line["event"] == "decision"]) - calls
    assert made == (
        1 if linger else 4
    )  # the job's own; suspend, resume and stop cost nothing where a root part lingers
    assert stopped["switch_calls"] == (0 if linger else 1)


@pytest.mark.parametrize("linger", [True, False], ids=["linger", "become"])
async def test_cpu_behind_glexec_is_true(site: Site, linger: bool) -> None:
    """procd's own: a root part that lingers ends right after its job, and tells the starter alone what that has used
    since the last snapshot (tests/e2e/test_e2e_usage.py)."""
    uid = site.alice.uid
    go = site.base / f"go-{secrets.token_hex(4)}"
    hold = f"while not os.path.exists({str(go)!r}): time.sleep(0.01)\nos._exit(0)\n"
    program = world.BURN.replace('if "end"', f'{hold}if "end"') if linger else world.BURN
    with running(site, linger=linger, program=program, arguments=("8", "end")) as starter:

        def told() -> float:
            usage = starter.ask("usage")
            return usage["user_s"] + usage["system_s"]

        if linger:
            await world.until(lambda: told() >= 0.35, "all that it used")
            go.touch()
        await world.until(lambda: starter.alive(uid) == [], "the job's end")
        usage = starter.ask("unregister")
        assert (0.35 if linger else 0.3) <= usage["user_s"] + usage["system_s"] <= 0.8


@pytest.mark.parametrize("linger", [True, False], ids=["linger", "become"])
async def test_a_starter_killed_behind_glexec_leaves_nothing(site: Site, linger: bool) -> None:
    uid = site.alice.uid
    with running(site, linger=linger, program=world.HIDE, arguments=("6", "4")) as starter:
        await world.until(lambda: len(starter.alive(uid)) >= 2, "a tree")
        os.kill(starter.pid, signal.SIGKILL)
        await world.until(lambda: starter.alive(uid) == [], "the family's end")
