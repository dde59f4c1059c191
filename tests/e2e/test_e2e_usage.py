"""What a job has used is told to its last moment, whoever of it used it (docs/usage.md)."""

from __future__ import annotations

import json

import pytest

from tests.e2e.conftest import running_site

pytestmark = [pytest.mark.needs_root, pytest.mark.slow]

BURN_S = 0.3
BURN = f"/usr/bin/python3 -ISc 'import time\nwhile time.process_time() < {BURN_S}: pass'"
SCRIPTS = {
    "itself": f"exec {BURN}",
    "a child": BURN,
    "a daemon": f"(setsid {BURN}; touch done) & until [ -e done ]; do sleep 0.02; done",
}
# The switch's own part and the interpreters' starts, for each job, on a busy machine.
OTHERS_S = 0.3


@pytest.mark.parametrize("linger", [True, False], ids=["linger", "exec"])
def test_what_jobs_use_right_before_their_end_is_counted_once(linger: bool) -> None:
    with running_site(linger=linger) as jobs:
        for job in jobs.submit_many("alice", list(SCRIPTS.values())):
            assert jobs.done(job)["exit_code"] == 0
        logs = jobs.site.layout.pilot / "log"
        jobs.site.stop()
        row = json.loads((logs / "pilot-report.json").read_text())["outcomes"]["exited with 0"]
        assert row["jobs"] == len(SCRIPTS)
        assert BURN_S * len(SCRIPTS) <= row["cpu_s"] < (BURN_S + OTHERS_S) * len(SCRIPTS)
