"""Checkpoints that a job makes by itself: which end is one, what is sent, what the legs have used together."""

from __future__ import annotations

from pathlib import Path

import pytest
from classad2 import ClassAd

from pilot.outcomes import Exited
from procd.messages import Usage
from starter.checkpoint import checkpoint_names, is_checkpoint
from starter.description import Description, Unrunnable, describe
from starter.sandbox import Place
from starter.work import together
from tests.starter.launches import finish


def described(**more: object) -> Description:
    ad = ClassAd(
        {"ClusterId": 1, "ProcId": 0, "Cmd": "a", "WantFTOnCheckpoint": True, "SuccessCheckpointExitCode": 85} | more
    )
    return describe(ad)


@pytest.mark.parametrize(
    ("wait_status", "is_one"), [(85 << 8, True), (0, False), (84 << 8, False), (85, False), (9, False)]
)
def test_a_checkpoint_is_told_by_the_exit_code(wait_status: int, is_one: bool) -> None:
    assert is_checkpoint(described(), wait_status) is is_one


def test_a_checkpoint_may_be_told_by_a_signal_with_a_core_or_without() -> None:
    job = described(SuccessCheckpointExitBySignal=True, SuccessCheckpointExitSignal="SIGUSR2")
    assert is_checkpoint(job, 12)
    assert is_checkpoint(job, 12 | 0x80)
    assert not is_checkpoint(job, 12 << 8)


@pytest.mark.parametrize("more", [{"WantFTOnCheckpoint": False}, {"SuccessCheckpointExitCode": None}])
def test_other_jobs_have_none(more: dict[str, object]) -> None:
    ad = ClassAd({"ClusterId": 1, "ProcId": 0, "Cmd": "a", "WantFTOnCheckpoint": True, "SuccessCheckpointExitCode": 85})
    for name, value in more.items():
        if value is None:
            del ad[name]
        else:
            ad[name] = value
    assert not is_checkpoint(describe(ad), 85 << 8)
    assert not is_checkpoint(describe(ad), 0)


def test_a_destination_elsewhere_is_refused_in_words() -> None:
    with pytest.raises(Unrunnable, match="checkpoint_destination"):
        described(CheckpointDestination="s3://bucket")


def test_the_listed_files_and_the_streams_are_sent() -> None:
    assert checkpoint_names(described(TransferCheckpoint="state, more/", Out="o")) == (
        "_condor_stdout", "state", "more/"
    )  # fmt: skip


def test_without_a_list_it_is_what_would_be_the_output() -> None:
    assert checkpoint_names(described()) is None
    assert checkpoint_names(described(TransferOutput="result")) == ("result",)


def test_legs_add_up_and_peaks_do_not() -> None:
    both = together(
        Usage(user_s=5.0, system_s=1.0, rss_peak_kb=90, image_kb=10, processes_seen=3, read_kb=4, written_kb=None),
        Usage(user_s=2.0, system_s=0.5, rss_peak_kb=70, image_kb=20, processes_seen=1, processes=1, read_kb=1),
    )
    assert (both.user_s, both.system_s) == (7.0, 1.5)
    assert (both.rss_peak_kb, both.image_kb, both.processes_seen, both.processes) == (90, 20, 4, 1)
    assert (both.read_kb, both.written_kb) == (5, None)


async def test_the_output_of_a_later_leg_goes_behind_that_of_the_first(place: Place) -> None:
    for word in ("one", "two"):
        assert await finish(place, "/bin/sh", "-c", f"echo {word}; echo {word} >&2", append=True) == Exited(0)
    assert Path(place.path / "out").read_text() == "one\ntwo\n"  # noqa: ASYNC240
    assert Path(place.path / "err").read_text() == "one\ntwo\n"  # noqa: ASYNC240
