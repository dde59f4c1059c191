"""Jobs from submission to fetched output, through a fake execution point; what goes wrong on the way."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from cedar import classads
from cedar.errors import PeerFault, Refused
from demo import grid
from pilot import credentials, rpc
from pool import messages as m
from pool.model import JobId
from tests.pool.conftest import LivePool, eventually, job_ad
from tests.pool.fake_ep import FakeEP, FakeStarter, echo


@asynccontextmanager
async def with_ep(start_pool: Callable[..., Any], **knobs: Any) -> AsyncIterator[tuple[LivePool, FakeEP]]:
    said = {name: knobs.pop(name) for name in ("cpus", "version") if name in knobs}
    async with start_pool(**knobs) as pool, FakeEP(pool.address, pool.places.tokens, **said).running() as ep:
        yield pool, ep


async def fetched(pool: LivePool, cluster: int, proc: int = 0) -> dict[str, bytes]:
    async with await pool.channel() as channel:
        page, fds = await channel.call_with_fds(m.Fetch(cluster, proc, 0))
    names = [entry.name for entry in page.entries if entry.size is not None]
    found = {}
    for name, fd in zip(names, fds, strict=True):
        with os.fdopen(fd, "rb") as file:
            found[name] = file.read()
    return found


async def test_a_job_runs_and_its_output_comes_back(start_pool: Callable[..., Any]) -> None:
    async with with_ep(start_pool) as (pool, ep):
        cluster = await pool.submit(job_ad(), files={"in.txt": b"hello", "run.sh": b"#!/bin/sh\n"})
        row = await pool.until(cluster, "completed")
        assert (row.exit_status, row.runs, row.reason) == (0, 1, "")
        assert await fetched(pool, cluster) == {"_condor_stdout": b"HELLO", "_condor_stderr": b""}
        starter = ep.starters[0]
        assert starter.sink.order == ["in.txt", "run.sh"]  # the executable last
        assert starter.sink.modes["run.sh"] & 0o111
        await ep.seen("release")
        (run,) = pool.queue.runs(JobId(cluster, 0))
        assert (run.outcome, run.startd, run.slot, run.pid) == ("completed", "fake", "slot1_1@fake", 4711)
        await eventually(lambda: _claims(pool), lambda found: found == [])


async def _claims(pool: LivePool) -> list[Any]:
    return list(pool.queue.claims())


async def test_the_ad_at_the_execution_point(start_pool: Callable[..., Any]) -> None:
    async with with_ep(start_pool) as (pool, ep):
        cluster = await pool.submit(job_ad(MyOwn='"x"', Arguments='"a b"'))
        await pool.until(cluster, "completed")
        starter = ep.starters[0]
        ad = starter.ad
        owner = classads.get_str(ad, "Owner")
        assert classads.get_str(ad, "User") == f"{owner}@pool.test"
        assert classads.get_str(ad, "MyOwn") == "x"
        assert classads.get_str(ad, "GlobalJobId").split("#")[1] == f"{cluster}.0"
        assert (classads.get_str(ad, "ShouldTransferFiles"), classads.get_str(ad, "WhenToTransferOutput")) == (
            "YES",
            "ON_EXIT",
        )
        assert classads.get_bool(ad, "StreamOut") is False
        assert classads.get_int(ad, "JobUniverse") == 5
        assert "TransferKey" not in starter.activation
        assert "TransferKey" in ad
        assert starter.parts[3] == f"filetrans.{starter.claim.session_id}"


@pytest.mark.parametrize(("version", "command"), [("24.6.9", "hard"), ("24.7.0", "done")])
async def test_the_end_is_told_as_the_startd_understands_it(
    start_pool: Callable[..., Any], version: str, command: str
) -> None:
    async with with_ep(start_pool, version=version) as (pool, ep):
        await pool.until(await pool.submit(job_ad()), "completed")
        await ep.seen("release")
        assert [name for name, _ in ep.log] == ["request", "activate", command, "release"]


async def test_a_claim_is_used_for_all_jobs_of_one_user(start_pool: Callable[..., Any]) -> None:
    async with with_ep(start_pool, cpus=1) as (pool, ep):
        cluster = await pool.submit(*[job_ad() for _ in range(5)])
        for proc in range(5):
            await pool.until(cluster, "completed", proc=proc)
        await ep.seen("release")
        assert [name for name, _ in ep.log].count("request") == 1
        procs = [classads.get_int(starter.ad, "ProcId") for starter in ep.starters]
        assert procs == [0, 1, 2, 3, 4]


async def test_leftovers_are_claimed_without_waiting_for_an_ad(start_pool: Callable[..., Any]) -> None:
    async with with_ep(start_pool, cpus=4) as (pool, ep):
        gate = trio.Event()

        async def wait(starter: FakeStarter) -> None:
            await starter.begin()
            await gate.wait()
            await starter.stage_out({})
            await starter.exit()

        ep.body = wait
        cluster = await pool.submit(*[job_ad() for _ in range(4)])
        await ep.seen("activate", 4)
        assert len({claim for name, claim in ep.log if name == "request"}) == 4
        gate.set()
        await pool.until(cluster, "completed", proc=3)


async def test_an_exit_status_and_a_signal(start_pool: Callable[..., Any]) -> None:
    async with with_ep(start_pool) as (pool, ep):
        statuses = iter([7 << 8, 11])

        async def body(starter: FakeStarter) -> None:
            await starter.begin()
            await starter.run()
            await starter.stage_out({"_condor_stdout": b""})
            await starter.exit(next(statuses))

        ep.body = body
        first = await pool.submit(job_ad())
        assert (await pool.until(first, "completed")).exit_status == 7 << 8
        second = await pool.submit(job_ad())
        assert (await pool.until(second, "completed")).exit_status == 11


async def test_without_its_output_a_job_is_not_complete(start_pool: Callable[..., Any]) -> None:
    async with with_ep(start_pool) as (pool, ep):

        async def no_output(starter: FakeStarter) -> None:
            ep.body = echo
            await starter.begin()
            await starter.run()
            await starter.exit()

        ep.body = no_output
        cluster = await pool.submit(job_ad())
        row = await pool.until(cluster, "completed")
        assert row.runs == 2
        assert [run.outcome for run in pool.queue.runs(pool.queue.jobs_of_cluster(cluster)[0].id)] == [
            "requeued",
            "completed",
        ]


async def test_holds_name_phase_and_cause(start_pool: Callable[..., Any]) -> None:
    """Codes 12 and 13 are the failed action on the wire, the phase in the job; others stay as they are."""
    async with with_ep(start_pool) as (pool, ep):
        cases = [(6, 2, False, 6), (12, 1, False, 13), (13, 1, True, 12), (28, 0, False, 28)]
        for code, subcode, begun, expected in cases:

            async def body(starter: FakeStarter, code: int = code, subcode: int = subcode, begun: bool = begun) -> None:
                await starter.begin()
                if begun:
                    await starter.run()
                await starter.report(code, subcode, "no\nsuch thing")

            ep.body = body
            cluster = await pool.submit(job_ad())
            row = await pool.until(cluster, "held")
            assert (row.hold_code, row.hold_subcode, row.reason) == (expected, subcode, "no such thing")


async def test_a_problem_that_is_not_the_jobs_runs_it_again(start_pool: Callable[..., Any]) -> None:
    async with with_ep(start_pool) as (pool, ep):

        async def body(starter: FakeStarter) -> None:
            ep.body = echo
            await starter.begin()
            await starter.report(1024, 0, "no scratch directory")

        ep.body = body
        cluster = await pool.submit(job_ad())
        assert (await pool.until(cluster, "completed")).runs == 2


async def test_rm_of_a_running_job(start_pool: Callable[..., Any]) -> None:
    async with with_ep(start_pool) as (pool, ep):

        async def body(starter: FakeStarter) -> None:
            await starter.begin()
            await starter.run()
            await starter.stopped.wait()
            await starter.exit(15, 102)

        ep.body = body
        cluster = await pool.submit(job_ad())
        await ep.seen("activate")
        await pool.until(cluster, "running")
        async with await pool.channel() as channel:
            reply = await channel.call(m.Remove(m.Target(cluster, None), False))
            assert (reply.jobs, reply.ending) == (0, 1)
        row = await pool.until(cluster, "removed")
        assert row.reason == "removed"
        await ep.seen("release")
        names = [name for name, _ in ep.log]
        assert names.index("soft") < names.index("release")
        assert "hard" not in names


async def test_rm_with_force_kills_at_once(start_pool: Callable[..., Any]) -> None:
    async with with_ep(start_pool) as (pool, ep):

        async def body(starter: FakeStarter) -> None:
            await starter.begin()
            await starter.run()
            await starter.killed.wait()
            await starter.stream.aclose()

        ep.body = body
        cluster = await pool.submit(job_ad())
        await ep.seen("activate")
        async with await pool.channel() as channel:
            await channel.call(m.Remove(m.Target(cluster, None), True))
        await pool.until(cluster, "removed")
        assert "hard" in [name for name, _ in ep.log]


async def test_rm_of_an_idle_and_of_a_finished_job(start_pool: Callable[..., Any]) -> None:
    async with with_ep(start_pool) as (pool, _ep):
        never = await pool.submit(job_ad(Requirements='TARGET.Name == "nowhere"'))
        done = await pool.submit(job_ad())
        await pool.until(done, "completed")
        async with await pool.channel() as channel:
            for cluster in (never, done):
                assert (await channel.call(m.Remove(m.Target(cluster, None), False))).jobs == 1
                assert (await pool.row(cluster)).state == "removed"
            with pytest.raises(rpc.RpcRefused, match="removed already"):
                await channel.call(m.Remove(m.Target(done, None), False))
            with pytest.raises(rpc.RpcRefused, match="nothing has come back"):
                await channel.call_with_fds(m.Fetch(done, 0, 0))
        await eventually(lambda: _listing(pool, done), lambda names: names == [])


async def _listing(pool: LivePool, cluster: int) -> list[str]:
    return _below(str(pool.places.spool / str(cluster)))


def _below(root: str) -> list[str]:
    """Everything below a cluster's directory; empty when that is gone."""
    return sorted(os.path.relpath(os.path.join(at, name), root) for at, ds, fs in os.walk(root) for name in (*ds, *fs))


