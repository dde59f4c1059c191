"""Both ends of a delegation, and wrong requests and answers."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cedar.filetransfer import ProxyItem
from demo.grid import (
    Certified,
    Grid,
    make_grid,
    make_proxy,
)
from pilot import credentials
from tests.cedar.transferpeer import MemorySink, both
from tests.pilot.proxies import DER, at, certificates_only, forged, openssl_accepts, refusal, verify


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Grid:
    return make_grid(tmp_path_factory.mktemp("grid"))


@pytest.fixture(scope="module")
def alice(grid: Grid) -> Certified:
    return grid.user("Alice Adams")


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
    source = make_proxy(alice, starts_s=-60)
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
    assert refusal(lambda: credentials.sign_request(alice.pem, bytes(damaged), not_after=None)).code == "broken"


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


def test_an_answer_that_somebody_else_signed(grid: Grid, alice: Certified) -> None:
    request = credentials.make_request()
    impostor = Certified(alice.certificate, grid.user("Bob").key)
    key = x509.load_der_x509_csr(request.der).public_key()
    made = forged(impostor, key=key).certificate.public_bytes(DER)
    assert refusal(lambda: request.complete(made + alice.certificate.public_bytes(DER))).code == "broken"


def test_an_end_entity_certificate_is_no_answer(grid: Grid) -> None:
    request = credentials.make_request()
    key = x509.load_der_x509_csr(request.der).public_key()
    user = grid.user("Alice").certificate
    builder = x509.CertificateBuilder(user.issuer, user.subject, key, 3, at(time.time() - 300), at(time.time() + 600))
    certificate = builder.sign(grid.authority.key, hashes.SHA256())
    assert refusal(lambda: request.complete(certificate.public_bytes(DER))).code == "broken"


async def test_delegation_as_an_item_of_a_file_transfer(grid: Grid, alice: Certified) -> None:
    source = make_proxy(alice)

    async def sign(request_der: bytes) -> bytes:
        return credentials.sign_request(source.pem, request_der, not_after=None)

    class ProxySink(MemorySink):
        pem = b""

        async def proxy(self, name: str, exchange: Callable[[bytes], Awaitable[bytes]]) -> None:
            pending = credentials.make_request()
            self.pem = pending.complete(await exchange(pending.der))

    sink = ProxySink()
    (own, peer), _ = await both([ProxyItem("proxy.pem", sign)], sink)
    assert own.ok
    assert peer.ok
    assert verify(grid, sink.pem).identity == alice.identity
