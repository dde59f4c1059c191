"""HTCondor's submit language, by the wheel's parser: a submit file becomes job ads.

The only importer of the v1 module `htcondor` (newer wheels lack it). It runs in the client, as the user, and opens
nothing but what the parser itself opens (files that the submit file includes or queues from). The parser says little
about a bad line, so the plain mistakes are looked for here first.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from attrs import frozen

from pool.jobad import POOL_ONLY

MAX_JOBS = 100_000

_KEYWORD_LINE = re.compile(r"\s*(if|elif|else|endif|include|use|queue|error|warning)\b", re.IGNORECASE)
_QUEUE = re.compile(r"\s*queue\b(?!\s*=)", re.IGNORECASE)
_ASSIGNMENT = re.compile(r"\s*(-|\+|MY\.)?([A-Za-z_][\w.$()]*)\s*(=|@=)", re.IGNORECASE)
_PROXY_KEYS = ("x509userproxy", "use_x509userproxy")
# Said by the parser of every job, without the user having said it.
_QUIET = POOL_ONLY - {"x509userproxy"}


# What a user relies on must not be dropped in silence.
_NOT_ACTED_ON_TEXT = """
max_retries retry_until success_exit_code hold noop_job stream_input
docker_image container_image vm_type checkpoint_destination
next_job_start_delay concurrency_limits
encrypt_input_files
"""
_NOT_ACTED_ON = frozenset(_NOT_ACTED_ON_TEXT.split())
_NOT_ACTED_ON_FAMILIES = ("periodic_", "on_exit_", "cron_", "ec2_", "arc_", "gce_", "azure_")


class SubmitError(Exception):
    """The submit file cannot become jobs; the text says where and what to do."""


@frozen
class Plan:
    """A submit file that parses. `proxy`: the path that it names; None when it wants none."""

    path: str
    submit: Any
    proxy: str | None


def read(path: Path, environ: Mapping[str, str], uid: int) -> Plan:
    """Read and check a submit file. Raises SubmitError (also when the file cannot be read)."""
    try:
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise SubmitError(f"cannot read the submit file {path}: {error.strerror}") from error
    check_lines(text, str(path))
    return _parse(text, str(path), environ, uid)


def check_lines(text: str, path: str) -> None:
    """The mistakes that the parser does not explain: a line that says nothing, no queue statement, more than one."""
    queues = 0
    for number, line in _logical_lines(text):
        if _QUEUE.match(line):
            queues += 1
            if queues > 1:
                raise SubmitError(f"{path}, line {number}: a second 'queue' statement; submit it as a file of its own")
        elif not _KEYWORD_LINE.match(line) and not _ASSIGNMENT.match(line):
            raise SubmitError(f"{path}, line {number}: {line.strip()[:80]!r} is neither 'name = value' nor a statement")
        else:
            _check_attribute(line, number, path)
    if not queues:
        raise SubmitError(f"{path}: there is no 'queue' statement, so there would be no job; end the file with 'queue'")


def _check_attribute(line: str, number: int, path: str) -> None:
    found = _ASSIGNMENT.match(line)
    if found and found[1] in ("+", "MY.", "my.", "My.") and found[2].lower() in POOL_ONLY:
        raise SubmitError(f"{path}, line {number}: {found[1]}{found[2]} is set by the pool only; take the line out")


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """(line number, line): continued lines joined; comments, blanks and the body of 'queue ... from (' left out."""
    lines = text.splitlines()
    at = 0
    while at < len(lines):
        first, line = at + 1, lines[at]
        while line.rstrip().endswith("\\") and at + 1 < len(lines):
            at += 1
            line = line.rstrip()[:-1] + " " + lines[at].strip()
        at += 1
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        yield first, line
        if _QUEUE.match(line) and line.count("(") > line.count(")"):
            while at < len(lines) and ")" not in lines[at]:
                at += 1
            at += 1
        if (here := re.search(r"@=\s*(\w+)\s*$", line)) and not _QUEUE.match(line):
            while at < len(lines) and lines[at].strip() != f"@{here[1]}":
                at += 1
            at += 1


def _parse(text: str, path: str, environ: Mapping[str, str], uid: int) -> Plan:
    htcondor = _wheel()
    try:
        submit = htcondor.Submit(text)
        proxy = _take_proxy(submit, environ, uid)
        _only_vanilla(submit, path)
        plan = Plan(path, submit, proxy)
        if _is_none(submit) or next(ads(plan, 1), None) is None:
            raise SubmitError(f"{path}: 'queue {submit.getQArgs()}' makes no job")
    except (htcondor.HTCondorException, ValueError, RuntimeError) as error:
        raise SubmitError(f"{path}: {_words(error)}") from error
    return plan


def _wheel() -> Any:
    # Set first: the library reads the machine's own HTCondor configuration otherwise.
    os.environ["CONDOR_CONFIG"] = "/dev/null"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "v1 bindings are deprecated" is about us, not about the user
        import htcondor  # 50 ms: only for whom submits

    return htcondor


def _words(error: BaseException) -> str:
    text = " ".join(str(error).split()).strip()
    return text or "the parser does not understand it (it gives no line); look for a mistyped statement"


def _take_proxy(submit: Any, environ: Mapping[str, str], uid: int) -> str | None:
    """Take the proxy's path out, so that the parser does not open it: it is delegated, not read from a path."""
    said = {key.lower(): key for key in submit.keys()}  # noqa: SIM118 - its iterator is a list, and no iterator
    path = str(submit.expand(said["x509userproxy"])).strip().strip('"') if "x509userproxy" in said else ""
    wanted = "use_x509userproxy" in said and str(submit[said["use_x509userproxy"]]).strip().lower() in (
        "true",
        "yes",
        "1",
    )
    for key in _PROXY_KEYS:
        if key in said:
            submit[said[key]] = ""  # taking it out ends the process: a fault of the wheel
    if path:
        return path
    return environ.get("X509_USER_PROXY") or f"/tmp/x509up_u{uid}" if wanted else None


