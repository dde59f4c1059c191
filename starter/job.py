"""Carries out what ``starter.life`` decides for one activation, and tells it the facts. Acting code: no rules here.

One task per concern: the current step, the shadow's socket, the startd's channel, the job's end, usage updates, the
proxy's clock, orphans. All end with ``run``.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress

import trio

from cedar.commands import Command as Wire
from cedar.errors import PeerFault
from pilot.outcomes import Exited as SwitchExited
from pilot.outcomes import Outcome, Signalled
from pilot.rpc import Channel, ChannelClosed, RpcFault
from starter import asking, jobinput, joboutput, launching, leftovers, messages, startdwords, stopping, updates
from starter.ahead import Ahead
from starter.checkpoint import is_checkpoint
from starter.events import (
    EXIT_NORMAL,
    FACTS,
    Begin,
    CheckpointReached,
    Command,
    CredentialStored,
    DeactivateAsked,
    DeclareBroken,
    Disconnected,
    Event,
    Exit,
    JobEnded,
    JobKnown,
    LeaveToJanitor,
    LimitExceeded,
    ProxyEnding,
    Reconnected,
    Resume,
    ShadowLost,
    StagedIn,
    StartdLost,
    Started,
    Step,
    Suspend,
)
from starter.goingon import GoingOn
from starter.launching import verdict_around
from starter.life import Life, State
from starter.messages import (
    AccountKnown,
    LeftBehind,
    LeftElsewhere,
    Measured,
    PassedCommand,
    RenewalAnnounced,
    SlotBroken,
)
from starter.orphans import reap_orphans
from starter.police import Police
from starter.reconnect import take_up
from starter.renewal import Renewals
from starter.reporting import report
from starter.running import RunningJob
from starter.shadow import ShadowRefused
from starter.streams import Stream, StreamBroken
from starter.tokens import Renewal
from starter.verdict import Abandoned, Hold, Verdict, wants_output
from starter.visits import Visits
from starter.work import Work

# Events come from a handful of tasks that wait for one another; a startd that floods its own starter has to wait too.
MAX_WAITING_EVENTS = 64
# What is to be done beside the first call waits until that is under way.
CALL_BEGINS_WITHIN_S = 0.001
# The proxy's end is wall clock; a look this often bounds what a clock that jumps can do.
PROXY_LOOK_EVERY_S = 30.0
# So that the jobs of one proxy do not all end in the same second.
PROXY_JITTER_FRACTION = 0.2
# 1013: the vacate code of a pilot that shuts down.
TERMINATED = DeactivateAsked("the batch system ends the pilot (SIGTERM)", 1013, soft=True, output=False)
# Exit status of a wrapper or switch that could not tell the job's own (wait(2) form of exit code 255).
UNKNOWN_WAIT_STATUS = 255 << 8


class Job:
    """One activation. ``run`` once."""

    def __init__(self, work: Work, channel: Channel, log: logging.LoggerAdapter[logging.Logger]) -> None:
        self._work = work
        self._channel = channel
        self._log = log
        self._life = Life()
        work.story, work.note = self._life.tell, lambda words: log.info("job: %s", words)
        self._visits = Visits(work, lambda: self._life.state, log)
        self._renewals = Renewals(work, lambda: self._life.state, self._post, log)
        self._running = RunningJob(work, lambda: self._life.state, lambda: self._renewals.words, self._say, log)
        self._police = Police(work, self._visits, lambda: self._life.state, self._post, log)
        self._going_on = GoingOn(self._say)
        self._tell, self._told = trio.open_memory_channel[Event](MAX_WAITING_EVENTS)
        self._step_scope = trio.CancelScope()
        self._step_over = trio.Event()
        self._step_over.set()
        self._outcome: Event | None = None
        # which account the startd knows
        self._told_uid: int | None = None
        # a SIGTERM has come, and nothing has followed from it yet
        self._told_to_end = False

    async def run(self) -> int:
        """Until the activation is over; returns the starter's exit status.

        Cancelling it abandons the job where it stands: procd stops the family when this process ends.
        """
        with self._hearing_signal():
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self._work.ahead = Ahead(nursery, self._log, self._work.settings.sailplane_run_dir)
                nursery.start_soon(self._watch_shadow)
                nursery.start_soon(self._watch_startd)
                nursery.start_soon(reap_orphans)
                nursery.start_soon(self._work.procd.keep)
                self._begin(Step.ASK)
                status = await self._live()
                await self._tell_of_trouble(status)
                life = self._life
                sandbox = life.sandbox or life.unkillable
                await self._say(startdwords.ended(self._work, life.verdict, life.ended, sandbox=sandbox))
                nursery.cancel_scope.cancel()
        return status

    @contextmanager
    def _hearing_signal(self) -> Iterator[None]:
        """A batch system that ends a pilot may send SIGTERM to every process of it: the job has had its own, too."""
        wake = trio.lowlevel.current_trio_token().run_sync_soon

        def told(*_: object) -> None:
            self._told_to_end = True
            wake(self._tell_signal)

        before = signal.signal(signal.SIGTERM, told)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _tell_signal(self) -> None:
        with suppress(trio.WouldBlock, trio.BrokenResourceError):  # then there are others that will be looked at
            self._tell.send_nowait(TERMINATED)

    def _in_turn(self, event: Event) -> tuple[Event, ...]:
        """What the signal wants goes first: a job that had it, too, did not end by itself."""
        before = (TERMINATED,) if self._told_to_end else ()
        self._told_to_end = False
        return before if event is TERMINATED else (*before, event)

    async def _tell_of_trouble(self, status: int) -> None:
        """For the logs: how a failure came about, and what is left of the job."""
        if status != EXIT_NORMAL or isinstance(self._life.verdict, Hold):
            self._log.warning(
                "job: %s; its story: %s", startdwords.verdict_words(self._life.verdict), self._life.tell()
            )
        elsewhere = self._work.elsewhere
        if elsewhere.removed:
            self._log.info("removed %d things of the job's from outside its sandbox", elsewhere.removed)
        if left := leftovers.words(elsewhere):
            await self._say(LeftElsewhere(updates.one_line(left)))

    async def _live(self) -> int:
        async for next_one in self._told:
            for event in self._in_turn(next_one):
                if type(event) not in FACTS and event is not self._outcome:
                    continue  # of a step that another one overtook while this waited
                status = await self._handle(event)
                if status is not None:
                    return status
        raise AssertionError("the event channel is never closed while the job lives")

    async def _handle(self, event: Event) -> int | None:
        """Apply an event and carry out what follows; the exit status when it is the last."""
        before = self._life.state
        commands = self._life.handle(event, now_s=trio.current_time())
        self._start_watching(event)
        if self._life.number:  # rule 0 changes nothing
            self._log.info("job: %s -> %s (rule %d)", before.value, self._life.state.value, self._life.number)
        if self._life.state is not before:
            await self._state_changed()
        for command in commands:
            if isinstance(command, Exit):
                return command.status
            await self._carry_out(command)
        return None

    async def _state_changed(self) -> None:
        self._renewals.state_changed()
        await trio.lowlevel.checkpoint()  # whoever was told of the new state gets a turn before anything new begins
        account = self._work.account
        if account is not None and account.uid != self._told_uid:
            self._told_uid = account.uid
            await self._say(AccountKnown(account.uid))

    def _start_watching(self, event: Event) -> None:
        if isinstance(event, CredentialStored):
            self._nursery.start_soon(self._watch_proxy)
            self._nursery.start_soon(self._renewals.known)
            self._nursery.start_soon(self._renewals.run)
        elif isinstance(event, StagedIn) and self._work.chirp is not None:
            self._nursery.start_soon(self._work.chirp.run)
        elif isinstance(event, JobKnown) and event.refusal is None:
            self._nursery.start_soon(self._police.watch_time)
        if isinstance(event, Started):
            for stream in self._work.streams:
                self._nursery.start_soon(self._stream, stream)
        if isinstance(event, Started) and self._work.legs == 0:
            for task in (self._running.tell_usage, self._renew_tokens, self._police.watch_use, self._police.watch_disk):
                self._nursery.start_soon(task)
        elif isinstance(event, Reconnected) and self._life.state in (State.RUNNING, State.SUSPENDED):
            self._nursery.start_soon(self._running.update)
        elif self._life.disconnected:
            return
        elif isinstance(event, JobEnded) and self._life.verdict is not None and wants_output(self._life.verdict):
            joboutput.open_output(self._work)

    async def _carry_out(self, command: Command) -> None:
        match command:
            case Begin(step=step):
                self._begin(step)
            case Suspend():
                self._stand(still=True)
            case Resume():
                self._stand(still=False)
            case DeclareBroken(text=text):
                self._log.warning("slot declared broken: %s", text)
                await self._say(SlotBroken(updates.one_line(text)))
            case LeaveToJanitor(text=text):
                self._log.warning("left to the janitor: %s", text)
                await self._say(LeftBehind(updates.one_line(text)))
            case Exit():
                raise AssertionError("handled by the caller")

    def _stand(self, *, still: bool) -> None:
        self._running.wish(still=still)
        self._nursery.start_soon(self._running.obey)

    # --- steps ---------------------------------------------------------------------------------------------------

    def _begin(self, step: Step) -> None:
        if step is Step.LAUNCH:
            self._police.note_launch()
        if step is Step.STAGE_IN:
            self._nursery.start_soon(self._prepare)
        self._step_scope.cancel()
        self._outcome = None
        if self._work.ahead is not None:
            self._work.ahead.step_begins(step)
        self._step_scope = trio.CancelScope()
        before, self._step_over = self._step_over, trio.Event()
        self._nursery.start_soon(self._run_step, step, self._step_scope, before, self._step_over)

    async def _run_step(self, step: Step, scope: trio.CancelScope, before: trio.Event, over: trio.Event) -> None:
        """One step after the one before has ended; a cancelled step reports nothing."""
        await before.wait()
        event: Event | None = None
        try:
            with scope:
                event = await self._step(step)()
        except (PeerFault, ShadowRefused) as fault:
            event = ShadowLost(f"{step.value}: {fault}")
        finally:
            over.set()
        if step is Step.LAUNCH and self._work.launched is not None:
            self._nursery.start_soon(self._watch_job)  # also when it was given up meanwhile: the job runs
        if event is None or scope.cancel_called:
            return
        self._outcome = event
        await self._post(event)

    async def _prepare(self) -> None:
        """Beside the first call of the switch, which goes before it."""
        await trio.sleep(CALL_BEGINS_WITHIN_S)
        try:
            await asking.prepare(self._work)
        except (PeerFault, ShadowRefused) as fault:
            await self._post(ShadowLost(f"{Step.STAGE_IN.value}: {fault}"))

    def _step(self, step: Step) -> Callable[[], Awaitable[Event]]:
        work, verdict = self._work, self._life.verdict
        match step:
            case Step.ASK:
                return lambda: asking.ask(work)
            case Step.FETCH_CREDENTIAL:
                return lambda: asking.fetch_credential(work)
            case Step.STAGE_IN:
                return lambda: jobinput.fill_sandbox(work)
            case Step.LAUNCH:
                return lambda: launching.start_job(work)
            case Step.STOP_SOFTLY:
                return lambda: stopping.stop(work, soft=True)
            case Step.STOP_HARD:
                return lambda: stopping.stop(work, soft=False)
            case Step.CHECKPOINT:
                return lambda: joboutput.send_checkpoint(work, self._going_on.ask)
            case Step.STAGE_OUT:
                assert verdict is not None
                return lambda: joboutput.send_sandbox(work, verdict, self._life.ended)
            case Step.CLEAN:
                return lambda: joboutput.clean(work)
            case Step.REPORT:
                assert verdict is not None
                return lambda: report(work, verdict, self._life.ended, self._life.tell())

    # --- facts ---------------------------------------------------------------------------------------------------

    async def _stream(self, stream: Stream) -> None:
        """What the job writes to the submit side, to its end. One that is refused there ends the job."""
        try:
            await stream.run()
        except StreamBroken as broken:
            await self._post(LimitExceeded(broken.hold, soft=False))
        except PeerFault as fault:  # the shadow was given up, which is reported by the task that reads
            self._log.info("a stream to the submit side ends: %s", fault)

    async def _post(self, event: Event) -> None:
        await self._tell.send(event)

    async def _watch_shadow(self) -> None:
        """Socket after socket, until none came for a whole lease."""
        shadow = self._work.shadow
        while True:
            fault = await shadow.listen()
            self._log.info("the syscall socket ended: %s", fault)
            await self._post(Disconnected(f"the syscall socket ended: {fault}"))
            lease_s = self._work.lease_s
            with trio.move_on_after(max(0.0, shadow.heard_s + lease_s - trio.current_time())) as waiting:
                await shadow.wait_connected()
            if waiting.cancelled_caught and shadow.lost:  # else one has come in the last moment
                break
            await self._post(Reconnected())
        shadow.give_up(fault)
        await self._post(ShadowLost(f"{fault}; no shadow came back within the job's lease of {lease_s:.0f} s"))

    async def _take_up(self, message: PassedCommand, fd: int) -> None:
        over = isinstance(self._life.verdict, Abandoned) or self._work.shadow.given_up
        if await take_up(self._work, message, fd, over=over, log=self._log):
            self._log.info("a shadow has taken the job up again")

    async def _watch_startd(self) -> None:
        try:
            while True:
                message, fds = await self._channel.receive()
                if isinstance(message, PassedCommand) and len(fds) == 1:
                    serve = self._server_of(message.command)
                    self._nursery.start_soon(serve, message, fds[0])
                    continue
                for fd in fds:
                    os.close(fd)
                if isinstance(message, Measured):
                    self._work.measured = message.values
                    continue
                if isinstance(message, messages.LastWordHeard):
                    self._work.last_word_heard.set()
                    continue
                if isinstance(message, messages.GoingOn):
                    self._going_on.heard(message)
                    continue
                if isinstance(message, RenewalAnnounced):
                    self._nursery.start_soon(self._renewals.announced)
                    continue
                await self._post(startdwords.asked(message))
        except (ChannelClosed, RpcFault):
            self._work.procd.expect_no_other()
            await self._post(StartdLost())

    def _server_of(self, command: int) -> Callable[[PassedCommand, int], Awaitable[None]]:
        match command:
            case Wire.CA_CMD:
                return self._take_up
            case Wire.DELEGATE_GSI_CRED_STARTER:
                return self._renewals.serve
            case _:
                return self._visits.serve

    async def _watch_job(self) -> None:
        launched = self._work.launched
        assert launched is not None
        outcome = await launched.wait()
        if self._work.started_at_s is not None:
            self._work.duration_s = trio.current_time() - self._work.started_at_s
        await self._work.guests.wait_none()
        ended = _job_ended(self._work, outcome, await self._police.verdict(outcome))
        self._work.slot_log.exited(launched.pid, ended.wait_status)
        again = ended.verdict is None and is_checkpoint(self._work.description, ended.wait_status)
        await self._post(CheckpointReached(ended) if again else ended)
        self._work.ended.set()
        with suppress(PeerFault):  # a lost shadow is reported by the task that reads
            await self._work.shadow.note_job_ended()

    async def _watch_proxy(self) -> None:
        """The proxy's clock; a renewal, also at the last moment, sets it anew."""
        margin_s = self._work.settings.sailplane_proxy_margin * (1 + random.random() * PROXY_JITTER_FRACTION)
        while True:
            credential = self._work.credential
            assert credential is not None
            left_s = credential.usable_until - margin_s - time.time()
            if left_s <= 0:
                break
            with trio.move_on_after(min(left_s, PROXY_LOOK_EVERY_S)):
                await self._renewals.changed.wait()
        ends = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(credential.usable_until))
        await self._post(
            ProxyEnding(
                f"The proxy of {credential.identity} ends at {ends}; the job was stopped before, since afterwards the"
                " site lets nobody act for it. Renew the proxy (with a longer life) and release the job."
            )
        )

    async def _renew_tokens(self) -> None:
        work = self._work
        if work.tokens is None:
            return
        renewal = Renewal(
            work.shadow,
            str(work.place.path),
            every_s=work.settings.sec_credential_refresh,
            deadline_s=work.settings.sailplane_switch_deadline,
            turn=self._visits.turn,
            tokens=work.tokens,
        )
        await renewal.run(lambda words: self._log.warning("the job's tokens could not be renewed now: %s", words))

    # --- to the startd -------------------------------------------------------------------------------------------

    async def _say(self, message: object) -> None:
        try:
            await self._channel.send(message)
        except ChannelClosed:
            return  # its end is reported by the task that reads


def _job_ended(work: Work, outcome: Outcome, verdict: Verdict | None) -> JobEnded:
    match outcome:
        case SwitchExited(status=status, masked=masked):
            wait_status, exact = status << 8, not masked
        case Signalled(number=number, core=core):
            wait_status, exact = number | (0x80 if core else 0), True
        case _:
            wait_status, exact = UNKNOWN_WAIT_STATUS, False
    return JobEnded(wait_status, exact, verdict_around(work, wait_status) or verdict)
