"""The same jobs on a stock execution point and on ours, in one pool: output by output, ad by ad, event by event."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from demo.site import Site
from tests.interop.conftest import STARTD_KNOBS
from tests.interop.differences import AD, EVENTS, EVENTS_OF, SOMETIMES
from tests.interop.joblist import KINDS, Kind
from tests.interop.stockjobs import ABORTED, HELD, TERMINATED, Job, StockJobs
from tests.interop.stockpool import STOCK_STARTD, VARIABLE, open_pool

pytestmark = [pytest.mark.interop, pytest.mark.timeout(600)]

SIDES = {"ours": "@sailplane", "stock": f"@{STOCK_STARTD}"}


@attrs.frozen
class Seen:
    """What became of one job."""

    files: dict[str, str]
    ad: dict[str, Any]
    events: list[int]


@pytest.fixture(scope="module")
def seen() -> Iterator[dict[str, dict[str, Seen]]]:
    """All jobs handed in to both sides at once; what was seen, by side and kind."""
    with Site.open("test", linger=True) as site:
        with open_pool(site, Path(os.environ[VARIABLE]), stock_startd=True) as pool:
            site.start_startd(**STARTD_KNOBS | {"NUM_CPUS": 1, "MEMORY": 1024})
            jobs = StockJobs(site, pool)
            handed = {
                side: {kind.name: hand_in(jobs, kind, side, number) for number, kind in enumerate(KINDS)}
                for side in SIDES
            }
            yield {
                side: {kind.name: look(jobs, kind, side, handed[side][kind.name]) for kind in KINDS} for side in SIDES
            }
        site.stop()


def hand_in(jobs: StockJobs, kind: Kind, side: str, number: int) -> Job:
    """In a directory of its own, so that what comes back can be told apart."""
    user = jobs.user("alice")
    place = f"{side}-{number}"
    jobs.pool.tool("mkdir", "-p", place, user=user)
    for name, content in kind.files.items():
        jobs.pool.tool("mkdir", "-p", str(Path(place, name).parent), user=user)
        jobs.site.put(user, f"{place}/{name}", content)
    where = f'regexp("{SIDES[side]}", TARGET.Name)'
    lines: dict[str, str | None] = {"requirements": where, "output": "out", "error": "err"} | dict(kind.lines)
    script = f'cd "$_CONDOR_SCRATCH_DIR"\n{kind.script}'
    return jobs.one("alice", script, initialdir=place, **lines)


def look(jobs: StockJobs, kind: Kind, side: str, job: Job) -> Seen:
    number = next(n for n, known in enumerate(KINDS) if known is kind)
    place = jobs.user("alice").home / f"{side}-{number}"
    job = attrs.evolve(job, home=place)
    if kind.act:
        jobs.wait(job, kind.after)
        jobs.act(kind.act, job)

    def over() -> bool | None:
        return True if any(e.number in (TERMINATED, HELD, ABORTED) for e in jobs.events(job)) else None

    jobs.until(over, f"the end of {kind.name} on {side}; its log: {jobs.events(job)}", deadline_s=200)
    files = {name: content(place / name) for name in ("out", "err", *kind.made)}
    return Seen(files, jobs.ad(job), [event.number for event in jobs.events(job)])


def content(path: Path) -> str:
    """The text of a short file, the sum of a long one, or that there is none."""
    if not path.is_file():
        return "none"
    data = path.read_bytes()
    return hashlib.sha256(data).hexdigest() if len(data) > 1000 else data.decode(errors="replace")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_output_is_the_same(seen: dict[str, dict[str, Seen]], kind: Kind) -> None:
    ours, stock = (seen[side][kind.name].files for side in ("ours", "stock"))
    assert ours == stock


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_the_ad_is_the_same(seen: dict[str, dict[str, Seen]], kind: Kind) -> None:
    ours, stock = (seen[side][kind.name].ad for side in ("ours", "stock"))
    assert ours
    assert stock
    differing = {name: (ours.get(name), stock.get(name)) for name in {*ours, *stock} - {*AD, *SOMETIMES}}
    assert {name: pair for name, pair in differing.items() if pair[0] != pair[1]} == {}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_the_users_log_is_the_same(seen: dict[str, dict[str, Seen]], kind: Kind) -> None:
    ours, stock = ([n for n in seen[side][kind.name].events if n not in EVENTS] for side in ("ours", "stock"))
    assert ours == stock or kind.name in EVENTS_OF


def test_each_allowed_difference_is_still_seen(seen: dict[str, dict[str, Seen]]) -> None:
    """What no longer differs has to leave the list."""
    differing = {
        name
        for kind in KINDS
        for name in {*seen["ours"][kind.name].ad, *seen["stock"][kind.name].ad}
        if seen["ours"][kind.name].ad.get(name) != seen["stock"][kind.name].ad.get(name)
    }
    assert sorted(set(AD) - differing) == []
