"""Files of jobs that nobody needs any more: removed when a job is over, and what nobody fetches after a while."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import attrs
import trio

from pool.model import Job, JobState
from pool.queue import Queue
from pool.spool import Spool

# Spool of a finished job that nobody fetched: ten days, as stock pools keep spooled jobs.
KEEP_FINISHED_S = 10 * 86400.0
TIDY_INTERVAL_S = 60.0


@attrs.define(eq=False)
class Tidying:
    """``start`` begins a task with its arguments."""

    queue: Queue
    spool: Spool
    start: Callable[..., None]

    def finished(self, job: Job) -> None:
        """What came back of a removed job goes, and inputs once the whole cluster is over."""
        if job.state is JobState.REMOVED and (found := self.queue.outputs(job.id)) is not None:
            self.queue.drop_outputs(job.id)
            self._in_thread(self.spool.remove_outputs, job.id.cluster, found[0])
        if not self.queue.any_active(job.id.cluster):
            keep = self.queue.any_output(job.id.cluster)
            self._in_thread(self.spool.remove_inputs if keep else self.spool.remove_cluster, job.id.cluster)

    def outputs_unwanted(self, cluster: int, run: int) -> None:
        """A run's end left nothing that anybody fetches."""
        self._in_thread(self.spool.remove_outputs, cluster, run)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await trio.sleep(TIDY_INTERVAL_S)
            for job in self.queue.finished_before(time.time() - KEEP_FINISHED_S):
                found = self.queue.outputs(job.id)
                self.queue.drop_outputs(job.id)
                if found is not None:
                    await trio.to_thread.run_sync(self.spool.remove_outputs, job.id.cluster, found[0])

    def _in_thread(self, remove: Callable[..., Any], *args: int) -> None:
        self.start(trio.to_thread.run_sync, remove, *args)
