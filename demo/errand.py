"""The users' part of the demo: hand in jobs, bring back outputs, and say what became of them."""

from __future__ import annotations

import pwd
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

from demo import report, watch, work
from demo.chronicle import FILE
from demo.site import Site, User
from pool.messages import JobRow, RunRow


@attrs.define
class Errand:
    """One cluster of a user: its jobs, and what came back of each."""

    user: User
    what: str
    cluster: int
    owner: str
    outputs: dict[str, dict[str, bytes]] = attrs.Factory(dict)


def hand_in_parts(site: Site) -> list[Errand]:
    """Give every user the input and submit the parts."""
    made = []
    size = FILE.stat().st_size
    for role, what in work.COUNTS.items():
        user = site.users[role]
        site.put(user, work.INPUT, FILE.read_bytes())
        site.put(user, work.PROGRAM, (FILE.parent / work.PROGRAM).read_bytes(), mode=0o755)
        made.append(_submit(site, user, what, "parts.sub", work.parts_submit(what, size)))
    return made


def hand_in_merges(site: Site, parts: Iterable[Errand]) -> list[Errand]:
    """Bring the parts back and submit the jobs that merge them."""
    made = []
    for errand in parts:
        bring_back(site, [errand])
        made.append(_submit(site, errand.user, errand.what, "merge.sub", work.merge_submit(errand.what)))
    return made


def _submit(site: Site, user: User, what: str, name: str, text: str) -> Errand:
    site.put(user, name, text.encode())
    answer = site.ask(user, "submit", name)
    return Errand(user, what, int(answer["cluster"]), str(answer["owner"]))


def bring_back(site: Site, errands: Iterable[Errand]) -> None:
    """Fetch the outputs of completed jobs into their user's directory."""
    for errand in errands:
        rows = [row for row in watch.jobs(site.layout.pool_socket) if row.cluster == errand.cluster]
        if all(row.state != "completed" for row in rows):
            continue
        for job in site.ask(errand.user, "fetch", str(errand.cluster)):
            files = [errand.user.home / name for name in job["files"]]
            errand.outputs[job["id"]] = {path.name: path.read_bytes() for path in files}


def collect(site: Site, errands: Sequence[Errand], pilot_uid: int) -> tuple[list[report.JobReport], list[str]]:
    """A report of each job, and what is wrong with it or with the users' results."""
    jobs: list[report.JobReport] = []
    log = site.switch_log()
    problems = []
    rows = watch.jobs(site.layout.pool_socket)
    for errand in errands:
        runs = watch.runs(site.layout.pool_socket, errand.cluster)
        for row in rows:
            if row.cluster == errand.cluster:
                made, wrong = _report(site, errand, row, runs.get(watch.job_id(row)), log, pilot_uid)
                jobs.append(made)
                problems += wrong
    return jobs, problems + _wrong_results(errands)


def _report(
    site: Site,
    errand: Errand,
    row: JobRow,
    run: RunRow | None,
    log: Sequence[Mapping[str, Any]],
    pilot_uid: int,
) -> tuple[report.JobReport, list[str]]:
    job = watch.job_id(row)
    outputs = errand.outputs.get(job, {})
    uid = next((report.said_uid(data) for name, data in outputs.items() if name.endswith(".out")), None)
    calls = report.calls_of(job, log)
    times = (run.started_at, run.executing_at, run.ended_at) if run else (None, None, None)
    made = report.JobReport(
        id=job,
        owner=row.owner,
        dn=str(calls[0]["dn"]) if calls and "dn" in calls[0] else errand.user.dn,
        uid=uid,
        account=None if uid is None else _account(uid),
        pilot_uid=pilot_uid,
        exit_status=report.exit_status(row.exit_status),
        outputs=report.digests(outputs),
        switch_calls=len(calls) if site.isolated else None,
        seconds=report.seconds(row.submitted_at, *times),
    )
    wrong = [f"job {job} is {row.state}: {row.reason}"] if row.state != "completed" else []
    mapped = {call["uid"] for call in calls if "uid" in call}
    if site.isolated and mapped != {uid}:
        wrong.append(f"job {job} says that it ran as uid {uid}, the site's root log says {sorted(mapped)}")
    return made, wrong


def _account(uid: int) -> str:
    """Its name; a sub-uid has none but ours."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"userns-{uid}"


def _wrong_results(errands: Sequence[Errand]) -> list[str]:
    text = FILE.read_text("ascii")
    problems = []
    for role, what in work.COUNTS.items():
        outputs: dict[str, bytes] = {}
        for errand in errands:
            if errand.user.role == role:
                for files in errand.outputs.values():
                    outputs.update(files)
        wrong = work.fault(what, outputs, text)
        problems += [f"{role}: {wrong}"] if wrong else []
    return problems
