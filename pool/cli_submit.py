"""`sailplane submit`: a submit file becomes jobs at the pool.

Runs as the user: it reads the submit file, opens the input files itself and passes them as descriptors, and signs the
pool's certificate request with the user's proxy, whose key never leaves this process.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
from attrs import define, field

from cedar import classads
from pilot import credentials, rpc
from pool import cli_ask, submit_language
from pool import messages as m
from pool.ads import text_of, value_of
from pool.jobad import BadJob, executable_name, is_url, split_list

ENTRIES_PER_MESSAGE = 1000
# Job ads in one message, in bytes: the channel takes 1 MiB.
ADS_BYTES = 400_000
FILES_PER_MESSAGE = m.MAX_FDS


def add_to(group: click.Group) -> None:
    group.add_command(submit)


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@cli_ask.as_json
@click.pass_context
def submit(context: click.Context, file: Path, json_: bool) -> int:
    """Hand in the jobs of a submit FILE (HTCondor's submit language).

    Input files are copied now; a proxy named by x509userproxy is delegated, not copied.

    \b
    Example:
        executable            = count.sh
        arguments             = part.$(Process)
        transfer_input_files  = part.$(Process)
        output                = count.$(Process).out
        error                 = count.$(Process).err
        x509userproxy         = /tmp/x509up_u1000
        queue 10
    """
    try:
        plan = submit_language.read(file, os.environ, os.getuid())
        done = cli_ask.ask(context, lambda channel: _submit(channel, plan))
    except (submit_language.SubmitError, BadJob) as error:
        raise cli_ask.Failed(str(error)) from error
    if json_:
        ids = [f"{done.cluster}.{proc}" for proc in range(done.jobs)]
        cli_ask.show_json({"cluster": done.cluster, "owner": done.owner, "jobs": ids})
    else:
        click.echo(
            f"{done.jobs} job{'s' if done.jobs != 1 else ''} submitted to cluster {done.cluster} for {done.owner}."
        )
        click.echo(f"Wait for the output with: sailplane wait {done.cluster} && sailplane fetch {done.cluster}")
    return cli_ask.DONE


async def _submit(channel: rpc.Channel, plan: submit_language.Plan) -> m.Submitted:
    proxy = read_proxy(plan.proxy) if plan.proxy is not None else None
    gathered = Gathered.of(plan, 1)  # everything is looked at before the pool hears of it
    begun: m.Begun = await channel.call(m.Begin(proxy is not None))
    if len(gathered.paths) > begun.max_files:
        raise cli_ask.Failed(
            f"{len(gathered.paths)} input files; the pool takes {begun.max_files} in one submission: pack them (tar)"
        )
    if proxy is not None and plan.proxy is not None:
        await channel.call(m.GiveProxy(sign(proxy, begun.request), os.path.basename(plan.proxy)))
    await _give_files(channel, list(gathered.paths))
    gathered = Gathered.of(plan, begun.cluster, known=gathered.paths)
    await _give_inputs(channel, gathered)
    await _give_jobs(channel, gathered)
    done: m.Submitted = await channel.call(m.Commit())
    return done


def read_proxy(path: str) -> bytes:
    """The proxy file's bytes, looked at here so that the words are about the user's file."""
    try:
        pem = credentials.read_private(Path(path))
        found = credentials.load(pem)
    except OSError as error:
        raise cli_ask.Failed(
            f"cannot read the proxy {path}: {error.strerror}; make one with voms-proxy-init, or correct x509userproxy"
        ) from error
    except credentials.CredentialError as error:
        raise cli_ask.Failed(f"the proxy {path} cannot be used: {error}") from error
    if found.expires_at <= time.time():
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found.expires_at))
        raise cli_ask.Failed(
            f"the proxy {path} of {found.identity} ended at {when}; make a new one (voms-proxy-init) and submit again"
        )
    return pem


def sign(pem: bytes, request: bytes) -> bytes:
    try:
        return credentials.sign_request(pem, request, not_after=None)
    except credentials.CredentialError as error:
        raise cli_ask.Failed(f"your proxy cannot be delegated: {error}") from error


@define
class Gathered:
    """What a plan's jobs need: files by real path, input sets without repetition, jobs."""

    paths: dict[str, int] = field(factory=dict)
    sets: dict[tuple[m.InputEntry, ...], int] = field(factory=dict)
    jobs: list[m.NewJob] = field(factory=list)
    fixed: bool = False

    @classmethod
    def of(cls, plan: submit_language.Plan, cluster: int, known: Mapping[str, int] | None = None) -> Gathered:
        """Raises Failed for a file that cannot be read. `known`: the files that the pool has; no others may come."""
        found = cls(dict(known or {}), fixed=known is not None)
        for text in submit_language.ads(plan, cluster):
            ad = classads.parse_old(text)
            entries = tuple(found._entries(ad))
            number = found.sets.setdefault(entries, len(found.sets))
            found.jobs.append(m.NewJob(_as_sent(ad), number))
        return found

    def _entries(self, ad: Any) -> Iterator[m.InputEntry]:
        base = text_of(ad, "Iwd")
        seen: set[str] = set()
        for name, path in _wanted(ad):
            for above in _above(name):
                if above not in seen:
                    seen.add(above)
                    mode = stat.S_IMODE(_mode_of(os.path.join(base, above))) & 0o777
                    yield m.InputEntry(above, mode | 0o700, None)
            for entry in self._walk(name, os.path.join(base, path)):
                if entry.name not in seen:
                    seen.add(entry.name)
                    yield entry

    def _walk(self, name: str, path: str) -> Iterator[m.InputEntry]:
        """A file, or a directory with all in it; 'dir/' is what is in it only, without the directory itself."""
        mode = _mode_of(path)
        if not stat.S_ISDIR(mode):
            yield m.InputEntry(name, stat.S_IMODE(mode) & 0o777, self._key(path))
            return
        if name:
            yield m.InputEntry(name, stat.S_IMODE(mode) & 0o777 | 0o700, None)
        try:
            inside = sorted(os.listdir(path))
        except OSError as error:
            raise cli_ask.Failed(f"cannot read the input directory {path}: {error.strerror}") from error
        for each in inside:
            yield from self._walk(f"{name}/{each}" if name else each, os.path.join(path, each))

    def _key(self, path: str) -> int:
        real = os.path.realpath(path)
        if real not in self.paths:
            if self.fixed:
                raise cli_ask.Failed(
                    f"the input file {path} depends on the cluster's number; name it without $(ClusterId)"
                )
            if not os.access(real, os.R_OK):
                raise cli_ask.Failed(f"cannot read the input file {path}: permission denied")
            self.paths[real] = len(self.paths)
        return self.paths[real]


def _above(name: str) -> Iterator[str]:
    """The directories that a name lies in, from the top."""
    parts = name.split("/")
    for count in range(1, len(parts)):
        yield "/".join(parts[:count])


def _mode_of(path: str) -> int:
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise cli_ask.Failed(
            f"the input file {path} cannot be used: {error.strerror}; correct the submit file or make the file"
        ) from error
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise cli_ask.Failed(f"the input file {path} is neither a plain file nor a directory")
    return mode


def _wanted(ad: Any) -> Iterator[tuple[str, str]]:
    """(name in the sandbox, path here) of all that a job names: inputs, standard input, the executable last."""
    keep = value_of(ad, "PreserveRelativePaths") is True
    for path in split_list(text_of(ad, "TransferInput")):
        if not is_url(path):  # the node fetches it
            yield kept_path(path) if keep else os.path.basename(path), path
    for program in plugin_programs(text_of(ad, "TransferPlugins")):
        yield os.path.basename(program), program
    standard = text_of(ad, "In")
    if standard and standard != os.devnull:
        yield os.path.basename(standard), standard
    name = executable_name(ad)
    if name is not None:
        yield name, text_of(ad, "Cmd")


def kept_path(path: str) -> str:
    """The name of an input with preserve_relative_paths: its whole path where that leads nowhere else."""
    plain = os.path.normpath(path)
    if os.path.isabs(path) or plain.split("/", 1)[0] == "..":
        return os.path.basename(path)
    return "" if plain == "." else plain


def plugin_programs(text: str) -> list[str]:
    """'tar=untar.py;http,https=fetch' -> the programs, which travel as input."""
    return [part.partition("=")[2].strip() for part in text.split(";") if part.partition("=")[2].strip()]


def _as_sent(ad: Any) -> str:
    """The ad with standard input under the name that it has in the sandbox."""
    standard = text_of(ad, "In")
    if "/" in standard and standard != os.devnull:
        classads.set_str(ad, "In", os.path.basename(standard))
    return "\n".join(classads.to_wire(ad)) + "\n"


async def _give_files(channel: rpc.Channel, paths: list[str]) -> None:
    for first in range(0, len(paths), FILES_PER_MESSAGE):
        fds: list[int] = []
        try:
            for path in paths[first : first + FILES_PER_MESSAGE]:
                fds.append(_open(path))
            await channel.call(m.PutFiles(first, tuple(os.fstat(fd).st_size for fd in fds)), fds)
        except rpc.RpcRefused as refused:
            raise cli_ask.Failed(f"{refused.text} (files {paths[first]} and following)") from refused
        finally:
            for fd in fds:
                os.close(fd)


def _open(path: str) -> int:
    try:
        # Not waiting: somebody may have put a pipe in the file's place.
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise cli_ask.Failed(f"cannot open the input file {path}: {error.strerror}") from error


async def _give_inputs(channel: rpc.Channel, gathered: Gathered) -> None:
    for entries, number in gathered.sets.items():
        for first in range(0, max(1, len(entries)), ENTRIES_PER_MESSAGE):
            await channel.call(m.PutInputs(number, entries[first : first + ENTRIES_PER_MESSAGE]))


async def _give_jobs(channel: rpc.Channel, gathered: Gathered) -> None:
    batch: list[m.NewJob] = []
    size = 0
    for job in gathered.jobs:
        if batch and size + len(job.ad) > ADS_BYTES:
            await channel.call(m.PutJobs(tuple(batch)))
            batch, size = [], 0
        batch.append(job)
        size += len(job.ad)
    if batch:
        await channel.call(m.PutJobs(tuple(batch)))
