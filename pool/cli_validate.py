"""`sailplane validate`: whether jobs could run here, without a pool and without advertising anything."""

from __future__ import annotations

from pathlib import Path

import attrs
import click
import trio
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pilot.configuration import load
from pilot.findings import UseRefused, Validation
from pilot.settings import Settings
from pilot.switch import compile_wrapper, make_switch
from pilot.validation import agreed_switch, examine
from pilot.validationreport import as_json, as_xml
from pool import cli_ask

_COLOURS = {"ok": "green", "degraded": "yellow", "failed": "red", "skipped": ""}
# Of a passing failure: as the startd's.
EXIT_FAILED, EXIT_TRY_LATER = 1, 111


def add_to(group: click.Group) -> None:
    group.add_command(validate)


@click.command(epilog="Example: sailplane --config pilot.conf validate --xml otrx_output.xml")
@click.option(
    "--xml", "xml", type=click.Path(path_type=Path), help="Write an OSGTestResult 4.3.1 to this file; - for output."
)
@click.option("--id", "test_id", default="sailplane_validate", help="The id in the XML.")
@cli_ask.as_json
@click.pass_context
def validate(context: click.Context, xml: Path | None, test_id: str, json_: bool) -> int:
    """Try the identity switch and this node as a starting startd does: the two tests of glidein scripts, passing of
    descriptors, accounts, paths, interpreters, and what a node may take away.

    Exit status: 0 jobs can run (perhaps less well: degraded), 1 they cannot, 111 not now.
    """
    config, _socket = context.obj
    settings = load(config)
    try:
        settings = attrs.evolve(settings, sailplane_switch=agreed_switch(settings))
    except UseRefused as refusal:
        raise cli_ask.Failed(str(refusal)) from refusal
    settings.execute.mkdir(mode=0o711, parents=True, exist_ok=True)
    compile_wrapper(settings)
    report = trio.run(_examine, settings)
    if xml is not None:
        text = as_xml(report, test_id=test_id, cwd=str(Path.cwd()))
        click.echo(text, nl=False) if str(xml) == "-" else xml.write_text(text, encoding="utf-8")
    if json_:
        cli_ask.show_json(as_json(report))
    elif str(xml) != "-":
        console = Console(soft_wrap=False)
        console.print(_table(report)) if console.is_terminal else Console(width=240).print(_table(report))
        click.echo(report.words)
    if not report.failures:
        return 0
    return EXIT_TRY_LATER if report.passing else EXIT_FAILED


async def _examine(settings: Settings) -> Validation:
    return await examine(settings, make_switch(settings))


def _table(report: Validation) -> Table:
    table = Table("check", "result", "what", box=None)
    for finding in report.findings:
        status = Text(finding.cause or finding.status, style=_COLOURS[finding.status])
        table.add_row(finding.check, status, Text(finding.text))
    return table
