"""How long a short job takes, from its activation to the idle claim, through sudo and glexec.

Measured against a bare shell script that does the same with the same switch: three calls, two tars, and ``openssl
verify`` of the proxy once a call. Ours are read from the startd's log; jobs run one after another on one claim. Script
and jobs take turns, so that a machine that slows down slows both.
"""

from __future__ import annotations

import datetime
import re
import subprocess
import time

from bench import pilotside
from bench.figures import Figure
from demo import daemons
from demo.site import Site, User

ROUNDS, JOBS_A_ROUND = 5, 5
_CLAIM = re.compile(r"^(\S+Z) .* claim (\S+): (.*) -> (.*) \(rule \d+\)$")

SUBMIT = """
universe = vanilla
executable = job.sh
transfer_input_files = input.txt
output = out.$(ProcId)
error = err.$(ProcId)
x509userproxy = {proxy}
request_memory = 128
request_disk = 4096
should_transfer_files = YES
when_to_transfer_output = ON_EXIT
queue {jobs}
"""

JOB = b"#!/bin/sh\nwc -c <input.txt\n"
INPUT = b"a short job's only input\n" * 100

# The same work by hand: `$1` is a fresh name below the execute directory.
BARE = """
set -eu
verify() { openssl verify -CApath "$CERTIFICATES" -allow_proxy_certs -untrusted "$PROXY" "$PROXY" >/dev/null; }
place=$1
mkdir -m 1733 "$place"
chmod 1733 "$place"
verify
tar -c -C "$INPUT_DIR" . | "$GLEXEC" "$SHELL_PATH" -c "mkdir -m 700 $place/s && cd $place/s && tar -x"
verify
"$GLEXEC" "$SHELL_PATH" -c "cd $place/s && ./job.sh >_condor_stdout 2>_condor_stderr"
verify
mkdir "$place.out"
"$GLEXEC" "$SHELL_PATH" -c "cd $place/s && tar -c _condor_stdout _condor_stderr && cd / && rm -rf $place/s" \
    | tar -x -C "$place.out"
rm -rf "$place" "$place.out"
"""


def why_not() -> str:
    """Why this bench cannot run here; empty if it can."""
    return pilotside.why_not("openssl", "tar")


def run() -> list[Figure]:
    """The figures of this bench; takes about half a minute."""
    with Site.open("test", linger=True) as site:
        site.start_pool()
        site.start_startd(NUM_CPUS=1)
        alice = site.users["alice"]
        site.put(alice, "job.sh", JOB, mode=0o755)
        site.put(alice, "input.txt", INPUT)
        site.put(alice, "job.sub", SUBMIT.format(proxy=alice.proxy, jobs=JOBS_A_ROUND).encode())
        bare = _Bare(site)
        _jobs(site, alice)
        bare.job()
        warm = len(_lives(site))
        by_hand, calls = [], []
        for _ in range(ROUNDS):
            _jobs(site, alice)
            by_hand += [bare.job() for _ in range(JOBS_A_ROUND)]
            calls += [bare.empty_call() for _ in range(3)]
        ours = _lives(site)[warm:]
        counted = _switch_calls(site)[JOBS_A_ROUND:]
    switch_ms = 3 * sorted(calls)[len(calls) // 2]
    return [
        Figure("turnaround", ours, "ms", "<= 1.5", by_hand),
        Figure(
            "turnaround_own",
            [max(0.0, life - switch_ms) for life in ours],
            "ms",
            "<= 60",
            note=f"without 3 calls that only start the wrapper's interpreter ({switch_ms:.1f} ms)",
        ),
        Figure("switch_calls_per_job", counted, "calls", "== 3"),
        *_beside_stock(),
    ]


def _beside_stock() -> list[Figure]:
    """Where there is a stock HTCondor to compare with (SAILPLANE_HTCONDOR)."""
    from bench import stock

    return [] if stock.why_not() else stock.run()


def _jobs(site: Site, user: User) -> None:
    """One cluster of short jobs, until all are done. No command waits for them: its start alone takes a core for longer
    than a job lives, and the script has nobody beside it either."""
    before = len(_lives(site))
    site.ask(user, "submit", "job.sub")
    site.wait_until(lambda: len(_lives(site)) >= before + JOBS_A_ROUND or None, what="the jobs' ends", deadline_s=60)


def _lives(site: Site) -> list[float]:
    """Milliseconds from activation to the idle claim, of every activation in the startd's log."""
    started: dict[str, datetime.datetime] = {}
    lives = []
    for line in (site.layout.pilot / "log" / "StartLog").read_text().splitlines():
        match = _CLAIM.match(line)
        if match is None:
            continue
        when = datetime.datetime.fromisoformat(match[1])
        if match[3] == "idle":
            started[match[2]] = when
        elif match[4] in ("idle", "gone") and match[2] in started:
            lives.append((when - started.pop(match[2])).total_seconds() * 1000)
    return lives


def _switch_calls(site: Site) -> list[float]:
    """Decisions in the site's root log, of each job."""
    counted: dict[str, int] = {}
    for record in site.switch_log():
        if record["event"] == "decision" and "#" in str(record["id"]):
            counted[record["id"]] = counted.get(record["id"], 0) + 1
    return [float(count) for count in counted.values()]


class _Bare:
    """The script's side: at the pilot's account, with the user's proxy."""

    def __init__(self, site: Site) -> None:
        assert site.installed is not None  # why_not() asked for root
        self._site, self._account = site, site.accounts["pilot"]
        proxy = pilotside.credential(site, "bare")
        files = site.layout.pilot / "bare.in"
        files.mkdir()
        (files / "job.sh").write_bytes(JOB)
        (files / "job.sh").chmod(0o755)
        (files / "input.txt").write_bytes(INPUT)
        self._glexec = str(site.installed.front)
        self._environment = pilotside.call_environment(site, proxy, "bare") | {
            "GLEXEC": self._glexec,
            "PROXY": str(proxy),
            "CERTIFICATES": str(site.layout.certificates),
            "INPUT_DIR": str(files),
            "SHELL_PATH": pilotside.SHELL,
        }
        self._serial = 0

    def job(self) -> float:
        """One job by hand, in ms."""
        self._serial += 1
        place = str(self._site.layout.execute / f"bare{self._serial}")
        return self._timed(["/bin/sh", "-c", BARE, "bare", place])

    def empty_call(self) -> float:
        """One call that starts the wrapper's interpreter and does nothing, in ms."""
        return self._timed([self._glexec, pilotside.PYTHON, "-IS", "-c", "pass"])

    def _timed(self, argv: list[str]) -> float:
        start_s = time.perf_counter()
        done = subprocess.run(
            argv,
            env=self._environment,
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            **daemons.switched(self._account),
        )
        if done.returncode != 0:
            raise daemons.SiteError(f"{argv[0]} ended with {done.returncode}: {done.stderr}")
        return (time.perf_counter() - start_s) * 1000
