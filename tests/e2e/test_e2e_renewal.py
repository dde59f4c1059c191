"""Proxies that are renewed, or end, while their jobs run: pool, pilot, glexec and job as real processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.grid import make_proxy, write_private
from demo.site import Site, SiteError, User
from pilot import audit
from starter.places import make_place
from starter.private import PROXY, make_private_dir, write_note
from tests.e2e.conftest import STARTD_KNOBS
from tests.e2e.e2e_jobs import Jobs
from tests.e2e.test_e2e_main_job import query_startd

pytestmark = [pytest.mark.needs_root, pytest.mark.timeout(300)]
# Long enough for the output of a small job on a busy machine.
MARGIN_S = 6


@pytest.fixture(scope="module")
def jobs() -> Iterator[Jobs]:
    with Site.open("test", linger=True) as site:
        site.start_pool()
        fresh = site.layout.pilot / "fresh.pem"
        site.start_startd(**{**STARTD_KNOBS, "SAILPLANE_PROXY_MARGIN": MARGIN_S, "SAILPLANE_PILOT_PROXY_SOURCE": fresh})
        yield Jobs(site)
        site.stop()
        assert site.left == []


def proxy_of(jobs: Jobs, user: User, name: str, lifetime_s: float) -> str:
    """A proxy of this user's in a file of his."""
    certified = jobs.site.grid.user(user.dn.rpartition("/CN=")[2])
    jobs.site.put(user, name, make_proxy(certified, lifetime_s=lifetime_s).pem, mode=0o600)
    return name


END = 'end() { openssl x509 -noout -enddate -in "$X509_USER_PROXY"; }; '


def test_a_renewal_reaches_a_running_job_and_the_pilot(jobs: Jobs) -> None:
    alice = jobs.user("alice")
    proxy_of(jobs, alice, "short", 900)
    script = END + 'first=$(end); echo "$first"; while [ "$(end)" = "$first" ]; do sleep 0.1; done; end; ls'
    job = jobs.submit("alice", script, x509userproxy="short")
    cluster = job.partition(".")[0]
    jobs.wait_for(job, "running")
    jobs.site.put(alice, "bobs", make_proxy(jobs.site.grid.user("Bob Baker")).pem, mode=0o600)
    with pytest.raises(SiteError, match="this is no renewal"):
        jobs.site.ask(alice, "renew", cluster, "--proxy", "bobs")
    proxy_of(jobs, alice, "long", 7200)
    (said,) = jobs.site.ask(alice, "renew", cluster, "--proxy", "long")
    assert said["running"] == 1
    jobs.done(job)
    first, second, *files = jobs.fetch("alice", job)["out"].decode().splitlines()
    assert first != second
    assert "short.tmp" not in files
    calls = [str(call["id"]).partition("#renew")[1] for call in jobs.calls(job)]
    assert sorted(calls) == ["", "", "", "#renew"], "three of the job's own, one counted apart"
    records = [r for r in audit.read(jobs.site.layout.pilot / "log" / "AuditLog") if r["job"] == job]
    assert [record["event"] for record in records] == ["proxy-renewed"]
    assert records[0]["identity"] == alice.dn
    jobs.until_nothing_is_left_of("alice")


@pytest.mark.slow
def test_a_job_is_stopped_before_its_proxy_ends_and_keeps_its_output(jobs: Jobs) -> None:
    alice = jobs.user("alice")
    proxy_of(jobs, alice, "ending", 3 * MARGIN_S)
    script = "trap 'echo stopped; exit 0' TERM; echo half >part; while :; do sleep 0.1; done"
    job = jobs.submit("alice", script, x509userproxy="ending", transfer_output_files="part, never")
    row = jobs.wait_for(job, "held", "completed")
    assert (row["state"], row["hold_code"]) == ("held", 4)
    assert alice.dn in row["reason"]
    files = jobs.fetch("alice", job)
    assert files["part"] == b"half\n"
    assert files["out"] == b"stopped\n"
    jobs.until_nothing_is_left_of("alice")


@pytest.mark.slow
def test_a_renewal_at_the_last_moment_lets_it_go_on(jobs: Jobs) -> None:
    alice = jobs.user("alice")
    proxy_of(jobs, alice, "late", 3 * MARGIN_S)
    script = f"n=0; while [ $n -lt {30 * MARGIN_S} ]; do sleep 0.1; n=$((n + 1)); done; echo whole"
    job = jobs.submit("alice", script, x509userproxy="late")
    jobs.wait_for(job, "running")
    proxy_of(jobs, alice, "later", 7200)
    jobs.site.ask(alice, "renew", job.partition(".")[0], "--proxy", "later")
    jobs.done(job)
    assert jobs.fetch("alice", job)["out"] == b"whole\n"


def test_what_an_ended_proxy_left_is_removed_by_the_next_job_at_that_account(jobs: Jobs) -> None:
    """And meanwhile the slot says so, and serves others."""
    left = leave_behind(jobs, "alice")
    jobs.done(jobs.submit("bob", "exit 0"))  # the end of its starter has the janitor look
    slot = jobs.until("the slot to say so", lambda: [ad for ad in query_startd(jobs) if ad.get("SailplaneLeftBehind")])
    assert slot[0]["SailplaneLeftBehind"] == 1
    assert (left / "secret").exists()
    jobs.done(jobs.submit("alice", "exit 0"))
    jobs.until("the sandbox to be removed", lambda: not left.exists())
    jobs.until_nothing_is_left_of("alice")
    ids = [str(record["id"]) for record in jobs.site.switch_log() if record["event"] == "decision"]
    assert ids.count("left#9.9#1") == 1, "the site was asked once, with a proxy that it could accept"


def leave_behind(jobs: Jobs, role: str) -> Path:
    """A dead starter's private directory with a proxy that has ended, and a sandbox; the sandbox."""
    site, pilot, user = jobs.site, jobs.site.accounts["pilot"], jobs.site.accounts[role]
    os.seteuid(pilot.uid)
    try:
        place = make_place(site.layout.execute)
    finally:
        os.seteuid(0)
    for directory in (place.root, place.path.parent):  # as after stage-in
        directory.chmod(0o711)
    place.path.mkdir(mode=0o700)
    (place.path / "secret").write_text("theirs")
    for path in (place.path, place.path / "secret"):
        os.chown(path, user.uid, user.gid)
    private = make_private_dir(site.layout.pilot / "run", 1, 999)  # pid 1 has another start tick
    write_note(private, place, "left#9.9#1")
    certified = site.grid.user(jobs.user(role).dn.rpartition("/CN=")[2])
    (private / PROXY).write_bytes(make_proxy(certified, lifetime_s=-60).pem)
    private.parent.chmod(0o700)
    os.chown(private.parent, pilot.uid, pilot.gid)  # if no job has made it before
    for path in (*private.iterdir(), private):
        path.chmod(0o700 if path is private else 0o600)
        os.chown(path, pilot.uid, pilot.gid)
    return place.path


@pytest.mark.slow
def test_the_pilots_own_proxy_is_taken_over_from_the_file_that_somebody_renews(jobs: Jobs) -> None:
    """The startd looks every half minute."""
    pilot = jobs.site.accounts["pilot"]
    source = jobs.site.layout.pilot / "fresh.pem"
    pem = make_proxy(jobs.site.grid.user("Pilot Factory"), lifetime_s=20 * 3600).pem
    write_private(source, pem, owner=(pilot.uid, pilot.gid))
    jobs.until("the pilot's proxy to be renewed", lambda: jobs.site.layout.pilot_proxy.read_bytes() == pem)
    jobs.done(jobs.submit("alice", "exit 0"))
