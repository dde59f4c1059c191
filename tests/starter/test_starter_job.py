"""What the acting part of an activation does when its neighbours fail."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import trio.testing

from pilot.rpc import Channel, ChannelClosed, RpcRefused
from pilot.switch import Outcome, Running, Signalled
from starter import launching, steps
from starter.events import Event, FamilyStopped, JobEnded, Step
from starter.job import Job
from starter.launch import Launched
from starter.limits import Bounds
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
        shadow=SimpleNamespace(register_job_info=say),
    )
    job = Job(cast(Work, work), cast(Channel, SimpleNamespace(send=say)), LOG)
    await job._update()
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
    assert await steps.stop(cast(Work, work), soft=False) == FamilyStopped(())


async def test_a_launch_given_up_while_the_shadow_is_told_has_a_job_whose_end_is_seen(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits then for an end that nobody looks for."""
    shot, told = trio.Event(), trio.Event()

    async def start_job(work: Work) -> Event:
        work.launched = cast(Launched, SimpleNamespace(wait=wait, after=None))
        told.set()
        await trio.sleep_forever()
        raise AssertionError

    async def wait() -> Outcome:
        await shot.wait()
        return Signalled(9, core=False)

    async def stop(_family: str, **_: Any) -> Any:
        shot.set()
        return SimpleNamespace(empty=True, survivors=[])

    async def nothing(*_: Any) -> None: ...

    work = SimpleNamespace(
        launched=None, registered=True, suspended=False, ended=trio.Event(), family="f", usage=None, started_at_s=None,
        account=None, ahead=None, guests=Guests(), kept={}, credential=None,
        procd=SimpleNamespace(stop=stop, unregister=nothing), settings=SimpleNamespace(killing_timeout=1),
        description=SimpleNamespace(
            vacate_s=-1, output_on_evict=False, post=None, checkpoint_status=None, kill_signal=15
        ),
        used=lambda usage: usage,
        activation=SimpleNamespace(vacate_max_s=1),
        shadow=SimpleNamespace(note_job_ended=nothing),
    )  # fmt: skip
    job = Job(cast(Work, work), cast(Channel, SimpleNamespace(send=nothing)), LOG)
    monkeypatch.setattr(steps, "start_job", start_job)
    with trio.fail_after(60):
        await give_up(job, told)


async def give_up(job: Job, told: trio.Event) -> None:
    async with trio.open_nursery() as job._nursery:
        job._begin(Step.LAUNCH)
        await told.wait()
        began_s = trio.current_time()
        job._begin(Step.STOP_HARD)
        assert [type(await job._told.receive()) for _ in range(2)] == [JobEnded, FamilyStopped]
    assert trio.current_time() == began_s
