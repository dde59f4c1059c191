"""Entries of ALLOW_* and DENY_*."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot.configuration import load
from pilot.peers import exactly, parse
from pilot.settings import SettingsError

ALICE = "alice@pool.example"


@pytest.mark.parametrize(
    ("text", "identity", "host", "expected"),
    [
        ("*", ALICE, "192.0.2.1", True),
        ("*", ALICE, "", True),
        ("*/*", "unauthenticated@unmapped", "::1", True),
        (ALICE, ALICE, "192.0.2.1", True),
        (ALICE, "malice@pool.example", "192.0.2.1", False),
        (ALICE, "alice@pool.example.org", "192.0.2.1", False),
        (ALICE, "Alice@pool.example", "192.0.2.1", False),
        ("alice@pool-example", ALICE, "192.0.2.1", False),
        ("alice@*", ALICE, "192.0.2.1", True),
        ("*@pool.example", ALICE, "192.0.2.1", True),
        ("*@pool.example", "x@elsewhere", "192.0.2.1", False),
        ("192.0.2.1", ALICE, "192.0.2.1", True),
        ("192.0.2.1", ALICE, "192.0.2.10", False),
        ("192.0.2.1", ALICE, "::ffff:192.0.2.1", True),
        ("192.0.2.*", ALICE, "192.0.2.77", True),
        ("192.0.*", ALICE, "192.1.2.77", False),
        ("192.0.2.0/24", ALICE, "192.0.2.77", True),
        ("192.0.2.0/255.255.255.0", ALICE, "192.0.3.77", False),
        ("2001:db8::/32", ALICE, "2001:db8::7", True),
        ("[::1]", ALICE, "::1", True),
        ("localhost", ALICE, "127.9.9.9", True),
        ("localhost", ALICE, "192.0.2.1", False),
        ("192.0.2.1", ALICE, "no address", False),
        (f"{ALICE}/192.0.2.*", ALICE, "192.0.2.7", True),
        (f"{ALICE}/192.0.2.*", ALICE, "192.0.3.7", False),
        (f"{ALICE}/192.0.2.*", "bob@pool.example", "192.0.2.7", False),
        (f"{ALICE}/10.0.0.0/8", ALICE, "10.1.2.3", True),
        (f"*/10.0.0.0/8, {ALICE}", ALICE, "192.0.2.7", True),
    ],
)
def test_who_is_meant(text: str, identity: str, host: str, expected: bool) -> None:
    assert any(peers.match(identity, host) for peers in parse(text)) is expected


@pytest.mark.parametrize(
    "text", ["node.example", "*.example", "alice/10.0.0.1", "a@b@c", "10.0.0.0/99", "+group", "999.*", "/"]
)
def test_what_cannot_be_meant_is_refused_with_the_entry(text: str) -> None:
    with pytest.raises(ValueError, match=r"^.+: "):
        parse(f"{ALICE} {text}")
    with pytest.raises(SettingsError) as caught:
        load(None, {"_CONDOR_ALLOW_WRITE": text})
    assert "ALLOW_WRITE" in str(caught.value)
    assert "user@domain/host" in str(caught.value)


@given(st.text(max_size=30), st.text(max_size=20), st.text(max_size=20))
def test_no_text_is_too_strange(text: str, identity: str, host: str) -> None:
    try:
        found = parse(text)
    except ValueError:
        return
    for peers in found:
        assert peers.match(identity, host) in (True, False)


def test_a_name_is_no_pattern() -> None:
    assert exactly("a*@d").match("a*@d", "")
    assert not exactly("a*@d").match("ab@d", "")
