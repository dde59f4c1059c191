"""The server's side of a security handshake: new sessions and resumed ones. Generators of actions.

Decides who the client is and what it may call; changes nothing but the table of sessions.
"""

from __future__ import annotations

import secrets
import ssl
from collections.abc import Callable, Mapping

from attrs import field, frozen
from classad2 import ClassAd

from cedar import security_fs, security_ssl, security_token, tokens
from cedar.classads import get_bool, get_int, get_str
from cedar.codec import Reader
from cedar.commands import Command, condor_version_text
from cedar.crypto import KeyPair
from cedar.errors import PeerFault, Refused
from cedar.security import (
    METHOD_BITS,
    SESSION_DURATION_S,
    SESSION_LEASE_S,
    SESSION_SLACK_S,
    TOOL_SESSION_DURATION_S,
    Get,
    Handshake,
    MethodFailed,
    Put,
    UseKey,
    feature,
    fresh_nonce,
    make_ad,
    number,
    read_ad,
    reconcile,
    words,
)
from cedar.sessions import ANONYMOUS, MAX_SID_CHARS, Session, SessionTable, implied, is_stranger

_META_COMMANDS = (Command.AUTHENTICATE, Command.SEC_QUERY)


@frozen
class Caller:
    """Who asks: name@domain, by which method, from which address; levels that a token is limited to, or None."""

    identity: str
    method: str
    scopes: tuple[str, ...] | None
    host: str


@frozen
class SslSide:
    """How a server does SSL: its context (may raise MethodFailed); whose a verified chain is (DER, the leaf first)."""

    context: Callable[[], ssl.SSLContext]
    identity: Callable[[tuple[bytes, ...]], str]
    require_certificate: bool = False


@frozen
class Side:
    """What a server knows when a connection arrives.

    authorise decides about every level; at anonymous_levels somebody without a name may ask, too.
    """

    levels: Mapping[int, str]  # of the commands served
    sessions: SessionTable
    methods: tuple[str, ...]
    trust_domain: str
    authorise: Callable[[Caller, str], bool]
    anonymous_levels: frozenset[str]
    admit: Callable[[int, Session], bool]  # a word of the command's owner, asked when a session is resumed
    version: str
    now_s: float
    now_unix_s: float
    signing_keys: Mapping[str, bytes] = field(factory=dict, repr=False)
    ssl: SslSide | None = None
    host: str = ""  # the client's address


@frozen
class Accepted:
    """A client that may go on with its command's payload.

    fresh: it has shown who it is on this connection. One that resumes a session shows that it has the key by its first
    message, not before; or by a secret id that nobody has seen before (``Session.once``). only_asked: it wanted to know
    whether it might.
    """

    command: int
    session: Session
    fresh: bool = False
    only_asked: bool = False


def accept(first: Reader, side: Side) -> Handshake[Accepted]:
    """From a connection's first message to the payload.

    Raises PeerFault("handshake") for a raw command or nonsense, Refused after an answer that says no.
    """
    if first.int() != Command.AUTHENTICATE:
        raise PeerFault("handshake", "a command without a security handshake")
    request = read_ad(first)
    command = get_int(request, "Command")
    if command in _META_COMMANDS:
        command = get_int(request, "AuthCommand", command)
    resumed = get_str(request, "UseSession", "NO").upper() == "YES"
    accepted = yield from (_resume if resumed else _negotiate)(request, command, side)
    if get_int(request, "Command") != Command.SEC_QUERY:
        return accepted
    yield Put((make_ad([("AuthorizationSucceeded", True)]),))
    return Accepted(command, accepted.session, accepted.fresh, only_asked=True)


# --- resumed ---


def _resume(request: ClassAd, command: int, side: Side) -> Handshake[Accepted]:
    wants_answer = get_bool(request, "ResumeResponse", False)
    session = side.sessions.get(get_str(request, "Sid")[:MAX_SID_CHARS], side.now_s)
    objection = _objection(session, command, side)
    if session is not None:
        session.shown = True
    if wants_answer:
        yield Put((_resume_answer(objection, side),))
    if session is None or objection is not None:
        raise Refused(objection or "DENIED", f"session not resumed for command {command}")
    yield UseKey(session.key)
    return Accepted(command, session, fresh=command in session.once)


