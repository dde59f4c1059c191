"""IDTOKENs: JSON web tokens that a pool signs with its own key.

Reading token directories and key directories; choosing, minting and verifying. The exchange itself is
`security_token`. The signature is the shared secret: it never appears in a repr.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import math
import os
import re
import secrets
import stat
import time
from collections.abc import Iterable, Mapping
from itertools import cycle
from pathlib import Path
from typing import Any, NoReturn

from attrs import field, frozen

from cedar import crypto
from cedar.errors import Refused

POOL_KEY = "POOL"
# Files of a directory that are looked at, and bytes of each: more is a mistake or an attack.
MAX_FILES = 1_000
MAX_FILE_BYTES = 65_536
MAX_TOKEN_CHARS = 16_384
_TOKEN = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")
_KEY_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
# Key files are XORed with this, against a glance over the shoulder.
_SCRAMBLE = b"\xde\xad\xbe\xef"
_SCOPE_PREFIX = "condor:/"
_SIGNING_KEY_BYTES = 64
# 9999-12-31: what can be written as a date.
_LAST_DATE = 253_402_300_799


@frozen
class Claims:
    """What a token says, checked for type only."""

    key_id: str
    algorithm: str
    subject: str | None
    issuer: str | None
    token_id: str | None
    issued_at: float | None
    expires_at: float | None
    scopes: tuple[str, ...] | None  # levels; None when the token is not limited


@frozen
class Token:
    """One token that we hold."""

    init: str = field(repr=False)  # header.payload
    signature: bytes = field(repr=False)
    claims: Claims


@frozen
class Verified:
    """A client's token that our key has signed."""

    subject: str
    identity: str
    scopes: tuple[str, ...] | None
    signature: bytes = field(repr=False)


class BadToken(Exception):
    """A text that is no token, or says what it must not."""


# --- directories ---


def load_tokens(directory: Path) -> list[Token]:
    """All tokens of a directory's files, one a line, in the order of the names. Bad lines are skipped."""
    tokens = []
    for _, data in _files(directory):
        for line in data.decode("ascii", "replace").splitlines():
            try:
                tokens.append(parse(line.strip()))
            except BadToken:
                continue
    return tokens


def load_signing_keys(directory: Path | None, pool_key_file: Path | None = None) -> dict[str, bytes]:
    """The signing keys of a directory by name, as their files' bytes; POOL's own may be a file elsewhere."""
    found = _files(directory) if directory is not None else ()
    keys = {name: data for name, data in found if data and _KEY_NAME.fullmatch(name)}
    if pool_key_file is not None and (data := _read(pool_key_file)):
        keys[POOL_KEY] = data
    return keys


def _files(directory: Path) -> Iterable[tuple[str, bytes]]:
    try:
        names = sorted(os.listdir(directory))[:MAX_FILES]
    except OSError:
        return
    for name in names:
        if not name.startswith(".") and (data := _read(directory / name)) is not None:
            yield name, data


def _read(path: Path) -> bytes | None:
    """A regular file's bytes; None for anything else (a FIFO must not block us)."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        about = os.fstat(fd)
        if not stat.S_ISREG(about.st_mode) or about.st_size > MAX_FILE_BYTES:
            return None
        return os.read(fd, MAX_FILE_BYTES)
    except OSError:
        return None
    finally:
        os.close(fd)


# --- text ---


def parse(text: str) -> Token:
    """A whole token. Raises BadToken."""
    found = _TOKEN.fullmatch(text) if len(text) <= MAX_TOKEN_CHARS else None
    if found is None:
        raise BadToken("not a token")
    init = f"{found[1]}.{found[2]}"
    return Token(init, _decode(found[3]), parse_init(init))


def parse_init(init: str) -> Claims:
    """Header and payload, without a signature. Raises BadToken."""
    head, dot, body = init.partition(".")
    if not dot or len(init) > MAX_TOKEN_CHARS:
        raise BadToken("not a token")
    header, payload = _decode_json(head), _decode_json(body)
    return Claims(
        key_id=_text(header, "kid") or POOL_KEY,
        algorithm=_text(header, "alg") or "",
        subject=_text(payload, "sub"),
        issuer=_text(payload, "iss"),
        token_id=_text(payload, "jti"),
        issued_at=_number(payload, "iat"),
        expires_at=_number(payload, "exp"),
        scopes=_scopes(payload),
    )


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (ValueError, binascii.Error) as error:
        raise BadToken("a part is not base64") from error


def _decode_json(text: str) -> Mapping[str, Any]:
    try:
        value = json.loads(_decode(text), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BadToken("a part is not JSON") from error
    if not isinstance(value, dict):
        raise BadToken("a part is not an object")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _text(part: Mapping[str, Any], name: str) -> str | None:
    value = part.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or not value.isprintable():
        raise BadToken(f"{name} is not a text")
    return value


def _number(part: Mapping[str, Any], name: str) -> float | None:
    value = part.get(name)
    if value is None:
        return None
    if type(value) not in (int, float) or not -1e15 < value < 1e15:  # a huge exp would not fit a float
        raise BadToken(f"{name} is not a time")
    return float(value)


def _scopes(payload: Mapping[str, Any]) -> tuple[str, ...] | None:
    scope = _text(payload, "scope")
    if scope is None:
        return None
    words = (word for word in scope.split() if word.startswith(_SCOPE_PREFIX))
    return tuple(word.removeprefix(_SCOPE_PREFIX) for word in words)


# --- choosing ---


def choose(tokens: Iterable[Token], issuer: str, key_ids: Iterable[str], *, now_unix_s: float) -> Token | None:
    """The first token that this server can check and that has not expired."""
    known = frozenset(key_ids)
    for token in tokens:
        claims = token.claims
        fresh = claims.expires_at is None or claims.expires_at > now_unix_s
        if fresh and claims.issuer == issuer and claims.key_id in known:
            return token
    return None


def why_none(tokens: Iterable[Token], issuer: str, key_ids: Iterable[str], *, now_unix_s: float) -> str:
    """Why none of the tokens is one for this server, by the one that comes nearest."""
    known = frozenset(key_ids)
    held = list(tokens)
    if not held:
        return "we hold no token"
    ours = [token for token in held if token.claims.issuer == issuer]
    if not ours:
        names = ", ".join(sorted({token.claims.issuer or "nobody" for token in held}))
        return f"no token for the trust domain {issuer or '(none)'}; we hold tokens of {names[:200]}"
    signed = [token for token in ours if token.claims.key_id in known]
    if not signed:
        names = ", ".join(sorted({token.claims.key_id for token in ours}))
        return f"our tokens are signed by the key {names[:200]}, and the server has {', '.join(sorted(known))[:200]}"
    last = max(signed, key=lambda token: token.claims.expires_at or math.inf)
    ended = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(max(0, min(last.claims.expires_at or 0, _LAST_DATE))))
    return f"the token of {(last.claims.subject or 'nobody')[:80]} expired at {ended}"


# --- keys ---


def new_signing_key() -> bytes:
    """A new key file's bytes. No NUL in the key itself: stock daemons may cut it there."""
    return _scrambled(bytes(secrets.randbelow(255) + 1 for _ in range(_SIGNING_KEY_BYTES)))


