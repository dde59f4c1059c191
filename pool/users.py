"""The users' door: a Unix socket, known by SO_PEERCRED, one conversation a connection.

Who may do what is decided here: everybody may list, only a job's owner (or root, or the pool's own account) may see
its details, remove it or fetch what came back. What a job is and what becomes of it is the scheduler's.
"""

from __future__ import annotations

import os
import pwd
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import trio

from pilot import logs, rpc
from pool import messages as m
from pool.ads import text_of
from pool.jobad import BadJob
from pool.model import FINAL, Job, JobId, JobState, Run
from pool.renewal import Renewal
from pool.scheduler import Scheduler
from pool.slotrows import slot_rows
from pool.submission import Rejected, Rules, Submission

# One account's conversations at a time: shells and scripts of a person, not a flood.
MAX_PER_UID = 64
MAX_CONVERSATIONS = 512
# An idle conversation is closed: a submission that stands still holds files of ours.
IDLE_S = 600.0
LONGEST_WAIT_S = 60.0
# Files of a fetch that are opened in one page.
FETCH_FILES = 60
FETCH_ENTRIES = 200
# What has been done to a job.
_DONE = {
    "hold": "held", "release": "released", "vacate": "vacated", "suspend": "suspended", "continue": "continued",
}  # fmt: skip
_SETTLED = frozenset({*FINAL, JobState.HELD})


