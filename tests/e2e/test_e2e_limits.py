"""Jobs that take too much: held with what was measured, ended whole, and nobody else's trouble."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from demo.site import Site
from tests.e2e.conftest import STARTD_KNOBS
from tests.e2e.e2e_jobs import Jobs

pytestmark = [pytest.mark.needs_root, pytest.mark.timeout(300)]

KNOBS = {"SAILPLANE_LIMITS_INTERVAL": 0.5, "SAILPLANE_DISK_INTERVAL": 0.5, "SAILPLANE_MAX_PROCESSES": 40}


@pytest.fixture(scope="module")
def strict() -> Iterator[Jobs]:
    with Site.open("test", linger=True) as site:
        site.start_pool()
        site.start_startd(**STARTD_KNOBS | KNOBS)
        yield Jobs(site)
        site.stop()
        assert site.left == []


def held(jobs: Jobs, script: str, **commands: str) -> tuple[int, int, str]:
    """Codes and reason of a job that must be held; what ran of it is gone then."""
    job = jobs.submit("alice", script, **commands)
    row = jobs.wait_for(job, "held", "completed")
    assert row["state"] == "held", row
    jobs.until_nothing_is_left_of("alice")
    return row["hold_code"], row["hold_subcode"], row["reason"]


def test_memory(strict: Jobs) -> None:
    grow = 'exec /usr/bin/python3 -c "b = bytearray(150 * 2**20); import time; time.sleep(600)"'
    code, subcode, reason = held(strict, grow, request_memory="64")
    assert (code, subcode) == (34, 102)
    assert "its slot has 128 MB" in reason  # asked for 64, and slots are cut by the 128
    used = int(reason.partition(" used ")[2].split()[0])
    assert 128 < used <= 250  # the first look that is too much may come while it grows


@pytest.mark.slow
def test_disk_and_the_call_that_measures_it_is_told_apart(strict: Jobs) -> None:
    before = len(strict.site.switch_log())
    code, subcode, reason = held(strict, "dd if=/dev/zero of=big bs=1M count=30 2>&-; sleep 600", request_disk="10240")
    assert (code, subcode) == (34, 104)
    assert "its slot has 10 MB" in reason
    assert "request_disk" in reason
    calls = [record for record in strict.site.switch_log()[before:] if record["event"] == "decision"]
    assert any(str(record["id"]).endswith("#measure") for record in calls)


def test_a_fork_bomb(strict: Jobs) -> None:
    """Bounded in the test, too: a bug here must not take the machine."""
    code, subcode, reason = held(strict, "i=0; while [ $i -lt 120 ]; do sleep 600 & i=$((i + 1)); done; wait")
    assert (code, subcode) == (34, 105)
    assert "40 are allowed" in reason


@pytest.mark.slow
def test_one_users_bomb_does_not_throttle_the_same_users_job_in_another_slot(strict: Jobs) -> None:
    mark = len(strict.log("StarterLog"))
    bomb = strict.submit("alice", "i=0; while [ $i -lt 120 ]; do sleep 600 & i=$((i + 1)); done; wait")
    other = strict.submit("alice", "i=0; while [ $i -lt 30 ]; do sleep 0.1 & wait; i=$((i + 1)); done; echo all")
    assert strict.done(other)["exit_code"] == 0
    assert strict.fetch("alice", other)["out"] == b"all\n"
    strict.wait_for(bomb, "held")
    assert "Traceback" not in strict.log("StarterLog")[mark:]
    strict.until_nothing_is_left_of("alice")


def test_a_sigkill_of_the_jobs_own_is_no_matter_of_memory(strict: Jobs) -> None:
    job = strict.submit("bob", "kill -9 $$")
    assert strict.done(job)["exit_signal"] == 9
