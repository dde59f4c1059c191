"""docs/hold-codes.md against the code and the tests: every code that we hold with has a row, every row a test."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

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


def texts_of(name: str) -> list[str]:
    """What each test of this name says, decorators and all; of one that goes by tests/joblist.py, the list, too."""
    found = []
    for path in (ROOT / "tests").rglob("test_*.py"):
        text = path.read_text()
        if f"def {name}(" not in text:
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name:
                first = min(node.lineno, *(each.lineno for each in node.decorator_list), node.lineno)
                said = "\n".join(text.splitlines()[first - 1 : node.end_lineno])
                found.append(said + ((ROOT / "tests" / "joblist.py").read_text() if "kind: Kind" in said else ""))
    return found


def names_code(text: str, code: int) -> bool:
    """Whether the code is there: by its name, or as a number in a line that is about holds or codes."""
    names = "|".join(rf"HoldCode\.{name}\b" for name, known in HoldCode.__members__.items() if known == code)
    return bool(re.search(rf"(?i:hold|code).*\b{code}\b|\b{code}\b.*(?i:hold|code)|{names}", text))


@pytest.mark.parametrize(("code", "test"), sorted({(code, test) for code, _, test in rows()}))
def test_each_row_has_a_test_that_names_its_code(code: int, test: str) -> None:
    assert any(names_code(text, code) for text in texts_of(test))


def test_a_code_is_known_by_its_name_or_beside_the_word() -> None:
    assert names_code("verdict == Hold(HoldCode.IWD_ERROR, 0)", 14)
    assert names_code('row["hold_code"] == 14', 14)
    assert not names_code("range(14)", 14)
    assert not names_code("hold=(140, 0)", 14)


def test_a_row_is_told_from_the_others() -> None:
    seen = [line for line in (ROOT / "docs" / "hold-codes.md").read_text().splitlines() if _ROW.match(line)]
    assert len(seen) == len(set(seen))


def test_codes_are_found_by_name_and_by_number() -> None:
    assert codes_in("Hold(4, 0, text); Hold(HoldCode.IWD_ERROR, 0, x)") == {4, 14}