def _objection(session: Session | None, command: int, side: Side) -> str | None:
    if session is None:
        return "SID_NOT_FOUND"
    if command not in side.levels:
        return "CMD_NOT_FOUND"
    if not session.permits(command, side.levels[command]) or not side.admit(command, session):
        return "DENIED"
    return None


def _resume_answer(objection: str | None, side: Side) -> ClassAd:
    return make_ad(
        [
            ("ReturnCode", objection or "AUTHORIZED"),
            ("RemoteVersion", condor_version_text(side.version)),
            ("Nonce", fresh_nonce()),
        ]
    )


# --- new ---


@frozen
class _Terms:
    """What both ends agreed on."""

    authenticate: bool
    required: bool
    methods: tuple[str, ...]
    duration_s: int
    lease_s: int


def _negotiate(request: ClassAd, command: int, side: Side) -> Handshake[Accepted]:
    if command not in side.levels:  # stock closes without a word as well
        raise Refused("CMD_NOT_FOUND", f"command {command} is not served")
    terms = _agree(request, side.levels[command], side)
    keys = KeyPair()
    key = keys.session_key(get_str(request, "ECDHPublicKey"))
    yield Put((_answer(terms, keys, side),))
    caller = _nobody(side)
    if terms.authenticate:
        caller = yield from _authenticate(terms, side)
    yield UseKey(key)
    session = _new_session(caller, command, key, terms, side)
    allowed = command in (session.commands or ()) and side.admit(command, session)
    yield Put((_verdict(session, allowed, caller, side),))
    if not allowed:
        level = side.levels[command]
        raise Refused("DENIED", f"{caller.identity} may not call command {command}, which takes {level}")
    side.sessions.add(session)
    return Accepted(command, session, fresh=True)


def _nobody(side: Side) -> Caller:
    return Caller(ANONYMOUS, "", None, side.host)


def _agree(request: ClassAd, level: str, side: Side) -> _Terms:
    """Raises PeerFault or Refused when there is no common ground; the connection is closed then."""
    own = "OPTIONAL" if level in side.anonymous_levels else "REQUIRED"
    client = feature(request, "AuthenticationNew" if "AuthenticationNew" in request else "Authentication")
    authenticate, required = reconcile(client, own), "REQUIRED" in (client, own)
    listed = words(get_str(request, "AuthMethods", "").upper())
    methods = tuple(name for name in side.methods if name in listed and name in _METHODS)
    if authenticate and not methods:
        if required:
            known = ", ".join(listed)[:200]
            raise Refused("METHODS", f"no common authentication method; the client has {known}")
        authenticate = False
    _agree_on_encryption(request)
    return _Terms(
        authenticate,
        required,
        methods,
        number(request, "SessionDuration", TOOL_SESSION_DURATION_S, highest=SESSION_DURATION_S),
        number(request, "SessionLease", SESSION_LEASE_S, highest=SESSION_LEASE_S),
    )


def _agree_on_encryption(request: ClassAd) -> None:
    for name in ("Encryption", "Integrity"):
        if not reconcile(feature(request, name), "REQUIRED"):
            raise PeerFault("handshake", "the client does not want encryption")
    if "AES" not in (name.upper() for name in words(get_str(request, "CryptoMethods", ""))):
        raise PeerFault("handshake", "the client has no AES")


def _answer(terms: _Terms, keys: KeyPair, side: Side) -> ClassAd:
    authenticating = terms.authenticate
    return make_ad(
        [
            ("Authentication", "YES" if authenticating else "NO"),
            ("AuthRequired", False if authenticating and not terms.required else None),
            ("Encryption", "YES"),
            ("Integrity", "YES"),
            ("AuthMethodsList", ",".join(terms.methods) or None),
            ("AuthMethods", terms.methods[0] if terms.methods else None),
            ("CryptoMethods", "AES"),
            ("CryptoMethodsList", "AES"),
            ("SessionDuration", str(terms.duration_s)),
            ("SessionLease", terms.lease_s),
            ("Enact", "YES"),
            ("NegotiatedSession", True),
            ("RemoteVersion", condor_version_text(side.version)),
            ("ECDHPublicKey", keys.public_text()),
            ("TrustDomain", side.trust_domain),
            ("IssuerKeys", ",".join(sorted(side.signing_keys)) or None),
        ]
    )


