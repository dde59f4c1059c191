"""Credentials: our verifier held against openssl's, and what openssl lets pass."""

from __future__ import annotations

import base64
import contextlib
import datetime
import os
import re
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from demo.grid import (
    Certified,
    Grid,
    make_authority,
    make_grid,
    make_key,
    make_proxy,
    proxy_cert_info,
    write_private,
)
from demo.grid_voms import VOMS_EXTENSION, voms_extension
from pilot import credentials
from pilot.credentials import CredentialError

DER = serialization.Encoding.DER
PEM = serialization.Encoding.PEM


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Grid:
    return make_grid(tmp_path_factory.mktemp("grid"))


@pytest.fixture(scope="module")
def alice(grid: Grid) -> Certified:
    return grid.user("Alice Adams")


def verify(grid: Grid, credential: Certified | bytes, *, now: float | None = None) -> credentials.Credential:
    pem = credential if isinstance(credential, bytes) else credential.pem
    return credentials.verify(pem, grid.certificates_dir, now=time.time() if now is None else now)


def refusal(call: Callable[[], object]) -> CredentialError:
    with pytest.raises(CredentialError) as caught:
        call()
    assert "PRIVATE KEY" not in str(caught.value)
    return caught.value


def openssl_accepts(grid: Grid, credential: Certified | bytes, path: Path, *options: str) -> bool:
    path = write_private(path / "judged.pem", credential if isinstance(credential, bytes) else credential.pem)
    command = ["openssl", "verify", "-CApath", str(grid.certificates_dir), "-allow_proxy_certs", *options]
    done = subprocess.run([*command, "-untrusted", path, path], capture_output=True, check=False, timeout=20)
    path.unlink()
    return done.returncode == 0


def forged(
    source: Certified,
    *,
    subject: x509.Name | None = None,
    issuer: x509.Name | None = None,
    info: x509.UnrecognizedExtension | None = None,
    info_critical: bool = True,
    extensions: tuple[tuple[x509.ExtensionType, bool], ...] = (),
    signer: Certified | None = None,
    ends_s: float = 3600,
) -> Certified:
    """A proxy with one thing wrong; each part can be replaced."""
    now = int(time.time())
    key = make_key()
    above = source.certificate.subject
    name = x509.Name(
        [*above.rdns, x509.RelativeDistinguishedName([x509.NameAttribute(NameOID.COMMON_NAME, "7")])]
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject or name)
        .issuer_name(issuer or above)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(at(now - 300))
        .not_valid_after(at(now + ends_s))
        .add_extension(info or proxy_cert_info("inherit"), critical=info_critical)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    certificate = builder.sign((signer or source).key, hashes.SHA256())
    return Certified(certificate, key, (source.certificate, *source.chain))


