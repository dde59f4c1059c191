"""Both ends of a delegation: a key and a request here, a proxy signed there. DER in, DER out; no stream.

Certificates as HTCondor makes them (limited unless asked otherwise, a random serial number as the new CN),
with the checks that it leaves out: nothing is signed with an expired source, nothing taken that is not ours.
"""

from __future__ import annotations

import datetime
import secrets
import time
from typing import Final, Literal

import attrs
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from pilot import credentials_der as der
from pilot.credentials_parse import (
    MAX_CHAIN,
    MAX_PEM_BYTES,
    PROXY_CERT_INFO,
    UNREADABLE,
    Chain,
    CredentialError,
    PrivateKey,
    check_public_key,
    load_key,
    make_chain,
    parse_pem,
    public_bytes,
    when,
)
from pilot.credentials_verify import check_dates, check_issued

# A request for RSA 2048 has 585 bytes; for the largest key that we accept some 2 kB.
MAX_REQUEST_BYTES: Final = 16 * 1024
# Against clocks that differ; what stock delegators use.
_SKEW_S: Final = 300.0
# Complete proxyCertInfo values, without a path length.
_LIMITED: Final = bytes.fromhex("300f300d060b2b060104019b5001010109")
_INHERIT: Final = bytes.fromhex("300c300a06082b06010505071501")


@attrs.frozen
class PendingRequest:
    """A fresh key that waits for its certificate. The key exists nowhere else and goes with this object."""

    der: bytes = attrs.field(repr=False)
    _key: PrivateKey = attrs.field(repr=False)

    def complete(self, certificates: bytes, *, now: float | None = None) -> bytes:
        """Join the answer and the key to a credential file: new certificate, PKCS8 key, chain.

        Args:
            certificates: DER certificates back to back: the new proxy, the delegator's own, its chain.
            now: unix time for the check of dates; the clock's if left out.

        Raises:
            CredentialError: broken, too-big, no-key (for another key), expired, not-yet-valid, old-style.
        """
        chain = make_chain(_split(certificates), None)
        leaf = chain.leaf
        if public_bytes(leaf.certificate.public_key()) != public_bytes(self._key.public_key()):
            raise CredentialError("no-key", f"The delegated proxy {leaf.name} was made for another key than ours.")
        if leaf.proxy is None:
            raise CredentialError("broken", f"What was delegated is not a proxy: {leaf.name}.")
        for link, above in zip(chain.links, chain.links[1:], strict=False):
            check_issued(link, above)
        for link in chain.links:
            check_dates(link, now=time.time() if now is None else now)
        return _pem(chain, self._key)


def make_request(key: Literal["ec", "rsa"] = "ec") -> PendingRequest:
    """A new key (P-256, or RSA of 2048 bits, which takes some 40 ms) and the PKCS#10 request for it."""
    return _request_for(
        rsa.generate_private_key(65537, 2048) if key == "rsa" else ec.generate_private_key(ec.SECP256R1())
    )


def make_rsa_key() -> bytes:
    """A key for request_with, to be made ahead: PKCS8, DER. Takes 40 to 300 ms, so in a thread."""
    key = rsa.generate_private_key(65537, 2048)
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.DER, form, serialization.NoEncryption())


def request_with(key_der: bytes) -> PendingRequest:
    """The request for a key that was made ahead by make_rsa_key; never for one key twice."""
    key = serialization.load_der_private_key(key_der, password=None, unsafe_skip_rsa_key_validation=True)
    assert isinstance(key, rsa.RSAPrivateKey)
    return _request_for(key)


def _request_for(made: PrivateKey) -> PendingRequest:
    request = x509.CertificateSigningRequestBuilder(subject_name=x509.Name([])).sign(made, hashes.SHA256())
    return PendingRequest(request.public_bytes(serialization.Encoding.DER), made)


