"""How a node ends jobs, as a stock pool sees it: KILL, WANT_VACATE, MaxJobRetirementTime, and what nothing ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from demo.site import Site
from tests.interop.conftest import STARTD_KNOBS, restart_startd
from tests.interop.stockjobs import Job, StockJobs
from tests.interop.stockpool import VARIABLE, open_pool
from tests.interop.test_interop_policy import another_startd, wish
from tests.userlog import ABORTED, EVICTED, EXECUTING

pytestmark = [pytest.mark.interop, pytest.mark.timeout(300)]

VACATE_S = 60
# A job says itself what is to be done with it, in its first run.
POLICY = {
    "POLLING_INTERVAL": 0.5,
    "MACHINEMAXVACATETIME": VACATE_S,
    # Its processes have been seen: before that it has not begun.
    "PREEMPT": "NumPids > 0 && TARGET.Wish =!= undefined && TARGET.NumShadowStarts < 2",
    "WANT_VACATE": 'TARGET.Wish =!= "at once"',
    "KILL": 'TARGET.Wish =?= "kill" && Activity == "Vacating" && time() - EnteredCurrentActivity >= 2',
    "MAXJOBRETIREMENTTIME": 'ifThenElse(TARGET.Wish =?= "retire", 12, 0)',
}
# Refuses to go, and notes what it was told.
STUBBORN = """trap 'echo term >>{notes}' TERM
echo start >>{notes}
if [ $(grep -c start {notes}) = 2 ]; then echo over; exit; fi
while :; do sleep 0.1; done"""


@pytest.fixture(scope="module")
def strict(stock: StockJobs) -> Iterator[StockJobs]:
    with another_startd(stock, **POLICY):
        yield stock


def noting(stock: StockJobs, what: str, script: str) -> tuple[Job, Path]:
    notes = stock.user("alice").home / f"notes-{what.replace(' ', '-')}"
    notes.unlink(missing_ok=True)
    return stock.one("alice", script.format(notes=notes), **wish(what)), notes


def evicted_and_run_again(stock: StockJobs, job: Job) -> None:
    stock.wait(job, EVICTED)
    assert stock.done(job) == "over\n"
    numbers = [event.number for event in stock.events(job)]
    assert (numbers.count(EXECUTING), numbers.count(EVICTED)) == (2, 1)
    assert stock.ad(job)["NumShadowStarts"] == 2


def test_kill_cuts_the_vacate_time_of_a_job_that_does_not_go(strict: StockJobs) -> None:
    job, notes = noting(strict, "kill", STUBBORN)
    strict.until(lambda: "term" in (notes.read_text() if notes.exists() else "") or None, "the job to be asked")
    asked_s = time.monotonic()
    strict.wait(job, EVICTED)
    assert 1 < time.monotonic() - asked_s < VACATE_S / 2
    evicted_and_run_again(strict, job)
    assert notes.read_text().split() == ["start", "term", "start"]


def test_a_job_that_is_not_to_be_vacated_hears_nothing(strict: StockJobs) -> None:
    job, notes = noting(strict, "at once", STUBBORN)
    evicted_and_run_again(strict, job)
    assert notes.read_text().split() == ["start", "start"]


def test_a_job_gets_done_in_its_retirement_time(strict: StockJobs) -> None:
    job, notes = noting(strict, "retire", "trap 'echo term >>{notes}' TERM; echo start >>{notes}; sleep 5; echo done")
    shown = strict.until(lambda: retiring(strict), "the slot to show the retirement")
    assert shown == ("Claimed", "Retiring")
    assert strict.done(job) == "done\n"
    assert notes.read_text().split() == ["start"]
    assert EVICTED not in [event.number for event in strict.events(job)]


@pytest.mark.parametrize(("wanted_s", "least_s", "most_s"), [(None, 12, 60), (4, 4, 12)])
def test_a_job_that_takes_longer_than_its_retirement_is_evicted_after_it(
    strict: StockJobs, wanted_s: int | None, least_s: int, most_s: int
) -> None:
    """The job may want less than the node gives."""
    lines: dict[str, Any] = {} if wanted_s is None else {"max_job_retirement_time": str(wanted_s)}
    notes = strict.user("alice").home / "notes-long"
    notes.unlink(missing_ok=True)
    before = len(strict.start_log())
    script = STUBBORN.replace("echo term >>{notes}", "echo term >>{notes}; exit 0").format(notes=notes)
    job = strict.one("alice", script, **wish("retire"), **lines)
    evicted_and_run_again(strict, job)
    assert notes.read_text().split() == ["start", "term", "start"]
    log = strict.start_log()[before:]
    assert least_s <= told_at(log, "retiring -> closing") - told_at(log, "idle -> starting") < most_s


def told_at(log: str, words: str) -> float:
    """When the log first says so, as a unix time."""
    line = next(line for line in log.splitlines() if words in line)
    return datetime.fromisoformat(line.split()[0]).timestamp()


def retiring(stock: StockJobs) -> tuple[str, str] | None:
    shown = ((slot["State"], slot["Activity"]) for slot in stock.slots())
    return next((each for each in shown if each[1] == "Retiring"), None)


# --- what nothing ends -------------------------------------------------------------------------------------------


@pytest.fixture
def powerless() -> Iterator[StockJobs]:
    """A site whose glexec does not stay beside the job: what has become root's there cannot be ended through it."""
    with Site.open("test", linger=False) as site:
        with open_pool(site, Path(os.environ[VARIABLE])) as pool:
            site.start_startd(**STARTD_KNOBS | {"KILLING_TIMEOUT": 3})
            yield StockJobs(site, pool)
        site.stop()


