"""What a failed call of the switch does to a job, and how long a kill is insisted on while the switch is in doubt."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import attrs
import pytest
import trio
from classad2 import ClassAd

from pilot import standing
from pilot.ledger import Ledger, note_identity
from pilot.outcomes import Broken, Denied, Misused, Outcome, Unavailable
from pilot.settings import Settings
from procd.messages import Stopped
from starter import failures, joboutput, stopping
from starter.description import describe
from starter.events import FamilyStopped, StagedOut
from starter.sandbox import make_place, stage_in
from starter.verdict import Exited, Hold, Requeue
from starter.work import Guests, Work
from tests.jobwrapper.farsides import hostile_context, once, wrapper_context

ALICE = "/DC=org/CN=Alice"


def work(**changes: object) -> Work:
    facts: dict[str, object] = {
        "settings": Settings(), "host": "slot1@node", "launched": None, "credential": SimpleNamespace(identity=ALICE),
    }  # fmt: skip
    return cast(Work, SimpleNamespace(**{**facts, **changes}))


def test_a_refused_user_is_held_in_words_that_fit_what_is_known() -> None:
    verdict = failures.switch_verdict(work(), Denied("not in the\ngrid-mapfile"), "x")
    assert isinstance(verdict, Hold)
    assert verdict.code == 28
    for words in (ALICE, "slot1@node refused", "or has no account for", "not in the", "administrator"):
        assert words in verdict.text
    assert "\n" not in verdict.text


def test_glexec_hold_on_initial_failure_spares_jobs_that_have_not_started() -> None:
    settings = attrs.evolve(Settings(), glexec_hold_on_initial_failure=False)
    assert isinstance(failures.switch_verdict(work(settings=settings), Denied("no"), "x"), Requeue)
    started = work(settings=settings, launched=object())
    assert isinstance(failures.switch_verdict(started, Denied("no"), "x"), Hold)


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        (Unavailable("503"), "authorisation is not available on slot1@node: 503"),
        (Misused("maps this user to root"), "slot1@node cannot be used for this job: maps this user to root"),
        (Broken("exit status 127"), "stage in: exit status 127"),
        (None, "stage in: exit status 127"),
    ],
)
def test_the_sites_trouble_sends_the_job_back_to_idle(outcome: Outcome | None, words: str) -> None:
    verdict = failures.switch_verdict(work(), outcome, "stage in: exit status 127")
    assert isinstance(verdict, Requeue)
    assert words in verdict.text


# -- kills ----


@attrs.define
class Procd:
    """Survivors until `works`; it says when it was asked."""

    works: bool = False
    asked: list[float] = attrs.field(factory=list)

    async def stop(self, family: str, **how: object) -> Stopped:
        self.asked.append(trio.current_time())
        await trio.sleep(30)
        return Stopped(survivors=() if self.works else (7,), route="switch", switch_calls=1, empty=self.works, text="")

    async def unregister(self, family: str) -> None:
        return None


@attrs.define
class Place:
    """A job that is to be stopped."""

    work: Work
    procd: Procd
    ledger: Ledger


@pytest.fixture
def job(tmp_path: Path) -> Place:
    ledger, procd = Ledger.of(tmp_path), Procd()
    ledger.clock = lambda: 1000.0
    ledger.begin(probe=True)
    path = tmp_path / "proxy.pem"
    note_identity(path, ALICE, "")
    made = work(
        procd=procd, ledger=ledger, credential_path=path, registered=True, suspended=False, family="f",
        guests=Guests(), ended=trio.Event(), used=lambda usage: usage, description=SimpleNamespace(vacate_s=0.0),
        activation=SimpleNamespace(vacate_max_s=0.0),
        credential=SimpleNamespace(identity=ALICE, usable_until=time.time() + 3600),
    )  # fmt: skip
    return Place(made, procd, ledger)


async def go_down(ledger: Ledger) -> None:
    def down(now: standing.Standing, now_s: float) -> tuple[standing.Standing, None]:
        for _ in range(standing.DOWN_AFTER):
            now = standing.pilot_failed(now, words="503", now_s=now_s, dice=0.0)
        return now, None

    await ledger.change(down)


async def test_a_kill_that_failed_for_another_reason_is_not_repeated(
    job: Place, autojump_clock: trio.testing.MockClock
) -> None:
    assert await stopping.stop(job.work, soft=False) == FamilyStopped((7,))
    assert len(job.procd.asked) == 1


async def test_what_a_job_left_running_is_killed_as_soon_as_the_site_is_back(
    job: Place, autojump_clock: trio.testing.MockClock
) -> None:
    await go_down(job.ledger)
    job.work.ended.set()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_come_back, job)
        assert await stopping.stop(job.work, soft=False) == FamilyStopped(())
    assert len(job.procd.asked) > 10


async def _come_back(job: Place) -> None:
    await trio.sleep(1000)
    job.procd.works = True


async def test_a_job_that_was_told_to_end_is_not_insisted_on_longer_than_the_startd_waits(
    job: Place, autojump_clock: trio.testing.MockClock
) -> None:
    await go_down(job.ledger)
    assert await stopping.stop(job.work, soft=False) == FamilyStopped((7,))
    assert 1 < len(job.procd.asked) < 5


async def test_nothing_is_insisted_on_after_the_proxys_end(job: Place, autojump_clock: trio.testing.MockClock) -> None:
    await go_down(job.ledger)
    job.work.ended.set()
    job.work.credential.usable_until = time.time() - 1  # type: ignore[union-attr, misc]
    assert await stopping.stop(job.work, soft=False) == FamilyStopped((7,))


# -- a sandbox that cannot be emptied ----


@pytest.mark.parametrize(
    "end", ["send({'left': 1, 'named': [['f', 'because']]})", "send({'left': 'x'})", "send([1])", "os._exit(1)"]
)
async def test_output_that_has_arrived_is_not_taken_back_for_a_sandbox_that_stays(
    tmp_path: Path, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job would run a second time."""

    async def nothing(*_: object, **__: object) -> None: ...

    place = make_place(tmp_path)
    async with stage_in(wrapper_context(), place, deadline_s=60) as inward:
        await inward.file("f", 0o600, 1, once(b"x"))
        await inward.finish()
    speak = f"hello(); receive(); send({{'done': True}}); line.sendall(bytes(1024)); receive(); {end}"
    far = hostile_context(tmp_path / "far", speak)
    shadow = SimpleNamespace(wait_connected=nothing, register_job_info=nothing)
    description = describe(ClassAd({"ClusterId": 1, "ProcId": 0, "Cmd": "x", "TransferOutput": ""}))
    busy = work(
        shadow=shadow, streams=[], description=description, place=place, context=lambda **_: far, ahead=None,
        settings=attrs.evolve(Settings(), sailplane_left_overs="ignore"), switch=far.switch, since_ns=0, elsewhere=None,
    )  # fmt: skip
    monkeypatch.setattr(joboutput, "_offer_output", nothing)
    fact = await joboutput.send_sandbox(busy, Exited(0))
    assert isinstance(fact, StagedOut)
    assert str(place.root) in fact.left