async def test_a_lost_socket_runs_the_job_again(start_pool: Callable[..., Any]) -> None:
    async with with_ep(start_pool) as (pool, ep):

        async def body(starter: FakeStarter) -> None:
            ep.body = echo
            await starter.begin()
            await starter.run()
            await starter.stream.aclose()

        ep.body = body
        cluster = await pool.submit(job_ad())
        row = await pool.until(cluster, "completed")
        job = pool.queue.jobs_of_cluster(cluster)[0]
        outcomes = [run.outcome for run in pool.queue.runs(job.id)]
        assert (row.runs, outcomes) == (2, ["lost", "completed"])
        # The old claim was released before the job ran again.
        names = [name for name, _ in ep.log]
        assert names.index("release") < len(names) - 1 - names[::-1].index("activate")


async def test_a_released_claim_ends_the_run(start_pool: Callable[..., Any]) -> None:
    async with with_ep(start_pool) as (pool, ep):

        async def body(starter: FakeStarter) -> None:
            ep.body = echo
            await starter.begin()
            await ep.release_to_pool(starter.claim, pool.address)
            await trio.sleep_forever()

        ep.body = body
        cluster = await pool.submit(job_ad())
        await ep.seen("activate")
        job = pool.queue.jobs_of_cluster(cluster)[0]
        await eventually(lambda: _outcomes(pool, job.id), lambda found: found == ["lost"])


