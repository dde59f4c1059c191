"""Carries out what ``startd.claim`` decides: starters, messages to them, releases, leases. Acting code."""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Callable
from contextlib import aclosing

import attrs
import trio
from classad2 import ClassAd

from cedar.claims import EXECUTE_SIDE, ClaimId
from cedar.classads import evaluate
from cedar.client import Resume, connect
from cedar.commands import Command as Wire
from cedar.errors import PeerFault, Refused
from pilot.rpc import Channel, ChannelClosed, RpcFault
from pilot.settings import Settings
from startd import claimevents as events
from startd.claim import State, WrongState
from startd.drain import Drain, start_now
from startd.held import Held, Requester, Slot, Slots
from startd.leaving import Leaving
from startd.processes import Spawner
from startd.resources import Resources
from startd.statistics import Counted, Statistics
from starter import messages as to_starter

# A starter may use this much beyond the job's own time, for switch calls with retries and for the output.
END_MARGIN_S = 120.0
OUTPUT_TIME_S = 3600.0
# Claims are looked at this often for leases and keep-alives.
LOOK_EVERY_S = 1.0
# Connecting to the schedd: stock waits max(20, lease/3 - 3).
SCHEDD_DEADLINE_S = 20.0
# Vacate code of an end of the pilot's own (wire reference, appendix A).
CODE_SHUTDOWN = 1013
_WHERE = {True: "goes on here", False: "goes back to the queue: its claim takes no further job"}


