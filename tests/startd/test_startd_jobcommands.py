"""Commands for the running job: who gets a session for its owner, and what can be done with one."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import trio
import trio.testing
from classad2 import ClassAd

from cedar.claims import EXECUTE_SIDE, ClaimId
from cedar.classads import get_str, parse_old
from cedar.client import Negotiate, Resume, connect
from cedar.commands import Command
from cedar.errors import PeerFault, Refused
from cedar.stream import CedarStream
from pilot.rpc import Channel
from startd.held import Held
from startd.jobcommands import MAX_OWNER_SESSIONS
from starter.messages import STARTER, PassedCommand
from tests.startd.startdport import JOB, FakeSpawner, Port, guessed, port

OWNERS = (Command.START_SSHD, Command.STARTER_PEEK)


class Spawner(FakeSpawner):
    """Keeps the starter's end of the channel."""

    async def start(self, ticket: int, activation: Any, fds: tuple[int, int]) -> None:
        self.channel = Channel(trio.socket.fromfd(fds[1], socket.AF_UNIX, socket.SOCK_STREAM), STARTER)


JOB_TEXT = """\
RequestCpus = 1
RequestMemory = 128
RequestDisk = 1024
Requirements = true
User = "alice@x"
ClusterId = 7
ProcId = 1
"""


@asynccontextmanager
async def running() -> AsyncIterator[tuple[Port, Held, Channel]]:
    """A port, a claim with a job of alice's, and the starter's end."""
    async with port() as here:
        held = await here.claim()
        spawner = Spawner()
        here.claims.spawner = cast(Any, spawner)
        job = parse_old(JOB_TEXT)
        reader = await here.say(Command.ACTIVATE_CLAIM, held.claim_id, held.claim_id.text, 2, job)
        assert reader is not None
        assert reader.int() == 1
        await trio.testing.wait_all_tasks_blocked()
        here.claims.starter_runs(1, 4711)
        async with spawner.channel:
            yield here, held, spawner.channel


async def asked(here: Port, command: Command, on: ClaimId, **values: str) -> ClassAd:
    ad = ClassAd()
    for name, value in values.items():
        ad[name] = value
    reader = await here.say(command, on, ad)
    assert reader is not None
    return reader.ad()


async def owner(here: Port, held: Held) -> ClaimId:
    claim = held.claim_id
    answer = await asked(here, Command.CREATE_JOB_OWNER_SEC_SESSION, claim, ClaimId=claim.text, SessionInfo="[]")
    assert answer["Result"] is True
    assert answer["StarterIpAddr"] == str(here.address)
    return ClaimId.parse(get_str(answer, "ClaimId"))


async def locate(here: Port, held: Held, job: str) -> ClassAd:
    return await asked(
        here, Command.CA_CMD, held.claim_id, Command="CA_LOCATE_STARTER", ClaimId=held.claim_id.text, GlobalJobId=job
    )


async def test_the_starter_is_found_at_the_startds_own_address() -> None:
    async with running() as (here, held, _):
        answer = await locate(here, held, "schedd@x#7.1#1700000000")
        assert (answer["Result"], answer["StarterIpAddr"]) == ("Success", str(here.address))
        assert (answer["MyType"], answer["TargetType"]) == ("Reply", "Command")


async def test_failure_is_said_only_of_a_job_that_has_ended_here() -> None:
    async with port() as here:
        held = await here.claim()
        with pytest.raises(PeerFault):
            await locate(here, held, "schedd@x#7.1#1700000000")  # its activation may be on the way
    async with running() as (here, held, _):
        with pytest.raises(PeerFault):
            await locate(here, held, "schedd@x#8.1#1700000000")
        assert here.claims.starter_ended(4711, 0)
        answer = await locate(here, held, "schedd@x#7.1#1700000000")
        assert answer["Result"] == "Failure"
        assert get_str(answer, "ErrorString")


async def test_other_commands_of_that_kind_are_not_served() -> None:
    async with running() as (here, held, _):
        answer = await asked(here, Command.CA_CMD, held.claim_id, Command="CA_ACTIVATE_CLAIM")
        assert answer["Result"] == "InvalidRequest"


@pytest.mark.parametrize("command", [Command.CA_CMD, Command.CREATE_JOB_OWNER_SEC_SESSION])
async def test_one_claims_session_learns_nothing_of_another(command: Command) -> None:
    async with running() as (here, held, _):
        other = await here.claim()
        with pytest.raises(PeerFault):
            await asked(here, command, other.claim_id, Command="CA_LOCATE_STARTER", ClaimId=held.claim_id.text)
        assert held.owner_sids == other.owner_sids == []


async def test_a_claim_without_a_job_has_no_owner() -> None:
    async with port() as here:
        held = await here.claim()
        claim = held.claim_id
        answer = await asked(here, Command.CREATE_JOB_OWNER_SEC_SESSION, claim, ClaimId=claim.text)
        assert answer["Result"] is False
        assert "ClaimId" not in answer


@pytest.mark.parametrize("command", OWNERS)
async def test_an_owners_command_reaches_the_starter_with_its_connection(command: Command) -> None:
    async with running() as (here, held, starter):
        session = await owner(here, held)
        stream = await connect(here.address, command, Resume(session.session(EXECUTE_SIDE)), subsystem="TOOL")
        async with stream:
            await stream.put(JOB)
            with trio.fail_after(30):
                message, fds = await starter.receive()
            assert isinstance(message, PassedCommand)
            assert (message.command, message.identity) == (command, "alice@x")
            assert get_str(ClassAd(message.request), "User") == "alice@x"
            async with CedarStream.adopt(socket.socket(fileno=fds[0]), message.stream_state) as there:
                await there.put(42)
            assert (await stream.get()).int() == 42


async def test_an_owners_session_is_good_for_nothing_else() -> None:
    async with running() as (here, held, _):
        session = await owner(here, held)
        for command in set(Command) - set(OWNERS):
            with pytest.raises((Refused, PeerFault)):
                await connect(here.address, command, Resume(session.session(EXECUTE_SIDE)), subsystem="TOOL")


@pytest.mark.parametrize("command", OWNERS)
async def test_nobody_else_reaches_the_starter(command: Command) -> None:
    async with running() as (here, held, starter):
        session = await owner(here, held)
        for wrong in (guessed(session), held.claim_id, here.slot.current):
            with pytest.raises((Refused, PeerFault)):
                await here.say(command, wrong, JOB)
        with pytest.raises((Refused, PeerFault)):
            await connect(here.address, command, Negotiate(authentication="OPTIONAL"), subsystem="TOOL", deadline_s=60)
        heard: list[object] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hear, starter, heard)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert heard == []


async def hear(starter: Channel, heard: list[object]) -> None:
    heard.append(await starter.receive())


async def test_the_session_ends_with_the_job() -> None:
    async with running() as (here, held, _):
        session = await owner(here, held)
        assert here.claims.starter_ended(4711, 0)
        with pytest.raises(Refused):
            await here.say(Command.STARTER_PEEK, session, JOB)


async def test_owners_sessions_are_limited_in_number() -> None:
    async with running() as (here, held, _):
        first = await owner(here, held)
        before = len(here.slots.sessions)
        for _ in range(MAX_OWNER_SESSIONS + 3):
            await owner(here, held)
        assert len(here.slots.sessions) == before + MAX_OWNER_SESSIONS - 1
        with pytest.raises(Refused):
            await here.say(Command.STARTER_PEEK, first, JOB)
