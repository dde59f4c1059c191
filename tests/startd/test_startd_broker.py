"""A startd that nobody can connect to: registered at a broker, it calls back."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from classad2 import ClassAd
from hypothesis import given
from hypothesis import strategies as st

from cedar import ccb
from cedar.classads import get_bool, get_str, parse_old
from cedar.client import Negotiate
from cedar.commands import Command
from cedar.errors import PeerFault
from cedar.server import Request, Served, Server, ServerPolicy
from cedar.sessions import SessionTable
from cedar.sinful import Sinful
from startd.broker import Broker, reached_by
from tests.startd.fakebroker import FakeBroker, called_back, fake_broker

LOG = logging.LoggerAdapter(logging.getLogger("test"), {})
FS = Negotiate(methods=("FS",))


def broker_of(fake: FakeBroker, **more: object) -> Broker:
    return Broker(lambda: fake.address, lambda: FS, "<127.0.0.1:9>", log=LOG, **{"heartbeat_s": 300.0, **more})  # type: ignore[arg-type]


async def _answer(request: Request) -> None:
    await request.stream.get()
    await request.stream.put(1, ClassAd({"Name": "slot1@node"}), 0)


@asynccontextmanager
async def reached(fake: FakeBroker, **more: object) -> AsyncIterator[Broker]:
    """A server behind the broker that answers QUERY_STARTD_ADS, and has no port of its own."""
    broker = broker_of(fake, **more)
    async with trio.open_nursery() as nursery:
        table = {int(Command.QUERY_STARTD_ADS): Served("READ", _answer)}
        policy = ServerPolicy(None, "x", ("FS",), lambda caller, level: level == "READ")
        await nursery.start(Server(table, SessionTable(), policy).serve, [broker])
        nursery.start_soon(broker.run)
        with trio.fail_after(60):
            await broker.registered.wait()
        yield broker
        nursery.cancel_scope.cancel()


async def test_who_asks_the_broker_is_called_back_and_served() -> None:
    async with fake_broker() as fake, reached(fake) as broker:
        assert broker.registration is not None
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with listener:
            here = Sinful("127.0.0.1", listener.socket.getsockname()[1])
            await fake.ask(here, number="17", connect_id="s3cret")
            with trio.fail_after(60):
                transport = await listener.accept()
                said, stream = await called_back(
                    transport, Command.QUERY_STARTD_ADS, Negotiate(authentication="OPTIONAL")
                )
                async with stream:
                    await stream.put(parse_old('MyType = "Query"\n'))
                    reader = await stream.get()
                    assert reader.int() == 1
                    assert reader.ad()["Name"] == "slot1@node"
        assert (said["ClaimId"], said["RequestID"], said["MyAddress"]) == ("s3cret", "17", str(here))
        await fake.until(lambda: fake.outcomes)
        assert get_bool(fake.outcomes[0], "Result") is True


async def test_who_cannot_be_called_back_is_told_why() -> None:
    async with fake_broker() as fake, reached(fake):
        await fake.ask(Sinful("127.0.0.1", 1))
        await fake.until(lambda: fake.outcomes)
        assert get_bool(fake.outcomes[0], "Result") is False
        assert "cannot connect to 127.0.0.1:1" in get_str(fake.outcomes[0], "ErrorString")


async def test_a_lost_connection_is_made_anew_under_the_same_id() -> None:
    moved: list[int] = []
    async with fake_broker() as fake, reached(fake, moved=lambda: moved.append(1)) as broker:
        first = broker.registration
        await fake.streams[0].aclose()
        await fake.until(lambda: len(fake.streams) == 2)
        with trio.fail_after(60):
            await broker.registered.wait()
        assert broker.registration == first
        assert len(moved) == 1
        fake.keeps = False
        await fake.streams[1].aclose()
        await fake.until(lambda: len(fake.streams) == 3)
        with trio.fail_after(60):
            await broker.registered.wait()
        assert broker.registration != first
        assert len(moved) == 2, "another id is another address"


async def test_a_broker_that_falls_silent_is_left(caplog: pytest.LogCaptureFixture) -> None:
    async with fake_broker() as fake:
        fake.silent = True
        async with reached(fake, heartbeat_s=0.1):
            await fake.until(lambda: len(fake.streams) >= 2)
    assert "it said nothing for" in caplog.text
    assert fake.beats >= 2


async def test_signs_of_life_keep_the_connection() -> None:
    async with fake_broker() as fake, reached(fake, heartbeat_s=0.1):
        await fake.until(lambda: fake.beats >= 8)
        assert len(fake.streams) == 1


@pytest.mark.parametrize("number", ["", "x" * 5000])
async def test_a_broker_that_talks_nonsense_is_left_and_tried_again(number: str) -> None:
    async with fake_broker() as fake, reached(fake):
        await fake.ask(Sinful("127.0.0.1", 1), number=number)
        await fake.until(lambda: len(fake.streams) == 2)
        assert not fake.outcomes


@pytest.mark.parametrize(
    ("address", "connect_id"),
    [
        (str(Sinful("127.0.0.1", 1)), ""),
        (str(Sinful("127.0.0.1", 1)), "x" * 5000),
        ("nowhere", "secret"),
        ("", "secret"),
        ("<a..b:1>", "secret"),
        ("<127.0.0.1:{port}?sock=%00>", "secret"),
    ],
)
async def test_a_strangers_nonsense_costs_neither_startd_nor_broker(address: str, connect_id: str) -> None:
    async with fake_broker() as fake, reached(fake):
        await fake.ask(address.replace("{port}", str(fake.address.port)), connect_id=connect_id)
        await fake.until(lambda: fake.outcomes)
        assert get_bool(fake.outcomes[0], "Result") is False
        await fake.ask(Sinful("127.0.0.1", 1))
        await fake.until(lambda: len(fake.outcomes) == 2)
        assert len(fake.streams) == 1


@pytest.mark.parametrize(
    "ad",
    [
        {},
        {"Command": 60},
        {"Command": "441"},
        {"Command": 68, "ClaimId": "1", "MyAddress": "<127.0.0.1:1>"},
    ],
)
def test_what_is_no_request_is_refused(ad: dict[str, object]) -> None:
    with pytest.raises(PeerFault):
        ccb.request_of(ClassAd(ad))


@given(st.text(max_size=200))
def test_no_id_makes_an_address_that_is_another_one(text: str) -> None:
    if ccb._is_ccbid(text):
        broker = broker_of(FakeBroker(Sinful("127.0.0.1", 1)))
        broker.registration = ccb.Registration(text)
        told = reached_by(Sinful("192.0.2.1", 9618, {"noUDP": ""}), [broker], "site")
        assert Sinful.parse(str(told)) == told
        assert told.params["CCBID"] == text


def test_the_address_names_every_broker_and_the_private_network() -> None:
    fake = FakeBroker(Sinful("127.0.0.1", 1))
    brokers = [broker_of(fake) for _ in range(3)]
    brokers[0].registration, brokers[2].registration = ccb.Registration("a:1#1"), ccb.Registration("b:1?addrs=b-1#2")
    told = reached_by(Sinful("192.0.2.1", 9618, {"noUDP": ""}), brokers, "site")
    assert str(told) == "<192.0.2.1:9618?CCBID=a:1#1%20b:1%3faddrs%3db-1#2&PrivNet=site&noUDP>"
    assert reached_by(Sinful("192.0.2.1", 1), [], "site") == Sinful("192.0.2.1", 1)
