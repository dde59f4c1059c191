"""The pool's middle: jobs to slots, claims to runs, verdicts to the queue.

Acts on what the pure parts say: `matching` chooses, `shadow_state` rules a run, the queue remembers. One task a claim;
a claim that must not be used again is released until that is certain, and only then may its job run anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import trio
from attrs import evolve

from cedar import classads
from cedar.claims import ClaimId
from cedar.commands import HoldCode
from cedar.errors import PeerFault, Refused
from cedar.sinful import Sinful
from pilot import logs
from pool import jobad
from pool import messages as m
from pool.ads import ClassAd, host_of, text_of, value_of
from pool.claims import Claim, claim_address, started_at
from pool.life import Life, Parts, after_run
from pool.matching import Offer, OfferBook, StartdKey, Waiting, in_turn, startd_key
from pool.model import FINAL, Job, JobId, JobState, Outcome, Run
from pool.queue import SavedClaim
from pool.release import Releases
from pool.renewal import Where, where_of
from pool.retry import Patience
from pool.shadow import Shadow
from pool.shadow_state import REMOVED, Finish, WrongState, clean
from pool.shadow_state import State as ShadowState
from pool.slices import Slices, in_slices
from pool.tidying import Tidying
from pool.transfers import Transfer
from pool.waitingjobs import WaitingJobs

CREDENTIAL_HOLD = 4
# What a user asks for besides removal.
HELD = Finish(Outcome.HELD, "held by its user; 'sailplane release' lets it run again", hold_code=HoldCode.USER_REQUEST)
VACATED = Finish(Outcome.REQUEUED, "vacated by its user")
# What a list shows of a job's command.
MAX_COMMAND = 200


class Scheduler:
    """Matches and runs until cancelled. Everything public is called from the same event loop."""

    def __init__(self, parts: Parts) -> None:
        self.queue = parts.queue
        self.spool = parts.spool
        self.store = parts.store
        self.changed = trio.Event()
        self._parts = parts
        self._book = OfferBook()
        self._waiting = WaitingJobs(self.queue, parts.facts)
        self._running: dict[JobId, Shadow] = {}
        self._active: set[JobId] = set()  # out of `_waiting` and not settled: a claim's task has them
        self._releases = Releases(parts.client, parts.lease_s, self._drop)
        self._tidying = Tidying(self.queue, self.spool, self._start)
        self._kicked = trio.Event()
        self._log = logs.get("scheduler")
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take up what an earlier life left, then match whenever something changed."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._recover()
            nursery.start_soon(self._tidying.run)
            task_status.started()
            while True:
                self._kicked = trio.Event()
                await self._match()
                await self._kicked.wait()

    def _kick(self) -> None:
        self._kicked.set()

    def _tell_waiters(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    # What others tell

    def submitted(self, jobs: list[Job]) -> None:
        self._start(self._add_idle, [job.id for job in jobs])
        self._log.info("cluster %d: %d jobs of %s", jobs[0].id.cluster, len(jobs), jobs[0].owner)
        self._tell_waiters()

    async def _add_idle(self, job_ids: list[JobId]) -> None:
        """Whoever handed them in need not be there any more: this goes on by itself."""
        await in_slices(self._waiting.add_idle(job_ids, self._active.__contains__))
        self._kick()

    def proxy_renewed(self, cluster: int, expires_at: float) -> int:
        """The spool has a longer-lived proxy for a cluster: for jobs that wait, and on to those that run; how many."""
        self.queue.renew_proxy(cluster, expires_at)
        running, waiting = 0, []
        for job in self.queue.jobs_of_cluster(cluster):
            if job.id in self._waiting:
                waiting.append(job.id)
            if (shadow := self._running.get(job.id)) is not None:
                shadow.proxy_renewed()
                running += 1
        self._start(self._add_idle, waiting)
        return running

    def with_myproxy(self, allowed: tuple[str, ...]) -> list[tuple[int, Where, float]]:
        """The clusters whose proxies MyProxy is to renew: number, where it is, end of the present one."""
        clusters = {job.id.cluster: job for job in self.queue.active_jobs() if job.cluster.proxy_expires_at is not None}
        found = []
        for number, job in clusters.items():  # the jobs of one submission share its proxy, and what they say of it
            where = where_of(partial(value_of, self.ad_of(job)), job.owner, allowed)
            if where is not None:
                found.append((number, where, job.cluster.proxy_expires_at or 0.0))
        return found

    def remove(self, job_id: JobId, *, hard: bool) -> Literal["gone", "ending", "over"]:
        """A user's rm. "over": it had been removed before."""
        job = self.queue.job(job_id)
        if job is None or job.state is JobState.REMOVED:
            return "over"
        if job_id in self._active:
            return self._remove_active(job, hard=hard)
        self._waiting.take(job_id)
        self._waiting.forget_failures(job_id)
        self._settle(evolve(job, state=JobState.REMOVED, reason="removed", finished_at=job.finished_at or time.time()))
        return "gone"

    def _remove_active(self, job: Job, *, hard: bool) -> Literal["ending"]:
        if not job.removing:
            self.queue.update(evolve(job, removing=True))
        self._end_run(job, REMOVED, hard=hard)
        return "ending"

    def _end_run(self, job: Job, want: Finish, *, hard: bool = False) -> bool:
        """Ask for a run's end; False where there is none, or it is ending already."""
        shadow = self._running.get(job.id)
        if shadow is None:
            return False
        try:
            shadow.end(want, hard=hard)
        except WrongState:
            self._log.info("job %s: its end was asked for while the run was ending", job.id)
            return False
        return True

    def act(self, job: Job, verb: m.Verb) -> bool:
        """A user's hold, release, vacate, suspend or continue; False where the job is not in a state for it."""
        shadow = self._running.get(job.id)
        match verb:
            case "hold" if job.state is JobState.IDLE and job.id not in self._active:
                self._waiting.take(job.id)
                self._settle(evolve(job, state=JobState.HELD, reason=HELD.reason, hold_code=HELD.hold_code))
                return True
            case "hold":
                return self._end_run(job, HELD)
            case "vacate":
                return self._end_run(job, VACATED)
            case "release" if job.state is JobState.HELD:
                fresh = evolve(job, state=JobState.IDLE, reason="", hold_code=0, hold_subcode=0)
                self._waiting.forget_failures(job.id)
                self.queue.update(fresh)
                if job.id not in self._active:
                    self._waiting.add(fresh)
                self._tell_waiters()
                self._kick()
                return True
            case "suspend" | "continue" if shadow is not None:
                return shadow.suspend(resume=verb == "continue")
        return False

    def is_suspended(self, job_id: JobId) -> bool:
        shadow = self._running.get(job_id)
        return shadow is not None and shadow.state is ShadowState.SUSPENDED

    def slot_updated(self, public: Any, claim_id: str, *, startd: StartdKey, claimable: bool) -> None:
        self._book.advertised(Offer(clean(text_of(public, "Name")), startd, public, claim_id), claimable=claimable)
        self._kick()

    @property
    def book(self) -> OfferBook:
        return self._book

    def startd_started(self, startd: StartdKey, address: str, since: int, *, anew: bool) -> None:
        """A startd that is new to this life, or started again: claims of its former life hold nothing any more."""
        self._releases.startd_started(startd, since)
        if anew:
            self._log.info("execution point %s was started again at %s", startd[0], address)
        for claim in self._parts.client.claims():
            # Another address may be a second startd of that name: its claims end by their own sockets and leases.
            former = claim.out_of_touch and started_at(claim.id) < since
            if claim.startd == startd and ((anew and str(claim.address) == address) or former):
                claim.lose("the execution point was started again")

    def slots_gone(self, gone: list[tuple[StartdKey, str]]) -> None:
        for startd, slot in gone:
            self._book.withdrawn(startd, clean(slot))
        left = {startd_key(stored.public) for stored in self.store.slots()} if gone else set()
        for startd, _ in gone:
            if startd not in left:
                self._book.forget_startd(startd)

    # Reading

    def ad_of(self, job: Job) -> Any:
        return classads.parse_old(job.ad)

    def command_of(self, job: Job) -> str:
        ad = self.ad_of(job)
        words = " ".join(part for part in (text_of(ad, "Cmd"), text_of(ad, "Arguments") or text_of(ad, "Args")) if part)
        return words[:MAX_COMMAND]

    # Matching

    def _hold_expired(self, job_id: JobId, end: int) -> None:
        job = self.queue.job(job_id)
        if job is not None:
            when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(end))
            reason = (
                f"the proxy that came with the job ended at {when}; renew it (sailplane renew {job_id.cluster}) and"
                " release the job, or submit it again with a new proxy"
            )
            self._settle(evolve(job, state=JobState.HELD, reason=reason, hold_code=CREDENTIAL_HOLD, hold_subcode=0))

    async def _match(self) -> None:
        slices = Slices()
        for offer in self._book.offers():
            chosen = await self._first_for(offer.ad, slices)
            if chosen is not None and self._book.take(offer):
                self._reserve(chosen)
                self._start(self._claim, offer, chosen)

    async def _first_for(self, slot: Any, slices: Slices) -> Waiting | None:
        """The first job that fits. It waits still when this returns: to be reserved before anything else runs."""
        while self._waiting:
            self._waiting.look_at_clocks(self._hold_expired)
            found = await slices.run(self._waiting.first_for(slot))
            if found is None or self._waiting.may_go(found.id):
                return found
        return None

    async def _next_for(self, claim: Claim) -> Waiting | None:
        """The job that goes to an idle claim. None means that the claim is given back."""
        return in_turn(await self._first_for(claim.ad, Slices()), claim.user)

    def _reserve(self, chosen: Waiting) -> None:
        self._waiting.take(chosen.id)
        self._active.add(chosen.id)

    def _start(self, task: Callable[..., Any], *args: object) -> None:
        if self._nursery is not None:
            self._nursery.start_soon(task, *args)

    # Claiming

    async def _claim(self, offer: Offer, chosen: Waiting) -> None:
        """Ask for the slot, and run the job on it and then whatever fits."""
        claim = None
        try:
            claim_id = ClaimId.parse(offer.claim_id)
            address = claim_address(claim_id, offer.ad)
            self._save(claim_id, offer.slot, address)
            claim = await self._request(claim_id, address, offer, chosen)
        except (PeerFault, Refused) as error:  # an ad that does not say where and with which id
            self._log.warning("slot %s cannot be asked for: %s", offer.slot, error)
        if claim is None:
            self._back(chosen.id)
        else:
            await self._use(claim, chosen)

    async def _request(self, claim_id: ClaimId, address: Sinful, offer: Offer, chosen: Waiting) -> Claim | None:
        queued = self._waiting.ad_of(chosen.id)
        if queued is None:
            return None
        ad = jobad.request_ad(queued, self._parts.facts, self._parts.facts.host)
        try:
            granted = await self._parts.client.request(offer, ad)
        except (PeerFault, Refused) as error:
            self._log.info("slot %s was not to be had: %s", offer.slot, error)
            # Nothing was activated: the job need not wait until the claim is certainly released.
            self._start(self._releases.release, claim_id, address, offer.startd)
            return None
        if granted is None:
            self._log.info("slot %s refused job %s", offer.slot, chosen.id)
            self._drop(claim_id)
            return None
        if granted.left is not None:
            self._book.left_over(granted.left)
            self._kick()
        slot = clean(text_of(granted.slot, "Name")) or offer.slot
        now = trio.current_time()
        claim = Claim(claim_id, slot, offer.startd, address, granted.slot, chosen.user, now)
        self._save(claim_id, slot, address)
        self._parts.client.register(claim)
        return claim

    def _save(self, claim_id: ClaimId, slot: str, address: Sinful) -> None:
        """On disk before the startd hears of it: a pool killed now must release it later."""
        self.queue.save_claim(SavedClaim(claim_id.text, slot, str(address), self._parts.lease_s, None))

    def _back(self, job_id: JobId) -> None:
        """A job that got no slot is idle again, or removed if that was asked meanwhile."""
        self._active.discard(job_id)
        job = self.queue.job(job_id)
        if job is None:
            return
        if job.removing:
            self._settle(evolve(job, state=JobState.REMOVED, removing=False, reason="removed", finished_at=time.time()))
        else:
            self._waiting.add(job)
        self._kick()

    async def _use(self, claim: Claim, chosen: Waiting | None) -> None:
        """Run jobs of one user on a claim until nobody waits for it or it is gone."""
        fate = "idle"
        while chosen is not None:
            fate = await self._run(claim, chosen)
            if fate != "idle":
                break
            chosen = await self._next_for(claim)
            if claim.lost:
                fate = "gone"
                break
            if chosen is not None:
                self._reserve(chosen)
        if fate == "gone":
            self._drop(claim.id)
        elif fate == "idle":
            await self._releases.release(claim.id, claim.address, claim.startd)
        self._kick()

    async def _run(self, claim: Claim, chosen: Waiting) -> str:
        job = self.queue.job(chosen.id)
        if job is None or job.removing:
            self._back(chosen.id)
            return "idle"
        startd = clean(claim.startd[0])
        public = claim.id.public
        job, run = self.queue.start_run(
            job, startd=startd, slot=claim.slot, claim_public=public, claim_id=claim.id.text, now=time.time()
        )
        self._tell_waiters()
        fate = await self._live(claim, job, run)
        self.after_conclusion(job.id)
        return fate

    async def _live(self, claim: Claim, job: Job, run: Run, *, recovered: bool = False) -> str:
        """One run, until its claim is idle, or gone for certain; the job's verdict is written down by then."""
        life = Life(
            self._parts,
            claim,
            job,
            run,
            ad=self.ad_of(job),
            entries=self.queue.inputs(job),
            settle=lambda finish, transfer: self.settle_run(run, job, finish, transfer),
            recovered=recovered,
        )
        self._running[job.id] = life.shadow
        self._parts.transfers.open(claim.id, life.transfer)
        try:
            fate = await life.shadow.run()
        finally:
            self._parts.transfers.close(claim.id)
            self._running.pop(job.id, None)
        if fate == "release":
            await self._releases.release(claim.id, claim.address, claim.startd)
            fate = "released"
        life.conclude()
        return fate

    # Ends

    def _drop(self, claim_id: ClaimId) -> None:
        self._parts.client.forget(claim_id)
        self.queue.drop_claim(claim_id.text)

    def settle_run(self, run: Run, job: Job, finish: Finish, transfer: Transfer | None) -> None:
        """A run's end and what it makes of the job, in one transaction."""
        fresh = self.queue.job(job.id) or job
        after = after_run(fresh, finish, time.time())
        outputs = (
            transfer.outputs if transfer is not None and after.state in (JobState.COMPLETED, JobState.HELD) else None
        )
        self.queue.end_run(
            run.number,
            after,
            outcome=finish.outcome.value,
            reason=finish.reason,
            status=finish.status,
            now=time.time(),
            outputs=outputs,
        )
        if outputs is None:
            self._tidying.outputs_unwanted(job.id.cluster, run.number)
        self._log.info("job %s: %s%s", job.id, finish.outcome.value, f" ({finish.reason})" if finish.reason else "")
        if after.state is JobState.IDLE:
            self._start(self._kick_later, self._waiting.failed(job.id, run_s=time.time() - run.started_at))
        else:
            self._waiting.forget_failures(job.id)
        self._tell_waiters()

    async def _kick_later(self, patience: Patience) -> None:
        await trio.sleep(max(0.0, patience.until - trio.current_time()) + 0.01)
        self._kick()

    def after_conclusion(self, job_id: JobId) -> None:
        """The run's claim is settled too: an idle job may wait for a slot again."""
        self._active.discard(job_id)
        job = self.queue.job(job_id)
        if job is not None and job.removing:  # rm came while the run was ending
            self._settle(evolve(job, state=JobState.REMOVED, removing=False, reason="removed", finished_at=time.time()))
        elif job is not None and job.state is JobState.IDLE:
            self._waiting.add(job)
        elif job is not None and job.state in FINAL:
            self._tidying.finished(job)
        self._kick()

    def _settle(self, job: Job) -> None:
        self.queue.update(job)
        if job.state in FINAL:
            self._tidying.finished(job)
        self._tell_waiters()

    # After a restart

    def _recover(self) -> None:
        """Jobs that execute are taken up again; other claims of the former life are released, and their jobs run again
        after that. Unfinished submissions are gone."""
        for number in self.queue.empty_clusters():
            self.queue.forget_cluster(number)
            self.spool.remove_cluster(number)
        open_runs = {run.number: run for run in self.queue.open_runs()}
        for saved in self.queue.claims():
            run = open_runs.pop(saved.run, None) if saved.run is not None else None
            self._start(self._recover_claim, saved, run)
        for run in open_runs.values():
            self._lost(run)
        busy = {run.job for run in self.queue.open_runs()}
        self._active |= busy
        self._start(self._add_idle, [job.id for job in self.queue.active_jobs() if job.state is JobState.IDLE])

    async def _recover_claim(self, saved: SavedClaim, run: Run | None) -> None:
        claim_id = ClaimId.parse(saved.id)
        job = None if run is None or run.executing_at is None else self.queue.job(run.job)
        if run is not None and job is not None and not job.removing:
            await self._take_up(saved, claim_id, job, run)
            return
        self._parts.client.forget(claim_id)  # its session answers "unknown claim" to ALIVE
        startd = (saved.slot.partition("@")[2] or saved.slot, host_of(saved.startd_address))
        await self._releases.release(claim_id, Sinful.parse(saved.startd_address), startd)
        if run is not None:
            self._lost(run)

    async def _take_up(self, saved: SavedClaim, claim_id: ClaimId, job: Job, run: Run) -> None:
        """Go on with a job that was executing: its starter waits for us until the lease ends."""
        address = Sinful.parse(saved.startd_address)
        startd = (saved.slot.partition("@")[2] or saved.slot, host_of(saved.startd_address))
        claim = Claim(claim_id, saved.slot, startd, address, ClassAd(), job.owner, trio.current_time())
        self._parts.client.register(claim)
        fate = await self._live(claim, job, run, recovered=True)
        if fate == "gone":
            self._drop(claim_id)
        elif fate == "idle":
            await self._releases.release(claim.id, claim.address, claim.startd)
        self.after_conclusion(job.id)

    def _lost(self, run: Run) -> None:
        job = self.queue.job(run.job)
        if job is not None:
            outcome = Outcome.REMOVED if job.removing else Outcome.LOST
            self.settle_run(run, job, Finish(outcome, "the pool was started again while the job ran"), None)
            self.after_conclusion(run.job)
