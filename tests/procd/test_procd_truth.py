"""Usage against the truth: random trees, measured by the kernel in a cgroup, and by a sampler that looks all the time.

Trees whose parents wait for their children; what is lost where nobody waits is in docs/usage.md.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
import trio

from procd.client import ProcdClient
from procd.groups import Group
from procd.messages import Usage
from procd.proc import TICKS_PER_S, ProcReader
from procd.process import ProcessId
from tests.procd import world
from tests.procd.hosts import Delegated, delegated

pytestmark = pytest.mark.needs_root

POLL_S = 0.1
SAMPLE_S = 0.01
# Longer than two polls.
PLATEAU_S = 0.5

# argv: seed, CPU seconds in all, seconds of the plateau, a path to say done by. Each process forks, takes memory and
# burns; when all have, all stay for the plateau, and then each waits for its children. Some are sessions of their own.
TREE = """
import os, random, signal, sys, time
signal.pthread_sigmask(signal.SIG_BLOCK, {10})
open(sys.argv[4] + "-ready", "w").close()
signal.sigwait({10})
draw = random.Random(int(sys.argv[1]))
shares = [draw.random() + 0.1 for _ in range(draw.randint(3, 12))]
parents = [draw.randrange(number) for number in range(1, len(shares))]
sizes = [draw.randint(1, 24) << 20 for _ in shares]
burn_s = [float(sys.argv[2]) * share / sum(shares) for share in shares]
told, tell = os.pipe()
hold, let_go = os.pipe()
def run(number):
    if draw.random() < 0.3 and number:
        os.setsid()
    children = []
    for child in range(number + 1, len(shares)):
        if parents[child - 1] == number:
            pid = os.fork()
            if pid == 0:
                if not number:
                    os.close(let_go)
                run(child)
                os._exit(0)
            children.append(pid)
    kept = b"x" * sizes[number]  # not before a fork, after which it would count twice for a moment
    end = time.process_time() + burn_s[number]
    while time.process_time() < end:
        if number % 3 == 0: os.stat("/")
    if number:
        os.write(tell, b"x")
        os.read(hold, 1)
    else:
        for _ in shares[1:]:
            os.read(told, 1)
        time.sleep(float(sys.argv[3]))
        os.close(let_go)
    for pid in children:
        os.waitpid(pid, 0)
run(0)
open(sys.argv[4], "w").close()
while True: signal.pause()
"""


@attrs.define
class Sampler:
    """The sum of resident sizes in a group, looked at every 10 ms by root."""

    group: Group
    peak_kb: int = 0
    _stop: threading.Event = attrs.field(factory=threading.Event)
    _thread: threading.Thread | None = None

    def run(self) -> None:
        reader = ProcReader()
        while not self._stop.wait(SAMPLE_S):
            read = [reader.read(pid) for pid in self.group.pids()]
            self.peak_kb = max(self.peak_kb, sum(each.rss_kb for each in read if each is not None and each.running))
        reader.close()

    def __enter__(self) -> Sampler:
        self._thread = threading.Thread(target=self.run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        assert self._thread is not None
        self._thread.join()


@attrs.frozen
class Measured:
    """What procd says of a tree, and what is true."""

    cpu_s: float
    true_cpu_s: float
    rss_kb: int
    true_rss_kb: int

    def agrees(self, *, spare_s: float) -> bool:
        near = abs(self.cpu_s - self.true_cpu_s) <= 0.02 * self.true_cpu_s + spare_s
        return near and abs(self.rss_kb - self.true_rss_kb) <= 0.05 * self.true_rss_kb


@pytest.fixture
def place() -> Iterator[Delegated]:
    with delegated(None) as made:
        yield made


async def measure(client: ProcdClient, place: Delegated, tmp_path: Path, seed: int, cpu_s: float) -> Measured:
    done = tmp_path / f"done-{seed}"
    family = f"tree-{seed}"
    with world.job(TREE, str(seed), str(cpu_s), str(PLATEAU_S), str(done)) as job:
        await world.until(Path(f"{done}-ready").exists, "a tree that waits for its word")
        group = Group(place.path / family)
        group.path.mkdir()
        group.add(ProcessId(job.pid, job.ticks))
        await world.register(client, job, family)
        before, true_before = _cpu(await client.usage(family)), _counted(group)
        with Sampler(group) as sampler:
            os.kill(job.pid, signal.SIGUSR1)
            while not done.exists():
                await client.usage(family)
                await trio.sleep(POLL_S)
        usage, true_cpu_s = await client.usage(family), _counted(group)
        await client.unregister(family)
    return Measured(_cpu(usage) - before, true_cpu_s - true_before, usage.rss_peak_kb, sampler.peak_kb)


def _cpu(usage: Usage) -> float:
    return usage.user_s + usage.system_s


def _counted(group: Group) -> float:
    counted = group.counted()
    assert counted is not None
    return counted.user_s + counted.system_s


async def _all(tmp_path: Path, place: Delegated, seeds: list[int], cpu_s: float, at_once: int) -> list[Measured]:
    measured: list[Measured] = []
    limit = trio.CapacityLimiter(at_once)

    async def one(client: ProcdClient, seed: int) -> None:
        async with limit:
            measured.append(await measure(client, place, tmp_path, seed, cpu_s))

    async with world.procd(tmp_path / "s") as client, trio.open_nursery() as nursery:
        for seed in seeds:
            nursery.start_soon(one, client, seed)
    return measured


async def test_usage_of_ten_trees_is_true(tmp_path: Path, place: Delegated) -> None:
    """Short ones: /proc tells CPU in ticks, rounded down: user and system, its own and that of waited-for children."""
    started_s = time.monotonic()
    measured = await _all(tmp_path, place, list(range(10)), 0.2, at_once=10)
    assert [each for each in measured if not each.agrees(spare_s=4 / TICKS_PER_S)] == []
    assert time.monotonic() - started_s < 100


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_usage_of_fifty_trees_is_true(tmp_path: Path, place: Delegated, record_property: object) -> None:
    """Long enough that 2 % are more than the rounding."""
    measured = await _all(
        tmp_path, place, [random.SystemRandom().randrange(1 << 30) for _ in range(50)], 3.0, at_once=2
    )
    worst_cpu = max(abs(each.cpu_s / each.true_cpu_s - 1) for each in measured)
    worst_rss = max(abs(each.rss_kb / each.true_rss_kb - 1) for each in measured)
    print(f"CPU within {worst_cpu:.2%}, peak of resident memory within {worst_rss:.2%}")
    assert [each for each in measured if not each.agrees(spare_s=0)] == []
