"""What the acting part of an activation does when its neighbours fail."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from pilot.rpc import Channel, ChannelClosed, RpcRefused
from pilot.switch import Running
from starter import steps
from starter.job import Job
from starter.life import FamilyStopped
from starter.work import Work

LOG = logging.LoggerAdapter(logging.getLogger("test"), {})


@pytest.mark.parametrize("fault", [RpcRefused("unknown-family", "it is over"), ChannelClosed("procd is away")])
async def test_usage_that_cannot_be_had_is_no_reason_to_end_the_job(fault: Exception) -> None:
    said: list[object] = []

    async def usage(family: str) -> Any:
        raise fault

    async def say(item: object) -> None:
        said.append(item)

    work = SimpleNamespace(
        procd=SimpleNamespace(usage=usage), family="f", shadow=SimpleNamespace(register_job_info=say)
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
    work = SimpleNamespace(procd=procd, family="f", registered=False, credential_path=None, description=description)
    async with trio.open_nursery() as nursery:
        running = cast(Running, SimpleNamespace(control=None))
        nursery.start_soon(steps._registering(cast(Work, work)), 1, 2, running)
        await entered.wait()
        nursery.cancel_scope.cancel()
    assert await steps.stop(cast(Work, work), soft=False) == FamilyStopped(())
