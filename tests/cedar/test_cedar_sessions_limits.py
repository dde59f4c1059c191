"""Strangers' sessions are few; a claim's always finds room."""

from __future__ import annotations

from cedar.sessions import ANONYMOUS, MAX_ANONYMOUS, Session, SessionTable


def session(sid: str, identity: str) -> Session:
    return Session(sid, b"k" * 32, identity, "", None, "READ", expires_s=1000.0)


def test_a_flood_of_strangers_leaves_room_for_claims() -> None:
    table = SessionTable(limit=MAX_ANONYMOUS + 2)
    table.add(session("claim", "submit-side@matchsession"))
    for number in range(3 * MAX_ANONYMOUS):
        table.add(session(f"s{number}", (ANONYMOUS, "ssl@unmapped")[number % 2]))
    assert len(table) == MAX_ANONYMOUS + 1
    assert table.get("s0", 0.0) is None, "the oldest made room"
    assert table.get(f"s{3 * MAX_ANONYMOUS - 1}", 0.0) is not None
    table.add(session("another claim", "submit-side@matchsession"))
    assert table.get("claim", 0.0) is not None


def test_who_may_do_no_more_than_a_stranger_crowds_out_nobody_either() -> None:
    table = SessionTable(limit=MAX_ANONYMOUS + 2)
    for number in range(3 * MAX_ANONYMOUS):
        known = session(f"s{number}", "alice@node")
        known.common = True
        table.add(known)
    assert len(table) == MAX_ANONYMOUS
    table.add(session("claim", "submit-side@matchsession"))


def test_strangers_that_are_over_are_forgotten_twice_safely() -> None:
    table = SessionTable()
    for number in range(MAX_ANONYMOUS):
        table.add(session(f"s{number}", ANONYMOUS))
    assert table.expire(2000.0) == MAX_ANONYMOUS
    table.add(session("new", ANONYMOUS))
    assert len(table) == 1
