"""TOKEN authentication (AKEP2) in both roles, as generators of actions.

Both ends prove that they know the token's signature s; the client has it, the server computes it anew.
"""

from __future__ import annotations

import hmac
import os

from attrs import frozen

from cedar import crypto
from cedar.codec import Item, Reader
from cedar.errors import PeerFault, Refused
from cedar.security import Get, Handshake, MethodFailed, Put
from cedar.tokens import Token

_NONCE_BYTES = 256
_MAC_BYTES = 20
_MAX_NAME_BYTES = 1_024
SERVER_IDENTITY = "condor@password"
_OK, _ERROR = 0, -1

# 256 bytes, the same in every implementation of the protocol. (A second seed is for the old key exchange.)
_SEED = bytes.fromhex(
    "3e4a502047d5f4e5dc7c69bb5210cbb6167add8084f7dd9ef3ad2cca71d283dd114a4fbb7b1ee90adfa862c44304de54"
    "73a3172f735c2cbb6e775b5d40d39face873182523f9252b623be0d4b167a3a8040cacfee9ee3da02c0abbf4d9d8b11f"
    "89004c943923ce5d9508bb3f04bc66a3fa20a13a416c5e6f4e0d3187d45fc78335c5e485db2c5a3717970cc26e7b6b9d"
    "1965b47a67df77a31f22f08a6c0ba57097a21a9ca7c60424f72739ab5cb915a4185bd109828e35e42108ab851c08a3df"
    "fde0e3b06f3d3938cdad6df6ef9a6f6dc2cb74f0228512eb7a3d6823010684b015c12ac3014c4f9f938e384dad1e3bd7"
    "45ff8c141fd70b465ba8af5d1b98b4b1"
)


@frozen(repr=False)
class Exchange:
    """The values that both ends compute with."""

    ka: bytes
    a: str
    b: str
    ra: bytes
    rb: bytes

    def server_proof(self) -> bytes:
        """hkt: the server knows the signature."""
        text = f"{self.a} {self.b}".encode("utf-8", "surrogateescape")
        return hmac.digest(self.ka, text + b"\0" + self.ra + self.rb, "sha1")

    def client_proof(self) -> bytes:
        """hk: the client knows the signature."""
        return hmac.digest(self.ka, self.a.encode() + b"\0" + self.rb, "sha1")


def shared_key(signature: bytes, init: str) -> bytes:
    """ka, from a token's signature and its header.payload."""
    return crypto.hkdf(signature, _SEED + init.encode("ascii"), b"master ka")


# --- client ---


def prove(token: Token) -> Handshake[None]:
    """Client's part. Raises MethodFailed when the server did not accept the token, or does not know its key."""
    a = token.claims.subject or token.claims.token_id or ""
    ra = os.urandom(_NONCE_BYTES)
    yield Put((_OK, len(a.encode()), a, token.init, _NONCE_BYTES, ra))
    exchange = _read_challenge((yield Get()), a, ra, shared_key(token.signature, token.init))
    if exchange is None:
        yield Put((_ERROR, 0, "", 0, 0))
        raise MethodFailed(
            f"the server does not accept the token of {_shown(a)} (issuer {_shown(token.claims.issuer)},"
            f" key {_shown(token.claims.key_id)}), or has not the key that signed it"
        )
    yield Put((_OK, len(a.encode()), a, _NONCE_BYTES, exchange.rb, _MAC_BYTES, exchange.client_proof()))


def _shown(text: str | None) -> str:
    return (text or "nobody")[:80]


def _read_challenge(reader: Reader, a: str, ra: bytes, ka: bytes) -> Exchange | None:
    """The server's message, checked; None when it refused or is not who it should be."""
    status = reader.int()
    echo, b = _name(reader), _name(reader)
    ra_echo, rb, proof = _blob(reader, _NONCE_BYTES), _blob(reader, _NONCE_BYTES), _blob(reader, _MAC_BYTES)
    if status != _OK or ra_echo is None or rb is None or proof is None:
        return None
    exchange = Exchange(ka, a, b, ra, rb)
    if echo != a or not hmac.compare_digest(ra_echo, ra):
        return None
    return exchange if hmac.compare_digest(proof, exchange.server_proof()) else None


def _name(reader: Reader) -> str:
    """A length and a string that must agree."""
    length, text = reader.int(), reader.string()
    if length != len(text.encode("utf-8", "surrogateescape")) or length > _MAX_NAME_BYTES:
        raise PeerFault("handshake", "a name's length in the token exchange does not fit")
    return text


def _blob(reader: Reader, wanted: int) -> bytes | None:
    """A length and raw bytes; None when empty or missing, as in error messages."""
    length = reader.int() if reader.remaining() else 0
    if length == 0:
        return None
    if length != wanted:
        raise PeerFault("handshake", "a value in the token exchange has the wrong size")
    return reader.raw(length)


# --- server ---


@frozen(repr=False)
class Opening:
    """The client's first message."""

    a: str
    init: str
    ra: bytes


def read_opening(reader: Reader) -> Opening | None:
    """None when the client says that it gives up."""
    status = reader.int()
    a, init = _name(reader), reader.string()
    ra = _blob(reader, _NONCE_BYTES)
    return Opening(a, init, ra) if status == _OK and ra is not None else None


def refuse() -> Handshake[None]:
    """Say no; the client still sends an error message of its own."""
    yield Put((_ERROR, 0, "", 0, "", 0, 0, 0))
    yield Get()


def challenge(opening: Opening, signature: bytes) -> Handshake[bool]:
    """Server's part after the opening. False when the client gives up: we did not prove that we know it.

    Raises Refused("TOKEN") when the client is wrong: no message says that, only the end.
    """
    ka = shared_key(signature, opening.init)
    exchange = Exchange(ka, opening.a, SERVER_IDENTITY, opening.ra, os.urandom(_NONCE_BYTES))
    yield Put(_challenge_items(exchange))
    reader: Reader = yield Get()
    status, a = reader.int(), _name(reader)
    rb, proof = _blob(reader, _NONCE_BYTES), _blob(reader, _MAC_BYTES)
    if status != _OK or rb is None or proof is None:
        return False
    same = a == exchange.a and hmac.compare_digest(rb, exchange.rb)
    if not (same and hmac.compare_digest(proof, exchange.client_proof())):
        raise Refused("TOKEN", "the client does not know the token's signature")
    return True


def _challenge_items(exchange: Exchange) -> tuple[Item, ...]:
    a, b = exchange.a, exchange.b
    names: tuple[Item, ...] = (_OK, len(a.encode()), a, len(b.encode()), b)
    return (*names, _NONCE_BYTES, exchange.ra, _NONCE_BYTES, exchange.rb, _MAC_BYTES, exchange.server_proof())
