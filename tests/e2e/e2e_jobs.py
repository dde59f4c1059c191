"""What end-to-end tests do with a site: hand in jobs, wait for what must become of them, look at processes."""

from __future__ import annotations

import contextlib
import os
import signal
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs

from demo import accounts
from demo.site import Site, User

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

    def submit(self, role: str, script: str, **commands: str) -> str:
        """Hand in one job that runs ``script`` in a shell; its id."""
        user = self.user(role)
        name = f"job{uuid.uuid4().hex[:8]}"
        self.site.put(user, f"{name}.sh", f"#!/bin/sh\n{script}\n".encode(), mode=0o755)
        lines = DEFAULTS | {"executable": f"{name}.sh", "x509userproxy": str(user.proxy)} | commands
        text = "".join(f"{key} = {value}\n" for key, value in lines.items() if value) + "queue\n"
        self.site.put(user, f"{name}.sub", text.encode())
        return str(self.site.ask(user, "submit", f"{name}.sub")["jobs"][0])

    def row(self, role: str, job: str) -> dict[str, Any]:
        """The job as `q` shows it."""
        (row,) = self.site.ask(self.user(role), "q", job)
        return dict(row)

    def runs(self, role: str, job: str) -> list[dict[str, Any]]:
        """Its runs, the oldest first."""
        return list(self.site.ask(self.user(role), "history", job))

    def wait_for(self, role: str, job: str, *states: str) -> dict[str, Any]:
        """Until the job is in one of these states; SiteError with logs when it takes too long, or a daemon dies."""

        def there() -> dict[str, Any] | None:
            row = self.row(role, job)
            return row if row["state"] in states else None

        return self.site.wait_until(there, what=f"job {job} to be {' or '.join(states)}", deadline_s=PATIENCE_S)

    def done(self, role: str, job: str) -> dict[str, Any]:
        """Its row once it has completed; one that is held instead is an error at once."""
        row = self.wait_for(role, job, "completed", "held", "removed")
        assert row["state"] == "completed", row["reason"]
        return row

    def fetch(self, role: str, job: str) -> dict[str, bytes]:
        """Its output files by name."""
        user = self.user(role)
        (fetched,) = self.site.ask(user, "fetch", job, "--to", f"fetched-{uuid.uuid4().hex[:8]}")
        return {name: (user.home / fetched["directory"] / name).read_bytes() for name in fetched["files"]}

    def output(self, role: str, script: str, **commands: str) -> str:
        """What a job printed, once it is done."""
        job = self.submit(role, script, **commands)
        self.done(role, job)
        return self.fetch(role, job)["out"].decode()

    # --- the node ------------------------------------------------------------------------------------------------

    def calls(self, job: str) -> list[dict[str, Any]]:
        """The site's decisions for a job: GLEXEC_ID is the global job id, host#cluster.proc#time."""
        return [
            record
            for record in self.site.switch_log()
            if record["event"] == "decision" and f"#{job}#" in str(record["id"])
        ]

    def slot_ads(self) -> list[dict[str, Any]]:
        """Dynamic slots, as `status` shows them."""
        return [row for row in self.site.ask(self.user("alice"), "status") if row["name"].startswith("slot1_")]

    def processes(self, role: str) -> dict[int, str]:
        """Living processes of a user's account."""
        account = self.site.accounts[role]
        return accounts.processes_of([account.uid])

    def until(self, what: str, condition: Callable[[], Any]) -> Any:
        """Wait for a condition."""
        return self.site.wait_until(condition, what=what, deadline_s=PATIENCE_S)

    def until_gone(self, role: str) -> None:
        """Until no process of the user's lives and no sandbox is there."""
        self.until(f"no process of {role}", lambda: not self.processes(role))
        self.until("no sandbox", lambda: not list(self.site.layout.execute.iterdir()))

    def pids_of(self, *words: str) -> list[int]:
        """Daemons of the pilot's account whose command line has all these words."""
        uid = self.site.accounts["pilot"].uid
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                alive = (entry / "stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z"
                if alive and entry.stat().st_uid == uid and all(word in line for word in words):
                    found.append(int(entry.name))
        return found

    def kill(self, pid: int) -> None:
        """SIGKILL."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
