"""docs/sailplane.md names every command, and each field of what `--json` prints; none besides."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import attrs
import pytest

from pool import cli, cli_ask, cli_show
from pool import messages as m

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "sailplane.md").read_text()


def documented(title: str) -> set[str]:
    table = PAGE.split(f"\n{title}:\n\n", 1)[1].split("\n\n", 1)[0]
    return {name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])}


JOB = m.JobRow(12, 0, "a", "completed", 0.0, 1, "", "", 0, 0, 0, "", None, None, False)
RUN = m.RunRow(12, 0, 1, "", "", "", None, 0.0, None, None, None, "", 0)


@pytest.mark.parametrize(
    ("title", "fields"),
    [
        ("A job", cli_show.job_json(JOB)),
        ("A run", cli_show.run_json(RUN)),
        ("A slot", [field.name for field in attrs.fields(m.SlotRow)]),
    ],
)
def test_every_field_is_told_and_none_besides(title: str, fields: Iterable[str]) -> None:
    assert documented(title) == set(fields)


def test_every_command_with_json_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == cli_ask.DONE  # which finds the commands
    capsys.readouterr()
    table = PAGE.split("| command | prints |\n", 1)[1].split("\n\n", 1)[0]
    told = {name for row in table.splitlines()[1:] for name in re.findall(r"`([a-z]+)`", row.split("|")[1])}
    found = {name for name, each in cli.cli.commands.items() if any(one.name == "json_" for one in each.params)}
    assert told == found
