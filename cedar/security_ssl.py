"""SSL authentication in both roles, and SCITOKENS as a client, as generators of actions.

A TLS handshake whose bytes travel in messages [status, length, bytes]. The ends take turns, the client first; each says
how far it is, and a part is over when both hold. Over the channel the server then sends a key (of the old key exchange,
not used), and with SCITOKENS the client its token. No I/O here: TLS works on memory.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from enum import IntEnum

from attrs import define

from cedar.codec import Reader
from cedar.errors import PeerFault
from cedar.security import Get, Handshake, MethodFailed, Put

# Stock stops at 256 too; a TLS handshake takes 5.
MAX_ROUNDS = 256
_OLD_KEY_BYTES = 256
# What stock servers take, in one TLS record.
MAX_TOKEN_BYTES = 16_000
_LENGTH_BYTES = 4


class Status(IntEnum):
    """How far an end says that it is."""

    ERROR = -1
    OK = 0
    SENDING = 1
    RECEIVING = 2
    QUITTING = 3
    HOLDING = 4


_STATUSES = frozenset(map(int, Status))
_OVER = (Status.ERROR, Status.QUITTING)


@define
class _Channel:
    """One TLS connection in memory."""

    incoming: ssl.MemoryBIO
    outgoing: ssl.MemoryBIO
    tls: ssl.SSLObject
    fault: str = ""

    @classmethod
    def make(cls, context: ssl.SSLContext, host: str | None) -> _Channel:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        server = host is None
        return cls(incoming, outgoing, context.wrap_bio(incoming, outgoing, server, host))

    def advance(self, step: Callable[[], object]) -> Status:
        """Try a step with what has come so far."""
        try:
            step()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return Status.RECEIVING
        except ssl.SSLError as error:
            self.fault = _words(error)
            return Status.QUITTING
        return Status.HOLDING

    def send(self, status: Status) -> Handshake[None]:
        data = self.outgoing.read()
        yield Put((int(status), len(data), data))

    def receive(self) -> Handshake[Status]:
        reader: Reader = yield Get()
        status, data = reader.int(), reader.raw(reader.int())
        reader.end()
        if status not in _STATUSES:
            raise PeerFault("handshake", "an unknown status in a TLS exchange")
        if data:
            self.incoming.write(data)
        return Status(status)

    def take_turns(self, step: Callable[[], object], *, first: bool, doing: str) -> Handshake[None]:
        """Until both ends are through with a step. Raises MethodFailed when one of them gives up."""
        own = peer = Status.RECEIVING
        sends = first
        for _ in range(MAX_ROUNDS):
            if own is not Status.HOLDING:
                own = self.advance(step)
            if sends:
                yield from self.send(own)
            else:
                peer = yield from self.receive()
            sends = not sends
            if own in _OVER:
                raise MethodFailed(f"{doing}: {self.fault}")
            if peer in _OVER:
                raise MethodFailed(f"{doing}: {self._said()}")
            if own is peer is Status.HOLDING:
                return
        raise PeerFault("handshake", "a TLS exchange without end")

    def _said(self) -> str:
        """Why the peer gave up, if it sent an alert."""
        try:
            self.tls.read(1)
        except ssl.SSLError as error:
            if not isinstance(error, ssl.SSLWantReadError | ssl.SSLZeroReturnError):
                return f"the other end gave up ({_words(error)})"
        return "the other end gave up"


def _words(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate is not accepted: {error.verify_message}"
    return (error.reason or "TLS failed").replace("_", " ").lower()


# --- client ---


def prove(make: Callable[[], ssl.SSLContext], host: str, token: str | None = None) -> Handshake[None]:
    """Client's part. With a token it is SCITOKENS.

    make: a context, or MethodFailed; host: whose certificate the server must have. Raises MethodFailed.
    """
    channel, fault = _open(make, host)
    theirs = (yield Get()).int()
    yield Put((int(Status.OK if channel else Status.ERROR),))
    if channel is None:
        raise MethodFailed(fault)
    if theirs != Status.OK:
        raise MethodFailed("the server cannot: it has no certificate of its own that it could use")
    yield from channel.take_turns(channel.tls.do_handshake, first=True, doing="TLS handshake")
    yield from channel.take_turns(_reading(channel, _OLD_KEY_BYTES), first=False, doing="after the TLS handshake")
    if token is not None:
        raw = token.encode("ascii")
        framed = len(raw).to_bytes(_LENGTH_BYTES, "big") + raw
        yield from channel.take_turns(lambda: channel.tls.write(framed), first=True, doing="the token was sent")


def _open(make: Callable[[], ssl.SSLContext], host: str | None) -> tuple[_Channel | None, str]:
    try:
        return _Channel.make(make(), host), ""
    except MethodFailed as failed:
        return None, str(failed)
    except ValueError as error:  # a name that no certificate can have
        return None, f"the server's host name cannot be checked: {error}"


def _reading(channel: _Channel, wanted: int) -> Callable[[], object]:
    """A step that reads exactly so many bytes, in as many turns as they take."""
    got = bytearray()

    def step() -> None:
        while len(got) < wanted:
            more = channel.tls.read(wanted - len(got))
            if not more:
                raise ssl.SSLZeroReturnError(ssl.SSL_ERROR_ZERO_RETURN, "closed")
            got.extend(more)

    return step


# --- server ---


def check(make: Callable[[], ssl.SSLContext], *, require_certificate: bool) -> Handshake[tuple[bytes, ...]]:
    """Server's part: the client's verified chain in DER, the leaf first; empty for one without a certificate.

    Raises MethodFailed.
    """
    channel, fault = _open(make, None)
    yield Put((int(Status.OK if channel else Status.ERROR),))
    theirs = (yield Get()).int()
    if channel is None:
        raise MethodFailed(fault)
    if theirs != Status.OK:
        raise MethodFailed("the client cannot")
    yield from channel.take_turns(channel.tls.do_handshake, first=False, doing="TLS handshake")
    chain = _verified_chain(channel.tls)
    if require_certificate and not chain:
        yield from channel.send(Status.QUITTING)
        raise MethodFailed("the client has no certificate")
    key = os.urandom(_OLD_KEY_BYTES)
    yield from channel.take_turns(lambda: channel.tls.write(key), first=True, doing="after the TLS handshake")
    return chain


def _verified_chain(tls: ssl.SSLObject) -> tuple[bytes, ...]:
    if hasattr(tls, "get_verified_chain"):  # public from Python 3.13 on
        return tuple(tls.get_verified_chain())
    chain = tls._sslobj.get_verified_chain() or ()  # type: ignore[attr-defined] # there, but not in 3.11's public class
    return tuple(ssl.PEM_cert_to_DER_cert(link.public_bytes()) for link in chain)
