"""Our verifier held against openssl's, and what openssl lets pass."""

from __future__ import annotations

import re
import subprocess
import time
from functools import partial
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from demo.grid import (
    Certified,
    Grid,
    make_authority,
    make_grid,
    make_key,
    make_proxy,
    write_private,
)
from pilot import credentials, credentials_trust
from tests.pilot.proxies import DER, PEM, at, forged, openssl_accepts, refusal, verify


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Grid:
    return make_grid(tmp_path_factory.mktemp("grid"))


@pytest.fixture(scope="module")
def alice(grid: Grid) -> Certified:
    return grid.user("Alice Adams")


# --- the same answer as openssl ---


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
    may_sign = x509.KeyUsage(True, False, False, False, False, True, False, False, False)
    inherit = bytes.fromhex("06082b06010505071501")
    with_text = x509.UnrecognizedExtension(
        x509.ObjectIdentifier("1.3.6.1.5.5.7.1.14"), b"\x30\x0f\x30\x0d" + inherit + b"\x04\x01x"
    )
    restricted = x509.UnrecognizedExtension(
        x509.ObjectIdentifier("1.3.6.1.5.5.7.1.14"), bytes.fromhex("300c300a06082b06010505071503")
    )
    return {
        "limited turns full": (make_proxy(make_proxy(alice, kind="limited")), "not-allowed"),
        "info not critical": (forged(alice, info_critical=False), "broken"),
        "may sign certificates": (forged(alice, extensions=((may_sign, True),)), "broken"),
        "policy with a text": (forged(alice, info=with_text), "not-allowed"),
        "independent": (make_proxy(alice, kind="independent"), "not-allowed"),
        "below an independent": (make_proxy(make_proxy(alice, kind="independent")), "not-allowed"),
        "unknown policy": (forged(alice, info=restricted), "not-allowed"),
    }


def test_what_only_we_refuse(grid: Grid, alice: Certified, tmp_path: Path) -> None:
    for name, (credential, code) in stricter_than_openssl(alice).items():
        assert refusal(partial(verify, grid, credential)).code == code, name
        assert openssl_accepts(grid, credential, tmp_path), name


def test_sha1_is_refused_for_a_persons_certificate(tmp_path: Path) -> None:
    """Of proxies it is accepted: the tools that users have still make them so."""
    grid = make_grid(tmp_path, key="rsa")
    write_private(tmp_path / "alice.pem", grid.authority.pem)
    (tmp_path / "extensions").write_text("keyUsage=critical,digitalSignature\n")
    name = "/DC=org/DC=sailplane-demo/CN=Sam Stone"
    key, request = tmp_path / "key", tmp_path / "request"
    for command in (
        f"openssl req -new -newkey rsa:2048 -nodes -keyout {key} -out {request} -subj",
        f"openssl x509 -req -sha1 -days 1 -in {request} -CA {tmp_path}/alice.pem -set_serial 7 "
        f"-extfile {tmp_path}/extensions -out {tmp_path}/proxy",
    ):
        words = command.split() + ([name] if command.endswith("-subj") else [])
        subprocess.run(words, capture_output=True, check=True, timeout=20)
    pem = (tmp_path / "proxy").read_bytes() + key.read_bytes()
    error = refusal(lambda: verify(grid, pem, now=time.time() + 60))
    assert error.code == "broken"
    assert "SHA-1" in str(error)


def test_messages_name_who_and_what_to_do(grid: Grid, alice: Certified) -> None:
    text = str(refusal(lambda: verify(grid, make_proxy(alice, lifetime_s=-60))))
    assert "CN=Alice Adams" in text
    assert re.search(r"ended on \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", text)
    assert "voms-proxy-init" in text


# --- the CA's side ---


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


