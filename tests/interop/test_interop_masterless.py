"""Stock commands that end or steer a startd that no condor_master runs: which lines reach it, which need a master.

The pilot's account and root may by their names; the pool's account may by the capability in the collector alone.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from demo.daemons import Daemon, switched
from tests.interop.conftest import restart_startd
from tests.interop.stockjobs import StockJobs
from tests.userlog import EVICTED, EXECUTING, TERMINATED

pytestmark = [pytest.mark.interop, pytest.mark.timeout(300)]

SLOT = "slot1@sailplane.example"
ADDRESS = "ADDRESS"
BY_CAPABILITY = "collector-side@matchsession"
PATIENT = "sleep 300"


def say(stock: StockJobs, role: str, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """A stock tool at an account of the site; ADDRESS stands for the startd's."""
    words = [address(stock) if word == ADDRESS else word for word in argv]
    done = subprocess.run(
        words,
        stdin=subprocess.DEVNULL, capture_output=True, text=True, env=stock.pool.environment, cwd="/", timeout=60,
        check=False, **switched(stock.site.accounts[role]),
    )  # fmt: skip
    assert not check or done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done


def address(stock: StockJobs) -> str:
    return (stock.site.layout.pilot / "log" / ".startd_address").read_text().splitlines()[0]


def running(stock: StockJobs) -> Daemon:
    startd = stock.site.startd
    assert startd is not None
    return startd


def until_logged(stock: StockJobs, text: str, *, times: int = 1) -> None:
    stock.until(lambda: stock.start_log().count(text) >= times or None, f"{text!r} in StartLog")


def until_ended(stock: StockJobs) -> int:
    startd = running(stock)
    status = stock.until(lambda: None if startd.process.poll() is None else [startd.process.poll()], "the startd's end")
    return int(status[0] or 0)


@pytest.fixture
def ending(stock: StockJobs) -> Iterator[StockJobs]:
    """A pool whose startd may end in a test: the next test has another one."""
    stock.until(lambda: any(ad["Name"] == SLOT for ad in stock.slots()) or None, "the startd in the collector")
    yield stock
    if running(stock).process.poll() is None:
        running(stock).stop(deadline_s=60)
    stock.site.startd = None
    stock.until(lambda: None if stock.slots() else True, "the slots to leave the collector")
    restart_startd(stock)


