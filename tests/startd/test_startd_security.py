"""What a startd shows the pool, whom it knows at its port, and as what."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from cedar import scitokens, tokens
from cedar.client import Negotiate, connect
from cedar.commands import Command
from cedar.errors import PeerFault, Refused
from cedar.security import MethodFailed
from cedar.server import Request, Served, Server
from cedar.sessions import SessionTable
from cedar.sinful import Sinful
from cedar.tls import ClientTls, TlsFiles
from demo.grid import Grid, make_grid, make_proxy, write_private
from pilot.configuration import load
from pilot.settings import Settings
from startd import portsecurity
from startd.authorisation import Rules
from startd.poolsecurity import PoolSecurity, methods

LOG = logging.LoggerAdapter(logging.getLogger("test"), {})
KEY = tokens.new_signing_key()


def token(subject: str = "condor@d", **more: Any) -> str:
    return tokens.mint(KEY, "POOL", subject, "d", now_unix_s=time.time(), **more)


# --- towards the pool ---


@pytest.mark.parametrize(
    ("chosen", "there", "expected"),
    [
        (None, (), ("FS",)),
        (None, ("token",), ("TOKEN",)),
        (None, ("token", "certificate", "scitoken"), ("TOKEN", "SCITOKENS", "SSL")),
        (("SSL", "FS"), ("token",), ("SSL", "FS")),
    ],
)
def test_what_is_shown(chosen: tuple[str, ...] | None, there: tuple[str, ...], expected: tuple[str, ...]) -> None:
    assert methods(chosen, **{name: name in there for name in ("token", "scitoken", "certificate")}) == expected


def test_settings_of_methods() -> None:
    settings = load(None, {"_CONDOR_SEC_DEFAULT_AUTHENTICATION_METHODS": "FS, KERBEROS IDTOKENS,token"})
    assert settings.sec_default_authentication_methods == ("FS", "TOKEN")
    assert PoolSecurity.of(settings).wishes().methods == ("FS", "TOKEN")
    settings = load(None, {"_CONDOR_SEC_CLIENT_AUTHENTICATION_METHODS": "ssl", "BEARER_TOKEN_FILE": "/tmp/bt"})
    assert PoolSecurity.of(settings).wishes().methods == ("SSL",)
    assert settings.scitokens_file == Path("/tmp/bt")
    for wrong in ("SSH", "KERBEROS", ","):
        with pytest.raises(Exception, match="SEC_CLIENT_AUTHENTICATION_METHODS"):
            load(None, {"_CONDOR_SEC_CLIENT_AUTHENTICATION_METHODS": wrong})


def test_the_pilots_proxy_can_be_its_certificate(tmp_path: Path) -> None:
    settings = attrs.evolve(
        Settings(), auth_ssl_use_client_proxy_env_var=True, sailplane_pilot_proxy=tmp_path / "p",
        sec_token_directory=tmp_path / "none",
    )  # fmt: skip
    security = PoolSecurity.of(settings)
    assert security.tls.files.cert_file == security.tls.files.key_file == tmp_path / "p"
    assert security.anonymous_tls.files.cert_file is None
    assert "SSL" in security.wishes().methods


def test_a_bearer_token_is_found_and_checked(tmp_path: Path) -> None:
    uid, now = os.geteuid(), time.time()
    file, text = tmp_path / "bt", token()
    assert not scitokens.found(file, uid)
    cases = {
        "": "no token in",
        "# only a comment\n": "no token in",
        "garbage!": "is no token",
        token(lifetime_s=-5.0): "expired at",
    }
    for content, told in cases.items():
        write_private(file, content.encode())
        with pytest.raises(MethodFailed) as caught:
            scitokens.load(file, uid, now_unix_s=now)
        assert told in str(caught.value)
        assert content[:20] == "" or content.rpartition(".")[2][:20] not in str(caught.value)
        file.unlink()
    write_private(file, f"# mine\n  {text}  \nanother".encode())
    assert scitokens.load(file, uid, now_unix_s=now) == text
    assert scitokens.found(file, uid)
    file.chmod(0o644)
    with pytest.raises(MethodFailed, match="closed to others"):
        scitokens.load(file, uid, now_unix_s=now)
    file.chmod(0o600)
    if uid == 0:  # root's files are everybody's to believe
        os.chown(file, 12345, -1)
    with pytest.raises(MethodFailed, match="of this account"):
        scitokens.load(file, uid + 1, now_unix_s=now)
    with pytest.raises(MethodFailed, match="no token in /run/user/"):
        scitokens.load(None, 4_000_000_000, now_unix_s=now)
    os.mkfifo(tmp_path / "fifo", 0o600)
    with pytest.raises(MethodFailed, match="must be a file"):
        scitokens.load(tmp_path / "fifo", uid, now_unix_s=now)


@pytest.mark.skipif(os.geteuid() != 0, reason="another account's file takes root")
def test_another_account_cannot_make_us_offer_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = tmp_path / "bt_u4711"
    monkeypatch.setattr(scitokens, "places", lambda file, uid: (usual,))
    write_private(usual, b"x")
    os.chown(usual, 12345, -1)
    assert not scitokens.found(None, 4711)
    os.chown(usual, 4711, -1)
    assert scitokens.found(None, 4711)


# --- at the port ---


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Grid:
    return make_grid(tmp_path_factory.mktemp("port"), name="Port CA")


@attrs.frozen
class Port:
    address: Sinful
    requests: list[Request] = attrs.field(factory=list)


LEVELS = {
    Command.NOP_READ: "READ",
    Command.NOP_WRITE: "WRITE",
    Command.NOP_ADMINISTRATOR: "ADMINISTRATOR",
    Command.NOP_DAEMON: "DAEMON",
}


@asynccontextmanager
async def port(settings: Settings) -> AsyncIterator[Port]:
    async def handle(request: Request) -> None:
        on.requests.append(request)
        await request.stream.put(1)

    rules = Rules.of(settings, portsecurity.own_names(settings))
    policy = portsecurity.policy(settings, lambda: rules, LOG)
    table = {int(command): Served(level, handle) for command, level in LEVELS.items()}
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        on = Port(Sinful("127.0.0.1", listeners[0].socket.getsockname()[1], {"alias": "localhost"}))
        await nursery.start(Server(table, SessionTable(), policy).serve, listeners)
        yield on
        nursery.cancel_scope.cancel()


async def granted(on: Port, wishes: Negotiate) -> tuple[str, set[str]]:
    """Who we are there, and the levels that we get."""
    levels, identity = set(), ""
    for command, level in LEVELS.items():
        try:
            stream = await connect(on.address, command, wishes, subsystem="TOOL", deadline_s=60)
        except (Refused, PeerFault):
            continue
        async with stream:
            assert (await stream.get()).int() == 1
        levels.add(level)
        identity = on.requests[-1].identity
    return identity, levels


def settings_with(tmp_path: Path, **knobs: str) -> Settings:
    lines = [f"LOCAL_DIR = {tmp_path}", "TRUST_DOMAIN = d", "UID_DOMAIN = users.d"]
    (tmp_path / "conf").write_text("\n".join([*lines, *(f"{name} = {value}" for name, value in knobs.items())]) + "\n")
    return load(tmp_path / "conf", {})


async def test_a_token_where_there_is_a_signing_key(tmp_path: Path) -> None:
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens" / "t").write_text(token("bob@d"))
    wishes = Negotiate(tmp_path / "tokens", ("TOKEN",))
    write_private(tmp_path / "key", KEY)
    knobs = {"SEC_TOKEN_POOL_SIGNING_KEY_FILE": str(tmp_path / "key"), "ALLOW_ADMINISTRATOR": "bob@d/127.0.0.*"}
    async with port(settings_with(tmp_path, **knobs)) as on:
        assert await granted(on, wishes) == ("bob@d", {"READ", "WRITE", "ADMINISTRATOR"})
        (tmp_path / "tokens" / "t").write_text(token("bob@d", scope=("READ",)))
        assert await granted(on, wishes) == ("bob@d", {"READ"})
    del knobs["SEC_TOKEN_POOL_SIGNING_KEY_FILE"]
    async with port(settings_with(tmp_path, **knobs)) as on:
        with pytest.raises(PeerFault) as caught:
            await connect(on.address, Command.NOP_WRITE, wishes, subsystem="TOOL")
        assert "authentication REQUIRED, methods TOKEN" in caught.value.text
        with pytest.raises(Refused) as refused:
            await connect(
                on.address, Command.NOP_DAEMON, attrs.evolve(wishes, methods=("TOKEN", "FS")), subsystem="TOOL"
            )
        assert refused.value.code == "DENIED"


async def test_certificates_are_mapped(tmp_path: Path, grid: Grid) -> None:
    write_private(tmp_path / "host.pem", grid.host("localhost").pem)
    (tmp_path / "map").write_text(r'SSL "^/DC=org/DC=[a-z-]+/CN=(alice|daemon)$" \1' + "\n")
    knobs = {
        "AUTH_SSL_SERVER_CERTFILE": f"{tmp_path}/host.pem",
        "AUTH_SSL_SERVER_CADIR": str(grid.certificates_dir),
        "AUTH_SSL_SERVER_USE_DEFAULT_CAS": "False",
        "AUTH_SSL_ALLOW_CLIENT_PROXY": "True",
        "CERTIFICATE_MAPFILE": f"{tmp_path}/map",
        "ALLOW_WRITE": "alice@users.d, *@unmapped, unauthenticated@unmapped",
        "ALLOW_DAEMON": "daemon@users.d",
        "DENY_WRITE": "daemon@users.d/192.0.2.1",
    }

    def by(certified: Any) -> Negotiate:
        own = None if certified is None else write_private(tmp_path / f"{os.urandom(4).hex()}.pem", certified.pem)
        return Negotiate(None, ("SSL",), tls=ClientTls(TlsFiles(None, grid.certificates_dir, False, own, own)))

    async with port(settings_with(tmp_path, **knobs)) as on:
        assert await granted(on, by(grid.user("alice"))) == ("alice@users.d", {"READ", "WRITE"})
        assert await granted(on, by(make_proxy(make_proxy(grid.user("alice"))))) == ("alice@users.d", {"READ", "WRITE"})
        assert await granted(on, by(grid.user("daemon"))) == ("daemon@users.d", {"READ", "WRITE", "DAEMON"})
        # Known to the authority and to nobody here, and known to nobody: whatever the lists say.
        assert await granted(on, by(grid.user("mallory"))) == ("ssl@unmapped", {"READ"})
        assert await granted(on, by(None)) == ("unauthenticated@unmapped", {"READ"})
        (tmp_path / "map").write_text("SSL .* root\nSSL ( broken\n")
        assert await granted(on, by(grid.user("alice"))) == ("ssl@unmapped", {"READ"})
        (tmp_path / "map").write_text('SSL "CN=alice" carol@elsewhere\n')
        assert await granted(on, by(grid.user("alice"))) == ("carol@elsewhere", {"READ"})


async def test_our_own_account_and_a_port_that_shows_nothing(tmp_path: Path) -> None:
    own = Negotiate(None, ("FS",))
    async with port(settings_with(tmp_path)) as on:
        identity, levels = await granted(on, own)
        assert identity.endswith("@d")
        assert levels == {"READ", "WRITE", "ADMINISTRATOR"}
        assert await granted(on, Negotiate(None, (), "OPTIONAL")) == ("unauthenticated@unmapped", {"READ"})
    async with port(settings_with(tmp_path, ALLOW_READ="nobody@d", DENY_ADMINISTRATOR="127.0.0.1")) as on:
        assert (await granted(on, own))[1] == {"READ", "WRITE"}
        for wishes in (Negotiate(None, (), "OPTIONAL"), Negotiate(None, (), "NEVER")):
            assert await granted(on, wishes) == ("", set())


def test_a_certificate_that_is_nobodys_is_told_once_however_often_it_comes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    names = portsecurity.Names(tmp_path / "no map", False, "d", logging.LoggerAdapter(logging.getLogger("test"), {}))
    assert {names.identity((b"nonsense",)) for _ in range(3)} == {"ssl@unmapped"}
    assert len(caplog.records) == 1


def test_a_masters_accounts_may_command_its_startd_and_no_others() -> None:
    settings = attrs.evolve(Settings(), trust_domain="d")
    rules = Rules.of(settings, portsecurity.own_names(settings, {"condor"}))
    assert rules.permits("ADMINISTRATOR", "condor@d", "127.0.0.1")
    assert not rules.permits("ADMINISTRATOR", "condor@elsewhere", "127.0.0.1")
    without = Rules.of(settings, portsecurity.own_names(settings))
    assert not without.permits("ADMINISTRATOR", "condor@d", "127.0.0.1")
