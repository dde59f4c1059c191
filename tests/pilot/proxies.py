"""Credentials that are wrong in one way, and openssl's word about them."""

from __future__ import annotations

import datetime
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import NameOID

from demo.grid import (
    Certified,
    Grid,
    make_key,
    proxy_cert_info,
    write_private,
)
from pilot import credentials
from pilot.credentials import CredentialError

DER = serialization.Encoding.DER
PEM = serialization.Encoding.PEM


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
    key: CertificatePublicKeyTypes | None = None,
    ends_s: float = 3600,
) -> Certified:
    """A proxy with one thing wrong; each part can be replaced."""
    now = int(time.time())
    own = make_key()
    above = source.certificate.subject
    name = x509.Name([*above.rdns, x509.RelativeDistinguishedName([x509.NameAttribute(NameOID.COMMON_NAME, "7")])])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject or name)
        .issuer_name(issuer or above)
        .public_key(key or own.public_key())
        .serial_number(7)
        .not_valid_before(at(now - 300))
        .not_valid_after(at(now + ends_s))
        .add_extension(info or proxy_cert_info("inherit"), critical=info_critical)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    certificate = builder.sign((signer or source).key, hashes.SHA256())
    return Certified(certificate, own, (source.certificate, *source.chain))


def at(unix_s: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(int(unix_s), datetime.UTC)


def certificates_only(credential: Certified) -> bytes:
    return b"".join(link.public_bytes(PEM) for link in (credential.certificate, *credential.chain))
