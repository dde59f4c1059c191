"""Distinguished names as the grid writes them, and the hash by which a CA is found in its directory."""

from __future__ import annotations

import hashlib
import re
from typing import Final

from cryptography import x509
from cryptography.x509.name import NameAttribute, _ASN1Type

from pilot import credentials_der as der

# OpenSSL's short names of the attributes that CAs use in names (X509_NAME_oneline prints these).
_SHORT: Final = {
    "2.5.4.3": "CN",
    "2.5.4.4": "SN",
    "2.5.4.5": "serialNumber",
    "2.5.4.6": "C",
    "2.5.4.7": "L",
    "2.5.4.8": "ST",
    "2.5.4.9": "street",
    "2.5.4.10": "O",
    "2.5.4.11": "OU",
    "2.5.4.12": "title",
    "2.5.4.13": "description",
    "2.5.4.17": "postalCode",
    "2.5.4.41": "name",
    "2.5.4.42": "GN",
    "2.5.4.43": "initials",
    "2.5.4.46": "dnQualifier",
    "2.5.4.65": "pseudonym",
    "2.5.4.97": "organizationIdentifier",
    "0.9.2342.19200300.100.1.1": "UID",
    "0.9.2342.19200300.100.1.25": "DC",
    "1.2.840.113549.1.9.1": "emailAddress",
}
# String types that OpenSSL converts before it hashes a name (ASN1_MASK_CANON); others count as they are.
_CANONICAL: Final = frozenset(
    {
        _ASN1Type.UTF8String,
        _ASN1Type.PrintableString,
        _ASN1Type.T61String,
        _ASN1Type.IA5String,
        _ASN1Type.VisibleString,
        _ASN1Type.UniversalString,
        _ASN1Type.BMPString,
    }
)
_ESCAPED: Final = {ord("/"): "\\/", ord("+"): "\\+"}
_BLANKS: Final = re.compile("[ \t\n\v\f\r]+")


def slash_form(name: x509.Name) -> str:
    """`/DC=org/CN=Alice`, as grid-mapfiles and X509_NAME_oneline write it.

    `/` and `+` inside a value get a backslash, as in current OpenSSL (3.0.22), so that no value can
    look like further parts of the name. Everything outside printable ASCII becomes \\xHH, so the text
    is safe in logs and ads.
    """
    return "".join("/" + "+".join(_part(part, _ESCAPED) for part in rdn) for rdn in name.rdns)


def old_slash_form(name: x509.Name) -> str:
    """The same without backslashes, as older OpenSSL wrote it: only to compare with what a peer states."""
    return "".join(f"/{_part(part, {})}" for rdn in name.rdns for part in rdn)


def _part(part: NameAttribute[str | bytes], escapes: dict[int, str]) -> str:
    dotted = part.oid.dotted_string
    raw = part.value.encode("utf-8", "surrogatepass") if isinstance(part.value, str) else part.value
    text = "".join(_character(byte, escapes) for byte in raw)
    return f"{_SHORT.get(dotted, dotted)}={text}"


def _character(byte: int, escapes: dict[int, str]) -> str:
    if byte in escapes:
        return escapes[byte]
    return chr(byte) if 0x20 <= byte < 0x7F else f"\\x{byte:02X}"


def name_hash(name: x509.Name) -> str:
    """The eight hex digits that `openssl x509 -subject_hash` prints: file names of a certificates directory.

    OpenSSL 1.0.0 and later: SHA-1 over the name's canonical encoding (lower-case UTF-8, blanks
    squeezed), its first four bytes read little endian.
    """
    canonical = b"".join(_canonical_rdn(rdn) for rdn in name.rdns)
    digest = hashlib.sha1(canonical, usedforsecurity=False).digest()
    return f"{int.from_bytes(digest[:4], 'little'):08x}"


def _canonical_rdn(rdn: x509.RelativeDistinguishedName) -> bytes:
    return der.encode(der.SET, *sorted(_canonical_attribute(part) for part in rdn))


def _canonical_attribute(part: NameAttribute[str | bytes]) -> bytes:
    oid = der.encode_oid(part.oid.dotted_string)
    if isinstance(part.value, str) and part._type in _CANONICAL:
        text = _BLANKS.sub(" ", part.value).strip(" ").encode("utf-8", "surrogatepass").lower()
        return der.encode(der.SEQUENCE, oid, der.encode(der.UTF8_STRING, text))
    raw = part.value.encode("utf-8", "surrogatepass") if isinstance(part.value, str) else part.value
    return der.encode(der.SEQUENCE, oid, der.encode(part._type.value, raw))
