"""Stage-in: the far side makes the sandbox in a place of ours, says ready, and unpacks a tar stream made here
on the fly.

Nothing moves before the authorisation stood, and the user's files never lie on the pilot's disk.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from cedar.commands import HoldCode
from cedar.filetransfer import StoreFailed
from pilot.farside import FarSide, open_call, text_of
from starter.entries import (
    STALL_S,
    Account,
    Catalogue,
    Context,
    Rows,
    StageFailed,
    checked_name,
    deadline,
    dict_of,
    guarded,
    int_of,
    raise_if_failed,
    refusal_in,
)
from starter.places import Made, Place, check_made, close_window, open_window, write_record
from starter.plugins import Order
from starter.tarstream import END, header, padding
from starter.tarstream import order as tar_order

# Small files are collected into pieces of this size; larger ones go as they come.
COLLECT_BYTES = 256 * 1024
# Entries of a sandbox's top directory that are remembered: more than any input has, 100 MB at most.
CATALOGUE_ENTRIES = 1_000_000
CATALOGUE_NAMES_BYTES = 64 * 1024 * 1024
# An input that was given up half-way is removed by the far side before it ends.
CLEAR_GRACE_S = 30.0
SANDBOX_MODE = 0o700
# 64 KiB of a plugin's words, up to 6 characters each in JSON, and some more.
PLUGIN_FRAME_BYTES = 512 * 1024


@asynccontextmanager
async def stage_in(
    context: Context, place: Place, *, deadline_s: float, authorised: Callable[[], None] = lambda: None
) -> AsyncIterator[Inward]:
    """Make the sandbox at the job's account; inside the block it can be filled.

    Entered once the far side is authorised, has made the directory and the window is closed again; each of
    these within `deadline_s` seconds (an attempt of the call counts alone). Leaving without `finish()`, also
    by an exception or when cancelled, makes the far side empty the sandbox; the block then waits for that,
    2 * CLEAR_GRACE_S at most. `authorised` is called as soon as the site has said yes.

    Raises StageFailed; `outcome` tells what the switch said when the far side never spoke.
    """
    far = await open_call(context, "stage-in", deadline_s=deadline_s)
    inward = None
    try:
        authorised()
        account = Account(far.hello.uid, far.hello.gid, far.hello.name)
        with deadline("make the sandbox", deadline_s):
            made = await _make_directory(far, place)
        _keep_record(place, context, account, made)
        inward = Inward(far, account)
        yield inward
    finally:
        given_up = inward is not None and not inward.finished
        await far.end(CLEAR_GRACE_S if given_up else None)


async def _make_directory(far: FarSide, place: Place) -> Made:
    with guarded(place):
        open_window(place)
        try:
            await far.send({"parent": str(place.sticky), "name": place.token, "mode": SANDBOX_MODE})
            answer = await far.receive()
        finally:
            close_window(place)
        raise_if_failed(answer)
        made = Made(int_of(dict_of(answer.get("ready")).get("dev")), int_of(dict_of(answer.get("ready")).get("ino")))
        check_made(place, made, far.hello.uid)
    return made


def _keep_record(place: Place, context: Context, account: Account, made: Made) -> None:
    content = {
        "id": context.audit_id,
        "uid": account.uid,
        "gid": account.gid,
        "account": account.name,
        "pid": os.getpid(),
        "device": made.device,
        "inode": made.inode,
    }
    with guarded(place):
        write_record(place, content)


class Inward:
    """The way into the sandbox: a sink for cedar.filetransfer. Names are checked here.

    When the far side cannot store something (no space, a name taken twice) it says so once and drops all the
    rest: from then on each item raises StoreFailed, and `finish` raises StageFailed.
    """

    def __init__(self, far: FarSide, account: Account) -> None:
        self.account = account
        self.finished = False
        self._refusal: StageFailed | None = None
        self._far = far
        self._collected = bytearray()

    async def directory(self, name: str, mode: int) -> None:
        """Make a directory, with those above it."""
        await self._raise_if_refused()
        await self._add(header(checked_name(name), mode=mode & 0o777, directory=True))

    async def file(self, name: str, mode: int, size: int, chunks: AsyncIterator[bytes]) -> None:
        """Store a file of exactly `size` bytes; StageFailed("size") when `chunks` gives another number."""
        await self._raise_if_refused()
        await self._add(header(checked_name(name), mode=mode & 0o777, size=size))
        left = size
        async for chunk in chunks:
            left -= len(chunk)
            if left < 0:
                break
            await self._add(chunk)
        if left:
            raise StageFailed("size", f"{text_of(name)} has not the {size} bytes that were announced")
        await self._add(padding(size))

    async def run_plugin(self, order: Order) -> Any:
        """Have a file transfer plugin run in the sandbox; what the far side says of it (``plugins.judge``).

        Cancelling kills it. Raises StoreFailed when something could not be stored before.
        """
        await self._raise_if_refused()
        await self._add(tar_order(json.dumps(order.as_sent()).encode("ascii")))
        await self._flush()
        with deadline("run a file transfer plugin", order.limit_s + STALL_S):
            answer = await self._far.receive(PLUGIN_FRAME_BYTES)
        self._refusal = refusal_in(answer)
        await self._raise_if_refused()
        return answer.get("plugin")

    async def note_what_is_there(self, directory: str) -> None:
        """Have a list of what has come so far written into a directory of the sandbox (``jobwrapper.manifest``)."""
        await self._add(tar_order(json.dumps({"manifest": directory}).encode("ascii")))

    async def finish(self) -> Catalogue:
        """No more to come: wait until all of it is stored, and return what lies in the top directory."""
        await self._add(END)
        await self._flush()
        with deadline("store the input", STALL_S):
            await self._far.stream.send_eof()
            rows = Rows(CATALOGUE_ENTRIES, CATALOGUE_NAMES_BYTES)
            while True:
                if self._refusal is not None:
                    raise self._refusal
                answer = await self._far.receive()
                raise_if_failed(answer)
                if answer.get("done") is True:
                    self.finished = True
                    return Catalogue(tuple(rows.entries))
                rows.add(answer.get("entries"))

    async def _add(self, data: bytes) -> None:
        if len(data) >= COLLECT_BYTES:
            await self._flush()
            await self._send(data)
            return
        self._collected += data
        if len(self._collected) >= COLLECT_BYTES:
            await self._flush()

    async def _flush(self) -> None:
        data, self._collected = self._collected, bytearray()
        if data:
            await self._send(data)

    async def _send(self, data: bytes | bytearray) -> None:
        with deadline("store the input", STALL_S):
            await self._far.send_bytes(data)

    async def _raise_if_refused(self) -> None:
        if self._refusal is None and self._far.pending():
            with deadline("say why", STALL_S):
                self._refusal = refusal_in(await self._far.receive())
        if self._refusal is not None:
            number = self._refusal.errno or errno.EIO
            raise StoreFailed(HoldCode.DOWNLOAD_FILE_ERROR, number, self._refusal.text)
