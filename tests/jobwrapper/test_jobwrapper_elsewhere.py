"""What a job left outside its sandbox: only its account's, only of its time, only where nobody else needs it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from jobwrapper import elsewhere


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else at our account, and no IPC: the account of the tests may have both."""
    monkeypatch.setattr(elsewhere, "others", lambda: False)
    monkeypatch.setattr(elsewhere, "_IPC", {})


def swept(place: Path, since_ns: int, *, alone: bool = True) -> elsewhere.Sweep:
    return elsewhere.sweep(since_ns, alone, (os.fsencode(place),))


def wait_a_tick() -> int:
    """A moment that is surely later than every change so far, in the clock of files."""
    time.sleep(3 * elsewhere.TICK_NS / 1e9)
    return time.time_ns()


@pytest.mark.usefixtures("quiet")
def test_what_is_new_goes_and_what_is_older_stays(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("x")
    (tmp_path / "kept").mkdir()
    since_ns = wait_a_tick()
    (tmp_path / "new").write_text("x")
    (tmp_path / "tree" / "deep").mkdir(parents=True)
    (tmp_path / "tree" / "deep" / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "old")
    (tmp_path / "tree" / "deep").chmod(0)
    found = swept(tmp_path, since_ns)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "old"]
    assert (found.removed, found.count) == (5, 0)


@pytest.mark.usefixtures("quiet")
def test_what_may_be_another_jobs_is_named_and_stays(tmp_path: Path) -> None:
    since_ns = wait_a_tick()
    (tmp_path / "new").write_text("x")
    found = swept(tmp_path, since_ns, alone=False)
    assert (tmp_path / "new").exists()
    assert (found.removed, found.count) == (0, 1)
    assert found.named[0][0] == os.fsencode(tmp_path / "new")


def test_another_process_of_the_account_keeps_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elsewhere, "_IPC", {})
    since_ns = wait_a_tick()
    (tmp_path / "new").write_text("x")
    child = os.posix_spawn("/bin/sleep", ["sleep", "60"], {})
    try:
        assert elsewhere.others()
        assert swept(tmp_path, since_ns).removed == 0
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert (tmp_path / "new").exists()


@pytest.mark.usefixtures("quiet")
@pytest.mark.needs_root
def test_others_files_are_never_touched(tmp_path: Path) -> None:
    since_ns = wait_a_tick()
    (tmp_path / "theirs").write_text("x")
    os.chown(tmp_path / "theirs", 12345, 12345)
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o1777)
    os.chown(tmp_path / "shared", 12345, 12345)
    (tmp_path / "shared" / "ours").write_text("x")
    (tmp_path / "closed").mkdir()
    os.chown(tmp_path / "closed", 12345, 12345)
    (tmp_path / "closed" / "ours").write_text("x")
    found = swept(tmp_path, since_ns)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "closed", "closed/ours", "shared", "theirs"
    ]  # fmt: skip
    assert (found.removed, found.count) == (1, 0)


@pytest.mark.usefixtures("quiet")
def test_a_look_without_end_ends_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "new").write_text("x")
    found = elsewhere.Sweep(0, True, limit_s=-1.0)
    elsewhere._look(found, (os.fsencode(tmp_path),))
    assert (found.removed, found.named[0][1]) == (0, "out of time")
