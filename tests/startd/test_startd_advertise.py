"""How often ads go out: what their making costs is bounded, however many slots change."""

from __future__ import annotations

import logging

import pytest
import trio
import trio.testing
from attrs import define, field
from classad2 import ClassAd

from cedar.classads import get_str
from cedar.client import Negotiate
from cedar.commands import Command
from cedar.server import Request, Served, Server, ServerPolicy
from cedar.sessions import SessionTable
from cedar.sinful import Sinful
from startd.advertise import LONGEST_PAUSE_S, PAUSE_PER_CPU, Advertiser, rest_s

LOG = logging.LoggerAdapter(logging.getLogger("test"), {})
# More than the kernel holds for a peer that does not read.
LARGE_CHARS = 1 << 23


@define
class Collector:
    """Takes one update on each connection, and reads no further; and all that is taken back."""

    updated: trio.Event = field(factory=trio.Event)
    taken_back: list[str] = field(factory=list)
    three: trio.Event = field(factory=trio.Event)

    async def update(self, request: Request) -> None:
        await request.stream.get()
        self.updated.set()
        await trio.sleep_forever()

    async def take_back(self, request: Request) -> None:
        reader = await request.stream.get()
        while True:
            self.taken_back.append(get_str(reader.ad(), "Name", ""))
            if len(self.taken_back) == 3:
                self.three.set()
            reader = await request.stream.get()
            assert reader.int() == Command.INVALIDATE_STARTD_ADS


async def test_ads_are_taken_back_also_by_a_startd_that_ends_in_mid_update() -> None:
    ads = [ClassAd({"Name": name, "MyType": "Machine", "Text": ""}) for name in ("slot1@x", "slot2@x")]
    collector, begun = Collector(), trio.Event()

    def listed() -> list[tuple[ClassAd, ClassAd | None]]:
        if ads[0]["Text"]:
            begun.set()
        return [(ad, None) for ad in ads]

    table = {
        int(Command.UPDATE_STARTD_AD): Served("READ", collector.update),
        int(Command.INVALIDATE_STARTD_ADS): Served("READ", collector.take_back),
    }
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        policy = ServerPolicy(None, "x", ("FS",), lambda caller, level: True)
        await nursery.start(Server(table, SessionTable(), policy).serve, listeners)
        address = Sinful("127.0.0.1", listeners[0].socket.getsockname()[1], {"noUDP": ""})
        advertiser = Advertiser(address, lambda: Negotiate(methods=("FS",)), str(address), listed, 60.0, LOG)
        async with trio.open_nursery() as running:
            running.start_soon(advertiser.run)
            with trio.fail_after(20):
                await collector.updated.wait()
                await advertiser.advertised.wait()
            ads[0]["Text"] = "x" * LARGE_CHARS
            advertiser.gone("slot1_1@x")
            with trio.fail_after(20):
                await begun.wait()
            await trio.testing.wait_all_tasks_blocked(0.05)
            running.cancel_scope.cancel()
        with trio.fail_after(5):
            await collector.three.wait()
        assert collector.taken_back == ["slot1_1@x", "slot1@x", "slot2@x"]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("cpu_s", [0.0001, 0.001, 0.01])
def test_ads_take_a_small_part_of_a_core(cpu_s: float) -> None:
    assert cpu_s / (cpu_s + rest_s(cpu_s)) == pytest.approx(1 / (1 + PAUSE_PER_CPU))


def test_a_change_is_never_held_back_for_long() -> None:
    assert rest_s(10.0) == LONGEST_PAUSE_S
