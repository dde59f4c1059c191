"""How often ads go out: what their making costs is bounded, however many slots change."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

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
    """Takes one update on each connection, and reads on when it may; and all that is taken back."""

    updated: trio.Event = field(factory=trio.Event)
    reads_on: trio.Event = field(factory=trio.Event)
    said: list[tuple[int, str]] = field(factory=list)
    """By command and name, in the order in which they came."""
    heard: trio.Condition = field(factory=trio.Condition)

    async def serve(self, request: Request) -> None:
        command, reader = request.command, await request.stream.get()
        while True:
            async with self.heard:
                self.said.append((command, get_str(reader.ad(), "Name", "")))
                self.heard.notify_all()
            self.updated.set()
            if command == Command.UPDATE_STARTD_AD:
                await self.reads_on.wait()
            reader = await request.stream.get()
            command = reader.int()

    async def until(self, command: Command, *names: str) -> None:
        """Until these have come, and no others of that command."""
        with trio.fail_after(60):
            async with self.heard:
                while [name for said, name in self.said if said == command] != list(names):
                    await self.heard.wait()


@asynccontextmanager
async def advertised(collector: Collector, ads: Callable[[], list[ClassAd]]) -> AsyncIterator[Advertiser]:
    """An advertiser that has had its first update taken; cancelled at the block's end, and said good-bye then."""
    served = Served("READ", collector.serve)
    table = {int(Command.UPDATE_STARTD_AD): served, int(Command.INVALIDATE_STARTD_ADS): served}
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        policy = ServerPolicy(None, "x", ("FS",), lambda caller, level: True)
        await nursery.start(Server(table, SessionTable(), policy).serve, listeners)
        address = Sinful("127.0.0.1", listeners[0].socket.getsockname()[1], {"noUDP": ""})
        advertiser = Advertiser(
            address, lambda: Negotiate(methods=("FS",)), str(address), lambda: [(ad, None) for ad in ads()], 60.0, LOG
        )
        async with trio.open_nursery() as running:
            running.start_soon(advertiser.run)
            with trio.fail_after(60):
                await collector.updated.wait()
                await advertiser.advertised.wait()
            yield advertiser
            running.cancel_scope.cancel()
        with trio.fail_after(30):
            await collector.until(Command.INVALIDATE_STARTD_ADS, *EXPECTED)
        nursery.cancel_scope.cancel()


EXPECTED = ("slot1_1@x", "slot1@x", "slot2@x")


class Listed:
    """Ads of two slots and, if there, of one that is carved; the first may be larger than a kernel's buffers."""

    def __init__(self) -> None:
        self.names, self.text, self.begun = ["slot1@x", "slot2@x"], "", trio.Event()

    def __call__(self) -> list[ClassAd]:
        if self.text:
            self.begun.set()
        return [ClassAd({"Name": name, "MyType": "Machine", "Text": self.text}) for name in self.names]

    async def stuck(self, advertiser: Advertiser) -> None:
        """An update is under way, and the collector does not read."""
        self.text = "x" * LARGE_CHARS
        advertiser.wake()
        with trio.fail_after(60):
            await self.begun.wait()
        await trio.testing.wait_all_tasks_blocked(0.05)
        self.text = ""


async def test_a_collector_that_talks_nonsense_hangs_up_or_says_nothing_is_tried_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    came = trio.Event()
    manners = iter((b"\x00\xff nonsense" * 99, b"\x01\x00\x00\x00\x08deadbeef", b"", None))

    async def misbehave(stream: trio.SocketStream) -> None:
        said = next(manners, None)
        async with stream:
            if said is None:  # not a word, until the advertiser has had enough; then the next one is the proof
                if next(left, None) is None:
                    came.set()
                await stream.receive_some()
                await trio.sleep_forever()
            await stream.receive_some()
            await stream.send_all(said)

    left = iter((1,))
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, misbehave, 0)
        address = Sinful("127.0.0.1", listeners[0].socket.getsockname()[1], {"noUDP": ""})
        advertiser = Advertiser(
            address, lambda: Negotiate(methods=("FS",)), str(address), lambda: [(ad, None) for ad in Listed()()],
            60.0, LOG, dial_within_s=0.3,
        )  # fmt: skip
        nursery.start_soon(advertiser.run)
        with trio.fail_after(60):
            await came.wait()
        assert not advertiser.advertised.is_set()
        nursery.cancel_scope.cancel()
    assert "trying again" in caplog.text


async def test_ads_are_taken_back_also_by_a_startd_that_ends_in_mid_update() -> None:
    listed = Listed()
    async with advertised(Collector(), listed) as advertiser:
        await listed.stuck(advertiser)
        advertiser.gone("slot1_1@x")


async def test_a_slot_that_is_destroyed_in_mid_update_is_taken_back() -> None:
    """It is among the ads that are being sent, but no later slot of that name is."""
    listed, collector = Listed(), Collector()
    async with advertised(collector, listed) as advertiser:
        listed.names.append("slot1_1@x")
        await listed.stuck(advertiser)
        listed.names.remove("slot1_1@x")
        advertiser.gone("slot1_1@x")
        collector.reads_on.set()
        await collector.until(Command.INVALIDATE_STARTD_ADS, "slot1_1@x")


async def test_a_name_that_many_slots_had_is_taken_back_once() -> None:
    """As after an hour without this collector, in which slots of the same few names have come and gone."""
    listed, collector = Listed(), Collector()
    async with advertised(collector, listed) as advertiser:
        listed.names.append("slot1_1@x")
        await listed.stuck(advertiser)
        listed.names.remove("slot1_1@x")
        for _ in range(1000):
            advertiser.gone("slot1_1@x")
        collector.reads_on.set()
        await collector.until(Command.INVALIDATE_STARTD_ADS, "slot1_1@x")


async def test_a_slot_whose_name_is_there_again_is_not_taken_back() -> None:
    listed, collector = Listed(), Collector()
    collector.reads_on.set()
    async with advertised(collector, listed) as advertiser:
        listed.names.append("slot1_1@x")
        advertiser.gone("slot1_1@x")
        first, second, new = ((int(Command.UPDATE_STARTD_AD), name) for name in listed.names)
        with trio.fail_after(60):
            async with collector.heard:
                while collector.said != [first, second, first, second, new]:
                    await collector.heard.wait()
        listed.names.remove("slot1_1@x")
        advertiser.gone("slot1_1@x")


@pytest.mark.parametrize("cpu_s", [0.0001, 0.001, 0.01])
def test_ads_take_a_small_part_of_a_core(cpu_s: float) -> None:
    assert cpu_s / (cpu_s + rest_s(cpu_s)) == pytest.approx(1 / (1 + PAUSE_PER_CPU))


def test_a_change_is_never_held_back_for_long() -> None:
    assert rest_s(10.0) == LONGEST_PAUSE_S
