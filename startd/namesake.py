"""A second startd of the same name would overwrite the first one's ads, and get its claims: it must not start."""

from __future__ import annotations

from collections.abc import Sequence

import trio
from classad2 import ClassAd, ExprTree

from cedar.classads import get_str
from cedar.client import Negotiate, connect
from cedar.commands import Command
from cedar.errors import PeerFault, Refused
from cedar.sinful import Sinful

ASK_WITHIN_S = 5.0
MAX_ADS = 10


async def living_namesakes(collectors: Sequence[Sinful], slot_name: str, own_address: str) -> list[tuple[Sinful, str]]:
    """The same at several collectors at once, of which one that is silent must not hold up the others."""
    found: list[tuple[Sinful, str]] = []

    async def ask(collector: Sinful) -> None:
        if (other := await living_namesake(collector, slot_name, own_address)) is not None:
            found.append((collector, other))

    async with trio.open_nursery() as asking:
        for collector in collectors:
            asking.start_soon(ask, collector)
    return found


async def living_namesake(collector: Sinful, slot_name: str, own_address: str) -> str | None:
    """The address of a startd that advertises ``slot_name`` and answers; None if there is none, or nobody to ask.

    An ad alone proves nothing: that of a startd that died stays for a while.
    """
    with trio.move_on_after(ASK_WITHIN_S):
        for ad in await _ask(collector, slot_name):
            address = str(get_str(ad, "MyAddress", ""))
            if address and address != own_address and await _has(address, slot_name):
                return address
    return None


async def _has(address: str, slot_name: str) -> bool:
    """Whether a startd with that slot answers there. What is no address was not written by one."""
    try:
        startd = Sinful.parse(address)
    except PeerFault:
        return False
    return any(str(get_str(own, "Name", "")) == slot_name for own in await _ask(startd, slot_name))


async def _ask(address: Sinful, slot_name: str) -> list[ClassAd]:
    query = ClassAd()
    query["MyType"], query["TargetType"] = "Query", "Machine"
    query["Requirements"] = ExprTree(f'TARGET.Name == "{slot_name}"')
    security = Negotiate(tokens_dir=None, authentication="OPTIONAL")
    try:
        stream = await connect(address, Command.QUERY_STARTD_ADS, security, subsystem="STARTD", deadline_s=ASK_WITHIN_S)
        try:
            await stream.put(query)
            reader = await stream.get()
            ads: list[ClassAd] = []
            while reader.int() == 1 and len(ads) < MAX_ADS:
                ads.append(reader.ad())
            return ads
        finally:
            await stream.aclose()
    except (PeerFault, Refused, OSError):
        return []
