"""`sailplane-procd ctl`: shows what a running procd knows, and steers its families. For people and their scripts.

It says to procd what any client may say, and decides nothing. Exit status: 0 done, 1 procd refused or something
survived, 100 wrong usage, 111 no procd answers there.
"""

import json
import signal
import sys
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import attrs
import click
import trio

from pilot.rpc import RpcFault, RpcRefused
from procd.client import ProcdClient
from procd.messages import Description, FamilyState, GetUsage, Stopped, Usage

if TYPE_CHECKING:  # the daemon does without them
    from rich.console import Console
    from rich.table import Table

DONE, FAILED, WRONG_USAGE, TRY_AGAIN = 0, 1, 100, 111
# For a person, who would rather hear that there is no procd; one that is restarted is back within a second.
PATIENCE_S = 2.0
_Answer = TypeVar("_Answer")


class WrongUsage(click.UsageError):
    """As its parent, with our exit code."""

    exit_code = WRONG_USAGE


class Group(click.Group):
    """Commands that end with 100 when they are used wrongly."""

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        try:
            return super().make_context(*arguments, **options)
        except click.UsageError as wrong:
            raise WrongUsage(wrong.format_message(), wrong.ctx) from None

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except click.UsageError as wrong:
            raise WrongUsage(wrong.format_message(), wrong.ctx) from None


class SignalNumber(click.ParamType[int]):
    """15, TERM or SIGTERM."""

    name = "signal"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> int:
        word = str(value).upper()
        if word.isdecimal() and 1 <= int(word) <= 64:
            return int(word)
        try:
            return int(signal.Signals["SIG" + word.removeprefix("SIG")])
        except KeyError:
            self.fail(f"{value} is no signal: a number from 1 to 64, or a name as TERM", parameter, context)


class FamilyName(click.ParamType[str]):
    """As procd allows them, so that a typing error is told from a family that is gone."""

    name = "family"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> str:
        try:
            return GetUsage(str(value)).family
        except ValueError:
            self.fail(f"{value!r} is no family's name: printable ASCII without blanks", parameter, context)


@click.group(
    cls=Group,
    invoke_without_command=True,
    epilog="Examples: sailplane-procd ctl --socket run/procd tree; ... usage job1_2; ... signal job1_2 TERM --all; "
    "... stop job1_2 --soft TERM --grace 10",
)
@click.option("--socket", "path", type=click.Path(path_type=Path), required=True, help="The daemon's socket.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, where something is shown.")
@click.pass_context
def ctl(context: click.Context, path: Path, as_json: bool) -> None:
    """Show and steer the families of a running procd. Without a command: tree.

    Only procd's own account can, and root as that account. Exit status: 0 done, 1 refused or something survived,
    100 wrong usage, 111 nobody answers there.
    """
    context.obj = _Asking(path, as_json)
    if context.invoked_subcommand is None:
        context.invoke(tree)


_json = click.option("--json", "as_json", is_flag=True, help="One JSON object.")
_family = click.argument("family", type=FamilyName())


@attrs.frozen
class _Asking:
    path: Path
    as_json: bool

    def ask(self, question: Callable[[ProcdClient], Awaitable[_Answer]]) -> _Answer:
        """Put a question to procd; ends the process when there is no answer to it."""

        async def asking() -> _Answer:
            return await question(await ProcdClient.connect(self.path, patience_s=PATIENCE_S))

        try:
            return trio.run(asking)
        except RpcRefused as refused:
            _fail(f"{refused.text} ({refused.code})", FAILED)
        except RpcFault as fault:
            _fail(f"no answer at {self.path}: {fault.text}", TRY_AGAIN)


def _fail(text: str, status: int) -> NoReturn:
    click.echo(f"sailplane-procd: {_plain(text)}", err=True)
    sys.exit(status)


# --- showing ------------------------------------------------------------------------------------------------


@ctl.command(epilog="Example: sailplane-procd ctl --socket run/procd tree")
@_json
@click.pass_obj
def tree(asking: _Asking, as_json: bool = False) -> None:
    """Show families, their sub-families and what they use.

    As of the last look at each: `snapshot` takes one first.
    """
    _show(asking, asking.ask(lambda client: client.families()), as_json)


@ctl.command(epilog="Example: sailplane-procd ctl --socket run/procd snapshot --json")
@_json
@click.pass_obj
def snapshot(asking: _Asking, as_json: bool) -> None:
    """Have procd look at every family now, then show them as `tree`."""

    async def look(client: ProcdClient) -> tuple[FamilyState, ...]:
        for family in await client.families():
            if family.parent is None:
                await client.usage(family.family)
        return await client.families()

    _show(asking, asking.ask(look), as_json)


@ctl.command(epilog="Example: sailplane-procd ctl --socket run/procd dump --json")
@_json
@click.pass_obj
def dump(asking: _Asking, as_json: bool) -> None:
    """Show all that procd knows.

    That is how it works on this host, the families, and their processes as pid.start-tick.
    """

    async def everything(client: ProcdClient) -> tuple[Description, tuple[FamilyState, ...]]:
        return await client.describe(), await client.families()

    host, families = asking.ask(everything)
    if as_json or asking.as_json:
        _print_json({"host": attrs.asdict(host), "families": [attrs.asdict(family) for family in families]})
        return
    _console().print(_table(families))
    for line in _lines_of(host, families):
        click.echo(_plain(line))


