"""Execution points and users that lie: the pool goes on, and nobody else notices."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import trio

from cedar import classads
from cedar.client import Negotiate, connect
from cedar.commands import Command
from cedar.errors import PeerFault
from cedar.stream import CedarStream
from pilot import rpc
from pool import messages as m
from tests.pool.conftest import LivePool, eventually, job_ad
from tests.pool.fake_ep import FakeEP, FakeStarter, echo


async def advertiser(pool: LivePool) -> CedarStream:
    security = Negotiate(pool.places.tokens, ("TOKEN",))
    return await connect(pool.address, Command.UPDATE_STARTD_AD, security, subsystem="STARTD")


def slot(**said: str) -> Any:
    more = {"MyType": '"Machine"', "Name": '"slot1@evil"', "MyAddress": '"<127.0.0.1:9>"', "State": '"Unclaimed"'}
    more |= {"Requirements": "true", "Cpus": "1", "Memory": "1000", "Disk": "1000000", "DaemonStartTime": "1"}
    more |= {"OpSys": '"LINUX"', "Arch": '"X86_64"', "HasFileTransfer": "true"}
    return classads.parse_old("".join(f"{key} = {value}\n" for key, value in (more | said).items()))


def claim(text: str) -> Any:
    ad = classads.parse_old("A = 1\n")
    classads.set_str(ad, "ClaimId", text)
    return ad


GOOD_CLAIM = '<127.0.0.1:9>#1#1#[Encryption="YES";Integrity="YES";CryptoMethods="AES";]' + "0" * 64


@pytest.mark.parametrize(
    ("ad", "claim_id"),
    [
        (slot(), "garbage"),
        (slot(), "<127.0.0.1:9>#1#1#" + "x" * 20000),
        (slot(MyAddress='"not an address"'), GOOD_CLAIM),
        (slot(MyAddress="17"), GOOD_CLAIM),
        (slot(), GOOD_CLAIM),  # nobody listens there
        (slot(Requirements="A", A="B + B", B="A + A"), GOOD_CLAIM),
        (slot(Requirements=" + ".join(["1"] * 1500)), GOOD_CLAIM),
        (slot(Name='"slot1@e\udcff\udcfe"'), GOOD_CLAIM),
        (slot(PartitionableSlot="Cpus", Cpus='"many"', DaemonStartTime="1e300"), GOOD_CLAIM),
    ],
)
async def test_a_lying_slot_is_nobody_elses_trouble(start_pool: Callable[..., Any], ad: Any, claim_id: str) -> None:
    async with start_pool() as pool, await advertiser(pool) as stream:
        first = await pool.submit(job_ad(), files={"in.txt": b"x", "run.sh": b""})
        await stream.put(ad, claim(claim_id))
        async with FakeEP(pool.address, pool.places.tokens).running():
            await pool.until(first, "completed")
            async with await pool.channel() as channel:
                assert len((await channel.call(m.ListSlots(0))).rows) >= 1
            security = Negotiate(authentication="OPTIONAL")
            async with await connect(pool.address, Command.QUERY_STARTD_ADS, security, subsystem="TOOL") as query:
                await query.put(classads.parse_old('MyType = "Query"\nRequirements = TARGET.Cpus > 0\n'))
                assert (await query.get()).int() == 1


async def test_a_claim_id_cannot_take_over_anothers_session(start_pool: Callable[..., Any]) -> None:
    async with start_pool() as pool, FakeEP(pool.address, pool.places.tokens, cpus=1).running() as ep:
        gate = trio.Event()
        answers: list[int] = []

        async def body(starter: FakeStarter) -> None:
            ep.body = echo
            await starter.begin()
            await gate.wait()
            answers.append(await ep.alive(starter.claim, pool.address))
            await starter.stage_in()
            await starter.stage_out({"_condor_stdout": b""})
            await starter.exit()

        ep.body = body
        victim = await pool.submit(job_ad())
        await ep.seen("activate")
        await pool.submit(job_ad())
        async with await advertiser(pool) as stream:
            stolen = ep.starters[0].claim.session_id + '#[Encryption="YES";CryptoMethods="AES";]' + "f" * 64
            await stream.put(slot(), claim(stolen))
            await eventually(lambda: slot_names(pool), lambda names: "slot1@evil" in names)
        gate.set()
        assert (await pool.until(victim, "completed")).runs == 1
        assert answers[0] > 0


async def slot_names(pool: LivePool) -> list[str]:
    async with await pool.channel() as channel:
        return [row.name for row in (await channel.call(m.ListSlots(0))).rows]


async def until_closed(stream: CedarStream) -> None:
    while True:
        await stream.get()


@pytest.mark.parametrize(
    "calls",
    [
        [(-65, -1, 100)],
        [(-65, 1 << 40, 100)],
        [(-65,)],
        [(-81, 5)],
        [(284,)],
        [(-81, "JobPid = 99999999999999999\n_condor_JOBINFO_MAXINTERVAL = 9e99\nJobState = {1}\n")],
        [(284, 'EventTypeNumber = 21\nHoldReasonCode = 1e99\nErrorMsg = "x\udcff\n"\n')],
    ],
)
async def test_a_lying_starter_costs_its_own_run(start_pool: Callable[..., Any], calls: list[tuple[Any, ...]]) -> None:
    async with start_pool() as pool, FakeEP(pool.address, pool.places.tokens).running() as ep:

        async def body(starter: FakeStarter) -> None:
            ep.body = echo
            await starter.begin()
            for op, *arguments in calls:
                items = [classads.parse_old(each) if isinstance(each, str) else each for each in arguments]
                await starter.stream.put(op, *items)
            with pytest.raises(PeerFault):
                await until_closed(starter.stream)

        ep.body = body
        cluster = await pool.submit(job_ad())
        other = await pool.submit(job_ad())
        await pool.until(other, "completed")
        await pool.until(cluster, "completed", "running")


@pytest.mark.parametrize(
    "message",
    [
        m.ListJobs(0, 0, True, True),
        m.Fetch(0, 0, 0),
        m.Remove(m.Target(0, 0), False),
        m.Wait(m.Target(0, None), 0.0),
        m.RunsOf(m.Target(0, None), 0),
        m.ListSlots(0),
    ],
)
async def test_numbers_beyond_all_bounds(start_pool: Callable[..., Any], message: Any) -> None:
    """A number that no database takes ends that connection and nothing else."""
    async with start_pool() as pool:
        for number in (2**63, 2**64 - 1, -(2**63)):
            body = m.POOL.encode(message).replace(b"\x00", b"\xcf" + (number % 2**64).to_bytes(8, "big"), 1)
            channel = await pool.channel()
            async with channel:
                await channel._sock.send(len(body).to_bytes(4, "big") + body)
                with pytest.raises(rpc.ChannelClosed):
                    await channel.receive()
        assert await slot_names(pool) == []


async def test_odd_bytes_in_names_and_ads(start_pool: Callable[..., Any]) -> None:
    name = "d\udcff\udc80"
    async with start_pool() as pool, FakeEP(pool.address, pool.places.tokens).running() as ep:

        async def body(starter: FakeStarter) -> None:
            await starter.begin()
            await starter.stage_in()
            await starter.stage_out({"o\udcff": b"x"})
            await starter.exit()

        ep.body = body
        cluster = await pool.submit(job_ad(Err=f'"{name}"', Arguments=f'"{name}"'), files={name: b"odd", "run.sh": b""})
        await pool.until(cluster, "completed")
        assert ep.starters[0].sink.files[name] == b"odd"
        assert classads.get_str(ep.starters[0].ad, "Err") == name
        async with await pool.channel() as channel:
            page, fds = await channel.call_with_fds(m.Fetch(cluster, 0, 0))
            for fd in fds:
                os.close(fd)
            assert (page.entries[0].name, page.err) == ("o\udcff", name)


async def test_a_spool_that_fails_is_no_end_of_the_pool(start_pool: Callable[..., Any]) -> None:
    """A full disk, say: what a user or a job can bring about. Here the directory is away for a while."""
    async with start_pool() as pool, FakeEP(pool.address, pool.places.tokens).running() as ep:
        away = pool.places.spool.with_name("away")

        async def body(starter: FakeStarter) -> None:
            ep.body = echo
            await starter.begin()
            await starter.stage_in()
            pool.places.spool.rename(away)
            with pytest.raises(PeerFault):
                await starter.stage_out({"_condor_stdout": b"x"})
            with pytest.raises(rpc.RpcRefused) as refused:
                await pool.submit(job_ad())
            assert refused.value.code == "trouble"
            away.rename(pool.places.spool)

        ep.body = body
        cluster = await pool.submit(job_ad())
        assert (await pool.until(cluster, "completed")).runs == 2


def test_the_pool_may_open_more_files_than_one_user_can_hold() -> None:
    code = (
        "import resource as r; hard = r.getrlimit(r.RLIMIT_NOFILE)[1]; r.setrlimit(r.RLIMIT_NOFILE, (100, hard));"
        "from pool.main import _raise_open_files; _raise_open_files();"
        "print(r.getrlimit(r.RLIMIT_NOFILE)[0] == min(65536, hard if hard != r.RLIM_INFINITY else 65536))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "True\n"
