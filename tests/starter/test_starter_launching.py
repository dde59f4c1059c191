"""What a job is launched with by the knobs, and what an end means where something ran around the job."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
from classad2 import ClassAd

from cedar.commands import HoldCode
from cedar.errors import PeerFault
from starter import launching, updates
from starter.description import Around, Deferral
from starter.launch import After, ExecFailed
from starter.launching import nice, verdict_around
from starter.verdict import Hold, Requeue
from starter.work import Work


@pytest.mark.parametrize(
    ("expression", "number"),
    [("0", 0), ("JobPrio", 7), ("100", 19), ("-5", 0), ("undefined", 10), ('"x"', 10), ("NoSuch", 10), ("2.9", 2)],
)
def test_niceness_by_the_jobs_ad(expression: str, number: int) -> None:
    assert nice(ClassAd({"JobPrio": 7}), expression) == number


def test_a_deferral_that_is_over_says_when_and_what_to_do() -> None:
    assert launching.missed(None, "h") is None
    assert launching.missed(Deferral(time.time() + 5, 0.0), "h") is None
    assert launching.missed(Deferral(time.time() - 5, 60.0), "h") is None
    hold = launching.missed(Deferral(time.time() - 100, 60.0), "slot1@h")
    assert hold is not None
    assert hold.code == HoldCode.MISSED_DEFERRED_EXECUTION
    assert "slot1@h" in hold.text
    assert "deferral_window is 60 s" in hold.text


@pytest.mark.parametrize("window_s", [0.0, 60.0])
@pytest.mark.parametrize(("ahead_s", "legs", "held"), [(5.0, 0, False), (-100.0, 0, True), (-100.0, 1, False)])
async def test_a_job_waits_for_its_time_in_its_first_leg(
    ahead_s: float, legs: int, held: bool, window_s: float, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a window of nothing, too: a job that waited is never late."""
    began_s = trio.current_time()
    monkeypatch.setattr(launching.time, "time", lambda: 1e9 + trio.current_time() - began_s)
    deferral = Deferral(1e9 + ahead_s, window_s)
    waiting = SimpleNamespace(description=SimpleNamespace(deferral=deferral), legs=legs, host="h")
    late = await launching._until_its_time(cast(Work, waiting))
    assert (late is not None) == held
    assert trio.current_time() - began_s == pytest.approx(max(0.0, ahead_s) if legs == 0 else 0.0)


def work(*, post: Around | None = None, after: After | None = None, told: int | None = None, wrapper: str = "") -> Work:
    made = SimpleNamespace(
        host="slot1@h",
        kept={} if told is None else {".job_wrapper_failure": told},
        launched=SimpleNamespace(after=after),
        description=SimpleNamespace(post=post, job_id="1.0", program="run", checkpoint_status=None),
        settings=SimpleNamespace(user_job_wrapper=wrapper or None),
    )
    return cast(Work, made)


POST = Around("post.sh", (), {}, 0)


@pytest.mark.parametrize(
    ("after", "code", "number"),
    [
        (After(0, None), None, 0),
        (After(3 << 8, None), 44, 3),
        (After(9, None), 44, 9),
        (After(None, None), 44, 0),
        (After(None, ExecFailed(13, "no", "post")), 6, 13),
        (None, None, 0),
    ],
)
def test_a_command_after_the_job_that_had_to_succeed(after: After | None, code: int | None, number: int) -> None:
    verdict = verdict_around(work(post=POST, after=after), 0)
    assert verdict is None if code is None else isinstance(verdict, Hold)
    if isinstance(verdict, Hold):
        assert (verdict.code, verdict.subcode) == (code, number)
        assert "post.sh" in verdict.text


def test_a_command_after_the_job_whose_end_does_not_count() -> None:
    assert verdict_around(work(post=Around("p", (), {}, None), after=After(3 << 8, None)), 0) is None


def test_a_word_of_the_sites_wrapper_counts_only_with_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "failure"
    path.write_text("no\nimage \x1b[31m")
    fd = os.open(path, os.O_RDONLY)
    try:
        assert verdict_around(work(told=fd), 0) is None
        verdict = verdict_around(work(told=fd), 1 << 8)
        assert isinstance(verdict, Requeue)
        assert verdict.text == "USER_JOB_WRAPPER failed on slot1@h: no image  [31m"
        path.write_text("")
        assert verdict_around(work(told=fd), 1 << 8) is None
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("step", "wrapper", "kind", "code"),
    [
        ("stdin", "", Hold, 8),
        ("stdout", "", Hold, 7),
        ("stderr", "", Hold, 7),
        ("pre", "", Hold, 43),
        ("exec", "", Hold, 6),
        ("exec", "/site/wrapper", Requeue, 6),
        ("cwd", "/site/wrapper", Hold, 6),
    ],
)
def test_why_a_job_did_not_start(step: str, wrapper: str, kind: Any, code: int) -> None:
    verdict = launching._not_started(work(wrapper=wrapper), ExecFailed(2, "No such file", step))
    assert isinstance(verdict, kind)
    assert verdict.code == code
    assert "No such file" in verdict.text
    # What the kernel says of a script whose interpreter is missing, too.
    assert ("invalid interpreter" in verdict.text) == (step == "exec" and not wrapper)


@pytest.mark.parametrize(
    ("version", "nested"),
    [
        ("$CondorVersion: 25.8.2 2026-01-01 $", True), ("$CondorVersion: 25.4.0 2025-01-01 $", True),
        ("$CondorVersion: 25.3.1 2025-01-01 $", False), ("$CondorVersion: 24.12.1 2024-10-31 $", False), ("", False),
    ],
)  # fmt: skip
def test_delayed_attributes_stand_where_the_shadow_looks_for_them(version: str, nested: bool) -> None:
    ad = ClassAd({"JobState": "Running"})
    updates.add_delayed(ad, ClassAd({"ChirpA": 1, "JobState": "Forged"}), version)
    assert ad["JobState"] == "Running"
    assert ("ChirpDelayedAttrs" in ad) == nested
    assert ("ChirpA" in ad) != nested
    updates.add_delayed(ad, ClassAd(), version)


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (0, {"PostExitBySignal": False, "PostExitCode": 0}), (3 << 8, {"PostExitBySignal": False, "PostExitCode": 3}),
        (9, {"PostExitBySignal": True, "PostExitSignal": 9}), (None, {}),
    ],
)  # fmt: skip
def test_how_the_command_after_the_job_ended_is_told(status: int | None, said: dict[str, object]) -> None:
    ad = ClassAd()
    updates.put_command_after(ad, status)
    assert dict(ad.items()) == said


@pytest.mark.parametrize(("legs", "waits"), [(0, True), (1, False), (2, False)])
async def test_the_shadow_hears_of_each_leg_and_is_waited_for_in_the_first(legs: int, waits: bool) -> None:
    told: list[bool] = []

    async def begin_execution(*, wait: bool = True) -> None:
        told.append(wait)
        if not wait:
            raise PeerFault("closed", "it is away")

    shadow = SimpleNamespace(begin_execution=begin_execution)
    await launching._tell_begun(cast(Work, SimpleNamespace(legs=legs, shadow=shadow)))
    assert told == [waits]
