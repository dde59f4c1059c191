"""The repository's own promises: generated files are current, scripts parse, imports keep their borders."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from pilot import knobdocs
from pilot.configuration import load

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("path", knobdocs.files(), ids=lambda path: path.name)
def test_generated_files_are_current(path: Path) -> None:
    assert path.read_text() == knobdocs.files()[path], "run ./dev docs"


def test_the_example_configuration_is_one_that_the_daemons_read(tmp_path: Path) -> None:
    text = (ROOT / "conf/sailplane.conf").read_text()
    live = "\n".join(line[1:] if line.startswith("#") and line[1:2].isupper() else line for line in text.splitlines())
    file = tmp_path / "all.conf"
    file.write_text(live + "\n")
    settings = load(file, {})
    assert settings.warnings == ()
    assert settings.startd_port == 0


@pytest.mark.parametrize("script", ["dev", ".ci/run"])
def test_scripts_parse_and_are_executable(script: str) -> None:
    assert os.access(ROOT / script, os.X_OK)
    subprocess.run(["bash", "-n", str(ROOT / script)], check=True)


def test_dev_help_names_every_command() -> None:
    text = subprocess.run([ROOT / "dev", "--help"], check=True, capture_output=True, text=True).stdout
    for command in ("setup", "demo", "test", "test-slow", "interop", "bench", "lint", "docs", "clean"):
        assert f"\n  {command} " in text


def test_dev_refuses_an_unknown_command() -> None:
    done = subprocess.run([ROOT / "dev", "fly"], capture_output=True, text=True, check=False)
    assert done.returncode == 100
    assert "usage" in done.stderr


def test_every_package_has_its_place_in_the_distribution_and_in_the_import_contracts() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = set(project["tool"]["setuptools"]["packages"])
    assert packages == set(project["tool"]["importlinter"]["root_packages"])
    assert packages <= set(project["tool"]["mypy"]["packages"])
    contracted = {
        name for rule in project["tool"]["importlinter"]["contracts"] for name in rule.get("source_modules", [])
    }
    assert packages - contracted == {"demo"}


def test_imports_keep_the_designs_table() -> None:
    linter = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_no_module_of_procd_is_missing_from_what_the_starter_may_not_see() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (hidden,) = (
        set(rule["forbidden_modules"])
        for rule in project["tool"]["importlinter"]["contracts"]
        if rule["name"].startswith("of procd")
    )
    modules = {f"procd.{path.stem}" for path in (ROOT / "procd").glob("*.py") if not path.stem.startswith("_")}
    assert modules - hidden == {"procd.client", "procd.messages"}