def sign_request(
    source_pem: bytes,
    request_der: bytes,
    *,
    not_after: float | None,
    limited: bool = True,
    now: float | None = None,
) -> bytes:
    """Delegate: sign the key of a request with a credential.

    Args:
        source_pem: the credential that delegates, with its key.
        not_after: unix time at which the new proxy shall end, at the latest with its source. None: with it.
        limited: make a limited proxy. A limited source makes limited ones in any case.
        now: unix time; the clock's if left out.

    Returns:
        DER certificates back to back: the new proxy, the source's own, its chain.

    Raises:
        CredentialError: expired (the source, or a wanted end in the past), not-allowed (the source allows no
            further proxies), broken (source or request), no-key, too-big.
    """
    now = time.time() if now is None else now
    chain = parse_pem(source_pem)
    key = load_key(chain)
    for link in chain.links:
        check_dates(link, now=now)
    _check_may_delegate(chain)
    ends_at = chain.expires_at if not_after is None else min(not_after, chain.expires_at)
    if ends_at <= now:
        raise CredentialError("expired", f"The proxy was asked to end on {when(ends_at)}, which is over.")
    policy = _LIMITED if limited or chain.limited else _INHERIT
    certificate = _make_proxy(chain, key, _request_key(request_der), policy, now, ends_at)
    above = (link.certificate.public_bytes(serialization.Encoding.DER) for link in chain.links)
    return certificate.public_bytes(serialization.Encoding.DER) + b"".join(above)


def _check_may_delegate(chain: Chain) -> None:
    """RFC 3820, 3.8.1: each path length counts the proxies below it, the new one included."""
    for depth, link in enumerate(chain.links):
        if link.proxy is not None and link.proxy.path_length is not None and depth >= link.proxy.path_length:
            raise CredentialError(
                "not-allowed",
                f"The proxy {link.name} allows no further delegation. Make one without a path length.",
            )


def _request_key(request_der: bytes) -> rsa.RSAPublicKey | ec.EllipticCurvePublicKey:
    if len(request_der) > MAX_REQUEST_BYTES:
        raise CredentialError(
            "too-big", f"A request of {len(request_der)} bytes; at most {MAX_REQUEST_BYTES} are read."
        )
    try:
        request = x509.load_der_x509_csr(request_der)
        key, proven = request.public_key(), request.is_signature_valid
    except (InvalidSignature, *UNREADABLE):
        raise CredentialError("broken", "The certificate request cannot be read.") from None
    check_public_key(key, "The certificate request")
    if not proven:
        raise CredentialError("broken", "The certificate request is not signed with its own key.")
    assert isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey)
    return key


def _make_proxy(
    chain: Chain,
    key: PrivateKey,
    subject_key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey,
    policy: bytes,
    now: float,
    ends_at: float,
) -> x509.Certificate:
    issuer = chain.leaf.certificate.subject
    # 31 bits, as stock makes them: some tools read the number into an int. Never 0.
    serial = secrets.randbelow(2**31 - 1) + 1
    common_name = x509.RelativeDistinguishedName([x509.NameAttribute(NameOID.COMMON_NAME, str(serial))])
    builder = x509.CertificateBuilder(
        issuer_name=issuer,
        subject_name=x509.Name([*issuer.rdns, common_name]),
        public_key=subject_key,
        serial_number=serial,
        not_valid_before=_date(max(now - _SKEW_S, chain.leaf.starts_at)),
        not_valid_after=_date(ends_at),
    )
    builder = builder.add_extension(_USAGE, critical=True)
    builder = builder.add_extension(x509.UnrecognizedExtension(PROXY_CERT_INFO, policy), critical=True)
    return builder.sign(key, hashes.SHA256())


_USAGE: Final = x509.KeyUsage(
    digital_signature=True,
    key_encipherment=True,
    content_commitment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=False,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)


def _date(unix_s: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(int(unix_s), datetime.UTC)


def _split(certificates: bytes) -> list[bytes]:
    if len(certificates) > MAX_PEM_BYTES:
        raise CredentialError(
            "too-big", f"{len(certificates)} bytes of certificates; at most {MAX_PEM_BYTES} are read."
        )
    try:
        found = list(der.elements(certificates, limit=MAX_CHAIN))
    except der.DerError:
        raise CredentialError("broken", "The delegated certificates are damaged, or more than a chain.") from None
    return [der.encode(element.tag, element.value) for element in found]


def _pem(chain: Chain, key: PrivateKey) -> bytes:
    form = serialization.Encoding.PEM
    leaf, *above = [link.certificate.public_bytes(form) for link in chain.links]
    private = key.private_bytes(form, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return leaf + private + b"".join(above)
