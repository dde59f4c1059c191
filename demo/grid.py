"""A throw-away grid: a CA, certificates of users, pilots and hosts, proxies, a certificates directory.

For the demo, the tests and the benchmarks. Nothing in it deserves trust: keys lie unencrypted in files, and
the CA signs whatever it is asked to. It does not verify anything: that is pilot.credentials.

    grid = make_grid(directory)
    alice = grid.user("Alice Adams")
    write_private(path, make_proxy(alice, kind="limited").pem)
"""

from __future__ import annotations

import datetime
import os
import secrets
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Literal

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pilot.credentials_names import name_hash, slash_form

KeyKind = Literal["ec", "rsa"]
ProxyKind = Literal["inherit", "limited", "independent"]
PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

PROXY_CERT_INFO: Final = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.14")
# RFC 3820 policy languages, as complete object identifier elements; "limited" is Globus's.
_POLICIES: Final[dict[str, bytes]] = {
    "inherit": bytes.fromhex("06082b06010505071501"),
    "independent": bytes.fromhex("06082b06010505071502"),
    "limited": bytes.fromhex("060b2b060104019b5001010109"),
}
# Grid tools date a new proxy five minutes back, against clocks that differ.
_SKEW_S: Final = 300.0
_DAY_S: Final = 86400.0
_ENTITY_USAGES: Final = ("digital_signature", "key_encipherment", "data_encipherment")
_USAGES: Final = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


@attrs.frozen
class Certified:
    """A certificate, its private key, and the certificates above it up to the CA, which is left out."""

    certificate: x509.Certificate
    key: PrivateKey = attrs.field(repr=False)
    chain: tuple[x509.Certificate, ...] = ()

    @property
    def pem(self) -> bytes:
        """A credential file: certificate, key, chain. EC keys as PKCS8, RSA keys in the old form."""
        form = serialization.Encoding.PEM
        above = b"".join(certificate.public_bytes(form) for certificate in self.chain)
        return self.certificate.public_bytes(form) + key_pem(self.key) + above

    @property
    def subject(self) -> str:
        """The certificate's own subject in slash form (of a proxy: with the proxy's CNs)."""
        return slash_form(self.certificate.subject)

    @property
    def identity(self) -> str:
        """Whose it is: the subject of the end-entity certificate, in slash form."""
        return slash_form((self.certificate, *self.chain)[-1].subject)


@attrs.frozen
class Grid:
    """A CA and the certificates directory that trusts it (`<hash>.0`, `.signing_policy`, `.r0`)."""

    authority: Certified
    certificates_dir: Path
    organisation: x509.Name

    @property
    def hash(self) -> str:
        """The stem of the CA's files in the certificates directory."""
        return name_hash(self.authority.certificate.subject)

    def user(
        self, name: str, *, key: KeyKind = "ec", lifetime_s: float = 30 * _DAY_S, starts_s: float = -_SKEW_S
    ) -> Certified:
        """An end-entity certificate for a person or a pilot; `starts_s` counts from now."""
        return self._entity(name, (ExtendedKeyUsageOID.CLIENT_AUTH,), (), key, lifetime_s, starts_s)

    def host(self, name: str, *, key: KeyKind = "ec", lifetime_s: float = 30 * _DAY_S) -> Certified:
        """A certificate for a host, with its name as subjectAltName."""
        usage = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
        return self._entity(name, usage, (name,), key, lifetime_s, -_SKEW_S)

    def _entity(
        self,
        name: str,
        usage: Iterable[x509.ObjectIdentifier],
        hosts: Iterable[str],
        key: KeyKind,
        lifetime_s: float,
        starts_s: float,
    ) -> Certified:
        own = make_key(key)
        issuer = self.authority.certificate
        builder = _builder(_under(self.organisation, name), issuer.subject, own, starts_s, lifetime_s)
        builder = (
            builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(*_ENTITY_USAGES), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usage), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(own.public_key()), critical=False)
            .add_extension(_authority_key(self.authority), critical=False)
        )
        names = [x509.DNSName(host) for host in hosts]
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return Certified(builder.sign(self.authority.key, hashes.SHA256()), own)

    def write_crl(
        self,
        revoked: Iterable[Certified] = (),
        *,
        starts_s: float = -_SKEW_S,
        lifetime_s: float = 30 * _DAY_S,
    ) -> Path:
        """Replace the CA's revocation list by one of exactly these, in force from now + `starts_s`."""
        now = time.time()
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.authority.certificate.subject)
            .last_update(_date(now + starts_s))
            .next_update(_date(now + starts_s + lifetime_s))
            .add_extension(x509.CRLNumber(int(now)), critical=False)
            .add_extension(_authority_key(self.authority), critical=False)
        )
        for entry in revoked:
            builder = builder.add_revoked_certificate(_revoked(entry.certificate, now))
        path = self.certificates_dir / f"{self.hash}.r0"
        crl = builder.sign(self.authority.key, hashes.SHA256())
        path.write_bytes(crl.public_bytes(serialization.Encoding.PEM))
        path.chmod(0o644)
        return path

    def write_signing_policy(self, *patterns: str) -> Path:
        """Replace the CA's signing policy: which subjects (shell patterns in slash form) it may sign."""
        subjects = " ".join(f'"{pattern}"' for pattern in patterns or (f"{slash_form(self.organisation)}/*",))
        path = self.certificates_dir / f"{self.hash}.signing_policy"
        path.write_text(
            f"access_id_CA X509 '{slash_form(self.authority.certificate.subject)}'\n"
            f"pos_rights globus CA:sign\n"
            f"cond_subjects globus '{subjects}'\n"
        )
        path.chmod(0o644)
        return path


