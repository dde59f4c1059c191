"""What a stock shadow orders by guidance; common files, which no starter of ours stages, and a job has all the same.

The shadows of this pool take their guidance from the job's ad, as in HTCondor's own tests of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.site import Site
from tests.interop.conftest import STARTD_KNOBS
from tests.interop.stockjobs import IDLE, StockJobs
from tests.interop.stockpool import VARIABLE, open_pool
from tests.userlog import EXECUTING, HELD

pytestmark = [pytest.mark.interop, pytest.mark.timeout(170)]

# One shadow a job: of a recycled one the list of guidance would go on where the job before it left it.
CONFIGURATION = "SHADOW = {wrapper}\nSHADOW_WORKLIFE = 0\n"
NO_INPUT = "http://127.0.0.1:9/nothing"


@pytest.fixture(scope="module")
def guiding() -> Iterator[StockJobs]:
    with Site.open("test", linger=True) as site:
        wrapper, prefix = site.layout.root / "shadow", Path(os.environ[VARIABLE])
        wrapper.write_text(f'#!/bin/sh\nexec {prefix}/sbin/condor_shadow --use-guidance-in-job-ad "$@"\n')
        wrapper.chmod(0o755)
        with open_pool(site, prefix, more=CONFIGURATION.format(wrapper=wrapper)) as pool:
            site.start_startd(**STARTD_KNOBS)
            yield StockJobs(site, pool)
        site.stop()


def guided(*commands: str) -> dict[str, str | None]:
    return {"+_condor_guidance_test_case": "{ " + ", ".join(f"[ {command} ]" for command in commands) + " }"}


@pytest.mark.parametrize("command", ["CarryOn", "StartJob", "RetryTransfer", "MakeTea"])
def test_a_job_whose_input_is_there_starts(guiding: StockJobs, command: str) -> None:
    job = guiding.one("alice", "echo ran", **guided(f'Command = "{command}"; Extraneous = True;'))
    assert guiding.done(job) == "ran\n"
    assert len(guiding.switch_calls(job)) == 3


def test_a_shadow_that_wants_to_be_asked_again_is(guiding: StockJobs) -> None:
    commands = ('Command = "RetryReqest"; RetryDelay = 1;', 'Command = "StartJob";')
    job = guiding.one("bob", "echo ran", **guided(*commands))
    assert guiding.done(job) == "ran\n"
    asked = [line for line in guiding.shadow_says(job) if "syscall request_guidance" in line]
    assert len(asked) == 3, "before the input, behind it, and once more"


def test_a_start_that_is_called_off_sends_the_job_back(guiding: StockJobs) -> None:
    job = guiding.one("alice", "echo ran", **guided('Command = "Abort";'))
    guiding.until(lambda: "VacateReason" in guiding.ad(job) or None, "the job to be sent back")
    assert "called off" in guiding.ad(job)["VacateReason"]
    assert guiding.ad(job)["JobStatus"] in (IDLE, 2)
    assert all(event.number != EXECUTING for event in guiding.events(job))
    guiding.act("rm", job)


@pytest.mark.parametrize("command", ["StartJob", "Abort", "CarryOn"])
def test_a_job_without_its_input_never_starts(guiding: StockJobs, command: str) -> None:
    job = guiding.one("bob", "echo ran", transfer_input_files=NO_INPUT, **guided(f'Command = "{command}";'))
    guiding.wait(job, HELD)
    assert all(event.number != EXECUTING for event in guiding.events(job))
    guiding.act("rm", job)


def test_input_is_fetched_again(guiding: StockJobs) -> None:
    again = ('Command = "RetryReqest"; RetryDelay = 2;', 'Command = "RetryTransfer";',
             'Command = "RetryReqest"; RetryDelay = 2;', 'Command = "CarryOn";')  # fmt: skip
    job = guiding.one("alice", "echo ran", transfer_input_files=NO_INPUT, **guided(*again))
    guiding.wait(job, HELD)
    sent = [line for line in guiding.shadow_says(job) if "Received GoAhead from peer to send" in line]
    assert len(sent) >= 2, "the script went out twice"
    guiding.act("rm", job)


def test_the_diagnostic_stands_in_the_shadows_log(guiding: StockJobs) -> None:
    commands = ('Command = "RunDiagnostic"; Diagnostic = "send_ep_logs";',
                'Command = "RunDiagnostic"; Diagnostic = "unknown";', 'Command = "StartJob";')  # fmt: skip
    job = guiding.one("bob", "echo ran", **guided(*commands))
    assert guiding.done(job) == "ran\n"
    said = guiding.shadow_says(job)
    assert any("[diagnostic log] >>>" in line and "staging in" in line for line in said)
    assert any("'unknown' did not complete: 'Error - Unregistered'" in line for line in said)


@pytest.mark.parametrize(
    "common",
    [
        {"transfer_common_input": "list.in"},
        {"MY.CommonInputCatalogs": '"mine"', "MY._x_catalog_mine": '"catalog.in"'},
    ],
    ids=["list", "catalog"],
)
def test_common_files_come_with_all_others(
    guiding: StockJobs, common: dict[str, str | None], request: pytest.FixtureRequest
) -> None:
    """A schedd of 25.10 or later looks at the slot's HasCommonFilesTransfer, which ours has not."""
    user, name = guiding.user("alice"), request.node.callspec.id
    guiding.site.put(user, f"{name}.in", b"common\n")
    guiding.site.put(user, f"{name}.own", b"own\n")
    script = f"cat {name}.in {name}.own"
    jobs = guiding.submit("alice", script, count=2, transfer_input_files=f"{name}.own", **common)
    assert [guiding.done(job) for job in jobs] == ["common\nown\n"] * 2
