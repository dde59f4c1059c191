"""FQANs as a VOMS attribute certificate states them. Nothing is verified here: anybody can state them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from cryptography import x509

from pilot import credentials_der as der
from pilot.credentials_parse import Chain, CredentialError, Link

VOMS_EXTENSION: Final = x509.ObjectIdentifier("1.3.6.1.4.1.8005.100.100.5")
# 1.3.6.1.4.1.8005.100.100.4, the attribute that holds the FQANs
_FQAN_ATTRIBUTE: Final = bytes.fromhex("2b06010401be45646404")
# Explicit tag of the policy authority in IetfAttrSyntax.
_AUTHORITY: Final = 0xA0
# Users of the largest VOs have some 30 groups and roles.
MAX_FQANS: Final = 256
_MAX_ELEMENTS: Final = 64
_FQAN: Final = re.compile(r"/[\x21-\x2b\x2d-\x7e][\x20-\x2b\x2d-\x7e]{0,254}")


def stated_fqans(chain: Chain) -> tuple[str, ...]:
    """The FQANs of the attribute certificate nearest the leaf, the primary one first; () if there is none.

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


def _read(value: bytes, link: Link) -> tuple[str, ...]:
    try:
        return tuple(_fqans(value))
    except (der.DerError, UnicodeDecodeError):
        raise CredentialError(
            "broken",
            f"The VOMS attributes of {link.name} cannot be read. Make a new proxy with voms-proxy-init.",
        ) from None


def _fqans(value: bytes) -> Iterator[str]:
    count = 0
    for attribute in _attributes(value):
        oid, values = _pair(attribute)
        if oid.expect(der.OBJECT_ID) != _FQAN_ATTRIBUTE:
            continue
        for syntax in der.elements(values.expect(der.SET), limit=_MAX_ELEMENTS):
            parts = [part for part in _children(syntax) if part.tag != _AUTHORITY]
            for entry in der.elements(parts[-1].expect(der.SEQUENCE), limit=MAX_FQANS) if parts else ():
                count += 1
                if count > MAX_FQANS:
                    raise der.DerError("too many FQANs")
                yield _checked(entry.expect(der.OCTET_STRING))


def _attributes(value: bytes) -> Iterator[der.Element]:
    """The attributes of every attribute certificate in the extension: SEQUENCE OF SEQUENCE OF certificate."""
    outer = der.read(value)
    if outer.end != len(value):
        raise der.DerError("bytes behind the end")
    for sequence in der.elements(outer.expect(der.SEQUENCE), limit=_MAX_ELEMENTS):
        for certificate in _children(sequence):
            info = _children(certificate)[0]
            # version, holder, issuer, signature algorithm, serial, validity, attributes (RFC 5755, 4.1)
            fields = _children(info)
            if len(fields) < 7:
                raise der.DerError("not an attribute certificate")
            yield from _children(fields[6])


def _children(element: der.Element) -> list[der.Element]:
    found = list(der.elements(element.expect(der.SEQUENCE), limit=_MAX_ELEMENTS))
    if not found:
        raise der.DerError("an empty sequence")
    return found


def _pair(element: der.Element) -> tuple[der.Element, der.Element]:
    found = _children(element)
    if len(found) != 2:
        raise der.DerError("not a pair")
    return found[0], found[1]


def _checked(raw: bytes) -> str:
    text = raw.decode("ascii")
    if not _FQAN.fullmatch(text):
        raise der.DerError("not an FQAN")
    return text
