"""Programs that the startd runs beside the jobs: how they are described, what of their answers is taken, their ends."""

from __future__ import annotations

import errno
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing
from classad2 import ClassAd
from hypothesis import given
from hypothesis import strategies as st

from pilot.configuration import from_values
from pilot.settings import SettingsError
from startd.cron import Cron
from startd.cronjobs import LINE_BYTES, MAX_ATTRIBUTES, MAX_RECORDS, CronJob, Output, Published, Record, parse

LOG = logging.LoggerAdapter(logging.getLogger("test"), {})
ONE = CronJob(name="one", executable="/bin/true")


def described(names: str, family: Mapping[str, str]) -> tuple[CronJob, ...]:
    return parse(from_values({"STARTD_CRON_JOBLIST": names}, source=None, family=family))


def records(output: bytes, job: CronJob = ONE) -> list[Record]:
    reader = Output(job, now=7)
    return [record for line in output.split(b"\n") if (record := reader.line(line))] + [
        record for record in [reader.ended()] if record
    ]


def slot(name: str = "slot1@host", slot_id: int = 1, type_id: int = 1) -> ClassAd:
    return ClassAd({"Name": name, "SlotID": slot_id, "SlotTypeID": type_id, "Cpus": 4})


def merged(*said: bytes, job: CronJob = ONE, into: ClassAd | None = None) -> ClassAd:
    published, ad = Published(), slot() if into is None else into
    for text in said:
        for record in records(text, job):
            published.put(job, record)
    published.merge_into(ad)
    return ad


# --- how they are described ----------------------------------------------------------------------------------------


def test_a_program_is_read_with_all_that_is_said_of_it() -> None:
    (job,) = described(
        "Health",
        {
            "STARTD_CRON_HEALTH_EXECUTABLE": "/bin/check",
            "STARTD_CRON_HEALTH_ARGS": "-v  disk",
            "STARTD_CRON_HEALTH_ENV": "\"A='1 2' B=3\"",
            "STARTD_CRON_HEALTH_MODE": "WaitForExit",
            "STARTD_CRON_HEALTH_PERIOD": "5m",
            "STARTD_CRON_HEALTH_PREFIX": "NODE_",
            "STARTD_CRON_HEALTH_KILL": "True",
            "STARTD_CRON_HEALTH_SLOTS": "1, 3",
            "STARTD_CRON_HEALTH_JOB_LOAD": "0.5",
            "STARTD_CRON_HEALTH_CONDITION": "Cpus > 1",
            "STARTD_CRON_HEALTH_CWD": "/tmp",
        },
    )
    assert job == CronJob(
        name="Health", executable="/bin/check", args=("-v", "disk"), env=(("A", "1 2"), ("B", "3")), cwd="/tmp",
        mode="waitforexit", period_s=300.0, prefix="NODE_", kill=True, condition="Cpus > 1",
        slots=frozenset({1, 3}), load=0.5,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("item", "value", "allowed"),
    [
        ("EXECUTABLE", "", "absolute path"),
        ("EXECUTABLE", "check", "absolute path"),
        ("MODE", "sometimes", "periodic or waitforexit"),
        ("PERIOD", "", "time above 0"),
        ("PERIOD", "0", "time above 0"),
        ("PERIOD", "5x", "30s, 5m or 1h"),
        ("PREFIX", "1-", "attribute's name"),
        ("KILL", "maybe", "True or False"),
        ("CONDITION", "Cpus >", "ClassAd expression"),
        ("SLOTS", "one", "numbers of slots"),
        ("ARGS", '"\'open"', "words"),
        ("JOB_LOAD", "-1", "from 0"),
    ],
)
def test_one_that_cannot_be_run_so_is_refused_by_the_knobs_name(item: str, value: str, allowed: str) -> None:
    family = {"STARTD_CRON_A_EXECUTABLE": "/bin/true", "STARTD_CRON_A_PERIOD": "10"}
    with pytest.raises(SettingsError, match=allowed) as refused:
        described("A", {**family, f"STARTD_CRON_A_{item}": value})
    assert refused.value.knob == f"STARTD_CRON_A_{item}"


