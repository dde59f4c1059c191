"""docs/hold-codes.md against the code and the tests: every code that we hold with has a row, every row a test."""

from __future__ import annotations

import re
from pathlib import Path

from cedar.commands import HoldCode

ROOT = Path(__file__).resolve().parents[2]
HOLDING = ("starter", "pool")
_ROW = re.compile(r"^\| (\d+) \| ([^|]+) \| .* \| (test_\w+) \|$")
_LITERAL = re.compile(r"\bHold\((\d+),")


def rows() -> list[tuple[int, str, str]]:
    """Code, subcode and test of each row."""
    lines = (ROOT / "docs" / "hold-codes.md").read_text().splitlines()
    return [(int(m[1]), m[2].strip(), m[3]) for line in lines if (m := _ROW.match(line))]


def sources() -> str:
    return "\n".join(path.read_text() for folder in HOLDING for path in sorted((ROOT / folder).rglob("*.py")))


def codes_in(text: str) -> set[int]:
    """Those that are named, and those that stand there as a number."""
    named = {int(HoldCode[name]) for name in re.findall(r"\bHoldCode\.([A-Z_]+)\b", text)}
    return named | {int(number) for number in _LITERAL.findall(text)}


def test_the_page_has_every_code_that_we_hold_with_and_no_other() -> None:
    assert {code for code, _, _ in rows()} == codes_in(sources())


def test_each_row_has_a_test() -> None:
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    there = set(re.findall(r"def (test_\w+)\(", tests))
    assert rows()
    assert {name for _, _, name in rows()} - there == set()


def test_a_row_is_told_from_the_others() -> None:
    seen = [line for line in (ROOT / "docs" / "hold-codes.md").read_text().splitlines() if _ROW.match(line)]
    assert len(seen) == len(set(seen))


def test_codes_are_found_by_name_and_by_number() -> None:
    assert codes_in("Hold(4, 0, text); Hold(HoldCode.IWD_ERROR, 0, x)") == {4, 14}
