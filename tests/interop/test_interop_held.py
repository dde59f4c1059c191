"""What cannot run is held by the stock schedd, with a code and words that say what to do."""

from __future__ import annotations

import datetime

import pytest

from demo.grid import Certified
from tests.interop.stockjobs import Event, Job, StockJobs
from tests.userlog import HELD, PROBLEM

pytestmark = [pytest.mark.interop, pytest.mark.timeout(170)]


@pytest.fixture(scope="module")
def held(stock: StockJobs) -> dict[str, Job]:
    """All of them handed in at once; each ends on hold."""
    grid = stock.site.grid
    alice = stock.site.users["alice"]
    stranger = stock.proxy("alice", "stranger", grid.user("Some Stranger"))
    jobs = {
        "unmapped": stock.one("alice", "id", x509userproxy=stranger),
        "no executable": stock.one("alice", "id", executable="/nonexistent/program", transfer_executable="false"),
        "not executable": stock.one("alice", "id", executable="/etc/passwd", transfer_executable="false"),
        "no output": stock.one("bob", "echo did not", transfer_output_files="never-made"),
        "no input": stock.one("bob", "id", transfer_input_files="vanishes", hold="true"),
        "expired": stock.one("alice", "id", hold="true", x509userproxy=stock.proxy("alice", "late", _same(stock))),
        "exchanged": stock.one("alice", "id", hold="true", x509userproxy=stock.proxy("alice", "other", _same(stock))),
    }
    stock.proxy("alice", "late", _same(stock), lifetime_s=-60)
    stock.proxy("alice", "other", grid.user("Bob Baker"))
    assert alice.dn == _same(stock).identity
    for name in ("no input", "expired", "exchanged"):
        stock.act("release", jobs[name])
    return jobs


def _same(stock: StockJobs) -> Certified:
    """A new certificate of Alice's: the same identity."""
    return stock.site.grid.user("Alice Adams")


@pytest.mark.parametrize(
    ("what", "code", "subcode", "words"),
    [
        ("unmapped", 28, 0, "Some Stranger"),
        ("no executable", 6, 2, "No such file"),
        ("not executable", 6, 13, "Permission denied"),
        ("no output", 12, 2, "never-made"),
        ("no input", 13, 2, "vanishes"),
        ("expired", 4, 0, "Make a new one"),
        ("exchanged", 4, 0, "Bob Baker"),
    ],
)
def test_held_with_code_and_words(
    stock: StockJobs, held: dict[str, Job], what: str, code: int, subcode: int, words: str
) -> None:
    job = held[what]
    stock.until(lambda: True if any(_by_us(e.text) for e in stock.events(job) if e.number == HELD) else None, what)
    ad = stock.ad(job)
    assert (ad["HoldReasonCode"], ad["HoldReasonSubCode"]) == (code, subcode), ad["HoldReason"]
    assert words in ad["HoldReason"]
    assert ad["JobStatus"] == 5
    stock.act("rm", job)


def _by_us(text: str) -> bool:
    """Not the hold that the job was submitted with."""
    return "submitted on hold" not in text.lower() and "Code 15" not in text


def test_no_one_waits_for_the_other_once_the_reason_is_told(stock: StockJobs) -> None:
    """The shadow waits for the starter's end, ten seconds at most, and the starter for the shadow's word."""
    job = stock.one("bob", "echo did not", transfer_output_files="never-made")
    entries = {
        event.number: datetime.datetime.fromisoformat(event.text.split(")")[1].strip()[:19])
        for event in stock.until(lambda: _with(stock.events(job), HELD), "held")
    }
    assert (entries[HELD] - entries[PROBLEM]).total_seconds() < 8
    stock.act("rm", job)


def _with(events: list[Event], number: int) -> list[Event] | None:
    return events if any(event.number == number for event in events) else None


def test_nothing_is_left_of_jobs_on_hold(stock: StockJobs, held: dict[str, Job]) -> None:
    stock.until_empty()
