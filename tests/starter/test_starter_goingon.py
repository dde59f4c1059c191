"""What a starter asks its startd after a checkpoint."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import trio
import trio.testing
from attrs import define, field
from classad2 import ClassAd

from pilot.configuration import load
from starter import checkpoint
from starter.events import CheckpointSent
from starter.goingon import ANSWER_WITHIN_S, GoingOn
from starter.messages import AskGoingOn
from starter.messages import GoingOn as Answer
from starter.sandbox import Changed, StageFailed


@define
class Startd:
    """Hears questions; answers with what it was given, one after the other."""

    answers: list[Answer]
    asked: list[object] = field(factory=list)
    going_on: GoingOn = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.going_on = GoingOn(self.say)

    async def say(self, message: object) -> None:
        await trio.lowlevel.checkpoint()
        self.asked.append(message)
        for answer in self.answers:
            self.going_on.heard(answer)


@pytest.mark.parametrize("here", [True, False])
async def test_the_startds_word_counts(here: bool) -> None:
    startd = Startd([Answer(3, here)])
    assert await startd.going_on.ask(3) is here
    assert startd.asked == [AskGoingOn(3)]


async def test_an_answer_to_another_question_is_none(autojump_clock: trio.testing.MockClock) -> None:
    startd = Startd([Answer(2, False)])
    startd.going_on.heard(Answer(3, False))  # before anything was asked
    assert await startd.going_on.ask(3) is True
    assert trio.current_time() >= ANSWER_WITHIN_S
    startd.going_on.heard(Answer(3, False))  # too late
    startd.answers = [Answer(4, True)]
    assert await startd.going_on.ask(4) is True


async def test_a_startd_that_says_nothing_stops_no_job(autojump_clock: trio.testing.MockClock) -> None:
    assert await Startd([]).going_on.ask(0) is True


# --- when it is asked --------------------------------------------------------------------------------------------


@define
class Shadow:
    events: list[ClassAd] = field(factory=list)

    async def wait_connected(self) -> None:
        await trio.lowlevel.checkpoint()

    async def register_job_info(self, ad: ClassAd) -> None:
        await trio.lowlevel.checkpoint()

    async def notify(self, ad: ClassAd) -> None:
        await trio.lowlevel.checkpoint()
        self.events.append(ad)


@define
class Work:
    """As much of a job's work as a checkpoint needs."""

    shadow: Shadow = field(factory=Shadow)
    settings: Any = field(factory=lambda: load(None, {}))
    place: Any = None
    legs: int = 0
    usage: Any = None
    duration_s: float = 1.0

    def context(self, **_: object) -> None:
        return None

    def begin_leg(self, _usage: object) -> None:
        self.legs += 1


@pytest.mark.parametrize(("here", "legs"), [(True, 1), (False, 0)])
async def test_a_job_that_does_not_go_on_begins_no_leg(here: bool, legs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    @asynccontextmanager
    async def staged(*_: object, **__: object) -> AsyncIterator[None]:
        yield

    async def offered(*_: object) -> None:
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(checkpoint, "stage_out", staged)
    monkeypatch.setattr(checkpoint, "_offer", offered)
    startd, work = Startd([Answer(5, here)]), Work()
    sent = await checkpoint.send_checkpoint(
        cast(Any, work), cast(Any, None), last_number=4, goes_on=startd.going_on.ask
    )
    assert (sent, work.legs) == (CheckpointSent(go_on=here), legs)
    assert work.shadow.events[0]["EventType"] == "SuccessfulCheckpoint"


async def test_after_a_failed_checkpoint_nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the job did since its last checkpoint would be lost with the sandbox."""

    @asynccontextmanager
    async def failing(*_: object, **__: object) -> AsyncIterator[None]:
        raise StageFailed("broken", "the switch is away")
        yield

    monkeypatch.setattr(checkpoint, "stage_out", failing)
    startd, work = Startd([Answer(0, False)]), Work()
    sent = await checkpoint.send_checkpoint(
        cast(Any, work), cast(Any, Changed), last_number=-1, goes_on=startd.going_on.ask
    )
    assert (sent, startd.asked, work.legs) == (CheckpointSent(), [], 1)
    assert work.shadow.events[0]["EventType"] == "FailedCheckpoint"
