"""What a credential file says: PEM blocks, certificates, proxyCertInfo. No signature is checked here.

Everything here comes from a user or a peer: sizes are limited before anything is decoded, and whatever is
wrong becomes a CredentialError. No text of an error holds bytes of the file.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import itertools
import re
import warnings
from functools import lru_cache
from typing import Final, Literal

import attrs
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from pilot import credentials_der as der
from pilot.credentials_names import slash_form

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
Code = Literal[
    "broken",  # not a credential, or one that contradicts itself
    "too-big",  # beyond a limit of ours
    "no-key",  # no private key, or one that belongs to another certificate
    "expired",
    "not-yet-valid",
    "old-style",  # a proxy from before RFC 3820
    "not-allowed",  # a proxy that its issuer's restrictions do not permit
    "untrusted",  # no trusted CA behind it, or the CA may not sign this name
    "revoked",
    "crl",  # the CA's revocation list is expired or unusable
    "attributes",  # a VOMS attribute certificate that is not to be believed
    "limited",
    "wrong-identity",
    "unsafe-place",  # a directory in which no secret may be stored
]

Language = Literal["inherit", "independent", "limited", "other"]

PROXY_CERT_INFO: Final = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.14")
# proxyCertInfo of the drafts before RFC 3820 ("GT3" proxies).
_DRAFT_PROXY_CERT_INFO: Final = x509.ObjectIdentifier("1.3.6.1.4.1.3536.1.222")
_LANGUAGES: Final[dict[bytes, Language]] = {
    bytes.fromhex("2b06010505071501"): "inherit",
    bytes.fromhex("2b06010505071502"): "independent",
    bytes.fromhex("2b060104019b5001010109"): "limited",
}

# A proxy of two levels with VOMS attributes and an RSA key is 12 kB; several large attribute
# certificates bring it to some 40 kB.
MAX_PEM_BYTES: Final = 512 * 1024
# Longer chains than 5 have not been seen; OpenSSL stops at 100.
MAX_CHAIN: Final = 32
# The largest certificate that we read; a VOMS attribute certificate inside it takes most of that.
MAX_CERTIFICATE_BYTES: Final = 128 * 1024
# An RSA key of 8192 bits takes 6.4 kB of PEM.
MAX_KEY_BYTES: Final = 16 * 1024
# Verifying with a longer RSA key than this costs more than a peer may make us spend.
MAX_RSA_BITS: Final = 8192
# Old tools still make proxies of 1024 bits that live for hours.
MIN_RSA_BITS: Final = 1024
# base64 lines are 64 characters; Java tools write 76.
_BLOCK: Final = re.compile(rb"-----BEGIN ([A-Z0-9 ]{1,40})-----[ \t]*\r?\n([A-Za-z0-9+/=\r\n \t]*?)-----END \1-----")
_BEGIN: Final = re.compile(rb"-----BEGIN ")
_KEY_LABELS: Final = frozenset({b"PRIVATE KEY", b"RSA PRIVATE KEY", b"EC PRIVATE KEY"})
# `openssl ecparam -genkey` writes it in front of the key; it says nothing new.
_IGNORED_LABELS: Final = frozenset({b"EC PARAMETERS"})


# What the library raises about bytes that are no certificate, request or list: these have no common base.
UNREADABLE: Final = (
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
    UnsupportedAlgorithm,
    ValueError,
    TypeError,
    OverflowError,
)


class CredentialError(Exception):
    """A credential that cannot be used; `text` says in words whose, which value, and what to do about it."""

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(text)
        self.code: Code = code
        self.text = text


@attrs.frozen
class ProxyInfo:
    """The proxyCertInfo extension (RFC 3820, 3.8). `language` is "other" for a policy that we do not know."""

    language: Language
    path_length: int | None
    critical: bool


@attrs.frozen
class Link:
    """One certificate of a chain, decoded."""

    certificate: x509.Certificate = attrs.field(repr=False)
    name: str
    proxy: ProxyInfo | None
    starts_at: float
    expires_at: float


@attrs.frozen
class Chain:
    """A decoded credential: `links` from the leaf upwards, each named as the issuer of the one before it."""

    links: tuple[Link, ...]
    end_entity: int
    key_pem: bytes | None = attrs.field(repr=False)

    @property
    def leaf(self) -> Link:
        """The certificate whose key this is."""
        return self.links[0]

    @property
    def owner(self) -> Link:
        """The end-entity certificate: the first that is no proxy. Its name is the identity."""
        return self.links[self.end_entity]

    @property
    def expires_at(self) -> float:
        """Unix time at which the first of the certificates ends."""
        return min(link.expires_at for link in self.links)

    @property
    def limited(self) -> bool:
        """Whether any proxy of the chain is a limited one."""
        return any(link.proxy is not None and link.proxy.language == "limited" for link in self.links)


def parse_pem(pem: bytes) -> Chain:
    """Decode a credential file: certificates from the leaf upwards, at most one private key, in any place.

    Raises:
        CredentialError: broken, too-big, old-style, no-key (an encrypted one).
    """
    if len(pem) > MAX_PEM_BYTES:
        raise CredentialError("too-big", f"A credential of {len(pem)} bytes; at most {MAX_PEM_BYTES} are read.")
    certificates: list[bytes] = []
    keys: list[bytes] = []
    for label, block in _blocks(pem):
        if label == b"CERTIFICATE":
            certificates.append(_unbase64(block))
        elif label in _KEY_LABELS:
            keys.append(b"-----BEGIN %b-----\n%b-----END %b-----\n" % (label, block, label))
        elif label not in _IGNORED_LABELS:
            raise _unexpected(label)
    if len(keys) > 1:
        raise CredentialError("broken", "The credential holds more than one private key.")
    return make_chain(certificates, keys[0] if keys else None)


def _blocks(pem: bytes) -> list[tuple[bytes, bytes]]:
    found = [(match[1], match[2]) for match in _BLOCK.finditer(pem)]
    # A block cut short or with strange characters must not be skipped in silence.
    if len(found) != len(_BEGIN.findall(pem)):
        raise CredentialError("broken", "The credential is cut short or damaged: a PEM block does not end.")
    return found


def _unexpected(label: bytes) -> CredentialError:
    if b"ENCRYPTED" in label:
        return CredentialError("no-key", "The private key is protected by a pass phrase. Make a proxy and use that.")
    return CredentialError("broken", f"The credential holds something that does not belong there: {label.decode()}.")


def _unbase64(block: bytes) -> bytes:
    try:
        return base64.b64decode(b"".join(block.split()), validate=True)
    except binascii.Error:
        raise CredentialError("broken", "The credential is damaged: a certificate is not base64.") from None


def make_chain(certificates: list[bytes], key_pem: bytes | None) -> Chain:
    """Decode DER certificates, leaf first, and hold them together by their names.

    Raises:
        CredentialError: as parse_pem.
    """
    if not certificates:
        raise CredentialError("broken", "There is no certificate in the credential.")
    if len(certificates) > MAX_CHAIN:
        raise CredentialError("too-big", f"A chain of {len(certificates)} certificates; at most {MAX_CHAIN} are read.")
    links = tuple(decode(data) for data in certificates)
    for link, above in itertools.pairwise(links):
        if link.certificate.issuer != above.certificate.subject:
            raise CredentialError(
                "broken",
                f"The chain is out of order: {link.name} is not followed by the certificate that issued it.",
            )
    owner = next((number for number, link in enumerate(links) if link.proxy is None), None)
    if owner is None:
        raise CredentialError("broken", f"The user's own certificate is missing above the proxy {links[0].name}.")
    if any(link.proxy is not None for link in links[owner:]):
        raise CredentialError("broken", f"A proxy stands above the user certificate {links[owner].name}.")
    return Chain(links, owner, key_pem)


# A job's proxies differ in one certificate: those above it come again with each.
@lru_cache(maxsize=32)
def decode(data: bytes) -> Link:
    """Decode one DER certificate, all of it: whatever cannot be decoded is refused here and not later."""
    if len(data) > MAX_CERTIFICATE_BYTES:
        raise CredentialError(
            "too-big", f"A certificate of {len(data)} bytes; at most {MAX_CERTIFICATE_BYTES} are read."
        )
    try:
        # The library warns about certificates that it will refuse some day; today it reads them.
        with warnings.catch_warnings(action="ignore"):
            return _decode(x509.load_der_x509_certificate(data))
    except UNREADABLE as error:
        raise CredentialError("broken", f"A certificate cannot be read: {type(error).__name__}.") from None


def _decode(certificate: x509.Certificate) -> Link:
    name = slash_form(certificate.subject)
    if certificate.version is not x509.Version.v3 and certificate.issuer != certificate.subject:
        raise CredentialError("broken", f"The certificate {name} is of an old version without extensions.")
    if not certificate.issuer.rdns or not certificate.subject.rdns:
        raise CredentialError("broken", f"The certificate {name} has an empty name.")
    check_public_key(certificate.public_key(), name)
    # Raises for an algorithm that the library does not know; None for kinds that check_issued refuses.
    _ = certificate.signature_hash_algorithm
    return Link(
        certificate,
        name,
        _proxy_info(certificate, name),
        _unix(certificate.not_valid_before_utc),
        _unix(certificate.not_valid_after_utc),
    )


def _unix(date: datetime.datetime) -> float:
    return date.timestamp()


def check_public_key(key: object, name: str) -> None:
    """Refuse kinds and sizes of keys that cost too much or protect too little."""
    if isinstance(key, rsa.RSAPublicKey) and not MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
        raise CredentialError(
            "broken",
            f"{name} has an RSA key of {key.key_size} bits; {MIN_RSA_BITS} to {MAX_RSA_BITS} are accepted.",
        )
    if not isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
        raise CredentialError("broken", f"{name} has a key that is neither RSA nor elliptic curve.")


def _proxy_info(certificate: x509.Certificate, name: str) -> ProxyInfo | None:
    info = None
    for extension in certificate.extensions:
        if extension.oid == _DRAFT_PROXY_CERT_INFO:
            raise _old_style(name)
        if extension.oid == PROXY_CERT_INFO:
            assert isinstance(extension.value, x509.UnrecognizedExtension)
            info = _parse_proxy_info(extension.value.value, extension.critical, name)
    if info is None and _looks_like_gt2(certificate):
        raise _old_style(name)
    return info


def _old_style(name: str) -> CredentialError:
    return CredentialError(
        "old-style",
        f"{name} is a proxy of the old kind, before RFC 3820. Make one with voms-proxy-init -rfc or "
        "grid-proxy-init -rfc.",
    )


def _looks_like_gt2(certificate: x509.Certificate) -> bool:
    """GT2 proxies have no extension: the issuer's name plus CN=proxy or CN=limited proxy."""
    rdns = certificate.subject.rdns
    if rdns[:-1] != certificate.issuer.rdns:
        return False
    last = [(part.oid, part.value) for part in rdns[-1]]
    return last in ([(NameOID.COMMON_NAME, "proxy")], [(NameOID.COMMON_NAME, "limited proxy")])


