"""SSL and SCITOKENS: both roles against each other, with certificates that are wrong in one way each, with garbage."""

from __future__ import annotations

import ssl
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from cedar import security_ssl, tokens
from cedar.client import Negotiate, connect
from cedar.codec import Item, Reader, encode
from cedar.errors import PeerFault, Refused
from cedar.security import Get, Handshake, MethodFailed, Put
from cedar.security_server import Caller, SslSide
from cedar.security_ssl import Status
from cedar.server import Request, Served, Server, ServerPolicy
from cedar.sessions import ANONYMOUS, SessionTable
from cedar.sinful import Sinful
from cedar.tls import ClientTls, ServerTls, TlsFiles
from demo.grid import Certified, Grid, make_grid, make_proxy, write_private

UPDATE, QUERY = 60, 5
KEY = tokens.new_signing_key()


@attrs.frozen
class Stage:
    """An authority, and files of those that it certified."""

    grid: Grid
    here: Path

    def file(self, certified: Certified) -> Path:
        return write_private(self.here / f"{certified.certificate.serial_number}.pem", certified.pem)

    def files(self, certified: Certified | None = None, ca_dir: Path | None = None) -> TlsFiles:
        own = None if certified is None else self.file(certified)
        return TlsFiles(None, ca_dir or self.grid.certificates_dir, False, own, own)

    def server(self, certified: Certified | None = None, **more: Any) -> ServerTls:
        return ServerTls(self.files(certified or self.grid.host("localhost")), **more)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    here = tmp_path_factory.mktemp("ssl")
    return Stage(make_grid(here, name="SSL CA"), here)


def subjects(chain: tuple[bytes, ...]) -> str:
    return "|".join(ssl.DER_cert_to_PEM_cert(link)[:27] for link in chain) + f" {len(chain)}@d"


@attrs.define
class Port:
    address: Sinful
    faults: list[Exception] = attrs.field(factory=list)
    requests: list[Request] = attrs.field(factory=list)


@asynccontextmanager
async def port(
    tls: ServerTls,
    tmp_path: Path,
    *,
    methods: tuple[str, ...] = ("SSL", "TOKEN"),
    require_certificate: bool = False,
    identity: str = "",
    **options: Any,
) -> AsyncIterator[Port]:
    keys = tmp_path / "keys"
    keys.mkdir(exist_ok=True)
    (keys / "POOL").write_bytes(KEY)

    async def handle(request: Request) -> None:
        on.requests.append(request)
        await request.stream.put(1)
        if options:
            await trio.sleep_forever()

    def authorise(caller: Caller, level: str) -> bool:
        return level == "READ" or caller.method in ("SSL", "TOKEN")

    side = SslSide(tls.context, lambda chain: identity or subjects(chain), require_certificate)
    policy = ServerPolicy(keys, "d", methods, authorise, ssl=side)
    table = {UPDATE: Served("DAEMON", handle), QUERY: Served("READ", handle)}
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    on = Port(Sinful("127.0.0.1", listeners[0].socket.getsockname()[1], {"alias": "localhost"}))
    server = Server(table, SessionTable(), policy, report=lambda peer, error: on.faults.append(error), **options)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve, listeners)
        yield on
        nursery.cancel_scope.cancel()


async def ask(on: Port, wishes: Negotiate, command: int = UPDATE) -> Request:
    stream = await connect(on.address, command, wishes, subsystem="TOOL", deadline_s=10.0)
    async with stream:
        assert (await stream.get()).int() == 1
    return on.requests[-1]


async def refusal(on: Port, wishes: Negotiate, command: int = UPDATE) -> Refused:
    with pytest.raises(Refused) as caught:
        await ask(on, wishes, command)
    return caught.value


def by_ssl(files: TlsFiles, **more: Any) -> Negotiate:
    return Negotiate(None, ("SSL",), tls=ClientTls(files, **more))


async def test_a_client_is_who_its_certificate_says(stage: Stage, tmp_path: Path) -> None:
    async with port(stage.server(), tmp_path) as on:
        request = await ask(on, by_ssl(stage.files(stage.grid.user("Alice"))))
        assert request.method == "SSL"
        assert request.identity.endswith(" 2@d")  # the leaf and its authority


async def test_without_a_certificate_somebody_may_look_and_no_more(stage: Stage, tmp_path: Path) -> None:
    async with port(stage.server(), tmp_path) as on:
        assert (await ask(on, by_ssl(stage.files()), QUERY)).identity == ANONYMOUS
        assert (await refusal(on, by_ssl(stage.files()))).code == "DENIED"
    async with port(stage.server(), tmp_path, require_certificate=True) as on:
        error = await refusal(on, by_ssl(stage.files()))
        assert error.code == "SSL"
        assert "the client has no certificate" in str(on.faults[0])
        assert on.requests == []


