"""Finds out what custom resources this machine has: by the settings, by inventory commands, by nvidia-smi. Acting code;
what an answer means is ``startd.inventory``'s.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
from collections.abc import Sequence

import trio

from pilot.knobs import SettingsError
from pilot.quoting import split_v1, split_v2
from pilot.settings import Settings
from startd.inventory import Found, Source, by_answer, by_nvidia_smi, by_value, sources
from starter.devices import templates

# GPU discovery loads the driver, which can take many seconds on a cold node.
ANSWER_WITHIN_S = 60.0
ANSWER_BYTES = 256 * 1024
_OFF = ("", "false", "0", "no")


async def discover(settings: Settings, log: logging.LoggerAdapter[logging.Logger]) -> list[Found]:
    """Every custom resource. A command that is named and does not answer ends the start: the pilot would draw jobs
    without what its settings promise.

    Raises:
        SettingsError: which knob, its value, and what came of it.
    """
    templates(settings)  # a starter is too late to find out
    said = sources(settings)
    found = [await _inventory(source) if source.is_command else by_value(source) for source in said]
    if all(each.name != "GPUs" for each in found) and settings.startd_detect_gpus.lower() not in _OFF:
        found += await _nvidia(log)
    return found


async def _inventory(source: Source) -> Found:
    try:
        command = _words(source.value)
        status, said = await _run(command)
    except (OSError, ValueError, trio.TooSlowError) as fault:
        why = str(fault) or f"it did not answer within {ANSWER_WITHIN_S:.0f} s"
        raise SettingsError(source.knob, source.value[:200], f"a command that can be run: {why}") from fault
    if status:
        raise SettingsError(source.knob, source.value[:200], f"a command that succeeds; its exit status was {status}")
    return by_answer(source, said)


def _words(text: str) -> list[str]:
    """HTCondor's two ways to write arguments. Raises ValueError."""
    words = split_v2(text[1:-1].replace('""', '"')) if len(text) > 1 and text[0] == text[-1] == '"' else split_v1(text)
    if not words:
        raise ValueError("it is empty")
    return words


async def _run(command: Sequence[str]) -> tuple[int, str]:
    """At the pilot's account, with its environment: CUDA_VISIBLE_DEVICES says there what of a shared node is ours."""
    with trio.fail_after(ANSWER_WITHIN_S):
        done = await trio.run_process(
            command, capture_stdout=True, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, check=False
        )
    return done.returncode, done.stdout[:ANSWER_BYTES].decode("utf-8", "replace")


async def _nvidia(log: logging.LoggerAdapter[logging.Logger]) -> list[Found]:
    """Where nobody has said anything of GPUs; a driver that does not work is no reason not to start."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        status, said = await _run([program, "-L"])
    except (OSError, trio.TooSlowError) as fault:
        log.warning("no GPUs are offered: %s -L: %s", program, str(fault) or "no answer")
        return []
    if status:
        log.warning("no GPUs are offered: %s -L ended with status %d", program, status)
        return []
    found = by_nvidia_smi(said, os.environ.get("CUDA_VISIBLE_DEVICES"))
    return [found] if found.amount else []
