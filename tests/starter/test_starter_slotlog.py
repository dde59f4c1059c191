"""The four lines by which scripts count jobs, and logs that do not grow without an end."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pilot import logs
from starter.slotlog import SlotLog


def test_the_lines_are_those_that_scripts_look_for(tmp_path: Path) -> None:
    log = SlotLog(tmp_path / "StarterLog.slot1_1", 0)
    log.started("127.0.0.1:99", "40.0", 26858)
    log.exited(26858, 3 << 8)
    log.exited(26859, 9 | 0x80)
    heads, lines = zip(*(line.split(") ", 1) for line in log.path.read_text().splitlines()), strict=True)
    assert lines == (
        "Communicating with shadow <127.0.0.1:99>",
        "Starting a VANILLA universe job with ID: 40.0",
        "Create_Process succeeded, pid=26858",
        "Process exited, pid=26858, status=3",
        "Process exited, pid=26859, signal=9",
    )
    assert all(re.fullmatch(r"\d\d/\d\d/\d\d \d\d:\d\d:\d\d \(pid:\d+", head) for head in heads)
    assert stat.S_IMODE(log.path.stat().st_mode) == 0o600


def test_no_name_of_a_job_makes_a_line_of_its_own(tmp_path: Path) -> None:
    log = SlotLog(tmp_path / "log", 0)
    log.started("127.0.0.1:99", "1.0\nProcess exited, pid=1, status=0", 1)
    assert len(log.path.read_text().splitlines()) == 3


def test_a_link_in_its_place_is_not_followed_and_a_full_disk_is_borne(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to(tmp_path / "elsewhere")
    SlotLog(tmp_path / "log", 0).exited(1, 0)
    assert not (tmp_path / "elsewhere").exists()
    SlotLog(Path("/dev/full"), 0).exited(1, 0)


def test_a_pipe_in_its_place_keeps_nobody_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "log")
    with limited_s(5):
        SlotLog(tmp_path / "log", 0).exited(1, 0)


def test_whoever_keeps_a_log_locked_keeps_nobody_waiting(tmp_path: Path) -> None:
    log = SlotLog(tmp_path / "log", 100)
    log.path.touch()
    with log.path.open() as another:
        fcntl.flock(another, fcntl.LOCK_SH)
        with limited_s(5):
            for pid in range(10, 20):
                log.exited(pid, 0)
    assert len(log.path.read_text().splitlines()) == 10, "it has grown on"
    log.exited(20, 0)
    assert (tmp_path / "log.old").exists()


def test_the_file_after_the_old_one_is_nobody_elses_to_read(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.touch(mode=0o600)
    handler = logs.LogFile(path, 100)
    before = os.umask(0o022)
    try:
        for number in range(40):
            handler.handle(handler_record(number))
    finally:
        os.umask(before)
        handler.close()
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o600}
    assert (tmp_path / "log.old").exists()


@contextmanager
def limited_s(seconds: float) -> Iterator[None]:
    """What waits longer for the system fails."""

    def too_late(_number: int, _frame: object) -> None:
        raise AssertionError(f"it waited for more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, too_late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_log_that_has_grown_becomes_old_once(tmp_path: Path) -> None:
    log = SlotLog(tmp_path / "log", 100)
    for pid in range(10, 21):
        log.exited(pid, 0)
    kept = {path.name: path.read_text().splitlines() for path in tmp_path.iterdir()}
    assert kept.keys() == {"log", "log.old"}
    assert all(0 < len(lines) <= 2 for lines in kept.values()), kept
    last = [line.rpartition("pid=")[2] for line in kept["log.old"] + kept["log"]]
    assert last[-1] == "20, status=0", "the newest is in the new file"


def test_two_writers_of_one_log_go_on_in_the_new_file(tmp_path: Path) -> None:
    """As spawner and starters do: each has the file open, and sees at its next line that it is another."""
    path = tmp_path / "log"
    one, other = logs.LogFile(path, 300), logs.LogFile(path, 300)
    for handler in (one, other):
        handler.setFormatter(logs.LineFormatter())
    words = iter(range(100))

    def say(handler: logs.LogFile) -> None:
        handler.handle(handler_record(next(words)))

    for _ in range(20):
        say(one)
        say(other)
    one.close()
    other.close()
    lines = (tmp_path / "log.old").read_text().splitlines()
    lines += path.read_text().splitlines() if path.exists() else []
    assert all(int(line.rsplit(" ", 1)[1]) for line in lines[-1:])
    numbers = [int(line.rsplit(" ", 1)[1]) for line in lines]
    assert numbers == list(range(numbers[0], 40)), "in order, none lost after the one that was kept last"
    assert len(numbers) >= 3
    assert max(file.stat().st_size for file in tmp_path.iterdir()) < 500


def handler_record(number: int) -> logs.logging.LogRecord:
    return logs.logging.LogRecord("sailplane.x", logs.logging.INFO, "", 0, f"word {number}", None, None)
