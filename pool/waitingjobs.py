"""The jobs that wait for a slot: what matching sees of them, and how long each has to be patient."""

from __future__ import annotations

import time
from collections.abc import Callable

import attrs
import trio

from cedar import classads
from pool import jobad
from pool.ads import value_of
from pool.matching import Waiting, waiting
from pool.model import Job, JobId
from pool.queue import Queue
from pool.retry import Patience


@attrs.define(eq=False)
class WaitingJobs:
    """Idle jobs that nobody has taken. Patience outlives a job's runs."""

    queue: Queue
    facts: jobad.PoolFacts
    _jobs: dict[JobId, Waiting] = attrs.field(factory=dict)
    _patience: dict[JobId, Patience] = attrs.field(factory=dict)

    def __bool__(self) -> bool:
        return bool(self._jobs)

    def __contains__(self, job_id: JobId) -> bool:
        return job_id in self._jobs

    def add(self, job: Job) -> None:
        """It waits, with what the queue says of it now."""
        ad = jobad.queue_ad(classads.parse_old(job.ad), job, self.queue.inputs(job), self.facts)
        self._jobs[job.id] = waiting(job.id, ad)

    def take(self, job_id: JobId) -> None:
        """It waits no more; one that does not wait is no error."""
        self._jobs.pop(job_id, None)

    def ready(self, expired: Callable[[JobId, int], None]) -> list[Waiting]:
        """Those that may run now. One whose proxy has ended is taken out, and ``expired`` told when that was."""
        now = time.time()
        ready = []
        for each in list(self._jobs.values()):
            patience = self._patience.get(each.id)
            if patience is not None and not patience.over(trio.current_time()):
                continue
            end = value_of(each.ad, "x509UserProxyExpiration")
            if isinstance(end, int) and end <= now:
                self.take(each.id)
                expired(each.id, end)
                continue
            ready.append(each)
        return ready

    def failed(self, job_id: JobId, *, run_s: float) -> Patience:
        """A run came to nothing: the patience that the job has to have."""
        patience = Patience.after(self._patience.get(job_id), run_s=run_s, now=trio.current_time())
        self._patience[job_id] = patience
        return patience

    def forget_failures(self, job_id: JobId) -> None:
        """The job is over, held, or released by its user."""
        self._patience.pop(job_id, None)
