"""The queue on disk: clusters, jobs, runs, claims and identities in one SQLite file.

A job that was acknowledged is a job on disk: write-ahead log, synchronous=FULL, one transaction a
change. Every run of a job stays in `runs`, whatever became of it. Claim ids (secrets) of open claims
are kept, so that a pool started anew can release them; the file is 0600 in a 0700 directory.

Synchronous on purpose: a commit was measured at 0.2 ms, less than handing it to a thread.
It decides nothing: which state follows which is `shadow_state`'s and the caller's matter.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attrs import evolve, frozen

from pool.model import Checkpoint, Cluster, Entry, Job, JobId, JobState, OutputFile, Run

SCHEMA_VERSION = 1

SCHEMA = """
CREATE TABLE clusters (
  number INTEGER PRIMARY KEY AUTOINCREMENT, uid INTEGER NOT NULL, owner TEXT NOT NULL, submitted_at REAL NOT NULL,
  identity TEXT, proxy_name TEXT, proxy_expires_at REAL);
CREATE TABLE inputs (
  cluster INTEGER NOT NULL, input_set INTEGER NOT NULL, position INTEGER NOT NULL,
  name BLOB NOT NULL, mode INTEGER NOT NULL, size INTEGER NOT NULL, key INTEGER,
  PRIMARY KEY (cluster, input_set, position)) WITHOUT ROWID;
CREATE TABLE jobs (
  cluster INTEGER NOT NULL REFERENCES clusters(number), proc INTEGER NOT NULL, ad BLOB NOT NULL,
  input_set INTEGER NOT NULL,
  state INTEGER NOT NULL, reason TEXT NOT NULL DEFAULT '', hold_code INTEGER NOT NULL DEFAULT 0,
  hold_subcode INTEGER NOT NULL DEFAULT 0, removing INTEGER NOT NULL DEFAULT 0, runs INTEGER NOT NULL DEFAULT 0,
  finished_at REAL, exit_status INTEGER, output_run INTEGER,
  PRIMARY KEY (cluster, proc)) WITHOUT ROWID;
CREATE TABLE runs (
  number INTEGER PRIMARY KEY AUTOINCREMENT, cluster INTEGER NOT NULL, proc INTEGER NOT NULL, startd TEXT NOT NULL,
  slot TEXT NOT NULL, claim TEXT NOT NULL, started_at REAL NOT NULL, executing_at REAL, ended_at REAL, outcome TEXT,
  reason TEXT NOT NULL DEFAULT '',
  exit_status INTEGER, pid INTEGER);
CREATE INDEX runs_of_job ON runs(cluster, proc);
CREATE TABLE outputs (
  run INTEGER NOT NULL, position INTEGER NOT NULL, name BLOB NOT NULL, mode INTEGER NOT NULL,
  size INTEGER NOT NULL, key INTEGER, PRIMARY KEY (run, position)) WITHOUT ROWID;
CREATE TABLE checkpoints (
  cluster INTEGER NOT NULL, proc INTEGER NOT NULL, number INTEGER NOT NULL, directory TEXT NOT NULL,
  PRIMARY KEY (cluster, proc)) WITHOUT ROWID;
CREATE TABLE checkpoint_files (
  cluster INTEGER NOT NULL, proc INTEGER NOT NULL, position INTEGER NOT NULL, name BLOB NOT NULL,
  mode INTEGER NOT NULL, size INTEGER NOT NULL, key INTEGER, PRIMARY KEY (cluster, proc, position)) WITHOUT ROWID;
CREATE TABLE claims (
  id TEXT PRIMARY KEY, slot TEXT NOT NULL, startd_address TEXT NOT NULL, lease_s REAL NOT NULL, run INTEGER);
CREATE TABLE owners (identity TEXT PRIMARY KEY, owner TEXT NOT NULL UNIQUE);
"""

_JOB_COLUMNS = (
    "j.cluster, j.proc, j.ad, j.input_set, j.state, j.reason, j.hold_code, j.hold_subcode, j.removing, j.runs,"
    " j.finished_at, j.exit_status, c.uid, c.owner, c.submitted_at, c.identity, c.proxy_name, c.proxy_expires_at"
)
_RUN_COLUMNS = (
    "number, cluster, proc, startd, slot, claim, started_at, executing_at, ended_at, outcome, reason, exit_status, pid"
)


class QueueTrouble(Exception):
    """The queue's file cannot be used: the text says why and what to do."""


