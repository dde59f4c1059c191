"""The jobs that wait for a slot: what matching sees of them, and how long each has to be patient."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Generator, Iterable
from typing import Any

import attrs
import trio

from cedar import classads
from pool import jobad
from pool.matching import Lines, Waiting, prepare
from pool.model import Job, JobId, JobState
from pool.queue import Queue
from pool.retry import Patience


@attrs.define(eq=False)
class WaitingJobs:
    """Idle jobs that nobody has taken. Patience outlives a job's runs."""

    queue: Queue
    facts: jobad.PoolFacts
    _lines: Lines = attrs.field(factory=Lines)
    # They wait as well, but not for the next slot.
    _later: set[JobId] = attrs.field(factory=set)
    _proxy_ends: list[tuple[int, JobId]] = attrs.field(factory=list)
    _patience: dict[JobId, Patience] = attrs.field(factory=dict)

    def __bool__(self) -> bool:
        return bool(self._lines or self._later)

    def __contains__(self, job_id: JobId) -> bool:
        return job_id in self._lines or job_id in self._later

    def add(self, job: Job) -> None:
        """It waits, with what the queue says of it now."""
        if not self._may_run(job.id):
            self._lines.take(job.id)
            self._later.add(job.id)
            return
        self._later.discard(job.id)
        new = prepare(job.id, self._ad(job))
        self._lines.add(new)
        if new.job.proxy_end is not None:
            heapq.heappush(self._proxy_ends, (new.job.proxy_end, job.id))

    def add_idle(self, job_ids: Iterable[JobId], taken: Callable[[JobId], bool]) -> Generator[None, None, None]:
        """Those of them that are idle, one a step; much may have become of one before its turn: ``taken`` by a run."""
        for job_id in job_ids:
            job = self.queue.job(job_id)
            if job is not None and job.state is JobState.IDLE and not taken(job_id):
                self.add(job)
            yield

    def take(self, job_id: JobId) -> None:
        """It waits no more; one that does not wait is no error."""
        self._lines.take(job_id)
        self._later.discard(job_id)

    def look_at_clocks(self, expired: Callable[[JobId, int], None]) -> None:
        """Whose patience is over may run. Whose proxy has ended is taken out, and ``expired`` told when that was."""
        for job_id in [each for each in self._later if self._may_run(each)]:
            job = self.queue.job(job_id)
            self._later.discard(job_id)
            if job is not None:
                self.add(job)
        now = time.time()
        while self._proxy_ends and self._proxy_ends[0][0] <= now:
            end, job_id = heapq.heappop(self._proxy_ends)
            waiting = self._lines.waiting(job_id)
            if waiting is None or waiting.proxy_end != end:  # it was renewed meanwhile
                continue
            job = self.queue.job(job_id)
            if job is not None and int(job.cluster.proxy_expires_at or 0) > now:  # it was, and has not had its turn yet
                self.add(job)
                continue
            self.take(job_id)
            expired(job_id, end)

    def first_for(self, slot: Any) -> Generator[None, None, Waiting | None]:
        """As ``Lines.first_for``."""
        return self._lines.first_for(slot, self.ad_of)

    def may_go(self, job_id: JobId) -> bool:
        """Whether one that a search has found may have the slot still: it waits, and has not failed meanwhile."""
        return job_id in self._lines

    def ad_of(self, job_id: JobId) -> Any:
        """What the queue says of a job, as slots see it; None where there is no such job."""
        job = self.queue.job(job_id)
        return None if job is None else self._ad(job)

    def failed(self, job_id: JobId, *, run_s: float) -> Patience:
        """A run came to nothing: the patience that the job has to have."""
        patience = Patience.after(self._patience.get(job_id), run_s=run_s, now=trio.current_time())
        self._patience[job_id] = patience
        return patience

    def forget_failures(self, job_id: JobId) -> None:
        """The job is over, held, or released by its user."""
        self._patience.pop(job_id, None)

    def _may_run(self, job_id: JobId) -> bool:
        patience = self._patience.get(job_id)
        return patience is None or patience.over(trio.current_time())

    def _ad(self, job: Job) -> Any:
        return jobad.queue_ad(classads.parse_old(job.ad), job, self.queue.inputs(job), self.facts)
