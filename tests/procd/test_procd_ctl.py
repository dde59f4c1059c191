"""`sailplane-procd ctl` against a real procd."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner, Result

from procd.main import main
from procd.proc import ProcReader
from tests.procd import world

TWO = "import os, signal\nos.fork()\nwhile True: signal.pause()"


async def ctl(path: Path, *arguments: str) -> Result:
    """One command, in a thread: procd runs in this one's loop."""
    return await trio.to_thread.run_sync(
        lambda: CliRunner().invoke(main, ["ctl", "--socket", str(path), *arguments], prog_name="sailplane-procd")
    )


def states(job: world.Job) -> set[str]:
    reader = ProcReader()
    try:
        return {process.state for pid in job.alive() if (process := reader.read(pid)) is not None}
    finally:
        reader.close()


async def test_families_are_shown_as_a_tree(tmp_path: Path) -> None:
    with world.job(TWO) as job:
        async with world.procd(tmp_path / "s") as client:
            await world.register(client, job)
            await world.until(lambda: len(job.alive()) == 2, "two processes")
            await client.usage("job")
            (child,) = set(job.alive()) - {job.pid}
            await client.register(
                "inner", root_pid=child, root_ticks=world.ticks(child), starter_pid=job.starter_pid,
                credential=None, audit_id="evil\x1b[31m\nid", control_fd=None,
            )  # fmt: skip
            shown = await ctl(tmp_path / "s")
            assert shown.exit_code == 0
            assert shown.output.index("│ job") < shown.output.index("└─ inner")
            families = json.loads((await ctl(tmp_path / "s", "snapshot", "--json")).output)["families"]
            assert [(each["family"], each["parent"]) for each in families] == [("job", None), ("inner", "job")]
            assert families[0]["usage"]["processes"] == 2
            dumped = json.loads((await ctl(tmp_path / "s", "--json", "dump")).output)
            assert dumped["host"]["routes"]
            assert child in [member["pid"] for member in dumped["families"][1]["members"]]
            words = (await ctl(tmp_path / "s", "dump")).output
            assert "audit id evil?[31m?id" in words
            assert f"{child}.{world.ticks(child)}" in words


async def test_no_families_are_no_table(tmp_path: Path) -> None:
    async with world.procd(tmp_path / "s"):
        assert (await ctl(tmp_path / "s", "tree")).output == "no families\n"
        assert json.loads((await ctl(tmp_path / "s", "tree", "--json")).output) == {"families": []}


async def test_a_family_is_steered(tmp_path: Path) -> None:
    with world.job(TWO) as job:
        async with world.procd(tmp_path / "s") as client:
            await world.register(client, job)
            await world.until(lambda: len(job.alive()) == 2, "two processes")
            assert "processes        2\n" in (await ctl(tmp_path / "s", "usage", "job")).output
            assert (await ctl(tmp_path / "s", "suspend", "job")).exit_code == 0
            await world.until(lambda: states(job) == {"T"}, "all are stopped")
            assert (await ctl(tmp_path / "s", "continue", "job")).exit_code == 0
            await world.until(lambda: "T" not in states(job), "all go on")
            assert (await ctl(tmp_path / "s", "signal", "job", "TERM")).exit_code == 0
            await world.until(lambda: len(job.alive()) == 1, "the root is gone")
            assert job.pid not in job.alive()
            stopped = await ctl(tmp_path / "s", "stop", "job", "--json")
            assert (stopped.exit_code, json.loads(stopped.output)["empty"]) == (0, True)
            assert job.alive() == []
            assert (await ctl(tmp_path / "s", "stop", "job")).output == "empty; route none, 0 calls of the switch\n"


async def test_a_signal_to_all_and_a_soft_stop(tmp_path: Path) -> None:
    with world.job(TWO) as job:
        async with world.procd(tmp_path / "s") as client:
            await world.register(client, job)
            await world.until(lambda: len(job.alive()) == 2, "two processes")
            assert (await ctl(tmp_path / "s", "signal", "job", str(int(signal.SIGHUP)), "--all")).exit_code == 0
            await world.until(lambda: job.alive() == [], "all are gone")
    with world.job(TWO) as job:
        async with world.procd(tmp_path / "t") as client:
            await world.register(client, job)
            assert (await ctl(tmp_path / "t", "stop", "job", "--soft", "SIGTERM", "--grace", "20")).exit_code == 0
            assert job.alive() == []


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["usage", "nobody"], 1, "no family is called nobody (unknown-family)"),
        (["stop", "nobody"], 1, "unknown-family"),
        (["usage", "a b"], 100, "is no family's name"),
        (["signal", "job", "SIGNONE"], 100, "SIGNONE is no signal"),
        (["signal", "job", "65"], 100, "65 is no signal"),
        (["signal", "job"], 100, "Missing argument"),
        (["stop", "job", "--deadline", "x"], 100, "--deadline"),
        (["away"], 100, "away"),
        (["tree", "--what"], 100, "--what"),
    ],
)
async def test_errors_say_what_is_wrong(tmp_path: Path, arguments: list[str], status: int, words: str) -> None:
    async with world.procd(tmp_path / "s"):
        done = await ctl(tmp_path / "s", *arguments)
    assert done.exit_code == status, done.output
    assert words in done.output


async def test_nobody_there_is_said_after_a_moment(tmp_path: Path) -> None:
    done = await ctl(tmp_path / "s", "tree")
    assert done.exit_code == 111
    assert f"no answer at {tmp_path / 's'}" in done.output


@pytest.mark.parametrize("command", ["tree", "dump", "usage", "signal", "snapshot", "suspend", "continue", "stop"])
def test_help_has_an_example(command: str) -> None:
    done = CliRunner().invoke(main, ["ctl", "--socket", os.devnull, command, "--help"])
    assert done.exit_code == 0
    assert "Example: sailplane-procd ctl" in done.output
