"""The ways by which a signal reaches a job's processes. Acting: they do as they are told and report.

control: the socket of a switch that lingers; free. own: the right over processes of our own account; free.
switch: a call of the identity switch; an authorisation at the site. Which one is taken is decided elsewhere.
"""

import json
import os
import random
import select
import signal
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import attrs
import trio

from pilot.calls import Call, Running
from pilot.farside import Asking, CallFailed
from pilot.farsignal import Farewell, signal_far
from pilot.inquiry import Patience
from pilot.ledger import Ledger
from pilot.switch import Switch, SwitchSettings
from procd.planner import Batch, Planner
from procd.proc import ProcReader
from procd.process import ProcessId

# The far side kills until nobody is left or this is over; a D state may last, and then it is no use to
# insist.
LONGEST_CALL_S = 20.0
# One round of stop and kill, when the call comes late.
LEAST_CALL_S = 0.1
# Above this the tops of the trees are enough: the far side finds the descendants.
MAX_TARGETS = 20_000


class RouteFailed(Exception):
    """A route did not carry the signal; another one may. The text is for logs."""


class Control:
    """The near end of a lingering switch's control socket.

    The starter holds it too and reads what comes back; here it is only written to, because a datagram read
    here would be missing there. What became of a request is seen by looking at the processes.
    """

    def __init__(self, fd: int) -> None:
        self._socket: socket.socket | None = socket.socket(fileno=fd)
        self._socket.setblocking(False)

    @property
    def alive(self) -> bool:
        """False once the far end was found to be gone."""
        return self._socket is not None

    @property
    def gone(self) -> bool:
        """Whether the far end has ended."""
        if self._socket is None:
            return True
        poller = select.poll()
        poller.register(self._socket, 0)  # an end is told in any case, and what waits to be read is not ours
        return bool(poller.poll(0))

    def signal(self, number: int, to: str) -> None:
        """One signal to the root or to all; RouteFailed when nobody listens."""
        self._send({"do": "signal", "number": number, "to": to})

    def stop(self) -> None:
        """SIGSTOP everybody."""
        self._send({"do": "stop"})

    def resume(self) -> None:
        """SIGCONT everybody."""
        self._send({"do": "cont"})

    def kill_all(self) -> None:
        """SIGKILL until nobody is left."""
        self._send({"do": "kill-all"})

    def close(self) -> None:
        """Give the descriptor back. When the starter has closed its own, this ends the family."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, words: dict[str, Any]) -> None:
        if self._socket is None:
            raise RouteFailed("the control socket is closed")
        try:
            self._socket.send(json.dumps(words).encode("ascii"), socket.MSG_NOSIGNAL)
        except BlockingIOError:
            raise RouteFailed("the root part does not read its control socket") from None
        except OSError as error:
            self.close()
            raise RouteFailed(f"control socket: {error.strerror}") from None


class OwnRight:
    """kill(2) at our own account, and never at anybody but (pid, start tick)."""

    def __init__(self, reader: ProcReader) -> None:
        self._reader = reader

    def send(self, identities: Iterable[ProcessId], number: int) -> list[ProcessId]:
        """Signal those that are still there; returns those that we may not signal (a set-uid program of the
        job)."""
        return [identity for identity in identities if not self._send(identity, number)]

    def _send(self, identity: ProcessId, number: int) -> bool:
        """By a descriptor: between the look at the tick and the signal the number can't be reused."""
        try:
            fd = os.pidfd_open(identity.pid)
        except OSError:
            return True  # gone, or we have too many descriptors: the next look tells
        try:
            if self._reader.ticks(identity.pid) == identity.start_ticks:
                signal.pidfd_send_signal(fd, number)
            return True
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        finally:
            os.close(fd)


@attrs.frozen
class Order:
    """What one call of the switch shall do, and on whose credential.

    tree: the targets' descendants are meant too, as they always are for SIGKILL and SIGSTOP. deadline_s: from the
    order to the answer, without the farewell's grace. farewell: what comes first, and to whom.
    """

    uid: int
    credential: str | None
    audit_id: str
    number: int
    tree: bool
    deadline_s: float
    farewell: tuple[Farewell, ProcessId] | None = None

    @property
    def key(self) -> tuple[object, ...]:
        """Orders with the same key may share a call."""
        return (self.uid, self.credential, self.number, self.tree, self.farewell)


@attrs.frozen
class Report:
    """What became of an order: the switch's words when it failed, else the survivors that the far side
    saw."""

    failure: str | None = None
    left: int = 0