@attrs.define(eq=False)
class Claims:
    """Every claim of this startd. ``changed`` is called whenever an ad should be sent again."""

    settings: Settings
    slots: Slots
    spawner: Spawner
    nursery: trio.Nursery
    log: logging.LoggerAdapter[logging.Logger]
    changed: Callable[[], None]
    destroyed: Callable[[str], None]
    # a starter, by its pid, has a job at this account
    account_seen: Callable[[int, int], None] = lambda starter_pid, uid: None
    # MaxJobRetirementTime of a claim's present job
    retirement_s: Callable[[Held], float] = lambda held: 0.0
    # how policy wants a claim's job ended whose retirement time is over
    ending: Callable[[Held], events.Ending] = lambda held: events.Ending()
    statistics: Statistics = attrs.field(factory=Statistics)
    # told of what a starter says of its job's usage
    usage_seen: Callable[[Held], None] = lambda held: None
    # told of each job that begins
    job_begun: Callable[[Held], None] = lambda held: None
    # told of each activation that is over: its slot, its seconds, its starter's last words if there were any
    job_ended: Callable[[Held, float, to_starter.Ended | None], None] = lambda held, seconds, words: None
    # why no new job is taken; empty while jobs are
    retiring: str = ""
    # what an administrator has asked for
    drain: Drain | None = None
    draining: bool = False
    trouble: str = ""
    # why the node is not fit for jobs (startd.health)
    unhealthy: str = ""
    # whose job was the first: where all run at one account nobody else may follow
    first_user: str = ""
    left_elsewhere: str = ""
    # starters whose slots do not wait for their ends
    leaving: Leaving = attrs.field(init=False)
    _pending: dict[int, tuple[to_starter.Activation, socket.socket, socket.socket]] = attrs.field(factory=dict)
    _next_ticket: int = 0
    _change: trio.Event = attrs.field(factory=trio.Event)

    def __attrs_post_init__(self) -> None:
        self.leaving = Leaving(self.nursery, self.log, self.look_again)

    async def wait_change(self) -> None:
        """Until any claim has handled an event."""
        await self._change.wait()

    def look_again(self) -> None:
        """Wake whoever waits for a change: something else than a claim has changed."""
        self._change.set()
        self._change = trio.Event()

    # --- lookups -------------------------------------------------------------------------------------------------

    def find(self, session_id: str) -> Held | None:
        """The claim of this session, if it lives."""
        return self.slots.held.get(session_id)

    def by_pid(self, pid: int) -> Held | None:
        return next((held for held in self.slots.held.values() if held.starter_pid == pid), None)

    def by_ticket(self, ticket: int) -> Held | None:
        return next((held for held in self.slots.held.values() if held.ticket == ticket), None)

    @property
    def takes_jobs(self) -> bool:
        """Whether a new claim, or a new job on a claim, is welcome without more ado."""
        return not (self.draining or self.retiring or self.unhealthy or self.drain)

    @property
    def drain_start(self) -> str:
        """The START of a drain that takes jobs to fill its time; empty where it takes none."""
        if self.drain is None or not self.drain.start or self.draining or self.retiring or self.unhealthy:
            return ""
        now_s = trio.current_time()
        return start_now(self.drain, [held.life.left_s(now_s) for held in self.before_drain()])

    def takes_another(self, held: Held) -> bool:
        """Whether a claim takes a further job."""
        age_s = trio.current_time() - held.made_s
        return held.life.takes_another(welcome=self.takes_jobs, age_s=age_s, worklife_s=self.settings.claim_worklife)

    def before_drain(self) -> list[Held]:
        """Claims that were there before the drain began."""
        return [held for held in self.slots.held.values() if not held.filler]

    # --- making and ending claims --------------------------------------------------------------------------------

    def carve(self, slot: Slot, resources: Resources, requester: Requester, taken: ClaimId | None = None) -> Held:
        """A new claim: on a new dynamic slot, or on a static one as a whole; by the slot's claim id, or by one that was
        ``taken`` of it before."""
        held = self.slots.carve(slot, resources, requester, taken)
        held.filler = self.drain is not None
        self._count("ClaimRequests")
        self.first_user = self.first_user or requester.user
        self.log.info("claim %s: slot %s for %s", held.claim_id.public, held.name, requester.user or "unknown user")
        self.changed()
        return held

    def _count(self, *names: Counted) -> None:
        for name in names:
            self.statistics.count(name, now_s=trio.current_time())

    def handle(self, held: Held, event: events.Event) -> tuple[events.Command, ...]:
        """Apply an event and carry out what follows.

        Raises:
            WrongState: a request that the claim refuses now.
        """
        before = held.life.state
        commands = held.life.handle(event, now_s=trio.current_time())
        if held.life.state is not before:
            self.log.info(
                "claim %s: %s -> %s (rule %d)",
                held.claim_id.public, before.value, held.life.state.value, held.life.number,
            )  # fmt: skip
        for command in commands:
            self._carry_out(held, command)
        held.note_change()
        self.look_again()
        self.changed()
        return commands

    def handle_all(self, event: events.Event) -> None:
        """The same fact for every claim."""
        for held in list(self.slots.held.values()):
            self.handle(held, event)

    def _carry_out(self, held: Held, command: events.Command) -> None:
        match command:
            case events.StartStarter(ticket=ticket):
                self.nursery.start_soon(self._start_starter, held, ticket)
            case events.EndJob(how=how, hold=events.HoldWish(subcode=subcode, text=text)):
                self.tell(held, to_starter.HoldJob(how != "fast", subcode, text))
            case events.EndJob(how=how, reason=reason, vacate_code=code):
                self.tell(held, to_starter.Deactivate(how, reason, code))
            case events.SuspendJob():
                self.tell(held, to_starter.SuspendJob())
            case events.ContinueJob():
                self.tell(held, to_starter.ContinueJob())
            case events.ArmKill(serial=serial, how=how):
                self.nursery.start_soon(self._arm, held, serial, how)
            case events.ArmRetire(serial=serial, limit_s=limit_s):
                self.nursery.start_soon(self._arm_retirement, held, serial, limit_s)
            case events.KillStarter():
                self._kill(held)
            case events.TellSchedd():
                self.nursery.start_soon(self._tell_schedd, held.claim_id, held.requester)
            case events.Destroy(broken=broken):
                if self._heir(held, broken=broken):
                    return
                self.slots.give_back(held, broken=broken)
                if broken:
                    self.trouble = f"{held.name} left something behind; its resources are withheld"
                if held.dynamic_id is not None:
                    self.destroyed(held.name)
                if held.when_gone is not None:
                    held.when_gone(broken)

    def _heir(self, held: Held, *, broken: bool) -> bool:
        """Whether a claim that waited for this one's end has its slot now."""
        waiting, held.waiting = held.waiting, None
        if waiting is None:
            return False
        if broken or not self.takes_jobs:
            waiting.end(None)
            return False
        heir = self.slots.hand_over(held, waiting)
        self._count("JobPreemptions", "JobRankPreemptions" if waiting.rank > held.rank else "JobUserPrioPreemptions")
        self.log.info("claim %s has waited for %s, and has it", heir.claim_id.public, heir.name)
        waiting.end(heir)
        return True

    def tell(self, held: Held, message: object) -> None:
        """Send a message to the claim's starter, if it has one."""
        if held.starter is not None:
            self.nursery.start_soon(self._send, held.starter, message)

    async def _send(self, starter: Channel, message: object) -> None:
        try:
            await starter.send(message)
        except (ChannelClosed, RpcFault):
            return  # the starter is gone: the spawner reports its end

    async def _arm(self, held: Held, serial: int, how: events.How) -> None:
        settings = self.settings
        extra_s = {
            "fast": 0.0,
            "graceful": settings.machinemaxvacatetime,
            "final-transfer": settings.machinemaxvacatetime + OUTPUT_TIME_S,
        }[how]
        with trio.move_on_after(settings.killing_timeout + extra_s + END_MARGIN_S):
            while held.life.serial == serial and held.life.state is not State.GONE:
                await held.changed.wait()
            return
        self.handle(held, events.KillTimer(serial))

    async def _arm_retirement(self, held: Held, serial: int, limit_s: float) -> None:
        with trio.move_on_after(limit_s):
            while held.life.serial == serial and held.life.state in (State.RETIRING, State.SUSPENDED):
                await held.changed.wait()
            return
        self.handle(held, events.RetireTimer(serial, self.ending(held)))

    def take_no_more(self, reason: str) -> None:
        """No new job from now on; claims that have none are given back, jobs that run go on."""
        self.retiring = reason
        for held in list(self.slots.held.values()):
            if held.life.state is State.IDLE:
                self.handle(held, events.Retire(0.0, reason, CODE_SHUTDOWN))
        self.changed()

    def retire_all(self, limit_s: float, reason: str, vacate_code: int, *, whole: bool = False) -> None:
        """No claim takes another job; those that run have their retirement time, and ``limit_s`` seconds at most.
        ``whole``: they have all of ``limit_s``."""
        for held in list(self.slots.held.values()):
            left_s = limit_s if whole else min(limit_s, self.retirement_left_s(held))
            self.handle(held, events.Retire(left_s, reason, vacate_code))

    def unretire_all(self) -> None:
        """Jobs that were given their retirement time go on; the slot takes jobs again."""
        self.handle_all(events.Unretire(events.Cause.DRAIN))
        self.changed()

    def retirement_left_s(self, held: Held) -> float:
        """What MaxJobRetirementTime leaves to a claim's present job."""
        return max(0.0, self.retirement_s(held) - held.clocks.ran_s(trio.current_time()))

    def _kill(self, held: Held) -> None:
        """The starter is our grandchild and reaped by the spawner: its pid is its own until we hear StarterEnded."""
        if held.starter_pid is None:
            return
        self.log.warning("starter %d of %s did not end in time: killed", held.starter_pid, held.name)
        try:
            os.kill(held.starter_pid, signal.SIGKILL)
        except ProcessLookupError:
            return

    async def _tell_schedd(self, claim_id: ClaimId, requester: Requester) -> None:
        """RELEASE_CLAIM: no answer. A schedd that cannot be reached learns it at its next ALIVE."""
        if requester.address is None:
            return
        try:
            stream = await connect(
                requester.address, Wire.RELEASE_CLAIM, Resume(claim_id.session(EXECUTE_SIDE)),
                subsystem="STARTD", own_address=self.slots.address, deadline_s=SCHEDD_DEADLINE_S,
            )  # fmt: skip
            async with aclosing(stream):
                await stream.put(claim_id.text)
        except (PeerFault, Refused, OSError) as fault:
            self.log.warning("claim %s: could not tell the schedd of its release: %s", claim_id.public, fault)

    # --- starters ------------------------------------------------------------------------------------------------

    def new_activation(
        self, held: Held, activation: to_starter.Activation, shadow: socket.socket, job_id: str, job_user: str = ""
    ) -> None:
        """Hand ``shadow`` (the activation's connection) to a starter; ``job_user`` owns the job.

        Raises:
            WrongState, OSError: nothing has changed; the caller still owns ``shadow``.
        """
        job_ad = ClassAd(activation.job_ad) if activation.job_ad else ClassAd()
        self._next_ticket += 1
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.handle(held, events.Activate(self._next_ticket))
        except WrongState:
            ours.close()
            theirs.close()
            raise
        self._count("ActivationRequests")
        # The task that this has started looks for them at its first step, which is not before our next checkpoint.
        self._pending[self._next_ticket] = (activation, shadow, theirs)
        held.ticket, held.job_id, held.job_user = self._next_ticket, job_id, job_user
        held.filler = self.drain is not None
        held.begin_job(job_ad)
        self.job_begun(held)
        held.starter = Channel(trio.socket.from_stdlib_socket(ours), to_starter.STARTER)
        self.nursery.start_soon(self._listen, held, held.starter)

    async def _start_starter(self, held: Held, ticket: int) -> None:
        activation, shadow, theirs = self._pending.pop(ticket)
        with shadow, theirs:
            try:
                await self.spawner.start(ticket, activation, (shadow.fileno(), theirs.fileno()))
            except (ChannelClosed, RpcFault) as fault:
                self.starter_not_started(ticket, f"the spawner is gone: {fault}")

    def starter_runs(self, ticket: int, pid: int) -> None:
        held = self.by_ticket(ticket)
        if held is not None:
            held.starter_pid = pid
            self._count("JobStarts")
            self.handle(held, events.StarterRuns(pid))

    def starter_not_started(self, ticket: int, text: str) -> None:
        held = self.by_ticket(ticket)
        self.log.error("no starter for %s: %s", held.name if held else f"ticket {ticket}", text)
        if held is not None:
            if held.starter is not None:  # if it was forked all the same, it sees its startd gone, and ends
                held.starter.close()
            held.starter_forgotten(self.slots.sessions)
            self.handle(held, events.StarterNotStarted(text))

    def starter_ended(self, pid: int, wait_status: int) -> bool:
        """A child of spawner or startd was reaped; whether it was a starter of a claim, or had been."""
        held = self.by_pid(pid)
        name = held.name if held is not None else self.leaving.ended(pid)
        if name is None:
            return False
        code = os.waitstatus_to_exitcode(wait_status)
        if code not in (0, EXIT_LOST_SHADOW):
            self.log.warning("starter %d of %s ended with status %d", pid, name, code)
        if held is None:
            self.look_again()
            return True
        broken = held.starter_broken or code == EXIT_UNKILLABLE
        held.starter_forgotten(self.slots.sessions)
        self.handle(held, events.StarterGone(wait_status, broken))
        return True

    def _leaves(self, held: Held) -> bool:
        """The starter has said that nothing of its activation is left but itself: the claim does not wait for its end.
        It does (False) where the pid is not known yet, or the slot was called broken."""
        if held.starter_pid is None or held.starter_broken:
            return False
        self.leaving.begin(held.starter_pid, held.name)
        held.starter_forgotten(self.slots.sessions)
        self.handle(held, events.StarterGone(0, broken=False))
        return True

    async def _listen(self, held: Held, starter: Channel) -> None:
        """All that a starter says, to its last words: the spawner may have told of its end before they are read."""
        began_s, last = trio.current_time(), None
        try:
            while True:
                last, _ = await starter.receive()
                self._heard(held, last)
                leaves = isinstance(last, to_starter.Ended) and last.nothing_left and held.starter is starter
                if leaves and self._leaves(held):
                    return  # a further word would be taken for one of the slot's next starter
        except ChannelClosed:
            return
        except RpcFault as fault:
            self.log.error("starter of %s broke the protocol: %s", held.name, fault)
        finally:
            if last is not None:
                words = last if isinstance(last, to_starter.Ended) else None
                self.job_ended(held, trio.current_time() - began_s, words)
            await starter.aclose()

    def _heard(self, held: Held, message: object) -> None:
        """A starter speaks of its own activation only. Of its words only the last changes the claim's state by itself,
        and only where nothing is left (``_leaves``)."""
        held.heard_s = trio.current_time()
        match message:
            case to_starter.AccountKnown(uid=uid):
                held.job_account_uid = uid
                if held.starter_pid is not None:
                    self.account_seen(held.starter_pid, uid)
            case to_starter.JobUpdate(ad=ad):
                held.note_usage(usage_of(ClassAd(ad)))
                self.usage_seen(held)
            case to_starter.AskGoingOn(number=number):
                asked = self.settings.check_reactivate_after_checkpoint
                here = not asked or self.takes_another(held)
                self.log.info("%s: after checkpoint %d job %s %s", held.name, number, held.job_id, _WHERE[here])
                self.tell(held, to_starter.GoingOn(number, here))
            case to_starter.SlotBroken(text=text):
                self.log.warning("%s: %s", held.name, text)
                held.starter_broken = True
            case to_starter.LeftBehind(text=text):
                self.log.warning("%s: left to the janitor: %s", held.name, text)
            case to_starter.LeftElsewhere(text=text):
                self.log.warning("%s: %s", held.name, text)
                self.left_elsewhere = text
            case to_starter.Ended(verdict=verdict, text=text):
                self.log.info("%s: job %s %s: %s", held.name, held.job_id, verdict.lower(), text)
        self.changed()

    # --- leases --------------------------------------------------------------------------------------------------

    async def watch_leases(self) -> None:
        """ALIVE to schedds, and the end of claims whose lease is over. Until cancelled."""
        while True:
            await trio.sleep(LOOK_EVERY_S)
            now_s = trio.current_time()
            for held in list(self.slots.held.values()):
                if held.lease_over(now_s):
                    self.handle(held, events.LeaseOver("the lease is over: nothing was heard of the submit side"))
                elif held.alive_due(now_s):
                    held.alive_sent_s = now_s
                    self.nursery.start_soon(self._alive, held)

    async def _alive(self, held: Held) -> None:
        address = held.requester.address
        assert address is not None
        try:
            stream = await connect(
                address, Wire.ALIVE, Resume(held.claim_id.session(EXECUTE_SIDE)), subsystem="STARTD",
                own_address=self.slots.address, deadline_s=SCHEDD_DEADLINE_S,
            )  # fmt: skip
            async with aclosing(stream):
                await stream.put(held.claim_id.text)
                with trio.fail_after(SCHEDD_DEADLINE_S):
                    answer = (await stream.get()).int()
        except (PeerFault, Refused, OSError, trio.TooSlowError) as fault:
            self.log.info("claim %s: no answer to ALIVE (%s), will try again", held.claim_id.public, fault)
            return
        if answer < 0:
            self.handle(held, events.LeaseOver("the submit side does not know this claim any more"))
        else:
            held.heard_s = trio.current_time()


def usage_of(update: ClassAd) -> dict[str, object]:
    """What of a starter's update stands in the slot's ad."""
    values = {name: evaluate(update, name) for name in USAGE_ATTRIBUTES}
    return {name: value for name, value in values.items() if isinstance(value, int | float | str)}


PROXY_ATTRIBUTES = ("SailplaneProxyExpiration", "SailplaneProxyRenewal")
USAGE_ATTRIBUTES = (
    "JobState",
    "NumPids",
    "RemoteUserCpu",
    "RemoteSysCpu",
    "ResidentSetSize",
    "ImageSize",
    "MemoryUsage",
    "DiskUsage",
    *PROXY_ATTRIBUTES,
)
# The starter's exit statuses (execute-side reference 3.8): lost shadow, unkillable process.
EXIT_LOST_SHADOW, EXIT_UNKILLABLE = 2, 16
