"""Addresses, claim ids, sessions and tokens: values in, values out."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cedar import tokens
from cedar.claims import SUBMIT_SIDE, ClaimId, filetransfer_session
from cedar.errors import PeerFault, Refused
from cedar.security import reconcile
from cedar.sessions import Session, SessionTable
from cedar.sinful import Sinful

texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=10)


@given(
    st.integers(0, 65535),
    st.dictionaries(texts, texts, max_size=4),
    st.sampled_from(["h.example", "::1", "10.0.0.1"]),
)
def test_addresses_round_trip(port: int, params: dict[str, str], host: str) -> None:
    address = Sinful(host, port, params)
    assert Sinful.parse(str(address)) == address


@given(st.text(st.sampled_from("<>?&;=%[]:.#a1 \n"), max_size=20))
def test_any_text_is_an_address_or_a_fault(text: str) -> None:
    try:
        Sinful.parse(text)
    except PeerFault as fault:
        assert fault.code == "address"  # noqa: PT017 - either is right


def test_stock_addresses() -> None:
    text = "<127.0.0.1:9618?addrs=127.0.0.1-9618&alias=vm.x&noUDP&sock=schedd_12_34>"
    address = Sinful.parse(text)
    assert (address.sock, address.params["noUDP"]) == ("schedd_12_34", "")
    assert str(address) == text
    for wrong in (
        "",
        "<a:1>x",
        "<a:99999>",
        "<a>",
        "a:1",
        "<a:1?b c>",
        "<a:1\n>",
        "<a:1?b=%00>",
        "<" + "a" * 9000 + ":1>",
    ):
        with pytest.raises(PeerFault):
            Sinful.parse(wrong)


def test_minted_claims_and_their_sessions() -> None:
    claim = ClaimId.mint("<127.0.0.1:1?noUDP>", 1700000000, 3, "24.0.1")
    again = ClaimId.parse(claim.text)
    assert again == claim
    assert claim.public == "<127.0.0.1:1?noUDP>#1700000000#3#..."
    session = claim.session(SUBMIT_SIDE)
    assert (session.sid, session.key, session.level) == (claim.session_id, claim.key(), "DAEMON")
    transfer = filetransfer_session(claim)
    assert (transfer.sid, transfer.key) == (f"filetrans.{claim.session_id}", claim.key())
    for shown in (repr(claim), repr(session), str(session), claim.public):
        assert claim.secret not in shown
        assert repr(session.key) not in shown
    parts = ClaimId.from_parts(claim.session_id, claim.info, claim.secret)
    assert parts == claim
    assert ClaimId.mint("<a:1>", 1, 1, "1").secret != ClaimId.mint("<a:1>", 1, 1, "1").secret


@pytest.mark.parametrize(
    "text", ["", "x", "#", "a#", "#b", "a#[x]", "a#[x", "a#x]y", "a#b\n", "a#b\0", "a#" + "b" * 20_000]
)
def test_what_is_no_claim_id_is_a_fault(text: str) -> None:
    with pytest.raises(PeerFault):
        ClaimId.parse(text)


def session(sid: str, **more: object) -> Session:
    return Session(sid, bytes(32), "x", "TOKEN", **more)  # type: ignore[arg-type]


def test_sessions_end_by_time_and_by_disuse() -> None:
    table = SessionTable(limit=3)
    table.add(session("for ever"))
    table.add(session("ten", expires_s=10.0))
    table.add(session("idle", lease_s=5.0, used_s=0.0))
    with pytest.raises(Refused):
        table.add(session("too many"))
    assert table.get("idle", 4.0) is not None
    assert table.get("idle", 8.0) is not None  # used at 4
    assert table.get("ten", 9.9) is not None
    assert table.get("ten", 10.0) is None
    assert table.get("nothing", 0.0) is None
    assert table.expire(13.0) == 1
    assert len(table) == 1
    table.drop("for ever")
    table.drop("for ever")
    assert len(table) == 0


def test_levels_imply_others() -> None:
    assert session("a", level="DAEMON").permits(5, "READ")
    assert session("a", level="DAEMON").permits(5, "WRITE")
    assert not session("a", level="READ").permits(5, "WRITE")
    assert not session("a", level="DAEMON").permits(5, "ADMINISTRATOR")
    assert not session("a", level="DAEMON", commands=frozenset({4})).permits(5, "READ")
    assert session("a", commands=frozenset({5})).permits(5, "ADMINISTRATOR")


def test_features_are_reconciled_by_the_table() -> None:
    order = ("REQUIRED", "PREFERRED", "OPTIONAL", "NEVER")
    rows = {"REQUIRED": "YYYx", "PREFERRED": "YYYN", "OPTIONAL": "YYNN", "NEVER": "xNNN"}
    for client, row in rows.items():
        for server, wanted in zip(order, row, strict=True):
            if wanted == "x":
                with pytest.raises(PeerFault):
                    reconcile(client, server)
            else:
                assert reconcile(client, server) is (wanted == "Y")
    with pytest.raises(PeerFault):
        reconcile("MAYBE", "REQUIRED")


KEY = tokens.new_signing_key()


def test_keys_have_no_nul_inside() -> None:
    for _ in range(20):
        key = tokens.new_signing_key()
        assert b"\0" not in tokens._scrambled(key)


def test_minted_tokens_are_read_and_chosen() -> None:
    text = tokens.mint(KEY, "POOL", "condor@d", "d", ("READ", "WRITE"), 60.0, now_unix_s=1000.0)
    token = tokens.parse(text)
    assert token.claims.scopes == ("READ", "WRITE")
    assert token.claims.expires_at == 1060.0
    assert token.signature == tokens.sign(KEY, "POOL", token.init)
    assert tokens.choose([token], "d", ["POOL"], now_unix_s=1059.0) is token
    assert tokens.choose([token], "d", ["POOL"], now_unix_s=1060.0) is None
    assert tokens.choose([token], "e", ["POOL"], now_unix_s=0.0) is None
    assert tokens.choose([token], "d", ["OTHER"], now_unix_s=0.0) is None
    assert text.rpartition(".")[2] not in repr(token)
    verified = tokens.verify(token.init, {"POOL": KEY}, "d", now_unix_s=1059.0)
    assert (verified.identity, verified.scopes) == ("condor@d", ("READ", "WRITE"))
    with pytest.raises(Refused, match="expired"):
        tokens.verify(token.init, {"POOL": KEY}, "d", now_unix_s=1060.0)


def init(header: object, payload: object) -> str:
    return ".".join(
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in (header, payload)
    )


GOOD_HEADER = {"alg": "HS256", "kid": "POOL"}
GOOD = {"sub": "a@d", "iss": "d", "jti": "1", "iat": 5}


@pytest.mark.parametrize(
    ("header", "payload"),
    [
        (GOOD_HEADER | {"alg": "none"}, GOOD), (GOOD_HEADER | {"alg": None}, GOOD), (GOOD_HEADER | {"kid": "X"}, GOOD),
        (GOOD_HEADER | {"kid": "../POOL"}, GOOD), (GOOD_HEADER, GOOD | {"iss": "other"}),
        (GOOD_HEADER, GOOD | {"sub": ""}),
        (GOOD_HEADER, GOOD | {"sub": None}), (GOOD_HEADER, GOOD | {"jti": None}), (GOOD_HEADER, GOOD | {"iat": None}),
        (GOOD_HEADER, GOOD | {"sub": "a\nb"}), (GOOD_HEADER, GOOD | {"exp": "soon"}), (GOOD_HEADER, GOOD | {"exp": 1}),
        (GOOD_HEADER, GOOD | {"exp": True}), (GOOD_HEADER, GOOD | {"exp": 10**400}), ([], GOOD), (GOOD_HEADER, "x"),
        (GOOD_HEADER, GOOD | {"exp": float("nan")}), (GOOD_HEADER, GOOD | {"iss": ["d"]}),
    ],
)  # fmt: skip
def test_wrong_tokens_are_refused(header: object, payload: object) -> None:
    tokens.verify(init(GOOD_HEADER, GOOD), {"POOL": KEY}, "d", now_unix_s=10.0)
    with pytest.raises(Refused) as caught:
        tokens.verify(init(header, payload), {"POOL": KEY}, "d", now_unix_s=10.0)
    assert caught.value.code == "TOKEN"


@given(st.text(max_size=40))
def test_any_text_is_a_token_or_refused(text: str) -> None:
    with pytest.raises(Refused):
        tokens.verify(text, {"POOL": KEY}, "d", now_unix_s=10.0)
    with pytest.raises(tokens.BadToken):
        tokens.parse(text)


def test_deeply_nested_tokens_are_refused() -> None:
    body = base64.urlsafe_b64encode(b"[" * 10_000).rstrip(b"=").decode()
    with pytest.raises(Refused):
        tokens.verify(f"{body}.{body}", {"POOL": KEY}, "d", now_unix_s=10.0)


def test_directories_are_read_without_surprises(tmp_path: Path) -> None:
    good = tokens.mint(KEY, "POOL", "a@d", "d", now_unix_s=1.0)
    (tmp_path / "a").write_text(f"# comment\n\nnonsense\n{good}\n")
    (tmp_path / ".hidden").write_text(good)
    (tmp_path / "large").write_bytes(b"x" * (tokens.MAX_FILE_BYTES + 1))
    (tmp_path / "bytes").write_bytes(os.urandom(100))
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    assert [token.claims.subject for token in tokens.load_tokens(tmp_path)] == ["a@d"]
    assert sorted(tokens.load_signing_keys(tmp_path)) == ["a", "bytes"]
    assert tokens.load_tokens(tmp_path / "missing") == []