def test_none_are_described_where_none_are_named() -> None:
    assert described("", {"STARTD_CRON_A_EXECUTABLE": "/bin/true"}) == ()


# --- what of their answers is taken --------------------------------------------------------------------------------


def test_an_answer_stands_in_the_slots_ad_with_its_prefix_and_time() -> None:
    ad = merged(b'OK = true\nWORDS = "a b"\nSUM = Cpus + 1\n', job=CronJob(name="a", executable="/x", prefix="NODE_"))
    assert ad.eval("NODE_OK") is True
    assert ad.eval("NODE_WORDS") == "a b"
    assert ad.eval("NODE_SUM") == 5
    assert ad.eval("NODE_LastUpdate") == 7


def test_a_later_answer_takes_the_place_of_the_one_before() -> None:
    ad = merged(b"A = 1\nB = 1\n", b"A = 2\n")
    assert ad.eval("A") == 2
    assert "B" not in ad


def test_records_of_one_program_are_told_apart_by_their_tags() -> None:
    ad = merged(b"A = 1\n- first\nB = 2\n- second update:true\nC = 3")
    assert [ad.eval(name) for name in "ABC"] == [1, 2, 3]
    told = records(b"A=1\n- x\nA=2\n- y update:true\nA=3\n- update:false\n")
    assert [(record.tag, record.update) for record in told] == [("x", False), ("y", True), ("", False)]


@pytest.mark.parametrize(
    ("target", "ad", "is_for"),
    [
        ("SlotMergeConstraint = Cpus == 4", slot(), True),
        ("SlotMergeConstraint = Cpus == 5", slot(), False),
        ('SlotName = "slot1"', slot(), True),
        ('Name = "slot2"', slot(), False),
        ("SlotTypeId = 1", slot(), True),
        ("SlotTypeId = 2", slot(), False),
        ("SlotId = 1", slot(), True),
        ("SlotId = 2", slot(), False),
    ],
)
def test_a_record_can_be_for_some_slots(target: str, ad: ClassAd, is_for: bool) -> None:
    found = merged(f"{target}\nA = 1\n".encode(), into=ad)
    assert ("A" in found) == is_for
    assert "SlotMergeConstraint" not in found
    assert found["Name"] == "slot1@host"


def test_a_program_can_be_for_some_slots() -> None:
    assert "A" not in merged(b"A = 1", job=CronJob(name="a", executable="/x", slots=frozenset({2})))


@pytest.mark.parametrize("name", ["Requirements", "START", "ClaimId", "state", "_condor_priv", "Cpus"])
def test_what_makes_a_slots_ad_is_not_for_a_program_to_say(name: str) -> None:
    reader = Output(ONE, now=0)
    reader.line(f"{name} = 1".encode())
    assert reader.ended() is None
    assert name in reader.refused[0]


@pytest.mark.parametrize("line", [b"nonsense", b"A = (", b"= 3", b"A = " + b"1" * LINE_BYTES, b"A =", b"\xff\xfe = 1"])
def test_a_line_that_is_no_attribute_is_left_out_alone(line: bytes) -> None:
    (record,) = records(line + b"\nB = 2\n")
    assert {name for name in record.attributes} == {"B", "LastUpdate"}


def test_a_program_gone_wild_does_not_fill_the_ads() -> None:
    published = Published()
    for record in records(b"".join(b"A = %d\n- tag%d\n" % (i, i) for i in range(3 * MAX_RECORDS))):
        published.put(ONE, record)
    for record in records(b"B = 1\n- another"):
        assert not published.put(ONE, record)
    (many,) = records(b"".join(b"A%d = 1\n" % i for i in range(2 * MAX_ATTRIBUTES)))
    assert len(many.attributes) == MAX_ATTRIBUTES + 1


