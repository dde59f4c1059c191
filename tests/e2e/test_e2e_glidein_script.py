"""The example of a glidein script, as a batch system runs it: ready, signals, report, exit status."""

from __future__ import annotations

import os
import signal
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from demo import layout
from demo.daemons import switched
from demo.site import Site
from tests.e2e.conftest import POOL_KNOBS, STARTD_KNOBS
from tests.e2e.e2e_jobs import Jobs

pytestmark = [pytest.mark.needs_root, pytest.mark.timeout(300)]

SCRIPT = Path(__file__).parents[2] / "conf" / "glidein.sh"
WITHIN_S = 90.0


@attrs.define
class Glidein:
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


@pytest.fixture(scope="module")
def jobs() -> Iterator[Jobs]:
    """A pool without an execution point; its end must leave nothing behind."""
    with Site.open("test", linger=True) as site:
        site.start_pool(**POOL_KNOBS)
        token = site.layout.pilot / "tokens.d" / "startd.token"
        token.write_bytes(site.layout.startd_token.read_bytes())
        own(site, token, 0o600)
        yield Jobs(site)
        site.stop()
        assert site.left == []


def own(site: Site, path: Path, mode: int) -> None:
    account = site.accounts["pilot"]
    os.chown(path, account.uid, account.gid)
    path.chmod(mode)


def runtime(site: Site) -> Path:
    """A directory as a script would have fetched it."""
    program = site.layout.root / "runtime" / "bin" / "sailplane-startd"
    if not program.exists():
        program.parent.mkdir(parents=True)
        words = site.runtime.argv("sailplane-startd")
        exports = "".join(f"export {name}='{value}'\n" for name, value in site.runtime.environment.items())
        program.write_text(f'#!/bin/sh\n{exports}exec {words[0]} {words[1]} "{words[2]}" "$@"\n')
        program.chmod(0o755)
    return program.parent.parent


def glidein(jobs: Jobs, name: str, lines: dict[str, object], **knobs: object) -> Glidein:
    site, pilot = jobs.site, jobs.site.layout.pilot
    assert site.installed is not None
    collector = site.layout.collector_address.read_text().splitlines()[0]
    values = layout.startd_values(site.layout, collector=collector, switch=site.installed.front) | STARTD_KNOBS
    for taken in ("LOCAL_DIR", "NUM_CPUS", "COLLECTOR_HOST", "SAILPLANE_PILOT_PROXY"):
        values.pop(taken, None)
    values["SEC_TOKEN_DIRECTORY"] = pilot / "tokens.d"
    work = pilot / name
    settings = pilot / f"{name}.conf"
    settings.write_text(layout.text(values | knobs))
    own(site, settings, 0o644)
    keys: dict[str, object] = {
        "SAILPLANE_RUNTIME": runtime(site), "SAILPLANE_CONFIG": settings, "GLIDEIN_Collector": collector,
        "X509_USER_PROXY": site.layout.pilot_proxy, "GLIDEIN_CPUS": 2, "GLIDEIN_Site": "TEST-SITE", **lines,
    }  # fmt: skip
    config = pilot / f"{name}.glidein_config"
    config.write_text("".join(f"{key} {value}\n" for key, value in keys.items()))
    own(site, config, 0o600)
    process = subprocess.Popen(
        ["/bin/bash", str(SCRIPT), str(config), str(work)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=site.environment(pilot) | {"_CONDOR_START": "FALSE", "PYTHONHOME": "/nowhere"}, cwd=pilot, umask=0o022,
        start_new_session=True, **switched(site.accounts["pilot"]),
    )  # fmt: skip
    return Glidein(process, work)


def test_a_pilot_that_finds_no_job_ends_well_and_reports(jobs: Jobs) -> None:
    run = glidein(jobs, "idle", {"GLIDEIN_Max_Idle": 2})
    status, said = run.ends()
    assert status == 0, said
    assert "ready, pid" in said
    assert "no job" in said
    assert run.result.findtext("result/status") == "OK"
    assert "STARTD_NOCLAIM_SHUTDOWN" in (run.result.findtext("detail") or "")


def test_a_batch_systems_warning_ends_the_pilot_in_order(jobs: Jobs) -> None:
    check = jobs.site.layout.pilot / "check_node"
    check.write_text("#!/bin/sh\necho IS_HEALTHY = true\n")
    own(jobs.site, check, 0o755)
    run = glidein(
        jobs, "warned", {"GLIDEIN_Max_Walltime": 3600},
        START="NODE_IS_HEALTHY =?= true", STARTD_CRON_JOBLIST="CHECK", STARTD_CRON_CHECK_EXECUTABLE=check,
        STARTD_CRON_CHECK_PERIOD="1m", STARTD_CRON_CHECK_PREFIX="NODE_",
    )  # fmt: skip
    first = jobs.submit("alice", "echo $_CONDOR_SLOT done")
    assert jobs.done(first)["exit_code"] == 0
    second = jobs.submit("alice", "sleep 600")
    jobs.wait_for(second, "running")
    jobs.until("its program", lambda: "sleep" in jobs.processes("alice").values())
    run.process.send_signal(signal.SIGTERM)
    status, said = run.ends()
    assert status == 0, said
    metrics = {metric.get("name"): metric.text for metric in run.result.iter("metric")}
    assert (metrics["ExitedWith0JobsNr"], metrics["EvictedJobsNr"]) == ("1", "1"), f"{metrics} {said}"
    asked = len(jobs.calls(first) + jobs.calls(second))  # by the site's own root log
    assert (metrics["SwitchCallsNr"], metrics["SwitchCallsPassedNr"]) == (str(asked), str(asked))
    jobs.wait_for(second, "idle")
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
