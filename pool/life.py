"""One run between the queue and its shadow: what it is made of, and when its verdict may be written down."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from attrs import evolve, frozen

from cedar.commands import HoldCode
from cedar.filetransfer import TransferLimits
from pilot import logs
from pool import jobad
from pool.ads import text_of
from pool.adstore import AdStore
from pool.claims import Claim, ClaimClient
from pool.macros import filled
from pool.model import Checkpoint, Entry, Job, JobState, Outcome, Run
from pool.queue import Queue
from pool.remoteio import RemoteIO
from pool.shadow import Shadow
from pool.shadow_state import Finish, OutputStored
from pool.spool import Spool
from pool.transfers import Transfer, TransferServer

# Holds of a job that has yet to be stopped for them.
_BY_THE_SHADOW = (HoldCode.USER_REQUEST, HoldCode.JOB_DURATION_EXCEEDED, HoldCode.JOB_EXECUTE_EXCEEDED)


@frozen
class Parts:
    """What the scheduler and its runs work with."""

    queue: Queue
    spool: Spool
    store: AdStore
    client: ClaimClient
    transfers: TransferServer
    facts: jobad.PoolFacts
    limits: TransferLimits
    lease_s: float
    short_version: str
    tokens_dir: Path | None = None


class Life:
    """One run. `settle` writes a verdict down: at once where the job is known to be over, else after `conclude`."""

    def __init__(
        self,
        parts: Parts,
        claim: Claim,
        job: Job,
        run: Run,
        *,
        ad: Any,
        entries: list[Entry],
        settle: Callable[[Finish, Transfer], None],
        recovered: bool = False,
    ) -> None:
        self._queue = parts.queue
        self._run = run
        self._settle = settle
        self._job = job
        self._late: Finish | None = None
        checkpoint = parts.queue.checkpoint(job.id)
        queued = filled(jobad.queue_ad(ad, job, entries, parts.facts), claim.ad)
        activated = jobad.activation_ad(
            queued, parts.facts, checkpoint=None if checkpoint is None else checkpoint.number
        )
        self.transfer = Transfer(
            spool=parts.spool,
            cluster=job.id.cluster,
            run=run.number,
            entries=entries,
            executable=jobad.executable_name(ad),
            proxy_name=job.cluster.proxy_name,
            limits=parts.limits,
            on_output=self._stored,
            urls=tuple(filter(jobad.is_url, jobad.split_list(text_of(ad, "TransferInput")))),
            proc=job.id.proc,
            checkpoint=checkpoint,
            on_checkpoint=self._checkpointed,
        )
        info = jobad.job_info_ad(activated, self.transfer.key)
        self._remote = remote = RemoteIO(info, self.transfer, job.owner, parts.tokens_dir)
        self.transfer.beside = remote.add_outputs
        self.shadow = Shadow(
            parts.client,
            claim,
            activation_ad=activated,
            info_ad=info,
            transfer=self.transfer,
            remote=remote,
            lease_s=parts.lease_s,
            version=parts.short_version,
            finish=self._finish,
            note=self._note,
            recovered=recovered,
        )

    def _stored(self) -> None:
        self.shadow.tell(OutputStored())

    def _checkpointed(self, checkpoint: Checkpoint) -> None:
        self._queue.save_checkpoint(self._job.id, checkpoint)
        self.shadow.leg_began()

    def _note(self, executing_at: float | None, pid: int | None) -> None:
        self._queue.note_run(self._run.number, executing_at=executing_at, pid=pid)

    def _finish(self, finish: Finish) -> None:
        """A lost job is settled only when its claim is: until then it may still run."""
        asked = finish.outcome is Outcome.REMOVED or finish.hold_code in _BY_THE_SHADOW
        if finish.outcome in (Outcome.LOST, Outcome.REQUEUED) or (asked and finish.status is None):
            self._late = finish
        else:
            self._write_down(finish)

    def conclude(self) -> None:
        """The claim's fate is certain: nothing of this run can run any more."""
        if self._late is not None:
            self._write_down(self._late)

    def _write_down(self, finish: Finish) -> None:
        """The verdict, and what the job has set in its ad: its next run finds it there."""
        if self._remote.changed:
            try:
                self._queue.set_ad(self._job.id, jobad.with_attributes(self._job.ad, self._remote.changed))
            except jobad.BadJob as bad:
                logs.get("shadow", job=str(self._job.id)).info("what the job set in its ad is not kept: %s", bad)
        self._settle(finish, self.transfer)


def after_run(job: Job, finish: Finish, now: float) -> Job:
    """The job as a run's verdict leaves it. Pure."""
    ended = evolve(job, reason=finish.reason, hold_code=finish.hold_code, hold_subcode=finish.hold_subcode)
    match finish.outcome:
        case Outcome.COMPLETED if not job.removing:
            return evolve(ended, state=JobState.COMPLETED, exit_status=finish.status, finished_at=now)
        case Outcome.HELD if not job.removing:
            return evolve(ended, state=JobState.HELD)
        case Outcome.LOST | Outcome.REQUEUED if not job.removing:
            return evolve(ended, state=JobState.IDLE)
        case _:
            return evolve(ended, state=JobState.REMOVED, removing=False, reason="removed", finished_at=now)
