"""The go-ahead of a file transfer, the same both ways: wait for the peer's word, give ours.

Here are the only deadlines of a transfer: a peer that queues gives signs of life, or is gone.
"""

from __future__ import annotations

import math
from typing import Final

import attrs
import trio
from classad2 import ClassAd

from cedar import classads
from cedar.codec import Reader
from cedar.errors import PeerFault, Refused
from cedar.stream import CedarStream
from cedar.transferitems import Ack, failed, refusal

# Seconds between signs of life while one side queues; what stock announces and asks for.
_ALIVE_S: Final = 300
# What a peer may need beyond the interval that it promised; stock reserves as much.
_ALIVE_SLACK_S: Final = 20
# A peer that wants us to wait longer without any sign of life is not believed.
_MAX_ALIVE_S: Final = 86400
# Result in a go-ahead; 1 is for one item.
_WAITING, _ALWAYS = 0, 2
_INT_BYTES: Final = 8


class Stopped(Exception):
    """The transfer ends here, without further messages: what each side has to say."""

    def __init__(self, own: Ack, peer: Ack) -> None:
        super().__init__(own.reason or peer.reason)
        self.own = own
        self.peer = peer


@attrs.define
class GoAhead:
    """Whether the peer let us go ahead for all items, and the bytes that it takes (-1: any number)."""

    always: bool = False
    max_bytes: int = -1


async def ask(stream: CedarStream, state: GoAhead) -> None:
    """Wait for the peer's word; it may take as long as its queue, if it gives signs of life.

    Raises Stopped when the peer says no, Refused("TRANSFER_KEY"), PeerFault ("timeout" without a sign of life).
    """
    await stream.put(_ALIVE_S)
    wait_s = _ALIVE_S
    while True:
        ad = await get_ad(stream, within_s=wait_s + _ALIVE_SLACK_S)
        result = classads.get_int(ad, "Result")
        state.max_bytes = classads.get_int(ad, "MaxTransferBytes", state.max_bytes)
        if result == _WAITING:
            wait_s = min(max(classads.get_int(ad, "Timeout", wait_s), _ALIVE_S), _MAX_ALIVE_S)
            continue
        if result < 0:
            peer = refusal(ad, retry=classads.get_bool(ad, "TryAgain", True))
            raise Stopped(failed(peer.hold_code, peer.hold_subcode, "the peer gave no go-ahead", retry=True), peer)
        state.always = result == _ALWAYS
        return


async def grant(stream: CedarStream, *, max_bytes: int | None = None, announce: bool = False) -> None:
    """Let the peer go ahead, for all items. ``announce``: tell it the most bytes that are taken (None: any number)."""
    interval_s = await get_int(stream)
    if interval_s < _ALIVE_S:
        await stream.put(ad_of(Timeout=_ALIVE_S, Result=_WAITING))
    if announce:
        await stream.put(ad_of(Result=_ALWAYS, MaxTransferBytes=-1 if max_bytes is None else max_bytes))
    else:
        await stream.put(ad_of(Result=_ALWAYS))


def ad_of(**values: int) -> ClassAd:
    """An ad of numbers."""
    ad = ClassAd()
    for name, value in values.items():
        ad[name] = value
    return ad


async def get_ad(stream: CedarStream, *, within_s: float = math.inf) -> ClassAd:
    """A message that is one ad.

    Raises Refused("TRANSFER_KEY"), PeerFault: "timeout" after ``within_s``, and what stream and ad raise.
    """
    with trio.move_on_after(within_s):
        reader = await stream.get()
        check_key_refusal(reader)
        ad = reader.ad()
        reader.end()
        return ad
    raise PeerFault("timeout", f"no go-ahead and no sign of life within {within_s} s")


def check_key_refusal(reader: Reader) -> None:
    """Refused("TRANSFER_KEY") for a server's answer to a wrong key: a number, which is shorter than any ad."""
    if reader.remaining() != _INT_BYTES:
        return
    if reader.int() == 0:
        raise Refused("TRANSFER_KEY", "the peer does not know the transfer key")
    raise PeerFault("codec", "a number came where an ad belongs")


async def get_int(stream: CedarStream) -> int:
    """A message that is one integer; PeerFault for any other."""
    reader = await stream.get()
    value = reader.int()
    reader.end()
    return value
