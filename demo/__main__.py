"""`./dev demo`: two users' jobs, under two accounts, through a pool; then nothing is left of it."""

from __future__ import annotations

import os
import pwd
import sys
from pathlib import Path

import click
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from demo import errand, interrupts, leftovers, report, watch
from demo.accounts import AccountError
from demo.leftovers import LeftoverError
from demo.runtime import RuntimeMissingError
from demo.site import Site, SiteError
from glexec.install import InstallError
from pool.messages import JobRow

# The whole demo is promised in 60 s; set-up and take-down need a few of them.
_JOBS_S = 45.0
_EXIT_INTERRUPTED = 130
_EXIT_USAGE = 100
# Often enough for the eye; the look itself takes a few ms of the processors that the jobs want.
_LOOK_S = 0.1
_WIDE = 160
_TROUBLE = (SiteError, AccountError, RuntimeMissingError, LeftoverError, InstallError)


@click.command(epilog="Examples: ./dev demo; ./dev demo --linger no --json found.json; ./dev demo --keep")
@click.option(
    "--linger",
    type=click.Choice(["yes", "no"]),
    default="yes",
    show_default=True,
    help="The site's glexec stays as the job's parent.",
)
@click.option(
    "--json",
    "json_path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write what was found to FILE (- is standard output).",
)
@click.option(
    "--switch/--no-switch",
    default=True,
    show_default=True,
    help="As an ordinary user: give each job a sub-uid, where the host lets us.",
)
@click.option("--keep", is_flag=True, help="Leave the directory with the logs; ./dev clean removes it.")
def main(linger: str, json_path: Path | None, switch: bool, keep: bool) -> None:
    """Two users submit jobs to a pool; each job runs under its user's account.

    As root: accounts, sudo and glexec, all thrown away afterwards. As an ordinary user: one account, and a sub-uid
    of it for each job where /etc/subuid and the package uidmap allow it; no isolation elsewhere.
    Exit status: 0 all as promised, 1 not, 130 interrupted.
    """
    console = _console(to_stderr=json_path == Path("-"))
    interrupts.listen()
    try:
        text, problems = _demo(console, linger == "yes", keep, switch)
    except interrupts.Interrupted:
        console.print("interrupted; nothing is left")
        sys.exit(_EXIT_INTERRUPTED)
    except _TROUBLE as trouble:
        console.print(f"demo: {trouble}", style="red", markup=False)
        text, problems = report.document([], [str(trouble)]), [str(trouble)]
    if json_path is not None:
        _write(json_path, text)
    sys.exit(1 if problems else 0)


def _console(*, to_stderr: bool) -> Console:
    """Lines are not wrapped for a pipe or a file, which have no width."""
    found = Console(stderr=to_stderr, highlight=False, soft_wrap=True)
    return found if found.is_terminal else Console(stderr=to_stderr, highlight=False, soft_wrap=True, width=_WIDE)


def _write(path: Path, text: str) -> None:
    if path == Path("-"):
        sys.stdout.write(text)
    else:
        path.write_text(text)


def _demo(console: Console, linger: bool, keep: bool, switch: bool) -> tuple[str, list[str]]:
    """The JSON and the problems of a whole demo."""
    for what in leftovers.remove_abandoned():
        console.print(f"removed {what}", markup=False)
    with Site.open("demo", linger=linger, keep=keep, switch=switch) as site:
        _introduce(console, site, keep)
        site.start_pool()
        site.start_startd()
        pilot_uid = Path(f"/proc/{site.startd.pid}").stat().st_uid if site.startd else -1
        jobs, problems = errand.collect(site, _run(console, site), pilot_uid)
    problems += report.faults(jobs, switched=site.isolated, sub_uids=site.userns.wrapper is not None)
    problems += [f"left behind: {what}" for what in site.left]
    for problem in problems:
        console.print(f"problem: {problem}", style="red", markup=False)
    if not problems:
        console.print(f"{len(jobs)} jobs, outputs as counted independently, nothing left behind", style="green")
    return report.document(jobs, problems), problems


def _introduce(console: Console, site: Site, keep: bool) -> None:
    if site.isolated:
        console.print("Each job runs under its user's account, by sudo and glexec.")
        for role, account in site.accounts.items():
            console.print(f"  {role:6} {account.name} (uid {account.uid})")
    elif site.userns.wrapper is not None:
        console.print(
            f"Not root: pool and pilot run at the one account {_own_name()}, and each job at a sub-uid of it, in a user"
            " namespace: no job reaches another one or the pilot. The two owners are told apart by their proxies.",
        )
    else:
        console.print(
            f"Not root: pool, pilot and all jobs run at the one account {_own_name()}. NOTHING IS ISOLATED: a job could"
            " read and stop everything of this account. The two owners are told apart by the proxies they delegated.",
            style="yellow",
        )
        console.print(f"No sub-uids for the jobs: {site.userns.why}", markup=False)
    if keep:
        console.print(f"logs will stay in {site.layout.root}", markup=False)


def _own_name() -> str:
    return pwd.getpwuid(os.getuid()).pw_name


def _run(console: Console, site: Site) -> list[errand.Errand]:
    """Hand in everybody's parts, then everybody's last job; show the jobs until all have ended."""
    uids = {role: account.uid for role, account in site.accounts.items()} or {"all": os.getuid()}
    seen = watch.Sightings(uids)
    with Live(console=console, auto_refresh=False, transient=True) as live:
        parts = errand.hand_in_parts(site)
        _wait(site, live, seen)
        last = errand.hand_in_merges(site, parts)
        _wait(site, live, seen)
        errand.bring_back(site, last)
        live.update("")
    console.print(_jobs_table(site, watch.jobs(site.layout.pool_socket)))
    console.print()
    console.print(seen.table("PROCESSES, THE MOST SEEN AT ONCE", seen.most))
    console.print()
    return [*parts, *last]


def _wait(site: Site, live: Live, seen: watch.Sightings) -> None:
    """Until no job is idle or running; the tables follow."""

    def all_ended() -> bool | None:
        rows = watch.jobs(site.layout.pool_socket)
        seen.look()
        if live.console.is_terminal:
            now = seen.table("PROCESSES NOW", seen.now)
            live.update(Group(_jobs_table(site, rows), "", now), refresh=True)
        return True if rows and all(row.state in watch.FINAL for row in rows) else None

    site.wait_until(all_ended, what="the jobs to end", deadline_s=_JOBS_S, look_s=_LOOK_S)


def _jobs_table(site: Site, rows: list[JobRow]) -> Table:
    own = None if site.isolated else f"{_own_name()} ({os.getuid()})"
    if own is not None and site.userns.wrapper is not None:
        own = f"a sub-uid of {own}"
    return watch.table(rows, site.switch_log(), unswitched=own)


def command() -> None:
    """`main` with the exit code that all our commands have for wrong usage."""
    try:
        main.main(prog_name="./dev demo", standalone_mode=False)
    except click.UsageError as error:
        error.show()
        sys.exit(_EXIT_USAGE)


if __name__ == "__main__":
    command()
