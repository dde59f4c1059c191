"""A startd's advertisers at several collectors: real pools, and beside them ones that misbehave."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import classad2
import pytest
import trio

from cedar import tokens
from cedar.client import Negotiate, connect
from cedar.commands import Command
from cedar.security import HANDSHAKE_DEADLINE_S
from cedar.server import Request, Served, Server, ServerPolicy
from cedar.sessions import SessionTable
from cedar.sinful import Sinful
from startd.advertise import SEND_WITHIN_S, Advertiser
from tests.pool.conftest import LivePool, eventually

OWN = "<127.0.0.1:9>"


@attrs.define
class Slot:
    """One slot's ads, which a test may change."""

    ads_sent: int = 0
    padding: str = ""

    def ads(self) -> list[tuple[classad2.ClassAd, classad2.ClassAd]]:
        self.ads_sent += 1
        public, private = classad2.ClassAd(), classad2.ClassAd()
        for name, value in {"MyType": "Machine", "Name": "slot1@node", "MyAddress": OWN, "State": "Unclaimed"}.items():
            public[name] = value
        public["Count"], public["Padding"] = self.ads_sent, self.padding
        private["Name"], private["MyAddress"], private["ClaimId"] = "slot1@node", OWN, "x"
        return [(public, private)]


@attrs.define
class Pilot:
    """Advertisers in a nursery, with what they say."""

    nursery: trio.Nursery
    caplog: pytest.LogCaptureFixture
    slot: Slot = attrs.field(factory=Slot)

    def advertise(self, collector: Sinful, tokens_dir: Path, **more: Any) -> Advertiser:
        made = Advertiser(
            collector=collector,
            wishes=lambda: Negotiate(tokens_dir, ("TOKEN",)),
            own_address=OWN,
            ads=self.slot.ads,
            interval_s=60.0,
            log=logging.LoggerAdapter(logging.getLogger("advertise"), {}),
            **more,
        )
        self.nursery.start_soon(made.run)
        return made

    async def told(self, collector: Sinful, text: str) -> None:
        async def look() -> str:
            return "\n".join(record.getMessage() for record in self.caplog.records)

        await eventually(look, lambda lines: any(str(collector) in line and text in line for line in lines.split("\n")))


async def names(pool: LivePool) -> list[str]:
    stream = await connect(pool.address, Command.QUERY_STARTD_ADS, Negotiate(None, (), "NEVER"), subsystem="TOOL")
    async with stream:
        await stream.put(classad2.ClassAd())
        reader, found = await stream.get(), []
        while reader.int() == 1:
            found.append(str(reader.ad()["Name"]))
        return found


Behaviour = Callable[[trio.SocketStream], Awaitable[None]]


async def silent(stream: trio.SocketStream) -> None:
    while await stream.receive_some(65536):
        pass


async def closing(stream: trio.SocketStream) -> None:
    return


async def saying(raw: bytes, stream: trio.SocketStream) -> None:
    await stream.receive_some(1)
    await stream.send_all(raw)
    await silent(stream)


@attrs.define
class Fake:
    """A listener that treats each connection in its own way; counts them."""

    address: Sinful
    open_now: int = 0
    most: int = 0
    seen: int = 0

    @classmethod
    async def start(cls, nursery: trio.Nursery, behave: Behaviour) -> Fake:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        fake = cls(Sinful("127.0.0.1", listeners[0].socket.getsockname()[1]))

        async def serve(stream: trio.SocketStream) -> None:
            fake.open_now, fake.seen = fake.open_now + 1, fake.seen + 1
            fake.most = max(fake.most, fake.open_now)
            async with stream:
                try:
                    await behave(stream)
                except trio.BrokenResourceError:
                    pass
                finally:
                    fake.open_now -= 1

        nursery.start_soon(trio.serve_listeners, serve, listeners)
        return fake


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


async def seen_again(fake: Fake) -> None:
    async def look() -> int:
        return fake.seen

    await eventually(look, lambda seen: seen >= 2)


GARBAGE = {
    "text": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "empty packet": b"\1\0\0\0\0",
    "huge packet": b"\1\xff\xff\xff\xff",
    "no ad": b"\1\0\0\0\10" + bytes(8),
}


