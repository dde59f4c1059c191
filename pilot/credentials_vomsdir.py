"""Is a VOMS attribute certificate to be believed? Signature, dates, whose it is, and whether its server is trusted.

The directory is laid out as VOMS tools want it (X509_VOMS_DIR): `VO/HOST.lsc` with the names of the server's
certificate and of its CAs, one a line; or the server's own certificate in a PEM file in `VO/` or in the directory
itself. It is the site's and is believed, but a damaged file never counts as consent.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import attrs
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from pilot.credentials_names import old_slash_form, slash_form
from pilot.credentials_parse import MAX_CERTIFICATE_BYTES, UNREADABLE, Chain, CredentialError, Link, decode, when
from pilot.credentials_trust import TrustStore
from pilot.credentials_verify import verify_end_entity
from pilot.credentials_voms import Statement, statements

# Both ends' clocks differ; VOMS itself allows five minutes.
_SKEW_S: Final = 300.0
# A VO has a handful of servers.
_MAX_FILES: Final = 64
_MAX_LSC_BYTES: Final = 64 * 1024
_NEXT_CHAIN: Final = "NEXT CHAIN"
_AUTHORITY: Final = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,127})://([A-Za-z0-9][A-Za-z0-9.-]{0,252})(:\d{1,5})?")
# rsaEncryption and ecdsa. Older VOMS servers and tools (2.1) sign with SHA-1; whoever wants to forge that has to choose
# what the server signs, serial number and time included.
_HASHES: Final[dict[bytes, hashes.HashAlgorithm]] = {
    bytes.fromhex("2a864886f70d010105"): hashes.SHA1(),
    bytes.fromhex("2a8648ce3d0401"): hashes.SHA1(),
    bytes.fromhex("2a864886f70d01010b"): hashes.SHA256(),
    bytes.fromhex("2a864886f70d01010c"): hashes.SHA384(),
    bytes.fromhex("2a864886f70d01010d"): hashes.SHA512(),
    bytes.fromhex("2a8648ce3d040302"): hashes.SHA256(),
    bytes.fromhex("2a8648ce3d040303"): hashes.SHA384(),
    bytes.fromhex("2a8648ce3d040304"): hashes.SHA512(),
}


@attrs.frozen
class Attributes:
    """Verified: the VO's server has signed these for this certificate.

    Attributes:
        vo: the virtual organisation's name.
        server: the signer, in slash form.
        fqans: groups and roles, the primary one first.
        expires_at: unix time; often earlier than the proxy's own end.
    """

    vo: str
    server: str
    fqans: tuple[str, ...]
    expires_at: float


def verify_attributes(chain: Chain, store: TrustStore, voms_dir: Path, *, now: float) -> Attributes | None:
    """The first attribute certificate of a verified chain; None if there is none.

    Raises:
        CredentialError: attributes: it is not to be believed, and why; or broken.
    """
    found = statements(chain)
    if not found:
        return None
    statement = found[0]
    vo, host = _authority(statement)
    _check_holder(statement, chain)
    if not all(f"{fqan}/".startswith(f"/{vo}/") for fqan in statement.fqans):
        raise _refused(vo, "it states groups of another VO, which its server cannot give")
    if statement.unknown_critical:
        raise _refused(vo, "it has a critical extension that is not supported (such as a list of targets)")
    if now > statement.expires_at:
        raise _refused(vo, f"it ended on {when(statement.expires_at)}; make a new proxy with voms-proxy-init")
    if now < statement.starts_at - _SKEW_S:
        raise _refused(vo, f"it begins on {when(statement.starts_at)}; is the clock right where it was made?")
    server = _server(statement, voms_dir, store, vo, host, now)
    _check_signature(statement, server, vo)
    return Attributes(vo, server.name, statement.fqans, statement.expires_at)


def _refused(vo: str, why: str) -> CredentialError:
    return CredentialError("attributes", f"The VOMS attribute certificate of {vo} cannot be believed: {why}.")


def _authority(statement: Statement) -> tuple[str, str]:
    """VO and host, which become names of files."""
    match = _AUTHORITY.fullmatch(statement.authority)
    if match is None:
        raise CredentialError("attributes", "A VOMS attribute certificate does not say of which VO and server it is.")
    return match[1], match[2]


def _check_holder(statement: Statement, chain: Chain) -> None:
    """It must be about the certificate of this chain's owner, not about another one of the same name."""
    own = chain.owner.certificate
    if statement.holder != (own.issuer.public_bytes(), own.serial_number):
        raise _refused(statement.authority, f"it was made for another certificate than that of {chain.owner.name}")


