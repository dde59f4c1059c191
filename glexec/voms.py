"""VOMS attribute certificates: what they state, and whether the VO's own server said so.

For hosts without LCMAPS (which has the VOMS library), and for FQANs in the log. Checked: the
signature, by the server's certificate that the attribute certificate brings along; that certificate
against the site's CAs; its names against `vomsdir/VO/*.lsc`; the holder (issuer and serial number of
the user's certificate); the dates; that every FQAN is of the VO. Not offered: the old vomsdir with
copies of server certificates, and targets.
"""

import ctypes
import os
import time

from glexec import chains, credential, der, trust
from glexec.chains import Untrusted
from glexec.codes import INTERNAL

EXTENSION = bytes.fromhex("2b06010401be45646405")  # 1.3.6.1.4.1.8005.100.100.5
_FQANS = bytes.fromhex("2b06010401be45646404")
_CERTIFICATES = bytes.fromhex("2b06010401be4564640a")
# noRevAvail, authority key: nothing to check. Targets restrict to hosts, and are refused as not understood.
_HARMLESS = (b"\x55\x1d\x38", b"\x55\x1d\x23", _CERTIFICATES)
_TARGETS = b"\x55\x1d\x37"
# What signs attribute certificates, by object identifier. SHA-1 is what VOMS 2 signs with, by whatever
# key, so it has to be taken here; forging one by a collision needs a server that signs chosen text.
_DIGESTS = {
    bytes.fromhex("2a864886f70d010105"): b"SHA1",
    bytes.fromhex("2a864886f70d01010b"): b"SHA256",
    bytes.fromhex("2a864886f70d01010c"): b"SHA384",
    bytes.fromhex("2a864886f70d01010d"): b"SHA512",
    bytes.fromhex("2a8648ce3d0401"): b"SHA1",
    bytes.fromhex("2a8648ce3d040302"): b"SHA256",
    bytes.fromhex("2a8648ce3d040303"): b"SHA384",
    bytes.fromhex("2a8648ce3d040304"): b"SHA512",
}
_SKEW_S = 300  # clocks of servers and nodes differ
_LIMIT_FQANS = 256
_NEXT_CHAIN = "NEXT CHAIN"
_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
_FQAN = _NAME | frozenset("/= +:@")


class Attributes:
    """One attribute certificate, taken apart; Untrusted if that is not possible."""

    def __init__(self, certificate: der.Node) -> None:
        try:
            self._take(certificate)
        except (der.Bad, ValueError):  # of another count, text or date
            raise Untrusted("an attribute certificate that cannot be read") from None

    def _take(self, certificate: der.Node) -> None:
        info, algorithm, signature = certificate.children()
        self.signed = info.raw
        self.algorithm = algorithm.child(0).expect(der.OID)
        self.signature = signature.expect(der.BIT_STRING)[1:]
        base = info.child(1).child(0)  # baseCertificateID: issuer, serial number
        self.holder_issuer = base.child(0).child(0).child(0).raw
        self.holder_serial = base.child(1).expect(der.INTEGER)
        self.starts, self.ends = (_moment(time_) for time_ in info.child(5).children())
        self.vo, self.fqans = "", []  # type: tuple[str, list[str]]
        for attribute in info.child(6).children():
            oid, values = attribute.children()
            if oid.expect(der.OID) == _FQANS:
                for syntax in values.children():
                    self._take_fqans(syntax)
        fields = info.children()
        self.extensions = der.extensions(fields[-1]) if len(fields) > 7 else []

    def _take_fqans(self, syntax: der.Node) -> None:
        authority = syntax.child(0).child(0).body.decode("ascii")
        vo = authority.partition("://")[0]
        if self.vo not in ("", vo):  # its server is believed for one VO
            raise der.Bad("two VOs in one attribute certificate")
        self.vo = vo
        if not self.vo or set(self.vo) - _NAME or self.vo.startswith("."):
            raise der.Bad("not the name of a VO")
        for entry in syntax.child(1).children():
            fqan = entry.expect(der.OCTETS).decode("ascii")
            if set(fqan) - _FQAN or not (fqan + "/").startswith("/%s/" % self.vo) or len(self.fqans) == _LIMIT_FQANS:
                raise der.Bad("not an FQAN of the VO")
            self.fqans.append(fqan)


def _moment(field: der.Node) -> float:
    import calendar

    return float(calendar.timegm(time.strptime(field.expect(der.GENERALIZED).decode("ascii"), "%Y%m%d%H%M%SZ")))


def stated(holder: credential.Credential) -> "list[Attributes]":
    """What the proxy nearest the leaf that states anything states. Nothing is verified."""
    for number in range(holder.owner + 1):
        raw = holder.der(number)
        if EXTENSION not in raw:
            continue
        try:
            value = der.Certificate(raw).extensions.get(EXTENSION)
            if value is not None:
                outer = der.one(value).children()
                return [Attributes(one) for sequence in outer for one in sequence.children()]
        except der.Bad:
            raise Untrusted("an attribute certificate that cannot be read") from None
    return []