def _authenticate(terms: _Terms, side: Side) -> Handshake[Caller]:
    """The method loop. Raises Refused when nothing is left and somebody must be known."""
    left = list(terms.methods)
    failures: list[str] = []
    while True:
        mask = (yield Get()).int()
        name = next((name for name in left if METHOD_BITS[name] & mask), None)
        yield Put((METHOD_BITS[name] if name else 0,))
        if name is None:
            break
        try:
            caller = yield from _METHODS[name](side)
        except MethodFailed as failed:
            failures.append(f"{name}: {failed}")
            left.remove(name)
            continue
        yield Put((0,))  # no key of the old kind follows
        return caller
    if terms.required:
        code = failures[-1].partition(":")[0] if failures else "METHODS"
        raise Refused(code, "; ".join(failures) or "the client has no method left")
    return _nobody(side)


def _token(side: Side) -> Handshake[Caller]:
    opening = security_token.read_opening((yield Get()))
    if opening is None:  # no token, but it waits for our message all the same
        yield from security_token.refuse()
        raise MethodFailed("the client gave up")
    try:
        verified = tokens.verify(opening.init, side.signing_keys, side.trust_domain, now_unix_s=side.now_unix_s)
        if opening.a != verified.subject:
            raise Refused("TOKEN", "the client names another subject than its token")
    except Refused as refused:
        yield from security_token.refuse()
        raise MethodFailed(refused.text) from None
    if not (yield from security_token.challenge(opening, verified.signature)):
        raise MethodFailed("the token is not signed by our key")
    return Caller(verified.identity, "TOKEN", verified.scopes, side.host)


def _fs(side: Side) -> Handshake[Caller]:
    account = yield from security_fs.check()
    if account is None:
        raise MethodFailed("the client did not make the directory")
    return Caller(f"{account}@{side.trust_domain}", "FS", None, side.host)


def _ssl(side: Side) -> Handshake[Caller]:
    assert side.ssl is not None  # else it is not offered
    chain = yield from security_ssl.check(side.ssl.context, require_certificate=side.ssl.require_certificate)
    return Caller(side.ssl.identity(chain) if chain else ANONYMOUS, "SSL", None, side.host)


_METHODS: Mapping[str, Callable[[Side], Handshake[Caller]]] = {"TOKEN": _token, "FS": _fs, "SSL": _ssl}


def _new_session(caller: Caller, command: int, key: bytes, terms: _Terms, side: Side) -> Session:
    granted = {level for level in set(side.levels.values()) if _grants(caller, level, side)}
    return Session(
        sid=f"{side.trust_domain}:{secrets.token_hex(12)}",
        key=key,
        identity=caller.identity,
        method=caller.method,
        commands=frozenset(number for number, level in side.levels.items() if level in granted),
        level=side.levels[command],
        expires_s=side.now_s + terms.duration_s + SESSION_SLACK_S,
        lease_s=float(terms.lease_s + SESSION_SLACK_S),
        used_s=side.now_s,
        common=granted <= side.anonymous_levels,
    )


def _grants(caller: Caller, level: str, side: Side) -> bool:
    if is_stranger(caller.identity) and level not in side.anonymous_levels:
        return False
    if caller.scopes is not None and not any(level in implied(scope) for scope in caller.scopes):
        return level in side.anonymous_levels and side.authorise(_nobody(side), level)
    return side.authorise(caller, level)


def _verdict(session: Session, allowed: bool, caller: Caller, side: Side) -> ClassAd:
    return make_ad(
        [
            ("ReturnCode", "AUTHORIZED" if allowed else "DENIED"),
            ("Sid", session.sid),
            ("User", caller.identity),
            ("TriedAuthentication", caller.method != ""),
            ("ValidCommands", ",".join(map(str, sorted(session.commands or ())))),
            ("RemoteVersion", condor_version_text(side.version)),
        ]
    )
