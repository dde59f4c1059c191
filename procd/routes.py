"""The ways by which a signal reaches a job's processes. Acting: they do as they are told and report.

control: the socket of a switch that lingers; free. own: the right over processes of our own account; free.
switch: a call of the identity switch; an authorisation at the site. Which one is taken is decided elsewhere.
"""

import json
import os
import random
import signal
import socket
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import attrs
import trio

from pilot.farside import Asking, CallFailed
from pilot.farsignal import Farewell, signal_far
from pilot.switch import Call, Running, Switch, SwitchSettings
from procd.planner import Batch, Planner
from procd.proc import ProcReader
from procd.process import ProcessId

# The far side kills until nobody is left or this is over; a D state may last, and then it is no use to
# insist.
LONGEST_CALL_S = 20.0
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
            return True  # gone, or this process has too many descriptors: the next look tells
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

    targets: with `tree`, and for SIGKILL and SIGSTOP always, their descendants are meant too. farewell: what comes
    first, and to whom.
    """

    uid: int
    credential: str | None
    audit_id: str
    number: int
    targets: tuple[ProcessId, ...]
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
    """A switch that tells of each call: it may be tried again, and every attempt is an authorisation."""

    def __init__(self, switch: Switch, requests: Sequence["_Request"]) -> None:
        self._switch = switch
        self._requests = requests

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
        for request in self._requests:
            request.on_call()
        return await self._switch.start(call)


@attrs.define(eq=False)
class _Request:
    order: Order
    on_call: Callable[[], None]
    answered: trio.Event = attrs.field(factory=trio.Event)
    report: Report | None = None


class SwitchCalls:
    """Makes calls of the switch as the planner says.

    Args:
        answer_s: how long a call may take until its far side speaks (SAILPLANE_SWITCH_DEADLINE).
    """

    def __init__(self, switch: Switch, settings: SwitchSettings, planner: Planner, *, answer_s: float) -> None:
        self._switch = switch
        self._settings = settings
        self._planner = planner
        self._answer_s = answer_s
        self._requests: dict[int, _Request] = {}
        self._last_ticket = 0
        self._changed = trio.Event()
        self._dice = random.SystemRandom()

    async def ask(self, order: Order, *, urgent: bool, on_call: Callable[[], None]) -> Report:
        """Have an order carried out, alone or with others; `on_call` hears of each call that is made for it.

        Cancelling withdraws the order, unless its call has begun.
        """
        self._last_ticket += 1
        ticket, request = self._last_ticket, _Request(order, on_call)
        self._requests[ticket] = request
        dice = self._dice.random()
        self._planner.ask(ticket, order.key, urgent=urgent, dice=dice, now_s=trio.current_time())
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
        if not requests:
            return
        switch = _Telling(self._switch, requests)
        order = _merged([request.order for request in requests])
        try:
            report = Report(left=await self._call(switch, order))
        except CallFailed as failed:
            report = Report(str(failed))
        for request in requests:
            request.report = report
            request.answered.set()

    async def _call(self, switch: _Telling, order: Order) -> int:
        credential = Path(order.credential) if order.credential else None
        sent = await signal_far(
            Asking(switch, self._settings, order.audit_id, credential),
            order.number,
            order.targets,
            tree=order.tree,
            limit_s=min(order.deadline_s, LONGEST_CALL_S),
            deadline_s=self._answer_s,
            farewell=order.farewell,
        )
        if sent.denied and not sent.sent:
            raise CallFailed("wrong-account", "the switch led to an account that may not signal the family")
        return sent.left_count


def _merged(orders: Sequence[Order]) -> Order:
    """Orders of one key as one."""
    targets = dict.fromkeys(identity for order in orders for identity in order.targets)
    return attrs.evolve(
        orders[0],
        targets=tuple(targets)[:MAX_TARGETS],
        deadline_s=max(order.deadline_s for order in orders),
    )
