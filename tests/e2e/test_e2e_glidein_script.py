"""The example of a glidein script, as a batch system runs it: ready, signals, report, exit status."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from demo import leftovers
from demo.daemons import switched
from tests.e2e.e2e_glidein import own, pool_for_glideins, prepare
from tests.e2e.e2e_jobs import Jobs

pytestmark = [pytest.mark.needs_root, pytest.mark.timeout(300)]

WITHIN_S = 90.0


@attrs.define
class Run:
    """One run of the script at the pilot's account."""

    process: subprocess.Popen[str]
    work: Path

    def ends(self) -> tuple[int, str]:
        """Exit status and standard output."""
        out, err = self.process.communicate(timeout=WITHIN_S)
        return self.process.returncode, out + err

    @property
    def result(self) -> ElementTree.Element:
        return ElementTree.parse(self.work / "otrb_output.xml").getroot()


def glidein(jobs: Jobs, name: str, lines: dict[str, object], **knobs: object) -> Run:
    made = prepare(jobs, name, lines, **knobs)
    process = subprocess.Popen(
        made.argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=made.environment | {"_CONDOR_START": "FALSE", "PYTHONHOME": "/nowhere"}, cwd=made.home, umask=0o022,
        start_new_session=True, **switched(jobs.site.accounts["pilot"]),
    )  # fmt: skip
    return Run(process, made.work)


@pytest.fixture(scope="module")
def jobs() -> Iterator[Jobs]:
    """A pool without an execution point."""
    with pool_for_glideins() as made:
        yield made


def test_a_pilot_that_finds_no_job_ends_well_and_reports(jobs: Jobs) -> None:
    run = glidein(jobs, "idle", {"GLIDEIN_Max_Idle": 2})
    status, said = run.ends()
    assert status == 0, said
    assert "ready, pid" in said
    assert "no job" in said
    assert run.result.findtext("result/status") == "OK"
    assert "STARTD_NOCLAIM_SHUTDOWN" in (run.result.findtext("detail") or "")


@pytest.mark.parametrize("whom", ["the script", "every process"])
def test_a_batch_systems_warning_ends_the_pilot_in_order(jobs: Jobs, whom: str) -> None:
    """Some systems signal the first process of a job, others all: payloads that end then did not by themselves."""
    check = jobs.site.layout.pilot / "check_node"
    check.write_text("#!/bin/sh\necho IS_HEALTHY = true\n")
    own(jobs.site, check, 0o755)
    run = glidein(
        jobs, f"warned-{whom[:3]}", {"GLIDEIN_Max_Walltime": 3600},
        START="NODE_IS_HEALTHY =?= true", STARTD_CRON_JOBLIST="CHECK", STARTD_CRON_CHECK_EXECUTABLE=check,
        STARTD_CRON_CHECK_PERIOD="1m", STARTD_CRON_CHECK_PREFIX="NODE_", MACHINEMAXVACATETIME=30,
    )  # fmt: skip
    first = jobs.submit("alice", "echo $_CONDOR_SLOT done")
    assert jobs.done(first)["exit_code"] == 0
    script = "trap 'sleep 1; echo kept >kept; exit 0' TERM; touch there; sleep 600 & wait"
    second = jobs.submit("alice", script, when_to_transfer_output="ON_EXIT_OR_EVICT")
    jobs.until("the trap", lambda: any(jobs.site.layout.pilot.glob("execute/**/there")))
    assert jobs.site.pool is not None
    everybody = set(leftovers.processes_in(jobs.site.layout.root)) - {jobs.site.pool.pid}
    for pid in sorted(everybody) if whom == "every process" else [run.process.pid]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    log = run.work / "log" / "StartLog"
    jobs.until("the end to begin", lambda: "SIGTERM: shutting down gracefully" in log.read_text())
    run.process.send_signal(signal.SIGTERM)  # the script passes it on, to a pilot that has had it
    status, said = run.ends()
    assert status == 0, said
    metrics = {metric.get("name"): metric.text for metric in run.result.iter("metric")}
    assert (metrics["ExitedWith0JobsNr"], metrics["EvictedJobsNr"]) == ("1", "1"), f"{metrics} {said}"
    asked = len(jobs.calls(first) + jobs.calls(second))  # by the site's own root log
    assert (metrics["SwitchCallsNr"], metrics["SwitchCallsPassedNr"]) == (str(asked), str(asked))
    jobs.wait_for(second, "idle")
    assert "staging out -> reporting (rule 11)" in (run.work / "log" / "StarterLog").read_text().splitlines()[-2], (
        "what it wrote in its grace went home"
    )
    jobs.remove("alice", second)
    jobs.until_nothing_is_left_of("alice")


@pytest.mark.parametrize(
    ("lines", "status", "word"),
    [
        ({"SAILPLANE_RUNTIME": "/nowhere"}, 100, "is not there"),
        ({"X509_USER_PROXY": "/nowhere/proxy"}, 1, "cannot be read"),
        ({"GLIDEIN_Max_Walltime": 700}, 100, "could take jobs for"),
        ({"SAILPLANE_RUNTIME": "https://127.0.0.1:9/x.tar.gz"}, 100, "SAILPLANE_SHA256"),
    ],
)
def test_what_cannot_work_is_said_and_reported(
    jobs: Jobs, lines: dict[str, object], status: int, word: str, request: pytest.FixtureRequest
) -> None:
    run = glidein(jobs, f"bad{abs(hash(word)) % 10_000}", lines)
    ended, said = run.ends()
    assert (ended, word in said) == (status, True), said
    assert run.result.findtext("result/status") == "ERROR"
    assert word in (run.result.findtext("detail") or "")
