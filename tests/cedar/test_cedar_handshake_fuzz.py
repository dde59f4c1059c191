"""Handshakes without sockets, against peers that say anything at any moment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from classad2 import ClassAd
from hypothesis import given, settings
from hypothesis import strategies as st

from cedar import security_client, security_server, security_token, tokens
from cedar.classads import set_str
from cedar.codec import Item, Reader, encode
from cedar.crypto import KeyPair
from cedar.errors import PeerFault, Refused
from cedar.security import Get, Handshake, MethodFailed, PeerEndpoint, ProposeDirectory, Put
from cedar.sessions import Session, SessionTable

KEY = tokens.new_signing_key()
TOKEN = tokens.parse(tokens.mint(KEY, "POOL", "condor@d", "d", now_unix_s=5.0))
POINT = KeyPair().public_text()

names = st.sampled_from(
    [
        "Command",
        "AuthCommand",
        "UseSession",
        "Sid",
        "Nonce",
        "ResumeResponse",
        "Authentication",
        "AuthenticationNew",
        "Encryption",
        "Integrity",
        "AuthMethods",
        "AuthMethodsList",
        "CryptoMethods",
        "ECDHPublicKey",
        "SessionDuration",
        "SessionLease",
        "ReturnCode",
        "ValidCommands",
        "TrustDomain",
        "IssuerKeys",
        "AuthRequired",
        "RemoteVersion",
        "User",
    ]
)
words = st.sampled_from(
    [
        "YES",
        "NO",
        "REQUIRED",
        "OPTIONAL",
        "NEVER",
        "TOKEN,FS",
        "FS",
        "AES",
        POINT,
        "AUTHORIZED",
        "known",
        "d",
        "POOL",
        "60",
    ]
)
texts = st.one_of(
    words, st.text(max_size=8), st.binary(max_size=8).map(lambda raw: raw.decode("utf-8", "surrogateescape"))
)
values = st.one_of(texts, st.booleans(), st.integers(-(2**63), 2**63 - 1), st.sampled_from([5, 60010]))


def sendable(char: str) -> bool:
    """Can this come off a wire?"""
    return char != "\0" and (not 0xD800 <= ord(char) < 0xE000 or 0xDC80 <= ord(char) < 0xDD00)


def make(pairs: dict[str, Any]) -> ClassAd:
    ad = ClassAd()
    for name, value in pairs.items():
        if isinstance(value, str):
            set_str(ad, name, "".join(filter(sendable, value)))
        else:
            ad[name] = value
    return ad


ads = st.dictionaries(names, values, max_size=12).map(make)
good = st.fixed_dictionaries(
    {name: st.just("OPTIONAL") for name in ("Encryption", "Integrity")}
    | {"Command": st.just(5), "CryptoMethods": st.just("AES"), "ECDHPublicKey": st.just(POINT)}
    | {"AuthMethods": st.just("TOKEN,FS"), "Authentication": st.sampled_from(["REQUIRED", "OPTIONAL", "PREFERRED"])}
).map(make)
answers = st.fixed_dictionaries(
    {"Authentication": st.sampled_from(["YES", "NO"]), "Encryption": st.just("YES"), "CryptoMethods": st.just("AES")}
    | {"ECDHPublicKey": st.just(POINT), "AuthMethodsList": st.just("TOKEN,FS"), "TrustDomain": st.just("d")}
    | {"IssuerKeys": st.just("POOL"), "ReturnCode": texts, "Sid": texts}
).map(make)
ints = st.one_of(st.sampled_from([-1, 0, 1, 4, 20, 256, 2048, 2052, 60010]), st.integers(-(2**63), 2**63 - 1))
strings = st.sampled_from(["", "condor@d", TOKEN.init, "/tmp/FS_x", "a.b"])
items = st.one_of(ints, ads, good, answers, strings, st.binary(max_size=20), st.just(bytes(256)), st.just(bytes(20)))
openings = st.tuples(
    st.just(0), st.just(8), st.just("condor@d"), st.just(TOKEN.init), st.just(256), st.just(bytes(256))
)
bodies = st.one_of(
    st.lists(items, min_size=1, max_size=8), openings, st.tuples(good), st.tuples(answers), st.tuples(ints)
)
scripts = st.lists(bodies, max_size=8)


def _answer(action: object) -> object:
    match action:
        case PeerEndpoint():
            return "127.0.0.1", 9618, None
        case ProposeDirectory():
            return "/tmp/FS_127.0.0.1_9618_1"
        case _:
            return None


def play(handshake: Handshake[Any], script: Sequence[Sequence[Item]]) -> bool:
    """Feed the script to a handshake; True when it came to a good end. Anything but our errors escapes."""
    replies = iter(script)
    answer: Any = None
    try:
        action = next(handshake)
        while True:
            if isinstance(action, Get):
                if (items := next(replies, None)) is None:
                    return False
                answer = Reader(encode(items, keyed=False), keyed=False)
            elif isinstance(action, Put):
                encode(action.items, keyed=True)
                answer = None
            else:
                answer = _answer(action)
            action = handshake.send(answer)
    except StopIteration as end:
        return end.value is not False
    except (PeerFault, Refused, MethodFailed):
        return False
    finally:
        handshake.close()


def side(sessions: SessionTable) -> security_server.Side:
    return security_server.Side(
        levels={5: "READ", 60: "DAEMON"},
        sessions=sessions,
        methods=("TOKEN", "FS"),
        trust_domain="d",
        authorise=lambda caller, level: True,
        anonymous_levels=frozenset({"READ"}),
        admit=lambda command, session: True,
        version="24.0.1",
        now_s=0.0,
        now_unix_s=10.0,
        signing_keys={"POOL": KEY},
    )


@settings(max_examples=100, deadline=None)
@given(st.one_of(ads, good), scripts)
def test_server(first: ClassAd, script: list[Sequence[Item]]) -> None:
    sessions = SessionTable()
    sessions.add(Session("known", bytes(32), "x@d", "TOKEN", frozenset({5})))
    opening = Reader(encode([60010, first], keyed=False), keyed=False)
    play(security_server.accept(opening, side(sessions)), [*script, *[[0]] * 4])
    # Nobody got more than READ without proof.
    for session in sessions._sessions.values():
        assert session.commands == {5}


@settings(max_examples=100, deadline=None)
@given(scripts, st.sampled_from(["REQUIRED", "OPTIONAL", "NEVER"]))
def test_client(script: list[Sequence[Item]], authentication: str) -> None:
    opening = security_client.Opening(5, "<a:1>", "TOOL", "24.0.1", None, 1)
    wishes = security_client.Wishes(("TOKEN", "FS"), authentication, [TOKEN])
    client = security_client.negotiate(opening, wishes, now_s=0.0, now_unix_s=10.0)
    play(client, [*script, *[[0]] * 8])


@settings(max_examples=50, deadline=None)
@given(scripts)
def test_resuming_client(script: list[Sequence[Item]]) -> None:
    opening = security_client.Opening(5, "<a:1>", "TOOL", "24.0.1", None, 1)
    play(security_client.resume(opening, Session("s", bytes(32), "", "")), [*script, [0]])


@settings(max_examples=50, deadline=None)
@given(scripts)
def test_token_exchanges_prove_nothing_to_guessers(script: list[Sequence[Item]]) -> None:
    assert not play(security_token.prove(TOKEN), [*script, [0]])
    opening = security_token.Opening("condor@d", TOKEN.init, bytes(256))
    assert not play(security_token.challenge(opening, b"s" * 32), [*script, [0]])


def test_a_resume_nonce_of_any_bytes_is_answered() -> None:
    """Such a string, put into an ad as it is, would end the process."""
    first = make({"Command": 5, "UseSession": "YES", "Sid": "known", "ResumeResponse": True, "Nonce": "\udcff"})
    sessions = SessionTable()
    sessions.add(Session("known", bytes(32), "x@d", "TOKEN", frozenset({5})))
    assert play(security_server.accept(Reader(encode([60010, first], keyed=False), keyed=False), side(sessions)), [])
