"""HTCondor's own client, from the `htcondor` wheel, in a process of its own against our server."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import define, field

from cedar import tokens
from cedar.classads import from_wire, get_str
from cedar.commands import Command
from cedar.security_server import SslSide
from cedar.server import Request, Served, Server, ServerPolicy
from cedar.sessions import SessionTable
from cedar.tls import ServerTls, TlsFiles
from demo.grid import Certified, Grid, make_grid, make_proxy, write_private

KEY = tokens.new_signing_key()
DOMAIN = "pool.example"

CLIENT = """
import json, sys
import htcondor2
address, times, kind = sys.argv[1], int(sys.argv[2]), sys.argv[3]
answers = []
for _ in range(times):
    try:
        ads = htcondor2.Collector(address).query(getattr(htcondor2.AdType, kind))
        answers.append([{name: ad[name] for name in ("Name", "Odd", "Big") if name in ad} for ad in ads])
    except Exception as error:
        answers.append(repr(error))
print(json.dumps(answers))
"""

ODD = 'a "quoted" word, a back\\slash,\ttab, gr\u00fc\u00dfe'
ADS = [{"Name": "slot1@a", "Odd": ODD}, {"Name": "slot1@b", "Big": "x" * 300_000}]


@define
class Pool:
    """A server that answers queries as a collector does."""

    address: str
    directory: Path
    sessions: SessionTable
    requests: list[Request] = field(factory=list)
    faults: list[Exception] = field(factory=list)

    async def query(self, *, times: int = 1, kind: str = "Startd", token: str = "", **knobs: str) -> list[Any]:
        """Answers of the stock client, one a query; an exception as its text."""
        config = self.directory / "condor_config"
        (self.directory / "tokens.d").mkdir(exist_ok=True)
        (self.directory / "tokens.d" / "token").write_text(token)
        (self.directory / "tokens.d" / "token").chmod(0o600)  # the stock client wants it so
        defaults = {"SEC_TOKEN_DIRECTORY": str(self.directory / "tokens.d"), "LOG": str(self.directory)}
        config.write_text("".join(f"{name} = {value}\n" for name, value in (defaults | knobs).items()))
        command = [sys.executable, "-c", CLIENT, self.address, str(times), kind]
        environment = {"CONDOR_CONFIG": str(config), "PATH": "/usr/bin:/bin"}
        run = partial(subprocess.run, env=environment, capture_output=True, timeout=30, check=False)
        done = await trio.to_thread.run_sync(run, command)
        assert done.returncode == 0, done.stderr
        answers: list[Any] = json.loads(done.stdout)
        return answers


async def answer_query(requests: list[Request], request: Request) -> None:
    requests.append(request)
    reader = await request.stream.get()
    assert get_str(reader.ad(), "MyType", "") in ("Query", "")
    reader.end()
    items: list[Any] = []
    for values in ADS:
        ad = from_wire([])
        for name, value in values.items():
            ad[name] = value
        items += [1, ad]
    await request.stream.put(*items, 0)


@asynccontextmanager
async def pool(tmp_path: Path, methods: tuple[str, ...] = ("TOKEN",), **policy: Any) -> AsyncIterator[Pool]:
    keys = tmp_path / "keys"
    keys.mkdir()
    (keys / "POOL").write_bytes(KEY)
    here = Pool("", tmp_path, SessionTable())
    handle = partial(answer_query, here.requests)
    table = {
        int(Command.QUERY_STARTD_ADS): Served("READ", handle),
        int(Command.QUERY_SCHEDD_ADS): Served("DAEMON", handle),
    }
    rules = ServerPolicy(keys, DOMAIN, methods, lambda caller, level: True, **policy)
    server = Server(table, here.sessions, rules, report=lambda peer, error: here.faults.append(error))
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        here.address = f"<127.0.0.1:{listeners[0].socket.getsockname()[1]}?alias=localhost>"
        await nursery.start(server.serve, listeners)
        yield here
        nursery.cancel_scope.cancel()


def mint(key: bytes = KEY, issuer: str = DOMAIN) -> str:
    return tokens.mint(key, "POOL", f"condor@{DOMAIN}", issuer, now_unix_s=time.time())


ANONYMOUS = {"SEC_CLIENT_AUTHENTICATION": "OPTIONAL", "SEC_CLIENT_AUTHENTICATION_METHODS": "TOKEN"}
TOKEN = {"SEC_CLIENT_AUTHENTICATION": "REQUIRED", "SEC_CLIENT_AUTHENTICATION_METHODS": "TOKEN"}


async def test_anonymous_query_and_its_resumption(tmp_path: Path) -> None:
    async with pool(tmp_path) as here:
        assert await here.query(times=3, **ANONYMOUS) == [ADS] * 3
        first, *later = here.requests
        assert first.identity == "unauthenticated@unmapped"
        assert all(request.session is first.session for request in later)


async def test_right_token(tmp_path: Path) -> None:
    async with pool(tmp_path) as here:
        assert await here.query(times=2, kind="Schedd", token=mint(), **TOKEN) == [ADS] * 2
        first, second = here.requests
        assert (first.identity, first.method) == (f"condor@{DOMAIN}", "TOKEN")
        assert second.session is first.session


@pytest.mark.parametrize("token", [mint(tokens.new_signing_key()), mint(issuer="elsewhere"), ""])
async def test_wrong_token_is_refused_without_waiting(tmp_path: Path, token: str) -> None:
    async with pool(tmp_path) as here:
        started = trio.current_time()
        (answer,) = await here.query(kind="Schedd", token=token, **TOKEN)
        assert trio.current_time() - started < 10  # the protocol's own silence would take 20
        assert "HTCondorException" in answer
        assert here.requests == []
        assert len(here.faults) == 1


async def test_unauthorised_is_denied(tmp_path: Path) -> None:
    async with pool(tmp_path) as here:
        (answer,) = await here.query(kind="Schedd", **ANONYMOUS)
        assert "HTCondorException" in answer
        assert here.requests == []


async def test_preferred_authentication_without_a_token_reads_anonymously(tmp_path: Path) -> None:
    async with pool(tmp_path) as here:
        assert await here.query(**(ANONYMOUS | {"SEC_CLIENT_AUTHENTICATION": "PREFERRED"})) == [ADS]
        assert here.requests[0].identity == "unauthenticated@unmapped"


# --- SSL ---


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Grid:
    return make_grid(tmp_path_factory.mktemp("stock"), name="Stock CA", organisation="stock")


@asynccontextmanager
async def ssl_pool(tmp_path: Path, grid: Grid, host: str = "localhost") -> AsyncIterator[Pool]:
    own = write_private(tmp_path / "host.pem", grid.host(host).pem)
    tls = ServerTls(TlsFiles(None, grid.certificates_dir, False, own, own), allow_proxy=True)
    side = SslSide(tls.context, lambda chain: f"somebody.{len(chain)}@{DOMAIN}")
    async with pool(tmp_path, ("SSL", "TOKEN"), ssl=side) as here:
        yield here


def ssl_knobs(tmp_path: Path, grid: Grid, shown: Certified | None = None) -> dict[str, str]:
    knobs = {
        "SEC_CLIENT_AUTHENTICATION": "REQUIRED",
        "SEC_CLIENT_AUTHENTICATION_METHODS": "SSL, TOKEN",
        "AUTH_SSL_CLIENT_CADIR": str(grid.certificates_dir),
        "AUTH_SSL_CLIENT_USE_DEFAULT_CAS": "False",
    }
    if shown is not None:
        own = str(write_private(tmp_path / "own.pem", shown.pem))
        knobs |= {"AUTH_SSL_CLIENT_CERTFILE": own, "AUTH_SSL_CLIENT_KEYFILE": own}
    return knobs


async def test_by_a_certificate_by_a_proxy_and_without(tmp_path: Path, grid: Grid) -> None:
    alice = grid.user("Alice")
    async with ssl_pool(tmp_path, grid) as here:
        for shown, identity in {alice: "somebody.2", make_proxy(alice): "somebody.3", None: "unauthenticated"}.items():
            (tmp_path / "own.pem").unlink(missing_ok=True)
            assert await here.query(times=2, **ssl_knobs(tmp_path, grid, shown)) == [ADS] * 2
            one, other = here.requests[-2:]
            assert one.session is other.session
            assert one.method == "SSL"
            assert one.identity.partition("@")[0] == identity


async def test_a_certificate_that_the_stock_client_does_not_believe(tmp_path: Path, grid: Grid) -> None:
    async with ssl_pool(tmp_path, grid, "elsewhere.example") as here:
        (answer,) = await here.query(kind="Schedd", **ssl_knobs(tmp_path, grid))
        assert "HTCondorException" in answer
        assert here.requests == []
        assert "the other end gave up" in str(here.faults[0])
        # The next method is tried on the same connection.
        assert await here.query(kind="Schedd", token=mint(), **ssl_knobs(tmp_path, grid)) == [ADS]
        assert here.requests[0].method == "TOKEN"


async def test_a_client_that_we_do_not_believe(tmp_path: Path, grid: Grid) -> None:
    other = make_grid(tmp_path / "other", name="Other CA", organisation="other")
    async with ssl_pool(tmp_path, grid) as here:
        (answer,) = await here.query(kind="Schedd", **ssl_knobs(tmp_path, grid, other.user("Alice")))
        assert "HTCondorException" in answer
        assert here.requests == []
        assert "the certificate is not accepted" in str(here.faults[0])
