"""What dead starters left is tried again and again, with the proxy of whoever is at that account now."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from pilot.ledger import identity_of, note_identity
from pilot.rpc import ChannelClosed
from startd.janitor import Janitor
from starter.places import Place
from starter.private import NOTE, PROXY, make_private_dir, own_identity, remove_private_dir, write_note
from starter.sandbox import make_place

LOG = logging.LoggerAdapter(logging.getLogger("test"), {})
NOBODY = 65534


class Tries:
    """Stands for the spawner: notes what is to be cleaned, with whose proxy, and when."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, bytes, float]] = []
        self.away = False

    async def clean(self, private_dir: Path) -> None:
        if self.away:
            raise ChannelClosed("no spawner runs")
        self.seen.append((private_dir.name, (private_dir / PROXY).read_bytes(), trio.current_time()))


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir(mode=0o700)
    return tmp_path / "run"


def leave(run_dir: Path, execute: Path, ticks: int) -> Path:
    """What a dead starter leaves: its private directory with a note, and a sandbox of this account."""
    private = make_private_dir(run_dir, 1, ticks)  # pid 1 has another start tick
    execute.mkdir(exist_ok=True)
    place: Place = make_place(execute)
    place.path.mkdir()
    write_note(private, place, "id")
    (private / PROXY).write_bytes(b"ended")
    return private


@asynccontextmanager
async def working(run_dir: Path, tries: Tries) -> AsyncIterator[Janitor]:
    janitor = Janitor(run_dir, tries.clean, LOG)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(janitor.run)
        janitor.look()
        await trio.testing.wait_all_tasks_blocked()
        yield janitor
        nursery.cancel_scope.cancel()


async def test_tried_with_growing_pauses_until_it_is_gone(
    run_dir: Path, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    private, tries = leave(run_dir, tmp_path / "x", 999), Tries()
    async with working(run_dir, tries) as janitor:
        assert janitor.waiting == 1
        await trio.sleep(3600)
        pauses = [after[2] - before[2] for before, after in zip(tries.seen, tries.seen[1:], strict=False)]
        assert pauses[:4] == [2.0, 4.0, 8.0, 16.0]
        assert max(pauses) == 600.0
        assert len(tries.seen) < 16, "the site is not asked all the time"
        remove_private_dir(private)
        await trio.sleep(601)
        assert janitor.waiting == 0
        count = len(tries.seen)
        await trio.sleep(3600)
        assert len(tries.seen) == count


async def test_a_new_proxy_at_the_same_account_is_tried_at_once_and_one_of_another_is_not(
    run_dir: Path, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    private = leave(run_dir, tmp_path / "x", 999)
    note_identity(private / PROXY, "/CN=Alice", "/vo")
    mine = make_private_dir(run_dir, *own_identity())
    (mine / PROXY).write_bytes(b"proxy")
    note_identity(mine / PROXY, "/CN=Bob", "/vo")
    tries = Tries()
    async with working(run_dir, tries) as janitor:
        await trio.sleep(5000)  # pauses are long by now
        before = len(tries.seen)
        janitor.account_seen(os.getpid(), NOBODY)
        await trio.testing.wait_all_tasks_blocked()
        assert len(tries.seen) == before
        tries.seen.clear()
        janitor.account_seen(os.getpid(), os.geteuid())
        await trio.testing.wait_all_tasks_blocked()
        assert [(name, proxy) for name, proxy, _ in tries.seen] == [("1-999", b"proxy")]
        assert identity_of(private / PROXY) == ("/CN=Bob\n/vo\n", "/CN=Bob"), "its calls count as Bob's"
        (mine / PROXY).unlink()  # its own starter ends meanwhile
        janitor.account_seen(os.getpid(), os.geteuid())  # the same proxy again is no news
        await trio.testing.wait_all_tasks_blocked()
        assert len(tries.seen) == 1
        assert before > 5
        assert {proxy for _, proxy, _ in tries.seen} == {b"proxy"}


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"{}", b"\xff"])
async def test_a_damaged_note_hurts_nobody_else(
    run_dir: Path, tmp_path: Path, autojump_clock: trio.testing.MockClock, damage: bytes
) -> None:
    (leave(run_dir, tmp_path / "x", 998) / NOTE).write_bytes(damage)
    leave(run_dir, tmp_path / "x", 999)
    mine = make_private_dir(run_dir, *own_identity())
    (mine / PROXY).write_bytes(b"proxy")
    note_identity(mine / PROXY, "/CN=Bob", "")
    tries = Tries()
    async with working(run_dir, tries) as janitor:
        await trio.sleep(5000)
        tries.seen.clear()
        janitor.account_seen(os.getpid(), os.geteuid())
        await trio.testing.wait_all_tasks_blocked()
        assert {(name, proxy) for name, proxy, _ in tries.seen} == {("1-998", b"ended"), ("1-999", b"proxy")}


async def test_a_spawner_that_is_away_is_waited_for(
    run_dir: Path, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    leave(run_dir, tmp_path / "x", 999)
    tries = Tries()
    tries.away = True
    async with working(run_dir, tries):
        await trio.sleep(10)
        assert tries.seen == []
        tries.away = False
        await trio.sleep(20)
        assert {name for name, _, _ in tries.seen} == {"1-999"}


async def test_a_living_starters_things_are_left_alone(run_dir: Path, autojump_clock: trio.testing.MockClock) -> None:
    make_private_dir(run_dir, *own_identity())
    tries = Tries()
    async with working(run_dir, tries) as janitor:
        await trio.sleep(100)
        assert (tries.seen, janitor.waiting) == ([], 0)