async def _outcomes(pool: LivePool, job_id: Any) -> list[str | None]:
    return [run.outcome for run in pool.queue.runs(job_id)]


async def test_activation_is_tried_again(start_pool: Callable[..., Any]) -> None:
    async with with_ep(start_pool) as (pool, ep):
        ep.answer_activate = [2, 1]
        cluster = await pool.submit(job_ad())
        assert (await pool.until(cluster, "completed")).runs == 1


async def test_alive_is_answered_for_known_claims_only(start_pool: Callable[..., Any]) -> None:
    async with with_ep(start_pool) as (pool, ep):
        answers: list[int] = []

        async def body(starter: FakeStarter) -> None:
            answers.append(await ep.alive(starter.claim, pool.address))
            await echo(starter)

        ep.body = body
        cluster = await pool.submit(job_ad())
        await pool.until(cluster, "completed")
        await ep.seen("release")
        old = ep.starters[0].claim
        answers.append(await ep.alive(old, pool.address))
        assert answers == [10, -1]
        with pytest.raises((Refused, PeerFault)):
            await ep.alive(ep._mint(), pool.address)


async def test_a_wrong_transfer_key_gets_nothing(start_pool: Callable[..., Any]) -> None:
    async with with_ep(start_pool) as (pool, ep):
        said: list[str] = []

        async def body(starter: FakeStarter) -> None:
            await starter.begin()
            try:
                await starter.stage_in("0" * 64)
            except (Refused, PeerFault) as error:
                said.append(error.code)
            assert starter.sink.order == []
            ep.body = echo
            await starter.stream.aclose()

        ep.body = body
        cluster = await pool.submit(job_ad())
        await pool.until(cluster, "completed")
        assert said == ["TRANSFER_KEY"]


