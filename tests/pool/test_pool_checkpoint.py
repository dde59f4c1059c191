"""What a job left to be started again from goes in with its next input, over what was there before."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cedar.commands import Command
from cedar.filetransfer import Ack, Directory, File, TransferLimits
from cedar.server import Request
from pool.model import Checkpoint, Entry, JobId, OutputFile
from pool.spool import Spool
from pool.transfers import Transfer
from tests.pool.conftest import job_ad
from tests.pool.fake_ep import FakeEP, FakeStarter


async def test_a_checkpoints_files_replace_inputs_of_their_names(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.make_cluster(1)
    for key, text in enumerate((b"old state", b"#!/bin/sh")):
        spool.input(1, key).write_bytes(text)
    arrived = spool.make_outputs(1, 7)
    (arrived / "1").write_bytes(b"new state")
    spool.keep(arrived, 1, "0.0")
    transfer = Transfer(
        spool=spool,
        cluster=1,
        run=8,
        entries=[Entry("state", 0o644, 9, 0), Entry("run.sh", 0o755, 9, 1)],
        executable="run.sh",
        proxy_name=None,
        limits=TransferLimits(),
        on_output=lambda: None,
        checkpoint=Checkpoint(0, "0.0", (OutputFile("more", 0o755, 0, None), OutputFile("state", 0o644, 9, 1))),
    )
    found = {}
    async for item in transfer.items():
        assert isinstance(item, File | Directory)
        found[item.name] = b"".join([chunk async for chunk in item.chunks]) if isinstance(item, File) else None
    assert found == {"more": None, "state": b"new state", "run.sh": b"#!/bin/sh"}
    assert not arrived.exists()


async def test_a_checkpoint_that_comes_while_the_last_one_is_entered_is_not_refused(
    start_pool: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The execution point has the acknowledgement by then, and a short leg of a job takes less than a busy disk."""
    disk, keep, serve, asked = threading.Event(), Spool.keep, Transfer.serve, []

    def keep_slowly(*arguments: Any) -> None:
        disk.wait(60.0)
        keep(*arguments)

    async def serve_and_go_on(transfer: Transfer, request: Request) -> None:
        asked.append(request.command)
        if asked.count(Command.FILETRANS_DOWNLOAD) == 2:
            disk.set()
        await serve(transfer, request)

    monkeypatch.setattr(Spool, "keep", keep_slowly)
    monkeypatch.setattr(Transfer, "serve", serve_and_go_on)
    acks: list[tuple[Ack, Ack]] = []

    async def body(starter: FakeStarter) -> None:
        await starter.begin()
        await starter.stage_in()
        await starter.run()
        for final in (False, False, True):
            acks.append(await starter.stage_out({"state": b"here"}, final=final))
        await starter.exit()

    async with start_pool() as pool:
        ep = FakeEP(pool.address, pool.places.tokens)
        ep.body = body
        async with ep.running():
            cluster = await pool.submit(job_ad())
            assert (await pool.until(cluster, "completed")).runs == 1
        assert [ack.ok for pair in acks for ack in pair] == [True] * 6
        checkpoint = pool.queue.checkpoint(JobId(cluster, 0))
        assert checkpoint is not None
        assert checkpoint.number == 1
