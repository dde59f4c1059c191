"""What one call of an identity switch costs, from its start to its end, in turns with what it is compared with.

glexec: ours behind sudo, against the least that does the same work: a shell that stays as the parent of sudo, and a
Python that asks LCMAPS by the same policy file about the same proxy, becomes the account and execs. userns: a call at a
sub-uid while the job's helper is there, less the plain start of the same program; and the first call, which starts the
helper.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

from bench import pilotside
from bench.figures import Figure
from demo import daemons
from demo.site import Site

CALLS = 40

# The reference behind sudo: `LCMAPS_DB POLICY PROGRAM`. Root, of course, decides nothing here by itself.
BARE = """
import ctypes, os, sys
database, policy, program = sys.argv[1:]
with open(os.environ["GLEXEC_CLIENT_CERT"], "rb") as file:
    pem = file.read()
os.environ.update(LCMAPS_DB_FILE=database, LCMAPS_POLICY_NAME=policy)
os.environ.update(LCMAPS_DEBUG_LEVEL="0", LCMAPS_LOG_FILE="/dev/null")
class Account(ctypes.Structure):
    _fields_ = [("uid", ctypes.c_uint), ("gids", ctypes.POINTER(ctypes.c_uint)), ("count", ctypes.c_int),
                ("more", ctypes.POINTER(ctypes.c_uint)), ("more_count", ctypes.c_int), ("pool", ctypes.c_char_p)]
core = ctypes.CDLL("liblcmaps.so.0", mode=ctypes.RTLD_GLOBAL)
front = ctypes.CDLL("liblcmaps_return_account_from_pem.so.0")
account = Account()
core.lcmaps_account_info_init(ctypes.byref(account))
if front.lcmaps_return_account_from_pem(ctypes.c_char_p(pem), -1, ctypes.byref(account)) or account.count != 1:
    sys.exit(203)
gid = account.gids[0]
os.setgroups([])
os.setresgid(gid, gid, gid)
os.setresuid(account.uid, account.uid, account.uid)
os.execve(program, [program], {"PATH": "/usr/bin:/bin"})
"""

# At the pilot's account: one call of each command in turns, milliseconds of each. SCHED_FIFO comes from outside.
CALLER = """
import json, os, subprocess, sys, time
commands, calls = json.loads(sys.argv[1]), int(sys.argv[2])
null = os.open(os.devnull, os.O_RDWR)
actions = [(os.POSIX_SPAWN_DUP2, null, 0), (os.POSIX_SPAWN_DUP2, null, 1)]
taken = [[] for _ in commands]
for number in range(calls + 2):
    for times, argv in zip(taken, commands):
        begun_s = time.perf_counter()
        pid = os.posix_spawn(argv[0], argv, os.environ, file_actions=actions)
        status = os.waitpid(pid, 0)[1]
        if number >= 2:
            times.append((time.perf_counter() - begun_s) * 1000)
        if status:
            sys.exit("%s: wait status %d" % (argv[0], status))
print(json.dumps(taken))
"""

# The same for a switch of the pilot's own.
USERNS = """
import json, os, sys, time
from pathlib import Path
import trio
from pilot.calls import Call
from pilot.switch import NoneSwitch
from pilot.userns import UsernsSwitch

async def one(switch, place):
    call = Call((PROGRAM,), "bench", None, null, place=place)
    begun_s = time.perf_counter()
    running = await switch.start(call)
    outcome = await running.wait()
    took_ms = (time.perf_counter() - begun_s) * 1000
    errors = running.errors()
    running.close()
    if getattr(outcome, "status", 1):
        sys.exit(f"{outcome} {errors}")
    return took_ms