def _only_vanilla(submit: Any, path: str) -> None:
    said = {key.lower(): str(submit[key]).strip() for key in submit.keys()}  # noqa: SIM118 - as above
    universe = said.get("universe", "vanilla").lower()
    if universe not in ("vanilla", "5"):
        raise SubmitError(f"{path}: universe = {universe}; this pool runs 'vanilla' jobs only")
    for name, value in said.items():
        wanted = value.lower() not in ("", "false", "no", "0")
        if wanted and (name in _NOT_ACTED_ON or name.startswith(_NOT_ACTED_ON_FAMILIES)):
            raise SubmitError(
                f"{path}: {name}: this pool does not act on it; leave it out, or use a full HTCondor pool"
            )
    for name, meant in (
        ("should_transfer_files", ("yes", "true", "if_needed")),
        ("when_to_transfer_output", ("on_exit", "on_success", "on_exit_or_evict")),
    ):
        if name in said and said[name].lower() not in meant:
            raise SubmitError(
                f"{path}: {name} = {said[name]}; this pool always moves files: leave it out, or say one of"
                f" {', '.join(meant)}"
            )
    submit["should_transfer_files"] = "YES"
    submit["when_to_transfer_output"] = said.get("when_to_transfer_output", "on_exit").upper()


def _is_none(submit: Any) -> bool:
    """'queue 0': the parser would make one job of it."""
    return re.fullmatch(r"\s*0+\s*", str(submit.getQArgs() or "")) is not None


def ads(plan: Plan, cluster: int) -> Iterator[str]:
    """The job ads of a plan as old ClassAd text, with $(ClusterId) filled in; what only the pool sets is left out."""
    htcondor = _wheel()
    try:
        # count=0: as the file's own queue statement says
        for number, ad in enumerate(plan.submit.jobs(count=0, clusterid=cluster, owner="")):
            if number == MAX_JOBS:
                raise SubmitError(f"{plan.path}: more than {MAX_JOBS} jobs at once; use several files")
            yield _text(ad)
    except htcondor.HTCondorException as error:
        raise SubmitError(f"{plan.path}: {_words(error)}") from error


def _text(ad: Any) -> str:
    kept = [line for line in ad.printOld().split("\n") if line and line.split(" ", 1)[0].lower() not in _QUIET]
    return "\n".join(kept) + "\n"
