"""Credentials: what they say, hostile files, storing."""

from __future__ import annotations

import base64
import contextlib
import os
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from demo.grid import (
    Certified,
    Grid,
    make_grid,
    make_key,
    make_proxy,
    proxy_cert_info,
)
from demo.grid_voms import VOMS_EXTENSION, voms_extension
from pilot import credentials
from pilot.credentials import CredentialError
from tests.pilot.proxies import DER, PEM, at, certificates_only, forged, refusal, verify


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Grid:
    return make_grid(tmp_path_factory.mktemp("grid"))


@pytest.fixture(scope="module")
def alice(grid: Grid) -> Certified:
    return grid.user("Alice Adams")


# --- what it says ---


def test_load_of_a_proxy_of_two_levels(grid: Grid, alice: Certified) -> None:
    first = make_proxy(alice, lifetime_s=3600)
    proxy = make_proxy(first, kind="limited", lifetime_s=7200)
    found = credentials.load(proxy.pem)
    assert found.identity == "/DC=org/DC=sailplane-demo/CN=Alice Adams"
    assert found.subject == proxy.subject
    assert found.issuer_ca == "/DC=org/DC=sailplane-demo/CN=Demo CA"
    assert found.expires_at == first.certificate.not_valid_after_utc.timestamp()
    assert found.limited
    assert found.proxy
    assert found.fqans == ()
    assert found == verify(grid, proxy)


def test_load_of_a_user_certificate(alice: Certified) -> None:
    found = credentials.load(alice.pem)
    assert not found.proxy
    assert not found.limited
    assert found.subject == found.identity


def test_pem_is_in_no_repr(alice: Certified) -> None:
    pem = make_proxy(alice).pem
    request = credentials.make_request()
    for shown in (repr(credentials.load(pem)), repr(request)):
        assert "BEGIN" not in shown
        assert "key" not in shown


def test_is_of_accepts_both_spellings(grid: Grid) -> None:
    found = credentials.load(grid.user("host/a.b").pem)
    assert found.identity.endswith("/CN=host\\/a.b")
    assert found.is_of(found.identity)
    assert found.is_of("/DC=org/DC=sailplane-demo/CN=host/a.b")
    assert not found.is_of("/DC=org/DC=sailplane-demo/CN=host")
    assert not found.is_of("")


@pytest.mark.parametrize("key", ["rsa", "ec"])
def test_fqans_as_stated(grid: Grid, alice: Certified, key: str) -> None:
    fqans = ("/demo/Role=pilot/Capability=NULL", "/demo/Role=NULL/Capability=NULL")
    server = grid.user("voms.example.org", key="rsa" if key == "rsa" else "ec")
    proxy = make_proxy(alice, extensions=[voms_extension(alice, server, fqans)])
    further = make_proxy(proxy)
    assert verify(grid, proxy).fqans == fqans
    assert verify(grid, further).fqans == fqans


@pytest.mark.parametrize("fqan", ["", "demo", "/a\nb", "/a,/b", "/a\x00", "/é", "/" + "x" * 300, "/"])
def test_fqans_that_could_forge_something_are_refused(grid: Grid, alice: Certified, fqan: str) -> None:
    proxy = make_proxy(alice, extensions=[voms_extension(alice, alice, ["/demo", fqan])])
    assert refusal(lambda: credentials.load(proxy.pem)).code == "broken"


def test_too_many_fqans_are_refused(alice: Certified) -> None:
    proxy = make_proxy(alice, extensions=[voms_extension(alice, alice, [f"/demo/g{n}" for n in range(300)])])
    assert refusal(lambda: credentials.load(proxy.pem)).code == "broken"


@given(value=st.binary(max_size=60), cut=st.integers(0, 400))
@settings(max_examples=60, deadline=None)
def test_any_voms_bytes_give_fqans_or_an_error(alice: Certified, value: bytes, cut: int) -> None:
    good = voms_extension(alice, alice, ["/demo"])[0].value
    damaged = x509.UnrecognizedExtension(VOMS_EXTENSION, good[:cut] + value + good[cut + len(value) :])
    pem = make_proxy(alice, extensions=[(damaged, False)]).pem
    with contextlib.suppress(CredentialError):
        credentials.load(pem)


# --- old-style proxies ---


