"""The certificates directory of a site: trusted CAs, their signing policies and revocation lists.

Files as grids distribute them: `<hash>.0` (CA), `<hash>.signing_policy`, `<hash>.r0` (CRL), digits counting
up where two CAs share a hash. A missing signing policy or CRL is accepted, as LCMAPS does; one that is there
counts. The directory is the site's and is believed, but a damaged file is never taken for a missing one.
"""

from __future__ import annotations

import re
import shlex
import stat
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Final

import attrs
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding

from pilot.credentials_names import name_hash, old_slash_form, slash_form
from pilot.credentials_parse import MAX_CERTIFICATE_BYTES, UNREADABLE, CredentialError, Link, decode, when

# Hash collisions between real CAs are rare; the IGTF distribution has none.
_MAX_SAME_HASH: Final = 10
_MAX_POLICY_BYTES: Final = 64 * 1024
# The largest CRLs of grid CAs are some 5 MB.
_MAX_CRL_BYTES: Final = 64 * 1024 * 1024
# Spellings of one attribute in signing policies of different ages.
_SPELLINGS: Final = (
    (re.compile(r"/(?:E|Email)=", re.IGNORECASE), "/emailAddress="),
    (re.compile(r"/USERID=", re.IGNORECASE), "/UID="),
)


@attrs.frozen
class TrustStore:
    """One certificates directory. Files are read when asked for, so a changed CRL counts at once."""

    directory: Path

    def issuers(self, link: Link) -> Iterator[Link]:
        """The trusted CAs with the name that issued this certificate (the signature is not looked at).

        Raises:
            CredentialError: untrusted: the directory cannot be read, or a CA file in it is damaged.
        """
        stem = name_hash(link.certificate.issuer)
        for number in range(_MAX_SAME_HASH):
            data = self._read(f"{stem}.{number}", MAX_CERTIFICATE_BYTES)
            if data is None:
                return
            found = _load_ca(data, f"{stem}.{number}")
            if found.certificate.subject == link.certificate.issuer:
                yield found

    def check_policy(self, issuer: Link, link: Link) -> None:
        """Refuse a subject that the CA's signing policy does not let it sign.

        Raises:
            CredentialError: untrusted.
        """
        file = f"{name_hash(issuer.certificate.subject)}.signing_policy"
        data = self._read(file, _MAX_POLICY_BYTES)
        if data is None:
            return
        allowed = _allowed_subjects(data.decode("utf-8", "replace"), _issuer_names(issuer))
        if not any(_matches(pattern, _spelled(link.name)) for pattern in allowed):
            raise CredentialError(
                "untrusted", f"The site's {file} does not let the CA {issuer.name} sign the name {link.name}."
            )

    def check_revocation(self, issuer: Link, link: Link, *, now: float) -> None:
        """Refuse a certificate that the CA's list names, and one whose CA has an expired or damaged list.

        Raises:
            CredentialError: revoked, crl.
        """
        stem = name_hash(issuer.certificate.subject)
        for number in range(_MAX_SAME_HASH):
            file = f"{stem}.r{number}"
            data = self._read(file, _MAX_CRL_BYTES)
            if data is None:
                return
            crl = _load_crl(data, file)
            if crl.issuer == issuer.certificate.subject:
                _check_crl(crl, file, issuer, now)
                _check_not_listed(crl, issuer, link)

    def _read(self, name: str, limit_bytes: int) -> bytes | None:
        """The content of a file; None if there is none. The directory itself must be there."""
        path = self.directory / name
        try:
            with path.open("rb") as file:
                data = file.read(limit_bytes + 1)
        except FileNotFoundError:
            if not _is_directory(self.directory):
                raise CredentialError(
                    "untrusted", f"There is no directory of trusted CAs at {self.directory}. Ask the site."
                ) from None
            return None
        except OSError as error:
            raise CredentialError("untrusted", f"The site's {path} cannot be read: {error.strerror}.") from None
        if len(data) > limit_bytes:
            raise CredentialError("untrusted", f"The site's {path} has more than {limit_bytes} bytes.")
        return data


