"""What procd does when the host gives it nothing more: no descriptors, no threads. It may end; it never takes its own
lack for the end of a job."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from demo.accounts import Account
from pilot.rpc import RpcFault, connect
from procd.client import ProcdClient
from procd.messages import PROCD, Stop, Stopped
from procd.proc import ProcReader
from procd.process import Process
from tests.pilot.test_pilot_threads import without_threads
from tests.procd import world

# A check by scan, and process events, without a thread.
BUSY = """
import resource, trio
resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
from procd.events import Connector
from procd.families import Families
from procd.lookout import Lookout
from procd.proc import ProcReader
print(trio.run(Lookout(Families(1), ProcReader()).check))
try:
    Connector().close()
except OSError:
    pass
print("lives")
"""


@contextmanager
def no_descriptors() -> Iterator[None]:
    """In this process none can be opened."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("threads", [1, 2])
def test_no_descriptor_is_no_word_about_a_process(threads: int) -> None:
    reader = ProcReader()
    process = reader.read(os.getpid())
    assert process is not None
    process = Process(**process._asdict() | {"threads": threads})
    with no_descriptors():
        refused = 0
        for ask in (lambda: reader.read(os.getpid()), lambda: reader.children(process)):
            try:
                ask()
            except OSError:
                refused += 1
    reader.close()
    assert refused == 2


async def test_a_procd_without_descriptors_takes_nobody_for_dead(tmp_path: Path) -> None:
    """Somebody at its account opens connections until it has no descriptor left; a stop then proves nothing."""
    path = tmp_path / "s"
    with world.job(world.SLEEP) as job, world.daemon(path) as (process, _), ExitStack() as flood:
        await world.until(path.exists, "procd")
        client = await ProcdClient.connect(path, patience_s=0.5)
        await world.register(client, job)
        async with await connect(path, PROCD) as channel:
            resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (opened(process.pid) + 10,) * 2)
            for _ in range(64):
                flood.enter_context(sock := socket.socket(socket.AF_UNIX))
                sock.connect(str(path))
            await world.until(lambda: full(process.pid), "all descriptors taken")
            try:
                answer = await channel.call(Stop("job", False, 2.0, 0, 0.0))
            except RpcFault:
                answer = None
        assert not (isinstance(answer, Stopped) and answer.empty and job.alive())


def opened(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def full(pid: int) -> bool:
    return opened(pid) >= resource.prlimit(pid, resource.RLIMIT_NOFILE)[0]


async def test_a_starter_that_cannot_be_watched_is_not_dead(tmp_path: Path) -> None:
    """Without a descriptor for the watch nothing is stopped."""
    path = tmp_path / "s"
    with world.job(world.SLEEP) as job, world.daemon(path) as (process, _):
        await world.until(path.exists, "procd")
        client = await ProcdClient.connect(path, patience_s=0.5)
        # For the connection, and one for reading /proc: none is left for the watch.
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (lowest_free(process.pid) + 1,) * 2)
        for _ in range(3):
            try:
                await world.register(client, job)
            except RpcFault:
                break
        client.close()
        await world.until(lambda: process.poll() is not None or not job.alive(), "procd's end, or the job's")
        assert job.alive() == [job.pid]


def lowest_free(pid: int) -> int:
    taken = set(map(int, os.listdir(f"/proc/{pid}/fd")))
    return min(set(range(len(taken) + 1)) - taken)


@pytest.mark.needs_root
def test_a_host_without_threads_for_us_is_looked_at_all_the_same(accounts: Mapping[str, Account]) -> None:
    assert without_threads(BUSY, accounts["pilot"]) == "{}\nlives\n"


def test_a_daemon_may_have_as_many_descriptors_as_the_host_lets_it(tmp_path: Path) -> None:
    """Four for each job: with the usual soft limit of 1,024 a big node has too few."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 1024), hard))
    try:
        with world.daemon(tmp_path / "s") as (process, _):
            while not (tmp_path / "s").exists():
                assert process.poll() is None
            assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE)[0] == min(hard, 65_536)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
