"""Who is who, with a stock collector and stock tools: certificates, tokens of an issuer, tokens at our port."""

from __future__ import annotations

import base64
import json
import os
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from demo.grid import Certified, make_grid, write_private
from demo.layout import DOMAIN
from demo.site import Site
from tests.interop.conftest import STARTD_KNOBS
from tests.interop.stockpool import VARIABLE, StockPool, open_pool

pytestmark = [pytest.mark.interop, pytest.mark.timeout(300)]

SLOT = "slot1@sailplane.example"
ISSUER = "https://issuer.example"
SUBJECT = "the-factory"
# What a message about trouble may take.
TOLD_WITHIN_S = 25.0


def base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


@attrs.frozen
class Issuer:
    """A maker of bearer tokens, whose keys the stock library finds in its cache instead of the web."""

    key: ec.EllipticCurvePrivateKey = attrs.field(factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def publish(self, cache: Path) -> None:
        numbers = self.key.public_key().public_numbers()
        point = {"x": base64url(numbers.x.to_bytes(32, "big")), "y": base64url(numbers.y.to_bytes(32, "big"))}
        jwk = {"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": "one"} | point
        ends = int(time.time()) + 86_400
        keys = json.dumps({"expires": ends, "next_update": ends - 600, "jwks": {"keys": [jwk]}})
        (cache / "scitokens").mkdir(parents=True)
        with sqlite3.connect(cache / "scitokens" / "scitokens_cpp.sqllite") as db:
            db.execute("CREATE TABLE keycache (issuer text UNIQUE PRIMARY KEY NOT NULL,keys text NOT NULL)")
            db.execute("INSERT INTO keycache VALUES (?, ?)", (ISSUER, keys))
        db.close()

    def token(self, *, lifetime_s: float = 3600.0) -> str:
        now = int(time.time())
        claims = {"iss": ISSUER, "sub": SUBJECT, "aud": "ANY", "ver": "scitoken:2.0", "jti": "1", "nbf": now - 60}
        claims |= {"iat": now - 60, "exp": int(now + lifetime_s), "scope": "condor:/ADVERTISE_STARTD condor:/READ"}
        init = ".".join(base64url(json.dumps(part).encode()) for part in ({"alg": "ES256", "kid": "one"}, claims))
        r, s = decode_dss_signature(self.key.sign(init.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{init}.{base64url(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


@attrs.define(eq=False)
class Stage:
    """A stock pool that knows certificates and an issuer, and what is shown to it."""

    site: Site
    pool: StockPool
    issuer: Issuer

    def own(self, name: str, pem: bytes) -> Path:
        """A file of the pilot's, closed to others."""
        account = self.site.accounts["pilot"]
        (self.site.layout.pilot / name).unlink(missing_ok=True)
        return write_private(self.site.layout.pilot / name, pem, owner=(account.uid, account.gid))

    def start(self, *, wait: bool = True, **knobs: object) -> None:
        self.site.start_startd(wait=wait, **STARTD_KNOBS | {"COLLECTOR_HOST": f"localhost:{self.pool.port}"} | knobs)

    def known_as(self) -> str:
        """How the collector knows our slot: method and name."""
        return self.site.wait_until(self._known_as, what="our slot", deadline_s=60.0)

    def _known_as(self) -> str | None:
        said = self.pool.tool(
            "condor_status", SLOT, "-af", "AuthenticationMethod", "AuthenticatedIdentity", check=False
        )
        return said.strip() or None

    def told(self, text: str, within_s: float = TOLD_WITHIN_S) -> str:
        """A line of our log; seconds are counted from now."""
        log = self.site.layout.pilot / "log" / "StartLog"

        def look() -> str | None:
            lines = log.read_text(errors="replace").splitlines() if log.exists() else []
            return next((line for line in lines if text in line), None)

        return self.site.wait_until(look, what=f"a word about {text}", deadline_s=within_s)

    def tool(self, *argv: str, **knobs: str) -> subprocess.CompletedProcess[str]:
        """A stock tool as root, with settings of its own."""
        environment = self.pool.environment | {f"_CONDOR_{name}": value for name, value in knobs.items()}
        return subprocess.run(
            argv,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment, cwd="/", timeout=60, check=False,
        )  # fmt: skip


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with Site.open("test", linger=True) as site:
        where = site.layout.root / "security"
        where.mkdir(mode=0o755)
        owner = site.accounts["pool"]
        host = write_private(where / "host.pem", site.grid.host("localhost").pem, owner=(owner.uid, owner.gid))
        (where / "map").write_text(
            f'SSL "/CN=Pilot Factory$" pilot@{DOMAIN}\nSCITOKENS ^{ISSUER},{SUBJECT}$ pilot@{DOMAIN}\nFS (.*) \\1\n'
        )
        more = f"""
SEC_DEFAULT_AUTHENTICATION_METHODS = FS, TOKEN, SSL, SCITOKENS
AUTH_SSL_SERVER_CERTFILE = {host}
AUTH_SSL_SERVER_KEYFILE = {host}
AUTH_SSL_SERVER_CADIR = {site.grid.certificates_dir}
AUTH_SSL_CLIENT_CADIR = {site.grid.certificates_dir}
AUTH_SSL_ALLOW_CLIENT_PROXY = True
CERTIFICATE_MAPFILE = {where / "map"}
COLLECTOR_DEBUG = D_FULLDEBUG D_SECURITY D_COMMAND
"""
        issuer = Issuer()
        cache = site.layout.root / "cache"
        issuer.publish(cache)
        for path in (cache, *cache.rglob("*")):
            os.chown(path, owner.uid, owner.gid)
        with open_pool(site, Path(os.environ[VARIABLE]), more=more) as pool:
            yield Stage(site, pool, issuer)


@pytest.fixture(autouse=True)
def fresh(stage: Stage) -> Iterator[None]:
    """Each test has a startd of its own, and its log."""
    log = stage.site.layout.pilot / "log" / "StartLog"
    log.unlink(missing_ok=True)
    yield
    startd, stage.site.startd = stage.site.startd, None
    if startd is not None:
        startd.stop(deadline_s=60.0)


def ssl_knobs(stage: Stage, certified: Certified) -> dict[str, object]:
    return {
        "SEC_CLIENT_AUTHENTICATION_METHODS": "SSL",
        "AUTH_SSL_CLIENT_CADIR": stage.site.grid.certificates_dir,
        "AUTH_SSL_CLIENT_USE_DEFAULT_CAS": False,
        "AUTH_SSL_CLIENT_CERTFILE": stage.own("own.pem", certified.pem),
    }


def test_our_startd_joins_by_its_certificate(stage: Stage) -> None:
    stage.start(**ssl_knobs(stage, stage.site.grid.user("Pilot Factory")))
    assert stage.known_as() == f"SSL pilot@{DOMAIN}"


def test_our_startd_joins_by_its_proxy(stage: Stage) -> None:
    knobs = ssl_knobs(stage, stage.site.grid.user("Pilot Factory"))
    del knobs["AUTH_SSL_CLIENT_CERTFILE"]
    stage.start(**knobs, AUTH_SSL_USE_CLIENT_PROXY_ENV_VAR=True)
    assert stage.known_as() == f"SSL pilot@{DOMAIN}"


def test_our_startd_joins_by_an_issuers_token(stage: Stage) -> None:
    knobs = ssl_knobs(stage, stage.site.grid.user("Pilot Factory"))
    file = stage.own("bearer", stage.issuer.token().encode())
    stage.start(**knobs | {"SEC_CLIENT_AUTHENTICATION_METHODS": "SCITOKENS", "SCITOKENS_FILE": file})
    assert stage.known_as() == f"SCITOKENS pilot@{DOMAIN}"


Change = Callable[[Stage], dict[str, object]]


def another_authority(stage: Stage) -> dict[str, object]:
    other = make_grid(stage.site.layout.root / "security" / "other", name="Other CA", organisation="other")
    return {"AUTH_SSL_CLIENT_CADIR": other.certificates_dir}


def a_strangers_token(stage: Stage) -> dict[str, object]:
    file = stage.own("strangers", Issuer().token().encode())
    return {"SEC_CLIENT_AUTHENTICATION_METHODS": "SCITOKENS", "SCITOKENS_FILE": file}


def an_old_token(stage: Stage) -> dict[str, object]:
    file = stage.own("old", stage.issuer.token(lifetime_s=-10.0).encode())
    return {"SEC_CLIENT_AUTHENTICATION_METHODS": "SCITOKENS", "SCITOKENS_FILE": file}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (another_authority, "SSL: TLS handshake: the certificate is not accepted"),
        (lambda stage: {"COLLECTOR_HOST": f"127.0.0.1:{stage.pool.port}"}, "IP address mismatch"),
        (a_strangers_token, "SCITOKENS: the token was sent: the other end gave up"),
        (an_old_token, "expired at"),
        (lambda stage: {"SEC_CLIENT_AUTHENTICATION_METHODS": "FS"}, "DENIED"),
    ],
)
def test_a_refusal_is_told_in_time(stage: Stage, change: Change, told: str) -> None:
    knobs = ssl_knobs(stage, stage.site.grid.user("Pilot Factory"))
    stage.start(**knobs | change(stage))
    assert "collector <" in stage.told(told)


def test_stock_tools_at_our_port_by_certificate_and_by_token(stage: Stage) -> None:
    site = stage.site
    key = stage.own("POOL", (stage.pool.here / "passwords.d" / "POOL").read_bytes())
    host = stage.own("host.pem", site.grid.host("localhost").pem)
    map_file = site.layout.root / "security" / "ours"
    map_file.write_text('SSL "^/DC=org/DC=[a-z-]+/CN=Operator$" operator@pool\n')
    stage.start(
        SEC_TOKEN_POOL_SIGNING_KEY_FILE=key,
        SEC_DEFAULT_AUTHENTICATION_METHODS="SSL, TOKEN",
        SEC_CLIENT_AUTHENTICATION_METHODS="TOKEN",
        AUTH_SSL_SERVER_CERTFILE=host,
        AUTH_SSL_SERVER_CADIR=site.grid.certificates_dir,
        CERTIFICATE_MAPFILE=map_file,
        HOST_ALIAS="localhost",
        TRUST_DOMAIN=DOMAIN,
        ALLOW_ADMINISTRATOR=f"operator@pool, helper@{DOMAIN}/127.0.0.*",
    )
    stage.known_as()
    operator = str(write_private(site.layout.root / "security" / "operator.pem", site.grid.user("Operator").pem))
    stranger = str(write_private(site.layout.root / "security" / "stranger.pem", site.grid.user("Stranger").pem))
    by_ssl = {
        "SEC_CLIENT_AUTHENTICATION_METHODS": "SSL",
        "AUTH_SSL_CLIENT_CERTFILE": operator,
        "AUTH_SSL_CLIENT_KEYFILE": operator,
    }
    tokens_dir = site.layout.root / "security" / "tokens"
    tokens_dir.mkdir(mode=0o700)
    text = stage.pool.tool("condor_token_create", "-key", "POOL", "-identity", f"helper@{DOMAIN}")
    write_private(tokens_dir / "helper", text.encode())
    by_token = {"SEC_CLIENT_AUTHENTICATION_METHODS": "TOKEN", "SEC_TOKEN_DIRECTORY": str(tokens_dir)}

    def ping(*levels: str, **knobs: str) -> str:
        done = stage.tool("condor_ping", "-type", "startd", "-name", SLOT, "-table", *levels, **knobs)
        return done.stdout + done.stderr

    for knobs, name in ((by_ssl, "operator@pool"), (by_token, f"helper@{DOMAIN}")):
        said = ping("READ", "WRITE", "ADMINISTRATOR", **knobs)
        assert said.count("ALLOW") == 3, said
        assert said.count(name) >= 2, said
        assert "DENY" in ping("DAEMON", **knobs) or "FAIL" in ping("DAEMON", **knobs)
    other = by_ssl | {"AUTH_SSL_CLIENT_CERTFILE": stranger, "AUTH_SSL_CLIENT_KEYFILE": stranger}
    assert "ALLOW" not in ping("WRITE", **other)
    for knobs in (by_ssl, by_token, other):
        done = stage.tool("condor_status", "-direct", SLOT, "-af", "Name", **knobs)
        assert done.stdout.strip() == SLOT, done.stderr
    done = stage.tool("condor_reconfig", "-startd", "-name", SLOT, **by_token)
    assert done.returncode == 0, done.stderr
    stage.told("wants the settings read again")