def at(unix_s: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(int(unix_s), datetime.UTC)


# --- what it says ---------------------------------------------------------------------------------------------


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


# --- the same answer as openssl -------------------------------------------------------------------------------


def good_credentials(grid: Grid, alice: Certified) -> dict[str, Certified]:
    rsa_user = grid.user("Rob RSA", key="rsa")
    return {
        "user": alice,
        "inherit": make_proxy(alice),
        "limited": make_proxy(alice, kind="limited"),
        "two": make_proxy(make_proxy(alice)),
        "full then limited": make_proxy(make_proxy(alice), kind="limited"),
        "limited twice": make_proxy(make_proxy(alice, kind="limited"), kind="limited"),
        "path length kept": make_proxy(make_proxy(alice, path_length=1), path_length=0),
        "leaf with path length 0": make_proxy(alice, path_length=0),
        "rsa": make_proxy(rsa_user, key="rsa"),
        "rsa under ec": make_proxy(alice, key="rsa"),
        "ec under rsa": make_proxy(rsa_user),
    }


def test_good_ones_are_accepted_as_by_openssl(grid: Grid, alice: Certified, tmp_path: Path) -> None:
    for name, credential in good_credentials(grid, alice).items():
        assert verify(grid, credential).identity == credential.identity, name
        assert openssl_accepts(grid, credential, tmp_path, "-crl_check"), name


def bad_credentials(grid: Grid, alice: Certified) -> dict[str, tuple[Certified | bytes, str]]:
    bob = grid.user("Bob Banned")
    proxy = make_proxy(alice)
    san = x509.SubjectAlternativeName([x509.DNSName("x.example.org")])
    named_bob = x509.Name([*bob.certificate.subject.rdns, *proxy.certificate.subject.rdns[-1:]])
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
    garbage = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.5.5.7.1.14"), b"\x05\x00")
    return {
        "expired proxy": (make_proxy(alice, lifetime_s=-60), "expired"),
        "expired in the middle": (make_proxy(make_proxy(alice, lifetime_s=-60)), "expired"),
        "expired user": (make_proxy(grid.user("Old", lifetime_s=-60, starts_s=-90)), "expired"),
        "not yet": (make_proxy(alice, starts_s=600), "not-yet-valid"),
        "path length": (make_proxy(make_proxy(alice, path_length=0)), "not-allowed"),
        "path length two above": (make_proxy(make_proxy(make_proxy(alice, path_length=1))), "not-allowed"),
        "signed by another": (forged(alice, signer=bob), "broken"),
        "wrong subject": (forged(alice, subject=named_bob), "broken"),
        "two names more": (
            forged(
                alice,
                subject=x509.Name([*proxy.certificate.subject.rdns, *bob.certificate.subject.rdns[-1:]]),
            ),
            "broken",
        ),
        "same subject": (forged(alice, subject=alice.certificate.subject), "broken"),
        "info is garbage": (forged(alice, info=garbage), "broken"),
        "claims to be a CA": (
            forged(alice, extensions=((x509.BasicConstraints(ca=True, path_length=None), True),)),
            "broken",
        ),
        "alternative name": (forged(alice, extensions=((san, False),)), "broken"),
        "unknown critical": (forged(alice, extensions=((unknown, True),)), "not-allowed"),
        "proxy of a CA": (make_proxy(grid.authority), "not-allowed"),
    }


def test_bad_ones_are_refused_as_by_openssl(grid: Grid, alice: Certified, tmp_path: Path) -> None:
    for name, (credential, code) in bad_credentials(grid, alice).items():
        assert refusal(partial(verify, grid, credential)).code == code, name
        assert not openssl_accepts(grid, credential, tmp_path), name


def stricter_than_openssl(alice: Certified) -> dict[str, tuple[Certified, str]]:
    restricted = x509.UnrecognizedExtension(
        x509.ObjectIdentifier("1.3.6.1.5.5.7.1.14"), bytes.fromhex("300c300a06082b06010505071503")
    )
    return {
        "limited turns full": (make_proxy(make_proxy(alice, kind="limited")), "not-allowed"),
        "info not critical": (forged(alice, info_critical=False), "broken"),
        "independent": (make_proxy(alice, kind="independent"), "not-allowed"),
        "below an independent": (make_proxy(make_proxy(alice, kind="independent")), "not-allowed"),
        "unknown policy": (forged(alice, info=restricted), "not-allowed"),
    }


def test_what_only_we_refuse(grid: Grid, alice: Certified, tmp_path: Path) -> None:
    for name, (credential, code) in stricter_than_openssl(alice).items():
        assert refusal(partial(verify, grid, credential)).code == code, name
        assert openssl_accepts(grid, credential, tmp_path), name


def test_sha1_is_refused(grid: Grid, alice: Certified, tmp_path: Path) -> None:
    write_private(tmp_path / "alice.pem", alice.pem)
    (tmp_path / "extensions").write_text("proxyCertInfo=critical,language:id-ppl-inheritAll\n")
    name = f"{alice.subject}/CN=7"
    key, request = tmp_path / "key", tmp_path / "request"
    for command in (
        f"openssl req -new -newkey rsa:2048 -nodes -keyout {key} -out {request} -subj",
        f"openssl x509 -req -sha1 -days 1 -in {request} -CA {tmp_path}/alice.pem -set_serial 7 "
        f"-extfile {tmp_path}/extensions -out {tmp_path}/proxy",
    ):
        words = command.split() + ([name] if command.endswith("-subj") else [])
        subprocess.run(words, capture_output=True, check=True, timeout=20)
    pem = (tmp_path / "proxy").read_bytes() + key.read_bytes() + certificates_only(alice)
    error = refusal(lambda: verify(grid, pem, now=time.time() + 60))
    assert error.code == "broken"
    assert "SHA-1" in str(error)


def test_messages_name_who_and_what_to_do(grid: Grid, alice: Certified) -> None:
    text = str(refusal(lambda: verify(grid, make_proxy(alice, lifetime_s=-60))))
    assert "CN=Alice Adams" in text
    assert re.search(r"ended on \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", text)
    assert "voms-proxy-init" in text


# --- old-style proxies ----------------------------------------------------------------------------------------


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


# --- the CA's side --------------------------------------------------------------------------------------------


def test_unknown_ca(grid: Grid, tmp_path: Path) -> None:
    other = make_grid(tmp_path, name="Other CA")
    error = refusal(lambda: verify(grid, make_proxy(other.user("Alice Adams"))))
    assert error.code == "untrusted"
    assert f"{other.hash}.0" in str(error)


def test_ca_with_the_same_name_and_another_key(grid: Grid, alice: Certified, tmp_path: Path) -> None:
    impostor = make_grid(tmp_path)
    assert impostor.hash == grid.hash
    proxy = make_proxy(impostor.user("Alice Adams"))
    assert refusal(lambda: verify(grid, proxy)).code == "untrusted"
    second = grid.certificates_dir / f"{grid.hash}.1"
    second.write_bytes(impostor.authority.certificate.public_bytes(PEM))
    try:  # the second of two CAs with one hash is found too, and its own certificates only by its own key
        crl = grid.certificates_dir / f"{grid.hash}.r0"
        saved = crl.read_bytes()
        crl.unlink()
        assert verify(grid, proxy).identity == alice.identity
        crl.write_bytes(saved)
    finally:
        second.unlink()


def test_self_signed_ca_brought_along_is_not_trusted(grid: Grid, tmp_path: Path) -> None:
    other = make_grid(tmp_path, name="Other CA")
    user = other.user("Alice Adams")
    brought = Certified(user.certificate, user.key, (other.authority.certificate,))
    assert refusal(lambda: verify(grid, make_proxy(brought))).code == "untrusted"


def test_no_directory(alice: Certified, tmp_path: Path) -> None:
    error = refusal(lambda: credentials.verify(alice.pem, tmp_path / "nowhere", now=time.time()))
    assert error.code == "untrusted"
    assert "nowhere" in str(error)


@pytest.mark.parametrize(
    "content", [b"", b"garbage", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_a_damaged_ca_file_is_not_a_missing_one(tmp_path: Path, content: bytes) -> None:
    grid = make_grid(tmp_path)
    alice = grid.user("Alice")
    (grid.certificates_dir / f"{grid.hash}.0").write_bytes(content)
    assert "damaged" in str(refusal(lambda: verify(grid, alice)))


def test_ca_file_in_der(tmp_path: Path) -> None:
    grid = make_grid(tmp_path)
    (grid.certificates_dir / f"{grid.hash}.0").write_bytes(grid.authority.certificate.public_bytes(DER))
    assert verify(grid, grid.user("Alice")).identity.endswith("/CN=Alice")


def test_revoked(tmp_path: Path) -> None:
    grid = make_grid(tmp_path)
    alice, bob = grid.user("Alice"), grid.user("Bob")
    grid.write_crl([alice])
    error = refusal(lambda: verify(grid, make_proxy(alice)))
    assert error.code == "revoked"
    assert "CN=Alice" in str(error)
    assert verify(grid, make_proxy(bob)).proxy
    assert not openssl_accepts(grid, alice, tmp_path, "-crl_check")


def test_crl_must_be_in_force(tmp_path: Path) -> None:
    grid = make_grid(tmp_path)
    alice = grid.user("Alice")
    grid.write_crl(starts_s=-7200, lifetime_s=3600)
    assert refusal(lambda: verify(grid, alice)).code == "crl"
    grid.write_crl(starts_s=3600)
    assert refusal(lambda: verify(grid, alice)).code == "crl"
    grid.write_crl()
    assert verify(grid, alice).identity.endswith("/CN=Alice")


def test_crl_of_an_impostor(tmp_path: Path) -> None:
    grid, impostor = make_grid(tmp_path / "a"), make_grid(tmp_path / "b")
    theirs = impostor.write_crl().read_bytes()
    (grid.certificates_dir / f"{grid.hash}.r0").write_bytes(theirs)
    assert refusal(lambda: verify(grid, grid.user("Alice"))).code == "crl"


@pytest.mark.parametrize(
    "content", [b"", b"garbage", b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"]
)
def test_a_damaged_crl_is_not_a_missing_one(tmp_path: Path, content: bytes) -> None:
    grid = make_grid(tmp_path)
    crl = grid.certificates_dir / f"{grid.hash}.r0"
    crl.write_bytes(content)
    assert refusal(lambda: verify(grid, grid.user("Alice"))).code == "crl"
    crl.unlink()
    assert verify(grid, grid.user("Alice")).identity.endswith("/CN=Alice")


@pytest.mark.parametrize(
    ("patterns", "allowed"),
    [
        (("/DC=org/DC=sailplane-demo/*",), True),
        (("/DC=org/DC=other/*", "/DC=org/DC=sailplane-demo/CN=Ali*"), True),
        (("/DC=org/DC=sailplane-demo/CN=Alice",), True),
        (("/DC=org/DC=other/*",), False),
        (("/DC=org/DC=sailplane-demo/CN=[A]lice",), False),
        (("/dc=org/dc=sailplane-demo/*",), False),
    ],
)
def test_signing_policy(tmp_path: Path, patterns: tuple[str, ...], allowed: bool) -> None:
    grid = make_grid(tmp_path)
    alice = make_proxy(grid.user("Alice"))
    grid.write_signing_policy(*patterns)
    if allowed:
        assert verify(grid, alice).identity.endswith("/CN=Alice")
    else:
        assert refusal(lambda: verify(grid, alice)).code == "untrusted"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing\n",
        "access_id_CA X509 '/CN=Another'\npos_rights globus CA:sign\ncond_subjects globus '\"*\"'\n",
        "access_id_CA X509 '{ca}'\ncond_subjects globus '\"*\"'\n",
        "access_id_CA X509 '{ca}\npos_rights globus CA:sign\ncond_subjects globus '\"*\"'\n",
    ],
)
def test_signing_policies_that_grant_nothing(tmp_path: Path, text: str) -> None:
    grid = make_grid(tmp_path)
    (grid.certificates_dir / f"{grid.hash}.signing_policy").write_text(text.format(ca=grid.authority.subject))
    assert refusal(lambda: verify(grid, grid.user("Alice"))).code == "untrusted"


def test_signing_policy_of_several_cas_with_an_old_spelling(tmp_path: Path) -> None:
    name = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, "CA"), x509.NameAttribute(NameOID.EMAIL_ADDRESS, "a@b.c")]
    )
    grid = make_grid(tmp_path)
    odd = Grid(make_authority(name), grid.certificates_dir, grid.organisation)
    (grid.certificates_dir / f"{odd.hash}.0").write_bytes(odd.authority.certificate.public_bytes(PEM))
    (grid.certificates_dir / f"{odd.hash}.signing_policy").write_text(
        "access_id_CA  X509 '/CN=Another'\n pos_rights globus CA:sign\n cond_subjects globus '\"/O=x/*\"'\n\n"
        "access_id_CA\tX509 '/CN=CA/Email=a@b.c' # a comment\n"
        "pos_rights globus CA:sign\ncond_subjects globus '/DC=org/*'\n"
    )
    assert verify(grid, odd.user("Alice")).identity.endswith("/CN=Alice")


