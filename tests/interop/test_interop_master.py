"""Our startd as STARTD of a stock condor_master: started, kept, steered, ended by it, behind a shared port or not."""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from demo import layout
from demo.leftovers import processes_in
from demo.site import Site
from tests.interop.conftest import STARTD_KNOBS
from tests.interop.stockjobs import StockJobs
from tests.interop.stockpool import VARIABLE, StockPool, open_pool

pytestmark = [pytest.mark.interop, pytest.mark.timeout(240)]

NAME = STARTD_KNOBS["STARTD_NAME"]
# A hung daemon is noticed by this, and by the master's look every minute.
HUNG_S = 20
_MORE = """\
DAEMON_LIST = MASTER COLLECTOR NEGOTIATOR SCHEDD {shared_port} STARTD
USE_SHARED_PORT = {use}
STARTD = {program}
STARTD_USERID = {account}
STARTD_ADDRESS_FILE = {pilot}/address/startd
STARTD_NOT_RESPONDING_TIMEOUT = {hung_s}
MASTER_BACKOFF_CONSTANT = 1
MASTER_BACKOFF_CEILING = 2
SHUTDOWN_FAST_TIMEOUT = 20
"""


def program(site: Site) -> Path:
    """What STARTD names: a script that becomes the startd."""
    path = site.layout.root / "startd.sh"
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in site.runtime.environment.items())
    path.write_text(f'#!/bin/sh\n{exports}exec {shlex.join(site.runtime.argv("sailplane-startd"))} "$@"\n')
    path.chmod(0o755)
    return path


def configuration(site: Site, *, shared_port: bool) -> str:
    assert site.installed is not None
    pilot = site.layout.pilot
    more = _MORE.format(
        shared_port="SHARED_PORT" if shared_port else "", use=shared_port, program=program(site),
        account=site.accounts["pilot"].name, pilot=pilot, hung_s=HUNG_S,
    )  # fmt: skip
    own = layout.startd_values(site.layout, collector="$(CONDOR_HOST)", switch=site.installed.front) | STARTD_KNOBS
    own |= {"LOG": pilot / "log", "SAILPLANE_RUN_DIR": pilot / "run", "SEC_TOKEN_DIRECTORY": pilot / "tokens.d"}
    del own["LOCAL_DIR"], own["COLLECTOR_HOST"]
    return more + "".join(f"STARTD.{name} = {value}\n" for name, value in own.items())


@pytest.fixture(scope="module", params=[True, False], ids=["shared port", "own port"])
def mastered(request: pytest.FixtureRequest) -> Iterator[StockJobs]:
    """A pool whose master runs our startd."""
    with Site.open("test", linger=True) as site:
        owner = site.accounts["pilot"]
        for name in ("log", "run", "tokens.d", "address"):
            (site.layout.pilot / name).mkdir(mode=0o755 if name == "address" else 0o700, exist_ok=True)
            os.chown(site.layout.pilot / name, owner.uid, owner.gid)
        more = configuration(site, shared_port=request.param)
        with open_pool(site, Path(os.environ[VARIABLE]), more=more) as pool:
            token = site.layout.pilot / "tokens.d" / "startd.token"
            token.touch(mode=0o600)
            token.write_bytes(pool.pilot_token())
            os.chown(token, owner.uid, owner.gid)
            jobs = StockJobs(site, pool)
            until_there(jobs)
            yield jobs
            print(jobs.start_log()[-8000:])  # shown if something failed
        assert pool.processes() == []
        jobs.until(lambda: not ours(pool) or None, "everything of ours to be gone")
        site.stop()
        assert site.left == []


def until_there(jobs: StockJobs) -> None:
    jobs.until(lambda: slots(jobs) or None, "the startd's slots", deadline_s=90.0)


def slots(jobs: StockJobs) -> list[str]:
    return jobs.pool.tool("condor_status", "-af", "Name", check=False).split()


def ours(pool: StockPool) -> list[int]:
    """Pids of everything of the site that is not the stock pool's."""
    return [pid for pid, comm in processes_in(pool.site.layout.root).items() if not comm.startswith("condor_")]


