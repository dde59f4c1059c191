"""The same jobs on a stock execution point and on ours, in one pool: each ends as the list says, and output by output,
ad by ad, event by event as on the other side."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import attrs
import pytest

from demo.site import Site
from tests import joblist, userlog
from tests.fileserver import FileServer, serving
from tests.interop.conftest import STARTD_KNOBS
from tests.interop.differences import (
    AD,
    AD_OF,
    EVENTS,
    EVENTS_OF,
    FILES_OF,
    IN_A_STOCK_POOL,
    ON_STOCK,
    SOMETIMES,
    TRANSFERS_OF,
)
from tests.interop.stockjobs import Job, StockJobs
from tests.interop.stockpool import STOCK_CPUS, STOCK_STARTD, VARIABLE, open_pool
from tests.joblist import KINDS, Kind, Seen

pytestmark = [pytest.mark.interop, pytest.mark.timeout(900)]

SIDES = {"ours": "@sailplane", "stock": f"@{STOCK_STARTD}"}
DEADLINE_S = 500.0
# When a deferred job may start: later than it is matched.
LATER_S = 15


@attrs.define(eq=False)
class Side:
    """All kinds on one side's execution point."""

    name: str
    jobs: StockJobs
    server: FileServer
    handed: dict[str, Job] = attrs.Factory(dict)

    def place(self, kind: Kind) -> Path:
        return self.jobs.user("alice").home / f"{self.name:_<5}-{KINDS.index(kind)}"  # of one length

    def put(self, kind: Kind) -> str:
        return f"/{self.name}/{KINDS.index(kind)}"

    def hand_in(self, kind: Kind) -> None:
        """In a directory of its own, so that what comes back can be told apart."""
        user, place = self.jobs.user("alice"), self.place(kind)
        words = {"place": str(place), "url": self.server.url, "put": self.server.url + self.put(kind),
                 "later": str(int(time.time()) + LATER_S)}  # fmt: skip
        directories = sorted({str((place / name).parent) for name in ("x", *kind.files)})
        self.jobs.pool.tool("mkdir", "-p", *directories, user=user)
        for name, data in kind.files.items():
            mode = 0o755 if name.endswith(".sh") else 0o644
            self.jobs.site.put(user, f"{place.name}/{name}", data, mode=mode)
        where = f'regexp("{SIDES[self.name]}", TARGET.Name)'
        lines = {name: value and joblist.filled(value, words) for name, value in kind.lines.items()}
        standard: dict[str, str | None] = {"requirements": where, "output": "out", "error": "err"}
        script = kind.program(words).removeprefix("#!/bin/sh\n").removesuffix("\n")
        job = self.jobs.one("alice", script, initialdir=place.name, **standard | lines)
        self.handed[kind.name] = attrs.evolve(job, home=place)

    def events(self, kind: Kind) -> list[int]:
        return [event.number for event in self.jobs.events(self.handed[kind.name])]

    def act(self, kind: Kind, verb: str) -> None:
        if verb == joblist.GO:
            (self.place(kind) / verb).touch()
        else:
            self.jobs.act("vacate_job" if verb == "vacate" else verb, self.handed[kind.name])

    def followed(self, kind: Kind) -> joblist.Handed:
        return joblist.Handed(kind, self.place(kind), partial(self.events, kind), partial(self.act, kind))

    def look(self, kind: Kind) -> Seen:
        files = {name: joblist.read(self.place(kind) / name) for name in kind.names()}
        files |= {name: joblist.content(self.server.kept.get(f"{self.put(kind)}/{name}")) for name in kind.sent}
        return Seen(files, self.jobs.ad(self.handed[kind.name]), self.events(kind))