@ctl.command(epilog="Example: sailplane-procd ctl --socket run/procd usage job1_2 --json")
@_family
@_json
@click.pass_obj
def usage(asking: _Asking, family: str, as_json: bool) -> None:
    """Show what a family uses and has used, as of now."""
    found: Usage = asking.ask(lambda client: client.usage(family))
    if as_json or asking.as_json:
        _print_json(attrs.asdict(found))
        return
    for name, value in attrs.asdict(found).items():
        click.echo(f"{name:16} {'not known' if value is None else value}")


# --- steering -----------------------------------------------------------------------------------------------


@ctl.command(name="signal", epilog="Example: sailplane-procd ctl --socket run/procd signal job1_2 USR1 --all")
@_family
@click.argument("number", type=SignalNumber())
@click.option("--all", "to_all", is_flag=True, help="To every process of the family, not only to its root.")
@click.pass_obj
def send(asking: _Asking, family: str, number: int, to_all: bool) -> None:
    """Send one signal, once, by the cheapest route. Through a switch this is an authorised call."""
    asking.ask(lambda client: client.signal(family, number, "all" if to_all else "root"))


@ctl.command(epilog="Example: sailplane-procd ctl --socket run/procd suspend job1_2")
@_family
@click.pass_obj
def suspend(asking: _Asking, family: str) -> None:
    """Stop every process of a family (SIGSTOP), until `continue`. The starter is not told."""
    asking.ask(lambda client: client.suspend(family))


@ctl.command(name="continue", epilog="Example: sailplane-procd ctl --socket run/procd continue job1_2")
@_family
@click.pass_obj
def resume(asking: _Asking, family: str) -> None:
    """Let a suspended family go on."""
    asking.ask(lambda client: client.resume(family))


@ctl.command(epilog="Example: sailplane-procd ctl --socket run/procd stop job1_2 --soft TERM --grace 10")
@_family
@click.option("--deadline", "deadline_s", type=click.FloatRange(0.1, 86_400), default=60.0, show_default=True,
              help="Seconds, after a grace.")  # fmt: skip
@click.option("--soft", type=SignalNumber(), default=None, help="First this signal to the root.")
@click.option("--grace", "grace_s", type=click.FloatRange(0, 86_400), default=10.0, show_default=True,
              help="With --soft: at most so many seconds for the root to end.")  # fmt: skip
@click.option("--urgent", is_flag=True, help="Among the first calls of the switch.")
@_json
@click.pass_obj
def stop(
    asking: _Asking, family: str, deadline_s: float, soft: int | None, grace_s: float, urgent: bool, as_json: bool
) -> None:
    """Kill a family until a full scan finds nobody. Exit status 1: something survived, and is named."""
    found: Stopped = asking.ask(
        lambda client: client.stop(
            family, urgent=urgent, deadline_s=deadline_s, soft=soft or 0, grace_s=grace_s if soft else 0.0
        )
    )
    if as_json or asking.as_json:
        _print_json(attrs.asdict(found))
    else:
        what = "empty" if found.empty else "survivors: " + " ".join(map(str, found.survivors))
        why = f" ({found.text})" if found.text else ""
        click.echo(_plain(f"{what}; route {found.route}, {found.switch_calls} calls of the switch{why}"))
    sys.exit(DONE if found.empty else FAILED)


# --- words --------------------------------------------------------------------------------------------------


def _show(asking: _Asking, families: tuple[FamilyState, ...], as_json: bool) -> None:
    if as_json or asking.as_json:
        _print_json({"families": [attrs.asdict(family) for family in families]})
    elif families:
        _console().print(_table(families))
    else:
        click.echo("no families")


def _table(families: Iterable[FamilyState]) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table("family", "uid", "root", "starter", "procs", "user s", "system s", "RSS MB", "peak MB", "control")
    for column in table.columns[1:-1]:
        column.justify = "right"
    depths: dict[str, int] = {}
    for family in families:
        depth = depths[family.family] = depths.get(family.parent, -1) + 1 if family.parent else 0
        branch = "   " * (depth - 1) + "└─ " if depth else ""
        table.add_row(*(Text(cell) for cell in (branch + family.family, *_cells(family))))
    return table


def _cells(family: FamilyState) -> tuple[str, ...]:
    used = family.usage
    return (
        str(family.uid),
        str(family.root.pid),
        str(family.starter.pid) + ("" if family.starter_alive else " gone"),
        str(used.processes),
        f"{used.user_s:.2f}",
        f"{used.system_s:.2f}",
        f"{used.rss_kb / 1024:.1f}",
        f"{used.rss_peak_kb / 1024:.1f}",
        "yes" if family.control else "no",
    )


def _lines_of(host: Description, families: Iterable[FamilyState]) -> Iterable[str]:
    yield f"trackers: {' '.join(host.trackers)}; routes: {' '.join(host.routes)}"
    for degraded in host.degraded:
        yield f"degraded: {degraded.word}: {degraded.text}"
    for family in families:
        yield f"{family.family}: credential {family.credential or 'none'}, audit id {family.audit_id or 'none'}"
        yield "  " + " ".join(f"{member.pid}.{member.start_ticks}" for member in family.members)


def _plain(text: str) -> str:
    """What a job or a user may have chosen can't steer a terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _print_json(found: object) -> None:
    click.echo(json.dumps(found))


def _console() -> "Console":
    """As wide as its terminal; in a pipe wide enough for every column."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=160)
