"""The demo's work and its verdict: right outputs pass, each wrong thing is named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import attrs
import pytest

from demo import chronicle, report, watch, work

TEXT = chronicle.FILE.read_text("ascii")


def test_the_chronicle_is_the_one_that_its_program_writes() -> None:
    assert chronicle.text() == TEXT


def count(directory: Path, *arguments: str) -> dict[str, int]:
    program = chronicle.FILE.parent / work.PROGRAM
    done = subprocess.run(
        [sys.executable, "-IS", str(program), *arguments], cwd=directory, check=True, capture_output=True, text=True
    )
    answer: dict[str, int] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize("what", work.COUNTS.values())
def test_parts_and_merge_give_what_is_expected(what: str, tmp_path: Path) -> None:
    (tmp_path / work.INPUT).write_text(TEXT)
    ranges = [line.split() for line in work.parts_submit(what, len(TEXT)).splitlines() if line[:1].isdigit()]
    assert len(ranges) == work.PARTS
    for (first, last), name in zip(ranges, work.part_names(), strict=True):
        count(tmp_path, what, first, last, name)
    count(tmp_path, "merge", work.result_name(what), *work.part_names())
    outputs = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert work.fault(what, outputs, TEXT) is None


def test_wrong_results_are_named() -> None:
    counts = work.expected("letters", "Abba")
    assert counts == {"a": 2, "b": 2}
    assert work.fault("letters", {}, "Abba") == "letters.json did not come back"
    assert work.fault("letters", {"letters.json": b"{"}, "Abba") == "letters.json is not JSON"
    wrong = work.fault("letters", {"letters.json": b'{"a": 2, "b": 3}'}, "Abba")
    assert wrong == "letters.json has wrong counts, first of 'b'"


def job(number: int, owner: str, uid: int) -> report.JobReport:
    return report.JobReport(f"{number}.0", owner, "/CN=x", uid, owner, 900, 0, {}, 3, {})


GOOD = [job(1, "a", 1001), job(2, "b", 1002), job(3, "a", 1001)]


def test_a_good_demo_has_no_faults() -> None:
    assert report.faults(GOOD, switched=True) == []
    document = json.loads(report.document(GOOD, []))
    assert document["ok"] is True
    assert set(document["jobs"][0]) == {
        "id", "owner", "dn", "uid", "account", "pilot_uid", "exit_status", "outputs", "switch_calls", "seconds",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"exit_status": 1}, "exit status 1"),
        ({"uid": 900}, "pilot's own uid"),
        ({"uid": 1002}, "two users ran at one uid"),
        ({"uid": 1005}, "jobs of a ran as"),
        ({"switch_calls": 4}, "4 calls of the switch instead of 3"),
        ({"owner": "b", "uid": 1002}, "1 owners"),
    ],
)
def test_each_broken_promise_is_named(change: dict[str, object], words: str) -> None:
    changed = attrs.evolve(GOOD[0], **change)
    jobs = [changed, GOOD[1]] if change != {"uid": 1005} else [changed, *GOOD[1:]]
    found = report.faults(jobs, switched=True)
    assert any(words in fault for fault in found), found


def test_without_a_switch_one_uid_is_no_fault() -> None:
    jobs = [attrs.evolve(one, uid=900, switch_calls=None) for one in GOOD]
    assert report.faults(jobs, switched=False) == []


def test_calls_are_counted_by_the_jobs_id() -> None:
    log = [
        {"event": "decision", "id": "host#1.0#170"},
        {"event": "decision", "id": "host#11.0#170"},
        {"event": "start", "id": "host#1.0#170"},
    ]
    assert report.calls_of("1.0", log) == log[:1]


def test_exit_statuses_and_steps() -> None:
    assert [report.exit_status(status) for status in (None, 0, 256, 9)] == [None, 0, 1, -9]
    steps = {"waiting": 1.0, "staging_in": 0.5, "running_and_back": 0.5, "total": 2.0}
    assert report.seconds(10.0, 11.0, 11.5, 12.0) == steps
    assert report.seconds(10.0, None, None, None) == {}


def test_said_uid_is_an_integer_or_nothing() -> None:
    assert report.said_uid(b'{"uid": 7}') == 7
    for wrong in (None, b"", b"[]", b"{}", b'{"uid": "7"}'):
        assert report.said_uid(wrong) is None


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (
            ["/x/python", "-c", "import sys; sys.argv[0] = 'sailplane-pool'; from pool.main import main", ""],
            "sailplane-pool",
        ),
        (["/x/python3", "-IS", "-c", "from glexec.front import main; main()", ""], "glexec.front"),
        (["/x/python3.11", "-m", "procd", "--socket", ""], "procd"),
        (["/usr/bin/python3", "-IS", "/x/jobwrapper", "stage-in", ""], "jobwrapper stage-in"),
        (["/usr/bin/python3", "-IS", "/x/jobwrapper/__main__.py", "launch", ""], "jobwrapper launch"),
        (["/usr/bin/python3", "-IS", "/x/glexec-root", "123", ""], "glexec-root"),
        (["/usr/bin/python3", "./count.py", "words", ""], "count.py"),
        (["/usr/bin/python3", ""], "comm"),
        (["/bin/sh", "-c", "x", ""], "comm"),
        ([""], "comm"),
    ],
)
def test_processes_are_called_by_their_program(argv: list[str], words: str) -> None:
    assert watch.title(argv, "comm") == words
