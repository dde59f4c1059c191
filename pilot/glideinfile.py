"""A glidein script's files, read once at the start: what they say becomes a file of settings beside them."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

from pilot.glideinconfig import MAX_BYTES, BadGlideinConfig, configuration, derive, parse_values, parse_variables
from pilot.settings import KNOBS

# The key that names the second file.
VARIABLES_KEY = "CONDOR_VARS_FILE"
SUFFIX = ".sailplane.conf"


def write_settings(path: Path) -> Path:
    """Derive settings from a glidein_config; the new file's path, which replaces an older one as a whole.

    Raises:
        BadGlideinConfig: a file that cannot be read, written, or understood.
    """
    values = parse_values(_read(path))
    variables = parse_variables(_read(path.parent / values[VARIABLES_KEY])) if values.get(VARIABLES_KEY) else []
    plain = {row.name for row in KNOBS.values() if row.kind.name != "expression"}
    derived = derive(values, variables, plain, now=int(time.time()), dice=random.random())
    made = path.with_name(path.name + SUFFIX)
    new = made.with_name(f".{made.name}.{os.getpid()}")
    try:
        handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.writelines(f"{line}\n" for line in configuration(derived))
        new.rename(made)
    except OSError as fault:
        raise BadGlideinConfig(f"{made} cannot be written: {fault.strerror}") from fault
    return made


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as fault:
        raise BadGlideinConfig(f"{path} cannot be read: {fault.strerror}") from fault
    if len(data) > MAX_BYTES:
        raise BadGlideinConfig(f"{path} has more than {MAX_BYTES} bytes")
    return data.decode("utf-8", "replace")
