"""Looks at a running site for the demo's table: the pool's jobs, and who runs what as which uid."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import attrs
import trio
from rich.table import Table
from rich.text import Text

from demo import accounts, interrupts, report
from demo.daemons import SiteError
from pilot import logs, rpc
from pool import messages as m

T = TypeVar("T")

# An answer takes some milliseconds, but the jobs may have the processors; Ctrl-C waits for it, too.
_ANSWER_S = 10.0
_COLOURS = {"idle": "yellow", "running": "green", "completed": "cyan", "held": "red", "removed": "dim"}
# How `demo.runtime` starts a console command.
_STARTED = re.compile(r"sys\.argv\[0\] = '(sailplane[a-z-]*)'")
_MAIN = re.compile(r"from ([a-z.]+) import main")
FINAL = ("completed", "held", "removed")


def jobs(socket: Path) -> list[m.JobRow]:
    """All jobs of the pool, finished ones too; a connection for one question."""
    return _answer(_jobs, socket)


def _answer(ask: Callable[..., Awaitable[list[T]]], *arguments: object) -> list[T]:
    """Ask the pool. What a signal's handler raises must not come up inside trio's loop."""

    async def in_time() -> list[T]:
        with trio.fail_after(_ANSWER_S):
            return await ask(*arguments)

    try:
        with interrupts.held():
            return trio.run(in_time)
    except trio.TooSlowError:
        raise SiteError(f"the pool does not answer within {_ANSWER_S:g} s") from None


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


def runs(socket: Path, cluster: int) -> dict[str, m.RunRow]:
    """The last run of each job of a cluster, by the job's id."""
    rows = _answer(_runs, socket, cluster)
    return {f"{row.cluster}.{row.proc}": row for row in sorted(rows, key=lambda row: row.number)}


async def _runs(socket: Path, cluster: int) -> list[m.RunRow]:
    rows: list[m.RunRow] = []
    async with await rpc.connect(socket, m.POOL, max_fds=m.MAX_FDS) as channel:
        while True:
            page: m.Runs = await channel.call(m.RunsOf(m.Target(cluster, None), len(rows)))
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


def title(argv: list[str], comm: str) -> str:
    """What a process is, in a word or two: the program, not its interpreter."""
    if not argv[0].rpartition("/")[2].startswith("python"):
        return logs.clean(comm)
    for number, argument in enumerate(argv[1:-1], 1):
        following = argv[number + 1]
        if argument == "-m":
            return logs.clean(following.removesuffix(".main"))
        if argument == "-c":
            started = _STARTED.search(following) or _MAIN.search(following)
            return started[1] if started else logs.clean(comm)
        if not argument.startswith("-"):
            return logs.clean(_script(argument, following))
    return logs.clean(comm)


def _script(path: str, first_argument: str) -> str:
    name = path.removesuffix("/__main__.py").rpartition("/")[2]
    return f"{name} {first_argument}" if name == "jobwrapper" else name


def _titles(uid: int) -> Counter[str]:
    found: Counter[str] = Counter()
    for pid, comm in accounts.processes_of([uid]).items():
        with suppress(OSError):
            argv = Path("/proc", str(pid), "cmdline").read_bytes().decode(errors="replace").split("\0")
            found[title(argv, comm)] += 1
    return found


@attrs.define
class Sightings:
    """The processes of each role's account: those that run now, and the most that were seen at once."""

    uids: Mapping[str, int]
    now: dict[str, Counter[str]] = attrs.Factory(dict)
    most: dict[str, Counter[str]] = attrs.Factory(dict)

    def look(self) -> None:
        """Look at the machine once more."""
        for role, uid in self.uids.items():
            self.now[role] = _titles(uid)
            self.most[role] = self.most.get(role, Counter()) | self.now[role]

    def table(self, heading: str, seen: Mapping[str, Counter[str]]) -> Table:
        """A row a role; `seen` is `now` or `most`."""
        made = Table("ROLE", "UID", heading, box=None, pad_edge=False)
        for role, uid in self.uids.items():
            names = [name if count == 1 else f"{name} ×{count}" for name, count in sorted(seen.get(role, {}).items())]
            made.add_row(role, str(uid), ", ".join(names) or "-")
        return made
