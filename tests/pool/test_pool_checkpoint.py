"""What a job left to be started again from goes in with its next input, over what was there before."""

from __future__ import annotations

from pathlib import Path

from cedar.filetransfer import Directory, File, TransferLimits
from pool.model import Checkpoint, Entry, OutputFile
from pool.spool import Spool
from pool.transfers import Transfer


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
