"""The stream's cryptography: AES-256-GCM a packet, keys by HKDF, ECDH on P-256.

Values in, values out: no I/O, no clock. Keys never appear in a repr.
Layout of nonces and additional data: HTCondor's CEDAR as of 9.0 and later.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cedar.errors import PeerFault

KEY_BYTES = 32
IV_BYTES = 16
TAG_BYTES = 16
DIGEST_BYTES = 32
NO_DIGEST = bytes(DIGEST_BYTES)
_POINT_BYTES = 65
# The last packet number that the protocol allows in one direction.
MAX_PACKETS = 0xFFFFFFFF
# Hashing of clear bytes stops here; no handshake comes near.
MAX_HASHED_BYTES = 1 << 20

Buffer = bytes | bytearray | memoryview


def hkdf(secret: bytes, salt: bytes, info: bytes, length: int = KEY_BYTES) -> bytes:
    """HKDF-SHA256."""
    return HKDF(algorithm=hashes.SHA256(), length=length, salt=salt, info=info).derive(secret)


def session_key(secret: bytes) -> bytes:
    """The AES key of a session, from a claim's secret *text* or an ECDH result."""
    return hkdf(secret, b"htcondor", b"keygen")


def digest(clear: Buffer) -> bytes:
    """What stands for the clear bytes of one direction; zeros when there were none."""
    return hashlib.sha256(clear).digest() if clear else NO_DIGEST


class KeyPair:
    """An ephemeral P-256 key for one handshake."""

    def __init__(self) -> None:
        self._private = ec.generate_private_key(ec.SECP256R1())

    def public_text(self) -> str:
        """The uncompressed point in base64, as the ads carry it."""
        point = self._private.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        return base64.b64encode(point).decode("ascii")

    def session_key(self, peer_text: str) -> bytes:
        """The common AES key. Raises PeerFault("handshake") on a bad point."""
        try:
            point = base64.b64decode("".join(peer_text.split()), validate=True)
            if len(point) != _POINT_BYTES:
                raise ValueError("not an uncompressed point")
            peer = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
        except (ValueError, binascii.Error) as error:
            raise PeerFault("handshake", "the peer's ECDH key is not a P-256 point") from error
        return session_key(self._private.exchange(ec.ECDH(), peer))


class Direction:
    """One direction's cipher: key, base IV, packet counter, first packet's additional data."""

    __slots__ = ("_aead", "_digests", "count", "iv")

    def __init__(self, aead: AESGCM, iv: bytes | None, digests: bytes, count: int = 0) -> None:
        self._aead = aead
        self.iv = iv
        self._digests = digests
        self.count = count

    def _step(self, header: Buffer) -> tuple[bytes, bytes]:
        """Nonce and additional data of the next packet; counts it."""
        if self.count >= MAX_PACKETS:
            raise PeerFault("crypto", "too many packets under one key")
        assert self.iv is not None
        first = (int.from_bytes(self.iv[:4], "big") + self.count) & 0xFFFFFFFF
        data = self._digests + bytes(header) if self.count == 0 else bytes(header)
        self.count += 1
        return first.to_bytes(4, "big") + self.iv[4:], data

    def overhead(self) -> int:
        """Bytes that the next packet has beside its content."""
        return TAG_BYTES + (IV_BYTES if self.count == 0 else 0)

    def seal(self, header: bytes, content: Buffer) -> bytearray:
        """A whole packet: header, (IV in the first one,) ciphertext, tag."""
        assert self.iv is not None
        lead = header + self.iv if self.count == 0 else header
        nonce, data = self._step(header)
        packet = bytearray(len(lead) + len(content) + TAG_BYTES)
        packet[: len(lead)] = lead
        self._aead.encrypt_into(nonce, content, data, memoryview(packet)[len(lead) :])
        return packet

    def open(self, header: Buffer, body: memoryview) -> bytes:
        """The content of a packet. Raises PeerFault("crypto") when it does not verify."""
        if len(body) < self.overhead():
            raise PeerFault("crypto", "an encrypted packet is too short")
        if self.count == 0:
            self.iv, body = bytes(body[:IV_BYTES]), body[IV_BYTES:]
        nonce, data = self._step(header)
        try:
            return self._aead.decrypt(nonce, body, data)
        except InvalidTag as error:
            raise PeerFault("crypto", "a packet does not verify") from error


def new_iv() -> bytes:
    """A random base IV for one direction."""
    return os.urandom(IV_BYTES)