def _scrambled(data: bytes) -> bytes:
    return bytes(byte ^ mask for byte, mask in zip(data, cycle(_SCRAMBLE), strict=False))


def _jwt_key(signing_key: bytes, key_id: str) -> bytes:
    """The HMAC key that a key file gives. The pool's own is used twice in a row, as stock does."""
    key = _scrambled(signing_key)
    if key_id == POOL_KEY:
        key = key.partition(b"\0")[0] * 2
    return crypto.hkdf(key, b"htcondor", b"master jwt")


def sign(signing_key: bytes, key_id: str, init: str) -> bytes:
    """The signature of header.payload."""
    return hmac.digest(_jwt_key(signing_key, key_id), init.encode("ascii"), "sha256")


def mint(
    signing_key: bytes,
    key_id: str,
    subject: str,
    issuer: str,
    scope: Iterable[str] | None = None,
    lifetime_s: float | None = None,
    *,
    now_unix_s: float,
) -> str:
    """A new token's text.

    `signing_key`: the key file's bytes; `scope`: levels such as "READ", None for no limit.
    """
    payload: dict[str, Any] = {"iat": math.floor(now_unix_s), "iss": issuer, "sub": subject}
    payload["jti"] = secrets.token_hex(16)
    if lifetime_s is not None:
        payload["exp"] = math.floor(now_unix_s + lifetime_s)
    if scope is not None:
        payload["scope"] = " ".join(_SCOPE_PREFIX + level for level in scope)
    init = f"{_encode_json({'alg': 'HS256', 'kid': key_id})}.{_encode_json(payload)}"
    return f"{init}.{_encode(sign(signing_key, key_id, init))}"


def _encode_json(value: Mapping[str, Any]) -> str:
    return _encode(json.dumps(value, separators=(",", ":"), sort_keys=True).encode())


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def verify(init: str, keys: Mapping[str, bytes], trust_domain: str, *, now_unix_s: float) -> Verified:
    """Check what a client's token says. Whether the client has its signature is the exchange's question.

    Raises Refused("TOKEN") with the reason.
    """
    try:
        claims = parse_init(init)
    except BadToken as error:
        raise Refused("TOKEN", str(error)) from error
    if (reason := _objection(claims, keys, trust_domain, now_unix_s)) is not None:
        raise Refused("TOKEN", reason)
    subject = claims.subject or ""
    identity = subject if "@" in subject else f"{subject}@{trust_domain}"
    return Verified(subject, identity, claims.scopes, sign(keys[claims.key_id], claims.key_id, init))


def _objection(claims: Claims, keys: Mapping[str, bytes], trust_domain: str, now_unix_s: float) -> str | None:
    if claims.algorithm != "HS256":
        return "the token's algorithm is not HS256"
    if claims.key_id not in keys:
        return "the token's key is not ours"
    if claims.issuer != trust_domain:
        return "the token's issuer is not our trust domain"
    if not claims.subject or not claims.token_id or claims.issued_at is None:
        return "the token lacks sub, jti or iat"
    if claims.expires_at is not None and claims.expires_at <= now_unix_s:
        return "the token has expired"
    return None
