"""Preemption as a stock negotiator orders it: a user with a better priority has the slot of one with a worse."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from demo.layout import DOMAIN
from tests.interop.stockjobs import RUNNING, Job, StockJobs
from tests.interop.test_interop_policy import ONE_SLOT, another_startd
from tests.userlog import EVICTED, EXECUTING

pytestmark = [pytest.mark.interop, pytest.mark.timeout(300)]

VACATE_S = 8
BY_PRIORITY = "PREEMPTION_REQUIREMENTS = RemoteUserPrio > TARGET.SubmitterUserPrio * 1.2\n"


@contextmanager
def negotiator(stock: StockJobs, text: str) -> Iterator[None]:
    """With settings besides, taken back afterwards."""
    file = stock.pool.here / "config.d" / "60-negotiator"
    file.write_text(text)
    stock.pool.tool("condor_reconfig", "-daemon", "negotiator")
    try:
        yield
    finally:
        file.unlink()
        stock.pool.tool("condor_reconfig", "-daemon", "negotiator")


@contextmanager
def better(stock: StockJobs, good: str, bad: str) -> Iterator[None]:
    """One user's priority is a thousand times as good as another's."""
    names = {role: f"{stock.site.accounts[role].name}@{DOMAIN}" for role in (good, bad)}
    for role, factor in ((good, "10"), (bad, "10000")):
        stock.pool.tool("condor_userprio", "-setfactor", names[role], factor)
        stock.pool.tool("condor_userprio", "-setprio", names[role], "1")
    try:
        yield
    finally:
        for role in (good, bad):
            stock.pool.tool("condor_userprio", "-setfactor", names[role], "1000")


def long_job(stock: StockJobs, role: str, notes: Path) -> Job:
    """It notes each start, each TERM and that it used what it has then, and ends when told to."""
    notes.mkdir(exist_ok=True)
    notes.chmod(0o777)
    for old in notes.iterdir():
        old.unlink()
    return stock.one(
        role,
        f"""trap 'echo term >>{notes}/said; sleep 2; echo saved >>{notes}/said; exit 0' TERM
echo start >>{notes}/said
while [ ! -e {notes}/go ]; do sleep 0.1; done
echo end >>{notes}/said; echo over""",
        **{"+Importance": "1"},
    )


def said(notes: Path) -> list[str]:
    return (notes / "said").read_text().split()


@pytest.mark.parametrize("partitionable", [False, True], ids=["static", "dynamic"])
def test_a_user_of_better_priority_has_the_slot_and_the_other_runs_again(stock: StockJobs, partitionable: bool) -> None:
    notes = stock.user("bob").home / "notes"
    knobs = ONE_SLOT | {"SLOT_TYPE_1_PARTITIONABLE": partitionable, "MACHINEMAXVACATETIME": VACATE_S, "RANK": "0"}
    with negotiator(stock, BY_PRIORITY), better(stock, "alice", "bob"), another_startd(stock, **knobs):
        before = len(stock.start_log())
        worse = long_job(stock, "bob", notes)
        stock.wait(worse, EXECUTING)
        stock.until(lambda: (notes / "said").exists() or None, "the job to begin")
        good = stock.one("alice", "echo better")
        who = stock.until(lambda: preempting(stock), "the slot to show who waits for it")
        assert who == f"{stock.site.accounts['alice'].name}@{DOMAIN}"
        assert stock.done(good) == "better\n"
        evicted = stock.wait(worse, EVICTED)
        assert "better priority" in evicted.text + str(stock.ad(worse).get("VacateReason"))
        again = stock.wait(worse, EXECUTING, after=[e.number for e in stock.events(worse)].index(EVICTED))
        assert again
        assert stock.status(worse) == RUNNING
        assert said(notes)[:3] == ["start", "term", "saved"], "it had its vacate time"
        (notes / "go").touch()
        assert stock.done(worse) == "over\n"
        assert said(notes) == ["start", "term", "saved", "start", "end"]
        log = stock.start_log()[before:]
        assert log.count("waits: a user of better priority takes the slot") == 1
        assert re.search(r"claim \S+ has waited for slot1", log)


def preempting(stock: StockJobs) -> str | None:
    """Who has the next claim of a slot whose job is being vacated."""
    shown = [slot for slot in stock.slots() if "PreemptingUser" in slot]
    return next((str(slot["PreemptingUser"]) for slot in shown if slot["State"] == "Preempting"), None)


@pytest.mark.parametrize("by", ["priority", "rank"])
def test_dynamic_slots_make_room_for_a_larger_job(stock: StockJobs, by: str) -> None:
    """ALLOW_PSLOT_PREEMPTION: of three jobs of one core two go for one of two cores, and run again."""
    notes = [stock.user("bob").home / f"notes{number}" for number in range(3)]
    knobs = {"NUM_CPUS": 3, "MACHINEMAXVACATETIME": VACATE_S, "POLLING_INTERVAL": 0.5, "RANK": "TARGET.Importance"}
    text, better_than, importance = "ALLOW_PSLOT_PREEMPTION = True\n", "bob", "1"
    if by == "priority":
        text += BY_PRIORITY
    else:
        better_than, importance = "alice", "5"  # whose jobs are the important ones all the same
    other = {"alice": "bob", "bob": "alice"}[better_than]
    with negotiator(stock, text), better(stock, other, better_than), another_startd(stock, **knobs):
        before = len(stock.start_log())
        small = [long_job(stock, "bob", place) for place in notes]
        for job, place in zip(small, notes, strict=True):
            stock.wait(job, EXECUTING)
            stock.until(lambda place=place: (place / "said").exists() or None, "the job to begin")  # type: ignore[misc]
        large = stock.one("alice", "echo larger", request_cpus="2", **{"+Importance": importance})
        assert stock.done(large) == "larger\n"
        log = stock.start_log()[before:]
        assert re.search(r"claim \S+ waits for the room of slot1_\d+@\S+, slot1_\d+@", log)
        assert re.search(r"claim \S+ has its room: slot1_", log)
        for place in notes:
            (place / "go").touch()
        assert [stock.done(job) for job in small] == ["over\n"] * 3
        stories = sorted(said(place) for place in notes)
        assert stories == [["start", "end"], *[["start", "term", "saved", "start", "end"]] * 2]


def test_a_user_of_worse_priority_waits(stock: StockJobs) -> None:
    notes = stock.user("alice").home / "notes"
    with (
        negotiator(stock, BY_PRIORITY),
        better(stock, "alice", "bob"),
        another_startd(stock, **ONE_SLOT | {"RANK": "0"}),
    ):
        before = len(stock.start_log())
        first = long_job(stock, "alice", notes)
        stock.wait(first, EXECUTING)
        second = stock.one("bob", "echo waited")
        looked = stock.pool.log("NegotiatorLog").count("Finished Negotiation Cycle")
        stock.until(
            lambda: stock.pool.log("NegotiatorLog").count("Finished Negotiation Cycle") > looked + 3 or None,
            "three cycles of the negotiator",
        )
        assert stock.status(first) == RUNNING
        (notes / "go").touch()
        assert stock.done(first) == "over\n"
        assert stock.done(second) == "waited\n"
        assert said(notes) == ["start", "end"]
        assert "takes the slot" not in stock.start_log()[before:]
