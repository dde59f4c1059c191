"""Every kind of job of the list, handed in together on one site of the embedded pool: output, ad and history of each
are what the list says. The same list runs beside a stock execution point in tests/interop."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest

from cedar import classads
from demo.site import Site
from pool.ads import value_of
from tests import joblist, userlog
from tests.e2e.conftest import STARTD_KNOBS
from tests.e2e.e2e_jobs import Jobs
from tests.fileserver import FileServer, serving
from tests.joblist import KINDS, Kind, Seen

pytestmark = [pytest.mark.needs_root, pytest.mark.timeout(300)]

HERE = tuple(kind for kind in KINDS if not kind.not_embedded)
KNOBS = {"NUM_CPUS": 8, "MEMORY": 8192, "SAILPLANE_LIMITS_INTERVAL": 0.5}
DEADLINE_S = 200.0
# One process for all jobs: a command costs a Python's start.
COMMANDS = """
import os, sys
from pool.cli import main
socket, verb, *words = sys.argv[1:]
home = os.getcwd()
for word in words:
    place, _, job = word.partition(" ")
    os.chdir(os.path.join(home, place))
    main(["--socket", socket, verb, job or "job.sub", "--json"])
"""
STATUS = {"idle": 1, "running": 2, "removed": 3, "completed": 4, "held": 5}
# What the pool's log says of a run, and the event of a user's log that stands for it: the pool keeps no such log, and
# notes nothing of file transfers.
_LOG = re.compile(
    r"#(?P<job>\d+\.0)#.*?(?:(?P<what>startup -> executing|executing -> suspended|suspended -> executing)"
    r"|event (?P<number>\d+) from the starter)"
    r"|job (?P<ended>\d+\.0): (?P<outcome>completed|held|requeued|removed|lost)"
)
_TOLD = {
    "startup -> executing": userlog.EXECUTING, "executing -> suspended": userlog.SUSPENDED,
    "suspended -> executing": userlog.UNSUSPENDED,
}  # fmt: skip
_ENDS = {
    "completed": userlog.TERMINATED, "held": userlog.HELD, "removed": userlog.ABORTED, "requeued": userlog.EVICTED,
    "lost": userlog.EVICTED,
}  # fmt: skip


@attrs.define(eq=False)
class Run:
    """All kinds on one site."""

    jobs: Jobs
    server: FileServer
    later: int
    ids: dict[str, str] = attrs.Factory(dict)
    rows: dict[str, dict[str, Any]] = attrs.Factory(dict)
    _told: defaultdict[str, list[int]] = attrs.Factory(lambda: defaultdict(list))
    _logged: int = 0

    @property
    def site(self) -> Site:
        return self.jobs.site

    def place(self, kind: Kind) -> Path:
        return self.jobs.user("alice").home / f"kind-{KINDS.index(kind)}"

    def words(self, kind: Kind) -> dict[str, str]:
        place = self.place(kind)
        put = f"{self.server.url}/{place.name}"
        return {"place": str(place), "url": self.server.url, "put": put, "later": str(self.later)}

    def hand_in(self) -> None:
        user = self.jobs.user("alice")
        for kind in HERE:
            place, words = self.place(kind), self.words(kind)
            standard = {"executable": "job.sh", "x509userproxy": str(user.proxy), "request_memory": "64",
                        "request_disk": "100000"}  # fmt: skip
            text, program = kind.submit_file(words, standard), kind.program(words)
            files = {**kind.files, "job.sub": text.encode(), "job.sh": program.encode()}
            for name, data in files.items():
                self._directory((place / name).parent)
                self.site.put(user, f"{place.name}/{name}", data, mode=0o755 if name.endswith(".sh") else 0o644)
        for kind, answer in zip(HERE, self._ask("submit", [self.place(kind).name for kind in HERE]), strict=True):
            self.ids[kind.name] = answer["jobs"][0]

    def _directory(self, path: Path) -> None:
        account = self.site.accounts["alice"]
        for parent in (*reversed(path.relative_to(self.jobs.user("alice").home).parents), None):
            where = path if parent is None else self.jobs.user("alice").home / parent
            if not where.exists():
                where.mkdir()
                os.chown(where, account.uid, account.gid)

    def _ask(self, verb: str, words: list[str]) -> list[Any]:
        """What `sailplane VERB` answers for each."""
        python = str(self.site.runtime.python)
        argv = [python, "-c", COMMANDS, str(self.site.layout.pool_socket), verb, *words]
        done = self.site.run_as(self.jobs.user("alice"), argv, deadline_s=DEADLINE_S)
        answers, text = [], done.stdout.strip()
        while text:
            answer, end = json.JSONDecoder().raw_decode(text)
            answers.append(answer)
            text = text[end:].lstrip()
        assert verb != "submit" or len(answers) == len(words), done.stderr
        return answers

    def act(self, kind: Kind, verb: str) -> None:
        if verb == joblist.GO:
            (self.place(kind) / verb).touch()
        else:
            self.site.ask(self.jobs.user("alice"), verb, self.ids[kind.name])

    def follow(self) -> None:
        def until(condition: Callable[[], bool | None], words: Callable[[], str]) -> None:
            deadline_s = time.monotonic() + DEADLINE_S
            self.site.wait_until(
                lambda: condition() or (time.monotonic() > deadline_s and pytest.fail(words())) or None,
                what="all jobs to end", deadline_s=DEADLINE_S + 10,
            )  # fmt: skip

        joblist.follow(
            [joblist.Handed(k, self.place(k), partial(self.events, k), partial(self.act, k)) for k in HERE], until
        )

    def fetch(self) -> None:
        self._ask("fetch", [f"{self.place(kind).name} {self.ids[kind.name]}" for kind in HERE])
        self.rows = self.jobs.rows()

    # --- what became of them -------------------------------------------------------------------------------------

    def events(self, kind: Kind) -> list[int]:
        self._read_on()
        return [userlog.SUBMITTED, *self._told[self.ids[kind.name]]]

    def _read_on(self) -> None:
        """What the pool has logged since the last look."""
        with (self.site.layout.pool / "log" / "PoolLog").open() as log:
            log.seek(self._logged)
            text = log.read()
        whole = text[: text.rfind("\n") + 1]
        self._logged += len(whole.encode())
        for match in _LOG.finditer(whole):
            if match["ended"]:
                self._told[match["ended"]].append(_ENDS[match["outcome"]])
            else:
                self._told[match["job"]].append(int(match["number"] or _TOLD[match["what"]]))

    def logged(self, kind: Kind) -> str:
        """What the daemons say of it."""
        job, lines = re.compile(rf"\b{re.escape(self.ids[kind.name])}\b"), []
        for name in ("pool/log/PoolLog", "pilot/log/StartdLog", "pilot/log/StarterLog"):
            for path in self.site.layout.root.rglob(Path(name).name):
                lines += [line for line in path.read_text(errors="replace").splitlines() if job.search(line)]
        return "\n".join(sorted(lines))

    def ad(self, kind: Kind, row: dict[str, Any]) -> dict[str, Any]:
        """The job's, as far as the pool knows it."""
        cluster = int(self.ids[kind.name].partition(".")[0])
        path = next(self.site.layout.pool.rglob("queue.sqlite"))
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            text, identity = database.execute(
                "SELECT ad, identity FROM jobs JOIN clusters ON number = cluster WHERE cluster = ?", (cluster,)
            ).fetchone()
            kept = database.execute("SELECT number FROM checkpoints WHERE cluster = ?", (cluster,)).fetchone()
        own = classads.parse_old(text.decode())
        return {name: value_of(own, name) for name in own} | {
            "JobStatus": STATUS[row["state"]], "HoldReasonCode": row["hold_code"],
            "HoldReasonSubCode": row["hold_subcode"], "ExitBySignal": row["exit_signal"] is not None,
            "ExitCode": row["exit_code"], "ExitSignal": row["exit_signal"], "x509userproxysubject": identity,
            "CheckpointNumber": None if kept is None else kept[0],
        }  # fmt: skip

    def seen(self) -> dict[str, Seen]:
        return {
            kind.name: Seen(
                {name: joblist.read(self.place(kind) / name) for name in kind.names()},
                self.ad(kind, self.rows[self.ids[kind.name]]),
                self.events(kind),
            )
            for kind in HERE
        }


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    with Site.open("test", linger=True) as site, serving() as server:
        tokens = site.layout.root / "tokens"
        tokens.mkdir(mode=0o711)
        site.start_pool(SEC_CREDENTIAL_DIRECTORY_OAUTH=tokens)
        site.start_startd(**STARTD_KNOBS | KNOBS)
        give_token(site, tokens)
        server.kept["/data.bin"] = joblist.DATA
        made = Run(Jobs(site), server, int(time.time()) + 8)
        made.hand_in()
        made.follow()
        made.fetch()
        yield made
        site.stop()
        assert site.left == []


