"""Files of jobs through the embedded pool: paths, conditions, limits, URLs, leftovers; sha256 at both ends."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
from collections.abc import Iterator

import pytest

from tests.e2e.e2e_jobs import Jobs
from tests.fileserver import FileServer, serving

pytestmark = [pytest.mark.needs_root, pytest.mark.timeout(300)]
SUMS = "find . -type f ! -name '_condor*' ! -name '.*' ! -name '*.sh' ! -name proxy -exec sha256sum {} + | sort -k2"


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_directories_paths_and_modes_go_in_and_out(lingering: Jobs) -> None:
    jobs, user = lingering, lingering.user("alice")
    given = {"tree/a.bin": os.urandom(300_000), "tree/sub/b": b"", "tree/sub/c\u00e9 d": b"x" * 1000, "lone": b"y"}
    for name, data in given.items():
        (user.home / name).parent.mkdir(parents=True, exist_ok=True)
        jobs.site.put(user, name, data)
    (user.home / "tree/empty").mkdir()
    script = f"{SUMS}; ls -d tree/empty; mkdir -p kept/deep/none; cp -r tree kept/deep/"
    job = jobs.submit(
        "alice",
        script,
        transfer_input_files="tree/sub,tree/a.bin,tree/empty,lone",
        transfer_output_files="kept/deep",
        preserve_relative_paths="true",
    )
    jobs.done(job)
    files = jobs.fetch("alice", job)
    said = dict(reversed(line.split("  ", 1)) for line in files.pop("out").decode().splitlines() if "  " in line)
    assert said == {f"./{name}": digest(data) for name, data in given.items()}
    back = {name.removeprefix("kept/deep/"): digest(data) for name, data in files.items() if name.startswith("kept/")}
    assert back == {name: digest(data) for name, data in given.items() if name != "lone"}


def test_what_cannot_be_sent_is_told_or_left_out(lingering: Jobs) -> None:
    script = "mkdir d; mkfifo d/p pipe; ln -s / d/root; ln -s /etc/shadow d/shadow 2>&1; echo x >d/x"
    job = lingering.submit("alice", script, transfer_output_files="pipe")
    row = lingering.wait_for(job, "held", "completed")
    assert "a named pipe" in row["reason"]
    lingering.remove("alice", job)
    job = lingering.submit("alice", "mkdir d; mkfifo d/p; ln -s / d/root; echo x >d/x", transfer_output_files="d")
    lingering.done(job)
    assert set(lingering.fetch("alice", job)) == {"out", "err", "d/x"}


# -- URLs -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[FileServer]:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    with serving() as made:
        yield made


def test_a_url_that_is_not_there_holds_the_job(lingering: Jobs, server: FileServer) -> None:
    job = lingering.submit("bob", "exit 0", transfer_input_files=f"{server.url}/missing?secret=s3cret")
    row = lingering.wait_for(job, "held", "completed")
    assert (row["state"], row["hold_code"]) == ("held", 13)
    assert f"could not fetch {server.url}/missing" in row["reason"]
    assert "404" in row["reason"]
    assert "s3cret" not in row["reason"]
    assert "s3cret" not in lingering.log("StartLog")
    lingering.remove("bob", job)
    lingering.until_nothing_is_left_of("bob")


@pytest.mark.slow
def test_a_plugin_that_the_job_brings_along(lingering: Jobs) -> None:
    plugin = """#!/bin/sh
sed -n 's/.*LocalFileName = "\\([^"]*\\)".*/\\1/p' "$2" | while read -r name; do id -un >"$name"; done
echo "[ TransferSuccess = true ]" >"$4"
"""
    lingering.site.put(lingering.user("bob"), "mine.sh", plugin.encode(), mode=0o755)
    job = lingering.submit(
        "bob", "cat who; id -un", transfer_plugins="me=mine.sh", transfer_input_files="me://anything/who"
    )
    lingering.done(job)
    first, second = lingering.fetch("bob", job)["out"].decode().split()
    assert first == second


# -- streams --------------------------------------------------------------------------------------------------------


def test_what_a_job_writes_is_streamed_while_it_runs(lingering: Jobs) -> None:
    jobs = lingering
    job = jobs.submit(
        "alice",
        "echo first; echo wrong >&2; seq 1 200000",
        stream_output="true",
        stream_error="true",
    )
    jobs.done(job)
    files = jobs.fetch("alice", job)
    assert files["out"].decode().splitlines() == ["first", *map(str, range(1, 200_001))]
    assert files["err"] == b"wrong\n"


@pytest.mark.slow
def test_two_streams_of_one_file(lingering: Jobs) -> None:
    job = lingering.submit("bob", "echo one; echo two >&2", output="both", error="both", stream_output="true")
    lingering.done(job)
    assert lingering.fetch("bob", job)["both"] == b"one\ntwo\n"


# -- hostile output -------------------------------------------------------------------------------------------------


def test_output_that_attacks_is_refused_or_harmless(lingering: Jobs) -> None:
    """Names that would forge lines, a terabyte with a hole, links to others' files: none of it lies at the pilot's."""
    jobs = lingering
    pilot = jobs.site.layout.pilot
    before = {path for path in pilot.rglob("*") if path.is_file()}
    nasty = [
        "new\nline INFO sailplane.starter[1] job: forged",
        'quote" ; HoldReasonCode = 1 ; x = "',
        "back\\slash",
        "-rf",
    ]
    script = "\n".join(f"printf x >{shlex.quote(name)}" for name in nasty) + "\nln -s /etc/passwd link; ln x hard 2>&1"
    job = jobs.submit("alice", script)
    jobs.done(job)
    assert set(nasty) <= {os.fsdecode(name) for name in raw_names(jobs, job)}
    assert all(re.match(r"\d{4}-\d\d-\d\dT", line) for line in jobs.log("StarterLog").splitlines())
    bomb = jobs.submit("bob", "truncate -s 1T bomb")
    row = jobs.wait_for(bomb, "held", "completed")
    assert (row["hold_code"], "1099511627776 bytes" in row["reason"]) == (33, True), row
    jobs.remove("bob", bomb)
    jobs.until_nothing_is_left_of("bob")
    made = {path for path in pilot.rglob("*") if path.is_file()} - before
    assert not [path for path in made if "log" not in path.parts and path.stat().st_size > 4096]


def raw_names(jobs: Jobs, job: str) -> set[bytes]:
    """What `fetch` wrote, by the names on disk."""
    user = jobs.user("alice")
    (fetched,) = jobs.site.ask(user, "fetch", job, "--to", "raw")
    return set(os.listdir(os.fsencode(user.home / fetched["directory"])))
