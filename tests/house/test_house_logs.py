"""Logs and audit records: one line a record, whatever a peer puts into it."""

from __future__ import annotations

import json
import logging
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot import audit, logs


@given(st.text())
def test_cleaned_text_is_one_printable_line(text: str) -> None:
    cleaned = logs.clean(text)
    assert len(cleaned.splitlines()) <= 1
    cleaned.encode("utf-8")


def test_a_record_cannot_forge_another(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = logs.start("house", path)
    logs.get("house", slot="1_1 100%s", claim="ab12").info("says %s", "hello\n2024-01-01 INFO forged\x1b[2J")
    try:
        raise ValueError("two\nlines")
    except ValueError:
        log.exception("failed")
    lines = path.read_text().splitlines()
    assert len(lines) == 2
    assert "[slot=1_1 100%s claim=ab12] says hello\\n2024" in lines[0]
    assert "Traceback" in lines[1]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    logs.start("house")
    assert len(logging.getLogger("sailplane").handlers) == 1


def test_a_long_record_is_cut() -> None:
    assert len(logs.clean("x" * 100_000)) < logs.MAX_RECORD_CHARS + 20


def test_audit_records_are_read_back_and_torn_ones_left_out(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    audit.append(path, "start", "a#1", dn='/CN="x"\n{"event": "forged"}', uid=7)
    with path.open("ab") as file:
        file.write(b'{"event": "torn')
    (record,) = audit.read(path)
    assert (record["event"], record["id"], record["uid"]) == ("start", "a#1", 7)
    assert "forged" in record["dn"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_audit_does_not_follow_links(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="link"):
        audit.append(tmp_path / "link", "start", "a#1")
    assert not (tmp_path / "target").exists()


def test_audit_lines_are_bounded() -> None:
    line = audit.line("start", "a", {"command": ["x" * 5000] * 2}, now=0.25)
    assert len(line) < audit.MAX_LINE_BYTES
    assert json.loads(line)["time"] == "1970-01-01T00:00:00.250Z"
    for hostile in (["x" * 5000] * 64, "\U0001f600" * 5000):  # the latter: twelve bytes a character
        line = audit.line("start", "a", {"command": hostile, "user": hostile, "why": "mismatch"}, now=0.0)
        assert len(line) <= audit.MAX_LINE_BYTES
        assert json.loads(line)["why"] == "mismatch"
    with pytest.raises(ValueError, match="audit record"):
        audit.line("start", "a", {str(number): "x" * 5000 for number in range(300)}, now=0.0)


@pytest.mark.parametrize("limit_bytes", [0, 10_000_000])
def test_a_full_disk_is_not_told_to_standard_error_and_counted_in_the_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], limit_bytes: int
) -> None:
    path = tmp_path / "log"
    handler = logs.LogFile(path, limit_bytes)
    handler.setFormatter(logs.LineFormatter())
    record = logging.LogRecord("house", logging.INFO, __file__, 0, "text", None, None)
    room, full = os.dup(handler.stream.fileno()), os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, handler.stream.fileno())
    handler.emit(record)
    handler.emit(record)
    os.dup2(room, handler.stream.fileno())
    handler.emit(record)
    handler.emit(record)
    handler.close()
    os.close(room)
    os.close(full)
    assert capfd.readouterr().err == ""
    assert path.read_text().count("2 records before this one could not be written") == 1


def test_a_bug_in_a_message_is_still_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    handler = logs.LogFile(tmp_path / "log")
    handler.emit(logging.LogRecord("house", logging.INFO, __file__, 0, "%d %d", (1,), None))
    handler.close()
    assert "not enough arguments" in capfd.readouterr().err


def test_a_log_whose_directory_is_gone_ends_nobody(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    handler = logs.LogFile(tmp_path / "there" / "log")
    record = logging.LogRecord("house", logging.INFO, __file__, 0, "text", None, None)
    (tmp_path / "there" / "log").unlink()
    (tmp_path / "there").rmdir()
    handler.emit(record)
    (tmp_path / "there").mkdir()
    handler.emit(record)
    handler.close()
    assert "1 records before this one" in (tmp_path / "there" / "log").read_text()


def test_a_log_that_cannot_be_opened_anew_has_no_descriptor_to_keep(tmp_path: Path) -> None:
    """A spawner asks for it in each starter, before that has done anything."""
    (tmp_path / "there").mkdir()
    log = logs.start("house", tmp_path / "there" / "log")
    try:
        assert len(logs.descriptors()) == 1
        (tmp_path / "there").rename(tmp_path / "away")
        log.info("text")
        assert logs.descriptors() == set()
        (tmp_path / "away").rename(tmp_path / "there")
        log.info("text")
        assert len(logs.descriptors()) == 1
    finally:
        logs.start("house")
