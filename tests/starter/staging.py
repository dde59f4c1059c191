"""What tests of staging do with a sandbox: fill it, fetch from it, look at it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from starter.places import Place
from starter.sandbox import (
    Catalogue,
    Limits,
    OutFile,
    Outward,
    Wanted,
    make_place,
    stage_in,
    stage_out,
)
from tests.jobwrapper.farsides import LIMITS, once, wrapper_context

NASTY = ["new\nline", "tab\t", "ünï", os.fsdecode(b"\xff\xfe"), "-rf", "a" * 255, "blank ", "\\", '"', "*"]


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def staged(tmp_path: Path, files: dict[str, bytes]) -> tuple[Place, Catalogue]:
    place = make_place(tmp_path)
    async with stage_in(wrapper_context(), place, deadline_s=60) as inward:
        for name, content in files.items():
            await inward.file(name, 0o644, len(content), once(content))
        return place, await inward.finish()


async def collect(outward: Outward) -> dict[str, bytes | None]:
    found: dict[str, bytes | None] = {}
    async for entry in outward.entries():
        found[entry.name] = None
        if isinstance(entry, OutFile):
            found[entry.name] = b"".join([chunk async for chunk in entry.chunks])
    return found


async def fetched(place: Place, wanted: Wanted, limits: Limits = LIMITS) -> dict[str, bytes | None]:
    async with stage_out(wrapper_context(), place, wanted, limits=limits, deadline_s=60) as outward:
        found = await collect(outward)
        assert [entry.name for entry in outward.manifest.entries] == list(found)
        return found