def test_only_the_time_being_new_is_no_news() -> None:
    published = Published()
    first, again = Output(ONE, now=1), Output(ONE, now=2)
    news = []
    for reader in (first, again):
        reader.line(b"A = 1")
        record = reader.ended()
        assert record is not None
        news.append(published.put(ONE, record))
    assert news == [True, False]


@given(st.binary(max_size=2000))
def test_any_output_leaves_a_whole_ad(output: bytes) -> None:
    ad = merged(output)
    assert ad["Name"] == "slot1@host"
    assert ad["SlotID"] == 1
    assert ad["Cpus"] == 4


# --- real programs -------------------------------------------------------------------------------------------------


def script(place: Path, name: str, text: str) -> str:
    path = place / name
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return str(path)


@asynccontextmanager
async def running(
    *jobs: CronJob, max_load: float = 1.0, publish: str = "if_changed"
) -> AsyncIterator[tuple[Cron, list[int]]]:
    told: list[int] = []
    cron = Cron(jobs, max_load, publish, ad=slot, changed=lambda: told.append(1), log=LOG)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cron.run)
        yield cron, told
        nursery.cancel_scope.cancel()


async def until(holds: Callable[[], bool], what: str) -> None:
    with trio.move_on_after(20):
        while True:
            if holds():
                return
            await trio.sleep(0.01)
    raise AssertionError(f"not seen: {what}")


def alive(pid: int) -> bool:
    with suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def said(cron: Cron, name: str) -> object:
    ad = slot()
    cron.published.merge_into(ad)
    return ad.eval(name) if name in ad else None


async def test_a_periodic_program_is_run_again_and_news_is_told_at_once(tmp_path: Path) -> None:
    path = script(tmp_path, "count", f'echo x >> {tmp_path}/runs; echo "RUNS = $(wc -l < {tmp_path}/runs)"\n')
    async with running(CronJob(name="a", executable=path, period_s=0.05)) as (cron, told):
        await until(lambda: (said(cron, "RUNS") or 0) >= 3, "three runs")  # type: ignore[operator]
        assert len(told) >= 3


async def test_the_environment_and_the_arguments_are_the_described_ones(tmp_path: Path) -> None:
    path = script(tmp_path, "show", 'echo "SEEN = \\"$1|$A|$PWD|$STARTD_CRON_NAME|${CONDOR_CONFIG-none}\\""\n')
    job = CronJob(name="a", executable=path, args=("x y",), env=(("A", "1"),), cwd=str(tmp_path), mode="oneshot")
    async with running(job) as (cron, _):
        await until(lambda: said(cron, "SEEN") is not None, "its answer")
        assert said(cron, "SEEN") == f"x y|1|{tmp_path}|STARTD_CRON|none"


async def test_one_that_takes_longer_than_its_period_is_ended_where_the_knob_says_so(tmp_path: Path) -> None:
    path = script(tmp_path, "slow", f"trap '' TERM; echo $$ >> {tmp_path}/pids; echo A = 1; sleep 1000 & wait; wait\n")
    async with running(CronJob(name="a", executable=path, period_s=0.3, kill=True)):
        await until(lambda: len(_pids(tmp_path)) >= 2, "a second run")
        first = _pids(tmp_path)[0]
        assert not alive(first)


async def test_nothing_of_a_program_is_left_when_the_startd_ends(tmp_path: Path) -> None:
    path = script(tmp_path, "family", f"sleep 1000 & echo $! >> {tmp_path}/pids; echo $$ >> {tmp_path}/pids; wait\n")
    async with running(CronJob(name="a", executable=path, mode="oneshot")):
        await until(lambda: len(_pids(tmp_path)) == 2, "both processes")
    await until(lambda: not any(map(alive, _pids(tmp_path))), "the end of both")


