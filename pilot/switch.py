"""The near side of the identity switch: what can be called, and with which environment.

For everybody at the pilot's account who needs something done at a job's account (starter, procd). It knows nothing
of what runs at the far side (pilot/farside.py does), and does not decide about holds. A call under way is
pilot/calls.py, what its end means pilot/outcomes.py.
"""

from __future__ import annotations

import os
import random
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from attrs import frozen

from pilot.calls import CONTROL_FD, SWITCH_PATH, Call, Running, spawn
from pilot.outcomes import Broken, Denied, Outcome, Unavailable, classify, classify_plain

# GLEXEC_ID ends up in somebody's log line.
AUDIT_ID_CHARACTERS = 200
# A daemon's start waits for it, and goes on without.
COMPILE_WITHIN_S = 30.0


class SwitchSettings(Protocol):
    """The knobs that this module reads (fields of pilot.settings.Settings)."""

    @property
    def sailplane_switch(self) -> str: ...
    @property
    def glexec(self) -> Path | str | None: ...
    @property
    def glexec_retries(self) -> int: ...
    @property
    def glexec_retry_delay(self) -> float: ...
    @property
    def sailplane_pilot_proxy(self) -> Path | str | None: ...
    @property
    def sailplane_wrapper_python(self) -> Path | str: ...
    @property
    def sailplane_wrapper_dir(self) -> Path | str: ...


@frozen
class Retries:
    """How often a call that failed before its far side spoke is tried again.

    GLEXEC_RETRIES further attempts; between two of them a time drawn evenly from 0 to GLEXEC_RETRY_DELAY
    seconds ("full jitter"), because the calls of many jobs fail at once when a site's service goes down.
    """

    limit: int
    delay_s: float

    def pause_s(self, failures: int, outcome: Outcome, dice: float) -> float | None:
        """Seconds until the next attempt after `failures` failed ones, or None for "give up". 0 <= dice <
        1."""
        if failures > self.limit or not isinstance(outcome, Denied | Unavailable | Broken):
            return None
        return dice * self.delay_s


def clean_audit_id(text: str) -> str:
    """GLEXEC_ID: printable ASCII, no blanks, limited."""
    return "".join(c if "!" <= c <= "~" else "_" for c in text[:AUDIT_ID_CHARACTERS])


def glexec_environment(call: Call, pilot_proxy: str | None) -> dict[str, str]:
    """The whole environment of a glexec call; nothing of the caller's own gets in."""
    credential = str(call.credential) if call.credential is not None else pilot_proxy
    environment = {
        "PATH": SWITCH_PATH,
        "GLEXEC_TARGET_PROXY": "/dev/null",  # leave no copy that nobody cleans up
        "GLEXEC_ID": clean_audit_id(call.audit_id),
    }
    if credential is not None:
        environment["GLEXEC_CLIENT_CERT"] = credential
    if pilot_proxy is not None:
        environment["X509_USER_PROXY"] = pilot_proxy
    if call.control:
        environment["GLEXEC_CONTROL_FD"] = str(CONTROL_FD)
    return environment


def draw() -> float:
    """The dice of `Retries.pause_s`."""
    return random.random()


class Switch(Protocol):
    """What all switches have in common."""

    @property
    def name(self) -> str: ...
    @property
    def isolates(self) -> bool: ...
    @property
    def needs_credential(self) -> bool: ...
    async def start(self, call: Call) -> Running: ...


# A front starts its way to root within about a millisecond. Where all cores are taken, what this process did meanwhile
# would run before that, and everything waits for it; later there is time for the same, while the call is under way.
# The process stands still for so long, all its tasks: a starter has one job, and three such calls for it, whatever
# other slots do. Only procd calls for many: eight calls at once kept it for 30 ms (9 ms without), which is less than
# one of them takes to reach its job, and kills are spread (SAILPLANE_KILL_JITTER) on top.
HEAD_START_S = 0.002


class GlexecSwitch:
    """Any glexec-compatible command."""

    name = "glexec"
    isolates = True
    needs_credential = True

    def __init__(self, command: Path | str, pilot_proxy: Path | str | None, *, log_only: bool = False) -> None:
        self.isolates = not log_only
        self._command = str(command)
        self._pilot_proxy = str(pilot_proxy) if pilot_proxy else None

    async def start(self, call: Call) -> Running:
        """Start the call; OSError when the command itself cannot be executed."""
        environment = glexec_environment(call, self._pilot_proxy)
        running = spawn((self._command, *call.argv), environment, call, control=call.control, classify=classify)
        time.sleep(HEAD_START_S)  # noqa: ASYNC251 - the whole process is to give way, not this task alone
        return running


class NoneSwitch:
    """No switch: the far side runs at the pilot's own account, and nothing is isolated."""

    name = "none"
    isolates = False
    needs_credential = False

    async def start(self, call: Call) -> Running:
        """Start the call; OSError when its program cannot be executed."""
        return spawn(call.argv, {"PATH": SWITCH_PATH}, call, control=False, classify=classify_plain)


def make_switch(settings: SwitchSettings) -> Switch:
    """The switch that the settings name; ValueError when they do not say enough."""
    if settings.sailplane_switch == "none":
        return NoneSwitch()
    if settings.sailplane_switch == "userns":
        from pilot.userns import UsernsSwitch  # which other switches need not import

        return UsernsSwitch()
    if not settings.glexec:
        raise ValueError(f"SAILPLANE_SWITCH is {settings.sailplane_switch}, but GLEXEC names no command")
    log_only = settings.sailplane_switch == "glexec-log-only"
    return GlexecSwitch(settings.glexec, settings.sailplane_pilot_proxy, log_only=log_only)


def make_retries(settings: SwitchSettings) -> Retries:
    return Retries(limit=settings.glexec_retries, delay_s=settings.glexec_retry_delay)


def wrapper_argv(settings: SwitchSettings, verb: str) -> tuple[str, ...]:
    """The command line of one wrapper verb.

    The interpreter's path is resolved, because glexec refuses a symbolic link as its command. The script is
    named instead of its directory, because running a directory imports runpy: 4 of 10 ms.
    """
    python = os.path.realpath(settings.sailplane_wrapper_python)
    return (python, "-IS", os.path.join(settings.sailplane_wrapper_dir, "__main__.py"), verb)


def compile_wrapper(settings: SwitchSettings) -> None:
    """Byte-compile the wrapper for the interpreter that will run it, readable by all; saves some ms in every
    call.

    Once at a daemon's start; blocks for about 50 ms. A directory that is not ours to write stays as it is, and so does
    one for which the machine has no time now.
    """
    with suppress(subprocess.TimeoutExpired):
        subprocess.run(
            [settings.sailplane_wrapper_python, "-IS", "-m", "compileall", "-q", settings.sailplane_wrapper_dir],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={"PATH": SWITCH_PATH},
            umask=0o022,
            timeout=COMPILE_WITHIN_S,
            check=False,
        )
