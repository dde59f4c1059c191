"""procd's service: takes requests, keeps watch over starters and roots, and stops what nobody steers any more.

The rules are elsewhere: membership in `procd.families`, routes in `procd.signaller`. This ties them to the
socket, to pidfds and to the clock.
"""

import os
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import trio

from pilot import logs
from pilot.farsignal import Farewell
from pilot.rpc import Channel, Error, Peer, RpcFault, serve
from procd.events import listen
from procd.families import Families, Family
from procd.groups import Bounds
from procd.lookout import Lookout, beside
from procd.messages import (
    MAX_LISTED,
    PROCD,
    Describe,
    Description,
    Done,
    FamilyState,
    GetUsage,
    Identity,
    List,
    Register,
    Registered,
    Resume,
    Signal,
    Stop,
    Stopped,
    Suspend,
    Unregister,
    Usage,
)
from procd.messages import Families as FamilyList
from procd.proc import raise_if_ours
from procd.process import ProcessId
from procd.routes import Control, RouteFailed
from procd.signaller import Ending, Signaller
from procd.surroundings import FamilyRefused
from procd.trackers import Trackers
from procd.translation import identities, memory_of, process_id, surroundings, usage_of

# HTCondor's starter asks every 15 s; peaks between two looks are not seen, and a look costs about half a
# millisecond.
LOOK_EVERY_S = 5.0
# A starter waits for the job's orphans once a second; until then these can be seen.
STIRRED_EVERY_S = 0.2
# Families that stir all the time take 2 % of a core.
STIRRED_PAUSE = 50.0
# One attempt at a family that nobody steers; it is repeated as long as this procd lives.
ABANDONED_STOP_S = 60.0
_BETWEEN_ATTEMPTS_S = 5.0
# A starter has two: one that tells it of our end, and one for its calls. Who finds none free waits for ever.
MOST_CONNECTIONS = 8192
# What is left when the startd is gone gets this long. The batch system kills a pilot seconds after SIGTERM.
SHUTDOWN_S = 30.0


