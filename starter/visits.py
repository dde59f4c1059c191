"""Commands of the job's owner, which the startd passes on with their connections: who may, when, and how often.

Each costs the site an authorisation beyond the three of a job: they carry an audit id of their own, one is done at a
time, and there is a pause between two.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import attrs
import trio
from classad2 import ClassAd

from cedar.commands import Command
from cedar.errors import PeerFault
from cedar.stream import CedarStream
from starter import peek, ssh, sshprograms
from starter.entries import Context, StageFailed
from starter.launching import job_environment
from starter.life import State
from starter.messages import PassedCommand
from starter.passed import adopt
from starter.peek import NotShown
from starter.updates import one_line
from starter.work import Work

# Between two calls of the switch for one job; who follows with condor_tail sees new lines so much later.
PAUSE_S = 5.0
# Connections that wait at one time: a user's few terminals.
MAX_VISITS = 8
# From the request to the end of the answer, with the wait for others and for the switch.
VISIT_S = 120.0
_BEFORE = frozenset({State.ASKING, State.CREDENTIAL, State.STAGING_IN, State.LAUNCHING})
_RUNS = frozenset({State.RUNNING, State.SUSPENDED})


@attrs.define(eq=False)
class Visits:
    """Visits to one job. ``state`` tells where it is."""

    work: Work
    state: Callable[[], State]
    log: logging.LoggerAdapter[logging.Logger]
    pause_s: float = PAUSE_S
    calls: int = 0
    _now: int = 0
    _sessions: int = 0
    _next_call_s: float = 0.0
    _one_call: trio.Lock = attrs.field(factory=trio.Lock)

    async def serve(self, message: PassedCommand, fd: int) -> None:
        """One command, to its end; a fault costs its own connection only."""
        stream = adopt(message, fd, "a command", self.log)
        if stream is None:
            return
        self._now += 1
        session = self._new_session() if message.command == Command.START_SSHD else None
        try:
            async with stream:
                with trio.move_on_after(VISIT_S):
                    await self._answer(message, stream, session)
        except PeerFault as fault:
            self.log.info("command %d of the job's owner: %s", message.command, fault)
        finally:
            if session is not None:
                await session.close()
            self._now -= 1

    def _new_session(self) -> ssh.Session:
        self._sessions += 1
        return ssh.Session(self.work, f"{self.work.family}.ssh{self._sessions}", self._still_runs)

    async def _answer(self, message: PassedCommand, stream: CedarStream, session: ssh.Session | None) -> None:
        request = ClassAd(message.request)
        try:
            self._admit(message)
            if session is None:
                await self._peek(request, stream)
            else:
                await self._open(session, request, stream)
        except NotShown as reason:
            self.log.info("command %d of the job's owner refused: %s", message.command, one_line(reason.text))
            await _refuse(stream, reason)
        except StageFailed as fault:
            self.log.warning("command %d of the job's owner failed: %s", message.command, fault)
            text = f"not possible on {self.work.host} now: {fault.code}"
            await _refuse(stream, NotShown(one_line(text)))

    def _admit(self, message: PassedCommand) -> None:
        """Before anything is done.

        Raises:
            NotShown: not now, or not this command.
            PeerFault: somebody else than the job's owner; he is told nothing.
        """
        if self.state() in _BEFORE:
            raise NotShown("the job has not started yet", retry=True)
        if message.identity != self.work.description.user:
            raise PeerFault("owner", "the session is not that of the job's owner")
        if message.command == Command.START_SSHD and not sshprograms.available():
            raise NotShown(f"{self.work.host} has no sshd")
        if self._now > MAX_VISITS:
            raise NotShown("too many at the same time", retry=True)
        self._still_runs()

    def _still_runs(self) -> None:
        if self.state() not in _RUNS:
            raise NotShown("the job has ended")

    async def _peek(self, request: ClassAd, stream: CedarStream) -> None:
        work = self.work
        assert work.job_ad is not None
        wanted = peek.wanted_of(request, work.description, work.job_ad)
        async with self.turn("peek") as context:
            shown = await peek.look(
                context, work.place, wanted, peek.limit_of(request), deadline_s=work.settings.sailplane_switch_deadline
            )
        await peek.send(stream, shown)

    async def _open(self, session: ssh.Session, request: ClassAd, stream: CedarStream) -> None:
        work = self.work
        environment = job_environment(work)
        if not work.switch.isolates:
            environment["SAILPLANE_FAMILY"] = session.family
        async with self.turn("ssh") as context:
            deadline_s = work.settings.sailplane_switch_deadline
            made = await ssh.prepare(context, work, request, environment, deadline_s=deadline_s)
            self.calls += 1
            await session.open(context, made, environment, stream)
        self.log.info("session %s of the job's owner", session.family)

    @asynccontextmanager
    async def turn(self, what: str) -> AsyncIterator[Context]:
        """One at a time, with a pause after it; gives the context for its calls.

        Raises:
            NotShown: the job has ended.
        """
        async with self._one_call:
            await trio.sleep_until(self._next_call_s)
            self._still_runs()
            self.calls += 1
            self.log.info("call %d beside the job's own three: %s", self.calls, what)
            context = self.work.context(once=True)
            try:
                yield attrs.evolve(context, audit_id=f"{context.audit_id}#{what}")
            finally:
                self._next_call_s = trio.current_time() + self.pause_s


async def _refuse(stream: CedarStream, reason: NotShown) -> None:
    """In words, as long as the connection still speaks our language."""
    if not stream.exported:
        await stream.put(peek.refusal(reason))
