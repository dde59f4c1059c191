"""Credentials of users and pilots: look into them, verify them, delegate them, keep them.

The import surface of the modules pilot.credentials_*. Never logs, and no repr shows PEM: a credential file
holds a private key.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

import attrs

from pilot.credentials_delegate import PendingRequest, make_request, make_rsa_key, request_with, sign_request
from pilot.credentials_names import old_slash_form, slash_form
from pilot.credentials_parse import MAX_PEM_BYTES, Chain, CredentialError, check_key, parse_pem, when
from pilot.credentials_trust import TrustStore
from pilot.credentials_verify import verify_chain
from pilot.credentials_voms import stated_fqans
from pilot.credentials_vomsdir import Attributes, verify_attributes

__all__ = [
    "MAX_PEM_BYTES",
    "Attributes",
    "Credential",
    "CredentialError",
    "PendingRequest",
    "change_of",
    "load",
    "make_request",
    "make_rsa_key",
    "read_private",
    "request_with",
    "sign_request",
    "store_private",
    "verify",
    "when",
]


@attrs.frozen
class Credential:
    """What a credential says about itself.

    Attributes:
        pem: the file, with its private key; never log it.
        identity: whose it is: subject of the first certificate that is no proxy, `/DC=org/CN=Alice`.
        subject: the leaf's own subject, in the same form.
        issuer_ca: the issuer of the identity's certificate, in the same form.
        expires_at: unix time at which the first certificate of the chain ends.
        limited: whether the chain has a limited proxy.
        proxy: whether the leaf is a proxy.
        fqans: VOMS groups and roles **as stated**, the primary one first; nobody has verified them.
        attributes: VOMS groups and roles as verified; None if there are none, or none to be believed.
        attributes_fault: why they are not believed; empty if they are, or if nobody has looked.
    """

    pem: bytes = attrs.field(repr=False)
    identity: str
    subject: str
    issuer_ca: str
    expires_at: float
    limited: bool
    proxy: bool
    fqans: tuple[str, ...]
    attributes: Attributes | None = None
    attributes_fault: str = ""
    _old_identity: str = attrs.field(repr=False, default="")

    @property
    def usable_until(self) -> float:
        """Unix time at which a site may see less in it: its end, or that of its verified attributes."""
        return self.expires_at if self.attributes is None else min(self.expires_at, self.attributes.expires_at)

    @property
    def role(self) -> str:
        """The primary FQAN as verified; empty where none is. What is merely stated is anybody's to choose anew for each
        job, so nothing that is to be bounded may go by it."""
        return "" if self.attributes is None else primary(self.attributes.fqans)

    def is_of(self, identity: str) -> bool:
        """Whether this name, as a peer or a file states it, is the identity.

        OpenSSL before 3.0.22 wrote names without backslashes before `/` and `+`: that form counts too.
        """
        return identity != "" and identity in (self.identity, self._old_identity)


def load(pem: bytes) -> Credential:
    """Look into a credential file without believing it; verify() is what makes it count.

    Raises:
        CredentialError: broken, too-big, old-style, no-key (only for an encrypted key).
    """
    return _credential(parse_pem(pem), pem)


def verify(pem: bytes, certificates_dir: Path, *, now: float, voms_dir: Path | None = None) -> Credential:
    """Verify a credential against a directory of trusted CAs; blocks for file reads and a few milliseconds.

    Signatures, names, dates, RFC 3820 constraints, the CA (`<hash>.0`), its signing policy and CRL where
    they are there; the private key belongs to the leaf. Limited proxies are accepted: look at `limited`.

    Args:
        now: unix time for which it must hold.
        voms_dir: the VOMS servers that are trusted; without it attributes stay stated ones. Attributes that are not to
            be believed are no reason to refuse the proxy: without them it is still its owner's.

    Raises:
        CredentialError: any code except attributes, limited, wrong-identity and unsafe-place.
    """
    chain = parse_pem(pem)
    store = TrustStore(certificates_dir)
    verify_chain(chain, store, now=now)
    check_key(chain)
    attributes, fault = None, ""
    if voms_dir is not None:
        try:
            attributes = verify_attributes(chain, store, voms_dir, now=now)
        except CredentialError as refusal:
            fault = refusal.text
    return _credential(chain, pem, attributes, fault)


def change_of(old: Credential, new: Credential) -> str:
    """What a renewal must not change, in words; empty if it is the same person in the same role.

    The subject and the CA of the end-entity certificate, and the primary FQAN: as verified, and as stated, because a
    site may believe a VOMS server that we do not know. Attributes that are gone are a change.
    """
    if old.identity != new.identity:
        return f"it is a proxy of {new.identity}, not of {old.identity}"
    if old.issuer_ca != new.issuer_ca:
        return f"the certificate of {new.identity} is of the CA {new.issuer_ca}, not of {old.issuer_ca}"
    if primary(old.fqans) != primary(new.fqans):
        return f"its primary FQAN is {_said(new.fqans)}, not {_said(old.fqans)}"
    if old.attributes is not None and new.attributes is None:
        return f"its FQAN {_said(new.fqans)} cannot be verified any more. {new.attributes_fault}"
    return ""


def primary(fqans: tuple[str, ...]) -> str:
    """The first FQAN, without what says nothing; empty if there is none."""
    return fqans[0].replace("/Role=NULL", "").replace("/Capability=NULL", "") if fqans else ""


def _said(fqans: tuple[str, ...]) -> str:
    return primary(fqans) or "none"


def _credential(chain: Chain, pem: bytes, attributes: Attributes | None = None, fault: str = "") -> Credential:
    owner = chain.owner
    return Credential(
        pem=pem,
        identity=owner.name,
        subject=chain.leaf.name,
        issuer_ca=slash_form(owner.certificate.issuer),
        expires_at=chain.expires_at,
        limited=chain.limited,
        proxy=chain.end_entity > 0,
        fqans=stated_fqans(chain),
        attributes=attributes,
        attributes_fault=fault,
        old_identity=old_slash_form(owner.certificate.subject),
    )


def read_private(path: Path) -> bytes:
    """A credential file of our own: at most MAX_PEM_BYTES of a plain file that nobody else may read.

    A link is followed (secrets are often mounted so); what it leads to must be ours. What changes while it is read is
    refused: half of an old file and half of a new one are nobody's credential.

    Raises:
        CredentialError: unsafe-place: others may read it, or it is not ours; too-big; broken: it changed.
        OSError: it cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    with os.fdopen(descriptor, "rb") as file:
        before = os.fstat(descriptor)
        _check_file(before, path)
        pem = file.read(MAX_PEM_BYTES + 1)
        after = os.fstat(descriptor)
    if len(pem) > MAX_PEM_BYTES:
        raise CredentialError("too-big", f"{path} has more than {MAX_PEM_BYTES} bytes, which no proxy has.")
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns) or len(pem) != after.st_size:
        raise CredentialError("broken", f"{path} changed while it was read. Put a new one in its place by renaming.")
    return pem


