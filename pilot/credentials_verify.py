"""Is this chain a valid RFC 3820 credential of a trusted CA? Signatures, names, dates, limits, revocation.

Written out here because OpenSSL accepts what a pilot must not (limited proxies that turn full, proxies that
carry no rights) and because its error numbers say nothing to a user. Tests hold it against `openssl verify`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import ExtensionOID, NameOID

from pilot.credentials_names import name_hash, slash_form
from pilot.credentials_parse import MAX_CHAIN, PROXY_CERT_INFO, Chain, CredentialError, Link, when
from pilot.credentials_trust import TrustStore

# Extensions that may be critical, because we check them or because they do not restrict what we do.
_UNDERSTOOD: Final = frozenset(
    {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
        ExtensionOID.CERTIFICATE_POLICIES,
        ExtensionOID.POLICY_CONSTRAINTS,
        ExtensionOID.INHIBIT_ANY_POLICY,
    }
)
# SHA-1 and MD5 signatures can be forged (chosen-prefix collisions).
_HASHES: Final = (hashes.SHA224, hashes.SHA256, hashes.SHA384, hashes.SHA512)
# The VOMS tools that users have (2.1) still sign proxies with SHA-1 and RSA. Forging one takes somebody who knows what
# the user will sign before he does; a proxy's random serial number and its time are in the way. Never for a CA.
_PROXY_HASHES: Final = (*_HASHES, hashes.SHA1)
_HOW_TO_RENEW: Final = "Make a new one (voms-proxy-init or grid-proxy-init -rfc)"


def verify_chain(chain: Chain, store: TrustStore, *, now: float) -> None:
    """Check a chain from the leaf to a CA of the directory.

    Args:
        now: unix time for which dates and revocation lists must hold.

    Raises:
        CredentialError: expired, not-yet-valid, not-allowed, untrusted, revoked, crl, broken.
    """
    for link in chain.links[: chain.end_entity]:
        check_dates(link, now=now)
        _check_extensions(link)
    check_dates(chain.owner, now=now)
    _check_proxies(chain)
    verify_end_entity(chain.owner, chain.links[chain.end_entity + 1 :], store, now=now)


def verify_end_entity(owner: Link, brought: Sequence[Link], store: TrustStore, *, now: float) -> None:
    """Check the certificate of a person or a host up to a CA of the directory; `brought` are CAs that came with it.

    Raises:
        CredentialError: as verify_chain.
    """
    check_dates(owner, now=now)
    _check_extensions(owner)
    _check_end_entity(owner)
    _check_authorities(_path(owner, brought, store), store, now)


def check_dates(link: Link, *, now: float) -> None:
    """Refuse a certificate before its time or after it (CredentialError not-yet-valid, expired)."""
    what = "The proxy" if link.proxy is not None else "The certificate"
    if now > link.expires_at:
        raise CredentialError(
            "expired",
            f"{what} {link.name} ended on {when(link.expires_at)}. {_HOW_TO_RENEW}, then renew or submit.",
        )
    if now < link.starts_at:
        raise CredentialError(
            "not-yet-valid",
            f"{what} {link.name} begins on {when(link.starts_at)}. Is the clock right where it was made?",
        )


def check_issued(link: Link, above: Link) -> None:
    """Refuse a certificate that the one above did not sign, or not safely (CredentialError broken)."""
    algorithm = link.certificate.signature_hash_algorithm
    if not isinstance(algorithm, _HASHES if link.proxy is None else _PROXY_HASHES):
        raise CredentialError("broken", f"{link.name} is signed with a method that is no longer safe (such as SHA-1).")
    if not _signed(link, above):
        raise CredentialError("broken", f"{link.name} is not signed by {above.name}, whose name it gives as issuer.")


@lru_cache(maxsize=32)
def _signed(link: Link, above: Link) -> bool:
    certificate, key = link.certificate, above.certificate.public_key()
    try:
        if isinstance(certificate.signature_hash_algorithm, hashes.SHA1) and isinstance(key, rsa.RSAPublicKey):
            # the library's own check refuses SHA-1; make_chain has compared the names
            key.verify(certificate.signature, certificate.tbs_certificate_bytes, padding.PKCS1v15(), hashes.SHA1())
        else:
            certificate.verify_directly_issued_by(above.certificate)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _check_extensions(link: Link) -> None:
    """A critical extension that is not understood must not be passed over (RFC 5280, 4.2)."""
    for extension in link.certificate.extensions:
        known = extension.oid in _UNDERSTOOD or (extension.oid == PROXY_CERT_INFO and link.proxy is not None)
        if extension.critical and not known:
            raise CredentialError(
                "not-allowed",
                f"{link.name} has a critical extension that is not supported: {extension.oid.dotted_string}.",
            )


def _check_proxies(chain: Chain) -> None:
    """RFC 3820, 3 and 4.1: every proxy is made by the one above, within what that one allows."""
    for depth in range(chain.end_entity):
        link, above = chain.links[depth], chain.links[depth + 1]
        check_issued(link, above)
        _check_proxy_profile(link, above)
        _check_proxy_policy(link, above)
        assert link.proxy is not None
        limit = link.proxy.path_length
        if limit is not None and depth > limit:
            raise CredentialError(
                "not-allowed",
                f"The proxy {link.name} allows {limit} further proxies; there are {depth}. "
                "Delegate from a proxy without a path length.",
            )


def _check_proxy_profile(link: Link, above: Link) -> None:
    if link.proxy is None or not link.proxy.critical:
        raise CredentialError(
            "broken", f"The proxyCertInfo of {link.name} is not critical, so it is no RFC 3820 proxy."
        )
    if not _is_one_cn_longer(link.certificate.subject, above.certificate.subject):
        raise CredentialError("broken", f"The proxy {link.name} is not named after {above.name}.")
    usage = _usage(above)
    if usage is not None and not usage.digital_signature:
        raise CredentialError("not-allowed", f"{above.name} may not sign, so not make the proxy {link.name}.")
    own = _usage(link)
    if _is_authority(link) or (own is not None and own.key_cert_sign):
        raise CredentialError("broken", f"The proxy {link.name} claims to be a CA.")
    for extension in link.certificate.extensions:
        if extension.oid in (ExtensionOID.SUBJECT_ALTERNATIVE_NAME, ExtensionOID.ISSUER_ALTERNATIVE_NAME):
            raise CredentialError("broken", f"The proxy {link.name} claims another name.")


def _check_proxy_policy(link: Link, above: Link) -> None:
    assert link.proxy is not None
    if link.proxy.language in ("independent", "other"):
        raise CredentialError(
            "not-allowed",
            f"The proxy {link.name} does not carry the rights of its owner (independent or restricted). "
            f"{_HOW_TO_RENEW} without such a policy.",
        )
    if above.proxy is not None and above.proxy.language == "limited" and link.proxy.language != "limited":
        raise CredentialError(
            "not-allowed",
            f"The proxy {link.name} claims full rights, but {above.name}, which made it, is limited.",
        )


def _is_one_cn_longer(name: x509.Name, above: x509.Name) -> bool:
    rdns = name.rdns
    last = list(rdns[-1]) if rdns else []
    return rdns[:-1] == above.rdns and len(last) == 1 and last[0].oid == NameOID.COMMON_NAME


def _check_end_entity(owner: Link) -> None:
    if _is_authority(owner):
        raise CredentialError("broken", f"{owner.name} is a CA and no user.")


def _path(owner: Link, brought: Sequence[Link], store: TrustStore) -> list[Link]:
    """The user certificate and its CAs up to a self-signed one of the directory, each signed by the next.

    The directory comes first; certificates that the credential brings only fill gaps in between.
    """
    path = [owner]
    while len(path) <= MAX_CHAIN:
        link = path[-1]
        trusted = _signer(link, store.issuers(link))
        above = trusted or _signer(link, brought[:1])
        if above is None:
            raise _untrusted(link, store)
        check_issued(link, above)
        if trusted is not None and above.certificate.issuer == above.certificate.subject:
            return [*path, above]
        brought = brought[1:]
        path.append(above)
    raise CredentialError("untrusted", f"The CAs of {owner.name} form a chain that does not end.")


def _signer(link: Link, candidates: Iterable[Link]) -> Link | None:
    return next((above for above in candidates if _signed(link, above)), None)


def _untrusted(link: Link, store: TrustStore) -> CredentialError:
    issuer = slash_form(link.certificate.issuer)
    return CredentialError(
        "untrusted",
        f"{link.name} was issued by {issuer}, which this site does not trust: {store.directory} has no valid "
        f"{name_hash(link.certificate.issuer)}.0 for it. Ask the site to add it, or use another certificate.",
    )


def _check_authorities(path: list[Link], store: TrustStore, now: float) -> None:
    """path[0] is the user certificate, path[-1] the trusted root."""
    for below, (link, authority) in enumerate(itertools.pairwise(path)):
        check_dates(authority, now=now)
        _check_extensions(authority)
        _check_authority(authority, below)
        store.check_policy(authority, link)
        store.check_revocation(authority, link, now=now)


def _check_authority(authority: Link, below: int) -> None:
    """RFC 5280, 4.2.1.9 and 4.2.1.3; `below` = CAs between this one and the user."""
    if not _is_authority(authority):
        raise CredentialError("untrusted", f"{authority.name} signed a certificate but is not a CA.")
    usage = _usage(authority)
    if usage is not None and not usage.key_cert_sign:
        raise CredentialError("untrusted", f"The CA {authority.name} may not sign certificates.")
    constraints = authority.certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    if constraints.path_length is not None and below > constraints.path_length:
        raise CredentialError("untrusted", f"The CA {authority.name} may not have {below} CAs below it.")


def _is_authority(link: Link) -> bool:
    try:
        return link.certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _usage(link: Link) -> x509.KeyUsage | None:
    try:
        return link.certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return None
