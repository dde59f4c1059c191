"""A startd's port with nothing behind its claims, for tests of what may be said there."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import cast

import trio
from attrs import define, evolve, field
from classad2 import ClassAd

from cedar.claims import EXECUTE_SIDE, ClaimId
from cedar.classads import parse_old
from cedar.client import Resume, connect
from cedar.codec import Item, Reader
from cedar.commands import Command
from cedar.server import Server, ServerPolicy
from cedar.sessions import SessionTable
from cedar.sinful import Sinful
from pilot.configuration import load
from startd.administration import Administration
from startd.claimagent import ClaimAgent
from startd.claims import Claims
from startd.commands import Commands
from startd.held import Held, Slot, Slots
from startd.machineupdate import MachineUpdate
from startd.processes import Spawner
from startd.resources import Resources
from startd.slotads import Machine, daemon_ad, public_ad
from startd.slottypes import SlotType, plan
from starter.messages import Activation

LOG = logging.LoggerAdapter(logging.getLogger("test"), {})
TOTAL = Resources(4, 4000, 100_000)
ONE_SLOT = SlotType(0, "", 1, partitionable=True)
JOB = parse_old('RequestCpus = 1\nRequestMemory = 128\nRequestDisk = 1024\nRequirements = true\nUser = "alice@x"\n')


class FakeSpawner:
    """Takes every request for a starter, and starts none."""

    async def start(self, ticket: int, activation: Activation, fds: tuple[int, int]) -> None:
        return


@define
class Port:
    """A startd's port, with nothing behind its claims."""

    address: Sinful
    claims: Claims
    administration: Administration
    held_ad: Callable[[Held], ClassAd]
    own_ad: Callable[[Slot], ClassAd]
    ended: list[tuple[str, bool]] = field(factory=list)
    reconfigured: list[None] = field(factory=list)
    update: MachineUpdate = field(factory=MachineUpdate)

    @property
    def slots(self) -> Slots:
        return self.claims.slots

    @property
    def slot(self) -> Slot:
        """The first one."""
        return self.claims.slots.first

    async def say(self, command: Command, session_of: ClaimId, *items: Item, answer: bool = True) -> Reader | None:
        stream = await connect(
            self.address, command, Resume(session_of.session(EXECUTE_SIDE)), subsystem="SCHEDD", deadline_s=30.0
        )
        async with stream:
            if items:
                await stream.put(*items)
            with trio.fail_after(30):
                return await stream.get() if answer else None

    async def claim(self) -> Held:
        """One claim, asked for as a schedd does."""
        held = await self.ask_claim(JOB)
        assert held is not None
        return held

    async def ask_claim(self, job: ClassAd) -> Held | None:
        """The claim for this job; None if it is refused."""
        presented = self.slot.current
        reader = await self.say(Command.REQUEST_CLAIM, presented, presented.text, job, "", 10)
        assert reader is not None
        return self.slots.held[presented.session_id] if reader.int() == 1 else None


@asynccontextmanager
async def port(
    *, own_account: bool = False, start: str = "true", rank: str = "0.0", types: list[SlotType] | None = None
) -> AsyncIterator[Port]:
    """``own_account``: whether the account of this process may command the startd. ``start``,
    ``rank``: START, RANK. ``types``: of its slots."""
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        address = Sinful("127.0.0.1", listeners[0].socket.getsockname()[1], {"noUDP": ""})
        slots = Slots("node", str(address), 1, SessionTable(), plan(types or [ONE_SLOT], TOTAL))
        claims = Claims(
            settings=load(None, {}), slots=slots, spawner=cast(Spawner, FakeSpawner()), nursery=nursery, log=LOG,
            changed=lambda: None, destroyed=lambda name: None,
        )  # fmt: skip
        machine = Machine(
            name="node", fqdn="node.example", address=str(address), arch="X86_64", os="LINUX", os_version="Debian12",
            uid_domain="example", start_time=1, total=TOTAL, start=start, rank=rank, switch="none",
            switch_isolates=False, needs_proxy=False,
        )  # fmt: skip

        def own_ad(slot: Slot) -> ClassAd:
            state = slots.state(
                slot, refused_users=(), draining=claims.drain is not None, drain_start=claims.drain_start, trouble=""
            )
            return public_ad(machine, state, now=int(time.time()), sequence=1)

        def own_daemon_ad() -> ClassAd:
            states = [slots.state(slot, refused_users=(), draining=False, trouble="") for slot in slots.own]
            return daemon_ad(machine, states, now=int(time.time()), sequence=1)

        def held_ad(held: Held) -> ClassAd:
            state = evolve(held.slot_state(False), drain_start=claims.drain_start)
            return public_ad(machine, state, now=int(time.time()), sequence=1)

        update = MachineUpdate()
        commands = Commands(
            claims=claims, procd_socket="/nowhere", slot_ads=lambda: [*map(own_ad, slots.own)], own_ad=own_ad,
            daemon_ad=own_daemon_ad,
            held_ad=held_ad, agent=ClaimAgent(claims, update, LOG), log=LOG,
        )  # fmt: skip
        policy = ServerPolicy(None, "x", ("FS",), lambda caller, level: level == "READ" or own_account)
        ended: list[tuple[str, bool]] = []
        reconfigured: list[None] = []
        administration = Administration(
            claims=claims, ads=lambda: [*map(own_ad, slots.own), *map(held_ad, slots.held.values())],
            shut_down=lambda reason, fast, again: ended.append((reason, fast)),
            reconfigure=lambda: reconfigured.append(None), nursery=nursery, log=LOG,
        )  # fmt: skip
        table = {**commands.table(), **administration.table()}
        await nursery.start(Server(table, slots.sessions, policy).serve, listeners)
        yield Port(address, claims, administration, held_ad, own_ad, ended, reconfigured, update)
        nursery.cancel_scope.cancel()


def guessed(claim: ClaimId) -> ClaimId:
    """The public part of an id, which ads show, with another secret."""
    return ClaimId.parse(f"{claim.session_id}#{claim.info}{'0' * 64}")


def state(port: Port) -> object:
    slots = port.slots
    return [(slot.current.text, slot.free) for slot in slots.own], {
        sid: held.life.state for sid, held in slots.held.items()
    }
