"""Words and rules that both ends of a security handshake share. Pure.

A handshake is a generator: it yields actions (below), gets their results, and returns its result;
`handshake.run` drives it over a stream. A PeerFault of an action is thrown into the generator.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Generator, Iterable
from typing import Any, TypeVar

from attrs import field, frozen
from classad2 import ClassAd, ExprTree

from cedar import classads
from cedar.codec import Item, Reader
from cedar.errors import PeerFault

T = TypeVar("T")

# Handshakes are a few messages below 10 KiB; nothing is known of the peer yet.
MAX_HANDSHAKE_BYTES = 1 << 16
HANDSHAKE_DEADLINE_S = 20.0
SESSION_DURATION_S = 86_400
TOOL_SESSION_DURATION_S = 60
SESSION_LEASE_S = 3_600
# A server keeps a session longer than its client, so that the client is never surprised.
SESSION_SLACK_S = 20

# What stock draws for a resumption, in base64 44 characters.
_NONCE_BYTES = 33

# Bits of the methods in the authentication loop.
METHOD_BITS = {"FS": 4, "SSL": 256, "TOKEN": 2048, "SCITOKENS": 4096}


class MethodFailed(Exception):
    """An authentication method failed in a way that both ends know: another one may follow. The text says why."""


def fresh_nonce() -> str:
    """Each side of a resumption sends one of its own: the clear bytes, and so the digests, differ each time."""
    return base64.b64encode(os.urandom(_NONCE_BYTES)).decode("ascii")


@frozen
class Put:
    """Send one message."""

    items: tuple[Item, ...] = field(repr=False)


@frozen
class Get:
    """Wait for one message; gives its Reader."""


@frozen
class UseKey:
    """Encrypt from here on."""

    key: bytes = field(repr=False)


@frozen
class MakeDirectory:
    """Make a directory that only we can use; gives True on success."""

    path: str


@frozen
class RemoveDirectory:
    """Remove it again; gives None."""

    path: str


@frozen
class PeerEndpoint:
    """Where the other end is, as we see it: (host, port, name behind a shared port or None)."""


@frozen
class ProposeDirectory:
    """Name a directory that does not exist, with our own address and port in its name; gives its path."""


@frozen
class DirectoryOwner:
    """Who made it: the account's name, or None unless it is a fresh private directory."""

    path: str


Action = Put | Get | UseKey | PeerEndpoint | MakeDirectory | RemoveDirectory | ProposeDirectory | DirectoryOwner
Handshake = Generator[Action, Any, T]


_YES = (
    frozenset({("REQUIRED", "REQUIRED"), ("REQUIRED", "PREFERRED"), ("REQUIRED", "OPTIONAL")})
    | frozenset({("PREFERRED", "REQUIRED"), ("PREFERRED", "PREFERRED"), ("PREFERRED", "OPTIONAL")})
    | frozenset({("OPTIONAL", "REQUIRED"), ("OPTIONAL", "PREFERRED")})
)
_WORDS = frozenset({"REQUIRED", "PREFERRED", "OPTIONAL", "NEVER"})


def reconcile(client: str, server: str) -> bool:
    """Whether a feature is on. Raises PeerFault("handshake") when one end insists and the other forbids."""
    if client not in _WORDS:
        raise PeerFault("handshake", "a security feature is neither required, preferred, optional nor never")
    if {client, server} == {"REQUIRED", "NEVER"}:
        raise PeerFault("handshake", "one end requires a security feature that the other forbids")
    return (client, server) in _YES


def read_ad(reader: Reader) -> ClassAd:
    """An ad of a handshake: literals only, so that no stranger makes us evaluate."""
    ad = reader.ad()
    for name in ad:
        if isinstance(ad[name], ExprTree | list | ClassAd):
            raise PeerFault("handshake", "an expression in a security handshake")
    return ad


def feature(ad: ClassAd, name: str) -> str:
    """The word for a feature in a request; a missing one counts as NEVER."""
    return classads.get_str(ad, name, "NEVER").upper()


def words(text: str) -> list[str]:
    """A comma or blank separated list."""
    return text.replace(",", " ").split()


def make_ad(values: Iterable[tuple[str, Any]]) -> ClassAd:
    """An ad of literals; None is left out."""
    ad = ClassAd()
    for name, value in values:
        if isinstance(value, str):
            classads.set_str(ad, name, value)
        elif value is not None:
            ad[name] = value
    return ad


def number(ad: ClassAd, name: str, default: int, *, highest: int) -> int:
    """A number of seconds that may travel as text or integer, within 1 and `highest`."""
    text = classads.get_str(ad, name, None)
    if text is None:
        value = classads.get_int(ad, name, default)
    else:
        value = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else default
    return max(1, min(value, highest))
