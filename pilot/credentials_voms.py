"""VOMS attribute certificates: what they say (RFC 5755 in the profile that VOMS writes). Nothing is verified here:
anybody can state anything; pilot.credentials_vomsdir verifies."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator
from typing import Final

import attrs
from cryptography import x509

from pilot import credentials_der as der
from pilot.credentials_parse import Chain, CredentialError, Link, decode

VOMS_EXTENSION: Final = x509.ObjectIdentifier("1.3.6.1.4.1.8005.100.100.5")
# 1.3.6.1.4.1.8005.100.100.4, the attribute that holds the FQANs
_FQAN_ATTRIBUTE: Final = bytes.fromhex("2b06010401be45646404")
# 1.3.6.1.4.1.8005.100.100.10, the chain of the VOMS server's certificate
_CERTIFICATES: Final = bytes.fromhex("2b06010401be4564640a")
# Extensions of an attribute certificate that may be critical: authority key identifier, no revocation available.
_UNDERSTOOD: Final = frozenset({_CERTIFICATES, bytes.fromhex("551d23"), bytes.fromhex("551d38")})
_BOOLEAN: Final = 0x01
_BIT_STRING: Final = 0x03
_UTC_TIME, _GENERALIZED_TIME = 0x17, 0x18
# Context tags: v2Form and baseCertificateID, entityName; GeneralName.directoryName and .uniformResourceIdentifier.
_TAG_0, _TAG_1, _DIRECTORY_NAME, _URI = 0xA0, 0xA1, 0xA4, 0x86
# Users of the largest VOs have some 30 groups and roles.
MAX_FQANS: Final = 256
_MAX_ELEMENTS: Final = 64
_MAX_URI: Final = 255
_FQAN: Final = re.compile(r"/[\x21-\x2b\x2d-\x7e][\x20-\x2b\x2d-\x7e]{0,254}")


@attrs.frozen
class Statement:
    """One attribute certificate, decoded.

    Attributes:
        fqans: the primary one first.
        authority: the URI of the policy authority, `vo://host:port`.
        holder: (issuer name as DER, serial number) of the certificate that it is about; None if given by name only.
        issuer: the signer's name, DER.
        signed, algorithm, signature: to verify it.
        certificates: the signer's chain, leaf first, where it is brought along.
        unknown_critical: whether it has a critical extension that we do not understand.
    """

    fqans: tuple[str, ...]
    authority: str
    holder: tuple[bytes, int] | None
    issuer: bytes
    starts_at: float
    expires_at: float
    signed: bytes = attrs.field(repr=False)
    algorithm: bytes = attrs.field(repr=False)
    signature: bytes = attrs.field(repr=False)
    certificates: tuple[Link, ...] = ()
    unknown_critical: bool = False


def stated_fqans(chain: Chain) -> tuple[str, ...]:
    """The FQANs of the attribute certificate nearest the leaf, the primary one first; () if there is none.

    Raises:
        CredentialError: as statements.
    """
    return tuple(fqan for statement in statements(chain) for fqan in statement.fqans)


def statements(chain: Chain) -> tuple[Statement, ...]:
    """The attribute certificates in the extension nearest the leaf; () if there is none.

    Raises:
        CredentialError: broken: an attribute certificate that cannot be read, or an FQAN that could
            forge an entry elsewhere (control characters, commas).
    """
    for link in chain.links[: chain.end_entity + 1]:
        for extension in link.certificate.extensions:
            if extension.oid == VOMS_EXTENSION:
                assert isinstance(extension.value, x509.UnrecognizedExtension)
                return _read(extension.value.value, link)
    return ()


def _read(value: bytes, link: Link) -> tuple[Statement, ...]:
    try:
        found = tuple(_statements(value))
        if sum(len(statement.fqans) for statement in found) > MAX_FQANS:
            raise der.DerError("too many FQANs")
    except (der.DerError, UnicodeDecodeError):
        raise CredentialError(
            "broken",
            f"The VOMS attributes of {link.name} cannot be read. Make a new proxy with voms-proxy-init.",
        ) from None
    return found


def _statements(value: bytes) -> Iterator[Statement]:
    """SEQUENCE OF SEQUENCE OF certificate."""
    outer = der.read(value)
    if outer.end != len(value):
        raise der.DerError("bytes behind the end")
    for sequence in der.elements(outer.expect(der.SEQUENCE), limit=_MAX_ELEMENTS):
        for certificate in _children(sequence):
            yield _statement(certificate)


def _statement(certificate: der.Element) -> Statement:
    """version, holder, issuer, signature algorithm, serial, validity, attributes, extensions (RFC 5755, 4.1)."""
    info, algorithm, signature = _exactly(certificate, 3)
    fields = _children(info)
    if len(fields) < 7:
        raise der.DerError("not an attribute certificate")
    if _exactly_tagged(fields[3]) != _exactly_tagged(algorithm):
        raise der.DerError("two different signature algorithms")
    starts, ends = _exactly(fields[5], 2)
    authority, fqans = _attributes(fields[6])
    certificates, unknown = _extensions(fields[7:])
    return Statement(
        fqans=fqans,
        authority=authority,
        holder=_holder(fields[1]),
        issuer=_directory_name(der.read(fields[2].expect(_TAG_0))),
        starts_at=_moment(starts),
        expires_at=_moment(ends),
        signed=der.encode(info.tag, info.value),
        algorithm=_children(algorithm)[0].expect(der.OBJECT_ID),
        signature=_bits(signature),
        certificates=certificates,
        unknown_critical=unknown,
    )


def _exactly_tagged(element: der.Element) -> bytes:
    return _children(element)[0].expect(der.OBJECT_ID)


def _holder(element: der.Element) -> tuple[bytes, int] | None:
    """baseCertificateID [0]: names of the issuer, serial number."""
    first = _children(element)[0]
    if first.tag != _TAG_0:
        return None
    parts = list(der.elements(first.value, limit=3))
    if len(parts) < 2:
        raise der.DerError("not a holder")
    serial = parts[1].expect(der.INTEGER)
    if not serial or len(serial) > 21 or serial[0] & 0x80:
        raise der.DerError("not a serial number")
    return _directory_name(parts[0]), int.from_bytes(serial, "big")


def _directory_name(names: der.Element) -> bytes:
    """The first name of a directory in GeneralNames, as the DER of a Name."""
    for name in der.elements(names.expect(der.SEQUENCE), limit=_MAX_ELEMENTS):
        if name.tag == _DIRECTORY_NAME:
            return name.value
    raise der.DerError("no directory name")


def _attributes(element: der.Element) -> tuple[str, tuple[str, ...]]:
    """The policy authority and the FQANs of all FQAN attributes."""
    authority, fqans = "", []
    for attribute in _children(element):
        oid, values = _exactly(attribute, 2)
        if oid.expect(der.OBJECT_ID) != _FQAN_ATTRIBUTE:
            continue
        for syntax in der.elements(values.expect(der.SET), limit=_MAX_ELEMENTS):
            *above, entries = _children(syntax)
            authority = authority or next((_authority(part) for part in above if part.tag == _TAG_0), "")
            fqans += [
                _fqan(entry.expect(der.OCTET_STRING))
                for entry in der.elements(entries.expect(der.SEQUENCE), limit=MAX_FQANS)
            ]
    return authority, tuple(fqans)


def _authority(element: der.Element) -> str:
    for name in der.elements(element.value, limit=_MAX_ELEMENTS):
        if name.tag == _URI and len(name.value) <= _MAX_URI:
            return name.value.decode("ascii")
    return ""


def _extensions(rest: list[der.Element]) -> tuple[tuple[Link, ...], bool]:
    """The signer's certificates, and whether something critical is not understood."""
    certificates: tuple[Link, ...] = ()
    unknown = False
    for field in rest:
        if field.tag != der.SEQUENCE:  # issuerUniqueID
            continue
        for extension in der.elements(field.value, limit=_MAX_ELEMENTS):
            oid, *flags, value = _children(extension)
            kind = oid.expect(der.OBJECT_ID)
            critical = bool(flags) and flags[0].expect(_BOOLEAN) != b"\0"
            unknown = unknown or (critical and kind not in _UNDERSTOOD)
            if kind == _CERTIFICATES:
                certificates = _certificates(value.expect(der.OCTET_STRING))
    return certificates, unknown


