"""What a condor_master leaves in the environment: read as a whole, or refused."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cedar.errors import PeerFault
from cedar.inheritance import MAX_CHARS, Endpoint, parse, usable

PARENT = "<127.0.0.1:9618?addrs=127.0.0.1-9618&alias=node.example&noUDP&sock=master_1_a>"
# As seen: a TCP socket with its state, an unknown peer, no cipher.
TCP = "9*4*0*0*0*0***0*<0.0.0.0:0>*0*0*0*0*0*0*0*0*"
INFO = '[Encryption="YES";Integrity="YES";ValidCommands="60008,60043";CryptoMethodsList="AES.BLOWFISH.3DES"]'
SESSION = f"SessionKey:abc#{INFO}f00"


def test_with_a_port_of_its_own() -> None:
    found = parse(f"4711 {PARENT} 0 1 {TCP} 2 10*4* 0", f" {SESSION} FamilySessionKey:family:d#{INFO}baa")
    assert (found.parent_pid, str(found.parent)) == (4711, PARENT)
    assert (found.listeners, found.unwanted, found.endpoint) == ((9,), (10,), None)
    assert found.session is not None
    assert (found.session.session_id, found.session.secret) == ("abc", "f00")
    assert found.family is not None
    assert found.family.session_id == "family:d"


def test_behind_a_shared_port() -> None:
    found = parse(f"4711 {PARENT} 0 SharedPort:/run/lock/startd_1_2*7*4*0*0*0*0***0*<0.0.0.0:0>* 0", "")
    assert found.endpoint == Endpoint("startd_1_2", 7)
    assert (found.listeners, found.session, found.family) == ((), None, None)


def test_sockets_to_go_on_with_are_wanted_by_nobody_here() -> None:
    assert parse(f"1 {PARENT} 1 5*x* 2 6*x* 0 0", "").unwanted == (5, 6)


@pytest.mark.parametrize(
    ("public", "private"),
    [
        ("", ""),
        ("0 <127.0.0.1:1> 0 0", ""),
        (f"-3 {PARENT} 0 0", ""),
        ("7", ""),
        ("7 0 0", ""),
        ("7 node.example 0 0", ""),
        (f"7 {PARENT} 0", ""),
        (f"7 {PARENT} 0 1 nine* 0", ""),
        (f"7 {PARENT} 0 1 9 0", ""),
        (f"7 {PARENT} 0 3 9* 0", ""),
        (f"7 {PARENT} 0 1 9*", ""),
        (f"7 {PARENT} 0 SharedPort:7* 0", ""),
        (f"7 {PARENT} 0 SharedPort:/run/a&b*7* 0", ""),
        (f"7 {PARENT} 0 " + "1 9* " * 40 + "0", ""),
        (f"7 {PARENT} 0 0", "SessionKey:nothing"),
        (f"7 {PARENT} 0 0", "x" * (MAX_CHARS + 1)),
    ],
)
def test_anything_else_is_refused(public: str, private: str) -> None:
    with pytest.raises(PeerFault) as caught:
        parse(public, private)
    assert caught.value.code == "inherit"
    assert "nothing" not in str(caught.value)


@given(st.lists(st.sampled_from(["7", PARENT, "0", "1", "2", TCP, "SharedPort:/a*3*", "SharedPort:", "", "9*"])))
def test_any_order_of_words_is_read_or_refused(words: list[str]) -> None:
    with suppress(PeerFault):
        found = parse(" ".join(words), SESSION)
        assert found.parent_pid == 7
        assert str(found.parent) == PARENT
        assert set((*found.listeners, *found.unwanted)) <= {9}


@pytest.mark.parametrize(
    ("info", "fits"),
    [
        (INFO, True),
        ('[Encryption="YES";CryptoMethods="AES"]', True),
        ('[Encryption="NO";CryptoMethods="AES"]', False),
        ('[Encryption="YES";CryptoMethods="BLOWFISH"]', False),
        ("", False),
    ],
)
def test_only_a_session_that_encrypts_with_aes_is_used(info: str, fits: bool) -> None:
    claim = parse(f"7 {PARENT} 0 0", f"SessionKey:abc#{info}f00").session
    assert claim is not None
    session = usable(claim, "condor@parent")
    assert (session is not None) is fits
    if session is not None:
        assert session.permits(1, "ADMINISTRATOR")
        assert not session.permits(1, "DAEMON")
