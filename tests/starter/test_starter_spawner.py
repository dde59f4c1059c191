"""The spawner as a real process: forks, reports, keeps its log, closes what is not a child's own, has a spare ready."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import attrs
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
from starter.spare import Offer, Spare, stands_still, take
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


def nothing() -> None:
    """What the stand-in needs to be warm."""


def fork_spawner(log_file: Path, rehearse: Callable[[], None] = nothing) -> tuple[socket.socket, int]:
    """(the startd's end, the pid) of a spawner that is ready."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        secret = os.open("/etc/hostname", os.O_RDONLY)
        assert secret > 2
        log = logs.start("starter", log_file)
        ignore_terminal()
        Spawner(
            startd=theirs, run_starter=starter, run_clean_up=lambda _: 0, warm_up=nothing, rehearse=rehearse, log=log
        ).serve()
        os._exit(0)
    theirs.close()
    ours.settimeout(20)
    assert isinstance(receive_blocking(ours, SPAWNER)[0], SpawnerReady)
    return ours, pid


@pytest.fixture
def spawner(tmp_path: Path) -> Iterator[socket.socket]:
    """The startd's end of a running spawner; it must end when that is closed."""
    ours, pid = fork_spawner(tmp_path / "StarterLog")
    yield ours
    ours.close()
    try:  # after a failure a starter may still wait for its word
        until("the spawner's end", lambda: os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None)
    finally:
        os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
    assert os.waitstatus_to_exitcode(status) == 0


def start(spawner: socket.socket, activation: Activation = ACTIVATION) -> tuple[socket.socket, int]:
    """(the startd's end of the new starter's channel, its pid)."""
    near, far = socket.socketpair()
    shadow, other = socket.socketpair()
    send_blocking(spawner, SPAWNER, StartStarter(5, activation), [shadow.fileno(), far.fileno()])
    started, _ = receive_blocking(spawner, SPAWNER)
    for end in (far, shadow, other):
        end.close()
    assert isinstance(started, StarterStarted)
    assert started.ticket == 5
    return near, started.pid


def end(spawner: socket.socket, near: socket.socket, pid: int) -> list[int]:
    """Have this starter end in order; the descriptors that it had beside standard ones and those of its activation."""
    with near:
        words = near.recv(1000).decode()
        near.sendall(b"end")
        ended, _ = receive_blocking(spawner, SPAWNER)
    assert ended == StarterEnded(pid, 7 << 8)
    fds, _, rest = words.partition("] ")
    return [fd for fd in map(int, fds[1:].split(",")) if fd not in {0, 1, 2, *map(int, rest.split())}]


def until(what: str, condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline_s, f"waited in vain for {what}"
        time.sleep(0.005)


def children(pid: int) -> list[int]:
    """None of one that is gone."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def name_of(pid: int) -> str:
    """Empty of one that is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def runs(pid: int) -> bool:
    """Neither gone nor a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def spares() -> list[int]:
    """Below the spawner, whatever else is a child of this process."""
    return [pid for child in children(os.getpid()) for pid in children(child) if name_of(pid) == "spare"]


def spare() -> int:
    """The spare, as soon as there is one."""
    until("a spare", lambda: bool(spares()))
    (pid,) = spares()
    return pid


def test_a_starter_is_forked_and_its_end_reported(spawner: socket.socket, tmp_path: Path) -> None:
    near, pid = start(spawner)
    extra = end(spawner, near, pid)
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


def test_a_spare_takes_one_activation_and_has_no_more_than_a_starter_forked_for_it(spawner: socket.socket) -> None:
    first, busy = start(spawner)
    waiting = spare()
    assert busy != waiting
    near, pid = start(spawner)
    assert pid == waiting
    until("its new name", lambda: name_of(pid) == "starter")
    assert len(end(spawner, near, pid)) <= 2
    assert spare() != waiting
    end(spawner, first, busy)


def test_without_its_spare_a_spawner_forks(spawner: socket.socket, tmp_path: Path) -> None:
    killed = spare()
    os.kill(killed, signal.SIGKILL)
    until("its end to be seen", lambda: "ended before it had a job" in (tmp_path / "StarterLog").read_text())
    assert spares() == [], "one for each activation: one that always dies would be forked for ever"
    near, pid = start(spawner)
    end(spawner, near, pid)
    assert spare() not in (killed, pid)


def test_an_activation_that_no_spare_reads_holds_nobody_up(spawner: socket.socket) -> None:
    """It is more than the socket takes: the spawner would have to wait for a reader."""
    stopped = spare()
    os.kill(stopped, signal.SIGSTOP)
    near, pid = start(spawner, attrs.evolve(ACTIVATION, slot_ad="x" * 900_000))
    assert pid != stopped
    until("its end", lambda: not runs(stopped))
    end(spawner, near, pid)


def test_a_spare_that_stands_still_gets_no_activation(spawner: socket.socket) -> None:
    """Also where the socket would take all of it, as it does of nearly every job: nobody would run it."""
    stopped = spare()
    os.kill(stopped, signal.SIGSTOP)
    until("it to stand still", lambda: stands_still(stopped))
    near, pid = start(spawner)
    with near:
        os.kill(pid, signal.SIGCONT)  # if it is that one, it ends with this test
        assert pid != stopped
        until("its end", lambda: not runs(stopped))
        end(spawner, near, pid)


class Gate:
    """Keeps the first spare in its rehearsal: from when it has been offered an activation until it is opened."""

    def __init__(self, directory: Path) -> None:
        self.taken, self.reached, self.open = (directory / name for name in ("taken", "reached", "open"))

    def __call__(self) -> None:
        if name_of(os.getpid()) != "spare" or self.taken.exists():
            return
        self.taken.touch()
        until("its activation", lambda: bool(select.select([channel_of_spare()], [], [], 0)[0]))
        self.reached.touch()
        until("the gate", self.open.exists)

    def offer(self, spawner: socket.socket) -> tuple[int, socket.socket]:
        """Have the spare offered activation 1; its pid, and the startd's end of the starter's channel."""
        offered, near = spare(), ask(spawner, 1)
        until("a spare with an activation", self.reached.exists)
        return offered, near


def ask(spawner: socket.socket, ticket: int) -> socket.socket:
    """Ask for a starter; the startd's end of its channel."""
    near, far = socket.socketpair()
    shadow, other = socket.socketpair()
    with far, shadow, other:
        send_blocking(spawner, SPAWNER, StartStarter(ticket, ACTIVATION), [shadow.fileno(), far.fileno()])
    return near


def check_runs(spawner: socket.socket, near: socket.socket, ticket: int) -> int:
    """This one's starter is the next that the spawner tells of; its pid."""
    started, _ = receive_blocking(spawner, SPAWNER)
    assert isinstance(started, StarterStarted)
    assert started.ticket == ticket
    end(spawner, near, started.pid)
    return started.pid


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_an_activation_that_its_spare_does_not_take_is_another_starters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """It lay in the socket already, which nobody reads any more."""
    monkeypatch.setattr("starter.spare.TAKE_WITHIN_S", 60.0 if number == signal.SIGKILL else 0.1)
    gate = Gate(tmp_path)
    startd, spawner = fork_spawner(tmp_path / "StarterLog", gate)
    with startd:
        offered, near = gate.offer(startd)
        os.kill(offered, number)
        assert check_runs(startd, near, 1) != offered
        until("its end", lambda: not runs(offered))
    assert os.waitstatus_to_exitcode(os.waitpid(spawner, 0)[1]) == 0


def test_an_offer_keeps_nobody_waiting_and_its_starter_begins_once(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    startd, spawner = fork_spawner(tmp_path / "StarterLog", gate)
    with startd:
        offered, near = gate.offer(startd)
        assert check_runs(startd, ask(startd, 2), 2) != offered
        gate.open.touch()
        assert check_runs(startd, near, 1) == offered
        assert near.fileno() < 0
    assert os.waitstatus_to_exitcode(os.waitpid(spawner, 0)[1]) == 0


def test_a_spare_that_comes_too_late_begins_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that no signal ends, in state D, is not waited for: its activation is somebody else's."""
    monkeypatch.setattr("starter.spare.TAKE_WITHIN_S", 0.1)
    gate = Gate(tmp_path)

    def rehearse() -> None:
        os.kill = lambda *_: None  # type: ignore[assignment]
        gate()

    startd, spawner = fork_spawner(tmp_path / "StarterLog", rehearse)
    with startd:
        late, near = gate.offer(startd)
        other = check_runs(startd, near, 1)
        assert other != late
        assert runs(late)
        gate.open.touch()
        until("its end", lambda: not runs(late))
    assert os.waitstatus_to_exitcode(os.waitpid(spawner, 0)[1]) == 0
    assert (tmp_path / "StarterLog").read_text().count("a starter's line") == 1


def test_a_starter_that_dies_in_the_moment_it_has_taken_its_job_is_told_of(tmp_path: Path) -> None:
    """And none is forked for it: it may have begun."""
    gate = Gate(tmp_path)
    startd, spawner = fork_spawner(tmp_path / "StarterLog", gate)
    with startd:
        taking, near = gate.offer(startd)
        os.kill(spawner, signal.SIGSTOP)
        gate.open.touch()
        assert near.recv(1000)  # it has begun
        os.kill(taking, signal.SIGKILL)
        until("its end", lambda: not runs(taking))
        os.kill(spawner, signal.SIGCONT)
        started, _ = receive_blocking(startd, SPAWNER)
        assert (started.ticket, started.pid) == (1, taking)
        assert receive_blocking(startd, SPAWNER)[0] == StarterEnded(taking, signal.SIGKILL)
        check_runs(startd, ask(startd, 2), 2)
    near.close()
    assert os.waitstatus_to_exitcode(os.waitpid(spawner, 0)[1]) == 0


def test_a_spare_that_took_its_job_is_known_as_a_starter_before_its_end_is_told() -> None:
    """The kernel may tell of both between two looks at the channels."""
    startd, other = socket.socketpair()
    near, far = socket.socketpair()
    request = StartStarter(1, ACTIVATION)
    pid = os.fork()
    if pid == 0:
        take(far)
        os._exit(7)
    spare = Spare(pid, near)
    far.close()
    assert spare.give(request, [])
    until("its end", lambda: not runs(pid))
    log = logs.get("starter")
    spawner = Spawner(
        startd=other, run_starter=starter, run_clean_up=lambda _: 0, warm_up=nothing, rehearse=nothing, log=log
    )
    spawner.offers.append(Offer(spare, request, []))
    spawner._reap()
    with startd, other:
        assert receive_blocking(startd, SPAWNER)[0] == StarterStarted(1, pid, 0)
        assert receive_blocking(startd, SPAWNER)[0] == StarterEnded(pid, 7 << 8)


@pytest.mark.parametrize("stopped", [False, True])
@pytest.mark.parametrize("killed", [False, True])
def test_no_spare_outlives_its_spawner(tmp_path: Path, killed: bool, stopped: bool) -> None:
    startd, pid = fork_spawner(tmp_path / "StarterLog")
    with startd:
        near, busy = start(startd)  # which has been forked before the spare, and has nothing of its
        left = spare()
        if stopped:
            os.kill(left, signal.SIGSTOP)
        if killed:
            os.kill(pid, signal.SIGKILL)
        else:
            end(startd, near, busy)
            startd.close()
        os.waitpid(pid, 0)
        until("its end", lambda: not runs(left))
        near.close()


def test_nor_does_one_that_stands_still_in_its_rehearsal(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    startd, pid = fork_spawner(tmp_path / "StarterLog", gate)
    with startd:
        left, near = gate.offer(startd)
        os.kill(left, signal.SIGSTOP)
        until("it to stand still", lambda: stands_still(left))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        try:
            until("its end", lambda: not runs(left))
        finally:
            with suppress(ProcessLookupError):
                os.kill(left, signal.SIGKILL)
        near.close()


def test_a_rehearsal_that_fails_costs_no_activation(tmp_path: Path) -> None:
    """One may have come meanwhile: to a spare that stood still for longer than a rehearsal may take."""
    log = tmp_path / "StarterLog"
    forked: list[int] = []

    def fails() -> None:
        if forked:  # in the spare, after the activation was given
            until("its activation", lambda: bool(select.select([channel_of_spare()], [], [], 0)[0]))
        forked.append(1)
        raise RuntimeError("a bug in the rehearsal")

    startd, pid = fork_spawner(log, fails)
    with startd:
        waiting = spare()
        near, started = start(startd)
        assert started == waiting
        end(startd, near, started)
    text = log.read_text()
    assert "a spare starter had no rehearsal" in text
    assert f"sailplane.starter[{pid}] each starter will need more memory" in text
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_host_without_descriptors_costs_the_spare_alone(tmp_path: Path) -> None:
    """A job can take all that a host has."""

    def none(*_: object) -> NoReturn:
        raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))

    def starve() -> None:  # in the spawner, before it is ready for the first request
        socket.socketpair = none  # type: ignore[assignment]
        Path.read_bytes = none  # type: ignore[method-assign]

    log = tmp_path / "StarterLog"
    startd, pid = fork_spawner(log, starve)
    with startd:
        until("the spare's turn", lambda: "no spare starter now" in log.read_text())
        near, started = start(startd)
        end(startd, near, started)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def channel_of_spare() -> int:
    """In a spare: its only socket."""
    (fd,) = (int(name) for name in os.listdir("/proc/self/fd") if _is_socket(int(name)))
    return fd


def _is_socket(fd: int) -> bool:
    try:
        return stat.S_ISSOCK(os.fstat(fd).st_mode) and fd > 2
    except OSError:
        return False
