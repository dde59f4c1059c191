"""The client's side of a security handshake: a new session, or resuming one. Generators of actions."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from typing import Any

from attrs import field, frozen
from classad2 import ClassAd

from cedar import security_fs, security_ssl, security_token
from cedar.classads import get_bool, get_str
from cedar.codec import Reader
from cedar.commands import Command, condor_version_text
from cedar.crypto import KeyPair
from cedar.errors import PeerFault, Refused
from cedar.security import (
    METHOD_BITS,
    SESSION_DURATION_S,
    SESSION_LEASE_S,
    TOOL_SESSION_DURATION_S,
    Get,
    Handshake,
    MethodFailed,
    Put,
    UseKey,
    fresh_nonce,
    make_ad,
    number,
    read_ad,
    words,
)
from cedar.sessions import Session
from cedar.tokens import Token, choose, why_none

MAX_COMMANDS_CHARS = 65_536
_NOT_OFFERED = "the server does not offer it"


@frozen
class Opening:
    """What a client says of itself, whichever way the session comes about."""

    command: int
    connect_address: str
    subsystem: str
    version: str
    own_address: str | None
    pid: int


# --- a new session ---


@frozen
class Wishes:
    """How a new session may come about.

    tls makes a context for SSL, and anonymous_tls one for SCITOKENS, which shows no certificate; server_host is whose
    certificate the server must have; scitoken gives the token. The three may raise MethodFailed.
    """

    methods: tuple[str, ...]
    authentication: str
    tokens: Sequence[Token]
    trust_domain: str | None = None
    tls: Callable[[], ssl.SSLContext] | None = None
    anonymous_tls: Callable[[], ssl.SSLContext] | None = None
    server_host: str = ""
    scitoken: Callable[[], str] | None = field(default=None, repr=False)


def negotiate(opening: Opening, wishes: Wishes, *, now_s: float, now_unix_s: float) -> Handshake[Session]:
    """A new session, keyed; the stream is ready for the payload.

    Raises Refused when the server says no, PeerFault("handshake") when it wants less security than we do.
    """
    keys = KeyPair()
    yield Put((int(Command.AUTHENTICATE), _request(opening, wishes, keys)))
    answer = read_ad((yield from _first_answer(opening, wishes)))
    authenticated = _check_answer(answer, wishes)
    method = ""
    if authenticated:
        method = yield from _authenticate(answer, wishes, now_unix_s)
    key = keys.session_key(get_str(answer, "ECDHPublicKey"))
    yield UseKey(key)
    verdict = read_ad((yield Get()))
    if (code := get_str(verdict, "ReturnCode", "")) != "AUTHORIZED":
        raise Refused(code or "DENIED", f"the server denied command {opening.command}")
    return _session(verdict, answer, key, method, now_s)


def _first_answer(opening: Opening, wishes: Wishes) -> Handshake[Reader]:
    """Servers close without a word when there is no common ground."""
    try:
        reader: Reader = yield Get()
    except PeerFault as fault:
        if fault.code == "closed":
            methods = ", ".join(wishes.methods) or "none"
            told = f"it closed the connection at our offer (authentication {wishes.authentication}, methods {methods}):"
            raise PeerFault("closed", f"{told} none is accepted there, or command {opening.command} is not") from fault
        raise
    return reader


def _request(opening: Opening, wishes: Wishes, keys: KeyPair) -> ClassAd:
    duration = TOOL_SESSION_DURATION_S if opening.own_address is None else SESSION_DURATION_S
    features = dict.fromkeys(("Encryption", "Integrity"), "REQUIRED")
    features |= dict.fromkeys(("Authentication", "AuthenticationNew"), wishes.authentication)
    return make_ad(
        [
            *_command(opening),
            ("AuthMethods", ",".join(wishes.methods) or None),
            ("CryptoMethods", "AES"),
            *features.items(),
            ("OutgoingNegotiation", "REQUIRED"),
            ("Enact", "NO"),
            ("NewSession", "YES"),
            ("NegotiatedSession", True),
            ("Subsystem", opening.subsystem),
            ("ServerPid", opening.pid),
            ("SessionDuration", str(duration)),
            ("SessionLease", SESSION_LEASE_S),
            ("TrustDomain", wishes.trust_domain),
            ("IssuerKeys", ",".join(dict.fromkeys(token.claims.key_id for token in wishes.tokens)) or None),
            ("ECDHPublicKey", keys.public_text()),
        ]
    )


def _command(opening: Opening) -> list[tuple[str, Any]]:
    return [
        ("Command", opening.command),
        ("RemoteVersion", condor_version_text(opening.version)),
        ("ConnectSinful", opening.connect_address),
        ("ServerCommandSock", opening.own_address),
    ]


def _check_answer(answer: ClassAd, wishes: Wishes) -> bool:
    """Whether authentication follows. Raises PeerFault when the server wants less than we require."""
    cipher, encrypts = get_str(answer, "CryptoMethods", ""), get_str(answer, "Encryption", "NO")
    if cipher.upper() != "AES" or encrypts.upper() != "YES":
        raise PeerFault("handshake", "the server does not encrypt with AES")
    authenticated = get_str(answer, "Authentication", "NO").upper() == "YES"
    if wishes.authentication == "REQUIRED" and not authenticated:
        raise PeerFault("handshake", "the server does not want to authenticate")
    if wishes.authentication == "NEVER" and authenticated:
        raise PeerFault("handshake", "the server wants to authenticate")
    return authenticated


def _authenticate(answer: ClassAd, wishes: Wishes, now_unix_s: float) -> Handshake[str]:
    """The method that succeeded; "" when none did and none had to."""
    offered = words(get_str(answer, "AuthMethodsList", get_str(answer, "AuthMethods", "")).upper())
    proofs, failures = _proofs(answer, offered, wishes, now_unix_s)
    while True:
        yield Put((sum(METHOD_BITS[name] for name in proofs),))
        chosen = yield from _chosen(failures)
        if chosen == 0:
            break
        name = next((name for name in proofs if METHOD_BITS[name] == chosen), None)
        if name is None:
            raise PeerFault("handshake", "the server chose a method that was not offered")
        try:
            yield from proofs.pop(name)
        except MethodFailed as failed:
            failures[name] = str(failed)
            continue
        yield from _expect_no_old_key(name, failures)
        return name
    if wishes.authentication != "REQUIRED" and not get_bool(answer, "AuthRequired", True):
        return ""
    raise _no_method(failures, offered)


def _proofs(
    answer: ClassAd, offered: list[str], wishes: Wishes, now_unix_s: float
) -> tuple[dict[str, Handshake[None]], dict[str, str]]:
    """What there is to prove oneself by, in our order, and why the other methods cannot be tried."""
    proofs: dict[str, Handshake[None]] = {}
    failures: dict[str, str] = {}
    for name in wishes.methods:
        if name not in offered:
            failures[name] = _NOT_OFFERED
            continue
        try:
            proofs[name] = _proof(name, answer, wishes, now_unix_s)
        except MethodFailed as failed:
            failures[name] = str(failed)
    return proofs, failures


def _proof(name: str, answer: ClassAd, wishes: Wishes, now_unix_s: float) -> Handshake[None]:
    match name:
        case "TOKEN":
            return security_token.prove(_token(answer, wishes, now_unix_s))
        case "SSL" if wishes.tls is not None:
            return security_ssl.prove(wishes.tls, wishes.server_host)
        case "SCITOKENS" if wishes.anonymous_tls is not None and wishes.scitoken is not None:
            return security_ssl.prove(wishes.anonymous_tls, wishes.server_host, wishes.scitoken())
        case "FS":
            return security_fs.prove()
    raise MethodFailed("it is not set up")


def _token(answer: ClassAd, wishes: Wishes, now_unix_s: float) -> Token:
    issuer, key_ids = get_str(answer, "TrustDomain", ""), words(get_str(answer, "IssuerKeys", ""))
    token = choose(wishes.tokens, issuer, key_ids, now_unix_s=now_unix_s)
    if token is None:
        raise MethodFailed(why_none(wishes.tokens, issuer, key_ids, now_unix_s=now_unix_s))
    return token


def _chosen(failures: dict[str, str]) -> Handshake[int]:
    try:
        bit: int = (yield Get()).int()
    except PeerFault as fault:  # some servers close instead of saying 0
        if fault.code == "closed" and failures:
            raise _no_method(failures, []) from fault
        raise
    return bit


def _no_method(failures: dict[str, str], offered: list[str]) -> Refused:
    """Every method with its reason. The code is a method that could have been, or METHODS."""
    possible = [name for name, reason in failures.items() if reason != _NOT_OFFERED]
    code = "TOKEN" if "TOKEN" in possible else next(iter(possible), "METHODS")
    told = [f"{name}: {reason}" for name, reason in failures.items()] or ["none is set"]
    if code == "METHODS":
        told.append(f"the server offers {', '.join(offered)[:200] or 'none'}")
    return Refused(code, f"no authentication method succeeded: {'; '.join(told)}")


def _expect_no_old_key(name: str, failures: dict[str, str]) -> Handshake[None]:
    """The server's word after a method. When the last step failed it closes, or is silent."""
    try:
        has_key = (yield Get()).int()
    except PeerFault as fault:
        if fault.code in ("closed", "timeout"):
            raise _no_method(failures | {name: "the server did not accept it, without a word"}, []) from fault
        raise
    if has_key != 0:
        raise PeerFault("handshake", "the server wants the old key exchange")


