"""The throw-away grid, with openssl as the judge."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from demo.grid import Certified, Grid, ProxyKind, make_authority, make_grid, make_proxy, write_private
from pilot.credentials_names import name_hash, old_slash_form, slash_form


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Grid:
    return make_grid(tmp_path_factory.mktemp("grid"))


def openssl_verify(grid: Grid, path: Path, *options: str) -> str:
    command = ["openssl", "verify", "-allow_proxy_certs", "-CApath", str(grid.certificates_dir), *options]
    done = subprocess.run(
        [*command, "-untrusted", str(path), str(path)],
        capture_output=True,
        check=False,
        text=True,
        timeout=20,
    )
    return done.stdout + done.stderr


def openssl_says(certificate: x509.Certificate, *options: str) -> str:
    done = subprocess.run(
        ["openssl", "x509", "-noout", *options],
        input=certificate.public_bytes(Encoding.PEM),
        capture_output=True,
        check=True,
        timeout=20,
    )
    return done.stdout.decode()


def saved(tmp_path: Path, credential: Certified) -> Path:
    return write_private(tmp_path / "credential.pem", credential.pem)


@pytest.mark.parametrize("kind", ["inherit", "limited", "independent"])
def test_openssl_accepts_proxies_of_two_levels(grid: Grid, tmp_path: Path, kind: ProxyKind) -> None:
    proxy = make_proxy(make_proxy(grid.user("Alice Adams"), kind=kind), kind=kind)
    path = saved(tmp_path, proxy)
    assert openssl_verify(grid, path, "-crl_check") == f"{path}: OK\n"
    assert path.stat().st_mode & 0o777 == 0o600


def test_openssl_accepts_rsa_keys(grid: Grid, tmp_path: Path) -> None:
    alice = grid.user("Alice Adams", key="rsa")
    path = saved(tmp_path, make_proxy(alice, key="rsa"))
    assert b"BEGIN RSA PRIVATE KEY" in path.read_bytes()
    assert openssl_verify(grid, path) == f"{path}: OK\n"


def test_ec_keys_are_pkcs8(grid: Grid) -> None:
    assert b"BEGIN PRIVATE KEY" in make_proxy(grid.user("Alice Adams")).pem


def test_openssl_refuses_an_expired_proxy(grid: Grid, tmp_path: Path) -> None:
    path = saved(tmp_path, make_proxy(grid.user("Alice Adams"), lifetime_s=-60))
    assert "error 10 " in openssl_verify(grid, path)


def test_openssl_refuses_a_proxy_beyond_the_path_length(grid: Grid, tmp_path: Path) -> None:
    path = saved(tmp_path, make_proxy(make_proxy(grid.user("Alice Adams"), path_length=0)))
    assert "error 38 " in openssl_verify(grid, path)


def test_openssl_refuses_another_grid(grid: Grid, tmp_path: Path) -> None:
    other = make_grid(tmp_path / "other", name="Other CA")
    assert "error 20 " in openssl_verify(grid, saved(tmp_path, make_proxy(other.user("Alice Adams"))))


def test_openssl_refuses_what_the_crl_names(tmp_path: Path) -> None:
    grid = make_grid(tmp_path)
    alice = grid.user("Alice Adams")
    grid.write_crl([alice])
    path = saved(tmp_path, alice)
    assert "error 23 " in openssl_verify(grid, path, "-crl_check")
    grid.write_crl([], starts_s=-7200, lifetime_s=3600)
    assert "error 12 " in openssl_verify(grid, path, "-crl_check")


def test_host_certificate_names_the_host(grid: Grid) -> None:
    host = grid.host("node.example.org").certificate
    names = host.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["node.example.org"]


def test_subject_and_identity(grid: Grid) -> None:
    proxy = make_proxy(make_proxy(grid.user("Alice Adams")))
    assert proxy.identity == "/DC=org/DC=sailplane-demo/CN=Alice Adams"
    assert proxy.subject.startswith(proxy.identity + "/CN=")


def test_keys_do_not_show(grid: Grid) -> None:
    alice = grid.user("Alice Adams")
    assert "key=" not in repr(alice)


def test_two_grids_in_one_directory(tmp_path: Path) -> None:
    first, second = make_grid(tmp_path, name="One"), make_grid(tmp_path, name="Two")
    for grid in (first, second):
        path = write_private(tmp_path / f"{grid.hash}.pem", make_proxy(grid.user("A")).pem)
        assert openssl_verify(grid, path).endswith(": OK\n")


@pytest.mark.parametrize(
    "attributes",
    [
        [(NameOID.COMMON_NAME, "  Many   Blanks\tand CASE ")],
        [
            (NameOID.COUNTRY_NAME, "CH"),
            (NameOID.ORGANIZATION_NAME, "Zürich Ökonomie"),
            (NameOID.COMMON_NAME, "É"),
        ],
        [(NameOID.DOMAIN_COMPONENT, "org"), (NameOID.EMAIL_ADDRESS, "A@B.org"), (NameOID.USER_ID, "x/y")],
        [(NameOID.SERIAL_NUMBER, "123"), (NameOID.COMMON_NAME, "newline\nin it")],
        [(NameOID.COMMON_NAME, "host/a.b+c\\d=,")],
    ],
)
def test_hash_and_slash_form_are_openssls(attributes: list[tuple[x509.ObjectIdentifier, str]]) -> None:
    name = x509.Name([x509.NameAttribute(oid, value) for oid, value in attributes])
    certificate = make_authority(name).certificate
    assert name_hash(certificate.subject) == openssl_says(certificate, "-subject_hash").strip()
    assert said_subject(certificate) == slash_form(certificate.subject)


def test_hash_of_a_name_part_with_two_values() -> None:
    parts = [x509.NameAttribute(NameOID.USER_ID, "b"), x509.NameAttribute(NameOID.COMMON_NAME, "a")]
    name = x509.Name([x509.RelativeDistinguishedName(parts)])
    certificate = make_authority(name).certificate
    assert name_hash(certificate.subject) == openssl_says(certificate, "-subject_hash").strip()
    assert said_subject(certificate) == slash_form(certificate.subject)


def said_subject(certificate: x509.Certificate) -> str:
    """X509_NAME_oneline's text. Older ones wrote `/` and `+` bare: then the old form is compared."""
    said = openssl_says(certificate, "-subject", "-nameopt", "compat").rstrip("\n").removeprefix("subject=")
    return slash_form(certificate.subject) if said == old_slash_form(certificate.subject) else said
