"""Pages and comments name what is there; so do the programs that benchmarks and tests carry as text."""

from __future__ import annotations

import ast
import importlib
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
PACKAGES = [*tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"], "bench", "tests"]
OURS = "|".join(PACKAGES)
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_files_of_a_page_are_there(page: Path) -> None:
    text = page.read_text()
    links = [page.parent / link for link in re.findall(r"\]\(([^)#\s:]+)(?:#[^)]*)?\)", text)]
    files = [ROOT / name for name in re.findall(rf"`((?:{OURS}|docs|conf)/[\w./-]+\.\w+)`", text)]
    assert [str(path) for path in (*links, *files) if not path.exists()] == []


def test_the_readme_lists_every_page() -> None:
    readme = (ROOT / "README.md").read_text()
    assert [page.name for page in ROOT.glob("docs/*.md") if f"(docs/{page.name})" not in readme] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_what_comments_and_texts_name_is_there(package: str) -> None:
    missing = []
    for path in (ROOT / package).rglob("*.py"):
        text = path.read_text()
        modules = re.findall(rf"`((?:{OURS})\.\w+)[.\w]*`", text)
        files = re.findall(rf"(?<![\w/.])((?:{OURS})/\w+\.py)\b", text)
        pages = re.findall(r"(?<![\w/-])docs/[\w-]+\.md", text)
        named = [*(f"{name.replace('.', '/')}.py" for name in modules), *files, *pages]
        missing += [f"{path.relative_to(ROOT)}: {name}" for name in named if not (ROOT / name).exists()]
    assert missing == []


def embedded(path: Path) -> list[ast.ImportFrom]:
    """Imports of ours in the programs that a module carries as text and runs elsewhere: no linter sees them."""
    text = path.read_text()
    if '= """\n' not in text and '+ """\n' not in text:
        return []
    texts = [node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)]
    lines = [
        line
        for text in texts
        if isinstance(text, str)
        for line in re.findall(rf"(?m)^from (?:{OURS})[.\w]* import \w.+$", text)
    ]
    return [each for line in lines for each in ast.parse(line).body if isinstance(each, ast.ImportFrom)]


WITH_PROGRAMS = {path: found for path in SOURCES if (found := embedded(path))}


@pytest.mark.parametrize("path", WITH_PROGRAMS, ids=lambda path: path.stem)
def test_programs_in_texts_import_what_is_there(path: Path) -> None:
    for each in WITH_PROGRAMS[path]:
        module = importlib.import_module(each.module or "")
        assert [alias.name for alias in each.names if not hasattr(module, alias.name)] == []
