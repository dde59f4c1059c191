"""What the acting part of an activation does when its neighbours fail."""

from __future__ import annotations

import errno
import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import trio.testing

from cedar.commands import Syscall
from cedar.errors import PeerFault
from pilot.calls import Running
from pilot.outcomes import Exited as SwitchExited
from pilot.outcomes import Outcome, Signalled
from pilot.rpc import Channel, ChannelClosed, RpcRefused
from procd.messages import Usage
from starter import asking, jobinput, joboutput, launching, stopping
from starter.events import (
    EXIT_LOST_SHADOW,
    CheckpointReached,
    Cleaned,
    DeactivateAsked,
    Disconnected,
    Event,
    FamilyStopped,
    JobEnded,
    JobKnown,
    Reconnected,
    Reported,
    Resume,
    ShadowLost,
    StagedIn,
    Step,
    Suspend,
    SuspendAsked,
)
from starter.job import MAX_WAITING_EVENTS, TERMINATED, Job
from starter.launch import Launched
from starter.life import Life, State
from starter.limits import Bounds
from starter.messages import AccountKnown, PassedCommand
from starter.sandbox import Account
from starter.shadow import ShadowRefused
from starter.verdict import Abandoned, Exited, Killed
from starter.work import Guests, Work

LOG = logging.LoggerAdapter(logging.getLogger("test"), {})


@pytest.mark.parametrize("fault", [RpcRefused("unknown-family", "it is over"), ChannelClosed("procd is away")])
async def test_usage_that_cannot_be_had_is_no_reason_to_end_the_job(fault: Exception) -> None:
    said: list[object] = []

    async def usage(family: str) -> Any:
        raise fault

    async def say(item: object) -> None:
        said.append(item)

    work = SimpleNamespace(
        procd=SimpleNamespace(usage=usage),
        family="f",
        used=lambda usage: usage,
        shadow=SimpleNamespace(update_job_info=say),
    )
    job = Job(cast(Work, work), cast(Channel, SimpleNamespace(send=say)), LOG)
    await job._running.update()
    assert said == []


async def test_a_launch_given_up_while_the_family_is_registered_has_nothing_to_stop() -> None:
    """procd knows no such family then, and would refuse to stop it."""
    entered = trio.Event()

    async def register(family: str, **_: Any) -> None:
        entered.set()
        await trio.sleep_forever()

    procd = SimpleNamespace(register=register)
    description = SimpleNamespace(global_job_id="id")
    work = SimpleNamespace(
        procd=procd,
        family="f",
        registered=False,
        credential_path=None,
        description=description,
        account=None,
        bounds=Bounds(),
    )
    async with trio.open_nursery() as nursery:
        running = cast(Running, SimpleNamespace(control=None))
        nursery.start_soon(launching.registering(cast(Work, work)), 1, 2, running)
        await entered.wait()
        nursery.cancel_scope.cancel()
    assert await stopping.stop(cast(Work, work), soft=False) == FamilyStopped(())


