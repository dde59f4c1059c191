"""What a job leaves outside its sandbox is gone with it, unless it may be another job's: then it is told."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.e2e_jobs import Jobs

pytestmark = [pytest.mark.needs_root, pytest.mark.timeout(300)]

PLACES = ("/tmp", "/var/tmp", "/dev/shm")
LITTER = """
for place in /tmp /var/tmp /dev/shm; do
  mkdir -p $place/{word}/deep; echo x > $place/{word}/deep/file; chmod 0 $place/{word}/deep
done
ipcmk -M 4096 >&2; ipcmk -Q >&2; ipcmk -S 3 >&2
"""


@pytest.fixture
def word(request: pytest.FixtureRequest) -> Iterator[str]:
    name = f"sptest-litter-{abs(hash(request.node.name)) % 10**8}"
    yield name
    for place in PLACES:
        shutil.rmtree(Path(place, name), ignore_errors=True)


def ipc_of(jobs: Jobs, role: str) -> list[str]:
    uid = jobs.site.accounts[role].uid
    return [
        f"{kind} {words[1]}"
        for kind in ("shm", "msg", "sem")
        for line in Path("/proc/sysvipc", kind).read_text().splitlines()[1:]
        if str(uid) in ((words := line.split())[5:12] if kind != "sem" else words[4:8])
    ]


def litter(word: str) -> list[str]:
    return [place for place in PLACES if Path(place, word).exists()]


@pytest.mark.slow
def test_files_and_ipc_are_gone_with_their_job(lingering: Jobs, word: str) -> None:
    job = lingering.submit("alice", LITTER.format(word=word))
    assert lingering.done(job)["exit_code"] == 0
    lingering.until_nothing_is_left_of("alice")
    assert litter(word) == []
    assert ipc_of(lingering, "alice") == []
    assert len(lingering.calls(job)) == 3


@pytest.mark.slow
def test_what_may_be_another_jobs_is_reported_and_stays(lingering: Jobs, word: str) -> None:
    other = lingering.submit("alice", "sleep 600")
    lingering.wait_for(other, "running")
    lingering.until("the other job's process", lambda: any("sleep" in p for p in lingering.processes("alice").values()))
    job = lingering.submit("alice", LITTER.format(word=word))
    lingering.done(job)
    lingering.until("a word in the log", lambda: "left outside its sandbox" in lingering.log("StartLog"))
    assert litter(word) == list(PLACES)
    lingering.remove("alice", other)
    lingering.until_nothing_is_left_of("alice")
    for row in ipc_of(lingering, "alice"):
        kind, number = row.split()
        subprocess.run(["ipcrm", {"shm": "-m", "msg": "-q", "sem": "-s"}[kind], number], check=True)


@pytest.mark.slow
def test_a_dead_starters_job_leaves_none_either(lingering: Jobs, word: str) -> None:
    """The clean-up looks from the time of the starter's note on."""
    script = f"echo x >/dev/shm/{word}-$$; sleep 600"
    job = lingering.submit("alice", script)

    def litter_of_now() -> set[Path]:
        return set(Path("/dev/shm").glob(f"{word}-*"))

    lingering.until("the litter", litter_of_now)
    before = litter_of_now()
    (starter,) = lingering.starters()
    lingering.kill(starter)
    lingering.until("its litter to go", lambda: not before & litter_of_now())
    lingering.remove("alice", job)
    lingering.until("all litter to go", lambda: not litter_of_now())
    lingering.until_nothing_is_left_of("alice")
