"""Jobs that checkpoint themselves, and start again elsewhere from what was sent; in place: in the list of jobs."""

from __future__ import annotations

import pytest

from tests.e2e.conftest import STARTD_KNOBS
from tests.e2e.e2e_jobs import Jobs

pytestmark = [pytest.mark.needs_root, pytest.mark.timeout(300)]

# Counts its legs in a file that is its checkpoint, and remembers by another one whether the sandbox is the same.
COUNTING = """
n=$(cat state 2>/dev/null || echo 0); n=$((n + 1)); echo $n > state
echo "leg $n $(test -e here && echo same || echo new)"; touch here
[ $n -ge 3 ] || exit 85
echo done
"""
WISHES = {"checkpoint_exit_code": "85", "transfer_checkpoint_files": "state", "transfer_output_files": "state"}


# The second leg hangs where the first one ran.
HANGING = COUNTING.replace("touch here", "[ -e here ] && [ $n = 2 ] && sleep 600; touch here")


@pytest.mark.slow
def test_a_killed_starters_job_starts_elsewhere_from_its_checkpoint(lingering: Jobs) -> None:
    jobs = lingering
    mark = len(jobs.log("StarterLog"))
    job = jobs.submit("alice", HANGING, **WISHES)
    jobs.until("the second leg", lambda: jobs.log("StarterLog")[mark:].count("-> running ") == 2)
    (starter,) = jobs.starters()
    jobs.kill(starter)
    assert jobs.done(job)["exit_code"] == 0
    files = jobs.fetch("alice", job)
    assert files["out"].decode().splitlines() == ["leg 1 new", "leg 2 new", "leg 3 same", "done"]
    assert len(jobs.runs(job)) == 2
    jobs.until_nothing_is_left_of("alice")


@pytest.mark.slow
def test_a_checkpoint_file_that_is_not_there_holds_the_job(lingering: Jobs) -> None:
    wishes = {**WISHES, "transfer_checkpoint_files": "state, missing"}
    job = lingering.submit("bob", COUNTING, **wishes)
    row = lingering.wait_for(job, "held")
    assert (row["hold_code"], row["hold_subcode"]) == (36, -1)
    assert "missing" in row["reason"]
    lingering.until_nothing_is_left_of("bob")


@pytest.mark.slow
def test_a_job_whose_claim_takes_no_other_starts_each_leg_anew_from_its_checkpoint(fresh: Jobs) -> None:
    jobs = fresh
    startd = jobs.site.startd
    assert startd is not None
    jobs.site.startd = None
    startd.stop(deadline_s=60.0)
    jobs.site.start_startd(**STARTD_KNOBS | {"CLAIM_WORKLIFE": 0})
    job = jobs.submit("alice", COUNTING, **WISHES)
    assert jobs.done(job)["exit_code"] == 0
    assert jobs.fetch("alice", job)["out"].decode().splitlines() == ["leg 1 new", "leg 2 new", "leg 3 new", "done"]
    assert len(jobs.runs(job)) == 3
    jobs.until_nothing_is_left_of("alice")