def _is_directory(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except OSError:
        return False


def _load_ca(data: bytes, file: str) -> Link:
    try:
        der = x509.load_pem_x509_certificate(data) if b"-----BEGIN" in data else x509.load_der_x509_certificate(data)
        return decode(der.public_bytes(Encoding.DER))
    except (CredentialError, *UNREADABLE):
        raise CredentialError("untrusted", f"The site's CA file {file} is damaged. Tell the site.") from None


def _load_crl(data: bytes, file: str) -> x509.CertificateRevocationList:
    try:
        crl = x509.load_pem_x509_crl(data) if b"-----BEGIN" in data else x509.load_der_x509_crl(data)
        _ = crl.issuer, crl.extensions, crl.next_update_utc, crl.last_update_utc
    except (ValueError, TypeError, x509.DuplicateExtension, UnsupportedAlgorithm):
        raise CredentialError("crl", f"The site's revocation list {file} is damaged. Tell the site.") from None
    return crl


def _check_crl(crl: x509.CertificateRevocationList, file: str, issuer: Link, now: float) -> None:
    """Refuse a list that is not the CA's, not in force, or of a kind that does not list everything."""
    if not _signed_by(crl, issuer.certificate.public_key()):
        raise CredentialError(
            "crl", f"The site's revocation list {file} is not signed by {issuer.name}. Tell the site."
        )
    if crl.last_update_utc.timestamp() > now:
        raise CredentialError("crl", f"The site's revocation list {file} is not valid yet. Tell the site.")
    end = crl.next_update_utc
    if end is not None and end.timestamp() < now:
        raise CredentialError(
            "crl",
            f"The revocation list of {issuer.name} ended on {when(end.timestamp())}, so nobody can say "
            f"whether this credential is revoked. Tell the site: it has to fetch {file} again (fetch-crl).",
        )
    # Delta lists, lists of part of the certificates: with such a one as r0 something else may be missing.
    if any(extension.critical for extension in crl.extensions):
        raise CredentialError("crl", f"The site's revocation list {file} is of a kind that is not supported.")


def _signed_by(crl: x509.CertificateRevocationList, key: CertificatePublicKeyTypes) -> bool:
    try:
        return crl.is_signature_valid(key)  # type: ignore[arg-type]  # other key types end in the TypeError
    except (TypeError, ValueError, InvalidSignature, UnsupportedAlgorithm):
        return False


def _check_not_listed(crl: x509.CertificateRevocationList, issuer: Link, link: Link) -> None:
    entry = crl.get_revoked_certificate_by_serial_number(link.certificate.serial_number)
    if entry is not None:
        since = when(entry.revocation_date_utc.timestamp())
        raise CredentialError(
            "revoked",
            f"The certificate {link.name} was revoked by {issuer.name} on {since}. Get a new certificate.",
        )


def _issuer_names(issuer: Link) -> frozenset[str]:
    subject = issuer.certificate.subject
    return frozenset({_spelled(slash_form(subject)), _spelled(old_slash_form(subject))})


def _spelled(name: str) -> str:
    for pattern, spelling in _SPELLINGS:
        name = pattern.sub(spelling, name)
    return name


@lru_cache(maxsize=8)
def _allowed_subjects(text: str, issuers: frozenset[str]) -> tuple[str, ...]:
    """The patterns of the entries for this CA that grant CA:sign. Other lines grant nothing."""
    ours = signs = False
    patterns: list[str] = []
    for line in text.splitlines():
        try:
            words = shlex.split(line, comments=True, posix=True)
        except ValueError:
            continue
        match words:
            case ["access_id_CA", "X509", name]:
                ours, signs = _spelled(name) in issuers, False
            case ["pos_rights", "globus", "CA:sign"]:
                signs = True
            case ["cond_subjects", "globus", subjects] if ours and signs:
                patterns += _quoted(subjects)
    return tuple(patterns)


def _matches(pattern: str, name: str) -> bool:
    """Only `*` is special in a signing policy, and it stands for no line break. (Compiling a regular expression would
    be each starter's own work, and 60 pages of memory.)"""
    if "\n" in name:
        return False
    first, *rest = _spelled(pattern).split("*")
    if not rest:
        return name == first
    if not name.startswith(first):
        return False
    at = len(first)
    *between, last = rest
    for part in between:
        at = name.find(part, at) + len(part)
        if at < len(part):
            return False
    return name.endswith(last) and len(name) - len(last) >= at


_QUOTED = re.compile(r'"([^"]*)"')


def _quoted(subjects: str) -> list[str]:
    """`"/a/*" "/b/*"` or a single bare pattern."""
    return _QUOTED.findall(subjects) if '"' in subjects else [subjects]
