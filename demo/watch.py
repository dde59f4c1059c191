"""Looks at a running site for the demo's table: the pool's jobs, and who runs what as which uid."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import trio
from rich.table import Table
from rich.text import Text

from demo import accounts, report
from pilot import logs, rpc
from pool import messages as m

_COLOURS = {"idle": "yellow", "running": "green", "completed": "cyan", "held": "red", "removed": "dim"}
FINAL = ("completed", "held", "removed")


def jobs(socket: Path) -> list[m.JobRow]:
    """All jobs of the pool, finished ones too; a connection for one question."""
    return trio.run(_jobs, socket)


async def _jobs(socket: Path) -> list[m.JobRow]:
    rows: list[m.JobRow] = []
    async with await rpc.connect(socket, m.POOL, max_fds=m.MAX_FDS) as channel:
        while True:
            last = rows[-1] if rows else None
            place = (last.cluster, last.proc) if last else (0, -1)
            page: m.Jobs = await channel.call(m.ListJobs(*place, True, True))
            rows += page.rows
            if not page.more:
                return rows


def job_id(row: m.JobRow) -> str:
    """The job's id as users write it."""
    return f"{row.cluster}.{row.proc}"


def _switched(job: str, log: Iterable[Mapping[str, Any]]) -> tuple[str, str]:
    """Account and number of calls of a job, from the site's root log."""
    calls = report.calls_of(job, log)
    accounts_ = {f"{call['account']} ({call['uid']})" for call in calls if "account" in call}
    return ", ".join(sorted(accounts_)), str(len(calls) or "")


def table(rows: Iterable[m.JobRow], log: list[dict[str, Any]], *, unswitched: str | None) -> Table:
    """Who runs what as which uid, now; `unswitched` is the one account where there is no switch."""
    made = Table("JOB", "OWNER", "STATE", "RUNS AS (UID)", "SWITCH CALLS", box=None, pad_edge=False)
    for row in rows:
        account, calls = _switched(job_id(row), log) if unswitched is None else (unswitched, "none")
        if unswitched is not None and row.state == "idle":
            account = ""
        state = Text(row.state, style=_COLOURS.get(row.state, ""))
        made.add_row(job_id(row), logs.clean(row.owner), state, account, calls)
    return made


def processes(uids: Mapping[str, int]) -> Table:
    """The processes of each role's account, now."""
    made = Table("ROLE", "UID", "PROCESSES", box=None, pad_edge=False)
    for role, uid in uids.items():
        names: dict[str, int] = {}
        for name in accounts.processes_of([uid]).values():
            names[name] = names.get(name, 0) + 1
        made.add_row(role, str(uid), ", ".join(f"{name} x{count}" for name, count in sorted(names.items())) or "-")
    return made
