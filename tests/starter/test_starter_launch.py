"""A whole job through the wrapper at one account, and every way in which launching can go wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from attrs import frozen

from pilot.switch import Exited, NoneSwitch, Running
from starter.launch import ExecFailed, Launched, LaunchSpec, launch
from starter.sandbox import (
    Changed,
    Context,
    Limits,
    Listed,
    OutFile,
    Place,
    make_place,
    remove_place,
    stage_in,
    stage_out,
)

WRAPPER = Path(__file__).resolve().parents[2] / "jobwrapper"
LIMITS = Limits(max_bytes=10_000_000, max_files=1000)


@frozen
class Settings:
    sailplane_switch: str = "none"
    glexec: str | None = None
    glexec_retries: int = 1
    glexec_retry_delay: float = 0.01
    sailplane_pilot_proxy: str | None = None
    sailplane_wrapper_python: str = "/usr/bin/python3"
    sailplane_wrapper_dir: str = str(WRAPPER)


def context() -> Context:
    return Context(switch=NoneSwitch(), settings=Settings(), audit_id="test#1", credential=None)


async def once(*pieces: bytes):
    for piece in pieces:
        yield piece


async def no_register(pid: int, start_ticks: int, running: Running) -> None:
    pass


def spec(place: Place, *argv: str, **changes) -> LaunchSpec:
    given = {"environment": {"PATH": "/usr/bin:/bin"}, "stdin": None, "stdout": "out", "stderr": "err"}
    return LaunchSpec(argv=argv, cwd=str(place.path), **{**given, **changes})


async def run(place: Place, *argv: str, **changes) -> Launched | ExecFailed:
    with trio.fail_after(20):
        return await launch(context(), place, spec(place, *argv, **changes), register=no_register)


@pytest.fixture
async def place(tmp_path: Path):
    made = make_place(tmp_path)
    async with stage_in(context(), made, deadline_s=20) as inward:
        await inward.file("in.txt", 0o644, 6, once(b"hel", b"lo\n"))
        made_catalogue = await inward.finish()
    yield made
    async with stage_out(context(), made, Listed(()), limits=LIMITS, deadline_s=20) as outward:
        await outward.remove()
    remove_place(made)
    assert list(tmp_path.iterdir()) == []
    assert [entry.name for entry in made_catalogue.entries] == ["in.txt"]


async def test_a_job_from_start_to_output(tmp_path: Path) -> None:
    place = make_place(tmp_path)
    async with stage_in(context(), place, deadline_s=20) as inward:
        await inward.file("in.txt", 0o644, 3, once(b"abc"))
        catalogue = await inward.finish()
    launched = await run(
        place,
        "/bin/sh",
        "-c",
        "cat; echo $WORD >&2; echo new > made; exit 7",
        stdin="in.txt",
        environment={"WORD": "hey"},
    )
    assert isinstance(launched, Launched)
    assert await launched.wait() == Exited(7)
    async with stage_out(context(), place, Changed(catalogue), limits=LIMITS, deadline_s=20) as outward:
        found = {}
        async for entry in outward.entries():
            assert isinstance(entry, OutFile)
            found[entry.name] = b"".join([chunk async for chunk in entry.chunks])
        await outward.remove()
    remove_place(place)
    assert found == {"err": b"hey\n", "made": b"new\n", "out": b"abc"}
    assert list(tmp_path.iterdir()) == []
