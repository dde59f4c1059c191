"""A filled sandbox."""

from __future__ import annotations

from pathlib import Path

import pytest

from starter.sandbox import Place, make_place, stage_in
from tests.jobwrapper.farsides import once, wrapper_context


@pytest.fixture
async def place(tmp_path: Path) -> Place:
    made = make_place(tmp_path)
    async with stage_in(wrapper_context(), made, deadline_s=60) as inward:
        await inward.file("in.txt", 0o644, 6, once(b"hel", b"lo\n"))
        await inward.file("tool", 0o755, 18, once(b"#!/bin/sh\nexit 42\n"))
        await inward.file("plain", 0o644, 3, once(b"abc"))
        await inward.file("garbage", 0o755, 3, once(b"abc"))
        await inward.directory("dir", 0o755)
        await inward.finish()
    return made