def verified(holder: credential.Credential, certificates_dir: str, voms_dir: str) -> "list[str]":
    """The FQANs that count, the primary one first; Untrusted for a forged attribute certificate.

    As with LCMAPS, one that is merely of no use here gives no FQANs, and the policy decides on the
    DN alone: of a VO that the site does not know, expired, or with conditions not supported here.
    """
    found = []  # type: list[str]
    for attributes in stated(holder):
        listed = _listed(voms_dir, attributes.vo)
        if listed is not None:
            _require_genuine(attributes, holder, certificates_dir, listed)
            if _is_of_use(attributes):
                found += attributes.fqans
    return found


def _is_of_use(attributes: Attributes) -> bool:
    now = time.time()
    conditions = [
        oid for oid, critical, _ in attributes.extensions if oid == _TARGETS or (critical and oid not in _HARMLESS)
    ]
    return attributes.starts <= now + _SKEW_S and now < attributes.ends and not conditions


def _require_genuine(
    attributes: Attributes, holder: credential.Credential, certificates_dir: str, listed: "list[tuple[str, str]]"
) -> None:
    owner = der.Certificate(holder.der(holder.owner))
    if (attributes.holder_issuer, attributes.holder_serial) != (owner.issuer, owner.serial):
        raise Untrusted("an attribute certificate of somebody else")
    known = {oid: value for oid, _, value in attributes.extensions}
    crypto = holder.crypto
    try:
        brought = [one.raw for one in der.one(known[_CERTIFICATES]).child(0).children()]
    except (KeyError, der.Bad):
        raise Untrusted("an attribute certificate without its server's certificate") from None
    servers = [_decoded(crypto, raw) for raw in brought]
    if not servers:
        raise Untrusted("an attribute certificate without its server's certificate")
    _check_signature(crypto, attributes, servers[0])
    chains.believe(crypto, servers[0], servers[1:], certificates_dir)
    names = (
        credential.oneline(crypto, crypto.X509_get_subject_name(servers[0])),
        credential.oneline(crypto, crypto.X509_get_issuer_name(servers[0])),
    )
    if names not in listed:
        raise Untrusted("a forged attribute certificate: %s is no server of VO %s" % (names[0], attributes.vo))


def _decoded(crypto: ctypes.CDLL, raw: bytes) -> int:
    pointer = ctypes.c_void_p
    credential.declare(crypto, {"d2i_X509": (pointer, pointer, ctypes.c_long)}, pointer)
    buffer = ctypes.create_string_buffer(raw, len(raw))
    found = crypto.d2i_X509(None, ctypes.byref(pointer(ctypes.addressof(buffer))), len(raw))
    if not found:
        raise Untrusted("an attribute certificate with a damaged certificate")
    return int(found)


def _check_signature(crypto: ctypes.CDLL, attributes: Attributes, server: int) -> None:
    name = _DIGESTS.get(attributes.algorithm)
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    functions = {
        "X509_get0_pubkey": (pointer,),
        "EVP_MD_CTX_new": (),
        "EVP_get_digestbyname": (ctypes.c_char_p,),
    }  # type: dict[str, tuple[object, ...]]
    credential.declare(crypto, functions, pointer)
    functions = {
        "EVP_DigestVerifyInit": (pointer,) * 5,
        "EVP_DigestVerify": (pointer, ctypes.c_char_p, size, ctypes.c_char_p, size),
    }
    credential.declare(crypto, functions, ctypes.c_int)
    context, digest = crypto.EVP_MD_CTX_new(), crypto.EVP_get_digestbyname(name or b"none")
    key = crypto.X509_get0_pubkey(server)
    if not digest or not key or crypto.EVP_DigestVerifyInit(context, None, digest, None, key) != 1:
        raise Untrusted("an attribute certificate signed in a way that is not known here")
    text, signature = attributes.signed, attributes.signature
    if crypto.EVP_DigestVerify(context, signature, len(signature), text, len(text)) != 1:
        raise Untrusted("a forged attribute certificate: its signature is not its server's")


def _listed(directory: str, vo: str) -> "list[tuple[str, str]] | None":
    """Subject and issuer of each server that the site's .lsc files name for the VO; None: an unknown VO."""
    place = "%s/%s" % (directory, vo)
    pairs = []  # type: list[tuple[str, str]]
    try:
        names = sorted(name for name in os.listdir(place) if name.endswith(".lsc"))
        for name in names:
            pairs += _chains_in(trust.read("%s/%s" % (place, name)).decode("utf-8", "replace"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Untrusted("%s cannot be read: %s" % (place, error.strerror), INTERNAL) from None
    return pairs


def _chains_in(text: str) -> "list[tuple[str, str]]":
    pairs, chain = [], []  # type: tuple[list[tuple[str, str]], list[str]]
    for line in [*text.splitlines(), _NEXT_CHAIN]:
        line = line.strip()
        if _NEXT_CHAIN in line:
            if len(chain) >= 2:
                pairs.append((chain[0], chain[1]))
            chain = []
        elif line.startswith("/"):
            chain.append(line)
    return pairs