async def test_whom_only_an_authority_knows_does_not_stay(stage: Stage, tmp_path: Path) -> None:
    async with port(stage.server(), tmp_path, anonymous_deadline_s=0.2, identity="ssl@unmapped") as on:
        alice = by_ssl(stage.files(stage.grid.user("Alice")))
        stream = await connect(on.address, QUERY, alice, subsystem="TOOL")
        async with stream:
            assert (await stream.get()).int() == 1
            with trio.fail_after(60), pytest.raises(PeerFault):
                await stream.get()
        assert "took too long" in str(on.faults[0])


async def test_a_proxy_only_where_it_is_allowed(stage: Stage, tmp_path: Path) -> None:
    proxy = by_ssl(stage.files(make_proxy(stage.grid.user("Bob"))))
    async with port(stage.server(allow_proxy=True), tmp_path) as on:
        assert (await ask(on, proxy)).identity.endswith(" 3@d")
    async with port(stage.server(), tmp_path) as on:
        assert (await refusal(on, proxy)).code == "SSL"
        assert "proxy certificates not allowed" in str(on.faults[0])
        assert on.requests == []


def other_authority(stage: Stage) -> Grid:
    return make_grid(stage.here / "other", name="Other CA", organisation="other")


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("wrong authority", "unable to get local issuer certificate"),
        ("wrong host", "Hostname mismatch"),
        ("expired", "certificate has expired"),
        ("no host certificate", "unsuitable certificate purpose"),
    ],
)
async def test_a_server_that_is_not_to_be_believed(stage: Stage, tmp_path: Path, what: str, told: str) -> None:
    grid = stage.grid
    shown = {
        "wrong authority": lambda: other_authority(stage).host("localhost"),
        "wrong host": lambda: grid.host("elsewhere.example"),
        "expired": lambda: grid.host("localhost", lifetime_s=-10.0),
        "no host certificate": lambda: grid.user("localhost"),
    }[what]()
    async with port(stage.server(shown), tmp_path) as on:
        error = await refusal(on, by_ssl(stage.files(grid.user("Alice"))))
        assert told in error.text
        assert error.code == "SSL"
        assert on.requests == []
        # The same without a look at the host's name.
        if what == "wrong host":
            await ask(on, by_ssl(stage.files(grid.user("Alice")), check_host=False))


async def test_the_name_that_was_asked_for_counts_not_the_address(stage: Stage, tmp_path: Path) -> None:
    async with port(stage.server(), tmp_path) as on:
        on.address = Sinful(on.address.host, on.address.port)
        error = await refusal(on, by_ssl(stage.files(stage.grid.user("Alice"))))
        assert "IP address mismatch" in error.text


async def test_a_client_that_is_not_to_be_believed(stage: Stage, tmp_path: Path) -> None:
    strangers = {
        "certificate verify failed": other_authority(stage).user("Alice"),
        "expired": stage.grid.user("Alice", lifetime_s=-10.0),
    }
    async with port(stage.server(), tmp_path) as on:
        for certified in strangers.values():
            error = await refusal(on, by_ssl(stage.files(certified)))
            assert "the other end gave up" in error.text
            assert isinstance(on.faults[-1], Refused)
            assert "the certificate is not accepted" in on.faults[-1].text
        assert on.requests == []


async def test_the_next_method_follows_a_failed_one(stage: Stage, tmp_path: Path) -> None:
    tokens_dir = tmp_path / "tokens"
    tokens_dir.mkdir()
    (tokens_dir / "t").write_text(tokens.mint(KEY, "POOL", "condor@d", "d", now_unix_s=time.time()))
    async with port(stage.server(stage.grid.host("elsewhere.example")), tmp_path) as on:
        wishes = Negotiate(tokens_dir, ("SSL", "TOKEN"), tls=ClientTls(stage.files()))
        assert (await ask(on, wishes)).method == "TOKEN"
    # Either end may have nothing to show.
    async with port(
        ServerTls(attrs.evolve(stage.files(), cert_file=tmp_path / "x", key_file=tmp_path / "x")), tmp_path
    ) as on:
        assert (await ask(on, wishes)).method == "TOKEN"
    async with port(stage.server(), tmp_path) as on:
        unreadable = TlsFiles(tmp_path / "no-such-ca.pem")
        assert (await ask(on, attrs.evolve(wishes, tls=ClientTls(unreadable)))).method == "TOKEN"
        only = await refusal(on, by_ssl(unreadable))
        assert "no-such-ca.pem" in only.text