@pytest.mark.parametrize("content", [b"", b"garbage", b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"])
def test_a_damaged_crl_is_not_a_missing_one(tmp_path: Path, content: bytes) -> None:
    grid = make_grid(tmp_path)
    crl = grid.certificates_dir / f"{grid.hash}.r0"
    crl.write_bytes(content)
    assert refusal(lambda: verify(grid, grid.user("Alice"))).code == "crl"
    crl.unlink()
    assert verify(grid, grid.user("Alice")).identity.endswith("/CN=Alice")


PIECES = st.lists(st.sampled_from(["*", "/CN=", "a", "b", "aa", ".", "[a]", "\\"]), max_size=8).map("".join)


@given(pattern=PIECES, name=PIECES)
def test_a_policys_pattern_matches_as_a_regular_expression_would(pattern: str, name: str) -> None:
    expression = ".*".join(re.escape(part) for part in pattern.split("*"))
    assert credentials_trust._matches(pattern, name) == (re.fullmatch(expression, name) is not None)


@pytest.mark.parametrize("pattern", ["*", "/CN=*", "/CN=a*b", "/CN=a\nb"])
def test_no_pattern_of_a_policy_covers_a_line_break(pattern: str) -> None:
    assert not credentials_trust._matches(pattern, "/CN=a\nb")


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


# --- intermediate CAs ---


def intermediate(
    grid: Grid,
    *,
    ca: bool = True,
    path_length: int | None = None,
    usage: bool = True,
    name: str = "Middle CA",
    extension: x509.ExtensionType | None = None,
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
    if extension is not None:
        builder = builder.add_extension(extension, critical=True)
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


def test_intermediate_below_one_that_allows_none(grid: Grid, tmp_path: Path) -> None:
    upper = intermediate(grid, path_length=0)
    lower = intermediate(Grid(upper, grid.certificates_dir, grid.organisation), name="Lower CA")
    user = Grid(lower, grid.certificates_dir, grid.organisation).user("Deep User")
    proxy = make_proxy(Certified(user.certificate, user.key, (lower.certificate, upper.certificate)))
    assert refusal(lambda: verify(grid, proxy)).code == "untrusted"
    assert not openssl_accepts(grid, proxy, tmp_path)


def test_intermediate_with_an_unknown_critical_extension(grid: Grid, tmp_path: Path) -> None:
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
    proxy = user_below(grid, intermediate(grid, extension=unknown), brings=True)
    assert refusal(lambda: verify(grid, proxy)).code == "not-allowed"
    assert not openssl_accepts(grid, proxy, tmp_path)


def test_expired_ca(tmp_path: Path) -> None:
    grid = make_grid(tmp_path, lifetime_s=-60)
    user = grid.user("Alice")
    assert refusal(lambda: verify(grid, user)).code == "expired"
    assert not openssl_accepts(grid, user, tmp_path)


def test_crl_of_a_part_of_the_certificates(tmp_path: Path) -> None:
    grid = make_grid(tmp_path)
    part = x509.IssuingDistributionPoint(None, None, False, True, None, False, False)
    crl = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(grid.authority.certificate.subject)
        .last_update(at(time.time() - 60))
        .next_update(at(time.time() + 600))
        .add_extension(part, critical=True)
        .sign(grid.authority.key, hashes.SHA256())
    )
    (grid.certificates_dir / f"{grid.hash}.r0").write_bytes(crl.public_bytes(PEM))
    assert refusal(lambda: verify(grid, grid.user("Alice"))).code == "crl"


# --- what is remembered ---


def test_what_is_remembered_of_certificates_is_judged_anew_each_time(
    grid: Grid, alice: Certified, tmp_path: Path
) -> None:
    """By the clock, and by the CAs of each directory: here another one of the same name."""
    proxy, other = make_proxy(alice), make_grid(tmp_path)
    assert other.user("Alice Adams").certificate.issuer == alice.certificate.issuer
    for _ in range(2):
        assert verify(grid, proxy).identity == proxy.identity
        assert refusal(lambda: verify(grid, proxy, now=time.time() + 10 * 366 * 86400)).code == "expired"
        assert refusal(lambda: verify(other, proxy)).code in ("broken", "untrusted")
        assert refusal(lambda: verify(grid, make_proxy(other.user("Alice Adams")))).code in ("broken", "untrusted")