@pytest.mark.parametrize("common_name", ["proxy", "limited proxy"])
def test_gt2_proxies_are_not_taken_for_users(grid: Grid, alice: Certified, common_name: str) -> None:
    key = make_key()
    name = x509.Name([*alice.certificate.subject, x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(alice.certificate.subject)
        .public_key(key.public_key())
        .serial_number(alice.certificate.serial_number)
        .not_valid_before(at(time.time() - 300))
        .not_valid_after(at(time.time() + 3600))
        .sign(alice.key, hashes.SHA256())
    )
    old = Certified(certificate, key, (alice.certificate,))
    error = refusal(lambda: credentials.load(old.pem))
    assert error.code == "old-style"
    assert "-rfc" in str(error)


def test_draft_proxies_are_refused(alice: Certified) -> None:
    value = proxy_cert_info("inherit").value
    draft = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.3536.1.222"), value)
    assert refusal(lambda: credentials.load(forged(alice, info=draft).pem)).code == "old-style"


# --- keys and hostile files ---


def test_key_of_another(grid: Grid, alice: Certified) -> None:
    bob = make_proxy(grid.user("Bob"))
    mixed = Certified(make_proxy(alice).certificate, bob.key, (alice.certificate,))
    assert refusal(lambda: verify(grid, mixed)).code == "no-key"


def test_no_key(grid: Grid, alice: Certified) -> None:
    pem = certificates_only(make_proxy(alice))
    assert credentials.load(pem).identity == alice.identity
    assert refusal(lambda: verify(grid, pem)).code == "no-key"


def test_encrypted_key(grid: Grid, alice: Certified) -> None:
    form = serialization.PrivateFormat.PKCS8
    key = alice.key.private_bytes(PEM, form, serialization.BestAvailableEncryption(b"x"))
    assert "pass phrase" in str(refusal(lambda: verify(grid, certificates_only(alice) + key)))


def test_two_keys(grid: Grid, alice: Certified) -> None:
    assert refusal(lambda: verify(grid, alice.pem + make_proxy(alice).pem)).code == "broken"


@pytest.mark.parametrize("key", [b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_damaged_key(grid: Grid, alice: Certified, key: bytes) -> None:
    assert refusal(lambda: verify(grid, certificates_only(alice) + key)).code == "no-key"


def test_keys_of_other_kinds(grid: Grid, alice: Certified) -> None:
    form = serialization.PrivateFormat.PKCS8
    key = ed25519.Ed25519PrivateKey.generate().private_bytes(PEM, form, serialization.NoEncryption())
    assert refusal(lambda: verify(grid, certificates_only(alice) + key)).code == "no-key"


def test_chain_out_of_order(grid: Grid, alice: Certified) -> None:
    first = make_proxy(alice)
    second = make_proxy(first)
    mixed = Certified(second.certificate, second.key, (alice.certificate, first.certificate))
    assert refusal(lambda: credentials.load(mixed.pem)).code == "broken"


def test_user_certificate_missing(alice: Certified) -> None:
    proxy = make_proxy(alice)
    assert "missing" in str(refusal(lambda: credentials.load(Certified(proxy.certificate, proxy.key).pem)))


def test_a_proxy_above_a_user(alice: Certified) -> None:
    proxy = make_proxy(alice)
    user = Grid(proxy, Path(), alice.certificate.subject).user("Below")
    chain = Certified(user.certificate, user.key, (proxy.certificate, alice.certificate))
    assert "above" in str(refusal(lambda: credentials.load(chain.pem)))


def test_limits(alice: Certified) -> None:
    proxy = alice
    for _ in range(32):
        proxy = make_proxy(proxy)
    assert refusal(lambda: credentials.load(proxy.pem)).code == "too-big"
    assert refusal(lambda: credentials.load(b"x" * 1_000_000)).code == "too-big"
    assert credentials.load(Certified(proxy.chain[0], proxy.key, proxy.chain[1:]).pem).proxy


def test_text_around_the_blocks_is_ignored(grid: Grid, alice: Certified) -> None:
    pem = b"subject=/CN=x\n" + make_proxy(alice).pem.replace(b"\n", b"\r\n") + b"\n\ntail"
    assert verify(grid, pem).identity == alice.identity


@pytest.mark.parametrize(
    "pem",
    [
        b"",
        b"\0",
        b"-----BEGIN CERTIFICATE-----",
        b"-----BEGIN DH PARAMETERS-----\nAA==\n-----END DH PARAMETERS-----\n",
    ],
)
def test_not_a_credential(pem: bytes) -> None:
    assert refusal(lambda: credentials.load(pem)).code == "broken"


@given(damage=st.lists(st.tuples(st.booleans(), st.integers(0, 4000), st.integers(0, 255)), min_size=1, max_size=4))
@settings(max_examples=150, deadline=None)
def test_damage_gives_a_credential_error_or_nothing(
    grid: Grid, alice: Certified, damage: list[tuple[bool, int, int]]
) -> None:
    ders = [bytearray(link.public_bytes(DER)) for link in (make_proxy(alice).certificate, alice.certificate)]
    for which, position, value in damage:
        ders[which][position % len(ders[which])] = value
    pem = b"".join(pem_of(bytes(der)) for der in ders)
    request = credentials.make_request()
    for call in (
        lambda: request.complete(b"".join(map(bytes, ders))),
        lambda: credentials.load(pem),
        lambda: credentials.verify(pem, grid.certificates_dir, now=time.time()),
    ):
        with contextlib.suppress(CredentialError):
            call()


def pem_of(der: bytes) -> bytes:
    return b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE-----\n"


# --- storing ---


def test_store_private(tmp_path: Path) -> None:
    path = tmp_path / "proxy"
    old = os.umask(0)
    try:
        credentials.store_private(path, b"one")
        credentials.store_private(path, b"two")
    finally:
        os.umask(old)
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o7777 == 0o600
    assert os.listdir(tmp_path) == ["proxy"]


def test_store_private_replaces_a_link(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"untouched")
    path = tmp_path / "proxy"
    path.symlink_to(elsewhere)
    credentials.store_private(path, b"secret")
    assert elsewhere.read_bytes() == b"untouched"
    assert not path.is_symlink()
    assert path.read_bytes() == b"secret"


def test_store_private_refuses_a_shared_directory(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    assert refusal(lambda: credentials.store_private(shared / "proxy", b"secret")).code == "unsafe-place"
    assert os.listdir(shared) == []


def test_store_private_leaves_the_old_file_when_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "proxy"
    path.mkdir()
    with pytest.raises(OSError, match="directory"):
        credentials.store_private(path, b"secret")
    assert os.listdir(tmp_path) == ["proxy"]


def test_rsa_keys_beyond_the_limits(grid: Grid) -> None:
    key = rsa.generate_private_key(65537, 1024)
    request = x509.CertificateSigningRequestBuilder(subject_name=x509.Name([])).sign(key, hashes.SHA256())
    assert credentials.sign_request(grid.user("A").pem, request.public_bytes(DER), not_after=None)
