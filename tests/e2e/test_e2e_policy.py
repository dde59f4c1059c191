"""The node's policy on real jobs of the embedded pool: held with its words, preempted and run again, suspended."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.site import Site
from tests.e2e.conftest import STARTD_KNOBS
from tests.e2e.e2e_jobs import Jobs

pytestmark = [pytest.mark.needs_root, pytest.mark.timeout(300)]

# A job says itself what the policy is to do with it.
POLICY = {
    "POLLING_INTERVAL": 0.5,
    "PREEMPT": 'TotalJobRunTime >= 1 && (TARGET.Wish =?= "hold" || TARGET.Wish =?= "preempt" && NumJobStarts < 2)',
    "WANT_HOLD": 'TARGET.Wish =?= "hold"',
    "WANT_HOLD_REASON": 'strcat("not for jobs of ", TARGET.Owner)',
    "WANT_HOLD_SUBCODE": 42,
    "WANT_SUSPEND": 'TARGET.Wish =?= "suspend"',
    "SUSPEND": "TotalJobRunTime >= 1 && TotalJobSuspendTime == 0",
    "CONTINUE": "time() - EnteredCurrentActivity >= 6",
}


@pytest.fixture(scope="module")
def choosy() -> Iterator[Jobs]:
    with Site.open("test", linger=True) as site:
        site.start_pool()
        site.start_startd(**STARTD_KNOBS | POLICY)
        yield Jobs(site)
        site.stop()
        assert site.left == []


@pytest.mark.slow
def test_want_hold_preempt_and_suspend(choosy: Jobs) -> None:
    jobs = choosy
    wishes = ("hold", "preempt", "suspend")
    hold, preempt, suspend = (
        jobs.submit("alice", f"echo {wish}; sleep 4", **{"+Wish": f'"{wish}"'}) for wish in wishes
    )
    row = jobs.wait_for(hold, "held")
    assert (row["hold_code"], row["hold_subcode"]) == (21, 42)
    assert "not for jobs of" in row["reason"]
    jobs.wait_for(suspend, "suspended")
    assert {state(pid) for pid in jobs.processes("alice") if command(pid).startswith("sleep")} >= {"T"}
    assert jobs.done(suspend)["exit_code"] == 0
    assert jobs.done(preempt)["exit_code"] == 0
    assert [run["outcome"] for run in jobs.runs(preempt)] == ["requeued", "completed"]
    jobs.remove("alice", hold)
    jobs.until_nothing_is_left_of("alice")


def state(pid: int) -> str:
    """X of one that is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return "X"


def command(pid: int) -> str:
    """Empty of one that is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""