# --- intermediate CAs -----------------------------------------------------------------------------------------


def intermediate(
    grid: Grid,
    *,
    ca: bool = True,
    path_length: int | None = None,
    usage: bool = True,
    name: str = "Middle CA",
) -> Certified:
    key = make_key()
    subject = x509.Name([*grid.organisation, x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(grid.authority.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(at(time.time() - 300))
        .not_valid_after(at(time.time() + 36000))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=path_length if ca else None), critical=True)
    )
    if not usage:
        may_not = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
        builder = builder.add_extension(may_not, critical=True)
    return Certified(builder.sign(grid.authority.key, hashes.SHA256()), key)


def user_below(grid: Grid, middle: Certified, *, brings: bool) -> Certified:
    user = Grid(middle, grid.certificates_dir, grid.organisation).user("Deep User")
    return make_proxy(Certified(user.certificate, user.key, (middle.certificate,) if brings else ()))


def test_intermediate_brought_along(grid: Grid, tmp_path: Path) -> None:
    proxy = user_below(grid, intermediate(grid), brings=True)
    assert verify(grid, proxy).issuer_ca.endswith("/CN=Middle CA")
    assert openssl_accepts(grid, proxy, tmp_path)


def test_intermediate_missing(grid: Grid, tmp_path: Path) -> None:
    proxy = user_below(grid, intermediate(grid), brings=False)
    assert refusal(lambda: verify(grid, proxy)).code == "untrusted"
    assert not openssl_accepts(grid, proxy, tmp_path)