async def test_the_proxy_comes_before_the_files(start_pool: Callable[..., Any], test_grid: grid.Grid) -> None:
    proxy = grid.make_proxy(test_grid.user("Alice Adams"), lifetime_s=3600)
    async with with_ep(start_pool) as (pool, ep):
        got: list[bytes] = []

        async def body(starter: FakeStarter) -> None:
            got.append(await starter.fetch_proxy())
            await starter.begin()
            got.append(await starter.fetch_proxy())
            await starter.stage_in()
            await starter.stage_out({"_condor_stdout": b""})
            await starter.exit()

        ep.body = body
        cluster = await pool.submit(job_ad(), proxy=proxy.pem)
        await pool.until(cluster, "completed")
        starter = ep.starters[0]
        assert starter.sink.order == ["x509up", "run.sh"]
        for pem in (*got, starter.sink.files["x509up"]):
            found = credentials.verify(pem, test_grid.certificates_dir, now=time.time())
            assert found.identity == proxy.identity
            assert found.limited
        assert classads.get_str(starter.ad, "x509userproxysubject") == proxy.identity
        assert classads.get_str(starter.ad, "x509userproxy") == "x509up"
        assert abs(classads.get_int(starter.ad, "x509UserProxyExpiration") - time.time() - 3600) < 400


async def test_a_proxy_that_the_job_does_not_have_costs_nothing(start_pool: Callable[..., Any]) -> None:
    async with with_ep(start_pool) as (pool, ep):

        async def body(starter: FakeStarter) -> None:
            with pytest.raises(Refused):
                await starter.fetch_proxy()
            await echo(starter)

        ep.body = body
        cluster = await pool.submit(job_ad())
        assert (await pool.until(cluster, "completed")).runs == 1


async def test_an_expired_proxy_holds_an_idle_job(start_pool: Callable[..., Any], test_grid: grid.Grid) -> None:
    proxy = grid.make_proxy(test_grid.user("Alice Adams"), lifetime_s=3)
    async with start_pool() as pool:
        cluster = await pool.submit(job_ad(), proxy=proxy.pem)
        await trio.sleep(
            max(0.0, (pool.queue.jobs_of_cluster(cluster)[0].cluster.proxy_expires_at or 0) - time.time()) + 0.05
        )
        async with FakeEP(pool.address, pool.places.tokens).running():
            row = await pool.until(cluster, "held")
        assert row.hold_code == 4
        assert "ended at" in row.reason
        assert "submit it again" in row.reason


async def test_hostile_output_names_are_refused(start_pool: Callable[..., Any]) -> None:
    async with with_ep(start_pool) as (pool, ep):
        acks: list[Any] = []

        async def body(starter: FakeStarter) -> None:
            ep.body = echo
            await starter.begin()
            await starter.run()
            acks.append(await starter.stage_out({"../../evil": b"x", "/etc/evil": b"y", "ok": b"z"}))
            await starter.report(13, 1, "refused")

        ep.body = body
        cluster = await pool.submit(job_ad())
        await pool.until(cluster, "held")
        _own, peer = acks[0]
        assert not peer.ok
        assert peer.hold_code == 12
        assert not list(pool.places.spool.rglob("evil"))
        assert (
            await eventually(lambda: _listing(pool, cluster), lambda names: not any("out/1/" in n for n in names))
            is not None
        )


async def test_what_an_unknown_call_gets(start_pool: Callable[..., Any]) -> None:
    async with with_ep(start_pool) as (pool, ep):
        errors: list[int | None] = []

        async def body(starter: FakeStarter) -> None:
            await starter.begin()
            for op in (12345, 287):
                with pytest.raises(OSError) as caught:  # noqa: PT011 - the number is looked at
                    await starter.call(op, "x")
                errors.append(caught.value.errno)
            await starter.stage_out({})
            await starter.exit()

        ep.body = body
        cluster = await pool.submit(job_ad())
        await pool.until(cluster, "completed")
        assert errors == [38, 13]