def _server(statement: Statement, voms_dir: Path, store: TrustStore, vo: str, host: str, now: float) -> Link:
    """The certificate that signed, trusted by the site for this VO."""
    brought = statement.certificates
    if brought and _names_agree(brought, _lsc_chains(voms_dir / vo / f"{host}.lsc", vo)):
        if brought[0].certificate.subject.public_bytes() != statement.issuer:
            raise _refused(vo, "the certificate that it brings is not its issuer's")
        verify_end_entity(brought[0], brought[1:], store, now=now)
        return brought[0]
    for link in _known_servers(voms_dir, vo):
        if link.certificate.subject.public_bytes() == statement.issuer:
            verify_end_entity(link, (), store, now=now)
            return link
    raise _refused(
        vo,
        f"{voms_dir} has neither {vo}/{host}.lsc with the names that it brings nor its server's certificate. Ask the"
        " site to add the VO",
    )


def _lsc_chains(path: Path, vo: str) -> list[list[str]]:
    """Names from the server's own upwards; several chains are parted by a line NEXT CHAIN."""
    data = _read(path, _MAX_LSC_BYTES, vo)
    lines = [line.strip() for line in (data or b"").decode("utf-8", "replace").splitlines()]
    chains: list[list[str]] = [[]]
    for line in lines:
        if _NEXT_CHAIN in line:
            chains.append([])
        elif line and not line.startswith("#"):
            chains[-1].append(line)
    return [chain for chain in chains if chain]


def _names_agree(brought: tuple[Link, ...], chains: list[list[str]]) -> bool:
    """The server's name and its issuer's, and so on as far as the file goes."""
    names = [brought[0].certificate.subject, *(link.certificate.issuer for link in brought)]
    for chain in chains:
        pairs = itertools.zip_longest(chain, names[: len(chain)])
        if len(chain) > 1 and all(name is not None and said in _forms(name) for said, name in pairs):
            return True
    return False


def _forms(name: x509.Name) -> tuple[str, str]:
    return slash_form(name), old_slash_form(name)


def _known_servers(voms_dir: Path, vo: str) -> Iterator[Link]:
    """Certificates of servers, of this VO first, then of any."""
    for directory in (voms_dir / vo, voms_dir):
        try:
            paths = sorted(path for path in directory.iterdir() if path.suffix == ".pem")
        except OSError:
            continue
        for path in paths[:_MAX_FILES]:
            data = _read(path, MAX_CERTIFICATE_BYTES, vo)
            try:
                yield decode(x509.load_pem_x509_certificate(data or b"").public_bytes(Encoding.DER))
            except (CredentialError, *UNREADABLE):
                continue


def _read(path: Path, limit_bytes: int, vo: str) -> bytes | None:
    try:
        with path.open("rb") as file:
            data = file.read(limit_bytes + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _refused(vo, f"the site's {path} cannot be read: {error.strerror}") from None
    if len(data) > limit_bytes:
        raise _refused(vo, f"the site's {path} has more than {limit_bytes} bytes")
    return data


def _check_signature(statement: Statement, server: Link, vo: str) -> None:
    algorithm = _HASHES.get(statement.algorithm)
    key = server.certificate.public_key()
    try:
        if algorithm is None:
            raise _refused(vo, "it is signed with a method that is not supported")
        if isinstance(key, rsa.RSAPublicKey):
            key.verify(statement.signature, statement.signed, padding.PKCS1v15(), algorithm)
        elif isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(statement.signature, statement.signed, ec.ECDSA(algorithm))
        else:
            raise InvalidSignature
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):
        raise _refused(vo, f"it is not signed by {server.name}") from None
