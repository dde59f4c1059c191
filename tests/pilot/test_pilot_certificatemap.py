"""CERTIFICATE_MAPFILE."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot.certificatemap import MAX_LINES, MAX_NAME_CHARS, BadMap, parse

ALICE = "/DC=org/DC=example/CN=Alice A"
MAP = r"""
# comment
SSL "^/DC=org/DC=example/CN=(Al[a-z]*) A$" \1@example
FS (.*) \1
ssl /DC=org/DC=other/CN=([a-z]+) \1
SSL "^/CN=say \"hi\"$" quoted@example
"""
HASHED = r"""
SSL "/DC=org/DC=example/CN=Alice A" alice@example
SSL /^\/DC=org\/.*CN=(bob|BOB)$/i bob@example
"""


@pytest.mark.parametrize(
    ("name", "user"),
    [
        (ALICE, "Alice@example"),
        (ALICE + "/CN=Mallory", None),
        ("/DC=org/DC=other/CN=bob", "bob"),
        ('/CN=say "hi"', "quoted@example"),
        ("/CN=nobody", None),
        ("/DC=org/DC=other/CN=" + "b" * MAX_NAME_CHARS, None),
    ],
)
def test_expressions(name: str, user: str | None) -> None:
    assert parse(MAP).user("SSL", name) == user


def test_whole_names() -> None:
    found = parse(HASHED, assume_hash_keys=True)
    assert found.user("SSL", ALICE) == "alice@example"
    assert found.user("SSL", ALICE + "x") is None
    assert found.user("SSL", "/DC=org/CN=Bob") == "bob@example"
    assert found.user("FS", ALICE) is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("SSL only-two", "line 1: not METHOD NAME USER"),
        ("SSL a b c", "line 1: not METHOD NAME USER"),
        ('SSL "unfinished b', "line 1: not METHOD NAME USER"),
        ("\nSSL ( b", "line 2: not a regular expression"),
        ("@include /etc/passwd", "line 1: @include is not done here"),
        ("SSL a b\n" * (MAX_LINES + 1), "more than"),
    ],
)
def test_a_map_with_one_bad_line_is_no_map(text: str, told: str) -> None:
    with pytest.raises(BadMap) as caught:
        parse(text)
    assert told in str(caught.value)


@given(st.text(alphabet='SL /\\"()ab*1\n#@i', max_size=60), st.text(max_size=10), st.booleans())
def test_no_text_is_too_strange(text: str, name: str, hashed: bool) -> None:
    try:
        found = parse(text, assume_hash_keys=hashed)
    except BadMap:
        return
    assert found.user("S", name) != ""