def startd(jobs: StockJobs) -> int:
    """Its pid, as the pool's tools say it."""
    (said,) = {line for line in jobs.pool.tool("condor_who", "-quick").splitlines() if line.startswith("STARTD_PID")}
    return int(said.split("=")[1])


def runs_a_job(jobs: StockJobs) -> None:
    job = jobs.one("alice", "id -u")
    assert jobs.done(job).strip() == str(jobs.user("alice").uid)


def another(jobs: StockJobs, before: int) -> int:
    """The pid of the startd after ``before``."""

    def there() -> int | None:
        with suppress(ValueError):
            return pid if (pid := startd(jobs)) not in (before, 0) else None
        return None

    pid = jobs.until(there, "another startd", deadline_s=120.0)
    jobs.until(lambda: f"startd[{pid}] ready at" in jobs.start_log() or None, "it to be ready", deadline_s=90.0)
    until_there(jobs)
    return pid


def test_it_is_ready_and_runs_jobs_at_their_owners_accounts(mastered: StockJobs) -> None:
    said = mastered.pool.tool("condor_who", "-wait:30", 'IsReady && STARTD_State =?= "Ready"')
    assert 'STARTD_State = "Ready"' in said
    runs_a_job(mastered)

    def masters() -> str | None:
        return mastered.pool.tool("condor_status", "-master", "-af", "Name").strip() or None

    mastered.until(masters, "the master's ad")


def test_off_and_on(mastered: StockJobs) -> None:
    before = startd(mastered)
    mastered.pool.tool("condor_off", "-startd")
    mastered.until(lambda: not slots(mastered) or None, "its slots to be gone")
    mastered.until(lambda: not Path(f"/proc/{before}").exists() or None, "it to be gone")
    mastered.pool.tool("condor_on", "-startd")
    another(mastered, before)
    runs_a_job(mastered)


def test_peacefully_off_lets_a_job_end_by_itself(mastered: StockJobs) -> None:
    before = startd(mastered)
    job = mastered.one("alice", "sleep 8; echo to the end")
    mastered.until(lambda: mastered.status(job) == 2 or None, "the job to run")
    mastered.pool.tool("condor_off", "-peaceful", "-startd")
    assert mastered.done(job).strip() == "to the end"
    mastered.until(lambda: not Path(f"/proc/{before}").exists() or None, "it to be gone")
    mastered.pool.tool("condor_on", "-startd")
    another(mastered, before)


def test_restart_and_reconfig(mastered: StockJobs) -> None:
    before = startd(mastered)
    mastered.pool.tool("condor_restart", "-startd")
    now = another(mastered, before)
    for count, options in enumerate(([], ["-daemon", "startd"]), 1):
        mastered.pool.tool("condor_reconfig", *options)
        line = f"startd[{now}] settings read again"
        mastered.until(lambda: mastered.start_log().count(line) >= count or None, "a reconfig")  # noqa: B023
    assert startd(mastered) == now


def test_killed_it_is_started_again(mastered: StockJobs) -> None:
    before = startd(mastered)
    os.kill(before, signal.SIGKILL)
    another(mastered, before)
    runs_a_job(mastered)


def test_hung_it_is_noticed(mastered: StockJobs) -> None:
    before = startd(mastered)
    os.kill(before, signal.SIGSTOP)
    another(mastered, before)
    assert "no longer responding" in mastered.pool.log("MasterLog")


def test_nothing_of_ours_outlives_its_master(mastered: StockJobs) -> None:
    """The last one: afterwards there is no pool."""
    job = mastered.one("alice", "sleep 600")
    mastered.until(lambda: mastered.status(job) == 2 or None, "the job to run")
    assert ours(mastered.pool)
    assert mastered.pool.master is not None
    mastered.pool.master.kill()
    mastered.until(lambda: not ours(mastered.pool) or None, "everything of ours to be gone")
    assert not os.listdir(mastered.site.layout.execute)