def test_intermediate_in_the_directory_and_its_crl(tmp_path: Path) -> None:
    grid = make_grid(tmp_path)
    middle = intermediate(grid)
    below = Grid(middle, grid.certificates_dir, grid.organisation)
    (grid.certificates_dir / f"{below.hash}.0").write_bytes(middle.certificate.public_bytes(PEM))
    user = below.user("Deep User")
    assert verify(grid, make_proxy(user)).identity.endswith("/CN=Deep User")
    below.write_crl([user])
    assert refusal(lambda: verify(grid, make_proxy(user))).code == "revoked"
    below.write_crl([])
    grid.write_crl([middle])
    assert refusal(lambda: verify(grid, make_proxy(user))).code == "revoked"


@pytest.mark.parametrize("wrong", ["ca", "usage"])
def test_intermediate_that_is_no_ca(grid: Grid, tmp_path: Path, wrong: str) -> None:
    middle = intermediate(grid, ca=wrong != "ca", usage=wrong != "usage")
    proxy = user_below(grid, middle, brings=True)
    assert refusal(lambda: verify(grid, proxy)).code == "untrusted"
    assert not openssl_accepts(grid, proxy, tmp_path)


def test_user_certificate_used_as_ca(grid: Grid, alice: Certified, tmp_path: Path) -> None:
    proxy = user_below(grid, alice, brings=True)
    assert refusal(lambda: verify(grid, proxy)).code == "untrusted"
    assert not openssl_accepts(grid, proxy, tmp_path)


