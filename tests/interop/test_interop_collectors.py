"""A pool with three stock collectors: ours advertises to all of them, and what befalls one is no matter to another.

The first is that of the pool; the second lives and dies by the tests; the third authorises nobody to advertise.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import attrs
import pytest

from demo.site import Site
from tests.interop.conftest import STARTD_KNOBS
from tests.interop.stockjobs import StockJobs
from tests.interop.stockpool import VARIABLE, StockPool, open_pool
from tests.userlog import EXECUTING

pytestmark = [pytest.mark.interop, pytest.mark.timeout(170)]

CONFIGURATION = """\
include : {config}
LOCAL_DIR = {here}
USE_SHARED_PORT = False
COLLECTOR_PORT = {port}
COLLECTOR_HOST = 127.0.0.1:{port}
"""
REFUSING = "ALLOW_ADVERTISE_STARTD = nobody@nowhere.example\n"
SLOT = "slot1@sailplane.example"


@attrs.define(eq=False)
class Collector:
    """A stock collector beside the pool's own, without a master."""

    pool: StockPool
    name: str
    more: str = ""
    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    @property
    def here(self) -> Path:
        return self.pool.here / self.name

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def make(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        owner = self.pool.site.accounts["pool"]
        for path in (self.here, *(self.here / name for name in ("log", "spool", "execute", "run", "lock"))):
            path.mkdir(mode=0o755)
            os.chown(path, owner.uid, owner.gid)
        text = CONFIGURATION.format(config=self.pool.here / "condor_config", here=self.here, port=self.port)
        (self.here / "condor_config").write_text(text + self.more)

    def start(self) -> None:
        """Until it answers."""
        environment = self.pool.environment | {"CONDOR_CONFIG": str(self.here / "condor_config")}
        with (self.here / "out").open("ab") as output:
            self.process = subprocess.Popen(
                [str(self.pool.prefix / "sbin/condor_collector"), "-f", "-p", str(self.port)],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, cwd=self.here,
                start_new_session=True,
            )  # fmt: skip
        self.pool.site.wait_until(self._answers, what=f"the collector {self.name}", deadline_s=30.0, look_s=0.2)

    def _answers(self) -> bool | None:
        assert self.process is not None
        assert self.process.poll() is None, (self.here / "out").read_text()
        said = self.pool.tool("condor_status", "-pool", self.address, "-collector", "-af", "Name", check=False)
        return bool(said.strip()) or None

    def end(self, number: int = signal.SIGQUIT) -> None:
        if self.process is None:
            return
        self.process.send_signal(number)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def slots(self) -> dict[str, str]:
        """Name and state of every slot that it knows."""
        return slots_at(self.pool, self.address)


def slots_at(pool: StockPool, address: str) -> dict[str, str]:
    rows = pool.tool("condor_status", "-pool", address, "-af", "Name", "State").splitlines()
    return dict(row.split() for row in rows)


@attrs.frozen(eq=False)
class Three:
    jobs: StockJobs
    second: Collector
    refusing: Collector

    def first(self) -> dict[str, str]:
        return slots_at(self.jobs.pool, f"127.0.0.1:{self.jobs.pool.port}")

    def until_same(self, slots: int) -> None:
        """Until both that take ads know the same slots, of this number."""
        self.jobs.until(
            lambda: (len(self.first()) == slots and self.first() == self.second.slots()) or None,
            f"{slots} slots in both collectors",
        )


@pytest.fixture(scope="module")
def three() -> Iterator[Three]:
    with Site.open("test", linger=True) as site, ExitStack() as ends:
        pool = ends.enter_context(open_pool(site, Path(os.environ[VARIABLE])))
        second, refusing = Collector(pool, "second"), Collector(pool, "refusing", REFUSING)
        for collector in (second, refusing):
            collector.make()
            ends.callback(collector.end)
            collector.start()
        hosts = ", ".join((f"127.0.0.1:{pool.port}", refusing.address, second.address))
        site.start_startd(**STARTD_KNOBS | {"COLLECTOR_HOST": hosts})
        yield Three(StockJobs(site, pool), second, refusing)
        site.stop()


def test_both_have_the_slots_and_the_third_has_none(three: Three) -> None:
    three.until_same(1)
    assert three.first() == {SLOT: "Unclaimed"}
    assert three.refusing.slots() == {}
    told = three.jobs.start_log()
    assert told.count(f"collector <{three.refusing.address}>: ") == 1, "that it refuses is said once"


def test_a_claim_is_seen_in_both(three: Three) -> None:
    job = three.jobs.one("alice", "sleep 300")
    three.jobs.wait(job, EXECUTING)
    three.until_same(2)
    assert "Claimed" in three.second.slots().values()
    three.jobs.act("rm", job)
    three.until_same(1)


def test_no_attribute_of_a_job_keeps_a_slot_out(three: Three) -> None:
    """Its slot's ad has NiceUser as the job has it: printed with a blank more, no collector could read the ad."""
    job = three.jobs.one("alice", "sleep 300", **{"+NiceUser": "{undefined ?: -1}"})
    three.jobs.wait(job, EXECUTING)
    three.until_same(2)
    for address in (f"127.0.0.1:{three.jobs.pool.port}", three.second.address):
        three.jobs.until(
            lambda at=address: (
                "NiceUser = { undefined ?: -1 }" in three.jobs.pool.tool("condor_status", "-pool", at, "-l") or None
            ),
            f"the job's attribute in its slot's ad at {address}",
        )
    three.jobs.act("rm", job)
    three.until_same(1)


def test_neither_counts_the_others_updates_as_lost(three: Three) -> None:
    for address in (f"127.0.0.1:{three.jobs.pool.port}", three.second.address):
        names = ("UpdatesTotal", "UpdatesSequenced", "UpdatesLost")
        row = three.jobs.pool.tool("condor_status", "-pool", address, SLOT, "-af", *names)
        total, sequenced, lost = map(int, row.split())
        assert total > 2
        assert (sequenced, lost) == (total - 1, 0), f"{row} at {address}"


def test_a_dead_one_is_no_matter_to_the_other_and_has_all_again_when_it_is_back(three: Three) -> None:
    """It comes back without memory; a slot that came meanwhile is there, one that went is not."""
    gone = three.jobs.one("alice", "sleep 300")
    three.jobs.wait(gone, EXECUTING)
    three.until_same(2)
    three.second.end(signal.SIGKILL)
    three.jobs.act("rm", gone)
    three.jobs.until(lambda: len(three.first()) == 1 or None, "the first collector to lose a slot")
    job = three.jobs.one("bob", "sleep 300")
    three.jobs.wait(job, EXECUTING)
    three.jobs.until(lambda: len(three.first()) == 2 or None, "the first collector to have another")
    three.second.start()
    three.until_same(2)
    three.jobs.act("rm", job)
    three.until_same(1)


def test_one_that_stands_still_is_no_matter_to_the_other(three: Three) -> None:
    assert three.second.process is not None
    three.second.process.send_signal(signal.SIGSTOP)
    try:
        job = three.jobs.one("alice", "echo on")
        assert three.jobs.done(job) == "on\n"
        three.jobs.until(lambda: len(three.first()) == 1 or None, "the slot to be given back")
    finally:
        three.second.process.send_signal(signal.SIGCONT)
    three.until_same(1)


def test_at_the_end_both_are_told(three: Three) -> None:
    """The last one: a collector would keep what nobody takes back for its time to live."""
    three.until_same(1)
    startd = three.jobs.site.startd
    assert startd is not None
    three.jobs.site.startd = None
    startd.stop(signal.SIGQUIT, deadline_s=30)
    assert three.first() == {}
    assert three.second.slots() == {}