def _parse_proxy_info(value: bytes, critical: bool, name: str) -> ProxyInfo:
    try:
        outer = der.read(value)
        parts = list(der.elements(outer.expect(der.SEQUENCE), limit=2))
        path_length = der.decode_int(parts.pop(0).value) if parts and parts[0].tag == der.INTEGER else None
        if outer.end != len(value) or len(parts) != 1:
            raise der.DerError("not a proxyCertInfo")
        policy = list(der.elements(parts[0].expect(der.SEQUENCE), limit=2))
        if not policy:
            raise der.DerError("no policy language")
        language: Language = _LANGUAGES.get(policy[0].expect(der.OBJECT_ID), "other")
    except der.DerError:
        raise CredentialError("broken", f"The proxy {name} has a proxyCertInfo that cannot be read.") from None
    # RFC 3820, 3.8.2: the three known languages come without a policy text.
    return ProxyInfo(language if len(policy) == 1 else "other", path_length, critical)


def check_key(chain: Chain) -> None:
    """Refuse a credential whose private key is missing or belongs to another certificate (no-key).

    As X509_check_private_key, it compares the public halves. Whether an RSA key is sound inside is not
    looked at: that takes 40 ms, and a user who spoils it gains nothing.
    """
    _load_key(chain, sound=False)