async def main(directory, calls):
    first, ours, plain = [], [], []
    for number in range(8):
        place = directory / f"job{number}"
        place.mkdir()
        switch = UsernsSwitch(directory / "leases")
        first.append(await one(switch, place))
        for _ in range(calls // 8):
            ours.append(await one(switch, place))
            plain.append(await one(NoneSwitch(), None))
    print(json.dumps([first, ours, plain]))

PROGRAM = sys.argv[3]
null = os.open(os.devnull, os.O_RDWR)
trio.run(main, Path(sys.argv[1]), int(sys.argv[2]))
"""


def why_not() -> str:
    """Why this bench cannot run here; empty if it can."""
    return pilotside.why_not("newuidmap")


def run() -> list[Figure]:
    """The figures of this bench; takes about ten seconds."""
    with Site.open("test", linger=False) as site:
        ours, bare = _glexec(site)
        first, userns, plain = _userns(site)
    return [
        Figure("switch_glexec", ours, "ms", "<= 1.3", bare),
        Figure("switch_glexec_ms", ours, "ms", "<= 40"),
        Figure(
            "switch_userns",
            [one - other for one, other in zip(userns, plain, strict=True)],
            "ms",
            "<= 5",
            note="over the plain start of the same program, in turns; the helper runs",
        ),
        Figure("switch_userns_first", first, "ms", note="the job's first call, which starts the helper"),
    ]


def _glexec(site: Site) -> tuple[list[float], list[float]]:
    """Milliseconds of calls of ours, and of the bare way."""
    assert site.installed is not None
    program = os.path.realpath(shutil.which("true") or "/bin/true")
    front = _bare(site, program)
    environment = pilotside.call_environment(site, pilotside.credential(site, "switch"), "bench#switch")
    commands = [[str(site.installed.front), program], [str(front)]]
    done = _run_quietly(site, [pilotside.PYTHON, "-IS", "-c", CALLER, json.dumps(commands), str(CALLS)], environment)
    ours, bare = json.loads(done)
    return ours, bare


def _bare(site: Site, program: str) -> Path:
    """The reference, below the site's root-owned prefix, and allowed by its own sudoers file, which goes with it."""
    assert site.installed is not None
    installed = site.installed
    root_part, front = installed.prefix / "bench.py", installed.prefix / "bench.sh"
    root_part.write_text(f"#!{pilotside.PYTHON} -IS\n{BARE}")
    command = f"{shutil.which('sudo')} -n -C 10 {root_part} {installed.lcmaps_db} glexec_get_account {program}"
    front.write_text(f"#!/bin/sh\n{command}\nexit $?\n")
    for path in (root_part, front):
        path.chmod(0o755)
    # The same rules as for our own root part, for this one.
    rules = installed.sudoers.read_text()
    installed.sudoers.write_text(rules + rules.replace(str(installed.root_part), str(root_part)))
    return front


def _userns(site: Site) -> tuple[list[float], list[float], list[float]]:
    """Milliseconds of first calls, of later ones, and of the program by itself."""
    directory = site.layout.pilot / "userns"
    directory.mkdir()
    pilot = site.accounts["pilot"]
    os.chown(directory, pilot.uid, pilot.gid)
    program = os.path.realpath(shutil.which("true") or "/bin/true")
    argv = [str(site.runtime.python), "-c", USERNS, str(directory), str(CALLS), program]
    first, ours, plain = json.loads(_run_quietly(site, argv, site.environment(site.layout.pilot)))
    return first, ours, plain


def _run_quietly(site: Site, argv: list[str], environment: dict[str, str]) -> bytes:
    """Run at the pilot's account, before other work of the machine where the kernel lets us: a few seconds in all."""
    with subprocess.Popen(
        argv, env=environment, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        **daemons.switched(site.accounts["pilot"]),
    ) as process:  # fmt: skip
        pilotside.go_first(process.pid)
        out, errors = process.communicate(timeout=120)
    if process.returncode != 0:
        raise daemons.SiteError(f"{argv[0]}: exit status {process.returncode}: {errors.decode('utf-8', 'replace')}")
    return out
