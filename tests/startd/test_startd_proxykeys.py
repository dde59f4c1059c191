"""RSA keys are made ahead, in a thread, and none is given out twice."""

from __future__ import annotations

import trio

from pilot import credentials
from startd.proxykeys import KEYS_A_JOB, ProxyKeys


async def test_keys_are_there_before_they_are_wanted_and_never_twice() -> None:
    keys = ProxyKeys(wanted=True, stock=KEYS_A_JOB + 1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keys.run)
        seen: list[bytes] = []
        with trio.fail_after(60):
            for _ in range(2):
                while len(keys._keys) < keys.stock:  # noqa: ASYNC110 - made by a thread
                    await trio.sleep(0.01)
                seen += keys.take()
                seen += keys.take()  # asked for faster than they are made: fewer, and the starter makes its own
        nursery.cancel_scope.cancel()
    assert len(seen) == len(set(seen)) >= 2 * KEYS_A_JOB
    pending = credentials.request_with(seen[0])
    assert 500 < len(pending.der) < 700


async def test_none_are_made_where_none_are_wanted() -> None:
    keys = ProxyKeys(wanted=False)
    with trio.fail_after(30):
        await keys.run()
    assert keys.take() == ()