async def test_two_pools_are_served_whatever_the_others_do(
    start_pool: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "advertise")
    second = {
        "sailplane_pool_dir": tmp_path / "p2",
        "sailplane_pool_socket": tmp_path / "s2",
        "spool": tmp_path / "sp2",
    }
    async with start_pool() as one, start_pool(**second) as two, trio.open_nursery() as others:
        fakes = [await Fake.start(others, partial(saying, raw)) for raw in GARBAGE.values()]
        fakes += [await Fake.start(others, silent), await Fake.start(others, closing)]
        key = (one.places.keys / "POOL").read_bytes()
        strangers = tmp_path / "strangers"
        strangers.mkdir()
        text = tokens.mint(key, "POOL", "mallory@pool.test", "pool.test", now_unix_s=time.time())
        (strangers / "t").write_text(text)
        before = open_files()
        async with trio.open_nursery() as nursery:
            pilot = Pilot(nursery, caplog)
            good = [pilot.advertise(pool.address, pool.places.tokens) for pool in (one, two)]
            for fake in fakes:
                pilot.advertise(fake.address, one.places.tokens, dial_within_s=0.3)
            pilot.advertise(Sinful("127.0.0.1", 1), one.places.tokens)
            pilot.advertise(one.address, strangers)
            for pool in (one, two):
                await eventually(partial(names, pool), lambda found: found == ["slot1@node"])
            await pilot.told(fakes[0].address, "framing")
            await pilot.told(fakes[4].address, "timeout: no connection to")
            await pilot.told(fakes[5].address, "closed")
            await pilot.told(Sinful("127.0.0.1", 1), "Connection refused")
            await pilot.told(one.address, "DENIED")
            for fake in fakes:
                await seen_again(fake)
            # Both still hear of changes.
            pilot.slot.padding = "changed"
            for advertiser in good:
                advertiser.wake()
            for pool in (one, two):
                await eventually(partial(padding, pool), lambda found: found == ["changed"])
            nursery.cancel_scope.cancel()
        for pool in (one, two):
            assert await names(pool) == []
        assert [fake.most for fake in fakes] == [1] * len(fakes)
        await eventually(partial(trio.to_thread.run_sync, open_files), lambda now: now <= before)
        assert "PRIVATE" not in caplog.text
        assert text.rpartition(".")[2] not in caplog.text
        others.cancel_scope.cancel()


async def padding(pool: LivePool) -> list[str]:
    stream = await connect(pool.address, Command.QUERY_STARTD_ADS, Negotiate(None, (), "NEVER"), subsystem="TOOL")
    async with stream:
        await stream.put(classad2.ClassAd())
        reader, found = await stream.get(), []
        while reader.int() == 1:
            found.append(str(reader.ad()["Padding"]))
        return found


async def test_a_collector_that_comes_back_is_told_at_once_and_not_at_the_next_update(
    start_pool: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "advertise")
    async with trio.open_nursery() as nursery:
        pilot = Pilot(nursery, caplog)
        async with start_pool() as pool:
            pilot.advertise(pool.address, pool.places.tokens, lost_pause_s=0.5)
            await eventually(partial(names, pool), lambda found: found == ["slot1@node"])
        async with start_pool(sailplane_pool_port=pool.address.port) as pool:
            await eventually(partial(names, pool), lambda found: found == ["slot1@node"])
        nursery.cancel_scope.cancel()


async def test_a_collector_that_does_not_read_is_given_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    key = tokens.new_signing_key()
    for name, text in {"keys/POOL": key, "tokens/t": b""}.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(text)
    (tmp_path / "tokens/t").write_text(tokens.mint(key, "POOL", "condor@d", "d", now_unix_s=time.time()))
    updates = 0

    async def take_none(request: Request) -> None:
        nonlocal updates
        updates += 1
        await trio.sleep_forever()

    policy = ServerPolicy(tmp_path / "keys", "d", ("TOKEN",), lambda caller, level: True)
    server = Server({int(Command.UPDATE_STARTD_AD): Served("DAEMON", take_none)}, SessionTable(), policy)
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await nursery.start(server.serve, listeners)
        pilot = Pilot(nursery, caplog, Slot(padding="x" * 15_000_000))
        address = Sinful("127.0.0.1", listeners[0].socket.getsockname()[1])
        pilot.advertise(address, tmp_path / "tokens", send_within_s=0.3)
        await pilot.told(address, "timeout: it did not take an update within 0.3 s")
        assert updates == 1
        nursery.cancel_scope.cancel()


def test_trouble_is_told_in_time() -> None:
    assert max(HANDSHAKE_DEADLINE_S, SEND_WITHIN_S) <= 25