def test_a_slot_is_broken_by_a_process_that_nothing_ends(powerless: StockJobs) -> None:
    """A program that is root's by its owner's leave: the job's account may not signal what it runs."""
    tool = Path(powerless.site.layout.root) / "as-root"
    shutil.copy(shutil.which("setpriv") or "", tool)
    tool.chmod(0o4755)
    job = powerless.one("alice", f"{tool} --reuid 0 --regid 0 --clear-groups sleep 4713; sleep 4714", request_cpus="1")
    powerless.wait(job, EXECUTING)
    pid = powerless.until(lambda: root_sleep(powerless), "the process that nothing ends")
    try:
        powerless.act("rm", job)
        powerless.wait(job, ABORTED)
        broken = powerless.until(lambda: broken_slot(powerless), "the slot to be broken")
        assert broken["SlotBrokenCode"] == 6
        assert f"job {job.id} that could not be removed" in broken["SlotBrokenReason"]
        assert (broken["BrokenSlotCpus"], broken["TotalSlotCpus"], broken["Cpus"]) == (1, 3, 3)
        listed = powerless.pool.tool("condor_status", "-broken")
        assert job.id in listed
        assert "slot1@sailplane.example" in listed
        listed = powerless.pool.tool("condor_status", "-startd", "-broken")
        assert broken["SlotBrokenReason"] in listed
        asked = [f"BrokenContextAds[0].{name}" for name in ("JobId", "RemoteUser", "Cpus")]
        (line,) = powerless.pool.tool("condor_status", "-startd", "-af", *asked).splitlines()
        assert line.split()[0] == job.id
        assert line.split()[1].startswith(powerless.site.accounts["alice"].name)
        assert line.split()[2] == "1"
        assert [powerless.done(each) for each in powerless.submit("bob", "echo more", count=4)] == ["more\n"] * 4
        assert Path(f"/proc/{pid}").exists(), "else this test shows nothing"
    finally:
        os.kill(pid, signal.SIGKILL)
    assert powerless.site.startd is not None
    powerless.site.startd.stop(signal.SIGQUIT, deadline_s=60)
    powerless.site.startd = None
    restart_startd(powerless)
    powerless.until(lambda: whole_slot(powerless), "the next startd to have it all again")


def root_sleep(stock: StockJobs) -> int | None:
    found = subprocess.run(["pgrep", "-u", "root", "-f", "^sleep 4713"], capture_output=True, text=True, check=False)
    return int(found.stdout.split()[0]) if found.stdout.split() else None


def broken_slot(stock: StockJobs) -> dict[str, Any] | None:
    return next((slot for slot in stock.slots() if slot.get("SlotBrokenReason")), None)


def whole_slot(stock: StockJobs) -> bool | None:
    return any(slot["Cpus"] == 4 and "SlotBrokenReason" not in slot for slot in stock.slots()) or None