class Users:
    """Serves the socket until cancelled."""

    def __init__(self, scheduler: Scheduler, rules: Rules) -> None:
        self._scheduler = scheduler
        self._rules = rules
        self._open: Counter[int] = Counter()
        self._log = logs.get("users")

    async def serve(self, path: Path, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Any account of the machine may connect (mode 0666); who it is, the kernel says."""
        await rpc.serve(
            path,
            m.POOL,
            self._converse,
            allowed_uids=None,
            mode=0o666,
            max_fds=m.MAX_FDS,
            max_connections=MAX_CONVERSATIONS,
            on_fault=self._fault,
            task_status=task_status,
        )

    def _fault(self, peer: rpc.Peer, fault: rpc.RpcFault) -> None:
        if fault.code != "closed":
            self._log.warning("uid %d: %s; its connection was closed", peer.uid, fault)

    async def _converse(self, channel: rpc.Channel) -> None:
        uid = channel.peer.uid
        if self._open[uid] >= MAX_PER_UID:
            await channel.send(
                rpc.Error("busy", f"you have {MAX_PER_UID} connections to the pool open; try again later")
            )
            return
        self._open[uid] += 1
        try:
            await _Conversation(channel, self._scheduler, self._rules).run()
        finally:
            self._open[uid] -= 1
            if not self._open[uid]:
                del self._open[uid]


class _Conversation:
    def __init__(self, channel: rpc.Channel, scheduler: Scheduler, rules: Rules) -> None:
        self._channel = channel
        self._scheduler = scheduler
        self._rules = rules
        self._uid = channel.peer.uid
        self._submission: Submission | None = None
        self._renewal: Renewal | None = None
        self._log = logs.get("users")

    async def run(self) -> None:
        try:
            while True:
                with trio.move_on_after(IDLE_S) as idle:
                    message, fds = await self._channel.receive()
                if idle.cancelled_caught:
                    return
                try:
                    await self._answer(message, fds)
                finally:
                    for fd in fds:
                        os.close(fd)
        finally:
            if self._submission is not None:
                await self._submission.abandon()

    async def _answer(self, message: Any, fds: Sequence[int]) -> None:
        if isinstance(message, m.Fetch):
            await self._fetch(message)
            return
        try:
            reply = await self._reply(message, fds)
        except (Rejected, BadJob) as no:
            reply = rpc.Error(no.code if isinstance(no, Rejected) else "bad-job", str(no))
            await self._end_submission()
        except OSError as error:  # a full disk, no descriptor left: this request's trouble, not the pool's end
            self._log.error("uid %d: %s: %s", self._uid, type(message).__name__, error)
            reply = rpc.Error("trouble", f"the pool cannot do that now ({error.strerror}); try again later")
            await self._end_submission()
        await self._channel.send(reply)

    async def _end_submission(self) -> None:
        if self._submission is not None:
            submission, self._submission = self._submission, None
            await submission.abandon()

    async def _reply(self, message: Any, fds: Sequence[int]) -> Any:
        handler = _HANDLERS.get(type(message))
        if handler is None:
            raise Rejected("order", "not a request")
        return await handler(self, message, fds)

    # Submission

    async def _begin(self, message: m.Begin, _: Sequence[int]) -> m.Begun:
        if self._submission is not None:
            raise Rejected("order", "a submission is under way on this connection")
        scheduler = self._scheduler
        owner = await trio.to_thread.run_sync(account_name, self._uid)
        if owner is None:
            raise Rejected("no-account", f"uid {self._uid} has no account name on this machine")
        self._submission = await Submission.begin(
            scheduler.queue, scheduler.spool, self._rules, uid=self._uid, owner=owner, proxy=message.proxy
        )
        return self._submission.begun()

    def _current(self) -> Submission:
        if self._submission is None:
            raise Rejected("order", "no submission is under way on this connection")
        return self._submission

    async def _give_proxy(self, message: m.GiveProxy, _: Sequence[int]) -> m.Done | m.Renewed:
        if self._renewal is not None:
            renewal, self._renewal = self._renewal, None
            new = await renewal.finish(message.certificates)
            running = self._scheduler.proxy_renewed(renewal.cluster, new.expires_at)
            return m.Renewed(new.expires_at, running)
        await self._current().give_proxy(message)
        return m.Done()

    async def _renew(self, message: m.Renew, _: Sequence[int]) -> m.Renewing:
        if self._submission is not None or self._renewal is not None:
            raise Rejected("order", "a submission or a renewal is under way on this connection")
        jobs = self._own_jobs(m.Target(message.cluster, None))
        if jobs[0].cluster.proxy_name is None:
            raise Rejected("no-proxy", f"the jobs of cluster {message.cluster} came without a proxy")
        if all(job.state in FINAL for job in jobs):
            raise Rejected("over", f"the jobs of cluster {message.cluster} are over")
        self._renewal = await Renewal.begin(self._scheduler.spool, self._rules, message.cluster)
        return m.Renewing(self._renewal.pending.der)

    async def _put_files(self, message: m.PutFiles, fds: Sequence[int]) -> m.Done:
        await self._current().put_files(message, fds)
        return m.Done()

    async def _put_inputs(self, message: m.PutInputs, _: Sequence[int]) -> m.Done:
        self._current().put_inputs(message)
        return m.Done()

    async def _put_jobs(self, message: m.PutJobs, _: Sequence[int]) -> m.Done:
        await self._current().put_jobs(message)
        return m.Done()

    async def _commit(self, message: m.Commit, _: Sequence[int]) -> m.Submitted:
        submission = self._current()
        jobs = await submission.commit()
        self._submission = None
        self._scheduler.submitted(jobs)
        return m.Submitted(submission.cluster.number, len(jobs), submission.cluster.owner)

    # Looking

    async def _list(self, message: m.ListJobs, _: Sequence[int]) -> m.Jobs:
        uid = None if message.every else self._uid
        after = JobId(message.cluster, message.proc)
        jobs = self._scheduler.queue.page(after, m.PAGE_ROWS + 1, uid=uid, final=message.final)
        page = jobs[: m.PAGE_ROWS]
        runs = self._scheduler.queue.last_runs(page[0].id, page[-1].id) if page else {}
        return m.Jobs(tuple(self._row(job, runs.get(job.id)) for job in page), len(jobs) > len(page))

    def _row(self, job: Job, run: Run | None) -> m.JobRow:
        command, reason = ("", "")
        if self._may(job):
            command, reason = self._scheduler.command_of(job), job.reason
        shown = run if run is not None and job.state in (JobState.RUNNING, JobState.COMPLETED) else None
        return m.JobRow(
            job.id.cluster,
            job.id.proc,
            job.owner,
            self._word(job),
            job.cluster.submitted_at,
            job.runs,
            command,
            reason,
            job.hold_code,
            job.hold_subcode,
            job.exit_status,
            shown.slot if shown else "",
            shown.started_at if shown else None,
            job.finished_at,
            job.removing,
        )

    async def _runs(self, message: m.RunsOf, _: Sequence[int]) -> m.Runs:
        self._own_jobs(message.target)
        target, first = message.target, max(0, message.first)
        runs = self._scheduler.queue.runs_page(target.cluster, target.proc, first, m.PAGE_ROWS + 1)
        return m.Runs(tuple(_run_row(run) for run in runs[: m.PAGE_ROWS]), len(runs) > m.PAGE_ROWS)

    async def _slots(self, message: m.ListSlots, _: Sequence[int]) -> m.Slots:
        rows = slot_rows(self._scheduler.store.slots())
        first = max(0, message.first)
        page = rows[first : first + m.PAGE_ROWS]
        return m.Slots(tuple(page), first + len(page) < len(rows))

    # Changing

    async def _remove(self, message: m.Remove, _: Sequence[int]) -> m.Removed:
        gone = ending = 0
        for job in self._own_jobs(message.target):
            match self._scheduler.remove(job.id, hard=message.hard):
                case "gone":
                    gone += 1
                case "ending":
                    ending += 1
        if not gone and not ending:
            raise Rejected("over", f"{_said(message.target)} is removed already")
        return m.Removed(gone, ending)

    async def _act(self, message: m.Act, _: Sequence[int]) -> m.Acted:
        jobs = self._own_jobs(message.target)
        done = sum(self._scheduler.act(job, message.verb) for job in jobs)
        if not done:
            states = ", ".join(sorted({self._word(job) for job in jobs}))
            raise Rejected("state", f"no job of {_said(message.target)} can be {_DONE[message.verb]}: {states}")
        return m.Acted(done, len(jobs) - done)

    def _word(self, job: Job) -> str:
        """The job's state, for people."""
        return "suspended" if self._scheduler.is_suspended(job.id) else job.state.word

    async def _wait(self, message: m.Wait, _: Sequence[int]) -> m.Jobs:
        """The jobs' rows (the first page), once all are over or held, or when the time is up."""
        target, queue = message.target, self._scheduler.queue
        self._own_jobs(target)
        waiting = True
        with trio.move_on_after(min(max(0.0, message.seconds), LONGEST_WAIT_S)):
            while True:
                changed = self._scheduler.changed
                waiting = queue.any_unsettled(target.cluster, target.proc)
                if not waiting:
                    break
                await changed.wait()
        # Unsettled ones first: a client that looks at one page sees that it has to wait on.
        jobs = sorted(self._own_jobs(target), key=lambda job: (job.state in _SETTLED, job.id))
        return m.Jobs(tuple(self._row(job, None) for job in jobs[: m.PAGE_ROWS]), waiting)

    def _own_jobs(self, target: m.Target) -> list[Job]:
        """The jobs meant, when they are there and the asker's; otherwise the same words for both."""
        queue = self._scheduler.queue
        if target.proc is None:
            jobs = queue.jobs_of_cluster(target.cluster)
        else:
            job = queue.job(JobId(target.cluster, target.proc))
            jobs = [] if job is None else [job]
        if not jobs or not self._may(jobs[0]):
            raise Rejected("no-job", f"there is no job {_said(target)} of yours; 'sailplane q' lists them")
        return jobs

    def _may(self, job: Job) -> bool:
        return self._uid in (job.cluster.uid, 0, os.geteuid())

    # Fetching

    async def _fetch(self, message: m.Fetch) -> None:
        fds: list[int] = []
        reply: object
        try:
            reply = self._page(message, fds)
        except Rejected as no:
            reply = rpc.Error(no.code, no.text)
        try:
            await self._channel.send(reply, fds)
        finally:
            for fd in fds:
                os.close(fd)

    def _page(self, message: m.Fetch, fds: list[int]) -> m.Output:
        (job,) = self._own_jobs(m.Target(message.cluster, message.proc))
        found = self._scheduler.queue.outputs(job.id)
        if found is None:
            raise Rejected("no-output", f"nothing has come back of job {job.id} ({_where(job)})")
        run, files = found
        first = max(0, message.first)
        entries = []
        for file in files[first : first + FETCH_ENTRIES]:
            if file.key is not None:
                if len(fds) == FETCH_FILES:
                    break
                fds.append(self._open_output(job, run, file.key))
            entries.append(m.OutputEntry(file.name, file.mode, None if file.key is None else file.size))
        ad = self._scheduler.ad_of(job)
        more = first + len(entries) < len(files)
        said = (text_of(ad, name) for name in ("Out", "Err", "TransferOutputRemaps", "Iwd"))
        return m.Output(tuple(entries), more, *said)

    def _open_output(self, job: Job, run: int, key: int) -> int:
        path = self._scheduler.spool.outputs(job.id.cluster, run) / str(key)
        try:
            return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise Rejected(
                "no-output", f"the pool cannot read what came back of job {job.id}: {error.strerror}"
            ) from error


_Handler = Callable[[Any, Any, Sequence[int]], Awaitable[Any]]
_HANDLERS: dict[type, _Handler] = {
    m.Begin: _Conversation._begin,
    m.GiveProxy: _Conversation._give_proxy,
    m.Renew: _Conversation._renew,
    m.PutFiles: _Conversation._put_files,
    m.PutInputs: _Conversation._put_inputs,
    m.PutJobs: _Conversation._put_jobs,
    m.Commit: _Conversation._commit,
    m.ListJobs: _Conversation._list,
    m.RunsOf: _Conversation._runs,
    m.ListSlots: _Conversation._slots,
    m.Remove: _Conversation._remove,
    m.Act: _Conversation._act,
    m.Wait: _Conversation._wait,
}


def account_name(uid: int) -> str | None:
    """May ask a directory service: for a thread."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return None


def _said(target: m.Target) -> str:
    return str(target.cluster) if target.proc is None else f"{target.cluster}.{target.proc}"


def _where(job: Job) -> str:
    return f"it is {job.state.word}" + (f": {job.reason}" if job.reason else "")


def _run_row(run: Run) -> m.RunRow:
    return m.RunRow(
        run.job.cluster,
        run.job.proc,
        run.number,
        run.startd,
        run.slot,
        run.claim,
        run.pid,
        run.started_at,
        run.executing_at,
        run.ended_at,
        run.outcome,
        run.reason,
        run.exit_status,
    )
