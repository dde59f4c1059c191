"""`sailplane fetch`: what came back of jobs, written by this process as the user.

The pool sends open descriptors and names; the names were chosen by a job, so they are hostile. Nothing is written
outside of the directory, no link is followed, and a file appears under its name only when it is whole.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click

from pilot import logs, rpc
from pool import cli_ask, cli_show
from pool import messages as m
from pool.jobad import BadJob, check_relative, remaps

CHUNK_BYTES = 1 << 20
STDOUT, STDERR = "_condor_stdout", "_condor_stderr"


def add_to(group: click.Group) -> None:
    group.add_command(fetch)


@click.command()
@click.argument("target", metavar="ID", type=cli_ask.TARGET)
@click.option(
    "--to",
    "to",
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory to write into; default: where the job was submitted from.",
)
@cli_ask.as_json
@click.pass_context
def fetch(context: click.Context, target: m.Target, to: Path | None, json_: bool) -> int:
    """Get what came back of a job, or of all completed jobs of a cluster. Files of the same name are replaced.

    \b
    Examples:
        sailplane fetch 12
        sailplane fetch 12.3 --to results/
    """
    fetched = cli_ask.ask(context, lambda channel: _fetch(channel, target, to))
    if json_:
        cli_ask.show_json([{"id": job, "directory": place, "files": names} for job, place, names in fetched])
    else:
        for job, place, names in fetched:
            click.echo(f"{job}: {len(names)} file{'s' if len(names) != 1 else ''} in {place}")
    return cli_ask.DONE


async def _fetch(channel: rpc.Channel, target: m.Target, to: Path | None) -> list[tuple[str, str, list[str]]]:
    if target.proc is not None:
        return [await _fetch_job(channel, target.cluster, target.proc, to)]
    rows = [row for row in await cli_show.list_jobs(channel, every=True, final=True) if row.cluster == target.cluster]
    done = [row for row in rows if row.state == "completed"]
    if not done:
        states = ", ".join(sorted({row.state for row in rows})) or "not there"
        raise cli_ask.Failed(
            f"no job of cluster {target.cluster} is completed ({states}); wait with 'sailplane wait {target.cluster}'"
        )
    return [await _fetch_job(channel, row.cluster, row.proc, to) for row in done]


async def _fetch_job(channel: rpc.Channel, cluster: int, proc: int, to: Path | None) -> tuple[str, str, list[str]]:
    names: list[str] = []
    first, place = 0, to
    while True:
        page, fds = await channel.call_with_fds(m.Fetch(cluster, proc, first))
        try:
            place = Path(page.iwd) if place is None else place
            with _directory(place) as root:
                names += _store_page(root, page, fds)
        finally:
            for fd in fds:
                os.close(fd)
        first += len(page.entries)
        if not page.more or not page.entries:
            return f"{cluster}.{proc}", str(place), names


@contextmanager
def _directory(place: Path) -> Iterator[int]:
    """The directory that the user named: made when missing, links in the user's own words are followed."""
    try:
        place.mkdir(parents=True, exist_ok=True)
        fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise cli_ask.Failed(
            f"cannot write into {place}: {error.strerror}; name another directory with --to"
        ) from error
    try:
        yield fd
    finally:
        os.close(fd)


def _store_page(root: int, page: Any, fds: list[int]) -> list[str]:
    left = iter(fds)
    names = []
    for entry in page.entries:
        name = placed(entry.name, page)
        try:
            if entry.size is None:
                os.close(_enter(root, name.split("/")))
                continue
            store(root, name, next(left), entry.mode)
        except OSError as error:
            raise cli_ask.Failed(f"cannot write {logs.clean(name)}: {error.strerror}") from error
        except StopIteration:
            raise cli_ask.Failed("the pool sent fewer files than names; see its log") from None
        names.append(logs.clean(name))
    return names


def placed(name: str, page: Any) -> str:
    """Where something that came back goes, relative to the directory. Raises Failed for a name that leads out of it."""
    said = {STDOUT: page.out, STDERR: page.err}.get(name)
    if said is not None:
        # What the user called it; an absolute name keeps its last part only.
        name = os.path.basename(said) if os.path.isabs(said) or ".." in said.split("/") else said
    else:
        try:
            name = remaps(page.remaps).get(name, name)
        except BadJob as bad:
            raise cli_ask.Failed(str(bad)) from bad
    parts = [part for part in name.split("/") if part not in ("", ".")]
    try:
        check_relative(name, "output")
        if not parts:
            raise BadJob(f"output: {name!r} is no name")
    except BadJob as bad:
        raise cli_ask.Failed(f"refusing to write {logs.clean(name)!r}: {bad}") from bad
    return "/".join(parts)


def _enter(root: int, parts: list[str]) -> int:
    """Open a directory below `root`, made when missing; a link in the way is an OSError."""
    here = os.dup(root)
    try:
        for part in parts:
            with suppress(FileExistsError):
                os.mkdir(part, 0o777, dir_fd=here)
            deeper = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
            os.close(here)
            here = deeper
    except BaseException:  # only to close; raised again at once
        os.close(here)
        raise
    return here


def store(root: int, name: str, source: int, mode: int) -> None:
    """Write one file below `root`: under a name of ours, then renamed; a link there is replaced, not followed."""
    *parents, last = name.split("/")
    directory = _enter(root, parents)
    temporary = f".sailplane-{secrets.token_hex(8)}"
    try:
        fd = os.open(
            temporary,
            os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
            mode & 0o777 | 0o600,
            dir_fd=directory,
        )
        try:
            _copy(source, fd)
        finally:
            os.close(fd)
        os.rename(temporary, last, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:  # a file half written is not left; raised again at once
        with suppress(OSError):
            os.unlink(temporary, dir_fd=directory)
        raise
    finally:
        os.close(directory)


def _copy(source: int, target: int) -> None:
    done = 0
    while sent := os.sendfile(target, source, done, CHUNK_BYTES):
        done += sent
