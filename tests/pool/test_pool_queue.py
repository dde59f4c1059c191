"""The queue on disk: what was acknowledged is there, a run is never forgotten, a foreign file is refused."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import evolve

from pool.model import Checkpoint, Cluster, Entry, Job, JobId, JobState, OutputFile
from pool.queue import Queue, QueueTrouble, SavedClaim


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Queue]:
    made = Queue(tmp_path / "q")
    yield made
    made.close()


def two_jobs(queue: Queue, uid: int = 7) -> list[Job]:
    number = queue.reserve_cluster(uid, "alice", 100.0)
    cluster = Cluster(number, uid, "alice", 100.0, "/CN=Alice", "x509up", 5000.0)
    entries = [Entry("d", 0o755), Entry("d/\udcff", 0o644, 3, 0), Entry("run", 0o755, 5, 1)]
    return queue.add_jobs(cluster, [entries, []], [("A = 1\n", 0), ("A = 2\n", 1)])


def test_jobs_and_their_inputs_come_back(queue: Queue) -> None:
    jobs = two_jobs(queue)
    assert queue.active_jobs() == jobs
    assert [entry.name for entry in queue.inputs(jobs[0])] == ["d", "d/\udcff", "run"]
    assert queue.inputs(jobs[1]) == []
    assert queue.job(jobs[1].id) == jobs[1]
    assert queue.job(JobId(9, 9)) is None


def test_the_file_is_private_and_survives_another_process(tmp_path: Path) -> None:
    queue = Queue(tmp_path / "q")
    jobs = two_jobs(queue)
    assert stat.S_IMODE((tmp_path / "q").stat().st_mode) == 0o600
    # What a process killed now would leave: the files as they are, read by somebody else.
    other = Queue(tmp_path / "q")
    assert other.active_jobs() == jobs
    other.close()
    queue.close()


def test_a_number_is_never_given_twice(queue: Queue) -> None:
    first = queue.reserve_cluster(1, "a", 0.0)
    assert queue.empty_clusters() == [first]
    queue.forget_cluster(first)
    assert queue.reserve_cluster(1, "a", 0.0) == first + 1


def test_a_cluster_with_jobs_is_not_forgotten(queue: Queue) -> None:
    jobs = two_jobs(queue)
    queue.forget_cluster(jobs[0].id.cluster)
    assert queue.active_jobs() == jobs


def test_only_what_nobody_goes_by_later_does_not_wait_for_the_disk(queue: Queue) -> None:
    def synchronous() -> int:
        return int(queue._db.execute("PRAGMA synchronous").fetchone()[0])

    job, _ = two_jobs(queue)
    _, run = queue.start_run(job, startd="x", slot="s", claim_public="c", claim_id="i", now=1.0)
    assert synchronous() == 2
    queue.note_run(run.number, executing_at=2.0)
    assert synchronous() == 1
    queue.update(job)
    assert synchronous() == 2


def test_every_run_stays_in_the_history(queue: Queue) -> None:
    job, _ = two_jobs(queue)
    claim = SavedClaim("secret", "slot1@x", "<a:1>", 60.0, None)
    queue.save_claim(claim)
    said = {"startd": "x", "slot": "slot1_1@x", "claim_public": "c#...", "claim_id": "secret"}
    running, first = queue.start_run(job, **said, now=1.0)  # type: ignore[arg-type]
    assert (running.state, running.runs) == (JobState.RUNNING, 1)
    assert [saved.run for saved in queue.claims()] == [first.number]
    queue.note_run(first.number, executing_at=2.0)
    queue.note_run(first.number, pid=42)
    assert [run.number for run in queue.open_runs()] == [first.number]
    idle = evolve(running, state=JobState.IDLE)
    queue.end_run(first.number, idle, outcome="lost", reason="gone", status=None, now=3.0, outputs=None)
    again, second = queue.start_run(idle, **said, now=4.0)  # type: ignore[arg-type]
    done = evolve(again, state=JobState.COMPLETED, exit_status=0, finished_at=5.0)
    files = [OutputFile("o", 0o644, 1, 0), OutputFile("d", 0o755, 0, None)]
    queue.end_run(second.number, done, outcome="completed", reason="", status=0, now=5.0, outputs=files)
    runs = queue.runs(job.id)
    assert [(run.outcome, run.executing_at, run.pid) for run in runs] == [("lost", 2.0, 42), ("completed", None, None)]
    assert queue.outputs(job.id) == (second.number, files)
    assert queue.last_runs(job.id, job.id) == {job.id: runs[1]}
    assert queue.open_runs() == []
    assert "secret" not in repr(queue.claims())


def test_pages_are_in_order_and_of_one_user(queue: Queue) -> None:
    mine, others = two_jobs(queue, uid=7), two_jobs(queue, uid=8)
    assert queue.page(JobId(0, -1), 3, uid=None, final=False) == [*mine, others[0]]
    assert queue.page(mine[1].id, 3, uid=None, final=False) == others
    assert queue.page(JobId(0, -1), 9, uid=8, final=False) == others
    queue.update(evolve(mine[0], state=JobState.COMPLETED))
    assert queue.page(JobId(0, -1), 9, uid=7, final=False) == [mine[1]]
    assert len(queue.page(JobId(0, -1), 9, uid=7, final=True)) == 2


def test_an_owner_stands_for_one_identity(queue: Queue) -> None:
    assert queue.owner_of_identity("/CN=Alice", "alice") == "alice"
    assert queue.owner_of_identity("/O=else/CN=Alice", "alice") == "alice2"
    assert queue.owner_of_identity("/CN=Alice", "alice") == "alice"


def test_a_failed_change_changes_nothing(queue: Queue) -> None:
    jobs = two_jobs(queue)
    with pytest.raises(sqlite3.Error):
        queue.add_jobs(jobs[0].cluster, [[]], [("A = 1\n", 0)])
    assert queue.active_jobs() == jobs


@pytest.mark.parametrize("content", [b"not a database at all, but long enough to be read as a header" * 20, None])
def test_a_foreign_file_is_refused_in_words(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "q"
    if content is None:
        with sqlite3.connect(path) as db:
            db.execute("PRAGMA user_version=99")
        db.close()
    else:
        path.write_bytes(content)
    before = path.read_bytes()
    with pytest.raises(QueueTrouble, match=r"schema 99|move it away"):
        Queue(path)
    assert path.read_bytes() == before


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    os.symlink(tmp_path / "other", tmp_path / "q")
    with pytest.raises(OSError, match="symbolic"):
        Queue(tmp_path / "q")


def test_a_checkpoint_replaces_the_one_before_and_is_its_jobs_alone(queue: Queue) -> None:
    one, other = two_jobs(queue)
    assert queue.checkpoint(one.id) is None
    queue.save_checkpoint(one.id, Checkpoint(0, "0.0", (OutputFile("a", 0o644, 1, 0), OutputFile("b", 0o644, 1, 1))))
    last = Checkpoint(1, "0.1", (OutputFile("d", 0o755, 0, None), OutputFile("d/\udcff", 0o644, 3, 1)))
    queue.save_checkpoint(one.id, last)
    assert queue.checkpoint(one.id) == last
    assert queue.checkpoint(other.id) is None