async def test_every_method_is_told_with_its_reason(stage: Stage, tmp_path: Path) -> None:
    tokens_dir = tmp_path / "tokens"
    tokens_dir.mkdir()
    old = tokens.mint(KEY, "POOL", "condor@d", "d", None, 60.0, now_unix_s=1_000_000_000.0)
    (tokens_dir / "t").write_text(old)
    async with port(stage.server(stage.grid.host("elsewhere.example")), tmp_path) as on:
        wishes = Negotiate(tokens_dir, ("SCITOKENS", "SSL", "TOKEN", "FS"), tls=ClientTls(stage.files()))
        error = await refusal(on, wishes)
        assert error.code == "TOKEN"
        for told in (
            "SCITOKENS: the server does not offer it",
            "SSL: TLS handshake: the certificate is not accepted: Hostname mismatch",
            "TOKEN: the token of condor@d expired at 2001-09-09 01:47:40 UTC",
            "FS: the server does not offer it",
        ):
            assert told in error.text
        assert old.rpartition(".")[2] not in error.text


async def test_a_key_that_others_can_read_is_not_used(stage: Stage, tmp_path: Path) -> None:
    files = stage.files(stage.grid.user("Alice"))
    assert files.key_file is not None
    files.key_file.chmod(0o644)
    async with port(stage.server(), tmp_path) as on:
        error = await refusal(on, by_ssl(files))
        assert f"other accounts may read the key in {files.key_file}" in error.text
        assert on.requests == []


async def test_a_renewed_certificate_is_used_without_a_restart(stage: Stage, tmp_path: Path) -> None:
    tls = stage.server(stage.grid.host("localhost", lifetime_s=-10.0))
    assert tls.files.cert_file is not None
    async with port(tls, tmp_path) as on:
        assert "expired" in (await refusal(on, by_ssl(stage.files()), QUERY)).text
        tls.files.cert_file.unlink()
        write_private(tls.files.cert_file, stage.grid.host("localhost").pem)
        assert tls.context() is tls.context()
        await ask(on, by_ssl(stage.files()), QUERY)


# --- without sockets ---


def token_server(
    make: Callable[[], ssl.SSLContext], got: list[bytes], *, accepts: bool
) -> Handshake[tuple[bytes, ...]]:
    """What a server of SCITOKENS does: SSL, then it reads a token and says what it thinks of it."""
    channel, _ = security_ssl._open(make, None)
    assert channel is not None
    yield Put((0,))
    yield Get()
    yield from channel.take_turns(channel.tls.do_handshake, first=False, doing="")
    yield from channel.take_turns(lambda: channel.tls.write(bytes(256)), first=True, doing="")
    status = yield from channel.receive()
    assert status is Status.HOLDING
    got.append(channel.tls.read(20_000))
    yield from channel.send(Status.HOLDING if accepts else Status.QUITTING)
    return ()


Change = Callable[[int, tuple[Item, ...]], tuple[Item, ...]]


def converse(client: Handshake[Any], server: Handshake[Any], change: Change = lambda n, items: items) -> list[object]:
    """Both ends' results: a value, or the exception that it ended in. `change` sees every message by its number."""
    ends, boxes = [client, server], [deque[Reader](), deque[Reader]()]
    results: list[object] = [None, None]
    todo: list[Any] = [next(client), next(server)]
    number = 0

    def advance(me: int, answer: object) -> None:
        try:
            todo[me] = ends[me].send(answer)
        except StopIteration as end:
            todo[me], results[me] = None, end.value
        except (MethodFailed, PeerFault) as fault:
            todo[me], results[me] = None, fault

    for me in _turns(todo, boxes):
        if isinstance(todo[me], Put):
            items = change(number, todo[me].items)
            number += 1
            boxes[1 - me].append(Reader(encode(items, keyed=False), keyed=False))
            advance(me, None)
        else:
            advance(me, boxes[me].popleft())
    for me in (0, 1):
        if todo[me] is not None:  # it waits for a message that will not come
            ends[me].close()
            results[me] = PeerFault("closed")
    return results


def _turns(todo: list[Any], boxes: list[deque[Reader]]) -> Iterator[int]:
    """Whose turn it is, while somebody can do something."""
    while able := [me for me in (0, 1) if isinstance(todo[me], Put) or (todo[me] is not None and boxes[me])]:
        yield able[0]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("with_tickets", [False, True])
def test_both_roles_in_every_version(stage: Stage, version: ssl.TLSVersion, with_tickets: bool) -> None:
    alice = stage.grid.user("Alice")
    context = ClientTls(stage.files(alice)).context()
    context.maximum_version = version
    server = stage.server().context()
    server.num_tickets = 2 if with_tickets else 0
    results = converse(
        security_ssl.prove(lambda: context, "localhost"),
        security_ssl.check(lambda: server, require_certificate=True),
    )
    assert results[0] is None
    chain = results[1]
    assert isinstance(chain, tuple)
    assert ssl.DER_cert_to_PEM_cert(chain[0]).encode() in alice.pem


