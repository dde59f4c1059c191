"""A job that the kernel kills for want of memory, told from one that is killed by SIGKILL otherwise."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.e2e.e2e_jobs import Jobs

pytestmark = [pytest.mark.needs_root, pytest.mark.slow, pytest.mark.timeout(300)]

LIMIT_BYTES = 64 << 20
GREEDY = "touch {ready}; while [ ! -e {go} ]; do sleep 0.1; done; exec /usr/bin/python3 -c 'bytearray({size} << 20)'"


@pytest.fixture
def small() -> Iterator[Path]:
    """A group (cgroup v1) in which memory is short."""
    path = Path("/sys/fs/cgroup/memory", f"sptest-{secrets.token_hex(4)}")
    try:
        path.mkdir()
        (path / "memory.limit_in_bytes").write_text(str(LIMIT_BYTES))
    except OSError as error:
        pytest.skip(f"no memory cgroup (v1) can be made here: {error.strerror}")
    yield path
    with suppress(OSError):
        path.rmdir()


def test_a_job_that_was_within_its_memory_is_not_to_blame(lingering: Jobs, small: Path) -> None:
    """Somebody else's limit: the job has 1 GB of its own, and goes back to idle."""
    jobs = lingering
    home = jobs.user("alice").home
    ready, go = home / f"ready-{small.name}", home / f"go-{small.name}"
    mark = len(jobs.log("StarterLog"))
    job = jobs.submit("alice", GREEDY.format(ready=ready, go=go, size=200), request_memory="1024")
    jobs.until("the job", ready.exists)
    for pid in jobs.processes("alice"):
        (small / "cgroup.procs").write_text(str(pid))
    ready.unlink()
    jobs.site.put(jobs.user("alice"), go.name, b"")
    jobs.until("its end", lambda: "for want of memory" in jobs.log("StarterLog")[mark:])
    assert "of its 1024 MB" in jobs.log("StarterLog")[mark:]
    assert jobs.done(job)["exit_code"] == 0  # the second run is not in that group
    outcomes = [run["outcome"] for run in jobs.runs(job)]
    assert outcomes == ["requeued", "completed"]
    jobs.until_nothing_is_left_of("alice")
