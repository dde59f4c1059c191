"""Signals to families: picks the cheapest route that is open, and repeats until the purpose is reached.

It decides on nothing but routes and repetition; who is in a family is `procd.families`' business, and how a
route works that of `procd.routes`.
"""

import signal
from collections.abc import Callable

import attrs
import trio

from pilot.farsignal import Farewell
from procd.families import Families, Family
from procd.groups import Group, GroupFailed
from procd.lookout import Lookout
from procd.process import ProcessId
from procd.routes import Control, Order, OwnRight, RouteFailed, SwitchCalls
from procd.surroundings import FamilyRefused

# Within this a root part has killed what can be killed (1,000 processes take 0.3 s); then another route is
# tried.
CONTROL_PATIENCE_S = 3.0
# The kernel kills and freezes a group within milliseconds, but for what hangs in a system call.
_GROUP_PATIENCE_S = 2.0
_FIRST_PAUSE_S = 0.001
_LONGEST_PAUSE_S = 0.1
# Reading one process takes about 15 us.
_WATCH_EVERY_S = 0.002
# Between two attempts that failed, of any route.
_BETWEEN_ATTEMPTS_S = 0.5
# How long killing goes on between two full scans, which cost more.
_OWN_PATIENCE_S = 2.0
# The proof fails when anything moves below the starter, as the far end of another call that is just ending.
_PROOFS = 20
# Where /proc hides, zombies look as the living do; a starter waits for its orphans once a second.
_REAPED_S = 3.0
# A family whose members stop as fast as they fork needs a few rounds; each finds only what was born
# meanwhile.
_ROUNDS = 20


@attrs.define
class Ending:
    """What stopping a family has taken so far."""

    routes: list[str] = attrs.field(factory=list)
    switch_calls: int = 0
    failure: str = ""

    def called(self) -> None:
        """Note a call of the switch."""
        self.switch_calls += 1

    def used(self, route: str) -> None:
        """Note a route, once."""
        if route not in self.routes:
            self.routes.append(route)


