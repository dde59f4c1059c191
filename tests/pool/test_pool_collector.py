"""The collector: stock HTCondor's client, tokens right and wrong, and what stays private."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from cedar import classads, tokens
from cedar.client import Negotiate, connect
from cedar.commands import Command
from cedar.errors import PeerFault, Refused
from cedar.stream import CedarStream
from tests.pool.conftest import LivePool, eventually
from tests.pool.fake_ep import FakeEP

CLIENT = Path(__file__).with_name("stock_client.py")


async def stock(pool: LivePool, what: str, tokens_dir: Path) -> Any:
    environ = {"PATH": os.environ["PATH"]}
    command = [sys.executable, "-W", "ignore", str(CLIENT), str(pool.address), str(tokens_dir), what]
    with trio.fail_after(60):
        done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, env=environ, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


async def names(pool: LivePool) -> list[str]:
    async with await connect(
        pool.address, Command.QUERY_STARTD_ADS, Negotiate(authentication="OPTIONAL"), subsystem="TOOL"
    ) as stream:
        await stream.put(classads.parse_old('MyType = "Query"\n'))
        reader = await stream.get()
        found = []
        while reader.int():
            found.append(classads.get_str(reader.ad(), "Name"))
        return sorted(found)


@pytest.fixture
def no_tokens(tmp_path: Path) -> Path:
    place = tmp_path / "no-tokens"
    place.mkdir(mode=0o700)
    return place


async def test_stock_queries(start_pool: Callable[..., Any], no_tokens: Path) -> None:
    async with start_pool() as pool, FakeEP(pool.address, pool.places.tokens).running() as ep:
        await eventually(lambda: names(pool), lambda found: found == ["slot1@fake"])
        (ad,) = await stock(pool, "query", no_tokens)
        assert ad["Name"] == "slot1@fake"
        assert ad["AuthenticatedIdentity"] == "condor@pool.test"
        assert not any(classads.is_private(name) for name in ad)
        assert ep._claim.secret not in json.dumps(ad)
        (shown,) = await stock(pool, "project", no_tokens)
        assert {"Name", "Cpus"} <= set(shown)
        assert "Memory" not in shown
        assert await stock(pool, "nothing", no_tokens) == []


async def test_stock_locates_startd_and_collector(start_pool: Callable[..., Any], no_tokens: Path) -> None:
    async with start_pool() as pool, FakeEP(pool.address, pool.places.tokens, name="localhost").running() as ep:
        await eventually(lambda: names(pool), lambda found: found == ["slot1@localhost"])
        assert await stock(pool, "locate", no_tokens) == ep.address
        assert await stock(pool, "self", no_tokens) == str(pool.address)


async def test_stock_advertises_with_our_token_only(start_pool: Callable[..., Any], no_tokens: Path) -> None:
    async with start_pool() as pool:
        assert await stock(pool, "advertise", pool.places.tokens) == "sent"
        await eventually(lambda: names(pool), lambda found: found == ["slot1@stock"])
    async with start_pool() as pool:
        answer = await stock(pool, "advertise", no_tokens)
        assert answer.startswith("failed")
        assert await names(pool) == []


def token_directory(tmp_path: Path, text: str) -> Path:
    place = tmp_path / "own-tokens"
    place.mkdir(mode=0o700)
    (place / "token").write_text(text + "\n")
    (place / "token").chmod(0o600)
    return place


@pytest.mark.parametrize("case", ["other key", "other scope", "other subject", "expired"])
async def test_wrong_tokens_do_not_advertise(start_pool: Callable[..., Any], tmp_path: Path, case: str) -> None:
    async with start_pool() as pool:
        key = tokens.new_signing_key() if case == "other key" else (pool.places.keys / "POOL").read_bytes()
        subject = "mallory@pool.test" if case == "other subject" else "condor@pool.test"
        scope = ("READ",) if case == "other scope" else ("ADVERTISE_STARTD",)
        lifetime = -60.0 if case == "expired" else 600.0
        text = tokens.mint(key, "POOL", subject, "pool.test", scope, lifetime, now_unix_s=time.time())
        security = Negotiate(token_directory(tmp_path, text), ("TOKEN",))
        with pytest.raises((Refused, PeerFault)):
            await connect(pool.address, Command.UPDATE_STARTD_AD, security, subsystem="STARTD")
        assert await names(pool) == []


async def kept(pool: LivePool) -> CedarStream:
    return await connect(
        pool.address, Command.UPDATE_STARTD_AD, Negotiate(pool.places.tokens, ("TOKEN",)), subsystem="STARTD"
    )


def slot(name: str = "slot1@x", port: int = 1, since: int = 100, **more: str) -> Any:
    said = {"MyType": '"Machine"', "Name": f'"{name}"', "Machine": '"x"', "MyAddress": f'"<127.0.0.1:{port}>"'}
    said |= {"DaemonStartTime": str(since), "State": '"Unclaimed"', "SlotID": "1"} | more
    return classads.parse_old("".join(f"{key} = {value}\n" for key, value in said.items()))


def private(claim: str = "<127.0.0.1:1>#1#1#x") -> Any:
    return classads.parse_old(f'ClaimId = "{claim}"\n')


async def test_updates_and_invalidations_on_one_connection(start_pool: Callable[..., Any]) -> None:
    async with start_pool() as pool, await kept(pool) as stream:
        await stream.put(slot("slot1@x"), private())
        await stream.put(0, slot("slot1_1@x", SlotID="2"), private())
        await eventually(lambda: names(pool), lambda found: found == ["slot1@x", "slot1_1@x"])
        query = classads.parse_old('MyType = "Query"\nName = "slot1_1@x"\nMyAddress = "<127.0.0.1:1>"\n')
        await stream.put(13, query)
        await eventually(lambda: names(pool), lambda found: found == ["slot1@x"])


async def test_a_second_startd_of_the_same_name_changes_nothing(start_pool: Callable[..., Any]) -> None:
    async with start_pool() as pool, await kept(pool) as stream:
        await stream.put(slot(since=100, Cpus="1"), private())
        await stream.put(0, slot(since=90, port=2, Cpus="7"), private())
        await stream.put(13, classads.parse_old('MyType = "Query"\nName = "slot1@x"\nMyAddress = "<127.0.0.1:2>"\n'))
        await stream.put(0, slot("slot9@y", SlotID="3"), private())  # the answer to "has all been read?"
        await eventually(lambda: names(pool), lambda found: found == ["slot1@x", "slot9@y"])


async def test_an_update_with_acknowledgement(start_pool: Callable[..., Any]) -> None:
    async with start_pool() as pool:
        security = Negotiate(pool.places.tokens, ("TOKEN",))
        async with await connect(
            pool.address, Command.UPDATE_STARTD_AD_WITH_ACK, security, subsystem="STARTD"
        ) as stream:
            await stream.put(slot(), private())
            assert (await stream.get()).int() == 1
        async with await connect(
            pool.address, Command.UPDATE_STARTD_AD_WITH_ACK, security, subsystem="STARTD"
        ) as stream:
            await stream.put(classads.parse_old("Cpus = 1\n"), private())
            with pytest.raises(PeerFault):  # an ad without a name is not stored: no answer
                await stream.get()


async def test_a_reader_cannot_update(start_pool: Callable[..., Any], no_tokens: Path) -> None:
    async with start_pool() as pool:
        async with await connect(
            pool.address, Command.QUERY_STARTD_ADS, Negotiate(authentication="OPTIONAL"), subsystem="TOOL"
        ) as stream:
            await stream.put(classads.parse_old('MyType = "Query"\n'))
            await stream.get()
            await stream.put(0, slot(), private())
            with pytest.raises(PeerFault):
                await stream.get()
        assert await names(pool) == []
