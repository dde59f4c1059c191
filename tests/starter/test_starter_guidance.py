"""What a shadow's guidance leads to: its words, its order, its limits, and what must never follow from it."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import trio.testing
from classad2 import ClassAd

from cedar.commands import VERSION, HoldCode
from starter import guidance, guided, places
from starter.events import Event, StagedIn, StepFailed
from starter.guidance import (
    JOB_ENVIRONMENT,
    JOB_SETUP,
    Abort,
    AskAgain,
    CarryOn,
    RetryTransfer,
    RunDiagnostic,
    SetUpAgain,
    StartJob,
    Unable,
)
from starter.guided import Filled
from starter.verdict import Hold, Requeue
from starter.work import Work

NOW = f"$CondorVersion: {VERSION} 2026-09-17 $"
LOST_INPUT = StepFailed(Requeue(HoldCode.DOWNLOAD_FILE_ERROR, "the line was cut"), sandbox=True)


def answer(command: str, **more: Any) -> tuple[int, ClassAd]:
    return 0, ClassAd({"Command": command, **more})


class Shadow:
    """Answers in turn, the last one for ever. ``asked``: the questions; ``events``: what it was told."""

    lost = False

    def __init__(self, *answers: tuple[int, ClassAd]) -> None:
        self.answers = list(answers)
        self.asked: list[ClassAd] = []
        self.events: list[ClassAd] = []

    async def request_guidance(self, question: ClassAd) -> tuple[int, ClassAd]:
        self.asked.append(question)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    async def notify(self, event: ClassAd) -> None:
        self.events.append(event)


def work_with(shadow: Shadow, place: places.Place | None = None, *, version: str = NOW) -> Any:
    return SimpleNamespace(
        shadow=shadow, shadow_version=version, place=place, host="node", called_off=None,
        description=SimpleNamespace(job_id="3.0"), activation=SimpleNamespace(slot="slot1_1@node"),
        story=lambda: "asking > staging in", note=lambda words: None,
    )  # fmt: skip


@pytest.fixture
def place(tmp_path: Path) -> places.Place:
    return places.make_place(tmp_path)


def tries(place: places.Place, *events: Event) -> tuple[Callable[[], Any], list[int]]:
    """Fills like ``jobinput``: makes the sandbox anew each time, which must not be there then."""
    counted: list[int] = []

    async def fill_once() -> Filled:
        place.path.mkdir()
        counted.append(len(counted))
        event = events[min(len(counted), len(events)) - 1]
        return Filled(event, of_transfer=isinstance(event, StepFailed))

    return fill_once, counted


# --- words -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "ad", "meant"),
    [
        (JOB_SETUP, {"Command": "CarryOn"}, CarryOn()),
        (JOB_SETUP, {"Command": "Abort"}, Abort()),
        (JOB_SETUP, {"Command": "RetryReqest", "RetryDelay": 5}, AskAgain(5)),
        (JOB_SETUP, {"Command": "StageCommonFiles"}, Unable("StageCommonFiles")),
        (JOB_SETUP, {"Command": "MapCommonFiles"}, Unable("MapCommonFiles")),
        (JOB_SETUP, {"Command": "ColorSlot"}, Unable("ColorSlot")),
        (JOB_SETUP, {"Command": "StartJob"}, CarryOn("StartJob")),
        (JOB_ENVIRONMENT, {"Command": "StartJob"}, StartJob()),
        (JOB_ENVIRONMENT, {"Command": "RetryTransfer"}, RetryTransfer()),
        (JOB_ENVIRONMENT, {"Command": "DoJobSetup"}, SetUpAgain()),
        (JOB_ENVIRONMENT, {"Command": "RunDiagnostic", "Diagnostic": "send_ep_logs"}, RunDiagnostic("send_ep_logs")),
        (JOB_ENVIRONMENT, {"Command": "RunDiagnostic"}, CarryOn("RunDiagnostic without a name")),
        (JOB_ENVIRONMENT, {"Command": "StageCommonFiles"}, CarryOn("StageCommonFiles")),
        (JOB_ENVIRONMENT, {"Command": "MakeTea"}, CarryOn("MakeTea")),
        (JOB_ENVIRONMENT, {}, CarryOn()),
        (JOB_ENVIRONMENT, {"Command": 7}, CarryOn()),
        (JOB_ENVIRONMENT, {"Command": "RetryReqest", "RetryDelay": "soon"}, AskAgain(guidance.DEFAULT_DELAY_S)),
        (JOB_ENVIRONMENT, {"Command": "RetryReqest", "RetryDelay": 1, "ContextAd": "none"}, AskAgain(1)),
        (JOB_ENVIRONMENT, {"Command": "RetryReqest"}, AskAgain(guidance.DEFAULT_DELAY_S)),
        (JOB_ENVIRONMENT, {"Command": "RetryReqest", "RetryDelay": 10**9}, AskAgain(guidance.MAX_DELAY_S)),
        (JOB_ENVIRONMENT, {"Command": "RetryReqest", "RetryDelay": -5}, AskAgain(0)),
    ],
)
def test_each_command_means_one_thing(kind: str, ad: dict[str, Any], meant: object) -> None:
    assert guidance.guidance(kind, 0, ClassAd(ad)) == meant


def test_a_question_that_the_shadow_did_not_understand_changes_nothing() -> None:
    assert guidance.guidance(JOB_SETUP, -1, ClassAd({"Command": "Abort"})) == CarryOn()


@pytest.mark.parametrize(
    ("shadow", "asked", "told"),
    [
        ("", False, VERSION),
        ("$CondorVersion: 24.0.9 2024-10-31 $", False, VERSION),
        ("$CondorVersion: 24.5.0 2025-03-20 $", True, VERSION),
        ("$CondorVersion: 25.1.0 2025-07-28 $", True, VERSION),
        ("$CondorVersion: 25.4.0 2025-11-06 $", True, guidance.WITHOUT_STAGING),
        ("$CondorVersion: 25.9.0 2026-04-01 $", True, guidance.WITHOUT_STAGING),
        ("$CondorVersion: 25.10.1 2026-05-01 $", True, VERSION),
        (NOW, True, VERSION),
    ],
)
def test_what_a_shadow_of_each_age_is_asked_and_told(shadow: str, asked: bool, told: str) -> None:
    assert (guidance.knows_guidance(shadow), guidance.told_version(shadow)) == (asked, told)


# --- before the input --------------------------------------------------------------------------------------------


async def test_an_older_shadow_is_not_asked() -> None:
    shadow = Shadow(answer("Abort"))
    assert await guided.set_up(work_with(shadow, version="$CondorVersion: 24.0.9 2024-10-31 $")) is None
    assert shadow.asked == []


async def test_the_first_question_says_that_no_common_files_are_staged() -> None:
    shadow = Shadow(answer("CarryOn"))
    assert await guided.set_up(work_with(shadow)) is None
    assert shadow.asked[0]["HasCommonFilesTransfer"] == 0
    assert len(shadow.asked[0]["ContextAd"]) == 0


async def test_a_job_that_is_called_off_is_another_try() -> None:
    verdict = await guided.set_up(work_with(Shadow(answer("Abort"))))
    assert isinstance(verdict, Requeue)
    assert "3.0" in verdict.text


async def test_files_that_cannot_be_staged_are_refused_in_the_next_question() -> None:
    shadow = Shadow(answer("StageCommonFiles", Name="c"), answer("Abort"))
    assert isinstance(await guided.set_up(work_with(shadow)), Requeue)
    told = shadow.asked[1]["ContextAd"]
    assert (told["Command"], told["Result"], told["RequestResultCode"]) == ("StageCommonFiles", False, 1)


async def test_a_shadow_that_wants_to_be_asked_later_is(autojump_clock: trio.testing.MockClock) -> None:
    context = ClassAd({"N": 4})
    shadow = Shadow(answer("RetryReqest", RetryDelay=300, ContextAd=context), answer("CarryOn"))
    began_s = trio.current_time()
    assert await guided.set_up(work_with(shadow)) is None
    assert trio.current_time() - began_s == pytest.approx(300)
    assert shadow.asked[1]["ContextAd"]["N"] == 4


async def test_a_shadow_that_names_no_delay_is_not_asked_in_a_loop(autojump_clock: trio.testing.MockClock) -> None:
    shadow = Shadow(answer("RetryReqest", RetryDelay=0))
    with trio.move_on_after(60):
        await guided.set_up(work_with(shadow))
    assert len(shadow.asked) <= 61


async def test_a_shadow_that_never_stops_ordering_is_no_shadow_to_start_for() -> None:
    shadow = Shadow(answer("StageCommonFiles"))
    assert isinstance(await guided.set_up(work_with(shadow)), Requeue)
    assert len(shadow.asked) == guided.MAX_COMMANDS


# --- after the input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["StartJob", "CarryOn", "RetryTransfer", "MakeTea"])
async def test_a_complete_input_is_not_fetched_again(place: places.Place, command: str) -> None:
    fill_once, counted = tries(place, StagedIn())
    assert await guided.fill(cast(Work, work_with(Shadow(answer(command)), place)), fill_once) == StagedIn()
    assert len(counted) == 1


async def test_a_lost_input_is_fetched_again_into_a_new_sandbox(place: places.Place) -> None:
    fill_once, counted = tries(place, LOST_INPUT, StagedIn())
    shadow = Shadow(answer("RetryTransfer"), answer("StartJob"))
    assert await guided.fill(cast(Work, work_with(shadow, place)), fill_once) == StagedIn()
    assert len(counted) == 2


async def test_an_input_that_failed_stays_so_where_its_sandbox_cannot_be_emptied(place: places.Place) -> None:
    """Other jobs of the same account may lay something into it."""
    fill_once, counted = tries(place, LOST_INPUT)

    async def lay() -> Filled:
        filled = await fill_once()
        (place.path / "another job's").touch()
        return filled

    shadow = Shadow(answer("RetryTransfer"))
    assert await guided.fill(cast(Work, work_with(shadow, place)), lay) == LOST_INPUT
    assert len(counted) == 1
    assert (place.path / "another job's").exists()


async def test_a_submit_side_that_fails_for_ever_is_believed_in_the_end(place: places.Place) -> None:
    fill_once, counted = tries(place, LOST_INPUT)
    assert await guided.fill(cast(Work, work_with(Shadow(answer("RetryTransfer")), place)), fill_once) == LOST_INPUT
    assert len(counted) == guided.MAX_REFILLS + 1


@pytest.mark.parametrize("command", ["StartJob", "CarryOn", "Abort", "MakeTea"])
async def test_a_job_never_starts_without_its_input(place: places.Place, command: str) -> None:
    fill_once, _ = tries(place, LOST_INPUT)
    assert await guided.fill(cast(Work, work_with(Shadow(answer(command)), place)), fill_once) == LOST_INPUT


async def test_a_site_that_refuses_is_not_for_the_shadow_to_judge(place: places.Place) -> None:
    refused = StepFailed(Hold(28, 0, "no account"), sandbox=True)

    async def fill_once() -> Filled:
        return Filled(refused)

    shadow = Shadow(answer("RetryTransfer"))
    assert await guided.fill(cast(Work, work_with(shadow, place)), fill_once) == refused
    assert shadow.asked == []


async def test_a_start_that_is_called_off_when_all_is_there(place: places.Place) -> None:
    fill_once, _ = tries(place, StagedIn())
    event = await guided.fill(cast(Work, work_with(Shadow(answer("Abort")), place)), fill_once)
    assert isinstance(event, StepFailed)
    assert isinstance(event.verdict, Requeue)
    assert event.sandbox


async def test_a_shadow_that_has_not_seen_the_end_yet_is_asked_again_soon(
    place: places.Place, autojump_clock: trio.testing.MockClock
) -> None:
    fill_once, _ = tries(place, StagedIn())
    shadow = Shadow(answer("RetryReqest", RetryDelay=5), answer("StartJob"))
    began_s = trio.current_time()
    assert await guided.fill(cast(Work, work_with(shadow, place)), fill_once) == StagedIn()
    assert trio.current_time() - began_s < 0.1


async def test_the_diagnostic_tells_this_jobs_story(place: places.Place) -> None:
    fill_once, _ = tries(place, LOST_INPUT)
    shadow = Shadow(answer("RunDiagnostic", Diagnostic="send_ep_logs"), answer("Abort"))
    assert await guided.fill(cast(Work, work_with(shadow, place)), fill_once) == LOST_INPUT
    (event,) = shadow.events
    assert (event["EventType"], event["Result"], event["ExitStatus"]) == ("DiagnosticResult", "Completed", 0)
    told = base64.b64decode(event["Contents"]).decode()
    assert "asking > staging in" in told
    assert "the line was cut" in told


async def test_a_diagnostic_that_nobody_has_registered_is_not_run(place: places.Place) -> None:
    fill_once, _ = tries(place, StagedIn())
    shadow = Shadow(answer("RunDiagnostic", Diagnostic="/bin/sh"), answer("StartJob"))
    assert await guided.fill(cast(Work, work_with(shadow, place)), fill_once) == StagedIn()
    assert shadow.events[0]["Result"] == "Error - Unregistered"
    assert "Contents" not in shadow.events[0]


def test_a_long_story_is_cut_at_its_beginning() -> None:
    contents = guidance.diagnostic_result("send_ep_logs", "x" * 10**6 + "end")["Contents"]
    assert len(contents) < 40_000
    assert base64.b64decode(contents).endswith(b"end")


async def test_a_setup_that_goes_on_behind_the_input(place: places.Place) -> None:
    fill_once, _ = tries(place, StagedIn())
    shadow = Shadow(answer("DoJobSetup"), answer("CarryOn"), answer("StartJob"))
    assert await guided.fill(cast(Work, work_with(shadow, place)), fill_once) == StagedIn()
    assert [ad["RequestType"] for ad in shadow.asked] == ["JobEnvironment", "JobSetup", "JobEnvironment"]
    assert shadow.asked[1]["ContextAd"]["JobEnvironmentReady"] is True


async def test_nothing_is_filled_for_a_job_that_was_called_off_before(place: places.Place) -> None:
    fill_once, counted = tries(place, StagedIn())
    work = work_with(Shadow(answer("StartJob")), place)
    work.called_off = Requeue(1003, "called off")
    assert isinstance(await guided.fill(work, fill_once), StepFailed)
    assert counted == []
