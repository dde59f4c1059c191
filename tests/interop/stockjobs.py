"""Jobs handed to a stock schedd by condor_submit, and what becomes of them on a Sailplane startd."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import attrs

from demo.grid import Certified, make_proxy, write_private
from demo.site import Site, User
from tests.interop.stockpool import StockPool
from tests.userlog import ABORTED, HELD, TERMINATED

T = TypeVar("T")
# On a busy machine; conditions are looked at all the time, so this is not how long it takes.
PATIENCE_S = 60.0
_EVENT = re.compile(r"(\d{3}) \((\d+)\.(\d+)\.\d+\) \S+ \S+ (.*)")
IDLE, RUNNING, REMOVED, COMPLETED, ON_HOLD = 1, 2, 3, 4, 5
DEFAULTS = {
    "should_transfer_files": "YES",
    "when_to_transfer_output": "ON_EXIT",
    "request_cpus": "1",
    "request_memory": "64",
    "request_disk": "100000",
}


@attrs.frozen
class Event:
    """One entry of a user log. ``text``: all its lines."""

    number: int
    text: str


@attrs.frozen
class Job:
    """One job, by the name of its files."""

    id: str
    role: str
    name: str
    home: Path

    @property
    def output(self) -> Path:
        return self.home / f"{self.name}.out.{self.id.partition('.')[2]}"


@attrs.define(eq=False)
class StockJobs:
    """Users of a stock pool that has a Sailplane execution point."""

    site: Site
    pool: StockPool

    # --- handing in ----------------------------------------------------------------------------------------------

    def submit(self, role: str, script: str, *, count: int = 1, **lines: str | None) -> list[Job]:
        """One cluster of ``count`` jobs; ``lines`` are added to the submit file, None takes a default out."""
        user = self.site.users[role]
        name = f"j{uuid.uuid4().hex[:8]}"
        self.site.put(user, f"{name}.sh", f"#!/bin/sh\n{script}\n".encode(), mode=0o755)
        values: dict[str, str | None] = {
            "executable": f"{name}.sh",
            "x509userproxy": str(user.proxy),
            "output": f"{name}.out.$(Process)",
            "error": f"{name}.err.$(Process)",
            "log": f"{name}.log",
            **DEFAULTS,
            **lines,
        }
        text = "".join(f"{key} = {value}\n" for key, value in values.items() if value is not None)
        self.site.put(user, f"{name}.sub", f"{text}queue {count}\n".encode())
        said = self.pool.tool("condor_submit", "-terse", f"{name}.sub", user=user)
        cluster = said.partition(".")[0]
        return [Job(f"{cluster}.{proc}", role, name, user.home) for proc in range(count)]

    def one(self, role: str, script: str, **lines: str | None) -> Job:
        """A cluster of one job."""
        return self.submit(role, script, count=1, **lines)[0]

    def proxy(self, role: str, name: str, owner: Certified, *, lifetime_s: float = 43_200.0) -> str:
        """A proxy file in a user's directory, replacing one of that name as a whole; its path."""
        user = self.site.users[role]
        assert user.account is not None
        new, path = user.home / f"{name}.{uuid.uuid4().hex[:8]}", user.home / name
        pem = make_proxy(owner, lifetime_s=lifetime_s).pem
        write_private(new, pem, owner=(user.account.uid, user.account.gid))
        new.rename(path)
        return str(path)

    # --- what became of them -------------------------------------------------------------------------------------

    def events(self, job: Job) -> list[Event]:
        """The job's entries in its log so far."""
        path = job.home / f"{job.name}.log"
        text = path.read_text(errors="replace") if path.exists() else ""
        found = []
        for entry in text.split("\n...\n"):
            match = _EVENT.match(entry)
            if match is not None and f"{match[2].lstrip('0')}.{int(match[3])}" == job.id:
                found.append(Event(int(match[1]), entry))
        return found

    def wait(self, job: Job, number: int, *, after: int = 0) -> Event:
        """Until the log has an event of this number behind its first ``after`` ones; SiteError with log ends if not."""

        def there() -> Event | None:
            return next((event for event in self.events(job)[after:] if event.number == number), None)

        return self.until(there, f"event {number} of job {job.id}; its log so far: {self.events(job)}")

    def done(self, job: Job) -> str:
        """What the job printed, once it has ended by itself; a job on hold instead is an error at once."""

        def ended() -> Event | None:
            return next((e for e in self.events(job) if e.number in (TERMINATED, HELD, ABORTED)), None)

        event = self.until(ended, f"the end of job {job.id}")
        assert event.number == TERMINATED, event.text
        return job.output.read_text(errors="replace")

    def until(self, condition: Callable[[], T | None], what: str, *, deadline_s: float = PATIENCE_S) -> T:
        return self.site.wait_until(condition, what=what, deadline_s=deadline_s, look_s=0.05)

    def ad(self, job: Job) -> dict[str, Any]:
        """The job's ad, from the queue or else from the history."""
        for tool in ("condor_q", "condor_history"):
            found = json.loads(self.pool.tool(tool, job.id, "-json") or "[]")
            if found:
                return dict(found[0])
        return {}

    def status(self, job: Job) -> int:
        return int(self.ad(job).get("JobStatus", 0))

    def act(self, verb: str, job: Job) -> None:
        """condor_rm, condor_hold, ... by the job's owner."""
        self.pool.tool(f"condor_{verb}", job.id, user=self.site.users[job.role])

    # --- the far sides -------------------------------------------------------------------------------------------

    def shadow_says(self, job: Job) -> list[str]:
        """Lines of the shadow's log about this job."""
        return [line for line in self.pool.log("ShadowLog").splitlines() if f"({job.id})" in line]

    def start_log(self) -> str:
        return (self.site.layout.pilot / "log" / "StartLog").read_text()

    def starter_log(self) -> str:
        return (self.site.layout.pilot / "log" / "StarterLog").read_text()

    def switch_calls(self, job: Job) -> list[dict[str, Any]]:
        """The site's decisions about this job."""
        return [
            record
            for record in self.site.switch_log()
            if record["event"] == "decision" and f"#{job.id}#" in str(record.get("id"))
        ]

    def slots(self) -> list[dict[str, Any]]:
        return list(json.loads(self.pool.tool("condor_status", "-json") or "[]"))

    def until_empty(self) -> None:
        """Until only the partitionable slot is left, and no sandbox. A collector keeps the slots of a startd that was
        killed until they are too old, or the next startd has slots of the same names."""
        address = (self.site.layout.pilot / "log" / ".startd_address").read_text().splitlines()[0]

        def empty() -> bool | None:
            sandboxes = list(self.site.layout.execute.iterdir())
            slots = [slot for slot in self.slots() if slot["MyAddress"] == address]
            return True if len(slots) == 1 and not sandboxes else None

        self.until(empty, "the slots to be given back")

    def user(self, role: str) -> User:
        return self.site.users[role]
