"""Settings that are read again while the startd runs."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

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
