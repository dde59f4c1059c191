"""A real Slurm of one node on loopback, for pilots that it starts, stops for a while and ends."""

from __future__ import annotations

import contextlib
import os
import platform
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import attrs

from demo.accounts import Account
from demo.daemons import switched

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "scontrol", "squeue", "sstat")
UP_S = 60.0
# How long a job may take to end after its TERM.
KILL_WAIT_S = 30
T = TypeVar("T")

_CONFIGURATION = """\
ClusterName=probe
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={here}/run/munge.socket
CredType=cred/munge
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
MpiDefault=none
ProctrackType=proctrack/{tracker}
TaskPlugin=task/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/builtin
JobAcctGatherType=jobacct_gather/{accounting}
JobAcctGatherFrequency=1
AccountingStorageType=accounting_storage/none
ReturnToService=2
KillWait={kill_wait}
StateSaveLocation={here}/state
SlurmdSpoolDir={here}/spool
SlurmctldPidFile={here}/run/slurmctld.pid
SlurmdPidFile={here}/run/slurmd.pid
SlurmctldLogFile={here}/log/slurmctld.log
SlurmdLogFile={here}/log/slurmd.log
SlurmctldDebug=info
SlurmdDebug=debug
SlurmdParameters=config_overrides
MailProg=/bin/true
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
NodeName={host} NodeHostname={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=1000 State=UNKNOWN
PartitionName=p Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:8
"""
_CGROUPS = """\
CgroupPlugin=cgroup/v1
CgroupMountpoint=/sys/fs/cgroup
CgroupAutomount=no
ConstrainRAMSpace=no
ConstrainCores=no
"""


class SlurmError(Exception):
    """A daemon did not come up, or a command failed; the text has its words."""


def why_not(tracker: str) -> str:
    """Why it cannot run here; empty if it can."""
    missing = [name for name in PROGRAMS if shutil.which(name, path="/usr/bin:/usr/sbin:/sbin") is None]
    if missing:
        return f"no Slurm: {', '.join(missing)} missing (Debian: munge slurmctld slurmd slurm-client)"
    if tracker == "cgroup" and not os.access("/sys/fs/cgroup/freezer", os.W_OK):
        return "no cgroup v1 freezer that may be written here"
    return ""


@attrs.define(eq=False)
class Slurm:
    """Made by ``open_slurm``."""

    here: Path
    account: Account
    daemons: list[subprocess.Popen[bytes]] = attrs.field(factory=list)

    def start(self, name: str, *arguments: str) -> None:
        """A daemon in the foreground, as root."""
        program = shutil.which(name, path="/usr/sbin:/usr/bin")
        assert program is not None
        with (self.here / "log" / f"{name}.out").open("wb") as output:
            self.daemons.append(
                subprocess.Popen(
                    [program, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=self.environment,
                    cwd=self.here,
                    start_new_session=True,
                    umask=0o022,
                )
            )

    @property
    def environment(self) -> dict[str, str]:
        return {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "SLURM_CONF": str(self.here / "slurm.conf"), "LANG": "C.UTF-8"}

    def ask(self, *argv: str, check: bool = True) -> str:
        """A command at the pilot's account; its output."""
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=self.environment, cwd="/",
            timeout=60, check=False, umask=0o022, **switched(self.account),
        )  # fmt: skip
        if check and done.returncode:
            raise SlurmError(f"{' '.join(argv)}: {done.stderr}{done.stdout}")
        return done.stdout.strip()

    def admin(self, *argv: str) -> str:
        """As root."""
        done = subprocess.run(argv, capture_output=True, text=True, env=self.environment, check=False, timeout=60)
        if done.returncode:
            raise SlurmError(f"{' '.join(argv)}: {done.stderr}{done.stdout}{self.log()}")
        return done.stdout.strip()

    def log(self) -> str:
        """What its daemons said last."""
        return "\n".join(path.read_text(errors="replace")[-2000:] for path in sorted((self.here / "log").iterdir()))

    def submit(self, script: str, home: Path, *options: str) -> str:
        """A batch script; its id."""
        path = home / f"batch-{secrets.token_hex(4)}.sh"
        path.write_text(f"#!/bin/bash\n{script}")
        path.chmod(0o755)
        return self.ask("sbatch", "--parsable", "--export=NONE", "--chdir", str(home), *options, str(path))

    def state(self, job: str) -> str:
        """PENDING, RUNNING, SUSPENDED, COMPLETING …; empty when it is over."""
        return self.ask("squeue", "-h", "-j", job, "-o", "%T", check=False)

    def until(self, what: str, condition: Callable[[], T | None], *, within_s: float = UP_S) -> T:
        """Until a condition gives something; SlurmError with its logs when a daemon dies or time is up."""
        end = time.monotonic() + within_s
        while (found := condition()) is None:
            dead = [daemon for daemon in self.daemons if daemon.poll() is not None]
            if dead or time.monotonic() > end:
                raise SlurmError(f"waiting for {what}: {'a daemon died' if dead else 'too long'}\n{self.log()}")
            time.sleep(0.05)
        return found

    def until_over(self, job: str) -> None:
        """Until nothing of it is in the queue."""
        self.until(f"the end of {job}", lambda: None if self.state(job) else True)


def _ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


@contextlib.contextmanager
def open_slurm(account: Account, tracker: str, *, cpus: int) -> Iterator[Slurm]:
    """Munge, controller and node, with a process tracker: linuxproc (by tree) or cgroup. Ended with its processes."""
    here = Path(tempfile.mkdtemp(prefix="sptest-slurm-", dir="/var/tmp"))
    here.chmod(0o755)
    for name in ("state", "spool", "log", "run"):
        (here / name).mkdir(mode=0o755)
    key = here / "munge.key"
    key.touch(mode=0o400)
    key.chmod(0o600)
    key.write_bytes(secrets.token_bytes(128))
    host = platform.node().partition(".")[0]
    accounting = "cgroup" if tracker == "cgroup" else "linux"
    (here / "slurm.conf").write_text(
        _CONFIGURATION.format(
            host=host,
            here=here,
            ports=_ports(2),
            tracker=tracker,
            accounting=accounting,
            cpus=cpus,
            kill_wait=KILL_WAIT_S,
        )
    )
    (here / "cgroup.conf").write_text(_CGROUPS)
    slurm = Slurm(here, account)
    try:
        places = {"socket": "run/munge.socket", "pid-file": "run/munge.pid", "log-file": "log/munge.log",
                  "seed-file": "state/munge.seed", "key-file": "munge.key"}  # fmt: skip
        slurm.start("munged", "--foreground", "--force", *(f"--{name}={here / at}" for name, at in places.items()))
        slurm.until("munged", lambda: (here / "run/munge.socket").exists() or None)
        slurm.start("slurmctld", "-D")
        slurm.start("slurmd", "-D")
        slurm.until("the node", lambda: "idle" in slurm.ask("sinfo", "-h", "-o", "%t", check=False) or None)
        yield slurm
    finally:
        for daemon in reversed(slurm.daemons):
            daemon.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(10)
            daemon.kill()
            daemon.wait()
        for group in Path("/sys/fs/cgroup").glob(f"*/slurm_{host}"):
            for inner in sorted((path for path in group.rglob("*") if path.is_dir()), reverse=True):
                with contextlib.suppress(OSError):
                    inner.rmdir()
            with contextlib.suppress(OSError):
                group.rmdir()
        shutil.rmtree(here)
