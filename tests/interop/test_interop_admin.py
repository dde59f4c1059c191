"""What a pool's administrators do with a Sailplane startd, by stock commands."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from demo.daemons import switched
from tests.interop.conftest import restart_startd
from tests.interop.stockjobs import IDLE, StockJobs
from tests.interop.stockpool import StockError
from tests.userlog import EVICTED, EXECUTING

pytestmark = [pytest.mark.interop, pytest.mark.timeout(300)]

SLOT = "slot1@sailplane.example"
PATIENT = "sleep 300"


@pytest.fixture
def retiring(stock: StockJobs) -> Iterator[StockJobs]:
    """The execution point gives jobs their retirement time."""
    startd = stock.site.startd
    assert startd is not None
    stock.site.startd = None
    startd.stop(deadline_s=60.0)
    restart_startd(stock, MAXJOBRETIREMENTTIME=600)
    yield stock
    startd, stock.site.startd = stock.site.startd, None
    assert startd is not None
    startd.stop(deadline_s=60.0)
    restart_startd(stock)


def as_pilot(stock: StockJobs, *argv: str) -> str:
    """A stock tool at the pilot's own account, on its node."""
    done = subprocess.run(
        argv,
        stdin=subprocess.DEVNULL, capture_output=True, text=True, env=stock.pool.environment, cwd="/", timeout=60,
        check=False, **switched(stock.site.accounts["pilot"]),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def slots(stock: StockJobs) -> dict[str, str]:
    rows = stock.pool.tool("condor_status", "-af", "Name", "State", "Activity").splitlines()
    return {name: f"{state}/{activity}" for name, state, activity in map(str.split, rows)}


def until_slot(stock: StockJobs, name: str, wanted: str) -> None:
    stock.until(lambda: True if slots(stock).get(name) == wanted else None, f"{name} to be {wanted}")


def test_drained_gracefully_a_slot_finishes_its_job_and_called_off_takes_the_next(retiring: StockJobs) -> None:
    stock = retiring
    job = stock.one("alice", PATIENT)
    stock.wait(job, EXECUTING)
    stock.pool.tool("condor_drain", "-graceful", SLOT)
    until_slot(stock, SLOT, "Drained/Retiring")
    other = stock.one("bob", "echo other")
    stock.pool.tool("condor_drain", "-cancel", SLOT)
    assert stock.done(other) == "other\n"
    assert stock.status(job) == 2, "it was not touched"
    stock.pool.tool("condor_rm", job.id, user=stock.user("alice"))


def test_jobs_that_fill_the_time_of_a_drain_end_with_those_from_before(retiring: StockJobs) -> None:
    stock = retiring
    before = stock.one("alice", PATIENT)
    stock.wait(before, EXECUTING)
    stock.pool.tool("condor_drain", "-graceful", "-start", "TARGET.IsFiller =?= true", SLOT)
    until_slot(stock, SLOT, "Drained/Retiring")
    other = stock.one("bob", "echo other")
    filler = stock.one("bob", PATIENT, **{"+IsFiller": "True"})
    stock.wait(filler, EXECUTING)
    assert stock.status(other) == IDLE, "it was there first, but the drain's START does not hold for it"

    def accepted() -> list[str]:
        return sorted(stock.pool.tool("condor_status", "-af", "JobId", "AcceptedWhileDraining").splitlines())

    expected = sorted([f"{before.id} false", f"{filler.id} true", "undefined false"])
    stock.until(lambda: True if accepted() == expected else None, "the slots to say who came when")
    stock.pool.tool("condor_rm", before.id, user=stock.user("alice"))
    stock.wait(filler, EVICTED)
    until_slot(stock, SLOT, "Drained/Idle")
    assert [stock.status(job) for job in (filler, other)] == [IDLE, IDLE]
    stock.pool.tool("condor_drain", "-cancel", SLOT)
    assert stock.done(other) == "other\n"
    stock.pool.tool("condor_rm", filler.id, user=stock.user("bob"))


def test_a_drained_job_leaves_with_its_next_checkpoint(retiring: StockJobs) -> None:
    """It has its retirement time, and needs it no more; nothing that it has done is lost."""
    stock = retiring
    go = stock.pool.here / "go"
    script = f"""
        [ -e state ] && {{ cat state; exit 0; }}
        while [ ! -e {go} ]; do sleep 0.2; done
        echo from the checkpoint > state
        exit 85
    """
    job = stock.one("alice", script, checkpoint_exit_code="85", transfer_checkpoint_files="state")
    stock.wait(job, EXECUTING)
    stock.pool.tool("condor_drain", "-graceful", SLOT)
    until_slot(stock, SLOT, "Drained/Retiring")
    go.touch()
    until_slot(stock, SLOT, "Drained/Idle")
    assert stock.status(job) == IDLE
    stock.pool.tool("condor_drain", "-cancel", SLOT)
    assert stock.done(job) == "from the checkpoint\n"
    assert stock.ad(job)["NumJobStarts"] == 2


def test_drained_fast_a_slot_gives_its_job_back_and_resumes(stock: StockJobs) -> None:
    job = stock.one("alice", PATIENT)
    stock.wait(job, EXECUTING)
    stock.pool.tool("condor_drain", "-fast", "-resume-on-completion", SLOT)
    stock.wait(job, EVICTED)
    stock.wait(job, EXECUTING, after=len(stock.events(job)))
    stock.pool.tool("condor_rm", job.id, user=stock.user("alice"))


def test_the_pilots_account_may_vacate_ping_and_reconfigure_its_startd(stock: StockJobs) -> None:
    job = stock.one("alice", PATIENT)
    stock.wait(job, EXECUTING)
    as_pilot(stock, "condor_vacate", SLOT)
    stock.wait(job, EVICTED)
    stock.pool.tool("condor_rm", job.id, user=stock.user("alice"))
    said = as_pilot(stock, "condor_ping", "-type", "startd", "-name", SLOT, "-table", "READ", "ADMINISTRATOR")
    assert said.count("ALLOW") == 2, said
    as_pilot(stock, "condor_reconfig", "-startd", "-name", SLOT)
    stock.until(lambda: True if "settings read again" in stock.start_log() else None, "the settings to be read")


def test_the_machines_ad_is_updated_and_chooses_jobs(stock: StockJobs) -> None:
    assert stock.site.startd is not None
    update = stock.pool.here / "update.ad"
    update.write_text('Rack = "b7"\nNice = Cpus > 0\n')
    update.chmod(0o644)
    as_pilot(stock, "condor_update_machine_ad", "-name", SLOT, str(update))
    said = ("condor_status", SLOT, "-af", "Rack", "Nice")
    stock.until(lambda: stock.pool.tool(*said).split() == ["b7", "true"] or None, "the update to be in the collector")
    job = stock.one("alice", "echo here", requirements='TARGET.Rack == "b7"')
    assert stock.done(job) == "here\n"


def test_an_update_of_what_a_slot_is_changes_nothing(stock: StockJobs) -> None:
    update = stock.pool.here / "bad.ad"
    update.write_text("Fine = True\nStart = True\n")
    update.chmod(0o644)
    with pytest.raises(AssertionError, match="cannot be set"):
        as_pilot(stock, "condor_update_machine_ad", "-name", SLOT, str(update))
    assert stock.pool.tool("condor_status", SLOT, "-af", "Fine").split() == ["undefined"]


def test_another_account_may_not_update_the_machines_ad(stock: StockJobs) -> None:
    update = stock.pool.here / "others.ad"
    update.write_text("Fine = True\n")
    update.chmod(0o644)
    tool = ("condor_update_machine_ad", "-name", SLOT, str(update))
    with pytest.raises(StockError):
        stock.pool.tool(*tool, user=stock.user("bob"))
    assert "updates the machine's ad: 1 attributes" not in stock.start_log()


def test_another_account_may_not(stock: StockJobs) -> None:
    job = stock.one("alice", PATIENT)
    stock.wait(job, EXECUTING)
    said = stock.pool.tool("condor_vacate", "-fast", SLOT, user=stock.user("bob"), check=False)
    assert "Sent" not in said
    assert stock.status(job) != IDLE
    stock.pool.tool("condor_rm", job.id, user=stock.user("alice"))
