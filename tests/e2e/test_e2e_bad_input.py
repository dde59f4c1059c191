"""Bad input: each is refused in words that say what and what to do, and leaves nothing behind."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from demo.grid import make_proxy, write_private
from demo.site import Site
from pilot.standing import PAIRS
from tests.e2e.conftest import STARTD_KNOBS
from tests.e2e.e2e_jobs import Jobs

pytestmark = [pytest.mark.needs_root, pytest.mark.timeout(300)]


def refused(jobs: Jobs, role: str, text: str) -> subprocess.CompletedProcess[str]:
    """A submit file that must be refused: nothing is in the queue afterwards."""
    before = jobs.rows()
    name = f"bad{len(list(jobs.user(role).home.iterdir()))}.sub"
    jobs.site.put(jobs.user(role), name, text.encode())
    done = jobs.site.sailplane(jobs.user(role), "submit", name)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert jobs.rows() == before
    return done


def test_a_submit_file_with_an_error(lingering: Jobs) -> None:
    words = refused(lingering, "alice", "executable = /bin/true\nrequest_memory = many of them\nqueue\n").stderr
    assert "request_memory" in words.lower() or "RequestMemory" in words


def test_a_missing_input_file(lingering: Jobs) -> None:
    text = "executable = /bin/true\ntransfer_input_files = not-there.txt\nqueue\n"
    assert "not-there.txt" in refused(lingering, "alice", text).stderr


def test_an_expired_proxy_is_refused_at_submit(lingering: Jobs) -> None:
    jobs, user = lingering, lingering.user("alice")
    assert user.account is not None
    path = user.home / "expired"
    write_private(path, make_proxy(jobs.site.grid.user("Alice Adams"), lifetime_s=-60).pem, owner=(user.uid, user.uid))
    words = refused(jobs, "alice", f"executable = /bin/true\nx509userproxy = {path}\nqueue\n").stderr
    assert "expired" in words


def test_a_user_whom_the_site_does_not_map_is_held_with_28_and_not_matched_here_again(lingering: Jobs) -> None:
    jobs, user = lingering, lingering.user("bob")
    path = user.home / "stranger"
    write_private(path, make_proxy(jobs.site.grid.user("Mallory Stranger")).pem, owner=(user.uid, user.uid))
    job = jobs.submit("bob", "exit 0", x509userproxy=str(path))
    row = jobs.wait_for(job, "held", "completed")
    assert row["hold_code"] == 28
    assert "Mallory Stranger" in row["reason"]
    assert "administrator" in row["reason"]
    jobs.until_nothing_is_left_of("bob")
    calls = len(jobs.calls(job))
    assert calls == 1 + int(STARTD_KNOBS["GLEXEC_RETRIES"]) + PAIRS
    jobs.until("the slots to know", lambda: "do not match here for a while" in jobs.log("StartLog"))
    again = jobs.submit("bob", "exit 0", x509userproxy=str(path))
    jobs.done(jobs.submit("alice", "exit 0"))
    assert jobs.rows()[again]["state"] == "idle"
    assert not jobs.calls(again)
    jobs.remove("bob", again)


def test_a_wrong_token_keeps_a_startd_out_and_says_so() -> None:
    with Site.open("test") as site:
        site.start_pool()
        token = site.layout.startd_token
        words = token.read_text()
        header, payload, signature = words.strip().split(".")
        token.write_text(f"{header}.{payload}.{signature[:-6]}AAAAAA\n")
        site.start_startd(**STARTD_KNOBS)
        log = site.layout.pilot / "log" / "StartLog"
        site.wait_until(lambda: "retrying" in log.read_text(), what="the startd to be refused")
        assert site.ask(site.users["alice"], "status") == []
        assert signature[:20] not in log.read_text()
        site.stop()
        assert site.left == []


def test_a_pool_that_is_away_at_start_is_waited_for() -> None:
    with Site.open("test") as site:
        jobs = Jobs(site)
        pool = site.start_pool()
        port = jobs.collector_port()
        pool.stop(15, deadline_s=10.0)
        site.pool = None
        site.start_startd(**STARTD_KNOBS)
        log = site.layout.pilot / "log" / "StartLog"
        site.wait_until(lambda: "retrying" in log.read_text(), what="the startd to find nobody")
        site.start_pool(SAILPLANE_POOL_PORT=port)
        assert jobs.done(jobs.submit("alice", "exit 0"))["exit_code"] == 0
        site.stop()
        assert site.left == []


def test_a_second_startd_of_the_same_name_does_not_start(lingering: Jobs, tmp_path: Path) -> None:
    """Of the same run directory: at once. With directories of its own: it finds its namesake in the pool."""
    site = lingering.site
    config = (site.layout.pilot / "startd.conf").read_text()
    ours = site.layout.pilot / "startd.conf"
    pilot = site.accounts["pilot"]
    environment = site.environment(site.layout.pilot)
    first = _start(site, ours, environment)
    assert first.returncode == 100
    assert "another startd" in first.stderr
    second = site.layout.pilot / "second"
    second.mkdir()
    shutil.chown(second, pilot.uid, pilot.gid)
    own = f"\nLOCAL_DIR = {second}\nLOG = {second}/log\nEXECUTE = {second}/execute\nSAILPLANE_RUN_DIR = {second}/run\n"
    (second / "startd.conf").write_text(config + own)
    twin = _start(site, second / "startd.conf", environment)
    assert twin.returncode == 1, twin.stderr
    assert "STARTD_NAME" in twin.stderr
    assert lingering.done(lingering.submit("alice", "exit 0"))["exit_code"] == 0
    shutil.rmtree(second)


def _start(site: Site, config: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    pilot = site.accounts["pilot"]
    return subprocess.run(
        site.runtime.argv("sailplane-startd", "--config", str(config)),
        env=environment,
        cwd=site.layout.pilot,
        user=pilot.uid,
        group=pilot.gid,
        extra_groups=[],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_proxy_that_is_not_the_ads_and_one_that_expired_in_the_queue_are_held() -> None:
    """What the pool delegates is held against the job by the execution side, before anything of the job's moves."""
    with Site.open("test") as site:
        site.start_pool()
        jobs = Jobs(site)
        foreign, stale = jobs.submit("alice", "exit 0"), jobs.submit("alice", "exit 0")
        bob, alice = site.grid.user("Bob Baker"), site.grid.user("Alice Adams")
        _exchange(site, foreign, make_proxy(bob).pem)
        _exchange(site, stale, make_proxy(alice, lifetime_s=-60).pem)
        site.start_startd(**STARTD_KNOBS)
        for job, words in ((foreign, "Bob Baker"), (stale, "ended on")):
            row = jobs.wait_for(job, "held", "completed")
            assert (row["state"], row["hold_code"]) == ("held", 4), row
            assert words in row["reason"]
            assert jobs.calls(job) == [], "the site was not asked for a proxy that is not good"
        site.stop()
        assert site.left == []


def _exchange(site: Site, job: str, pem: bytes) -> None:
    """Put another proxy into the pool's spool, behind its back."""
    (stored,) = (
        path for path in site.layout.pool.rglob("*prox*") if path.is_file() and f"/{job.split('.')[0]}/" in f"{path}/"
    )
    owner = stored.stat()
    stored.unlink()
    write_private(stored, pem, owner=(owner.st_uid, owner.st_gid))
