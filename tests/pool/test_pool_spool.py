"""What came back is on the disk before it is acknowledged, or the execution point hears why not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cedar.filetransfer import StoreFailed
from pool.transfers import _Sink


async def _chunks() -> AsyncIterator[bytes]:
    yield b"out"
    yield b"put"


async def test_output_is_stored_under_numbers(tmp_path: Path) -> None:
    sink = _Sink(tmp_path)
    await sink.directory("d", 0o755)
    await sink.file("d/x", 0o644, 6, _chunks())
    assert await sink.finish() == {}
    assert [(file.name, file.size, file.key) for file in sink.files] == [("d", 0, None), ("d/x", 6, 1)]
    assert (tmp_path / "1").read_bytes() == b"output"


async def test_output_that_cannot_be_made_last_is_refused(tmp_path: Path) -> None:
    sink = _Sink(tmp_path)
    await sink.file("x", 0o644, 6, _chunks())
    (tmp_path / "0").unlink()
    with pytest.raises(StoreFailed) as refused:
        await sink.finish()
    assert "the pool cannot store a file" in str(refused.value)
