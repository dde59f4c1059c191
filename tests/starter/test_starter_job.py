"""What the acting part of an activation does when its neighbours fail."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pilot.rpc import Channel, ChannelClosed, RpcRefused
from starter.job import Job
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