def _certificates(value: bytes) -> tuple[Link, ...]:
    """SEQUENCE of SEQUENCE OF certificate."""
    (inner,) = _exactly(der.read(value), 1)
    return tuple(decode(der.encode(found.tag, found.value)) for found in _children(inner))


def _moment(element: der.Element) -> float:
    text = element.value.decode("ascii")
    form = {_GENERALIZED_TIME: "%Y%m%d%H%M%SZ", _UTC_TIME: "%y%m%d%H%M%SZ"}.get(element.tag)
    try:
        if form is None:
            raise ValueError
        return datetime.datetime.strptime(text, form).replace(tzinfo=datetime.UTC).timestamp()
    except ValueError:
        raise der.DerError("not a time") from None


def _bits(element: der.Element) -> bytes:
    value = element.expect(_BIT_STRING)
    if not value or value[0]:
        raise der.DerError("not a signature")
    return value[1:]


def _children(element: der.Element) -> list[der.Element]:
    found = list(der.elements(element.expect(der.SEQUENCE), limit=_MAX_ELEMENTS))
    if not found:
        raise der.DerError("an empty sequence")
    return found


def _exactly(element: der.Element, count: int) -> list[der.Element]:
    found = _children(element)
    if len(found) != count:
        raise der.DerError(f"not {count} parts")
    return found


def _fqan(raw: bytes) -> str:
    text = raw.decode("ascii")
    if not _FQAN.fullmatch(text):
        raise der.DerError("not an FQAN")
    return text
