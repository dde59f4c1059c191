"""Exit statuses, signals and cores, exact through sudo and glexec, with a lingering switch and without."""

from __future__ import annotations

import pytest

from tests.e2e.e2e_jobs import Jobs

pytestmark = [pytest.mark.needs_root, pytest.mark.timeout(300)]

# Codes at which switches and shells have their own ideas.
CODES = (0, 1, 2, 126, 127, 128, 129, 137, 143, 200, 201, 202, 203, 204, 205, 255)


def status(row: dict[str, object]) -> tuple[object, object]:
    return row["exit_code"], row["exit_signal"]


def test_exit_codes(jobs: Jobs) -> None:
    ids = {code: jobs.submit("alice", f"exit {code}") for code in CODES}
    assert {code: status(jobs.done("alice", job)) for code, job in ids.items()} == {c: (c, None) for c in CODES}


def test_signals(jobs: Jobs) -> None:
    ids = {number: jobs.submit("bob", f"kill -{number} $$; sleep 60") for number in (1, 2, 6, 9, 11, 13, 15, 24)}
    assert {n: status(jobs.done("bob", job)) for n, job in ids.items()} == {n: (None, n) for n in ids}


@pytest.mark.slow
def test_every_exit_code(jobs: Jobs) -> None:
    ids = {code: jobs.submit("alice", f"exit {code}") for code in range(256)}
    assert {code: status(jobs.done("alice", job)) for code, job in ids.items()} == {c: (c, None) for c in range(256)}


def test_a_program_that_is_not_there_holds_the_job_with_the_errno(jobs: Jobs) -> None:
    job = jobs.submit("alice", "", executable="/no/such/program", transfer_executable="False")
    row = jobs.wait_for("alice", job, "held")
    assert (row["hold_code"], row["hold_subcode"]) == (6, 2)
    assert "/no/such/program" in row["reason"]
    assert "No such file" in row["reason"]
    jobs.until_gone("alice")


def test_a_program_that_is_no_program(jobs: Jobs) -> None:
    user = jobs.user("bob")
    if not (user.home / "noise").exists():
        jobs.site.put(user, "noise", b"\x00\x01\x02 no program\n", mode=0o755)
    job = jobs.submit("bob", "", executable="noise")
    row = jobs.wait_for("bob", job, "held")
    assert row["hold_code"] == 6
    assert "Exec format error" in row["reason"]
