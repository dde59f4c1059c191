"""Reads knobs from HTCondor's configuration language, in a process of its own: the wheel's reader ends its process on a
malformed file, and a macro that refers to itself never ends. For `pilot.configuration` alone.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import attrs

from pilot.knobs import Knob, SettingsError
from pilot.paramreader import ALIAS, LOCAL_ALIAS

# Reading takes 50 ms. A macro that refers to itself never ends, and must not hang a daemon: it computes all the time,
# so that its CPU time tells it from a machine that is busy, or whose disk is.
READ_CPU_S = 10
# What an administrator's `include command` waits for does not compute.
READ_DEADLINE_S = 120.0
# The path becomes part of an `include :` line, where these characters mean nothing but themselves.
_SAFE_PATH = re.compile(r"/[\w./@%+:,=~-]*[\w./@%+:,=~-]")
# STARTD.NUM_CPUS goes before NUM_CPUS.
SUBSYSTEM = "STARTD"
_PROGRAM = str(Path(__file__).with_name("paramreader.py"))


@attrs.frozen
class MasterDefaults:
    """For a daemon under a condor_master: its name there, and defaults that stand before the configuration file."""

    name: str
    defaults: Mapping[str, str]


def _preamble(rows: Iterable[Knob], glidein: Path | None, config: Path | None, master: MasterDefaults | None) -> str:
    """Our defaults, then the file, then an alias of each knob; see `pilot.paramreader`."""
    # The wheel's own defaults would add files of the node and of the account.
    lines = ["LOCAL_CONFIG_FILE =", "LOCAL_CONFIG_DIR =", "USER_CONFIG_FILE ="]
    lines += [f"{row.name} = {row.default}" for row in rows]
    lines.append(f"LOCAL_DIR = {Path.cwd()}")
    if master is not None:
        lines += [f"{name} = {value}" for name, value in master.defaults.items()]
    lines += [f"include : {_safe(path)}" for path in (glidein, config) if path is not None]
    lines += [f"{ALIAS}{row.name} = $({row.name})" for row in rows]
    if master is not None:
        lines += [f"{LOCAL_ALIAS}{row.name} = $({master.name}.{row.name})" for row in rows]
    return "\n".join(lines) + "\n"


def _safe(path: Path) -> Path:
    if _SAFE_PATH.fullmatch(str(path)) is None:
        raise SettingsError("configuration file", str(path), "a path of letters, digits and ./@%+:,=~-")
    return path


@attrs.frozen
class Texts:
    """What a configuration says.

    Attributes:
        values: the text of each knob.
        present: the names of everything that is set, in upper case.
        attributes: the settings that STARTD_ATTRS names.
        family: the settings whose names begin with one of the families' prefixes, by upper-case name.
        spelled: the same names as they were written.
    """

    values: dict[str, str]
    present: list[str]
    attributes: dict[str, str]
    family: dict[str, str]
    spelled: dict[str, str]


def read(
    rows: Iterable[Knob],
    families: Iterable[str],
    glidein: Path | None,
    config: Path | None,
    environment: dict[str, str],
    master: MasterDefaults | None = None,
) -> Texts:
    """What the configuration says of these knobs and of these families of names. Raises SettingsError.

    glidein: a file that is read before `config`.
    """
    rows = tuple(rows)
    if config is not None and not os.access(config, os.R_OK):
        raise SettingsError("configuration file", str(config), "a file that this account can read")
    names = [row.name for row in rows]
    subsystem = "" if master is None else SUBSYSTEM
    asked = {"path": sys.path, "names": names, "families": list(families), "subsystem": subsystem, "cpu_s": READ_CPU_S}
    request = json.dumps(asked)
    handle = os.memfd_create("sailplane-config")
    try:
        os.write(handle, _preamble(rows, glidein, config, master).encode())
        environment["CONDOR_CONFIG"] = f"/proc/self/fd/{handle}"
        done = subprocess.run(
            [sys.executable, "-IS", _PROGRAM],
            input=request,
            env=environment,
            pass_fds=(handle,),
            capture_output=True,
            text=True,
            timeout=READ_DEADLINE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        allowed = f"one that is read within {READ_DEADLINE_S:g} s"
        raise SettingsError("configuration file", str(config), allowed) from None
    finally:
        os.close(handle)
    if done.returncode == -signal.SIGXCPU:
        raise SettingsError("configuration file", str(config), "one without macros that refer to themselves")
    return _answer(config, done)


def _answer(config: Path | None, done: subprocess.CompletedProcess[str]) -> Texts:
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        words = " ".join(done.stderr.split())[-400:]
        raise SettingsError("configuration file", str(config), f"HTCondor's configuration language ({words})") from None
    return Texts(**answer)
