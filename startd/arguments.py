"""What a condor_master says on the command line, and what follows for the settings. Changes only the environment."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from pathlib import Path

import attrs

from pilot.configuration import UNDER_MASTER
from pilot.settings import SettingsError
from startd.master import Master

# Where stock looks when CONDOR_CONFIG is not set.
USUAL_CONFIG = Path("/etc/condor/condor_config")
# The name in DAEMON_LIST of a startd that no -local-name is given to.
USUAL_NAME = "STARTD"


@attrs.frozen(kw_only=True)
class Given:
    """The options with one dash; they mean what they mean to every daemon of HTCondor."""

    foreground: bool = False
    to_terminal: bool = False
    local_name: str | None = None
    sock: str | None = None
    append: str | None = None
    port: int | None = None
    log_dir: Path | None = None
    condor_config: Path | None = None

    def log_file(self, named: Path) -> Path | None:
        """``named``: by the settings. None is standard error."""
        if self.to_terminal:
            return None
        return named.with_name(f"{named.name}.{self.append}") if self.append else named


def under_master(
    environ: MutableMapping[str, str], given: Given, config: Path | None, master: Master | None
) -> Path | None:
    """The configuration file to read. Sets in ``environ`` what this process and its children read settings by.

    Raises:
        SettingsError: an option that cannot be.
    """
    config = config or given.condor_config
    if given.append is not None and ("/" in given.append or not given.append.isprintable()):
        raise SettingsError("-a", given.append, "a name without /")
    if given.log_dir is not None:
        environ["_CONDOR_LOG"] = str(given.log_dir.absolute())
    if given.port is not None:
        environ["_CONDOR_STARTD_PORT"] = str(given.port)
    if master is None and given.local_name is None:
        return config
    environ[UNDER_MASTER] = given.local_name or USUAL_NAME
    if config is None:
        named = _started_with("CONDOR_CONFIG")
        config = Path(named) if named.startswith("/") else USUAL_CONFIG
    return config


def _started_with(name: str) -> str:
    """A variable as this process was given it: our own packages point CONDOR_CONFIG to nothing when imported."""
    for pair in Path("/proc/self/environ").read_bytes().split(b"\0"):
        key, _, value = pair.partition(b"=")
        if key == name.encode():
            return os.fsdecode(value)
    return ""
