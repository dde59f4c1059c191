"""What a broker says at registration is kept and sent again: so it has limits."""

from __future__ import annotations

import pytest
from classad2 import ClassAd

from cedar import ccb
from cedar.commands import Command
from cedar.errors import PeerFault
from tests.cedar.transferpeer import streams


async def registered(**answer: object) -> ccb.Registration:
    """What comes of a broker's answer; it fits into the buffers, so it is there before the question."""
    async with streams() as (ours, broker):
        await broker.put(ClassAd({"Command": int(Command.CCB_REGISTER), **answer}))
        return await ccb.register(ours, "STARTD test", None)


async def test_a_broker_gives_an_id_and_a_cookie() -> None:
    longest = "c" * ccb.MAX_ID_CHARS
    assert await registered(CCBID="192.0.2.9:9618#7", ClaimId=longest) == ccb.Registration("192.0.2.9:9618#7", longest)


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"CCBID": "192.0.2.9:9618"},
        {"CCBID": "#7"},
        {"CCBID": "<192.0.2.9:9618>#7"},
        {"CCBID": "192.0.2.9:9618#²"},
        {"CCBID": "a" * ccb.MAX_ID_CHARS + "#7"},
        {"CCBID": "192.0.2.9:9618#7", "ClaimId": "c" * (ccb.MAX_ID_CHARS + 1)},
        {"CCBID": "192.0.2.9:9618#7", "Command": int(Command.ALIVE)},
    ],
)
async def test_what_no_broker_says_is_no_registration(answer: dict[str, object]) -> None:
    with pytest.raises(PeerFault, match=r"^ccb: "):
        await registered(**answer)
