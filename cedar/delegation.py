"""Delegation frames: a certificate request one way, certificates the other. DER in, DER out.

The side that will own the new proxy always speaks first, also where it is the server of the command. What
is in the certificates is not looked at here. A frame is [int length, raw bytes]; length 0 says "failed here",
and both give up.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from cedar.codec import Reader
from cedar.errors import PeerFault, Refused
from cedar.stream import CedarStream

# Requests have 190 to 600 bytes, answers 2 to 5 kB, some 40 kB with large VOMS attributes.
MAX_FRAME_BYTES: Final = 512 * 1024


async def receive(stream: CedarStream, request_der: bytes) -> bytes:
    """Ask for a proxy: send the request, return the certificates (DER, back to back).

    Cancelling leaves the exchange half done: close the stream then.

    Raises:
        Refused: code "DELEGATION": the peer could not delegate.
        PeerFault: the peer broke the protocol or went away.
    """
    if not request_der:
        raise ValueError("a request without bytes means failure: call decline()")
    await stream.put(len(request_der), request_der)
    answer = _frame(await stream.get())
    if not answer:
        raise Refused("DELEGATION", "the peer could not delegate the proxy")
    return answer


async def decline(stream: CedarStream) -> None:
    """The owner-to-be gives up before asking; the delegator answers in kind, and that is read too."""
    await stream.put(0)
    _frame(await stream.get())


async def give(stream: CedarStream, sign: Callable[[bytes], Awaitable[bytes]]) -> None:
    """Delegate: read the request, have it signed, send the certificates. Cancelling as in receive().

    Raises:
        Refused: code "DELEGATION": the peer gave up before asking.
        PeerFault: the peer broke the protocol or went away.
        Exception: whatever `sign` raises, after the peer has been told that there will be no proxy.
    """
    request = _frame(await stream.get())
    if not request:
        await stream.put(0)
        raise Refused("DELEGATION", "the peer did not ask for a proxy")
    try:
        certificates = await sign(request)
    except Exception:  # whatever it is, the peer waits for an answer
        await stream.put(0)
        raise
    await stream.put(len(certificates), *([certificates] if certificates else []))


def _frame(reader: Reader) -> bytes:
    length = reader.int()
    if not 0 <= length <= MAX_FRAME_BYTES:
        raise PeerFault("limit", f"a delegation frame of {length} bytes")
    data = reader.raw(length)
    reader.end()
    return data
