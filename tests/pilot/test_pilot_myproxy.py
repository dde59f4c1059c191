"""The MyProxy client against the real server on loopback."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from demo.grid import Certified, KeyKind, make_grid, make_proxy
from demo.grid_voms import voms_extension
from pilot import credentials, myproxy
from pilot.myproxy import Client, MyProxyError, Server
from tests.pilot.myproxyserver import FQAN, MISSING, VOMS_PART, MyProxy, myproxy_server

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {' '.join(MISSING)} (package myproxy-server)")
PASSPHRASE = "correct horse 7"


@attrs.define
class Place:
    myproxy: MyProxy
    pilot: Certified
    alice: Certified
    bob: Certified
    voms: Certified

    def attributed(
        self, who: Certified, fqan: str, *, by: Certified | None = None, lifetime_s: float = 12 * 3600.0
    ) -> Certified:
        """A proxy with an attribute certificate that lives 4 h; `by`: signed in the VOMS server's place."""
        extension = voms_extension(who, by or self.voms, [fqan], brings_server=True, lifetime_s=4 * 3600)
        return make_proxy(who, key="rsa", extensions=[extension], lifetime_s=lifetime_s)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    directory = tmp_path_factory.mktemp("myproxy")
    grid = make_grid(directory, key="rsa")  # Globus signs proxies by the method of the certificate above
    pilot, alice, bob = (grid.user(name, key="rsa") for name in ("Pilot Factory", "Alice Adams", "Bob Baker"))
    with myproxy_server(grid, directory / "server", pilot) as running:
        running.store(alice, "alice", passphrase=PASSPHRASE)
        running.store(alice, "alice", "-k", "RENEW", "-x", "-R", pilot.subject, "-c", "100")
        running.store(alice, "alice", "-k", "TRUST", "-x", "-Z", pilot.subject)
        voms = grid.host("voms.example.org", key="rsa")
        running.trust(voms)
        yield Place(running, pilot, alice, bob, voms)


def valid(place: Place, pem: bytes) -> credentials.Credential:
    found = credentials.verify(pem, place.myproxy.grid.certificates_dir, now=time.time())
    assert found.identity == place.alice.identity
    return found


def refused(place: Place, client: Client, username: str = "alice", **how: object) -> MyProxyError:
    with pytest.raises(MyProxyError) as caught:
        myproxy.logon(place.myproxy.server, client, username, **how)  # type: ignore[arg-type]
    assert PASSPHRASE not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("key", ["ec", "rsa"])
def test_with_the_passphrase_anybody_gets_it(place: Place, key: KeyKind) -> None:
    nobody = place.myproxy.client(None)
    found = valid(
        place, myproxy.logon(place.myproxy.server, nobody, "alice", passphrase=PASSPHRASE, lifetime_s=7200, key=key)
    )
    assert found.expires_at == pytest.approx(time.time() + 7200, abs=400)
    wrong = refused(place, nobody, passphrase="wrong horse 7")
    assert wrong.code == "refused"
    assert "'alice' to a client without a certificate" in wrong.text


def test_a_trusted_retriever_needs_no_passphrase_and_nobody_else_gets_it(place: Place) -> None:
    server, pilot = place.myproxy.server, place.myproxy.client(make_proxy(place.pilot, key="rsa"))
    valid(place, myproxy.logon(server, pilot, "alice", name="TRUST"))
    refusal = refused(place, place.myproxy.client(make_proxy(place.bob, key="rsa")), name="TRUST")
    assert refusal.code == "refused"
    assert place.bob.identity in refusal.text
    assert "retriever or renewer" in refusal.text


@pytest.mark.parametrize("key", ["ec", "rsa"])
def test_renewal_shows_the_old_proxy(place: Place, key: KeyKind) -> None:
    server, pilot = place.myproxy.server, place.myproxy.client(make_proxy(place.pilot, key="rsa"))
    old = make_proxy(place.alice, kind="limited", lifetime_s=600, key=key).pem
    new = valid(place, myproxy.logon(server, pilot, "alice", name="RENEW", old_pem=old, lifetime_s=4 * 3600))
    assert new.expires_at > credentials.load(old).expires_at + 3600
    others = make_proxy(place.bob, key="rsa").pem
    ended = make_proxy(place.alice, lifetime_s=-60, key="rsa").pem
    for proof in (others, ended):
        assert refused(place, pilot, name="RENEW", old_pem=proof).code == "refused"
    assert refused(place, pilot, name="RENEW").code == "refused"
    stranger = place.myproxy.client(make_proxy(place.bob, key="rsa"))
    assert refused(place, stranger, name="RENEW", old_pem=old).code == "refused"