# --- keys and hostile files -----------------------------------------------------------------------------------


def test_key_of_another(grid: Grid, alice: Certified) -> None:
    bob = make_proxy(grid.user("Bob"))
    mixed = Certified(make_proxy(alice).certificate, bob.key, (alice.certificate,))
    assert refusal(lambda: verify(grid, mixed)).code == "no-key"


def certificates_only(credential: Certified) -> bytes:
    return b"".join(link.public_bytes(PEM) for link in (credential.certificate, *credential.chain))


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


@given(
    damage=st.lists(
        st.tuples(st.booleans(), st.integers(0, 4000), st.integers(0, 255)), min_size=1, max_size=4
    )
)
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


# --- delegation -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source_key", ["ec", "rsa"])
@pytest.mark.parametrize("key", ["ec", "rsa"])
def test_delegation(grid: Grid, tmp_path: Path, source_key: str, key: str) -> None:
    source = make_proxy(grid.user("Alice", key=source_key), key=source_key)  # type: ignore[arg-type]
    request = credentials.make_request(key)  # type: ignore[arg-type]
    answer = credentials.sign_request(source.pem, request.der, not_after=None)
    pem = request.complete(answer)
    found = verify(grid, pem)
    assert found.limited
    assert found.identity == source.identity
    assert openssl_accepts(grid, pem, tmp_path)
    assert [block.split(b"-----")[0] for block in pem.split(b"-----BEGIN ")[1:]] == [
        b"CERTIFICATE",
        b"PRIVATE KEY",
        b"CERTIFICATE",
        b"CERTIFICATE",
    ]