async def test_one_that_prints_without_end_is_ended(tmp_path: Path) -> None:
    path = script(tmp_path, "wild", f"echo A = 1; echo '- first'; echo $$ >> {tmp_path}/pids; exec yes B = 2\n")
    async with running(CronJob(name="a", executable=path, mode="oneshot")) as (cron, _):
        await until(lambda: said(cron, "A") == 1 and not alive(_pids(tmp_path)[0]), "its end")


async def test_what_a_program_leaves_behind_does_not_hold_up_its_answer(tmp_path: Path) -> None:
    path = script(tmp_path, "daemon", f"sleep 1000 2>&1 >/dev/null & echo $! >> {tmp_path}/pids; echo A = 1\n")
    async with running(CronJob(name="a", executable=path, period_s=0.1)):
        await until(lambda: len(_pids(tmp_path)) >= 2, "a second run although the first one left a process")
        await until(lambda: not alive(_pids(tmp_path)[0]), "the end of that process")


async def test_programs_wait_for_room_and_for_their_condition(tmp_path: Path) -> None:
    hold = script(tmp_path, "hold", f"echo $$ >> {tmp_path}/pids; exec sleep 1000\n")
    other = script(tmp_path, "other", f"touch {tmp_path}/ran\n")
    jobs = [
        CronJob(name="a", executable=hold, mode="oneshot", load=0.6),
        CronJob(name="b", executable=hold, mode="oneshot", load=0.6),
        CronJob(name="c", executable=other, mode="oneshot", condition="Cpus > 100 /* never */"),
    ]
    async with running(*jobs, max_load=1.0):
        await until(lambda: len(_pids(tmp_path)) == 1, "one of the two")
        await trio.testing.wait_all_tasks_blocked()
        assert len(_pids(tmp_path)) == 1
        os.kill(_pids(tmp_path)[0], signal.SIGKILL)
        await until(lambda: len(_pids(tmp_path)) == 2, "the other, when there is room")
        assert not (tmp_path / "ran").exists()


