"""A job at its user's account, below our glexec, with a stand-in for the starter and a procd at the pilot's."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import attrs

from demo import accounts
from tests.glexec.conftest import Site
from tests.procd import world
from tests.procd.test_procd_glexec import Starter

PATIENCE_S = 60.0
STRIKES = 100


@attrs.define
class Stage:
    """What is running. `uid` is the job's."""

    starter: Starter
    procd: subprocess.Popen[bytes]
    stand_in: subprocess.Popen[bytes]
    lifeline: int
    uid: int

    def alive(self) -> dict[int, str]:
        """Living processes of the job's account."""
        return accounts.processes_of([self.uid])

    def hang_up(self) -> None:
        """What the startd's death is to procd."""
        if self.lifeline >= 0:
            os.close(self.lifeline)
            self.lifeline = -1


@contextmanager
def stage(site: Site, *, linger: bool, program: str, arguments: tuple[str, ...], processes: int = 0) -> Iterator[Stage]:
    """Run a program as alice. `processes`: the pilot's own soft limit of these, which its calls of glexec inherit.

    Whatever becomes of the test, nothing of alice's lives afterwards.
    """
    marker = "sptest-" + secrets.token_hex(6)
    path = site.private / marker
    knobs = {
        "_CONDOR_SAILPLANE_SWITCH": "glexec", "_CONDOR_GLEXEC": str(site.installed[linger].front),
        "_CONDOR_SAILPLANE_KILL_JITTER": "0", "_CONDOR_GLEXEC_RETRIES": "1", "_CONDOR_GLEXEC_RETRY_DELAY": "0.1",
        "PATH": os.environ["PATH"], "PYTHONPATH": str(world.ROOT), "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    account: dict[str, Any] = {"user": site.pilot.uid, "group": site.pilot.gid, "extra_groups": [], "cwd": "/"}
    readable, lifeline = os.pipe()
    command = [sys.executable, "-m", "procd", "--socket", str(path), "--log", "-", "--lifeline-fd", str(readable)]
    limited = ["/usr/bin/prlimit", f"--nproc={processes}:"] if processes else []
    procd = subprocess.Popen([*limited, *command], env=knobs, pass_fds=[readable], **account)
    os.close(readable)
    go = site.base / f"{marker}.go"
    job = [world.PYTHON, "-IS", "-c", program, str(go), *arguments, marker]
    given = [str(path), str(site.installed[linger].front), str(site.private / "alice.pem"), *job]
    stand_in = subprocess.Popen(
        [sys.executable, "-m", "tests.procd.standin", *given],
        env=knobs, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **account,
    )  # fmt: skip
    made = None
    try:
        made = Stage(Starter(stand_in, marker), procd, stand_in, lifeline, site.alice.uid)
        go.touch()
        yield made
    finally:
        _strike(site)
        procd.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            procd.wait(PATIENCE_S)
        for process in (procd, stand_in):
            process.kill()
        stand_in.communicate()
        procd.wait()
        if made is None or made.lifeline >= 0:
            os.close(lifeline)
        _strike(site)


def _strike(site: Site) -> None:
    """Root ends what is left of alice, however fast it forks: all of an account at one stroke, as nobody else may.

    The one who strikes has alice's uid, and may be stopped or killed by those that it is about to kill: so again.
    """
    for _ in range(STRIKES):
        if not accounts.processes_of([site.alice.uid]):
            return
        pid = os.fork()
        if pid == 0:
            _kill_account(site.alice.uid)
        end_s = time.monotonic() + 0.2
        while os.waitpid(pid, os.WNOHANG) == (0, 0):
            if time.monotonic() > end_s:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.001)
    accounts.kill_all(site.alice.uid)


def _kill_account(uid: int) -> NoReturn:
    try:
        os.setresuid(uid, uid, uid)
        os.kill(-1, signal.SIGKILL)
    finally:
        os._exit(0)
