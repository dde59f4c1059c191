"""Levels and lists at the startd's port."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cedar.sessions import implied
from pilot.peers import parse
from pilot.settings import Settings
from startd.authorisation import LEVELS, Rules

OWN, BOB, NOBODY = "pilot@site", "bob@pool", "unauthenticated@unmapped"
HERE = "192.0.2.1"


def granted(rules: Rules, identity: str, host: str = HERE) -> set[str]:
    return {level for level in LEVELS if rules.permits(level, identity, host)}


def rules(**lists: str) -> Rules:
    return Rules.of(attrs.evolve(Settings(), **{name: parse(text) for name, text in lists.items()}), (OWN,))


def test_unset_everybody_looks_and_our_own_account_commands() -> None:
    assert granted(rules(), NOBODY) == {"READ"}
    assert granted(rules(), BOB) == {"READ"}
    assert granted(rules(), OWN) == {"READ", "WRITE", "ADMINISTRATOR"}


@pytest.mark.parametrize(
    ("lists", "expected"),
    [
        ({"allow_write": BOB}, {"READ", "WRITE"}),
        ({"allow_administrator": BOB}, {"READ", "WRITE", "ADMINISTRATOR"}),
        ({"allow_daemon": f"{BOB}/192.0.2.*"}, {"READ", "WRITE", "DAEMON"}),
        ({"allow_daemon": f"{BOB}/198.51.100.*"}, {"READ"}),
        ({"allow_read": OWN}, set()),
        ({"allow_read": OWN, "allow_write": BOB}, {"READ", "WRITE"}),
        ({"allow_administrator": BOB, "deny_administrator": HERE}, {"READ"}),
        ({"allow_administrator": BOB, "allow_write": BOB, "deny_administrator": BOB}, {"READ", "WRITE"}),
        ({"allow_administrator": BOB, "deny_write": "*"}, {"READ"}),
        ({"allow_administrator": BOB, "allow_daemon": BOB, "deny_read": BOB}, set()),
        ({"deny_daemon": BOB}, {"READ"}),
    ],
)
def test_lists(lists: dict[str, str], expected: set[str]) -> None:
    assert granted(rules(**lists), BOB) == expected


def test_a_list_stands_instead_of_the_default() -> None:
    assert granted(rules(allow_administrator=BOB, allow_write=BOB), OWN) == {"READ"}


names = st.sampled_from(["*", OWN, BOB, "bob@*", "192.0.2.*", "203.0.113.0/24"])
lists = st.dictionaries(
    st.sampled_from([f"{verb}_{level.lower()}" for verb in ("allow", "deny") for level in LEVELS]),
    st.lists(names, max_size=2).map(" ".join),
)


@given(lists, st.sampled_from([OWN, BOB, NOBODY]))
def test_who_has_a_level_has_what_it_includes_and_denial_wins(lists: dict[str, str], identity: str) -> None:
    made = rules(**lists)
    for level in granted(made, identity):
        assert implied(level) & set(LEVELS) <= granted(made, identity)
        denied = lists.get(f"deny_{level.lower()}", "")
        assert not any(peers.match(identity, HERE) for peers in parse(denied))
