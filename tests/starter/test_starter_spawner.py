"""The spawner as a real process: forks, reports, keeps its log, closes what is not a child's own."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from pilot import logs
from pilot.rpc import receive_blocking, send_blocking
from starter.messages import (
    SPAWNER,
    Activation,
    SpawnerReady,
    StarterEnded,
    StarterStarted,
    StartStarter,
)
from starter.spawner import EXIT_BUG, Spawner, ignore_terminal

ACTIVATION = Activation(
    slot="slot1_1@here", claim_id="c", slot_ad="[]", job_ad="[]", stream_state={}, startd_address="<127.0.0.1:1>",
    cpus=1, memory_mb=1, disk_kb=1, vacate_max_s=1.0, procd_socket="/none",
)  # fmt: skip


def starter(activation: Activation, shadow: socket.socket, startd: socket.socket) -> int:
    """Stands in for a starter: says which descriptors it has, logs, and ends as it is told."""
    fds = sorted(int(name) for name in os.listdir("/proc/self/fd"))
    logs.get("starter").info("a starter's line")
    startd.sendall(f"{fds} {shadow.fileno()} {startd.fileno()}".encode())
    if startd.recv(10) == b"fault":
        raise RuntimeError("a bug")
    return 7


@pytest.fixture
def spawner(tmp_path: Path) -> Iterator[socket.socket]:
    """The startd's end of a running spawner; it must end when that is closed."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        secret = os.open("/etc/hostname", os.O_RDONLY)
        assert secret > 2
        log = logs.start("starter", tmp_path / "StarterLog")
        ignore_terminal()
        Spawner(startd=theirs, run_starter=starter, run_clean_up=lambda _: 0, warm_up=lambda: None, log=log).serve()
        os._exit(0)
    theirs.close()
    assert isinstance(receive_blocking(ours, SPAWNER)[0], SpawnerReady)
    yield ours
    ours.close()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def start(spawner: socket.socket) -> tuple[socket.socket, int]:
    """(the startd's end of the new starter's channel, its pid)."""
    near, far = socket.socketpair()
    shadow, other = socket.socketpair()
    send_blocking(spawner, SPAWNER, StartStarter(5, ACTIVATION), [shadow.fileno(), far.fileno()])
    started, _ = receive_blocking(spawner, SPAWNER)
    for end in (far, shadow, other):
        end.close()
    assert isinstance(started, StarterStarted)
    assert started.ticket == 5
    return near, started.pid


def test_a_starter_is_forked_and_its_end_reported(spawner: socket.socket, tmp_path: Path) -> None:
    near, pid = start(spawner)
    with near:
        words = near.recv(1000).decode()
        near.sendall(b"end")
        ended, _ = receive_blocking(spawner, SPAWNER)
    assert ended == StarterEnded(pid, 7 << 8)
    fds, _, rest = words.partition("] ")
    own = {0, 1, 2, *map(int, rest.split())}
    extra = [fd for fd in map(int, fds[1:].split(",")) if fd not in own]
    assert len(extra) <= 2, "the log, and the listing itself"
    assert "a starter's line" in (tmp_path / "StarterLog").read_text()


def test_a_starters_bug_ends_the_starter_alone(spawner: socket.socket, tmp_path: Path) -> None:
    near, pid = start(spawner)
    with near:
        near.recv(1000)
        near.sendall(b"fault")
        ended, _ = receive_blocking(spawner, SPAWNER)
    assert ended == StarterEnded(pid, EXIT_BUG << 8)
    assert "a bug" in (tmp_path / "StarterLog").read_text()
    again, _ = start(spawner)
    with again:
        again.recv(1000)
        again.sendall(b"end")
        assert isinstance(receive_blocking(spawner, SPAWNER)[0], StarterEnded)


def test_orphans_of_a_starter_are_reaped_by_the_spawner(spawner: socket.socket) -> None:
    """Two starters end: each is reported once, nobody else's end is."""
    pids = set()
    for _ in range(2):
        near, pid = start(spawner)
        with near:
            near.recv(1000)
            near.sendall(b"end")
        pids.add(pid)
        ended, _ = receive_blocking(spawner, SPAWNER)
        assert ended.pid == pid
    assert len(pids) == 2


def test_a_hangup_ends_no_starter(spawner: socket.socket) -> None:
    """The kernel sends one when the startd dies while one of them is stopped."""
    near, pid = start(spawner)
    with near:
        near.recv(1000)
        os.kill(pid, signal.SIGHUP)
        near.sendall(b"end")
        ended, _ = receive_blocking(spawner, SPAWNER)
    assert ended == StarterEnded(pid, 7 << 8)
