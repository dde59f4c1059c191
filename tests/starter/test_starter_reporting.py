"""What a shadow is told of a job's end, and that it has its last update once, whoever tells it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import attrs
import pytest
from classad2 import ClassAd

from cedar.errors import PeerFault
from procd.messages import Usage
from starter.events import JobEnded, Reported
from starter.reporting import report, tell_usage_ahead
from starter.verdict import Exited, Hold, Killed, Verdict
from starter.work import Work

ENDED = JobEnded(3 << 8, exact=True)


@attrs.define
class Shadow:
    """What it has heard; ``lost``: there is none just now."""

    takes: int = 0
    lost: bool = False
    heard: list[str] = attrs.field(factory=list)

    async def update_job_info(self, update: ClassAd) -> None:
        if self.lost:
            raise PeerFault("closed", "gone")
        await self.register_job_info(update)

    async def register_job_info(self, update: ClassAd) -> None:
        self.heard.append(f"{update['JobState']} {update.get('ExitCode')}")

    async def job_exit(self, wait_status: int, reason: int, update: ClassAd) -> None:
        self.heard.append("job_exit")


def job(shadow: Shadow, *, stands_still: bool = False) -> Work:
    facts = {
        "shadow": shadow, "usage": None, "duration_s": 1.0, "measured": {}, "launched": None, "chirp": None,
        "suspended": False, "stands_still": stands_still, "usage_told": None, "activation": None,
    }  # fmt: skip
    return cast(Work, SimpleNamespace(**facts))


async def test_the_last_update_goes_out_once() -> None:
    shadow = Shadow()
    work = job(shadow)
    await tell_usage_ahead(work, Exited(3 << 8), ENDED)
    assert shadow.heard == ["Exited 3"]
    assert await report(work, Exited(3 << 8), ENDED) == Reported()
    assert shadow.heard == ["Exited 3", "job_exit"]


async def test_a_shadow_that_has_taken_the_job_up_meanwhile_has_it_too() -> None:
    shadow = Shadow()
    work = job(shadow)
    await tell_usage_ahead(work, Exited(3 << 8), ENDED)
    shadow.takes += 1
    await report(work, Exited(3 << 8), ENDED)
    assert shadow.heard == ["Exited 3", "Exited 3", "job_exit"]


async def test_one_that_is_away_has_it_later_and_nobody_waits_for_it() -> None:
    shadow = Shadow(lost=True)
    work = job(shadow)
    await tell_usage_ahead(work, Exited(3 << 8), ENDED)
    await report(work, Exited(3 << 8), ENDED)
    assert shadow.heard == ["Exited 3", "job_exit"]


@pytest.mark.parametrize("verdict", [Killed("rm", 0, output=True), Hold(13, 2, "no output")])
async def test_of_a_job_that_did_not_just_end_nothing_is_told_ahead(verdict: Verdict) -> None:
    shadow = Shadow()
    await tell_usage_ahead(job(shadow), verdict, ENDED)
    assert shadow.heard == []


async def test_nor_of_one_that_the_shadow_knows_as_suspended() -> None:
    """It hears that the job runs again first (wire reference 4.4)."""
    shadow = Shadow()
    work = job(shadow, stands_still=True)
    await tell_usage_ahead(work, Exited(3 << 8), ENDED)
    assert shadow.heard == []
    usage = Usage(1.0, 1.0, 1, 1, 1, 1)
    work.usage, work.activation = usage, cast(object, SimpleNamespace(startd_address="<1:1>"))  # type: ignore[assignment]
    await report(work, Exited(3 << 8), ENDED)
    assert shadow.heard == ["Running None", "Exited 3", "job_exit"]
