"""Settings that are read again while the startd runs."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import trio

from pilot.configuration import load
from pilot.settings import Settings, SettingsError
from startd.startd import Startd
from tests.startd.startdport import LOG


@pytest.mark.parametrize(
    "fault",
    [
        SettingsError("START", "x(", "an expression"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        FileNotFoundError(errno.ENOENT, "the working directory is gone"),
    ],
)
async def test_settings_that_cannot_be_read_change_nothing(fault: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_config: Path | None) -> Settings:
        raise fault

    monkeypatch.setattr("startd.startd.load", refuse)
    startd = Startd.__new__(Startd)
    startd.config, startd.log, startd.settings = None, LOG, load(None, {})
    before = startd.settings
    await startd._read_settings()
    assert startd.settings is before


@pytest.mark.parametrize("start", ["true;", "true ]", "(true", "true // why"])
def test_what_breaks_inside_of_another_expression_is_no_setting(start: str) -> None:
    """START stands in brackets in each slot's ad: it would have ended a startd that reads it again, with its jobs."""
    with pytest.raises(SettingsError, match="START"):
        load(None, {"_CONDOR_START": start})


async def test_who_asks_again_in_the_middle_has_the_settings_read_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reading that has begun before a change must not be the last one that counts."""
    startd = Startd.__new__(Startd)
    begun, goes_on, readings = trio.Event(), trio.Event(), [0, 0]

    async def read_settings() -> None:
        readings[0] += 1
        begun.set()
        await goes_on.wait()
        readings[1] += 1
        assert readings[0] == readings[1], "one at a time"

    monkeypatch.setattr(startd, "_read_settings", read_settings)
    with trio.fail_after(30):
        async with trio.open_nursery() as startd._nursery:
            startd._reconfigure()
            await begun.wait()
            for _ in range(10):
                startd._reconfigure()
            goes_on.set()
        assert readings == [2, 2]
        async with trio.open_nursery() as startd._nursery:
            startd._reconfigure()
        assert readings == [3, 3]
