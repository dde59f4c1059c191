"""`sailplane q`, `status`, `history`, `rm`, `wait`: lists and answers."""

from __future__ import annotations

import os
import time
from typing import Any

import attrs
import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pilot import logs, rpc
from pool import cli_ask
from pool import messages as m

WAIT_PIECE_S = 30.0
_COLOURS = {"idle": "yellow", "running": "green", "held": "red", "completed": "cyan", "removed": "dim"}
_NOBODY = -1


def add_to(group: click.Group) -> None:
    for command in (q, status, history, rm, wait):
        group.add_command(command)


# Lists


@click.command()
@click.argument("ids", nargs=-1, type=cli_ask.TARGET)
@click.option("--all", "every", is_flag=True, help="Jobs of every user.")
@click.option("--done", is_flag=True, help="Completed and removed jobs too.")
@cli_ask.as_json
@click.pass_context
def q(context: click.Context, ids: tuple[m.Target, ...], every: bool, done: bool, json_: bool) -> int:
    """List your jobs: idle, running and held ones; with IDs, these jobs in whatever state.

    \b
    Examples:
        sailplane q
        sailplane q --all --done
        sailplane q 12 13.4 --json
    """
    rows = cli_ask.ask(context, lambda channel: list_jobs(channel, every=every or bool(ids), final=done or bool(ids)))
    if ids:
        rows = [row for row in rows if any(_is_of(row, target) for target in ids)]
    if json_:
        cli_ask.show_json([job_json(row) for row in rows])
    else:
        _print(_job_table(rows), "no jobs")
    return cli_ask.DONE


async def list_jobs(channel: rpc.Channel, *, every: bool, final: bool) -> list[m.JobRow]:
    rows: list[m.JobRow] = []
    cluster, proc = 0, _NOBODY
    while True:
        page: m.Jobs = await channel.call(m.ListJobs(cluster, proc, every, final))
        rows += page.rows
        if not page.more:
            return rows
        cluster, proc = page.rows[-1].cluster, page.rows[-1].proc


def _is_of(row: m.JobRow, target: m.Target) -> bool:
    return row.cluster == target.cluster and target.proc in (None, row.proc)


def job_json(row: m.JobRow) -> dict[str, Any]:
    """A job in the form that scripts read. Times are unix seconds; exit code or signal only when completed."""
    fields = attrs.asdict(row)
    cluster, proc = fields.pop("cluster"), fields.pop("proc")
    return {"id": f"{cluster}.{proc}", **fields, **exit_json(row.exit_status)}


def exit_json(status: int | None) -> dict[str, int | None]:
    if status is None:
        return {"exit_code": None, "exit_signal": None}
    if os.WIFSIGNALED(status):
        return {"exit_code": None, "exit_signal": os.WTERMSIG(status)}
    return {"exit_code": os.WEXITSTATUS(status), "exit_signal": None}


def _job_table(rows: list[m.JobRow]) -> Table | None:
    if not rows:
        return None
    table = Table("ID", "OWNER", "STATE", "SUBMITTED", "RUNS", "COMMAND", "NOTE", box=None, pad_edge=False)
    for row in rows:
        state = Text("removing" if row.removing else row.state, style=_COLOURS.get(row.state, ""))
        table.add_row(
            f"{row.cluster}.{row.proc}",
            _plain(row.owner),
            state,
            _when(row.submitted_at),
            str(row.runs),
            _plain(row.command, 40),
            _note(row),
        )
    return table


def _note(row: m.JobRow) -> Text:
    if row.state == "running":
        return _plain(f"on {row.slot}" + (f", {row.reason}" if row.reason else ""))
    if row.state == "completed":
        return _plain(_exit_words(row.exit_status))
    if row.hold_code:
        return _plain(f"{row.reason} ({row.hold_code}/{row.hold_subcode})", 400)
    return _plain(row.reason, 200)


def _exit_words(status: int | None) -> str:
    said = exit_json(status)
    if said["exit_signal"] is not None:
        return f"killed by signal {said['exit_signal']}"
    return "" if said["exit_code"] is None else f"exit code {said['exit_code']}"


@click.command()
@cli_ask.as_json
@click.pass_context
def status(context: click.Context, json_: bool) -> int:
    """List the pool's slots: what the execution points offer and what runs there.

    \b
    Examples:
        sailplane status
        sailplane status --json
    """
    rows = cli_ask.ask(context, _slots)
    if json_:
        cli_ask.show_json([attrs.asdict(row) for row in rows])
    else:
        _print(
            _slot_table(rows), "no slots: no execution point has advertised itself; start one with 'sailplane-startd'"
        )
    return cli_ask.DONE


async def _slots(channel: rpc.Channel) -> list[m.SlotRow]:
    rows: list[m.SlotRow] = []
    while True:
        page: m.Slots = await channel.call(m.ListSlots(len(rows)))
        rows += page.rows
        if not page.more:
            return rows


def _slot_table(rows: list[m.SlotRow]) -> Table | None:
    if not rows:
        return None
    table = Table(
        "SLOT", "TYPE", "STATE", "ACTIVITY", "CPUS", "MEMORY", "USER", "JOB", "HEARD", "NOTE", box=None, pad_edge=False
    )
    for row in rows:
        table.add_row(
            _plain(row.name, 60),
            _plain(row.kind),
            _plain(row.state),
            _plain(row.activity),
            str(row.cpus),
            f"{row.memory_mb} MB",
            _plain(row.user),
            _plain(row.job),
            f"{max(0, int(time.time() - row.heard_at))} s ago",
            _plain(row.why, 200),
        )
    return table


