"""VOMS attribute certificates for the throw-away grid, signed by a host certificate of it.

Enough of RFC 5755 for tools that print FQANs and for tests of code that reads them; no VOMS server needed.
"""

from __future__ import annotations

import datetime
import secrets
import time
from collections.abc import Iterable, Mapping

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.serialization import Encoding

from demo.grid import Certified
from pilot import credentials_der as der

VOMS_EXTENSION = x509.ObjectIdentifier("1.3.6.1.4.1.8005.100.100.5")
_FQANS = "1.3.6.1.4.1.8005.100.100.4"
_ECDSA_SHA256 = der.encode(der.SEQUENCE, der.encode_oid("1.2.840.10045.4.3.2"))
_RSA_SHA256 = der.encode(der.SEQUENCE, der.encode_oid("1.2.840.113549.1.1.11"), b"\x05\x00")
# Context tags: GeneralName.directoryName and .uniformResourceIdentifier, baseCertificateID, v2Form, authority
_DIRECTORY_NAME, _URI, _TAG_0 = 0xA4, 0x86, 0xA0


def voms_extension(
    holder: Certified,
    server: Certified,
    fqans: Iterable[str],
    *,
    vo: str = "demo",
    lifetime_s: float = 12 * 3600.0,
    starts_s: float = -300.0,
    brings_server: bool = False,
    others: Mapping[str, Iterable[str]] | None = None,
) -> tuple[x509.UnrecognizedExtension, bool]:
    """The extension (not critical) that states these FQANs for the holder's end-entity certificate.

    For the `extensions` of make_proxy. `server` signs it in place of a VOMS server; `brings_server`: its certificate is
    in it, as real ones have it, with the extensions that the VOMS library insists on. `others`: what it states of
    further VOs, before its own.
    """
    entity = (holder.certificate, *holder.chain)[-1]
    algorithm = _ECDSA_SHA256 if isinstance(server.key, ec.EllipticCurvePrivateKey) else _RSA_SHA256
    info = der.encode(
        der.SEQUENCE,
        der.encode_int(1),
        _holder(entity),
        der.encode(_TAG_0, _names(server.certificate.subject)),
        algorithm,
        der.encode_int(secrets.randbits(63)),
        der.encode(der.SEQUENCE, _time(time.time() + starts_s), _time(time.time() + lifetime_s)),
        der.encode(der.SEQUENCE, *(_attribute(*one) for one in (others or {}).items()), _attribute(vo, fqans)),
        *([_extensions(server.certificate)] if brings_server else []),
    )
    signature = der.encode(0x03, b"\x00", _sign(server, info))
    certificate = der.encode(der.SEQUENCE, info, algorithm, signature)
    value = der.encode(der.SEQUENCE, der.encode(der.SEQUENCE, certificate))
    return x509.UnrecognizedExtension(VOMS_EXTENSION, value), False


def _extensions(server: x509.Certificate) -> bytes:
    """No revocation is available (critical nowhere), whose key signed, and the server's certificate."""
    key = x509.SubjectKeyIdentifier.from_public_key(server.public_key()).digest
    authority = der.encode(der.SEQUENCE, der.encode(0x80, key))
    certificates = der.encode(der.SEQUENCE, der.encode(der.SEQUENCE, server.public_bytes(Encoding.DER)))
    values = {"1.3.6.1.4.1.8005.100.100.10": certificates, "2.5.29.56": b"\x05\x00", "2.5.29.35": authority}
    return der.encode(
        der.SEQUENCE,
        *(
            der.encode(der.SEQUENCE, der.encode_oid(oid), der.encode(der.OCTET_STRING, value))
            for oid, value in values.items()
        ),
    )


def _holder(entity: x509.Certificate) -> bytes:
    base = der.encode(_TAG_0, _names(entity.issuer), der.encode_int(entity.serial_number))
    return der.encode(der.SEQUENCE, base)


def _attribute(vo: str, fqans: Iterable[str]) -> bytes:
    authority = der.encode(_TAG_0, der.encode(_URI, f"{vo}://voms.example.org:15000".encode()))
    values = der.encode(der.SEQUENCE, *(der.encode(der.OCTET_STRING, fqan.encode()) for fqan in fqans))
    syntax = der.encode(der.SEQUENCE, authority, values)
    return der.encode(der.SEQUENCE, der.encode_oid(_FQANS), der.encode(der.SET, syntax))


def _names(name: x509.Name) -> bytes:
    return der.encode(der.SEQUENCE, der.encode(_DIRECTORY_NAME, name.public_bytes()))


def _time(unix_s: float) -> bytes:
    moment = datetime.datetime.fromtimestamp(unix_s, datetime.UTC)
    return der.encode(0x18, moment.strftime("%Y%m%d%H%M%SZ").encode())


def _sign(server: Certified, data: bytes) -> bytes:
    if isinstance(server.key, ec.EllipticCurvePrivateKey):
        return server.key.sign(data, ec.ECDSA(hashes.SHA256()))
    return server.key.sign(data, padding.PKCS1v15(), hashes.SHA256())