@pytest.mark.skipif(VOMS_PART is None, reason="not installed: libmyproxy_voms.so (package libmyproxy-voms)")
@pytest.mark.parametrize("option", ["-Z", "-R"])
def test_a_policy_may_name_an_fqan_and_the_refusal_names_who_asked_and_as_what(place: Place, option: str) -> None:
    server, name = place.myproxy.server, f"FQAN{option}"
    old = make_proxy(place.alice, key="rsa").pem if option == "-R" else None
    place.myproxy.store(place.alice, "alice", "-k", name, "-x", option, f"FQAN:{FQAN}")
    member = place.myproxy.client(place.attributed(place.bob, FQAN))
    valid(place, myproxy.logon(server, member, "alice", name=name, old_pem=old))
    other = "/demo/Role=other/Capability=NULL"
    for asks, fqan in (
        (place.attributed(place.bob, other), other),
        (place.attributed(place.bob, FQAN, by=place.bob), FQAN),  # he says so himself
    ):
        refusal = refused(place, place.myproxy.client(asks), name=name, old_pem=old)
        assert refusal.code == "refused"
        assert f"'alice' to {place.bob.identity} ({fqan}): " in refusal.text
        assert "name this identity or FQAN as a retriever or renewer" in refusal.text


def test_the_attributes_of_a_stored_proxy_come_with_the_renewed_one(place: Place) -> None:
    """So a VOMS job is renewed as long as the stored attributes live, and no longer."""
    fqan, pilot = "/demo/Role=NULL/Capability=NULL", place.myproxy.client(make_proxy(place.pilot, key="rsa"))
    stored = place.attributed(place.alice, fqan)
    place.myproxy.store_proxy(stored, "alice", "-k", "VOMS", "-x", "-R", place.pilot.subject)
    old = place.attributed(place.alice, fqan, lifetime_s=600).pem

    def verified(pem: bytes) -> credentials.Credential:
        directory = place.myproxy.grid.certificates_dir
        return credentials.verify(pem, directory, now=time.time(), voms_dir=place.myproxy.voms_dir)

    new = verified(myproxy.logon(place.myproxy.server, pilot, "alice", name="VOMS", old_pem=old, lifetime_s=9 * 3600))
    assert new.attributes is not None
    assert new.attributes.fqans == (fqan,)
    assert not credentials.change_of(verified(old), new)
    assert new.usable_until == pytest.approx(time.time() + 4 * 3600, abs=400)
    assert new.expires_at > new.usable_until + 3600


def test_info_tells_what_is_stored(place: Place) -> None:
    owner = place.myproxy.client(make_proxy(place.alice, key="rsa"))
    stored = {one.name: one for one in myproxy.info(place.myproxy.server, owner, "alice")}
    assert set(stored) >= {"RENEW", "TRUST"}
    assert stored["RENEW"].owner == place.alice.identity
    assert stored["RENEW"].expires_at > time.time() + 3600
    assert place.pilot.subject in stored["RENEW"].renewers
    with pytest.raises(MyProxyError, match="gives no proxy of 'nobody'"):
        myproxy.info(place.myproxy.server, owner, "nobody")


def test_another_server_is_told_nothing(place: Place, tmp_path: Path) -> None:
    """Wrong name, wrong CA: refused before the passphrase is sent."""
    nobody = place.myproxy.client(None)
    for server in (
        attrs.evolve(place.myproxy.server, subject="/DC=org/DC=sailplane-demo/CN=myproxy.example.org"),
        Server("127.0.0.1", place.myproxy.port),
    ):
        with pytest.raises(MyProxyError) as caught:
            myproxy.logon(server, nobody, "alice", passphrase=PASSPHRASE)
        assert caught.value.code == "server"
    elsewhere = Client(make_grid(tmp_path, name="Other CA").certificates_dir)
    with pytest.raises(MyProxyError) as caught:
        myproxy.logon(place.myproxy.server, elsewhere, "alice", passphrase=PASSPHRASE)
    assert caught.value.code == "server"


def test_nobody_there_and_nonsense_are_told_apart(place: Place) -> None:
    nobody = place.myproxy.client(None)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        with pytest.raises(MyProxyError) as caught:
            myproxy.logon(Server("localhost", port), nobody, "alice", deadline_s=5)
        assert caught.value.code == "unreachable"
        listener.listen()
        thread = threading.Thread(target=_say_nothing, args=(listener,), daemon=True)
        thread.start()
        with pytest.raises(MyProxyError) as caught:
            myproxy.logon(Server("localhost", port), nobody, "alice", deadline_s=0.3)
        assert caught.value.code == "unreachable"
        thread.join(10)
    with pytest.raises(MyProxyError, match="line's end"):
        myproxy.logon(place.myproxy.server, nobody, "alice\nCOMMAND=3", passphrase=PASSPHRASE)


def _say_nothing(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.recv(65536)
        connection.settimeout(5)
        connection.recv(1)


def test_the_passphrase_is_in_no_environment_and_no_descriptor_stays_open(place: Place) -> None:
    before = len(os.listdir("/proc/self/fd"))
    myproxy.logon(place.myproxy.server, place.myproxy.client(make_proxy(place.pilot)), "alice", passphrase=PASSPHRASE)
    assert len(os.listdir("/proc/self/fd")) == before
    assert PASSPHRASE not in repr(os.environ)


@pytest.mark.parametrize("text", ["", "a b", "host:x", "user@host", "/x"])
def test_what_is_no_server_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a MyProxy server"):
        Server.parse(text)
