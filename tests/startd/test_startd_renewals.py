"""A renewed proxy at the startd's port: a delegation goes to the starter, a copy is refused before it is sent."""

from __future__ import annotations

import socket

import pytest
import trio

from cedar import delegation
from cedar.claims import EXECUTE_SIDE, ClaimId
from cedar.client import Resume, connect
from cedar.commands import Command
from cedar.errors import Refused
from cedar.stream import CedarStream
from startd.held import Held
from starter.messages import PassedCommand, RenewalAnnounced
from tests.startd.startdport import Port, port
from tests.startd.test_startd_jobcommands import running

BOTH = (Command.DELEGATE_GSI_CRED_STARTER, Command.UPDATE_GSI_CRED)


async def call(here: Port, command: Command, claim_id: ClaimId) -> CedarStream:
    return await connect(
        here.address, command, Resume(claim_id.session(EXECUTE_SIDE)), subsystem="SHADOW", deadline_s=30.0
    )


async def test_a_delegation_becomes_the_starters() -> None:
    """The starter speaks first on the connection that it is given."""
    async with running() as (here, held, starter):
        stream = await call(here, Command.DELEGATE_GSI_CRED_STARTER, held.claim_id)
        async with stream:
            message, fds = await starter.receive()
            assert isinstance(message, PassedCommand)
            assert message.command == Command.DELEGATE_GSI_CRED_STARTER
            ours = CedarStream.adopt(socket.socket(fileno=fds[0]), message.stream_state)
            async with ours, trio.open_nursery() as nursery:
                nursery.start_soon(delegation.give, stream, _sign)
                assert await delegation.receive(ours, b"request") == b"request, signed"


async def test_a_copy_is_refused_and_the_starter_hears_of_it() -> None:
    """Refused while the session is resumed: nothing of the file has been sent."""
    async with running() as (here, held, starter):
        with pytest.raises(Refused) as refused:
            await call(here, Command.UPDATE_GSI_CRED, held.claim_id)
        assert refused.value.code == "DENIED"
        with trio.fail_after(30):
            message, _ = await starter.receive()
        assert message == RenewalAnnounced()
        stream = await call(here, Command.DELEGATE_GSI_CRED_STARTER, held.claim_id)  # the session is as good as before
        await stream.aclose()


@pytest.mark.parametrize("command", BOTH)
async def test_neither_reaches_a_claim_without_a_job(command: Command) -> None:
    async with port() as here:
        held: Held = await here.claim()
        with pytest.raises(Refused) as refused:
            await call(here, command, held.claim_id)
        assert refused.value.code == "DENIED"


async def _sign(request: bytes) -> bytes:
    return request + b", signed"