def _check_file(found: os.stat_result, path: Path) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise CredentialError("unsafe-place", f"{path} is not a plain file.")
    if found.st_uid not in (os.geteuid(), 0):
        raise CredentialError("unsafe-place", f"{path} belongs to uid {found.st_uid}, not to us ({os.geteuid()}).")
    if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        mode = stat.S_IMODE(found.st_mode)
        raise CredentialError("unsafe-place", f"others may read {path} (mode {mode:04o}). Do: chmod 600 {path}")


def store_private(path: Path, pem: bytes, *, durable: bool = True) -> None:
    """Put a secret into a file, mode 0600, in one step: a reader finds the old one or the new one, whole.

    A link in the place of the file is replaced, not followed. `durable`: on the disk before this returns (some ms);
    without it a node that goes down may lose the file, as it loses the process that wanted it.

    Raises:
        CredentialError: unsafe-place: others could change the directory's entries.
        OSError: it could not be written; the old file is still there.
    """
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _check_place(directory, path.parent)
        with _temporary(directory, path.name) as (name, descriptor):
            with os.fdopen(descriptor, "wb") as file:
                file.write(pem)
                file.flush()
                if durable:
                    os.fsync(descriptor)
            os.rename(name, path.name, src_dir_fd=directory, dst_dir_fd=directory)
    finally:
        os.close(directory)


def _check_place(directory: int, path: Path) -> None:
    status = os.fstat(directory)
    shared = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not status.st_mode & stat.S_ISVTX
    if shared or status.st_uid not in (os.geteuid(), 0):
        raise CredentialError(
            "unsafe-place",
            f"{path} is not a directory for secrets: others may change it. Make it ours, mode 0700.",
        )


@contextlib.contextmanager
def _temporary(directory: int, name: str) -> Iterator[tuple[str, int]]:
    """A new file beside the target; removed unless it was renamed meanwhile."""
    temporary = f".{name}.{secrets.token_hex(8)}.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o600, dir_fd=directory)
    try:
        yield temporary, descriptor
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=directory)
