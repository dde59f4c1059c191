"""A site that fails by chance, is down, or bans a user: no job is lost or held wrongly, and calls are bounded."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.grid import make_proxy, write_private
from demo.site import Site
from pilot.standing import PAIRS
from tests.e2e.conftest import STARTD_KNOBS
from tests.e2e.e2e_jobs import Jobs
from tests.jobwrapper.farsides import script

pytestmark = [pytest.mark.needs_root, pytest.mark.timeout(600)]

CHANCE = 0.3


@contextlib.contextmanager
def unreliable_site(seed: int, **knobs: object) -> Iterator[tuple[Jobs, Path]]:
    """A site whose glexec looks into a directory before it does its work: `down` there means 203 for all, and each
    line of `fates` is the fate of one call."""
    with Site.open("test", linger=True) as site:
        fates = site.layout.root / "fates"
        fates.mkdir()
        account = site.accounts["pilot"]
        os.chown(fates, account.uid, account.gid)
        dice = random.Random(seed)
        lines = [str(dice.choice((202, 203))) if dice.random() < CHANCE else "0" for _ in range(20_000)]
        (fates / "list").write_text("\n".join(lines))
        assert site.installed is not None
        front = script(
            fates / "glexec",
            f"""
            cd {fates}
            if [ -e down ]; then echo >> asked; echo >&2 authorisation service unreachable; exit 203; fi
            if [ -e chance ]; then
                printf x >> count; n=$(stat -c %s count); fate=$(sed -n "${{n}}{{p;q}}" list)
                [ "$fate" = 0 ] || {{ echo >&2 try again later; exit "$fate"; }}
            fi
            cd - > /dev/null
            exec {site.installed.front} "$@"
            """,
        )
        site.start_pool()
        site.start_startd(**{**STARTD_KNOBS, "GLEXEC": front, "GLEXEC_RETRIES": 3, **knobs})
        yield Jobs(site), fates
        site.stop()
        assert site.left == []


def stranger(jobs: Jobs) -> str:
    """A proxy of somebody whom the site does not know."""
    user = jobs.user("bob")
    path = user.home / "stranger"
    write_private(path, make_proxy(jobs.site.grid.user("Mallory Stranger")).pem, owner=(user.uid, user.uid))
    return str(path)


@pytest.mark.slow
def test_a_site_that_is_down_gives_the_job_back_matches_nobody_and_comes_back() -> None:
    with unreliable_site(1) as (jobs, fates):
        jobs.done(jobs.submit("alice", "exit 0"))
        (fates / "down").touch()
        waiting = jobs.submit("alice", "exit 0")
        jobs.until("the startd to see it", lambda: "no job matches until it is back" in jobs.log("StartLog"))
        asked = len((fates / "asked").read_text().splitlines())
        # The row of plain calls, and the pairs until the pilot's second failure; then only looks at growing intervals.
        assert asked <= 2 * (1 + 3 + PAIRS)
        another = jobs.submit("bob", "exit 0")
        jobs.until("the next look", lambda: len((fates / "asked").read_text().splitlines()) > asked)
        rows = jobs.rows()
        assert {rows[job]["state"] for job in (waiting, another)} == {"idle"}
        assert not jobs.runs(another)
        (fates / "down").unlink()
        for job in (waiting, another):
            jobs.done(job)
        assert "authorisation is back" in jobs.log("StartLog")


@pytest.mark.slow
def test_some_jobs_where_a_third_of_all_calls_fail() -> None:
    play(seed=7, number=16)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [1, 2])
def test_200_jobs_where_a_third_of_all_calls_fail(seed: int) -> None:
    play(seed=seed, number=200)


def play(*, seed: int, number: int) -> None:
    """Half of the jobs alice's, half bob's, and one in ten a stranger's: his are held, and nobody else's."""
    strangers = number // 10 + 1
    with unreliable_site(seed, GLEXEC_RETRY_DELAY=0.2) as (jobs, fates):
        (fates / "chance").touch()
        good = jobs.submit_many("alice", ["exit 0"] * (number // 2))
        good += jobs.submit_many("bob", ["exit 0"] * (number - number // 2 - strangers))
        his = stranger(jobs)
        bad = jobs.submit_many("bob", ["exit 0"], x509userproxy=his)

        def ended() -> bool:
            rows = jobs.rows()
            return all(rows[job]["state"] in ("completed", "held") for job in (*good, *bad))

        jobs.site.wait_until(lambda: ended() or None, what="all jobs to end", deadline_s=10 * number, look_s=1.0)
        rows = jobs.rows()
        assert {rows[job]["state"] for job in good} == {"completed"}, [rows[job]["reason"] for job in good]
        assert {rows[job]["hold_code"] for job in bad} == {28}
        assert "Mallory Stranger" in rows[bad[0]]["reason"]
        # His other jobs do not match here now, and cost nothing.
        more = jobs.submit_many("bob", ["exit 0"] * strangers, x509userproxy=his)
        jobs.done(jobs.submit("alice", "exit 0"))
        assert not [call for job in more for call in jobs.calls(job)]
        assert sum(len(jobs.calls(job)) for job in bad) <= 60
        for job in more:
            jobs.remove("bob", job)