def test_delegated_certificate_is_the_references(grid: Grid, alice: Certified) -> None:
    source = make_proxy(alice)
    answer = credentials.sign_request(source.pem, credentials.make_request().der, not_after=None)
    made = x509.load_der_x509_certificate(answer[: int.from_bytes(answer[2:4], "big") + 4])
    assert answer.endswith(source.certificate.public_bytes(DER) + alice.certificate.public_bytes(DER))
    assert made.version is x509.Version.v3
    assert 0 < made.serial_number < 2**31
    assert made.issuer == source.certificate.subject
    assert made.subject.rdns[-1] == x509.RelativeDistinguishedName(
        [x509.NameAttribute(NameOID.COMMON_NAME, str(made.serial_number))]
    )
    extensions = {extension.oid.dotted_string: extension for extension in made.extensions}
    assert set(extensions) == {"2.5.29.15", "1.3.6.1.5.5.7.1.14"}
    assert all(extension.critical for extension in extensions.values())
    info = extensions["1.3.6.1.5.5.7.1.14"].value
    assert info.public_bytes() == bytes.fromhex("300f300d060b2b060104019b5001010109")
    usage = extensions["2.5.29.15"].value
    assert usage.public_bytes() == bytes.fromhex("030205a0")
    assert isinstance(made.signature_hash_algorithm, hashes.SHA256)
    assert made.not_valid_before_utc >= source.certificate.not_valid_before_utc
    assert made.not_valid_after_utc == source.certificate.not_valid_after_utc


def test_request_is_as_stock_makes_it() -> None:
    request = x509.load_der_x509_csr(credentials.make_request().der)
    assert request.is_signature_valid
    assert list(request.subject) == []
    assert list(request.attributes) == []
    assert isinstance(request.signature_hash_algorithm, hashes.SHA256)


def test_full_and_limited_delegation(grid: Grid, alice: Certified) -> None:
    for kind, limited, expected in (
        ("inherit", False, False),
        ("inherit", True, True),
        ("limited", False, True),
    ):
        request = credentials.make_request()
        source = make_proxy(alice, kind="limited" if kind == "limited" else "inherit")
        answer = credentials.sign_request(source.pem, request.der, not_after=None, limited=limited)
        assert verify(grid, request.complete(answer)).limited is expected


def test_wanted_end(grid: Grid, alice: Certified) -> None:
    now = time.time()
    source = make_proxy(alice, lifetime_s=3600)
    own_end = source.certificate.not_valid_after_utc.timestamp()
    for wanted, expected in ((now + 600, int(now + 600)), (now + 7200, own_end), (None, own_end)):
        request = credentials.make_request()
        answer = credentials.sign_request(source.pem, request.der, not_after=wanted)
        assert credentials.load(request.complete(answer)).expires_at == expected
    late = credentials.make_request()
    error = refusal(lambda: credentials.sign_request(source.pem, late.der, not_after=now - 100))
    assert error.code == "expired"


def test_sources_that_may_not_delegate(grid: Grid, alice: Certified) -> None:
    request = credentials.make_request().der
    for source, code in (
        (make_proxy(alice, lifetime_s=-60).pem, "expired"),
        (make_proxy(make_proxy(alice, lifetime_s=-60)).pem, "expired"),
        (make_proxy(alice, path_length=0).pem, "not-allowed"),
        (make_proxy(make_proxy(alice, path_length=1)).pem, "not-allowed"),
        (certificates_only(alice), "no-key"),
        (b"nothing", "broken"),
    ):
        assert refusal(partial(credentials.sign_request, source, request, not_after=None)).code == code


