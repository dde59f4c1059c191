"""`./dev demo` as a user meets it: the JSON of a good run, and nothing left after Ctrl-C."""

from __future__ import annotations

import json
import os
import pwd
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from demo import accounts, leftovers, runtime
from demo.accounts import Account
from demo.daemons import switched

# The demo's own promise is 60 s; the tests' machine may be busy with another one.
DEADLINE_S = 100


def start(directory: Path, *arguments: str, account: Account | None = None) -> subprocess.Popen[str]:
    """The demo as a process, in an environment of its own, with its sites below `directory`."""
    where = runtime.reachable(directory / "runtime") if account else runtime.in_place()
    environment = {"PATH": os.environ["PATH"], "TMPDIR": str(directory), "HOME": str(directory), **where.environment}
    return subprocess.Popen(
        [str(where.python), "-m", "demo", *arguments],
        cwd=directory,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        **switched(account),
    )


def finish(process: subprocess.Popen[str]) -> str:
    try:
        return process.communicate(timeout=DEADLINE_S)[0]
    finally:
        process.kill()


def made_accounts() -> set[str]:
    return {entry.pw_name for entry in pwd.getpwall() if entry.pw_name.startswith("spdemo")}


def assert_nothing_left(open_dir: Path, before: set[str]) -> None:
    assert list(open_dir.glob(leftovers.PREFIX + "*")) == []
    assert made_accounts() <= before
    for path in leftovers.SUDOERS_DIR.glob(leftovers.PREFIX + "*") if os.geteuid() == 0 else ():
        assert str(open_dir) not in path.read_text()


def check_jobs(document: dict[str, Any], *, calls: int | None) -> None:
    assert document["ok"] is True, document
    jobs = document["jobs"]
    assert len(jobs) == 10
    assert len({job["owner"] for job in jobs}) == 2
    assert len({(job["owner"], job["dn"]) for job in jobs}) == 2
    assert {job["switch_calls"] for job in jobs} == {calls}
    assert {job["exit_status"] for job in jobs} == {0}
    assert all(job["outputs"] and all(len(digest) == 64 for digest in job["outputs"].values()) for job in jobs)
    assert all(job["seconds"]["total"] > 0 for job in jobs)


@pytest.mark.needs_root
@pytest.mark.parametrize("linger", ["yes", pytest.param("no", marks=pytest.mark.slow)])
def test_two_users_jobs_run_under_two_accounts(open_dir: Path, linger: str) -> None:
    before = made_accounts()
    words = finish(start(open_dir, "--linger", linger, "--json", str(open_dir / "report.json")))
    assert (open_dir / "report.json").exists(), words
    document = json.loads((open_dir / "report.json").read_text())
    check_jobs(document, calls=3)
    uids = {job["uid"] for job in document["jobs"]}
    assert len(uids) == 2
    assert not uids & {job["pilot_uid"] for job in document["jobs"]}
    assert all(job["account"].endswith(("-alice", "-bob")) for job in document["jobs"])
    assert_nothing_left(open_dir, before)


def check_ordinary(open_dir: Path, account: Account | None) -> None:
    words = finish(start(open_dir, "--no-switch", "--json", str(open_dir / "report.json"), account=account))
    assert (open_dir / "report.json").exists(), words
    assert "NOTHING IS ISOLATED" in words
    document = json.loads((open_dir / "report.json").read_text())
    check_jobs(document, calls=None)
    assert {job["uid"] for job in document["jobs"]} == {account.uid if account else os.geteuid()}
    assert_nothing_left(open_dir, made_accounts())


@pytest.mark.skipif(os.geteuid() == 0, reason="run by root; the next test does it at another account")
def test_an_ordinary_user_is_told_that_nothing_is_isolated(open_dir: Path) -> None:
    check_ordinary(open_dir, None)


@pytest.mark.slow
@pytest.mark.needs_root
def test_another_account_is_told_that_nothing_is_isolated(open_dir: Path, accounts: Mapping[str, Account]) -> None:
    check_ordinary(open_dir, accounts["alice"])


@pytest.mark.needs_root
@pytest.mark.needs_userns
def test_another_account_gives_each_job_a_sub_uid(open_dir: Path, accounts: Mapping[str, Account]) -> None:
    words = finish(start(open_dir, "--json", str(open_dir / "report.json"), account=accounts["alice"]))
    assert "at a sub-uid of it" in words, words
    document = json.loads((open_dir / "report.json").read_text())
    assert document["ok"], words
    check_jobs(document, calls=None)
    uids = {job["uid"] for job in document["jobs"]}
    assert len(uids) > 1
    assert accounts["alice"].uid not in uids
    assert {job["account"] for job in document["jobs"]} == {f"userns-{uid}" for uid in uids}
    assert_nothing_left(open_dir, made_accounts())


@pytest.mark.needs_root
@pytest.mark.parametrize(
    ("phase", "number"),
    [
        ("accounts made", signal.SIGINT),
        pytest.param("accounts made", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("jobs running", signal.SIGINT, marks=pytest.mark.slow),
        ("jobs running", signal.SIGTERM),
    ],
)
def test_an_interrupted_demo_leaves_nothing(open_dir: Path, number: int, phase: str) -> None:
    before = made_accounts()
    process = start(open_dir)
    if phase == "accounts made":
        assert process.stdout is not None
        assert any(line.startswith("  bob") for line in process.stdout)
    else:
        wait_for_jobs(open_dir, process)
    process.send_signal(number)
    words = finish(process)
    assert process.returncode == 130, words
    assert "nothing is left" in words
    assert_nothing_left(open_dir, before)


def wait_for_jobs(open_dir: Path, process: subprocess.Popen[str]) -> None:
    """Until the site has decided about a job; the pilot's own calls have other names."""
    while process.poll() is None:
        for log in open_dir.glob("sailplane-*/glexec/glexec.log"):
            if b'"event":"decision"' in log.read_bytes() and b".0#" in log.read_bytes():
                return


def test_a_wrong_option_is_a_usage_error(open_dir: Path) -> None:
    process = start(open_dir, "--linger", "perhaps")
    assert "yes" in finish(process)
    assert process.returncode == 100


def test_no_process_of_the_machine_counts_as_left() -> None:
    assert accounts.processes_of([4_294_000_000]) == {}
