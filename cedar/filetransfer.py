"""HTCondor's file transfer in both roles: a sender of items, and a receiver that stores them in a sink.

One item at a time, in constant memory; the caller decides what is sent and where it is stored. After an
exception the stream is in an undefined state and must be closed; cancelling has the same effect. There are no
deadlines except in the go-ahead: transfers may take days, and peers may be suspended; the caller sets one
where it must.
"""

from __future__ import annotations

from cedar.client import Resume, connect
from cedar.sessions import Session
from cedar.sinful import Sinful
from cedar.stream import CedarStream
from cedar.transferitems import (
    Ack,
    Directory,
    File,
    Item,
    Link,
    Missing,
    ProxyItem,
    ReadFailed,
    SentByUrl,
    Sink,
    StoreFailed,
    TransferLimits,
)
from cedar.transferreceive import receive_files
from cedar.transfersend import send_files

__all__ = [
    "Ack",
    "Directory",
    "File",
    "Item",
    "Link",
    "Missing",
    "ProxyItem",
    "ReadFailed",
    "SentByUrl",
    "Sink",
    "StoreFailed",
    "TransferLimits",
    "accept_transfer",
    "open_transfer",
    "receive_files",
    "refuse_transfer",
    "send_files",
]


async def open_transfer(
    address: Sinful, command: int, session: Session, transfer_key: str, *, subsystem: str = "STARTER"
) -> CedarStream:
    """Connect to a transfer server: 61000 to receive_files (input), 61001 to send_files (output).

    A wrong key is answered late, by the first Refused("TRANSFER_KEY") of those two.

    Raises:
        Refused, PeerFault: as cedar.client.connect.
    """
    stream = await connect(address, command, Resume(session), subsystem=subsystem)
    try:
        await stream.put(transfer_key)
    except BaseException:  # cancelled too: nobody else would close it
        await stream.aclose()
        raise
    return stream


async def accept_transfer(stream: CedarStream) -> str:
    """Server: the transfer key that the client presents, to be compared in constant time."""
    reader = await stream.get()
    key = reader.string()
    reader.end()
    return key


async def refuse_transfer(stream: CedarStream) -> None:
    """Server: tell the client that its key is not known. The caller closes."""
    await stream.put(0)
