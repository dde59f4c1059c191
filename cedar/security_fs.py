"""FS authentication: the client makes a directory that the server names; its owner is the client.

Generators of actions; the directory is made and looked at by `handshake`.
"""

from __future__ import annotations

import re

from cedar.security import (
    DirectoryOwner,
    Get,
    Handshake,
    MakeDirectory,
    MethodFailed,
    PeerEndpoint,
    ProposeDirectory,
    Put,
    RemoveDirectory,
)

# What stock servers name, and all that we are willing to make for one. Since 25.14 the name has the server's address
# and port in it, so that nobody can have us make the directory that another server named.
_PROPOSAL = re.compile(
    r"/(?:[A-Za-z0-9_-][A-Za-z0-9._-]*/)+FS_(?:(?P<host>[0-9A-Fa-f.:]{2,45})_(?P<port>[0-9]{1,5})_)?[A-Za-z0-9_]{1,64}"
)
# The shared port's name of a daemon, which becomes part of a directory's name.
_SOCK = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_OK, _ERROR = 0, -1


def prove() -> Handshake[None]:
    """Client's part. Raises MethodFailed when the server did not take it."""
    path = (yield Get()).string()
    endpoint = yield PeerEndpoint()
    extension = _extension(*endpoint) if path.endswith("_") else ""
    may = _may_make(path, bool(extension), endpoint[:2])
    path += extension
    made = may and (yield MakeDirectory(path))
    try:
        yield Put((_OK if made else _ERROR, *([extension] if extension else ())))
        if (yield Get()).int() != _OK or not made:
            raise MethodFailed(
                "the server does not see the directory that we made: it runs on another machine"
                if made
                else f"the server named {path[:100]}, which cannot or must not be made"
            )
    finally:
        if made:
            yield RemoveDirectory(path)


def _may_make(path: str, extended: bool, endpoint: tuple[str, int]) -> bool:
    """Whether the name is one that this server may propose: of no other server than the one that we talk to."""
    named = _PROPOSAL.fullmatch(path)
    if named is None:
        return False
    return extended or named["host"] is None or (named["host"], int(named["port"])) == endpoint


def _extension(host: str, port: int, sock: str | None) -> str:
    """A name that ends in an underscore asks for the server's endpoint as the client sees it."""
    shown = f"[{host}]" if ":" in host else host
    return f"{shown}:{port}" + (f"?sock={sock}" if sock is not None and _SOCK.fullmatch(sock) else "")


def check() -> Handshake[str | None]:
    """Server's part: the account's name, or None."""
    path = yield ProposeDirectory()
    yield Put((path,))
    said_ok = (yield Get()).int() == _OK
    owner: str | None = (yield DirectoryOwner(path)) if said_ok else None
    yield Put((_OK if owner is not None else _ERROR,))
    return owner