class _Telling:
    """A switch that tells of each call: it may be tried again, and every attempt is an authorisation.

    meanwhile: what there is to do while the switch is at work, for each attempt; blocks no longer than that takes.
    """

    def __init__(self, switch: Switch, on_attempt: Callable[[int], None], meanwhile: Callable[[], None]) -> None:
        self._switch = switch
        self._on_attempt = on_attempt
        self._meanwhile = meanwhile
        self._attempts = 0

    @property
    def name(self) -> str:
        return self._switch.name

    @property
    def isolates(self) -> bool:
        return self._switch.isolates

    @property
    def needs_credential(self) -> bool:
        return self._switch.needs_credential

    async def start(self, call: Call) -> Running:
        self._attempts += 1
        self._on_attempt(self._attempts)
        running = await self._switch.start(call)
        self._meanwhile()
        return running


@attrs.define(eq=False)
class _Request:
    order: Order
    targets: Callable[[], Sequence[ProcessId]]
    wanted: Callable[[], bool]
    on_call: Callable[[], None]
    give_up_s: float
    answered: trio.Event = attrs.field(factory=trio.Event)
    report: Report | None = None


class SwitchCalls:
    """Makes calls of the switch as the planner says.

    Args:
        answer_s: how long a call may take until its far side speaks (SAILPLANE_SWITCH_DEADLINE).
        ledger: the standing that the node's calls share; None: each call stands for itself.
    """

    def __init__(
        self,
        switch: Switch,
        settings: SwitchSettings,
        planner: Planner,
        *,
        answer_s: float,
        ledger: Ledger | None = None,
    ) -> None:
        self._ledger = ledger
        self._switch = switch
        self._settings = settings
        self._planner = planner
        self._answer_s = answer_s
        self._requests: dict[int, _Request] = {}
        self._last_ticket = 0
        self._changed = trio.Event()
        self._dice = random.SystemRandom()

    async def ask(
        self,
        order: Order,
        targets: Callable[[], Sequence[ProcessId]],
        *,
        urgent: bool,
        wanted: Callable[[], bool] | None = None,
        on_call: Callable[[], None] = lambda: None,
    ) -> Report:
        """Have an order carried out, alone or with others, soon if it is urgent.

        Cancelling withdraws the order, unless its call has begun.

        Args:
            targets: asked while the switch is at work, perhaps seconds from now.
            wanted: asked just before, whether there need be a call; None: if there are any targets then.
            on_call: hears of each call that is made for the order.
        """
        self._last_ticket += 1
        ticket, now_s = self._last_ticket, trio.current_time()
        request = self._requests[ticket] = _Request(
            order, targets, wanted or (lambda: bool(targets())), on_call, now_s + order.deadline_s
        )
        dice = self._dice.random()
        self._planner.ask(ticket, order.key, urgent=urgent, time_s=order.deadline_s, dice=dice, now_s=now_s)
        self._changed.set()
        try:
            await request.answered.wait()
        finally:
            self._planner.withdraw(ticket)
            self._requests.pop(ticket, None)
        assert request.report is not None
        return request.report

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Until cancelled: make the calls that are due. Cancelling ends those under way, within seconds."""
        async with trio.open_nursery() as nursery:
            task_status.started()
            while True:
                self._changed = trio.Event()
                for batch in self._planner.due(trio.current_time()):
                    nursery.start_soon(self._carry_out, batch)
                next_s = self._planner.next_s()
                with trio.move_on_at(float("inf") if next_s is None else next_s):
                    await self._changed.wait()

    async def _carry_out(self, batch: Batch) -> None:
        requests = [self._requests[ticket] for ticket in batch.tickets if ticket in self._requests]
        wanted = [request for request in requests if request.wanted()]
        report = Report()
        if wanted:
            try:
                report = Report(left=await self._call(wanted))
            except CallFailed as failed:
                report = Report(str(failed))
        for request in requests:
            request.report = report
            request.answered.set()

    async def _call(self, requests: Sequence[_Request]) -> int:
        """One call for requests of one key; how many it left."""
        targets: dict[ProcessId, None] = {}

        def gather() -> None:
            for request in requests:
                targets.update(dict.fromkeys(request.targets()))

        def gathered() -> Iterator[ProcessId]:
            yield from islice(targets, MAX_TARGETS)

        def on_attempt(number: int) -> None:
            if number > 1:
                self._planner.charge(trio.current_time())
            for request in requests:
                request.on_call()

        order = requests[0].order
        credential = Path(order.credential) if order.credential else None
        left_s = max(request.give_up_s for request in requests) - trio.current_time()
        sent = await signal_far(
            Asking(
                _Telling(self._switch, on_attempt, gather),
                self._settings,
                order.audit_id,
                credential,
                uid=order.uid,
                patience=None if self._ledger is None else Patience(self._ledger, left_s, waits=True, once=True),
            ),
            order.number,
            gathered(),
            tree=order.tree,
            limit_s=min(max(LEAST_CALL_S, left_s), LONGEST_CALL_S),
            deadline_s=self._answer_s,
            farewell=order.farewell,
        )
        if sent.denied and not sent.sent:
            raise CallFailed("wrong-account", "the switch led to an account that may not signal the family")
        return sent.left_count