class Signaller:
    """Carries signals to families.

    Args:
        pilot_uid: our own; families of this uid are signalled directly.
        owns_sub_uids: other families are at sub-uids of ours, in user namespaces that we own: the kernel lets the owner
            signal these, too. Where it does not, the switch is next.
        switch_calls: the switch, or None when there is none.
        group: a family's cgroup, if it has one.
    """

    def __init__(
        self,
        families: Families,
        lookout: Lookout,
        own: OwnRight,
        switch_calls: SwitchCalls | None,
        *,
        pilot_uid: int,
        owns_sub_uids: bool = False,
        group: Callable[[Family], Group | None] = lambda family: None,
    ) -> None:
        self._group = group
        self._families = families
        self._lookout = lookout
        self._own = own
        self._switch_calls = switch_calls
        self._pilot_uid = pilot_uid
        self._owns_sub_uids = owns_sub_uids
        self._controls: dict[str, Control] = {}
        self._orders: dict[str, tuple[str | None, str]] = {}

    def add(self, family: Family, *, control: Control | None, credential: str | None, audit_id: str) -> None:
        """What a family's routes need. A second time: what is new replaces what was there."""
        if control is not None:
            self.remove(family)
            self._controls[family.name] = control
        self._orders[family.name] = (credential, audit_id)

    def remove(self, family: Family) -> None:
        """Forget a family's routes. Closes our end of its control socket."""
        control = self._controls.pop(family.name, None)
        if control is not None:
            control.close()
        self._orders.pop(family.name, None)

    def close(self) -> None:
        """Give back all descriptors."""
        for control in self._controls.values():
            control.close()
        self._controls.clear()

    def control(self, family: Family) -> Control | None:
        """The control socket, while somebody listens on it. That of a sub-family steers more than the
        sub-family."""
        control = self._controls.get(family.name)
        return control if control is not None and control.alive and family.parent is None else None

    def reason(self, family: Family) -> tuple[str | None, str]:
        """Credential and audit id of a family's calls; a sub-family has its parent's unless it has its
        own."""
        return next((self._orders[each.name] for each in family.lineage() if each.name in self._orders), (None, ""))

    # --- one signal -----------------------------------------------------------------------------------------

    async def send(self, family: Family, number: int, *, to_all: bool) -> None:
        """One signal, once. FamilyRefused("no-route") when no route carried it."""
        if not self._recipients(family, to_all):
            return
        control = self.control(family)
        try:
            if control is not None:
                control.signal(number, "all" if to_all else "root")
                return
        except RouteFailed:
            pass  # the next route is tried, and has words of its own
        await self._send_without_control(family, number, lambda: self._recipients(family, to_all), tree=to_all)

    def _recipients(self, family: Family, to_all: bool) -> list[ProcessId]:
        self._lookout.look(family)
        running = self._families.running(family)
        return running if to_all else [each for each in running if each == family.root]

    async def suspend(self, family: Family) -> None:
        """SIGSTOP until nobody runs; as `send`."""
        control = self.control(family)
        try:
            if control is not None:
                control.stop()
                return
        except RouteFailed:
            pass  # as above
        if not await self._freeze_group(family):
            await self._stop_all(family)

    async def resume(self, family: Family) -> None:
        """SIGCONT to all; as `send`."""
        if self._thaw_group(family):
            return
        control = self.control(family)
        try:
            if control is not None:
                control.resume()
                return
        except RouteFailed:
            pass  # as above
        if self._recipients(family, True):
            await self._send_without_control(family, signal.SIGCONT, lambda: self._recipients(family, True), tree=True)

    async def _freeze_group(self, family: Family) -> bool:
        """By its cgroup, until the kernel says that all are stopped; False when that is no way here."""
        group = self._group(family)
        try:
            if group is None:
                return False
            group.freeze()
        except GroupFailed:
            return False
        await _until(lambda: group.settled or not group.populated)
        return True

    def _thaw_group(self, family: Family) -> bool:
        """Whether the family was frozen by its cgroup, and is no more."""
        group = self._group(family)
        try:
            if group is None or not group.frozen:
                return False
            group.thaw()
        except GroupFailed as failed:
            raise FamilyRefused("no-route", str(failed)) from None
        return True

    async def _stop_all(self, family: Family) -> None:
        self._lookout.look(family)
        if self._families.running(family) and (not self._owns(family) or await self._freeze(family)):
            await self._send_without_control(family, signal.SIGSTOP, lambda: self._tops(family), tree=True)

    async def _send_without_control(
        self, family: Family, number: int, targets: Callable[[], list[ProcessId]], *, tree: bool
    ) -> None:
        asked = targets() if self._owns(family) else []
        refused = self._own.send(asked, number)
        try:
            if not self._is_ours(family) and (refused or not self._owns(family)):
                await self._ask_switch(family, number, targets, tree=tree, urgent=True, deadline_s=10.0)
            elif asked and len(refused) == len(asked):
                raise RouteFailed(_not_allowed(refused))
        except RouteFailed as failed:
            raise FamilyRefused("no-route", str(failed)) from None

    def _is_ours(self, family: Family) -> bool:
        """At our own account: no switch leads there."""
        return family.around.uid == self._pilot_uid

    def _owns(self, family: Family) -> bool:
        """Whether the kernel lets us signal it, as far as can be said without trying."""
        return self._is_ours(family) or self._owns_sub_uids

    # --- the end of a family --------------------------------------------------------------------------------

    async def kill(
        self, family: Family, ending: Ending, *, urgent: bool, deadline_s: float, farewell: Farewell | None = None
    ) -> bool:
        """SIGKILL until a full scan finds nobody, or the time is over; False then.

        A farewell comes first, and its grace is on top of `deadline_s`. `ending` tells how, also when this is
        cancelled.
        """
        if farewell is not None and not self._needs_switch(family):
            await self._bid_farewell(family, farewell)
            farewell = None
        grace_s = farewell.grace_s if farewell else 0.0
        with trio.move_on_after(grace_s + deadline_s):
            give_up_s = trio.current_time() + deadline_s
            nobody = False
            while True:
                # A walk is cheaper than a scan, which is only needed where it finds nobody.
                nobody = nobody or not self._anybody(family)
                if nobody and await self._is_empty(family):
                    return True
                left_s = give_up_s - trio.current_time()
                nobody = await self._kill_once(family, ending, urgent=urgent, left_s=left_s, farewell=farewell)
                if not nobody:
                    await trio.sleep(_BETWEEN_ATTEMPTS_S)
                farewell = None
        ending.failure = ending.failure or "the last attempt did not come to an end in time"
        return await self._is_empty(family)

    def _anybody(self, family: Family) -> bool:
        """Whether anybody runs. A walk is spared where a known member does, which is told by reading that one."""
        if any(self._lookout.runs(identity) for identity in self._families.running(family)):
            return True
        self._lookout.look(family)
        # Hidden orphans are listed below the starter, and cannot be read: that is no proof of emptiness.
        return bool(self._families.running(family)) or (family.around.hidden and not self._lookout.proves_empty(family))

    def _needs_switch(self, family: Family) -> bool:
        return self.control(family) is None and not self._owns(family)

    async def _bid_farewell(self, family: Family, farewell: Farewell) -> None:
        """By a route that is free: one signal to the root, and time until it has ended."""
        await self.send(family, farewell.number, to_all=False)
        pause_s = _FIRST_PAUSE_S
        with trio.move_on_after(farewell.grace_s):
            while family.root in self._families.running(family):
                await trio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
                self._lookout.look(family)

    async def _is_empty(self, family: Family) -> bool:
        """A full scan finds nobody, and then a walk that nobody can have dodged; nor does the kernel, in a cgroup."""
        await self._lookout.scan(family)
        group = self._group(family)
        if family.around.hidden and (group is not None or family.name in self._controls):
            return await self._is_over(family, group)
        give_up_s = trio.current_time() + (_REAPED_S if family.around.hidden else 0.0)
        proofs = 0
        while proofs < _PROOFS or trio.current_time() < give_up_s:
            if self._families.running(family) or (group is not None and group.populated):
                return False
            if self._lookout.proves_empty(family):
                return True
            self._lookout.look(family)
            proofs += 1
            await trio.sleep(_FIRST_PAUSE_S if proofs < _PROOFS else _LONGEST_PAUSE_S)
        return False

    async def _is_over(self, family: Family, group: Group | None) -> bool:
        """The proof where /proc hides: an empty cgroup, or the end of a switch's root part, which stays until nobody
        is left below it. Without either it is the usual one: its starter's list of children names the hidden too."""
        if self._families.running(family):
            return False
        if group is not None:
            return not group.populated
        control = self._controls[family.name]
        await _until(lambda: control.gone)
        return control.gone

    async def _kill_once(
        self, family: Family, ending: Ending, *, urgent: bool, left_s: float, farewell: Farewell | None
    ) -> bool:
        """One attempt by the cheapest route that is open, and a look; whether nobody was seen then."""
        control = self.control(family)
        try:
            if control is not None and "control" not in ending.routes:
                ending.used("control")
                self._lookout.look(family)  # for what they have used
                control.kill_all()
                return await self._until_empty(family, CONTROL_PATIENCE_S)
            group = self._group(family)
            if group is not None and farewell is None and "cgroup" not in ending.routes:
                ending.used("cgroup")
                self._lookout.look(family)  # for their peaks
                group.kill()
                await _until(lambda: not group.populated)
                return await self._until_empty(family, 0)
            if self._is_ours(family) or (self._owns_sub_uids and "own" not in ending.routes):
                ending.used("own")
                return await self._kill_own(family)
            ending.used("switch")
            return await self._kill_by_switch(family, ending, urgent=urgent, left_s=left_s, farewell=farewell)
        except (RouteFailed, GroupFailed) as failed:
            ending.failure = str(failed)
            return False

    async def _kill_own(self, family: Family) -> bool:
        """Stop and kill, again and again without a scan in between, until a walk finds nobody."""
        refused: list[ProcessId] = []
        with trio.move_on_after(_OWN_PATIENCE_S):
            while not self._lookout.proves_empty(family):
                await self._freeze(family)
                refused = self._own.send(self._families.running(family), signal.SIGKILL)
                if refused:
                    break
                await self._until_empty(family, _BETWEEN_ATTEMPTS_S)
        if refused:
            raise RouteFailed(_not_allowed(refused))
        return await self._until_empty(family, 0.0)

    async def _kill_by_switch(
        self, family: Family, ending: Ending, *, urgent: bool, left_s: float, farewell: Farewell | None
    ) -> bool:
        def targets() -> list[ProcessId]:
            found = self._tops(family)
            if found and family.starter_alive and family.parent is None and not family.around.hidden:
                # The far side may not signal the starter, but finds below it the orphans that are born meanwhile.
                found.append(family.starter)
            return found

        await self._ask_switch(
            family,
            signal.SIGKILL,
            targets,
            wanted=lambda: self._anybody(family),
            tree=True,
            urgent=urgent,
            deadline_s=left_s,
            on_call=ending.called,
            farewell=farewell,
        )
        return await self._until_empty(family, _LONGEST_PAUSE_S)

    async def _freeze(self, family: Family) -> list[ProcessId]:
        """SIGSTOP everybody, and who was born meanwhile: what is stopped can't fork. Those that we may not signal."""
        asked: set[ProcessId] = set()
        refused: list[ProcessId] = []
        for _ in range(_ROUNDS):
            self._lookout.look(family)
            new = [identity for identity in self._families.running(family) if identity not in asked]
            if not new:
                break
            refused += self._own.send(new, signal.SIGSTOP)
            asked.update(new)
            await trio.lowlevel.checkpoint()
        return refused

    async def _until_empty(self, family: Family, patience_s: float) -> bool:
        """Look until nobody is left or the patience is at its end; whether nobody was.

        A walk costs the cores that the dying need: between two of them the known are watched, one after the other.
        """
        give_up_s = trio.current_time() + patience_s
        while True:
            for identity in self._families.running(family):
                while self._lookout.runs(identity) and trio.current_time() < give_up_s:  # noqa: ASYNC110 - as below
                    await trio.sleep(_WATCH_EVERY_S)
            self._lookout.look(family)
            if not self._families.running(family):
                return True
            if trio.current_time() >= give_up_s:
                return False

    # --- the switch -----------------------------------------------------------------------------------------

    def _tops(self, family: Family) -> list[ProcessId]:
        """All that run now, those first whose parents are not among them: the others are below these."""
        self._lookout.look(family)
        members = self._families.members(family)
        running = [process for process in members.values() if process.running]
        pids = {process.id.pid for process in running}
        tops = [process.id for process in sorted(running, key=lambda process: process.parent in pids)]
        # Whom we cannot see, the far side can: by who got them when their parents ended.
        return [*tops, *self._families.reapers(family)] if family.around.hidden else tops

    async def _ask_switch(
        self,
        family: Family,
        number: int,
        targets: Callable[[], list[ProcessId]],
        *,
        tree: bool,
        urgent: bool,
        deadline_s: float,
        wanted: Callable[[], bool] | None = None,
        on_call: Callable[[], None] = lambda: None,
        farewell: Farewell | None = None,
    ) -> None:
        """One order; its targets are looked up while its call is on its way. RouteFailed with the switch's words."""
        if self._switch_calls is None:
            raise RouteFailed("another account's processes, and no switch")
        credential, audit_id = self.reason(family)
        order = Order(
            uid=family.around.uid,
            credential=credential,
            audit_id=audit_id,
            number=number,
            tree=tree,
            deadline_s=max(0.1, deadline_s),
            farewell=(farewell, family.root) if farewell else None,
        )
        report = await self._switch_calls.ask(order, targets, wanted=wanted, urgent=urgent, on_call=on_call)
        if report.failure is not None:
            raise RouteFailed(report.failure)


async def _until(condition: Callable[[], bool]) -> None:
    """Poll what the kernel says for as long as it may need."""
    with trio.move_on_after(_GROUP_PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - nobody tells us
            await trio.sleep(_FIRST_PAUSE_S)


def _not_allowed(refused: list[ProcessId]) -> str:
    return f"not allowed to signal {len(refused)} processes, as {refused[0].pid}"