async def test_a_launch_given_up_while_the_shadow_is_told_has_a_job_whose_end_is_seen(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits then for an end that nobody looks for."""
    shot, told = trio.Event(), trio.Event()

    async def start_job(work: Work) -> Event:
        work.launched = cast(Launched, SimpleNamespace(pid=1, wait=wait, after=None))
        told.set()
        await trio.sleep_forever()
        raise AssertionError

    async def wait() -> Outcome:
        await shot.wait()
        return Signalled(9, core=False)

    async def stop(_family: str, **_: Any) -> Any:
        shot.set()
        return SimpleNamespace(empty=True, survivors=[], usage=None)

    async def nothing(*_: Any) -> None: ...

    work = SimpleNamespace(
        launched=None, registered=True, suspended=False, ended=trio.Event(), family="f", usage=None, started_at_s=None,
        account=None, ahead=None, guests=Guests(), kept={}, credential=None,
        procd=SimpleNamespace(stop=stop, unregister=nothing), settings=SimpleNamespace(killing_timeout=1),
        description=SimpleNamespace(
            vacate_s=-1, output_on_evict=False, post=None, checkpoint_status=None, kill_signal=15
        ),
        used=lambda usage: usage,
        activation=SimpleNamespace(vacate_max_s=1), slot_log=SimpleNamespace(exited=lambda pid, status: None),
        shadow=SimpleNamespace(note_job_ended=nothing),
    )  # fmt: skip
    job = Job(cast(Work, work), cast(Channel, SimpleNamespace(send=nothing)), LOG)
    monkeypatch.setattr(launching, "start_job", start_job)
    with trio.fail_after(60):
        await give_up(job, told)


@pytest.mark.parametrize(("status", "what"), [(17, CheckpointReached), (0, JobEnded)])
async def test_the_shadow_hears_of_the_end_of_each_leg(status: int, what: type) -> None:
    """It reckons from that how long the job ran, and how long tidying up takes."""
    told: list[None] = []

    async def wait() -> Outcome:
        return SwitchExited(status)

    async def verdict(_outcome: Outcome) -> None: ...

    async def note_job_ended() -> None:
        told.append(None)

    work = SimpleNamespace(
        launched=SimpleNamespace(pid=1, wait=wait, after=None), started_at_s=None, guests=Guests(), ended=trio.Event(),
        slot_log=SimpleNamespace(exited=lambda pid, status: None), kept={},
        shadow=SimpleNamespace(note_job_ended=note_job_ended),
        description=SimpleNamespace(checkpoint_status=17 << 8, post=None), credential=None, settings=None, host="h",
    )  # fmt: skip
    job = Job(cast(Work, work), cast(Channel, None), LOG)
    job._police = cast(Any, SimpleNamespace(verdict=verdict))
    await job._watch_job()
    assert isinstance(await job._told.receive(), what)
    assert told == [None]


async def give_up(job: Job, told: trio.Event) -> None:
    async with trio.open_nursery() as job._nursery:
        job._begin(Step.LAUNCH)
        await told.wait()
        began_s = trio.current_time()
        job._begin(Step.STOP_HARD)
        assert [type(await job._told.receive()) for _ in range(2)] == [JobEnded, FamilyStopped]
    assert trio.current_time() == began_s


@pytest.mark.parametrize("fact", [DeactivateAsked("rm", 1009, soft=True, output=False), ShadowLost("gone")])
async def test_the_outcome_of_a_step_that_was_overtaken_in_the_same_moment_is_none(
    fact: Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fact waits first, the outcome behind it: when the fact has begun another step, the outcome is not of that."""
    go = trio.Event()

    async def fill_sandbox(_work: Work) -> Event:
        await go.wait()
        return StagedIn()

    async def clean(_work: Work) -> Event:
        return Cleaned("")

    async def prepare(_work: Work) -> None:
        await trio.sleep_forever()

    async def report(*_: Any) -> Event:
        return Reported()

    async def nothing(*_: Any) -> None:
        await trio.lowlevel.checkpoint()

    for module, step in ((jobinput, fill_sandbox), (asking, prepare), (joboutput, clean)):
        monkeypatch.setattr(module, step.__name__, step)
    monkeypatch.setattr("starter.job.report", report)
    work = cast(Work, SimpleNamespace(ahead=None, account=None, launched=None))
    job = Job(work, cast(Channel, SimpleNamespace(send=nothing)), LOG)
    job._renewals = cast(Any, SimpleNamespace(state_changed=lambda: None))
    job._life.handle(JobKnown(has_proxy=False, output_on_evict=False), now_s=0)
    with trio.fail_after(60):
        async with trio.open_nursery() as job._nursery:
            job._begin(Step.STAGE_IN)
            await trio.testing.wait_all_tasks_blocked()
            go.set()
            await job._post(fact)
            await trio.testing.wait_all_tasks_blocked()
            await job._live()
            job._nursery.cancel_scope.cancel()
    assert "StagedIn" not in job._life.tell()
    assert "Cleaned" in job._life.tell()


@pytest.mark.parametrize("fault", [RpcRefused("no-route", "the switch is down"), ChannelClosed("procd is away")])
async def test_a_job_that_cannot_be_suspended_runs_on_and_is_not_called_suspended(fault: Exception) -> None:
    told = Told()
    job = job_with(told)

    async def refuse(_family: str) -> None:
        raise fault

    job._work.procd.suspend = job._work.procd.resume = refuse  # type: ignore[method-assign]
    await stand(job, still=True)
    await stand(job, still=False)
    await job._running.update()
    assert [state for _, state in told.updates] == ["Running"]


async def test_a_suspended_job_that_cannot_be_woken_is_stopped_nevertheless() -> None:
    asked: list[str] = []

    async def resume(_family: str) -> None:
        raise RpcRefused("no-route", "the switch is down")

    async def stop(_family: str, **_: Any) -> Any:
        asked.append("stop")
        return SimpleNamespace(empty=True, survivors=[], usage=None)

    async def nothing(*_: Any) -> None: ...

    work = SimpleNamespace(
        registered=True, suspended=True, launched=None, ended=trio.Event(), family="f", guests=Guests(),
        credential=None,
        procd=SimpleNamespace(stop=stop, resume=resume, unregister=nothing), ahead=None, usage=None,
        settings=SimpleNamespace(killing_timeout=1), used=lambda usage: usage,
        description=SimpleNamespace(vacate_s=-1, kill_signal=15, remove_kill_signal=0, hold_kill_signal=0),
        activation=SimpleNamespace(vacate_max_s=1), slot_log=SimpleNamespace(exited=lambda pid, status: None),
    )  # fmt: skip
    assert await stopping.stop(cast(Work, work), soft=True) == FamilyStopped(())
    assert asked == ["stop"]


# --- the shadow --------------------------------------------------------------------------------------------------


class Told:
    """What shadow and startd were told, and when. ``Shadow`` in the way in which a job uses it for updates."""

    def __init__(self) -> None:
        self.updates: list[tuple[float, str]] = []
        self.heard_s = trio.current_time()
        self.cut, self.back = trio.Event(), trio.Event()
        self.lost = True  # as long as nobody came back
        self.given_up = False

    async def update_job_info(self, ad: Any) -> None:
        self.updates.append((trio.current_time(), str(ad["JobState"])))

    async def listen(self) -> PeerFault:
        await self.cut.wait()
        self.cut = trio.Event()
        return PeerFault("closed", "cut")

    async def wait_connected(self) -> None:
        await self.back.wait()
        self.back, self.heard_s = trio.Event(), trio.current_time()

    def give_up(self, fault: PeerFault) -> None:
        self.given_up = True


def job_with(told: Told, *, lease_s: float = 100.0) -> Job:
    """A job that runs, in a world in which nothing else happens."""

    async def usage(_family: str) -> Usage:
        return Usage(processes=1)

    async def nothing(*_: Any) -> None: ...

    work = SimpleNamespace(
        procd=SimpleNamespace(usage=usage, suspend=nothing, resume=nothing), family="f", guests=Guests(), chirp=None,
        used=lambda usage: usage, shadow=told, kept={}, shadow_version="", suspended=False, stands_still=False,
        lease_s=lease_s, credential=None, disk=None, activation=SimpleNamespace(startd_address="<127.0.0.1:1>"),
        measured={}, settings=SimpleNamespace(starter_initial_update_interval=8, starter_update_interval=300),
    )  # fmt: skip
    job = Job(cast(Work, work), cast(Channel, SimpleNamespace(send=nothing)), LOG)
    job._life.state = State.RUNNING
    return job


async def test_a_job_whose_shadow_was_given_up_is_over_for_those_that_come_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also when the startd has ended it since, which is another verdict."""
    told, answers = Told(), list[bool]()
    job = job_with(told)

    async def note(*_: Any, over: bool, log: Any) -> bool:
        answers.append(over)
        return False

    monkeypatch.setattr("starter.job.take_up", note)
    for told.given_up, job._life.verdict in (
        (False, None),
        (True, None),
        (True, Killed("it ends", 1, False)),
        (False, Abandoned("x")),
    ):
        await job._take_up(cast(PassedCommand, None), -1)
    assert answers == [False, True, True, True]


async def test_a_shadow_that_comes_in_the_last_moment_of_the_lease_is_not_given_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    class Late(Told):
        async def wait_connected(self) -> None:
            try:
                await trio.sleep_forever()
            finally:
                self.lost = False
                self.listen = trio.sleep_forever  # type: ignore[method-assign]

    told = Late()
    told.cut.set()
    job = job_with(told, lease_s=5.0)
    with trio.move_on_after(60):
        await job._watch_shadow()
    assert not told.given_up
    assert [type(job._told.receive_nowait()) for _ in range(2)] == [Disconnected, Reconnected]


async def stand(job: Job, *, still: bool) -> None:
    job._running.wish(still=still)
    await job._running.obey()


@pytest.mark.parametrize("slow", ["suspend", "resume"])
@pytest.mark.parametrize("last", [Suspend(), Resume()])
async def test_of_two_orders_the_later_one_holds_however_slow_procd_is_with_the_first(
    slow: str, last: Suspend | Resume, autojump_clock: trio.testing.MockClock
) -> None:
    told = Told()
    job = job_with(told)
    done: list[str] = []

    def slowly(word: str) -> Any:
        async def act(_family: str) -> None:
            await trio.sleep(1 if word == slow else 0)
            done.append(word)

        return act

    job._work.procd.suspend, job._work.procd.resume = slowly("suspend"), slowly("resume")  # type: ignore[method-assign]
    first = Resume() if isinstance(last, Suspend) else Suspend()
    async with trio.open_nursery() as job._nursery:
        await job._carry_out(first)
        await trio.testing.wait_all_tasks_blocked()
        await job._carry_out(last)
    still = isinstance(last, Suspend)
    assert done[-1] == ("suspend" if still else "resume")
    assert job._work.stands_still is still
    assert told.updates[-1][1] == ("Suspended" if still else "Running")


async def test_updates_come_early_then_by_interval_and_at_each_change_with_the_true_state(
    autojump_clock: trio.testing.MockClock,
) -> None:
    told = Told()
    job = job_with(told)
    began_s = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(job._running.tell_usage)
        await trio.sleep(100)
        await stand(job, still=True)
        await trio.sleep(300)
        await stand(job, still=False)
        await trio.sleep(300)
        nursery.cancel_scope.cancel()
    assert [(round(at_s - began_s), state) for at_s, state in told.updates] == [
        (8, "Running"), (100, "Suspended"), (308, "Suspended"), (400, "Running"), (608, "Running"),
    ]  # fmt: skip


async def test_a_lost_shadow_is_waited_for_until_the_lease_since_its_last_answer_is_over(
    autojump_clock: trio.testing.MockClock,
) -> None:
    told = Told()
    job = job_with(told, lease_s=100)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(job._watch_shadow)
        await trio.sleep(30)  # the last answer is so old when the socket ends
        told.cut.set()
        assert isinstance(await job._told.receive(), Disconnected)
        await trio.sleep(50)
        told.back.set()
        assert isinstance(await job._told.receive(), Reconnected)
        back_s = trio.current_time()
        await trio.sleep(40)
        told.cut.set()
        assert isinstance(await job._told.receive(), Disconnected)
        lost = await job._told.receive()
        assert isinstance(lost, ShadowLost)
        assert "lease of 100 s" in lost.text
        assert trio.current_time() - back_s == pytest.approx(100)
        assert told.given_up


async def test_a_job_without_a_lease_ends_with_its_shadow(autojump_clock: trio.testing.MockClock) -> None:
    told = Told()
    job = job_with(told, lease_s=0)
    began_s = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(job._watch_shadow)
        told.cut.set()
        assert [type(await job._told.receive()) for _ in range(2)] == [Disconnected, ShadowLost]
    assert trio.current_time() - began_s < 1


@pytest.mark.parametrize(
    "fault", [ShadowRefused(Syscall.REGISTER_JOB_INFO, errno.EINVAL), PeerFault("closed", "it went away")]
)
async def test_a_shadow_that_will_not_know_us_ends_the_first_call(
    fault: Exception, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """The call waits for what is prepared beside it, which never comes then."""
    ended: list[str] = []

    async def fill_sandbox(work: Work) -> Event:
        try:
            await work.prepared.wait()
        finally:
            ended.append("the call")
        raise AssertionError

    async def prepare(_work: Work) -> None:
        await trio.sleep(1)
        raise fault

    async def clean(_work: Work) -> Event:
        ended.append("the sandbox")
        return Cleaned("")

    async def nothing(*_: Any) -> None: ...

    for module, step in ((jobinput, fill_sandbox), (asking, prepare), (joboutput, clean)):
        monkeypatch.setattr(module, step.__name__, step)
    work = cast(Work, SimpleNamespace(ahead=None, account=None, launched=None, credential=None, prepared=trio.Event()))
    job = Job(work, cast(Channel, SimpleNamespace(send=nothing)), LOG)
    job._renewals = cast(Any, SimpleNamespace(state_changed=lambda: None))
    job._police = cast(Any, SimpleNamespace(watch_time=nothing))
    with trio.fail_after(60):
        async with trio.open_nursery() as job._nursery:
            job._outcome = JobKnown(has_proxy=False, output_on_evict=False)
            await job._post(job._outcome)
            assert await job._live() == EXIT_LOST_SHADOW
    assert ended == ["the call", "the sandbox"]


async def test_the_startd_is_told_the_account_once_and_nothing_else_of_a_job_that_goes_well() -> None:
    """Each word wakes it, and has it make an ad, at the moments when the job's calls want the processor."""
    told: list[object] = []

    async def send(message: object) -> None:
        told.append(message)

    work = cast(Work, SimpleNamespace(ahead=None, account=None, launched=None))
    job = Job(work, cast(Channel, SimpleNamespace(send=send)), LOG)
    job._renewals = cast(Any, SimpleNamespace(state_changed=lambda: None))
    await job._state_changed()
    assert told == []
    for uid in (1055, 1055, 1056):
        work.account = Account(uid, 100, "alice")
        await job._state_changed()
    assert told == [AccountKnown(1055), AccountKnown(1056)]


# --- SIGTERM -----------------------------------------------------------------------------------------------------


@contextmanager
def heard(job: Job) -> Iterator[None]:
    """The handler of whoever runs the tests comes back afterwards."""
    before = signal.getsignal(signal.SIGTERM)
    with job._hearing_signal():
        yield
    assert signal.getsignal(signal.SIGTERM) == before


async def in_turn(job: Job) -> list[Event]:
    """All that waits, as it is looked at."""
    await trio.testing.wait_all_tasks_blocked()
    found: list[Event] = []
    with suppress(trio.WouldBlock):
        while True:
            found += job._in_turn(job._told.receive_nowait())
    return found


async def test_a_job_that_ends_at_a_signal_to_everybody_did_not_end_by_itself() -> None:
    """Its end may be known before the signal is looked at; and who sends one may send another."""
    job, end = job_with(Told()), JobEnded(0, exact=True)
    with heard(job):
        await job._post(end)
        for _ in range(2):
            signal.raise_signal(signal.SIGTERM)
        assert await in_turn(job) == [TERMINATED, end]
        assert await in_turn(job) == []
        signal.raise_signal(signal.SIGTERM)
        assert await in_turn(job) == [TERMINATED]


async def test_a_signal_to_everybody_is_not_lost_where_much_waits() -> None:
    job = job_with(Told())
    with heard(job):
        for _ in range(MAX_WAITING_EVENTS):
            await job._post(SuspendAsked())
        signal.raise_signal(signal.SIGTERM)
        assert await in_turn(job) == [TERMINATED, *[SuspendAsked()] * MAX_WAITING_EVENTS]


@pytest.mark.parametrize("state", [state for state in State if state is not State.ENDED])
def test_a_signal_to_everybody_evicts_wherever_the_job_is(state: State) -> None:
    """Twice is as once, and nothing that was decided before is undone."""
    life = Life(state, sandbox=True, output_on_evict=True)
    if state in (State.STOPPING, State.STAGING_OUT, State.CLEANING, State.REPORTING):
        life.verdict = Exited(0, exact=True)
    decided = life.verdict
    life.handle(TERMINATED, now_s=0.0)
    assert life.leaving
    assert isinstance(life.verdict, Killed) if decided is None else life.verdict == decided
    once = life.state, life.verdict
    assert life.handle(TERMINATED, now_s=1.0) == ()
    assert (life.state, life.verdict) == once