@click.command()
@click.argument("target", metavar="ID", type=cli_ask.TARGET)
@cli_ask.as_json
@click.pass_context
def history(context: click.Context, target: m.Target, json_: bool) -> int:
    """List every run of a job or cluster, with where and how each ended.

    \b
    Examples:
        sailplane history 12
        sailplane history 12.3 --json
    """

    rows = cli_ask.ask(context, lambda channel: _runs(channel, target))
    if json_:
        cli_ask.show_json([run_json(row) for row in rows])
    else:
        _print(_run_table(rows), "no run yet")
    return cli_ask.DONE


async def _runs(channel: rpc.Channel, target: m.Target) -> list[m.RunRow]:
    rows: list[m.RunRow] = []
    while True:
        page: m.Runs = await channel.call(m.RunsOf(target, len(rows)))
        rows += page.rows
        if not page.more:
            return rows


def run_json(row: m.RunRow) -> dict[str, Any]:
    fields = attrs.asdict(row)
    cluster, proc = fields.pop("cluster"), fields.pop("proc")
    return {"id": f"{cluster}.{proc}", **fields, **exit_json(row.exit_status)}


def _run_table(rows: list[m.RunRow]) -> Table | None:
    if not rows:
        return None
    table = Table("ID", "RUN", "SLOT", "STARTED", "ENDED", "OUTCOME", "NOTE", box=None, pad_edge=False)
    for row in rows:
        ended = "" if row.ended_at is None else _when(row.ended_at)
        note = row.reason or _exit_words(row.exit_status)
        table.add_row(
            f"{row.cluster}.{row.proc}",
            str(row.number),
            _plain(row.slot, 60),
            _when(row.started_at),
            ended,
            row.outcome or "running",
            _plain(note, 400),
        )
    return table


# Changes


@click.command()
@click.argument("ids", nargs=-1, required=True, type=cli_ask.TARGET)
@click.option("--force", is_flag=True, help="Kill running jobs at once, without time to end by themselves.")
@cli_ask.as_json
@click.pass_context
def rm(context: click.Context, ids: tuple[m.Target, ...], force: bool, json_: bool) -> int:
    """Remove jobs, finished ones too: what came back of them and was not fetched goes with them.

    \b
    Examples:
        sailplane rm 12
        sailplane rm 12.3 13 --force
    """

    async def remove(channel: rpc.Channel) -> list[m.Removed]:
        return [await channel.call(m.Remove(target, force)) for target in ids]

    replies = cli_ask.ask(context, remove)
    gone, ending = sum(reply.jobs for reply in replies), sum(reply.ending for reply in replies)
    if json_:
        cli_ask.show_json({"removed": gone, "ending": ending})
    else:
        click.echo(f"{gone} removed" + (f", {ending} running: being stopped" if ending else "") + ".")
    return cli_ask.DONE


@click.command()
@click.argument("target", metavar="ID", type=cli_ask.TARGET)
@click.option(
    "--timeout", type=click.FloatRange(min=0), metavar="SECONDS", help="Give up after this time (exit code 111)."
)
@cli_ask.as_json
@click.pass_context
def wait(context: click.Context, target: m.Target, timeout: float | None, json_: bool) -> int:
    """Wait until a job, or all jobs of a cluster, are completed, held or removed. Exit code 0 only if all completed.

    \b
    Examples:
        sailplane wait 12 && sailplane fetch 12
        sailplane wait 12.3 --timeout 600
    """
    end = None if timeout is None else time.monotonic() + timeout
    rows, waiting = cli_ask.ask(context, lambda channel: _wait(channel, target, end))
    if json_:
        cli_ask.show_json([job_json(row) for row in rows])
    for row in rows:
        if row.state != "completed" and not json_:
            cli_ask.say(f"job {row.cluster}.{row.proc} is {row.state}" + (f": {row.reason}" if row.reason else ""))
    if waiting:
        return cli_ask.TRY_AGAIN
    return cli_ask.DONE if all(row.state == "completed" for row in rows) else cli_ask.FAILED


async def _wait(channel: rpc.Channel, target: m.Target, end: float | None) -> tuple[list[m.JobRow], bool]:
    while True:
        left = WAIT_PIECE_S if end is None else end - time.monotonic()
        reply: m.Jobs = await channel.call(m.Wait(target, max(0.0, min(left, WAIT_PIECE_S))))
        if not reply.more or left <= 0:
            break
    if reply.more:
        return list(reply.rows), True
    return [row for row in await list_jobs(channel, every=True, final=True) if _is_of(row, target)], False


# Words


def _plain(text: str, limit: int = 60) -> Text:
    """Text of others for a terminal: no control characters, no markup, limited."""
    line = logs.clean(text)
    return Text(line if len(line) <= limit else line[: limit - 1] + "…")


def _when(moment: float) -> str:
    return time.strftime("%m-%d %H:%M:%S", time.localtime(moment))


def _print(table: Table | None, otherwise: str) -> None:
    if table is None:
        click.echo(otherwise)
        return
    console = Console(soft_wrap=False)
    # A pipe has no width: scripts and logs get whole lines.
    console.print(table) if console.is_terminal else Console(width=240).print(table)