@frozen
class SavedClaim:
    """A claim that an earlier life of the pool held; `id` is secret."""

    id: str
    slot: str
    startd_address: str
    lease_s: float
    run: int | None

    def __repr__(self) -> str:
        return f"SavedClaim({self.slot})"


class Queue:
    """All that outlives the pool's process. Wall-clock seconds throughout; every public method is one transaction."""

    def __init__(self, path: Path) -> None:
        """Open or create the file. Raises QueueTrouble when it is of another schema or not a queue."""
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        self._db = sqlite3.connect(path, isolation_level=None)
        try:
            self._prepare(path)
        except QueueTrouble:
            self._db.close()
            raise
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise QueueTrouble(
                f"{path} is not a usable queue ({error}); move it away to start with an empty one"
            ) from error

    def _prepare(self, path: Path) -> None:
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, SCHEMA_VERSION):
            raise QueueTrouble(
                f"{path} has schema {version}, this pool reads {SCHEMA_VERSION}; use the matching version of sailplane"
            )
        self._db.execute("PRAGMA journal_mode=WAL")
        if version == 0:
            self._db.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version={SCHEMA_VERSION}; COMMIT;")

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def _change(self, *, at_once: bool = True) -> Iterator[sqlite3.Connection]:
        """One transaction, on the disk at its end. Not ``at_once``: with the next one that is; until then only the
        host's end can undo it, not the pool's."""
        self._db.execute(f"PRAGMA synchronous={'FULL' if at_once else 'NORMAL'}")
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield self._db
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    # Submission

    def reserve_cluster(self, uid: int, owner: str, now: float) -> int:
        """A new cluster number, never given out again, even if the submission is broken off."""
        with self._change() as db:
            cursor = db.execute("INSERT INTO clusters(uid, owner, submitted_at) VALUES (?, ?, ?)", (uid, owner, now))
            return int(cursor.lastrowid or 0)

    def add_jobs(self, cluster: Cluster, sets: Sequence[Sequence[Entry]], jobs: Iterable[tuple[str, int]]) -> list[Job]:
        """Make the jobs of a reserved cluster real; when this returns they are on disk.

        Args:
            cluster: as reserved, with the proxy's facts filled in.
            sets: the lists of what travels in; a job names one by its index.
            jobs: (ad text, index of the input set), in order of proc.
        """
        made = [Job(JobId(cluster.number, proc), cluster, ad, chosen) for proc, (ad, chosen) in enumerate(jobs)]
        with self._change() as db:
            db.execute(
                "UPDATE clusters SET owner=?, submitted_at=?, identity=?, proxy_name=?, proxy_expires_at=?"
                " WHERE number=?",
                (
                    cluster.owner,
                    cluster.submitted_at,
                    cluster.identity,
                    cluster.proxy_name,
                    cluster.proxy_expires_at,
                    cluster.number,
                ),
            )
            db.executemany(
                "INSERT INTO inputs VALUES (?,?,?,?,?,?,?)",
                (
                    (cluster.number, s, p, os.fsencode(e.name), e.mode, e.size, e.key)
                    for s, held in enumerate(sets)
                    for p, e in enumerate(held)
                ),
            )
            db.executemany(
                "INSERT INTO jobs(cluster, proc, ad, input_set, state) VALUES (?,?,?,?,?)",
                ((job.id.cluster, job.id.proc, os.fsencode(job.ad), job.input_set, int(job.state)) for job in made),
            )
        return made

    def renew_proxy(self, cluster: int, expires_at: float) -> None:
        """A cluster's proxy was renewed, and ends later."""
        with self._change() as db:
            db.execute("UPDATE clusters SET proxy_expires_at=? WHERE number=?", (expires_at, cluster))

    def owner_of_identity(self, identity: str, wanted: str) -> str:
        """The owner's name that stands for this identity: `wanted`, or with a number when another identity has it."""
        with self._change() as db:
            row = db.execute("SELECT owner FROM owners WHERE identity=?", (identity,)).fetchone()
            if row is not None:
                return str(row[0])
            taken = {name for (name,) in db.execute("SELECT owner FROM owners")}
            name, number = wanted, 2
            while name in taken:
                name, number = f"{wanted}{number}", number + 1
            db.execute("INSERT INTO owners VALUES (?, ?)", (identity, name))
            return name

    # Jobs

    def active_jobs(self) -> list[Job]:
        """Idle, running and held jobs, in order of submission."""
        return self._jobs("WHERE j.state IN (1, 2, 5)", ())

    def job(self, job_id: JobId) -> Job | None:
        found = self._jobs("WHERE j.cluster=? AND j.proc=?", (job_id.cluster, job_id.proc))
        return found[0] if found else None

    def jobs_of_cluster(self, cluster: int) -> list[Job]:
        return self._jobs("WHERE j.cluster=?", (cluster,))

    def page(self, after: JobId, limit: int, *, uid: int | None, final: bool) -> list[Job]:
        """Up to `limit` jobs behind `after`; only those of `uid` unless None; finished ones only when `final`."""
        where, values = "WHERE (j.cluster, j.proc) > (?, ?)", [after.cluster, after.proc]
        if uid is not None:
            where, values = where + " AND c.uid=?", [*values, uid]
        if not final:
            where += " AND j.state IN (1, 2, 5)"
        return self._jobs(where, (*values, limit), " LIMIT ?")

    def _jobs(self, where: str, values: Sequence[object], end: str = "") -> list[Job]:
        source = "jobs j JOIN clusters c ON c.number=j.cluster"
        text = f"SELECT {_JOB_COLUMNS} FROM {source} {where} ORDER BY j.cluster, j.proc{end}"
        clusters: dict[int, Cluster] = {}
        return [_job(row, clusters) for row in self._db.execute(text, tuple(values))]

    def any_active(self, cluster: int) -> bool:
        row = self._db.execute(
            "SELECT 1 FROM jobs WHERE cluster=? AND state IN (1, 2, 5) LIMIT 1", (cluster,)
        ).fetchone()
        return row is not None

    def any_output(self, cluster: int) -> bool:
        row = self._db.execute(
            "SELECT 1 FROM jobs WHERE cluster=? AND output_run IS NOT NULL LIMIT 1", (cluster,)
        ).fetchone()
        return row is not None

    def any_unsettled(self, cluster: int, proc: int | None) -> bool:
        """Whether one of them may still change by itself: idle or running."""
        text = "SELECT 1 FROM jobs WHERE cluster=? AND (? IS NULL OR proc=?) AND state IN (1, 2) LIMIT 1"
        return self._db.execute(text, (cluster, proc, proc)).fetchone() is not None

    def inputs(self, job: Job) -> list[Entry]:
        rows = self._db.execute(
            "SELECT name, mode, size, key FROM inputs WHERE cluster=? AND input_set=? ORDER BY position",
            (job.id.cluster, job.input_set),
        )
        return [Entry(os.fsdecode(name), mode, size, key) for name, mode, size, key in rows]

    def update(self, job: Job) -> None:
        """Write a job's changeable columns."""
        with self._change() as db:
            _write_job(db, job)

    def set_ad(self, job_id: JobId, ad: str) -> None:
        """A job's ad with what the job itself has set; checked by then."""
        with self._change() as db:
            place = (os.fsencode(ad), job_id.cluster, job_id.proc)
            db.execute("UPDATE jobs SET ad = ? WHERE cluster = ? AND proc = ?", place)

    def forget_cluster(self, cluster: int) -> None:
        """Drop a reservation that never became jobs."""
        with self._change() as db:
            db.execute(
                "DELETE FROM clusters WHERE number=? AND NOT EXISTS (SELECT 1 FROM jobs WHERE cluster=?)",
                (cluster, cluster),
            )

    def empty_clusters(self) -> list[int]:
        """Reservations without jobs: submissions that a former life of the pool did not finish."""
        rows = self._db.execute("SELECT number FROM clusters WHERE number NOT IN (SELECT cluster FROM jobs)")
        return [number for (number,) in rows]

    def finished_before(self, moment: float) -> list[Job]:
        return self._jobs("WHERE j.state IN (3, 4) AND j.finished_at < ? AND j.output_run IS NOT NULL", (moment,))

    # Runs

    def start_run(
        self, job: Job, *, startd: str, slot: str, claim_public: str, claim_id: str, now: float
    ) -> tuple[Job, Run]:
        """The job is running, the run is in the history, the claim knows its run: before the startd hears of it."""
        running = evolve(job, state=JobState.RUNNING, reason="", hold_code=0, hold_subcode=0, runs=job.runs + 1)
        with self._change() as db:
            cursor = db.execute(
                "INSERT INTO runs(cluster, proc, startd, slot, claim, started_at) VALUES (?,?,?,?,?,?)",
                (job.id.cluster, job.id.proc, startd, slot, claim_public, now),
            )
            number = int(cursor.lastrowid or 0)
            _write_job(db, running)
            db.execute("UPDATE claims SET run=? WHERE id=?", (number, claim_id))
        return running, Run(number, job.id, startd, slot, claim_public, now)

    def note_run(self, number: int, *, executing_at: float | None = None, pid: int | None = None) -> None:
        """When a run began to execute, and as which process; nobody goes by it after the host's end."""
        with self._change(at_once=False) as db:
            db.execute(
                "UPDATE runs SET executing_at=coalesce(executing_at, ?), pid=coalesce(?, pid) WHERE number=?",
                (executing_at, pid, number),
            )

    def end_run(
        self,
        number: int,
        job: Job,
        *,
        outcome: str,
        reason: str,
        status: int | None,
        now: float,
        outputs: Sequence[OutputFile] | None,
    ) -> None:
        """The run's end, the job's new state and the list of what came back, in one transaction."""
        with self._change() as db:
            db.execute(
                "UPDATE runs SET ended_at=?, outcome=?, reason=?, exit_status=? WHERE number=?",
                (now, outcome, reason, status, number),
            )
            db.execute("UPDATE claims SET run=NULL WHERE run=?", (number,))
            _write_job(db, job)
            if outputs is not None:
                rows = ((number, p, os.fsencode(o.name), o.mode, o.size, o.key) for p, o in enumerate(outputs))
                db.executemany("INSERT OR REPLACE INTO outputs VALUES (?,?,?,?,?,?)", rows)
                db.execute(
                    "UPDATE jobs SET output_run=? WHERE cluster=? AND proc=?", (number, job.id.cluster, job.id.proc)
                )

    def runs(self, job_id: JobId) -> list[Run]:
        rows = self._db.execute(
            f"SELECT {_RUN_COLUMNS} FROM runs WHERE cluster=? AND proc=? ORDER BY number", (job_id.cluster, job_id.proc)
        )
        return [_run(row) for row in rows]

    def runs_page(self, cluster: int, proc: int | None, first: int, limit: int) -> list[Run]:
        rows = self._db.execute(
            f"SELECT {_RUN_COLUMNS} FROM runs WHERE cluster=? AND (? IS NULL OR proc=?)"
            " ORDER BY proc, number LIMIT ? OFFSET ?",
            (cluster, proc, proc, limit, first),
        )
        return [_run(row) for row in rows]

    def run(self, number: int) -> Run | None:
        row = self._db.execute(f"SELECT {_RUN_COLUMNS} FROM runs WHERE number=?", (number,)).fetchone()
        return None if row is None else _run(row)

    def open_runs(self) -> list[Run]:
        return [
            _run(row)
            for row in self._db.execute(f"SELECT {_RUN_COLUMNS} FROM runs WHERE ended_at IS NULL ORDER BY number")
        ]

    def last_runs(self, first: JobId, last: JobId) -> dict[JobId, Run]:
        """The newest run of every job between two ids (for lists)."""
        rows = self._db.execute(
            f"SELECT {_RUN_COLUMNS} FROM runs WHERE (cluster, proc) BETWEEN (?, ?) AND (?, ?) ORDER BY number",
            (first.cluster, first.proc, last.cluster, last.proc),
        )
        return {run.job: run for run in map(_run, rows)}

    # Output

    def outputs(self, job_id: JobId) -> tuple[int, list[OutputFile]] | None:
        """The run whose output is the job's, and the list; None while there is none."""
        row = self._db.execute(
            "SELECT output_run FROM jobs WHERE cluster=? AND proc=?", (job_id.cluster, job_id.proc)
        ).fetchone()
        if row is None or row[0] is None:
            return None
        rows = self._db.execute("SELECT name, mode, size, key FROM outputs WHERE run=? ORDER BY position", (row[0],))
        return int(row[0]), [OutputFile(os.fsdecode(name), mode, size, key) for name, mode, size, key in rows]

    def drop_outputs(self, job_id: JobId) -> None:
        with self._change() as db:
            db.execute(
                "DELETE FROM outputs WHERE run=(SELECT output_run FROM jobs WHERE cluster=? AND proc=?)",
                (job_id.cluster, job_id.proc),
            )
            db.execute("UPDATE jobs SET output_run=NULL WHERE cluster=? AND proc=?", (job_id.cluster, job_id.proc))

    # Checkpoints

    def checkpoint(self, job_id: JobId) -> Checkpoint | None:
        """The job's last one."""
        place = (job_id.cluster, job_id.proc)
        row = self._db.execute("SELECT number, directory FROM checkpoints WHERE cluster=? AND proc=?", place).fetchone()
        if row is None:
            return None
        rows = self._db.execute(
            "SELECT name, mode, size, key FROM checkpoint_files WHERE cluster=? AND proc=? ORDER BY position", place
        )
        files = tuple(OutputFile(os.fsdecode(name), mode, size, key) for name, mode, size, key in rows)
        return Checkpoint(row[0], row[1], files)

    def save_checkpoint(self, job_id: JobId, checkpoint: Checkpoint) -> None:
        """It replaces the one before."""
        place = (job_id.cluster, job_id.proc)
        with self._change() as db:
            db.execute("DELETE FROM checkpoint_files WHERE cluster=? AND proc=?", place)
            db.execute(
                "INSERT OR REPLACE INTO checkpoints VALUES (?,?,?,?)", (*place, checkpoint.number, checkpoint.directory)
            )
            rows = ((*place, p, os.fsencode(f.name), f.mode, f.size, f.key) for p, f in enumerate(checkpoint.files))
            db.executemany("INSERT INTO checkpoint_files VALUES (?,?,?,?,?,?,?)", rows)

    # Claims

    def save_claim(self, claim: SavedClaim) -> None:
        with self._change() as db:
            db.execute(
                "INSERT OR REPLACE INTO claims VALUES (?,?,?,?,?)",
                (claim.id, claim.slot, claim.startd_address, claim.lease_s, claim.run),
            )

    def drop_claim(self, claim_id: str) -> None:
        with self._change() as db:
            db.execute("DELETE FROM claims WHERE id=?", (claim_id,))

    def claims(self) -> list[SavedClaim]:
        return [
            SavedClaim(*row) for row in self._db.execute("SELECT id, slot, startd_address, lease_s, run FROM claims")
        ]


def _write_job(db: sqlite3.Connection, job: Job) -> None:
    db.execute(
        "UPDATE jobs SET state=?, reason=?, hold_code=?, hold_subcode=?, removing=?, runs=?, finished_at=?,"
        " exit_status=? WHERE cluster=? AND proc=?",
        (
            int(job.state),
            job.reason,
            job.hold_code,
            job.hold_subcode,
            int(job.removing),
            job.runs,
            job.finished_at,
            job.exit_status,
            job.id.cluster,
            job.id.proc,
        ),
    )


def _job(row: Sequence[Any], clusters: dict[int, Cluster]) -> Job:
    (number, proc, ad, chosen, state, reason, code, subcode, removing, runs, finished, status, *rest) = row
    cluster = clusters.get(number)
    if cluster is None:
        cluster = clusters[number] = Cluster(number, *rest)
    return Job(
        JobId(number, proc),
        cluster,
        os.fsdecode(ad),
        chosen,
        JobState(state),
        reason,
        code,
        subcode,
        bool(removing),
        runs,
        finished,
        status,
    )


def _run(row: Sequence[Any]) -> Run:
    number, cluster, proc, *rest = row
    return Run(number, JobId(cluster, proc), *rest)
