"""What carries out a claim's life, against peers that come too early, too late, or with nonsense."""

from __future__ import annotations

import logging
import socket
from typing import Any, cast

import pytest
import trio

from cedar.classads import parse_old
from cedar.errors import PeerFault
from cedar.sessions import SessionTable
from pilot.configuration import load
from startd.claim import WrongState
from startd.claims import Claims
from startd.commands import _requester
from startd.held import Requester, Slots
from startd.processes import Spawner
from startd.resources import Resources
from startd.slottypes import plan
from starter.messages import Activation
from tests.startd.startdport import ONE_SLOT

LOG = logging.LoggerAdapter(logging.getLogger("test"), {})
TOTAL = Resources(4, 4000, 100_000)
ADDRESS = "<127.0.0.1:4242?noUDP>"


class FakeSpawner:
    """Takes every request for a starter, and starts none."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    async def start(self, ticket: int, activation: Activation, fds: tuple[int, int]) -> None:
        self.asked.append(ticket)


def activation() -> Activation:
    return Activation("slot1_1", "id", "", "", {}, ADDRESS, 1, 1, 1, 1.0, "/nowhere")


async def test_an_activation_that_comes_too_late_leaves_the_first_one_alone() -> None:
    spawner = FakeSpawner()
    async with trio.open_nursery() as nursery:
        slots = Slots("node", ADDRESS, 1, SessionTable(), plan([ONE_SLOT], TOTAL))
        claims = Claims(
            settings=load(None, {}), slots=slots, spawner=cast(Spawner, spawner), nursery=nursery, log=LOG,
            changed=lambda: None, destroyed=lambda name: None,
        )  # fmt: skip
        held = claims.carve(claims.slots.first, Resources(1, 128, 1024), Requester(None, "alice@x", 60.0, 10.0))
        shadows = [socket.socketpair() for _ in range(2)]
        claims.new_activation(held, activation(), shadows[0][0], "1.0")
        first = (held.ticket, held.starter, held.job_id)
        with pytest.raises(WrongState):
            claims.new_activation(held, activation(), shadows[1][0], "2.0")
        assert (held.ticket, held.starter, held.job_id) == first
        assert shadows[1][0].fileno() >= 0, "still the caller's"
        await trio.testing.wait_all_tasks_blocked()
        claims.starter_runs(1, 4711)
        assert (spawner.asked, held.starter_pid, held.life.state.value) == ([1], 4711, "busy")
        nursery.cancel_scope.cancel()
    for pair in shadows:
        for end in pair:
            end.close()


@pytest.mark.parametrize("lease", ['real("NaN")', 'real("INF") - real("INF")'])
def test_a_lease_that_is_no_number_is_refused(lease: str) -> None:
    with pytest.raises(PeerFault):
        _requester(parse_old(f"JobLeaseDuration = {lease}"), "", 10)


@pytest.mark.parametrize(("lease", "granted_s"), [('real("INF")', 7 * 86_400), ("-5", 1), ("60", 60)])
def test_a_lease_is_held_within_limits(lease: str, granted_s: float) -> None:
    got: Any = _requester(parse_old(f"JobLeaseDuration = {lease}"), "", 10)
    assert got.lease_s == granted_s


async def test_the_first_user_is_remembered_when_others_come_and_when_he_goes() -> None:
    async with trio.open_nursery() as nursery:
        claims = Claims(
            settings=load(None, {}), slots=Slots("node", ADDRESS, 1, SessionTable(), plan([ONE_SLOT], TOTAL)),
            spawner=cast(Spawner, FakeSpawner()), nursery=nursery, log=LOG,
            changed=lambda: None, destroyed=lambda name: None,
        )  # fmt: skip
        held = claims.carve(claims.slots.first, Resources(1, 128, 1024), Requester(None, "alice@x", 60.0, 10.0))
        claims.slots.give_back(held, broken=False)
        claims.carve(claims.slots.first, Resources(1, 128, 1024), Requester(None, "bob@x", 60.0, 10.0))
        assert claims.first_user == "alice@x"
