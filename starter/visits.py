"""Commands of the job's owner, which the startd passes on with their connections: who may, when, and how often.

Each costs the site an authorisation beyond the three of a job: they carry an audit id of their own, one is done at a
time, and there is a pause between two.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable

import attrs
import trio
from classad2 import ClassAd

from cedar.commands import Command
from cedar.errors import PeerFault
from cedar.stream import CedarStream
from starter import peek
from starter.entries import StageFailed
from starter.life import State
from starter.messages import PassedCommand
from starter.peek import NotShown
from starter.updates import one_line
from starter.work import Work

# Between two looks of one job; who follows with condor_tail sees new lines so much later.
PEEK_EVERY_S = 5.0
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
    peek_every_s: float = PEEK_EVERY_S
    calls: int = 0
    _now: int = 0
    _next_peek_s: float = 0.0
    _one_peek: trio.Lock = attrs.field(factory=trio.Lock)

    async def serve(self, message: PassedCommand, fd: int) -> None:
        """One command, to its end; a fault costs its own connection only."""
        sock = socket.socket(fileno=fd)
        try:
            stream = CedarStream.adopt(sock, message.stream_state)
        except PeerFault as fault:
            sock.close()
            self.log.warning("a command that was passed on cannot be used: %s", fault)
            return
        self._now += 1
        try:
            async with stream:
                with trio.move_on_after(VISIT_S):
                    await self._answer(message, stream)
        except PeerFault as fault:
            self.log.info("command %d of the job's owner: %s", message.command, fault)
        finally:
            self._now -= 1

    async def _answer(self, message: PassedCommand, stream: CedarStream) -> None:
        try:
            self._admit(message)
            await self._peek(ClassAd(message.request), stream)
        except NotShown as reason:
            self.log.info("command %d of the job's owner refused: %s", message.command, one_line(reason.text))
            await stream.put(peek.refusal(reason))
        except StageFailed as fault:
            self.log.warning("command %d of the job's owner failed: %s", message.command, fault)
            text = f"not possible on {self.work.host} now: {fault.code}"
            await stream.put(peek.refusal(NotShown(one_line(text))))

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
        if message.command != Command.STARTER_PEEK:
            raise NotShown("not offered on this slot")
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
        async with self._one_peek:
            await trio.sleep_until(self._next_peek_s)
            self._still_runs()
            try:
                shown = await self._look(wanted, peek.limit_of(request))
            finally:
                self._next_peek_s = trio.current_time() + self.peek_every_s
        await peek.send(stream, shown)

    async def _look(self, wanted: tuple[peek.Wanted, ...], limit_bytes: int) -> list[peek.Shown]:
        work = self.work
        self.calls += 1
        self.log.info("call %d beside the job's own three: peek at %d files", self.calls, len(wanted))
        context = work.context()
        return await peek.look(
            attrs.evolve(context, audit_id=f"{context.audit_id}#peek"),
            work.place,
            wanted,
            limit_bytes,
            deadline_s=work.settings.sailplane_switch_deadline,
        )