def make_grid(
    directory: Path,
    *,
    name: str = "Demo CA",
    organisation: str = "sailplane-demo",
    key: KeyKind = "ec",
    lifetime_s: float = 365 * _DAY_S,
) -> Grid:
    """A new CA, trusted by `directory`/certificates, with its signing policy and an empty CRL.

    Names are `/DC=org/DC=<organisation>/CN=...`. The CA's key stays in memory.
    Two grids may share a directory if the CAs' names differ.
    """
    domain = x509.Name(
        [
            x509.NameAttribute(NameOID.DOMAIN_COMPONENT, "org"),
            x509.NameAttribute(NameOID.DOMAIN_COMPONENT, organisation),
        ]
    )
    certificates_dir = directory / "certificates"
    certificates_dir.mkdir(parents=True, exist_ok=True)
    # Every account of the site reads it, whatever the umask of who makes it.
    certificates_dir.chmod(0o755)
    authority = make_authority(_under(domain, name), key=key, lifetime_s=lifetime_s)
    grid = Grid(authority, certificates_dir, domain)
    anchor = certificates_dir / f"{grid.hash}.0"
    anchor.write_bytes(grid.authority.certificate.public_bytes(serialization.Encoding.PEM))
    anchor.chmod(0o644)
    grid.write_signing_policy()
    grid.write_crl()
    return grid


def make_authority(name: x509.Name, *, key: KeyKind = "ec", lifetime_s: float = 365 * _DAY_S) -> Certified:
    """A self-signed CA."""
    own = make_key(key)
    builder = (
        _builder(name, name, own, -_SKEW_S, lifetime_s)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(_key_usage("key_cert_sign", "crl_sign"), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(own.public_key()), critical=False)
    )
    return Certified(builder.sign(own, hashes.SHA256()), own)


def make_proxy(
    source: Certified,
    *,
    kind: ProxyKind = "inherit",
    lifetime_s: float = 12 * 3600.0,
    starts_s: float = -_SKEW_S,
    path_length: int | None = None,
    key: KeyKind = "ec",
    extensions: Iterable[tuple[x509.ExtensionType, bool]] = (),
) -> Certified:
    """An RFC 3820 proxy of a user's certificate or of another proxy.

    Args:
        lifetime_s: seconds from now to its end; negative for one that has expired already.
        starts_s: when it begins, in seconds from now.
        path_length: how many further proxies it allows; None for any number.
        extensions: more extensions with their criticality, e.g. an attribute certificate.
    """
    own = make_key(key)
    serial = secrets.randbits(31) | 1
    issuer = source.certificate.subject
    builder = _builder(
        _under(issuer, str(serial)), issuer, own, min(starts_s, lifetime_s - 1), lifetime_s, serial=serial
    )
    builder = builder.add_extension(proxy_cert_info(kind, path_length), critical=True).add_extension(
        _key_usage(*_ENTITY_USAGES), critical=True
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return Certified(builder.sign(source.key, hashes.SHA256()), own, (source.certificate, *source.chain))


def proxy_cert_info(kind: ProxyKind, path_length: int | None = None) -> x509.UnrecognizedExtension:
    """The extension that makes a certificate a proxy (RFC 3820, 3.8)."""
    length = b"" if path_length is None else bytes((0x02, 1, path_length))
    oid = _POLICIES[kind]
    policy = bytes((0x30, len(oid))) + oid
    value = bytes((0x30, len(length) + len(policy))) + length + policy
    return x509.UnrecognizedExtension(PROXY_CERT_INFO, value)


def make_key(kind: KeyKind = "ec") -> PrivateKey:
    """A new private key: P-256, or RSA of 2048 bits (some thousand times slower to make)."""
    if kind == "rsa":
        return rsa.generate_private_key(65537, 2048)
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: PrivateKey) -> bytes:
    """The key as PEM without encryption: EC as PKCS8 (Globus refuses the old form), RSA in the old form."""
    if isinstance(key, rsa.RSAPrivateKey):
        form = serialization.PrivateFormat.TraditionalOpenSSL
    else:
        form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def write_private(path: Path, pem: bytes, *, owner: tuple[int, int] | None = None) -> Path:
    """A new file with mode 0600, given to `owner` (uid, gid) if named; FileExistsError if there is one."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(pem)
        if owner is not None:
            os.fchown(descriptor, *owner)
    return path


def _under(name: x509.Name, common_name: str) -> x509.Name:
    return x509.Name(
        [*name.rdns, x509.RelativeDistinguishedName([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])]
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: PrivateKey,
    starts_s: float,
    ends_s: float,
    *,
    serial: int | None = None,
) -> x509.CertificateBuilder:
    now = time.time()
    return x509.CertificateBuilder(
        issuer_name=issuer,
        subject_name=subject,
        public_key=key.public_key(),
        serial_number=serial if serial is not None else x509.random_serial_number(),
        not_valid_before=_date(now + starts_s),
        not_valid_after=_date(now + ends_s),
    )


def _key_usage(*names: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{usage: usage in names for usage in _USAGES})


def _authority_key(authority: Certified) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())


def _revoked(certificate: x509.Certificate, now: float) -> x509.RevokedCertificate:
    builder = x509.RevokedCertificateBuilder(certificate.serial_number, _date(now - 60))
    return builder.build()


def _date(unix_s: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(int(unix_s), datetime.UTC).replace(tzinfo=None)
