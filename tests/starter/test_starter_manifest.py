"""Lists of the sandbox and its environment for a job that wants them: by the real far sides, at this account."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from classad2 import ClassAd

from starter.description import Unrunnable, describe
from starter.entries import Changed, Listed, Wanted
from starter.places import Place
from starter.sandbox import make_place, stage_in, stage_out
from tests.jobwrapper.farsides import LIMITS, WRAPPER, once, wrapper_context
from tests.starter.launches import finish

NAME = "1_0_manifest"


async def filled(tmp_path: Path) -> tuple[Place, Changed]:
    place = make_place(tmp_path)
    async with stage_in(wrapper_context(), place, deadline_s=20) as inward:
        await inward.file("input", 0o644, 1, once(b"x"))
        await inward.directory("empty", 0o755)
        await inward.file("sub/deep", 0o644, 1, once(b"x"))
        await inward.note_what_is_there(NAME)
        catalogue = await inward.finish()
    return place, Changed(catalogue, NAME)


async def sent(place: Place, wanted: Wanted) -> dict[str, bytes]:
    """The files that come back, by name."""
    found: dict[str, bytes] = {}
    async with stage_out(wrapper_context(), place, wanted, limits=LIMITS, deadline_s=20) as outward:
        assert outward.manifest.missing == ()
        async for entry in outward.entries():
            if hasattr(entry, "chunks"):
                found[entry.name] = b"".join([chunk async for chunk in entry.chunks])
    return found


@pytest.mark.parametrize("listed", [False, True])
async def test_what_was_there_before_and_after_and_the_environment_come_back(tmp_path: Path, listed: bool) -> None:
    place, changed = await filled(tmp_path)
    environment = {"A": "b c", "PATH": "/bin", "Q": "it's"}
    await finish(place, "/bin/sh", "-c", "echo >new; rm input", manifest=NAME, environment=environment)
    found = await sent(place, Listed(("new",), manifest=NAME) if listed else changed)
    assert set(found[f"{NAME}/in"].splitlines()) == {b"./input", b"./sub/deep", f"./{NAME}/in".encode()}
    assert {b"./new", b"./sub/deep", f"./{NAME}/in".encode()} <= set(found[f"{NAME}/out"].splitlines())
    assert b"./input" not in found[f"{NAME}/out"].splitlines()
    assert found[f"{NAME}/environment"] == b"'A=b c' PATH=/bin 'Q=it''s'\n"
    assert "new" in found


@pytest.mark.parametrize("trick", ["link", "pipe", "file"])
async def test_what_a_job_puts_in_its_place_holds_nobody_up_and_leads_nowhere(tmp_path: Path, trick: str) -> None:
    place, changed = await filled(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    directory = place.path / NAME
    if trick == "pipe":
        os.mkfifo(directory / "out")
    else:
        (directory / "in").unlink()
        directory.rmdir()
        directory.symlink_to(elsewhere) if trick == "link" else directory.write_bytes(b"x")
    found = await sent(place, changed)
    assert f"{NAME}/out" not in found
    assert list(elsewhere.iterdir()) == []


def test_a_list_has_an_end_and_no_name_makes_two_lines_of_it(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"a\n{number}").touch()
    code = "from jobwrapper import manifest; manifest.MOST_NAMES = 3; manifest.record(b'm', b'out')"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(WRAPPER.parent)}, check=True)
    assert (tmp_path / "m/out").read_text().splitlines() == ["./a?0", "./a?1", "./a?2", "... and more"]


def wants(**more: Any) -> str:
    return describe(ClassAd({"ClusterId": 1, "ProcId": 0, "Cmd": "x", **more})).manifest_dir


def test_a_job_says_whether_and_where() -> None:
    assert wants() == wants(ManifestDesired=False) == ""
    assert wants(ManifestDesired=True) == NAME
    assert wants(ManifestDir="mine") == wants(ManifestDir="mine", ManifestDesired=True) == "mine"


@pytest.mark.parametrize("name", ["../x", "/tmp", "a/b", ".", "..", ".job.ad", "px.pem"])
def test_a_name_that_is_no_plain_one_is_refused_in_words(name: str) -> None:
    with pytest.raises(Unrunnable, match="manifest_dir is"):
        wants(ManifestDir=name, x509userproxy="/tmp/px.pem")
