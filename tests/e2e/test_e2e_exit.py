"""Exit statuses, signals and cores, exact through sudo and glexec, with a lingering switch and without."""

from __future__ import annotations

import pytest

from tests.e2e.e2e_jobs import Jobs

pytestmark = [pytest.mark.needs_root, pytest.mark.timeout(300)]

# Codes at which switches and shells have their own ideas; all 256 are in the slow tier.
CODES = (0, 1, 2, 126, 127, 128, 137, 143, 200, 201, 202, 203, 204, 205, 255)
SIGNALS = (1, 2, 9, 11, 13, 15)


def check_codes(jobs: Jobs, codes: tuple[int, ...]) -> None:
    ids = jobs.submit_many("alice", [f"exit {code}" for code in codes])
    jobs.site.sailplane(jobs.user("alice"), "wait", ids[0].partition(".")[0])
    rows = jobs.rows()
    assert {code: rows[job]["exit_code"] for code, job in zip(codes, ids, strict=True)} == {c: c for c in codes}


def test_exit_codes(jobs: Jobs) -> None:
    check_codes(jobs, CODES)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_exit_code(jobs: Jobs) -> None:
    check_codes(jobs, tuple(range(256)))


def test_deaths_by_signal(jobs: Jobs) -> None:
    ids = jobs.submit_many("bob", [f"kill -{number} $$; sleep 60" for number in SIGNALS])
    rows = {job: jobs.done(job) for job in ids}
    assert [rows[job]["exit_signal"] for job in ids] == list(SIGNALS)
    assert [rows[job]["exit_code"] for job in ids] == [None] * len(SIGNALS)


def test_a_core_is_told_and_brought_home_where_sudo_leaves_cores_on(jobs: Jobs) -> None:
    """sudo takes the limit on cores away for good where root may not raise limits."""
    job = jobs.submit("alice", "ulimit -Hc; kill -ABRT $$", coresize="10000000")
    row = jobs.done(job)
    files = jobs.fetch("alice", job)
    allowed = files["out"].strip() != b"0"
    assert row["exit_signal"] == 6
    assert bool(row["exit_status"] & 0x80) is allowed
    assert any(name.startswith("core") for name in files) is allowed


def test_a_program_that_is_no_program_holds_the_job(jobs: Jobs) -> None:
    jobs.site.put(jobs.user("bob"), "noise", b"\x00\x01\x02 no program\n", mode=0o755)
    (job,) = jobs.submit_many("bob", [""], executable="noise")
    row = jobs.wait_for(job, "held")
    assert row["hold_code"] == 6
    assert "Exec format error" in row["reason"]
    jobs.until_nothing_is_left_of("bob")
