"""What end-to-end tests do with a site: hand in jobs, wait for what must become of them, look at processes.

Jobs are handed in and fetched by the users' own command. Watching goes over the pool's socket from this process: a
command costs a Python's start each time.
"""

from __future__ import annotations

import contextlib
import os
import signal
import uuid
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
import trio

from demo import accounts
from demo.site import Site, User
from pilot import rpc
from pool import cli_show
from pool import messages as m

# On a busy machine; a condition is looked at all the time, so this is not how long it takes.
PATIENCE_S = 60.0
DEFAULTS = {
    "should_transfer_files": "YES",
    "when_to_transfer_output": "ON_EXIT",
    "request_memory": "64",
    "request_disk": "4096",
    "output": "out",
    "error": "err",
}


@attrs.define(eq=False)
class Jobs:
    """A site, seen by its users."""

    site: Site

    def user(self, role: str) -> User:
        return self.site.users[role]

    # --- handing in ----------------------------------------------------------------------------------------------

    def submit(self, role: str, script: str, **commands: str) -> str:
        """Hand in one job that runs ``script`` in a shell; its id."""
        return self.submit_many(role, [script], **commands)[0]

    def submit_many(self, role: str, scripts: Sequence[str], **commands: str) -> list[str]:
        """Hand in one cluster: a job for each script; their ids in this order."""
        user, stem = self.user(role), f"job{uuid.uuid4().hex[:8]}"
        for number, script in enumerate(scripts):
            self.site.put(user, f"{stem}.{number}.sh", f"#!/bin/sh\n{script}\n".encode(), mode=0o755)
        lines = DEFAULTS | {"executable": f"{stem}.$(ProcId).sh", "x509userproxy": str(user.proxy)} | commands
        text = "".join(f"{key} = {value}\n" for key, value in lines.items() if value) + f"queue {len(scripts)}\n"
        return self.submit_text(role, text)

    def submit_text(self, role: str, text: str) -> list[str]:
        """Hand in a submit file; the jobs' ids."""
        name = f"{uuid.uuid4().hex[:8]}.sub"
        self.site.put(self.user(role), name, text.encode())
        return list(self.site.ask(self.user(role), "submit", name)["jobs"])

    def remove(self, role: str, job: str) -> None:
        """`sailplane rm`, until the job is gone."""
        self.site.ask(self.user(role), "rm", job)
        self.wait_for(job, "removed")

    # --- watching ------------------------------------------------------------------------------------------------

    def ask(self, question: Callable[[rpc.Channel], Awaitable[Any]]) -> Any:
        """One question over the pool's socket."""

        async def asking() -> Any:
            channel = await rpc.connect(self.site.layout.pool_socket, m.POOL)
            try:
                return await question(channel)
            finally:
                await channel.aclose()

        return trio.run(asking)

    def rows(self) -> dict[str, dict[str, Any]]:
        """All jobs by id, as `q --json` shows them."""
        found = self.ask(lambda channel: cli_show.list_jobs(channel, every=True, final=True))
        return {row["id"]: row for row in map(cli_show.job_json, found)}

    def runs(self, job: str) -> list[dict[str, Any]]:
        """A job's runs, the oldest first."""
        cluster, proc = map(int, job.split("."))
        return [cli_show.run_json(row) for row in self.ask(lambda c: c.call(m.RunsOf(m.Target(cluster, proc), 0))).rows]

    def wait_for(self, job: str, *states: str) -> dict[str, Any]:
        """Until the job is in one of these states; SiteError with logs when it takes too long, or a daemon dies."""

        def there() -> dict[str, Any] | None:
            row = self.rows()[job]
            return row if row["state"] in states else None

        return self.site.wait_until(there, what=f"job {job} to be {' or '.join(states)}", deadline_s=PATIENCE_S)

    def done(self, job: str) -> dict[str, Any]:
        """Its row once it has completed; one that is held instead is an error at once."""
        row = self.wait_for(job, "completed", "held", "removed")
        assert row["state"] == "completed", row["reason"]
        return row

    def fetch(self, role: str, job: str) -> dict[str, bytes]:
        """Its output files by name, by `sailplane fetch`."""
        user = self.user(role)
        (fetched,) = self.site.ask(user, "fetch", job, "--to", f"fetched-{uuid.uuid4().hex[:8]}")
        return {name: (user.home / fetched["directory"] / name).read_bytes() for name in fetched["files"]}

    def output(self, role: str, script: str, **commands: str) -> str:
        """What a job printed, once it is done."""
        job = self.submit(role, script, **commands)
        self.done(job)
        return self.fetch(role, job)["out"].decode()

    # --- the node ------------------------------------------------------------------------------------------------

    def calls(self, job: str) -> list[dict[str, Any]]:
        """The site's decisions for a job: GLEXEC_ID is the global job id, host#cluster.proc#time."""
        return [
            record
            for record in self.site.switch_log()
            if record["event"] == "decision" and f"#{job}#" in str(record["id"])
        ]

    def log(self, name: str) -> str:
        """One of the pilot's logs."""
        return (self.site.layout.pilot / "log" / name).read_text()

    def until(self, what: str, condition: Callable[[], Any]) -> Any:
        """Wait until a condition is true, or gives something that is."""
        return self.site.wait_until(lambda: condition() or None, what=what, deadline_s=PATIENCE_S)

    def processes(self, role: str) -> dict[int, str]:
        """Living processes of a user's account."""
        return accounts.processes_of([self.site.accounts[role].uid])

    def sandboxes(self) -> list[Path]:
        """What lies in the execute directory."""
        return list(self.site.layout.execute.iterdir())

    def until_nothing_is_left_of(self, role: str) -> None:
        """Until no process of the user's lives, no sandbox is there, and no credential of a job."""
        self.until(f"no process of {role}", lambda: not self.processes(role))
        self.until("no sandbox", lambda: not self.sandboxes())
        self.until("no job's credential", lambda: not list((self.site.layout.pilot / "run").glob("jobs/*")))

    def pids_of(self, *words: str) -> list[int]:
        """Processes of the pilot's account whose command line has all these words, the oldest first."""
        uid = self.site.accounts["pilot"].uid
        found = []
        for pid in accounts.processes_of([uid]):
            with contextlib.suppress(OSError):
                line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
                if all(word in line for word in words):
                    found.append(pid)
        return sorted(found)

    def spawner(self) -> int:
        """The spawner: the one of its kind whose parent is the startd."""
        assert self.site.startd is not None
        (pid,) = [pid for pid in self.pids_of("--spawner-fd") if _parent(pid) == self.site.startd.pid]
        return pid

    def starters(self) -> list[int]:
        """Forked starters look like the spawner, and are its children; the spare, which has no job yet, says so."""
        return [pid for pid in self._forked() if _name(pid) not in ("", "spare")]

    def spares(self) -> list[int]:
        """Starters that have no job yet; more than one only while some are on their way out."""
        return [pid for pid in self._forked() if _name(pid) == "spare"]

    def _forked(self) -> list[int]:
        spawner = self.spawner()
        return [pid for pid in self.pids_of("--spawner-fd") if _parent(pid) == spawner]

    def collector_port(self) -> int:
        """The pool's port, for a restarted one."""
        return int(self.site.layout.collector_address.read_text().split("?")[0].split(">")[0].rsplit(":", 1)[1])

    def kill(self, pid: int) -> None:
        """SIGKILL."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _name(pid: int) -> str:
    """Empty of one that is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def _parent(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])
    return 0
