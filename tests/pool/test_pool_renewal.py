"""Fresh proxies in the pool: from users, from MyProxy, and on to running jobs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trio.testing

from cedar.errors import PeerFault
from demo import grid
from pilot import credentials, myproxy, rpc
from pool import messages as m
from pool import renewal
from pool.claims import Claim, ClaimClient
from pool.jobad import BadJob, accept
from pool.renewal import ASK_AGAIN_S, Push, Renewer, Where, due_in_s, where_of
from pool.spool import Spool
from pool.submission import Rules
from tests.pilot.myproxyserver import MISSING, myproxy_server
from tests.pool.conftest import LivePool, eventually, job_ad

LOG = logging.LoggerAdapter(logging.getLogger("test"), {})
SERVER = myproxy.Server("myproxy.example.org")


# --- from users ----------------------------------------------------------------------------------------------------


async def renew(pool: LivePool, cluster: int, pem: bytes) -> m.Renewed:
    async with await pool.channel() as channel:
        begun: m.Renewing = await channel.call(m.Renew(cluster))
        certificates = credentials.sign_request(pem, begun.request, not_after=None)
        done: m.Renewed = await channel.call(m.GiveProxy(certificates, ""))
        return done


async def test_a_longer_proxy_of_the_same_person_takes_the_old_ones_place(
    start_pool: Callable[..., Any], test_grid: grid.Grid
) -> None:
    alice = test_grid.user("Alice Adams")
    short, long = (grid.make_proxy(alice, lifetime_s=s).pem for s in (600, 7200))
    async with start_pool() as pool:
        cluster = await pool.submit(job_ad(), proxy=short)
        said = await renew(pool, cluster, long)
        assert said.expires_at == pytest.approx(time.time() + 7200, abs=60)
        assert said.running == 0
        stored = credentials.load((pool.places.spool / str(cluster) / "proxy.pem").read_bytes())
        assert stored.expires_at == said.expires_at
        assert pool.queue.jobs_of_cluster(cluster)[0].cluster.proxy_expires_at == said.expires_at


async def test_what_is_no_renewal_is_refused_and_changes_nothing(
    start_pool: Callable[..., Any], test_grid: grid.Grid
) -> None:
    alice, bob = test_grid.user("Alice Adams"), test_grid.user("Bob Baker")
    async with start_pool() as pool:
        cluster = await pool.submit(job_ad(), proxy=grid.make_proxy(alice, lifetime_s=3600).pem)
        bare = await pool.submit(job_ad())
        path = pool.places.spool / str(cluster) / "proxy.pem"
        before = path.read_bytes()
        wrong = {
            "this is no renewal": grid.make_proxy(bob, lifetime_s=7200).pem,
            "does not live longer": grid.make_proxy(alice, lifetime_s=600).pem,
        }
        for words, pem in wrong.items():
            with pytest.raises(rpc.RpcRefused, match=words):
                await renew(pool, cluster, pem)
        for number, words in ((bare, "came without a proxy"), (cluster + 77, "no job")):
            with pytest.raises(rpc.RpcRefused, match=words):
                await renew(pool, number, wrong["this is no renewal"])
        async with await pool.channel() as channel:
            await channel.call(m.Renew(cluster))
            with pytest.raises(rpc.RpcRefused):
                await channel.call(m.GiveProxy(b"garbage", ""))
        assert path.read_bytes() == before


def test_a_passphrase_in_a_jobs_ad_is_refused() -> None:
    with pytest.raises(BadJob, match="passphrase") as refused:
        accept(job_ad() + 'MyProxyPassword = "secret 7"\n')
    assert "secret 7" not in str(refused.value)


# --- to running jobs -----------------------------------------------------------------------------------------------


class FakeClient:
    """Notes when it was to delegate; fails as often as told."""

    def __init__(self, failures: int = 0) -> None:
        self.failures, self.at_s = failures, list[float]()

    async def delegate(self, claim: Claim, sign: Any) -> bool:
        self.at_s.append(trio.current_time())
        if self.failures:
            self.failures -= 1
            raise PeerFault("closed", "away")
        return True


async def pushing(client: FakeClient, source: Path, lifetime_s: int, *, renewed: bool, for_s: float) -> list[float]:
    began_s = trio.current_time()
    push = Push(cast(ClaimClient, client), cast(Claim, None), source, lifetime_s, LOG)
    with trio.move_on_after(for_s):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(push.run)
            await trio.testing.wait_all_tasks_blocked()
            if renewed:
                push.renewed()
    return [s - began_s for s in client.at_s]


async def test_a_copy_that_lives_as_long_as_its_source_is_left_alone_until_there_is_a_new_one(
    tmp_path: Path, test_grid: grid.Grid, autojump_clock: trio.testing.MockClock
) -> None:
    source = grid.write_private(tmp_path / "px", grid.make_proxy(test_grid.user("A"), lifetime_s=3600).pem)
    assert await pushing(FakeClient(), source, 86400, renewed=False, for_s=1e5) == []
    assert await pushing(FakeClient(), source, 86400, renewed=True, for_s=1e5) == [0.0]


async def test_a_push_that_fails_is_tried_again_with_growing_pauses(
    tmp_path: Path, test_grid: grid.Grid, autojump_clock: trio.testing.MockClock
) -> None:
    source = grid.write_private(tmp_path / "px", grid.make_proxy(test_grid.user("A"), lifetime_s=3600).pem)
    assert await pushing(FakeClient(failures=3), source, 86400, renewed=True, for_s=1e5) == [0.0, 2.0, 6.0, 14.0]


async def test_a_limited_life_is_renewed_after_a_quarter_of_it(
    tmp_path: Path, test_grid: grid.Grid, autojump_clock: trio.testing.MockClock
) -> None:
    source = grid.write_private(tmp_path / "px", grid.make_proxy(test_grid.user("A"), lifetime_s=86400).pem)
    at_s = await pushing(FakeClient(), source, 4000, renewed=False, for_s=3500)
    assert [round(s, -1) for s in at_s] == [1000, 2000, 3000]


# --- from MyProxy --------------------------------------------------------------------------------------------------


def reader(**attributes: Any) -> Callable[[str], Any]:
    return attributes.get


def test_only_servers_that_the_pool_was_told_of_are_asked() -> None:
    allowed = ("myproxy.example.org", "other.example.org:7513")
    assert where_of(reader(), "alice", allowed) is None
    for host in ("evil.example.org", "other.example.org", "myproxy.example.org:22:x", "", 7):
        assert where_of(reader(MyProxyHost=host), "alice", allowed) is None
    plain = where_of(reader(MyProxyHost="myproxy.example.org"), "alice", allowed)
    assert plain == Where(SERVER, "alice", "", 3 * 3600.0, 12 * 3600.0)
    full = reader(
        MyProxyHost="other.example.org:7513", MyProxyServerDN="/CN=x", MyProxyUserName="al", MyProxyCredentialName="k",
        MyProxyRefreshThreshold=600, MyProxyNewProxyLifetime=90,
    )  # fmt: skip
    assert where_of(full, "alice", allowed) == Where(
        myproxy.Server("other.example.org", 7513, "/CN=x"), "al", "k", 600.0, 5400.0
    )
    odd = reader(MyProxyHost="myproxy.example.org", MyProxyRefreshThreshold=-1, MyProxyNewProxyLifetime=True)
    assert where_of(odd, "alice", allowed) == plain


def test_proxies_that_end_together_are_not_asked_for_together() -> None:
    where = Where(SERVER, "alice", "", 1000.0, 3600.0)
    assert due_in_s(where, 5000.0, 4100.0, 0.0) == -100.0
    assert due_in_s(where, 5000.0, 3000.0, 0.0) == 1000.0
    assert due_in_s(where, 5000.0, 3000.0, 1.0) == 800.0


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    made = Spool(tmp_path / "spool")
    (tmp_path / "spool" / "7").mkdir(parents=True, mode=0o700)
    return made


async def test_a_server_that_refuses_is_not_asked_all_the_time(
    tmp_path: Path, spool: Spool, test_grid: grid.Grid, autojump_clock: trio.testing.MockClock
) -> None:
    asked: list[str] = []
    alice = test_grid.user("Alice Adams")
    credentials.store_private(spool.proxy(7), grid.make_proxy(alice, lifetime_s=600).pem)
    own = grid.write_private(tmp_path / "own", grid.make_proxy(test_grid.user("Pool")).pem)

    def refuse(*_: object, **__: object) -> bytes:
        asked.append("asked")
        raise myproxy.MyProxyError("refused", "no")

    where = Where(SERVER, "alice", "", 3600.0, 7200.0)
    renewer = Renewer(
        spool, Rules(test_grid.certificates_dir, False), own, clusters=lambda: [(7, where, time.time() + 600)],
        taken=lambda number, new: asked.append("taken"), log=LOG, fetch=refuse,
    )  # fmt: skip
    for _ in range(3):
        await renewer.look()
    assert asked == ["asked"]
    await trio.sleep(ASK_AGAIN_S + 1)
    await renewer.look()
    assert asked == ["asked", "asked"]


@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {' '.join(MISSING)} (package myproxy-server)")
async def test_the_real_server_renews_a_queued_clusters_proxy(tmp_path: Path, spool: Spool) -> None:
    made = grid.make_grid(tmp_path / "grid", key="rsa")
    factory, alice = (made.user(name, key="rsa") for name in ("Pool Service", "Alice Adams"))
    old = grid.make_proxy(alice, lifetime_s=900)
    credentials.store_private(spool.proxy(7), grid.make_proxy(old, kind="limited", lifetime_s=900).pem)
    own = grid.write_private(tmp_path / "own", grid.make_proxy(factory, key="rsa").pem)
    taken: list[tuple[int, float]] = []
    with myproxy_server(made, tmp_path / "server", factory) as running:
        await trio.to_thread.run_sync(
            lambda: running.store(alice, "alice", "-k", "R", "-x", "-R", factory.subject, "-c", "100")
        )
        where = Where(running.server, "alice", "R", 3600.0, 7200.0)
        renewer = Renewer(
            spool, Rules(made.certificates_dir, False), own, clusters=lambda: [(7, where, time.time() + 900)],
            taken=lambda number, new: taken.append((number, new.expires_at)), log=LOG,
        )  # fmt: skip
        await renewer.look()
    ((number, expires_at),) = taken
    assert number == 7
    assert expires_at == pytest.approx(time.time() + 7200, abs=400)
    assert credentials.load(spool.proxy(7).read_bytes()).expires_at == expires_at


@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {' '.join(MISSING)} (package myproxy-server)")
async def test_a_pool_that_was_told_of_a_server_renews_by_itself(
    start_pool: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon's wiring: settings, a queued job that names the server, the spool and the queue."""
    monkeypatch.setattr(renewal, "LOOK_EVERY_S", 0.2)
    made = grid.make_grid(tmp_path / "grid", key="rsa")
    factory, alice = (made.user(name, key="rsa") for name in ("Pool Service", "Alice Adams"))
    own = grid.write_private(tmp_path / "own", grid.make_proxy(factory, key="rsa").pem)
    with myproxy_server(made, tmp_path / "server", factory) as running:
        await trio.to_thread.run_sync(
            lambda: running.store(alice, "alice", "-k", "R", "-x", "-R", factory.subject, "-c", "100")
        )
        knobs = {
            "sailplane_pool_myproxy_servers": str(running.server), "sailplane_pool_credential": own,
            "sailplane_certificates_dir": made.certificates_dir,
        }  # fmt: skip
        async with start_pool(**knobs) as pool:
            named = job_ad(MyProxyHost=f'"{running.server}"', MyProxyUserName='"alice"', MyProxyCredentialName='"R"')
            cluster = await pool.submit(named, proxy=grid.make_proxy(alice, lifetime_s=900).pem)
            path = pool.places.spool / str(cluster) / "proxy.pem"

            async def end() -> float:
                return pool.queue.jobs_of_cluster(cluster)[0].cluster.proxy_expires_at or 0.0

            until = await eventually(end, lambda end: end > time.time() + 3600)
            assert credentials.load(path.read_bytes()).expires_at == until