@pytest.mark.parametrize("accepts", [True, False])
def test_scitokens_sends_the_token_inside(stage: Stage, accepts: bool) -> None:
    got: list[bytes] = []
    sent: list[tuple[Item, ...]] = []

    def watch(number: int, items: tuple[Item, ...]) -> tuple[Item, ...]:
        sent.append(items)
        return items

    token = "e" * 1500
    client = security_ssl.prove(ClientTls(stage.files()).context, "localhost", token)
    results = converse(client, token_server(stage.server().context, got, accepts=accepts), watch)
    assert got == [len(token).to_bytes(4, "big") + token.encode()]
    assert not any(token.encode()[:100] in item for items in sent for item in items if isinstance(item, bytes))
    if accepts:
        assert results[0] is None
    else:
        assert isinstance(results[0], MethodFailed)
        assert str(results[0]).startswith("the token was sent")


def test_no_token_for_a_server_that_is_not_to_be_believed(stage: Stage) -> None:
    got: list[bytes] = []
    shown = stage.server(other_authority(stage).host("localhost"))
    client = security_ssl.prove(ClientTls(stage.files()).context, "localhost", "secret")
    results = converse(client, token_server(shown.context, got, accepts=True))
    assert isinstance(results[0], MethodFailed)
    assert got == []


statuses = st.one_of(st.integers(-1, 4), st.integers(-(2**63), 2**63 - 1))


@st.composite
def changes(draw: st.DrawFn) -> Change:
    """One message of the exchange becomes something else."""
    which = draw(st.integers(0, 9))
    status, noise, at = draw(statuses), draw(st.binary(max_size=60)), draw(st.integers(0, 3000))
    kind = draw(st.sampled_from(["status", "replace", "cut", "flip", "length"]))

    def change(number: int, items: tuple[Item, ...]) -> tuple[Item, ...]:
        if number != which:
            return items
        data = items[2] if len(items) == 3 else b""
        assert isinstance(data, bytes)
        match kind:
            case "status":
                return (status, *items[1:])
            case "replace":
                return (items[0], len(noise), noise)
            case "cut":
                return (items[0], len(data[:at]), data[:at])
            case "flip" if data:
                at_byte = at % len(data)
                flipped = data[:at_byte] + bytes([data[at_byte] ^ 0x55]) + data[at_byte + 1 :]
                return (items[0], len(flipped), flipped)
            case "length":
                return (items[0], status, data)
        return items

    return change


@attrs.frozen
class Pair:
    """Contexts that fit each other, made once; the client's certificate in PEM."""

    client: ssl.SSLContext
    server: ssl.SSLContext
    pem: bytes


@pytest.fixture(scope="module")
def pair(stage: Stage) -> Pair:
    alice = stage.grid.user("Alice")
    return Pair(ClientTls(stage.files(alice)).context(), stage.server().context(), alice.pem)


@settings(max_examples=100, deadline=None)
@given(change=changes())
def test_whatever_happens_to_the_bytes_nobody_is_taken_for_another(pair: Pair, change: Change) -> None:
    results = converse(
        security_ssl.prove(lambda: pair.client, "localhost"),
        security_ssl.check(lambda: pair.server, require_certificate=True),
        change,
    )
    for result in results:
        assert result is None or isinstance(result, tuple | MethodFailed | PeerFault)
    if isinstance(results[1], tuple):
        assert ssl.DER_cert_to_PEM_cert(results[1][0]).encode() in pair.pem


Script = list[tuple[int, int | None, bytes]]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(statuses, st.one_of(st.integers(-1, 300), st.none()), st.binary(max_size=300)), max_size=8))
def test_garbage_proves_nothing(pair: Pair, script: Script) -> None:
    for end in (
        security_ssl.prove(lambda: pair.client, "localhost", "secret"),
        security_ssl.check(lambda: pair.server, require_certificate=False),
    ):
        with pytest.raises((MethodFailed, PeerFault)):
            feed(end, script)
        end.close()


def feed(end: Handshake[Any], script: Script) -> None:
    """Until the end has enough; the script's end is the connection's."""
    replies = iter([(0,), *((status, len(raw) if n is None else n, raw) for status, n, raw in script)])
    answer: Any = None
    while True:
        action = end.send(answer)
        answer = None
        if isinstance(action, Get):
            if (items := next(replies, None)) is None:
                raise PeerFault("closed")
            answer = Reader(encode(items, keyed=False), keyed=False)
