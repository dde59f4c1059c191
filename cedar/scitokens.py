"""The token that SCITOKENS shows: where it is found, and whether it can be shown.

The places are those of the WLCG's bearer token discovery. BEARER_TOKEN itself is not read: what is in a variable is
inherited by every process that its owner starts. Who signed it is the server's question.
"""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

from cedar import tokens
from cedar.security import MethodFailed
from cedar.security_ssl import MAX_TOKEN_BYTES

_OTHERS = stat.S_IRWXO
_MAX_FILE_BYTES = 65_536


def places(file: Path | None, uid: int) -> tuple[Path, ...]:
    """Where a token may be: the file that is set, or else the account's usual ones."""
    if file is not None:
        return (file,)
    return Path(f"/run/user/{uid}/bt_u{uid}"), Path(f"/tmp/bt_u{uid}")


def found(file: Path | None, uid: int) -> bool:
    """Whether there is a file that may hold one; at the usual places that another account can take, one of ours."""
    if file is not None:
        return os.path.lexists(file)
    return any(_is_ours(place, uid) for place in places(None, uid))


def _is_ours(place: Path, uid: int) -> bool:
    try:
        return os.lstat(place).st_uid in (uid, 0)
    except OSError:
        return False


def load(file: Path | None, uid: int, *, now_unix_s: float) -> str:
    """The first token. Raises MethodFailed: none, one that has expired, or a file that is not the account's own."""
    tried = places(file, uid)
    for place in tried:
        if os.path.lexists(place):
            return _token(place, uid, now_unix_s)
    raise MethodFailed(f"no token in {' or '.join(map(str, tried))}")


def _token(place: Path, uid: int, now_unix_s: float) -> str:
    for line in _read(place, uid).decode("ascii", "replace").splitlines():
        text = line.strip()
        if text and not text.startswith("#"):
            return _checked(text, place, now_unix_s)
    raise MethodFailed(f"no token in {place}")


def _read(place: Path, uid: int) -> bytes:
    try:
        fd = os.open(place, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise MethodFailed(f"{place} cannot be read: {error.strerror}") from error
    try:
        about = os.fstat(fd)
        if not stat.S_ISREG(about.st_mode) or about.st_uid not in (uid, 0) or about.st_mode & _OTHERS:
            raise MethodFailed(f"{place} must be a file of this account, closed to others (0600)")
        return os.read(fd, _MAX_FILE_BYTES)
    except OSError as error:
        raise MethodFailed(f"{place} cannot be read: {error.strerror}") from error
    finally:
        os.close(fd)


def _checked(text: str, place: Path, now_unix_s: float) -> str:
    try:
        claims = tokens.parse(text).claims
    except tokens.BadToken as error:
        raise MethodFailed(f"what is in {place} is no token: {error}") from error
    if len(text) > MAX_TOKEN_BYTES:
        raise MethodFailed(f"the token in {place} is longer than {MAX_TOKEN_BYTES} characters")
    if claims.expires_at is not None and claims.expires_at <= now_unix_s:
        ended = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(max(0, claims.expires_at)))
        raise MethodFailed(f"the token in {place} expired at {ended}")
    return text