@pytest.mark.parametrize(
    ("role", "argv", "manner"),
    [
        ("pilot", ("condor_off", "-addr", ADDRESS), "gracefully"),
        ("pilot", ("condor_off", "-fast", "-addr", ADDRESS), "fast"),
        ("pilot", ("condor_off", "-startd", "-addr", ADDRESS), "gracefully"),
        ("pilot", ("condor_off", "-fast", "-daemon", "startd", "-addr", ADDRESS), "fast"),
        ("pilot", ("condor_off", "-subsystem", "startd", "-addr", ADDRESS), "gracefully"),
        ("pilot", ("condor_restart", "-startd", "-addr", ADDRESS), "gracefully"),
        ("pool", ("condor_restart", "-startd", "-name", SLOT), "gracefully"),
        ("pool", ("condor_restart", "-startd", "-fast", "-name", SLOT), "fast"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_these_lines_end_it(ending: StockJobs, role: str, argv: tuple[str, ...], manner: str) -> None:
    before = ending.start_log()
    say(ending, role, *argv)
    assert until_ended(ending) == 99
    said = ending.start_log().removeprefix(before)
    assert f"shutting down {manner}" in said
    assert (BY_CAPABILITY in said) is (role == "pool")


def test_peacefully_its_job_comes_to_its_own_end(ending: StockJobs) -> None:
    go = ending.user("alice").home / "go-peacefully"
    job = ending.one("alice", f"until [ -e {go} ]; do sleep 0.1; done; echo done")
    ending.wait(job, EXECUTING)
    say(ending, "pool", "condor_restart", "-startd", "-peaceful", "-name", SLOT)
    until_logged(ending, "shutting down gracefully")
    assert running(ending).process.poll() is None
    go.touch()
    assert ending.done(job) == "done\n"
    assert until_ended(ending) == 99


@pytest.mark.parametrize(
    "argv",
    [
        ("condor_off", "-startd", "-name", "sailplane.example"),
        ("condor_off", "-name", SLOT),
        ("condor_on", "-startd", "-name", SLOT),
        ("condor_restart", "-name", SLOT),
    ],
    ids=" ".join,
)
def test_these_look_for_a_master_and_say_that_there_is_none(stock: StockJobs, argv: tuple[str, ...]) -> None:
    before = stock.start_log()
    done = say(stock, "pool", *argv, check=False)
    assert "Can't find address for" in done.stderr, done.stdout + done.stderr
    assert "master" in done.stderr
    assert running(stock).process.poll() is None
    assert "shutting down" not in stock.start_log().removeprefix(before)


@pytest.mark.parametrize("argv", [("condor_off", "-addr", ADDRESS), ("condor_off", "-startd", "-addr", ADDRESS)])
def test_a_user_of_the_pool_ends_none(stock: StockJobs, argv: tuple[str, ...]) -> None:
    refused = stock.start_log().count("may not call command")
    say(stock, "bob", *argv, check=False)
    until_logged(stock, "may not call command", times=refused + 1)
    assert running(stock).process.poll() is None


def test_another_daemon_is_not_meant(stock: StockJobs) -> None:
    say(stock, "pilot", "condor_off", "-schedd", "-addr", ADDRESS, check=False)
    until_logged(stock, "this is a startd, and no master")
    assert running(stock).process.poll() is None


def test_the_pools_administrator_has_settings_read_by_the_capability(stock: StockJobs) -> None:
    """Each use of one is the last without a payload: the collector has the next one in a moment."""
    words, wanted = f"{BY_CAPABILITY} wants the settings read again", 3

    def asked() -> bool | None:
        say(stock, "pool", "condor_reconfig", "-startd", "-name", SLOT, check=False)
        return stock.start_log().count(words) >= wanted or None

    stock.until(asked, "three reconfigurations")


@pytest.mark.parametrize(
    ("role", "argv"),
    [
        ("pool", ("condor_vacate", SLOT)),
        ("pool", ("condor_vacate", "-fast", SLOT)),
        ("pool", ("condor_vacate", "-constraint", f'Name == "{SLOT}"')),
        ("pool", ("condor_vacate", "-all")),
        ("pilot", ("condor_vacate", "-addr", ADDRESS)),
        ("pilot", ("condor_vacate", "-fast", "-addr", ADDRESS)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_vacated_from_elsewhere_and_from_here(stock: StockJobs, role: str, argv: tuple[str, ...]) -> None:
    job = stock.one("alice", PATIENT)
    stock.wait(job, EXECUTING)
    assert "Sent" in say(stock, role, *argv).stdout
    stock.wait(job, EVICTED)
    stock.pool.tool("condor_rm", job.id, user=stock.user("alice"))
    stock.until_empty()


@pytest.mark.parametrize(
    "argv", [("-name", SLOT), ("-addr", ADDRESS)], ids=["by its name in the collector", "by its address"]
)
def test_pinged_each_is_told_what_he_may(stock: StockJobs, argv: tuple[str, ...]) -> None:
    for role, allowed in (("pilot", 3), ("bob", 1)):
        line = ("condor_ping", "-type", "startd", *argv, "-table", "READ", "WRITE", "ADMINISTRATOR")
        said = say(stock, role, *line, check=False).stdout
        assert said.count("ALLOW") == allowed, said


@pytest.mark.parametrize("what", [(), ("-slots",), ("-compact",)], ids=["", "-slots", "-compact"])
def test_asked_directly(stock: StockJobs, what: tuple[str, ...]) -> None:
    said = say(stock, "bob", "condor_status", "-direct", SLOT, *what, "-af", "Name").stdout.split()
    assert SLOT in said


def test_drained_and_called_off_by_the_pools_administrator(stock: StockJobs) -> None:
    stock.until(lambda: any(ad["Name"] == SLOT for ad in stock.slots()) or None, "the startd in the collector")
    said = say(stock, "pool", "condor_drain", "-graceful", SLOT).stdout
    assert "Sent request to drain" in said
    stock.until(lambda: any(ad["State"] == "Drained" for ad in stock.slots()) or None, "the drained slot")
    say(stock, "pool", "condor_drain", "-cancel", SLOT)
    stock.until(lambda: any(ad["State"] == "Unclaimed" for ad in stock.slots()) or None, "the slot to be free again")


def test_an_ended_job_is_no_hindrance(stock: StockJobs) -> None:
    """After all that the startd still runs jobs."""
    job = stock.one("alice", "echo still here")
    stock.wait(job, TERMINATED)
    assert stock.done(job) == "still here\n"


def test_condor_now_gives_the_slots_of_two_jobs_to_one(stock: StockJobs) -> None:
    alice = stock.user("alice")
    victims = stock.submit("alice", PATIENT, count=2, request_cpus="2")
    for victim in victims:
        stock.wait(victim, EXECUTING)
    urgent = stock.one("alice", "echo $OMP_NUM_THREADS", request_cpus="4")
    stock.pool.tool("condor_now", urgent.id, *(victim.id for victim in victims), user=alice)
    assert stock.done(urgent) == "4\n"
    assert "slot1_" in stock.start_log().partition(" is made of ")[2]
    for victim in victims:
        stock.wait(victim, EVICTED)
        stock.act("rm", victim)
    stock.until_empty()