def load_key(chain: Chain) -> PrivateKey:
    """The private key, to sign with; it must belong to the leaf and be sound.

    Raises:
        CredentialError: no-key.
    """
    return _load_key(chain, sound=True)


def _load_key(chain: Chain, *, sound: bool) -> PrivateKey:
    if chain.key_pem is None:
        raise CredentialError("no-key", f"There is no private key with {chain.leaf.name}.")
    if len(chain.key_pem) > MAX_KEY_BYTES:
        raise CredentialError("too-big", f"The private key of {chain.leaf.name} is too large.")
    try:
        key = serialization.load_pem_private_key(chain.key_pem, password=None, unsafe_skip_rsa_key_validation=not sound)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise CredentialError("no-key", f"The private key of {chain.leaf.name} cannot be read.") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise CredentialError("no-key", f"The private key of {chain.leaf.name} is neither RSA nor elliptic curve.")
    if public_bytes(key.public_key()) != public_bytes(chain.leaf.certificate.public_key()):
        raise CredentialError("no-key", f"The private key does not belong to {chain.leaf.name}.")
    return key


def public_bytes(key: object) -> bytes:
    """A public key in one form, to compare."""
    assert isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey)
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def when(unix_s: float) -> str:
    """A date as people read it."""
    return datetime.datetime.fromtimestamp(unix_s, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