@pytest.fixture(scope="module")
def sides() -> Iterator[dict[str, Side]]:
    """All jobs handed in to both sides at once, and done."""
    with Site.open("test", linger=True) as site, serving() as server:
        with open_pool(site, Path(os.environ[VARIABLE]), stock_startd=True) as pool:
            server.kept["/data.bin"] = joblist.DATA
            site.start_startd(**STARTD_KNOBS | {"NUM_CPUS": STOCK_CPUS, "MEMORY": 1024 * STOCK_CPUS})
            token = pool.here / "oauth" / site.accounts["alice"].name / "box.use"
            token.parent.mkdir(parents=True)
            token.touch(mode=0o600)
            token.write_text("s3cret")
            jobs = StockJobs(site, pool)
            made = {name: Side(name, jobs, server) for name in SIDES}
            for kind in KINDS:
                for side in made.values():
                    side.hand_in(kind)

            def until(condition: Callable[[], bool | None], words: Callable[[], str]) -> None:
                deadline_s = time.monotonic() + DEADLINE_S
                jobs.until(
                    lambda: condition() or (time.monotonic() > deadline_s and pytest.fail(words())) or None,
                    "all jobs to end", deadline_s=DEADLINE_S + 10,
                )  # fmt: skip

            joblist.follow([side.followed(kind) for kind in KINDS for side in made.values()], until)
            yield made
        site.stop()


@pytest.fixture(scope="module")
def seen(sides: dict[str, Side]) -> dict[str, dict[str, Seen]]:
    """What was seen, by side and kind."""
    return {name: {kind.name: side.look(kind) for kind in KINDS} for name, side in sides.items()}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("side", SIDES)
def test_it_ends_as_the_list_says(
    sides: dict[str, Side], seen: dict[str, dict[str, Seen]], side: str, kind: Kind
) -> None:
    kind = attrs.evolve(
        kind, **IN_A_STOCK_POOL.get(kind.name, {}), **(ON_STOCK.get(kind.name, {}) if side == "stock" else {})
    )
    found, wanted = seen[side][kind.name], kind.ends_as(sides[side].jobs.user("alice").dn)
    assert {name: found.ad.get(name) for name in wanted} == wanted, found.ad.get("HoldReason")
    sent = {name: joblist.content(data) for name, data in kind.sent.items()}
    assert found.files == joblist.wanted_files(kind) | sent
    assert joblist.story(found.events) == joblist.story(kind.events)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_output_is_the_same(seen: dict[str, dict[str, Seen]], kind: Kind) -> None:
    ours, stock = (seen[side][kind.name].files for side in ("ours", "stock"))
    allowed = FILES_OF.get(kind.name, {})
    assert {name: text for name, text in ours.items() if name not in allowed} == {
        name: text for name, text in stock.items() if name not in allowed
    }


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_the_ad_is_the_same(seen: dict[str, dict[str, Seen]], kind: Kind) -> None:
    ours, stock = (seen[side][kind.name].ad for side in ("ours", "stock"))
    assert ours
    assert stock
    allowed = {*AD, *SOMETIMES, *AD_OF.get(kind.name, {})}
    differing = {name: (ours.get(name), stock.get(name)) for name in {*ours, *stock} - allowed}
    assert {name: pair for name, pair in differing.items() if pair[0] != pair[1]} == {}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_the_users_log_is_the_same(seen: dict[str, dict[str, Seen]], kind: Kind) -> None:
    ours, stock = (seen[side][kind.name].events for side in ("ours", "stock"))
    assert in_order(ours) == in_order(stock) or kind.name in EVENTS_OF
    same = ours.count(userlog.TRANSFER) == stock.count(userlog.TRANSFER)
    assert same or kind.name in TRANSFERS_OF


def in_order(events: list[int]) -> list[int]:
    """All but those of file transfers, whose order among the others is chance."""
    return [n for n in events if n not in EVENTS and n != userlog.TRANSFER]


def test_each_allowed_difference_is_still_seen(seen: dict[str, dict[str, Seen]]) -> None:
    """What no longer differs has to leave the list."""
    differing = {
        name
        for kind in KINDS
        for name in {*seen["ours"][kind.name].ad, *seen["stock"][kind.name].ad}
        if seen["ours"][kind.name].ad.get(name) != seen["stock"][kind.name].ad.get(name)
    }
    assert sorted(set(AD) - differing) == []


def test_each_kind_that_may_differ_is_in_the_list() -> None:
    assert {*AD_OF, *EVENTS_OF, *TRANSFERS_OF, *FILES_OF, *IN_A_STOCK_POOL, *ON_STOCK} <= {kind.name for kind in KINDS}