def give_token(site: Site, tokens: Path) -> None:
    pool, path = site.accounts["pool"], tokens / site.accounts["alice"].name / "box.use"
    path.parent.mkdir()
    path.touch(mode=0o600)
    path.write_text("s3cret")
    os.chown(path.parent, pool.uid, pool.gid)
    os.chown(path, pool.uid, pool.gid)


@pytest.fixture(scope="module")
def seen(run: Run) -> dict[str, Seen]:
    return run.seen()


@pytest.mark.parametrize("kind", HERE, ids=lambda kind: kind.name)
def test_a_kind_of_job_ends_as_the_list_says(run: Run, seen: dict[str, Seen], kind: Kind) -> None:
    row = run.rows[run.ids[kind.name]]
    found, wanted = seen[kind.name], kind.ends_as(run.jobs.user("alice").dn)
    assert {name: found.ad.get(name) for name in wanted} == wanted, row["reason"]
    assert found.files == joblist.wanted_files(kind)
    sent = {name: run.server.kept.get(f"/{run.place(kind).name}/{name}") for name in kind.sent}
    assert sent == kind.sent
    assert joblist.story(found.events) == joblist.story(kind.events), run.logged(kind)
    assert len(run.jobs.calls(run.ids[kind.name])) == kind.calls or kind.calls is None
    assert kind.words in row["reason"]


def test_nothing_is_left_of_any(run: Run) -> None:
    run.jobs.until_nothing_is_left_of("alice")
