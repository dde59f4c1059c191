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
    ProposeDirectory,
    Put,
    RemoveDirectory,
)

# What stock servers name, and all that we are willing to make for one.
_PROPOSAL = re.compile(r"/(?:[A-Za-z0-9_-][A-Za-z0-9._-]*/)+FS_[A-Za-z0-9_]{1,64}")
_OK, _ERROR = 0, -1


def prove() -> Handshake[bool]:
    """Client's part. False when the server did not take it."""
    path = (yield Get()).string()
    made = _PROPOSAL.fullmatch(path) is not None and (yield MakeDirectory(path))
    try:
        yield Put((_OK if made else _ERROR,))
        return (yield Get()).int() == _OK and bool(made)
    finally:
        if made:
            yield RemoveDirectory(path)


def check() -> Handshake[str | None]:
    """Server's part: the account's name, or None."""
    path = yield ProposeDirectory()
    yield Put((path,))
    said_ok = (yield Get()).int() == _OK
    owner: str | None = (yield DirectoryOwner(path)) if said_ok else None
    yield Put((_OK if owner is not None else _ERROR,))
    return owner