async def test_a_program_that_is_not_there_is_tried_again_with_pauses(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "late"
    async with running(CronJob(name="a", executable=str(path), mode="waitforexit", period_s=0.0)) as (cron, _):
        await until(lambda: "No such file" in caplog.text, "the word about it")
        script(tmp_path, "late", "echo A = 1\n")
        await until(lambda: said(cron, "A") == 1, "its answer")
    assert caplog.text.count("No such file") < 5


@pytest.mark.parametrize("call", ["dup", "pidfd_open"])
async def test_without_a_free_descriptor_a_run_is_lost_and_nothing_else(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception that leaves here would end the pilot with all its jobs."""
    genuine, failed = getattr(os, call), []

    def refuse(*args: int) -> int:
        if len(failed) < 4:
            failed.append(args)
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return int(genuine(*args))

    monkeypatch.setattr(os, call, refuse)
    path = script(tmp_path, "tell", f"echo $$ >> {tmp_path}/pids; echo A = 1\n")
    async with running(CronJob(name="a", executable=path, period_s=0.1)) as (cron, _):
        await until(lambda: len(failed) == 4 and said(cron, "A") == 1, "an answer afterwards")
    await until(lambda: not any(map(alive, _pids(tmp_path))), "the end of all runs")


# --- settings that are read again ----------------------------------------------------------------------------------


async def test_programs_that_are_new_changed_or_named_no_more(tmp_path: Path) -> None:
    stay = CronJob(
        name="stay", executable=script(tmp_path, "stay", f"echo x >> {tmp_path}/stays; echo S = 1\n"), mode="oneshot"
    )
    go = CronJob(
        name="go",
        executable=script(tmp_path, "go", f"echo $$ >> {tmp_path}/pids; echo G = 1; echo -; sleep 1000\n"),
        mode="oneshot",
    )
    new = CronJob(name="new", executable=script(tmp_path, "new", "echo N = $1\n"), args=("1",), mode="oneshot")
    async with running(stay, go) as (cron, told):
        await until(lambda: (said(cron, "S"), said(cron, "G")) == (1, 1), "both answers")
        (pid,) = _pids(tmp_path)
        count = len(told)
        cron.reconfigure((stay, new), 1.0, "if_changed")
        await until(lambda: said(cron, "N") == 1, "the new one's answer")
        await until(lambda: not alive(pid), "the end of the one that is named no more")
        assert (said(cron, "S"), said(cron, "G")) == (1, None)
        assert len(told) > count, "the pool is told that an answer is gone"
        cron.reconfigure((stay, attrs.evolve(new, args=("2",))), 1.0, "if_changed")
        await until(lambda: said(cron, "N") == 2, "the changed one's answer")
        assert (tmp_path / "stays").read_text() == "x\n"


async def test_a_changed_one_begins_when_the_one_before_has_ended(tmp_path: Path) -> None:
    text = f"cd {tmp_path}; trap 'sleep 0.3; echo end >> story; exit' TERM; echo start >> story; sleep 1000 & wait\n"
    job = CronJob(name="a", executable=script(tmp_path, "a", text), mode="oneshot")

    def story() -> list[str]:
        return (tmp_path / "story").read_text().split() if (tmp_path / "story").exists() else []

    async with running(job) as (cron, _):
        await until(lambda: story() == ["start"], "its start")
        cron.reconfigure((attrs.evolve(job, args=("x",)),), 1.0, "never")
        cron.reconfigure((attrs.evolve(job, args=("y",)),), 1.0, "never")
        await until(lambda: len(story()) >= 3, "the next start")
        assert story() == ["start", "end", "start"]


@pytest.mark.parametrize(("wishes", "hears"), [(True, True), (False, False)])
async def test_one_that_runs_has_a_sighup_if_it_wishes(tmp_path: Path, wishes: bool, hears: bool) -> None:
    text = (
        f"cd {tmp_path}; trap 'touch heard' HUP; trap 'touch asked' USR1; echo $$ >> pids; while :; do sleep 0.05; done"
    )
    job = CronJob(name="a", executable=script(tmp_path, "a", text), mode="oneshot", reconfig=wishes)
    async with running(job) as (cron, _):
        await until(lambda: len(_pids(tmp_path)) == 1, "its start")
        cron.reconfigure((job,), 1.0, "never")
        os.kill(_pids(tmp_path)[0], signal.SIGUSR1)  # by what comes after it a signal is known to have been heard
        await until((tmp_path / "asked").exists, "the second signal")
        assert (tmp_path / "heard").exists() == hears
        assert len(_pids(tmp_path)) == 1


@pytest.mark.parametrize("again", [True, False])
async def test_one_that_has_run_runs_once_more_if_it_wishes(tmp_path: Path, again: bool) -> None:
    path = script(tmp_path, "a", f"echo $$ >> {tmp_path}/pids; echo A = $(wc -l < {tmp_path}/pids)\n")
    other = CronJob(name="b", executable=script(tmp_path, "b", "echo B = 1\n"), mode="oneshot")
    job = CronJob(name="a", executable=path, mode="oneshot", reconfig_rerun=again)
    async with running(job) as (cron, _):
        await until(lambda: said(cron, "A") == 1 and cron._scheduled["a"].process is None, "its first run")
        cron.reconfigure((job, other), 1.0, "never")
        await until(lambda: said(cron, "B") == 1, "another one's first run")
        if again:
            await until(lambda: said(cron, "A") == 2, "its second run")
        assert len(_pids(tmp_path)) == 1 + again


def _pids(place: Path) -> list[int]:
    with suppress(FileNotFoundError):
        return [int(line) for line in (place / "pids").read_text().split("\n")[:-1] if line]
    return []