def test_names_keep_their_bytes(tmp_path: Path) -> None:
    """Tools compare issuer and subject byte by byte, so a printable string must stay one."""
    grid = make_grid(tmp_path)
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.COUNTRY_NAME, "CH"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Old Grid", x509.name._ASN1Type.PrintableString),
            x509.NameAttribute(NameOID.COMMON_NAME, "Übung", x509.name._ASN1Type.BMPString),
        ]
    )
    odd = Grid(grid.authority, grid.certificates_dir, name)
    grid.write_signing_policy("/C=CH/*")
    source = make_proxy(odd.user("Ängström"))
    request = credentials.make_request()
    pem = request.complete(credentials.sign_request(source.pem, request.der, not_after=None))
    assert verify(grid, pem).identity == source.identity
    assert openssl_accepts(grid, pem, tmp_path)


@pytest.mark.parametrize("request_der", [b"", b"garbage", b"\x30\x80", b"x" * 100_000])
def test_requests_that_cannot_be_read(alice: Certified, request_der: bytes) -> None:
    error = refusal(lambda: credentials.sign_request(alice.pem, request_der, not_after=None))
    assert error.code in ("broken", "too-big")


def test_request_not_signed_by_its_key(alice: Certified) -> None:
    damaged = bytearray(credentials.make_request().der)
    damaged[-1] ^= 1
    assert (
        refusal(lambda: credentials.sign_request(alice.pem, bytes(damaged), not_after=None)).code == "broken"
    )


@pytest.mark.parametrize("bits", [512, 768])
def test_request_for_a_weak_key(alice: Certified, bits: int) -> None:
    pem = subprocess.run(
        [
            "openssl",
            "req",
            "-new",
            "-newkey",
            f"rsa:{bits}",
            "-nodes",
            "-subj",
            "/",
            "-outform",
            "DER",
            "-keyout",
            os.devnull,
        ],
        capture_output=True,
        check=True,
        timeout=20,
    ).stdout
    assert refusal(lambda: credentials.sign_request(alice.pem, pem, not_after=None)).code == "broken"


@pytest.mark.parametrize("curve", [ec.SECP384R1(), ec.SECP256R1()])
def test_requests_of_others(grid: Grid, alice: Certified, curve: ec.EllipticCurve) -> None:
    key = ec.generate_private_key(curve)
    request = x509.CertificateSigningRequestBuilder(subject_name=x509.Name([])).sign(key, hashes.SHA256())
    answer = credentials.sign_request(alice.pem, request.public_bytes(DER), not_after=None)
    size = 4 + int.from_bytes(answer[2:4], "big")
    made = Certified(x509.load_der_x509_certificate(answer[:size]), key, (alice.certificate,))
    assert verify(grid, made).proxy


def test_answer_for_another_key(alice: Certified) -> None:
    first, second = credentials.make_request(), credentials.make_request()
    answer = credentials.sign_request(alice.pem, first.der, not_after=None)
    assert refusal(lambda: second.complete(answer)).code == "no-key"


def test_answers_that_are_wrong(grid: Grid, alice: Certified) -> None:
    request = credentials.make_request()
    answer = credentials.sign_request(alice.pem, request.der, not_after=None)
    size = 4 + int.from_bytes(answer[2:4], "big")
    other = grid.user("Bob").certificate.public_bytes(DER)
    for wrong in (
        b"",
        answer[:-1],
        answer[:size],
        answer[:size] + other,
        answer[size:],
        answer + b"\0",
        answer * 20,
    ):
        assert refusal(partial(request.complete, wrong)).code in ("broken", "no-key", "too-big")
    assert refusal(lambda: request.complete(answer, now=time.time() + 10**8)).code == "expired"
    assert request.complete(answer)


def test_an_end_entity_certificate_is_no_answer(grid: Grid) -> None:
    request = credentials.make_request()
    key = x509.load_der_x509_csr(request.der).public_key()
    user = grid.user("Alice").certificate
    builder = x509.CertificateBuilder(
        user.issuer, user.subject, key, 3, at(time.time() - 300), at(time.time() + 600)
    )
    certificate = builder.sign(grid.authority.key, hashes.SHA256())
    assert refusal(lambda: request.complete(certificate.public_bytes(DER))).code == "broken"


# --- storing --------------------------------------------------------------------------------------------------


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