def _session(verdict: ClassAd, answer: ClassAd, key: bytes, method: str, now_s: float) -> Session:
    text = get_str(verdict, "ValidCommands", "")[:MAX_COMMANDS_CHARS]
    numbers = (word for word in words(text) if word.isascii() and word.isdigit() and len(word) < 10)
    duration_s = number(answer, "SessionDuration", TOOL_SESSION_DURATION_S, highest=SESSION_DURATION_S)
    return Session(
        sid=get_str(verdict, "Sid"),
        key=key,
        identity=security_token.SERVER_IDENTITY if method == "TOKEN" else "",
        method=method,
        commands=frozenset(map(int, numbers)),
        expires_s=now_s + duration_s,
        lease_s=float(number(answer, "SessionLease", SESSION_LEASE_S, highest=SESSION_LEASE_S)),
        used_s=now_s,
    )


# --- resuming ---


def resume(opening: Opening, session: Session, *, want_response: bool = True) -> Handshake[None]:
    """Go on with a known session. Raises Refused("SID_NOT_FOUND" | "DENIED" | ...) if the server does not."""
    request = make_ad(
        [
            *_command(opening),
            ("UseSession", "YES"),
            ("Sid", session.sid),
            ("CryptoMethods", "AES"),
            ("Nonce", fresh_nonce()),
            ("ResumeResponse", want_response),
        ]
    )
    yield Put((int(Command.AUTHENTICATE), request))
    if want_response:
        _check_resumed(read_ad((yield Get())))
    yield UseKey(session.key)


def _check_resumed(answer: ClassAd) -> None:
    """The answer's Nonce is the server's own and says nothing about ours."""
    code = get_str(answer, "ReturnCode", "")
    if code != "AUTHORIZED":
        raise Refused(code or "DENIED", "the server does not resume the session")
