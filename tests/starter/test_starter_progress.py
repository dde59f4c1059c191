"""A transfer that stands still is given up; one that moves slowly is not."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio

from starter.transfer import Progress, TransferFailed


async def slow(pauses_s: list[float]) -> AsyncIterator[bytes]:
    for pause_s in pauses_s:
        await trio.sleep(pause_s)
        yield b"x"


async def read_all(pauses_s: list[float], limit_s: float) -> int:
    progress, count = Progress(limit_s), 0
    progress.made()
    with progress.scope:
        async for chunk in progress.watched(slow(pauses_s)):
            count += len(chunk)
    progress.check("the transfer")
    return count


async def test_slow_is_not_still(autojump_clock: trio.testing.MockClock) -> None:
    assert await read_all([50.0] * 100, limit_s=60.0) == 100


async def test_standing_still_is_given_up_and_may_be_tried_again(autojump_clock: trio.testing.MockClock) -> None:
    before = trio.current_time()
    with pytest.raises(TransferFailed, match="stood still for 60 s") as failed:
        await read_all([1.0, 1000.0], limit_s=60.0)
    assert failed.value.ack.retry
    assert trio.current_time() - before == pytest.approx(61.0)