class Service:
    """One procd.

    Args:
        families, lookout, signaller: the parts that it ties together.
        trackers: what tells of families beside descent.
        log: state changes and failures go there.
        check_every_s: time between two full scans that check the walks.
    """

    def __init__(
        self,
        families: Families,
        lookout: Lookout,
        signaller: Signaller,
        trackers: Trackers,
        log: logs.Contextual,
        *,
        check_every_s: float,
    ) -> None:
        self._trackers = trackers
        self._check_every_s = check_every_s
        self._families = families
        self._lookout = lookout
        self._signaller = signaller
        self._log = log
        self._watches: dict[str, trio.CancelScope] = {}
        self._being_killed: Counter[str] = Counter()
        self._nursery: trio.Nursery | None = None
        self._closing = False

    async def run(
        self, path: Path, *, allowed_uid: int, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve at `path` until cancelled; reports "started" when clients can connect.

        Cancelling ends requests under way and kills nobody: `stop_all` first, where the families must not
        live on.
        """
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for lack in self._trackers.describe().degraded:
                self._log.info("this host: %s: %s", lack.word, lack.text)
            nursery.start_soon(self._look_now_and_then)
            nursery.start_soon(self._check_now_and_then)
            if self._trackers.facts.connector:
                trackers = self._trackers
                nursery.start_soon(
                    listen, trackers.note_listening, trackers.note_events, trackers.note_lost, self._has_families
                )
                nursery.start_soon(self._look_where_it_stirs)
            await nursery.start(self._serve, path, allowed_uid)
            task_status.started()

    async def _serve(self, path: Path, allowed_uid: int, task_status: trio.TaskStatus[None]) -> None:
        await serve(
            path,
            PROCD,
            self._converse,
            allowed_uids={allowed_uid},
            max_connections=MOST_CONNECTIONS,
            on_fault=self._note_fault,
            task_status=task_status,
        )

    def _note_fault(self, peer: Peer, fault: RpcFault) -> None:
        if fault.code != "closed":
            self._log.warning("process %d sent what is no request (%s), connection closed", peer.pid, fault)

    async def _look_now_and_then(self) -> None:
        """For peaks, and so that the CPU of what ends is known up to the last few seconds."""
        while True:
            await trio.sleep(LOOK_EVERY_S * random.uniform(0.9, 1.1))
            for family in self._families:
                if family.parent is None:
                    self._lookout.look(family)
                    await trio.lowlevel.checkpoint()
            self._trackers.note_look()

    async def _look_where_it_stirs(self) -> None:
        """Families in which processes are born or end, as the kernel tells: so that these are members at once, and what
        they have used is known before they are waited for."""
        while True:
            await trio.sleep(STIRRED_EVERY_S)
            stirred = self._trackers.stirred()
            for family in [each for each in self._families if each.name in stirred]:
                if family.top.name in self._being_killed:
                    continue  # as at the end of its root
                begun_s = time.thread_time()
                self._lookout.look(family)
                self._trackers.note_look()
                await trio.sleep(STIRRED_PAUSE * (time.thread_time() - begun_s))

    async def _check_now_and_then(self) -> None:
        """A full scan as the check of the walks: whoever only it finds is a member from then on, and logged."""
        while True:
            await trio.sleep(self._check_every_s * random.uniform(0.9, 1.1))
            tops = [family for family in self._families if family.parent is None]
            for family in tops:
                self._lookout.look(family)
            if not tops:
                continue
            for name, missed in (await self._lookout.check()).items():
                pids = " ".join(str(each.pid) for each in missed[:20])
                self._log.warning("family %s: a full scan found %d that walks had missed: %s", name, len(missed), pids)

    def _has_families(self) -> bool:
        return any(True for _ in self._families)

    # --- requests -------------------------------------------------------------------------------------------

    async def _converse(self, channel: Channel) -> None:
        while True:
            request, fds = await channel.receive()
            with ExitStack() as received:
                for fd in fds:
                    received.callback(os.close, fd)
                await channel.send(await self._answer(request, fds))

    async def _answer(self, request: Any, fds: list[int]) -> Any:
        try:
            if isinstance(request, Register):
                return await self._register(request, fds)
            handle = _HANDLERS.get(type(request))
            if handle is None:
                return Error("not-a-request", type(request).__name__)
            return await handle(self, request)
        except FamilyRefused as refused:
            return Error(refused.code, refused.text)

    async def _register(self, request: Register, fds: list[int]) -> Registered:
        if self._closing:
            raise FamilyRefused("going-away", "procd is about to end")
        control = _control(fds)
        try:
            family = self._take_in(request, control)
        except BaseException:  # raised again at once
            if control is not None:
                control.close()
            raise
        finally:
            self._lookout.let_go()
        self._signaller.add(family, control=control, credential=request.credential, audit_id=request.audit_id)
        if request.memory is not None:
            self._trackers.carry(family, request.memory.usage)
        self._trackers.note_look()
        self._watch(family)
        self._log.info(
            "family %s: root %d (uid %d), starter %d, %s",
            family.name, family.root.pid, family.around.uid, family.starter.pid,
            "registered" if request.memory is None else "registered again",
        )  # fmt: skip
        if self._trackers.sweeps:
            await beside(partial(self._trackers.know_account, family.around.uid))
        return Registered(memory_of(family))

    def _take_in(self, request: Register, control: Control | None) -> Family:
        """The family of a request, in a cgroup of its own where there can be one; FamilyRefused."""
        root, starter = process_id(request.root), process_id(request.starter)
        if request.uid is not None:
            self._lookout.vouch(root, starter, request.uid)
        around = None if request.memory is None else surroundings(request.memory)
        family = self._families.register(request.family, root, starter, self._lookout.survey(root, starter), around)
        self._trackers.place(
            family, new=request.memory is None, bounds=Bounds(request.memory_limit_kb, request.tasks_limit)
        )
        if not self._can_be_proved(family, control):
            self._forget(family)
            raise FamilyRefused("hidden", "this host hides the job's processes, and gives no other way to end them")
        return family

    def _can_be_proved(self, family: Family, control: Control | None) -> bool:
        """Whether it can be told that nobody of a family is left. Lists of children name the hidden, scans do not."""
        ways = (control, self._trackers.group(family), self._trackers.facts.children_files or None)
        return not family.around.hidden or any(way is not None for way in ways)

    async def _usage(self, request: GetUsage) -> Usage:
        family = self._families.get(request.family)
        self._lookout.look(family)
        self._trackers.note_look()
        self._trackers.note_io(family, self._lookout.io_kb(family))
        own_kb = self._lookout.own_kb(family) if request.exactly else None
        return attrs.evolve(self._usage_of(family), pss_kb=self._lookout.pss_kb(family), own_kb=own_kb)

    def _usage_of(self, family: Family) -> Usage:
        """As of the last look."""
        return self._trackers.complete(family, usage_of(family.account.totals))

    async def _signal(self, request: Signal) -> Done:
        family = self._families.get(request.family)
        await self._signaller.send(family, request.number, to_all=request.to == "all")
        return Done()

    async def _suspend(self, request: Suspend) -> Done:
        await self._signaller.suspend(self._families.get(request.family))
        return Done()

    async def _resume(self, request: Resume) -> Done:
        await self._signaller.resume(self._families.get(request.family))
        return Done()

    async def _stop(self, request: Stop) -> Stopped:
        family = self._families.get(request.family)
        farewell = Farewell(request.soft, request.grace_s) if request.soft else None
        stopped = await self._end(family, urgent=request.urgent, deadline_s=request.deadline_s, farewell=farewell)
        if not (stopped.empty and request.forget and self._is_nobody_elses(family)):
            return stopped
        usage = self._usage_of(family)  # who has ended uses nothing more: it was looked at on the way to the proof
        self._forget(family)
        return attrs.evolve(stopped, usage=usage)

    def _is_nobody_elses(self, family: Family) -> bool:
        """Whether no other request is about to end it, or has had it forgotten meanwhile."""
        return not self._being_killed[family.name] and any(each is family for each in self._families)

    async def _unregister(self, request: Unregister) -> Usage:
        family = self._families.get(request.family)
        self._lookout.look(family)
        usage = self._usage_of(family)
        self._forget(family)
        return usage

    async def _list(self, _: List) -> FamilyList:
        return FamilyList(tuple(self._state(family) for family in self._families))

    def _state(self, family: Family) -> FamilyState:
        credential, audit_id = self._signaller.reason(family)
        return FamilyState(
            family=family.name,
            parent=family.parent.name if family.parent else None,
            root=Identity(*family.root),
            starter=Identity(*family.starter),
            starter_alive=family.starter_alive,
            uid=family.around.uid,
            credential=credential,
            audit_id=audit_id,
            control=self._signaller.control(family) is not None,
            members=identities(tuple(self._families.members(family))[:MAX_LISTED]),
            usage=self._usage_of(family),
        )

    async def _describe(self, _: Describe) -> Description:
        return self._trackers.describe()

    # --- ends -----------------------------------------------------------------------------------------------

    async def _end(
        self, family: Family, *, urgent: bool, deadline_s: float, farewell: Farewell | None = None
    ) -> Stopped:
        ending = Ending()
        self._being_killed[family.name] += 1
        try:
            empty = await self._signaller.kill(family, ending, urgent=urgent, deadline_s=deadline_s, farewell=farewell)
        finally:
            self._being_killed -= Counter([family.name])
        left = () if empty else tuple(identity.pid for identity in self._families.running(family))
        route = "+".join(ending.routes) or "none"
        level = self._log.info if empty else self._log.warning
        level(
            "family %s: %s by %s, %d calls of the switch%s",
            family.name, "empty" if empty else f"{len(left)} survivors", route, ending.switch_calls,
            f" ({ending.failure})" if ending.failure else "",
        )  # fmt: skip
        strays = tuple(identity.pid for identity in self._trackers.strays(family))[:MAX_LISTED]
        text = "" if empty else ending.failure
        return Stopped(empty, left[:MAX_LISTED], route, ending.switch_calls, text, strays)

    async def stop_all(self, *, deadline_s: float = SHUTDOWN_S) -> bool:
        """Stop every family and take no new ones; True when all are empty. At most `deadline_s` seconds and a scan.

        Urgent: nobody says how long this procd itself has.
        """
        self._closing = True
        results: list[bool] = []

        async def stop(family: Family) -> None:
            results.append((await self._end(family, urgent=True, deadline_s=deadline_s)).empty)

        async with trio.open_nursery() as nursery:
            for family in self._families:
                if family.parent is None:
                    nursery.start_soon(stop, family)
        return all(results)

    def _forget(self, family: Family) -> None:
        self._signaller.remove(family)
        scope = self._watches.pop(family.name, None)
        if scope is not None:
            scope.cancel()
        self._families.unregister(family)
        self._trackers.forget(family)
        self._lookout.let_go()
        self._log.info("family %s: unregistered", family.name)

    # --- watching -------------------------------------------------------------------------------------------

    def _watch(self, family: Family) -> None:
        assert self._nursery is not None
        earlier = self._watches.pop(family.name, None)
        if earlier is not None:
            earlier.cancel()
        scope = self._watches[family.name] = trio.CancelScope()
        self._nursery.start_soon(self._watch_family, family, scope)

    async def _watch_family(self, family: Family, scope: trio.CancelScope) -> None:
        """Look at a root that ends before its parent has taken it away; stop the family when its starter
        ends."""
        with scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._look_at_end_of_root, family)
                await self._ended(family.starter)
                nursery.cancel_scope.cancel()
            self._log.warning("family %s: starter %d is gone, stopping", family.name, family.starter.pid)
            self._families.starter_died(family.starter)
            await self._stop_abandoned(family)

    async def _look_at_end_of_root(self, family: Family) -> None:
        """Not while the family is being killed: whoever kills looks, when it does not slow down the dying."""
        await self._ended(family.root)
        if family.name not in self._being_killed:
            self._lookout.look(family)

    async def _ended(self, identity: ProcessId) -> None:
        """Wait for the end of a process, which need not be ours."""
        try:
            fd = os.pidfd_open(identity.pid)
        except OSError as error:
            raise_if_ours(error)
            return
        try:
            if self._lookout.is_there(identity):
                await trio.lowlevel.wait_readable(fd)
        finally:
            os.close(fd)

    async def _stop_abandoned(self, family: Family) -> None:
        """Nobody steers this family: stop it, as often as it takes, then forget it."""
        if family.parent is not None:
            return  # it goes with the outer one, which had the same starter
        while True:
            try:
                if (await self._end(family, urgent=False, deadline_s=ABANDONED_STOP_S)).empty:
                    break
            except RouteFailed as failed:
                self._log.warning("family %s: %s, trying again", family.name, failed)
            await trio.sleep(_BETWEEN_ATTEMPTS_S)
        for each in reversed(self._families.within(family)):
            self._forget(each)


_HANDLERS: dict[type, Callable[[Service, Any], Awaitable[Any]]] = {
    GetUsage: Service._usage,
    Signal: Service._signal,
    Suspend: Service._suspend,
    Resume: Service._resume,
    Stop: Service._stop,
    Unregister: Service._unregister,
    List: Service._list,
    Describe: Service._describe,
}


def _control(fds: list[int]) -> Control | None:
    """The control socket that came with a request, as a descriptor of our own."""
    if not fds:
        return None
    fd = os.dup(fds[0])
    try:
        return Control(fd)
    except OSError:
        os.close(fd)
        raise FamilyRefused("no-socket", "the control descriptor is no socket") from None
