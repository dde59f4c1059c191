"""``python -m bench [NAME ...] [--json]``: run benchmarks, show the figures as a table or as one JSON object."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path
from types import ModuleType

import click
from rich.console import Console
from rich.table import Table

from bench import kill, memory, snapshot, spread, staging, startup, switch, throughput, turnaround
from bench.figures import Figure, report

BENCHES: dict[str, ModuleType] = {
    "kill": kill,
    "memory": memory,
    "snapshot": snapshot,
    "spread": spread,
    "staging": staging,
    "startup": startup,
    "switch": switch,
    "throughput": throughput,
    "turnaround": turnaround,
}
# In a file or a pipe, which have no width: no figure's name is cut.
_WIDE = 160
_VERSIONS_OF = ("sailplane", "trio", "cryptography", "htcondor")


@click.command(name="bench", epilog="Example: ./dev bench turnaround --json")
@click.argument("names", nargs=-1, type=click.Choice(sorted(BENCHES)))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
@click.option(
    "--pictures",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIRECTORY",
    help="Also write the pictures of those benches that have any (spread).",
)
def main(names: tuple[str, ...], as_json: bool, pictures: Path | None) -> None:
    """Measure the design's figures. Ratios are of medians of one run; quote those, not single times."""
    figures: list[Figure] = []
    not_run: dict[str, str] = {}
    for name in names or tuple(BENCHES):
        reason = BENCHES[name].why_not()
        if reason:
            not_run[name] = reason
        else:
            figures += BENCHES[name].run()
            if pictures is not None and hasattr(BENCHES[name], "draw"):
                click.echo(f"wrote {BENCHES[name].draw(pictures)}", err=True)
    if as_json:
        json.dump(report(figures, not_run, _machine(), _versions()), sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        _show(figures, not_run)


def _machine() -> dict[str, object]:
    with open("/proc/meminfo", encoding="ascii") as meminfo:
        memory_kb = int(meminfo.readline().split()[1])
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "memory_gb": round(memory_kb / 1024**2, 1),
        "kernel": platform.release(),
        "arch": platform.machine(),
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _VERSIONS_OF:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _show(figures: list[Figure], not_run: dict[str, str]) -> None:
    table = Table("figure", "ours", "reference", "ratio", "unit", "goal", "met")
    for figure in figures:
        row = figure.row()
        met = {True: "[green]yes[/]", False: "[red]no[/]", None: ""}[row.get("met")]
        cells = (row["ours"], row.get("reference", ""), row.get("ratio", ""), row["unit"], row.get("goal", ""))
        table.add_row(figure.name, *map(str, cells), met)
    console = Console() if sys.stdout.isatty() else Console(width=_WIDE)
    console.print(table)
    for name, reason in not_run.items():
        console.print(f"{name} was not run: {reason}", markup=False)


if __name__ == "__main__":
    main()
