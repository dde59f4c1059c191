"""How jobs are stopped: with the signal that they want, and no longer than they and the slot agree."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.e2e.e2e_jobs import Jobs

pytestmark = [pytest.mark.needs_root, pytest.mark.timeout(300)]


def running(jobs: Jobs, script: str, **commands: str) -> str:
    mark = len(jobs.log("StarterLog"))
    job = jobs.submit("alice", script, **commands)
    jobs.until("the job to run", lambda: "-> running " in jobs.log("StarterLog")[mark:])
    return job


@pytest.mark.parametrize(
    ("wishes", "word"),
    [
        pytest.param({}, "TERM", marks=pytest.mark.slow),
        pytest.param({"kill_sig": "SIGINT"}, "INT", marks=pytest.mark.slow),
        ({"remove_kill_sig": "SIGUSR1", "hold_kill_sig": "SIGINT"}, "USR1"),
    ],
)
def test_a_removed_job_hears_the_signal_that_it_wants(lingering: Jobs, wishes: dict[str, str], word: str) -> None:
    heard = lingering.user("alice").home / f"heard-{word}"
    traps = "; ".join(f"trap 'echo {each} >{heard}; exit 0' {each}" for each in ("TERM", "INT", "USR1"))
    job = running(lingering, f"{traps}; touch {heard}.ready; sleep 600 & wait", **wishes)
    lingering.until("its traps", lambda: (heard.parent / f"{heard.name}.ready").exists())
    for pid in (lingering.spawner(), *lingering.starters()):
        assert len(list(Path(f"/proc/{pid}/task").iterdir())) == 1  # neither has threads
    lingering.remove("alice", job)
    assert heard.read_text() == f"{word}\n"
    lingering.until_nothing_is_left_of("alice")


@pytest.mark.slow
def test_a_job_that_will_not_go_is_killed_when_the_shorter_time_is_over(lingering: Jobs) -> None:
    """The job allows itself 1 s, the slot would give 3."""
    job = running(lingering, "trap '' TERM; while :; do sleep 1; done", job_max_vacate_time="1")
    before_s = time.monotonic()
    lingering.remove("alice", job)
    assert time.monotonic() - before_s >= 1.0
    lingering.until_nothing_is_left_of("alice")
