"""Makes docs/knobs.md and conf/sailplane.conf from the table of settings: `./dev docs`.

The texts are functions of the table; `main` writes them. A test compares them with what is in
the repository, so the table and its documentation cannot drift apart.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

from pilot.knobs import Knob
from pilot.settings import KNOBS

_ROOT = Path(__file__).resolve().parent.parent
_WIDTH = 100

_DOCS_HEAD = """\
# Knobs

Made by `./dev docs` from the table in `pilot/settings.py`; change it there.

Sailplane's daemons read HTCondor's configuration language: `NAME = value`, `$(NAME)`, `include :`,
`if`, and `_CONDOR_NAME` in the environment, which wins over the file. The file is the one that
`--config` or the variable `SAILPLANE_CONFIG` names, or under a condor_master ([master.md](master.md)) the master's;
otherwise the node's own HTCondor configuration is never read.
Names that HTCondor has mean what they mean there; the others start with `SAILPLANE_`.

A value that cannot be ends the start with exit code 100 and says knob, value and what is allowed.
An unknown `SAILPLANE_` name is warned about, with the nearest known one. A blank value is the default.
Durations are seconds, or carry `s`, `min`, `h` or `d`; sizes are bytes, or carry `K`, `M`, `G` or `T`.

Settings whose names the administrator makes up, such as `SLOT_TYPE_1` and `MACHINE_RESOURCE_GPUs`, are in
[slots.md](slots.md); those of programs beside the jobs (`STARTD_CRON_…`) in [cron.md](cron.md).

| knob | allowed | default | meaning |
|---|---|---|---|
"""

_CONF_HEAD = """\
# Sailplane's settings with their defaults: every knob that it reads. Made by `./dev docs`.
# A line that starts with # is a comment: take it away in front of a knob to change the knob.
# Pass this file by --config or by the environment variable SAILPLANE_CONFIG.
"""


def _default(row: Knob) -> str:
    return f"`{row.default}`" if row.default else f"({row.unset})"


def docs(rows: list[Knob]) -> str:
    """The page of all knobs."""
    lines = []
    for row in rows:
        default = f"{_default(row)}; without: {row.unset}" if row.default and row.unset else _default(row)
        lines.append(f"| `{row.name}` | {row.kind.allowed} | {default} | {row.meaning} |\n")
    return _DOCS_HEAD + "".join(lines)


def conf(rows: list[Knob]) -> str:
    """The example configuration: one comment and one commented-out default a knob."""
    blocks = []
    for row in rows:
        note = f"{row.meaning} Allowed: {row.kind.allowed}."
        if row.unset:
            note += f" Unset: {row.unset}."
        comment = textwrap.fill(note, _WIDTH, initial_indent="# ", subsequent_indent="# ")
        blocks.append(f"\n{comment}\n#{row.name} = {row.default}".rstrip() + "\n")
    return _CONF_HEAD + "".join(blocks)


def files() -> dict[Path, str]:
    """Each generated file and what it has to contain."""
    rows = list(KNOBS.values())
    return {_ROOT / "docs" / "knobs.md": docs(rows), _ROOT / "conf" / "sailplane.conf": conf(rows)}


def main() -> None:
    """Write what has changed, and name it."""
    for path, text in files().items():
        if not path.exists() or path.read_text() != text:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
            print(f"wrote {path.relative_to(_ROOT)}")


if __name__ == "__main__":
    main()
