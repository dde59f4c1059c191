"""What the far side of stage-in and stage-out says about the sandbox (manifests, refusals): a CallFailed, or
rows that have been checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pilot.farside import CallFailed, parse_object
from starter.entries import Rows, checked_name, pair_of, refusal_in

SEEDS = (
    b'{"entries": [["out", "file", 420, 3, 1700000000000000000], ["dir", "dir", 493, 4096, 0]]}',
    b'{"missing": [["gone", "No such file or directory"]]}',
    b'{"failed": {"step": "write", "errno": 28, "text": "No space left on device", "name": "x"}}',
    b'{"entries": [["../x", "file", 0, 0, 0]]}',
)


def once(data: bytes) -> None:
    """Read `data` as a frame of each kind that staging expects."""
    try:
        frame = parse_object(data)
    except CallFailed:
        return
    rows = Rows(10, 1000)
    for read in (refusal_in, lambda answer: rows.add(answer.get("entries")), _missing):
        words = refused(read, frame)
        assert words.isprintable(), words
    assert len(rows.entries) <= 10
    for entry in rows.entries:
        checked_name(entry.name)
        assert 0 <= entry.size < 1 << 63


def refused(read: Callable[[dict[str, Any]], object], frame: dict[str, Any]) -> str:
    """The words of the refusal, if it is one."""
    try:
        read(frame)
    except CallFailed as refusal:
        return str(refusal)
    return ""


def _missing(frame: dict[str, Any]) -> None:
    missing = frame.get("missing")
    for row in missing if isinstance(missing, list) else ():
        _name, why = pair_of(row)
        assert why.isprintable()
