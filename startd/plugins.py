"""File transfer plugins that this node has: asked once what they can do, advertised, and handed to the starters."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Mapping, Sequence

import trio

from cedar.classads import get_bool, get_str, parse_old
from cedar.errors import PeerFault
from pilot.settings import Settings

# As stock's FILETRANSFER_PLUGIN_CLASSAD_TIMEOUT.
ANSWER_WITHIN_S = 20.0
ANSWER_BYTES = 64 * 1024


def named(settings: Settings) -> list[str]:
    """The programs that the settings name."""
    if not settings.enable_url_transfers:
        return []
    if settings.filetransfer_plugins is None:
        return [str(settings.sailplane_wrapper_dir / "curl_plugin.py")]
    return settings.filetransfer_plugins.replace(",", " ").split()


async def ask(paths: Sequence[str], log: logging.LoggerAdapter[logging.Logger]) -> dict[str, str]:
    """The program for each scheme. One that does not answer is left out, and the log says why."""
    answers: dict[str, Mapping[str, str]] = {}
    async with trio.open_nursery() as nursery:
        for path in paths:
            nursery.start_soon(_ask, path, answers, log)
    # In the order of the knob: as in stock, the last one for a scheme counts.
    return {scheme: program for path in paths for scheme, program in answers.get(path, {}).items()}


async def _ask(path: str, answers: dict[str, Mapping[str, str]], log: logging.LoggerAdapter[logging.Logger]) -> None:
    environment = {"PATH": os.environ.get("PATH", os.defpath)}
    try:
        with trio.fail_after(ANSWER_WITHIN_S):
            done = await trio.run_process(
                [path, "-classad"], capture_stdout=True, capture_stderr=True, check=False, env=environment,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
        answers[path] = read_answer(path, done.returncode, done.stdout)
    except (OSError, trio.TooSlowError, PeerFault, ValueError) as fault:
        log.warning("file transfer plugin %s is not used: %s", path, fault or "it does not answer")


def read_answer(path: str, status: int, said: bytes) -> dict[str, str]:
    """Schemes of a plugin's own ad. Raises ValueError, PeerFault for one that cannot be used."""
    if status:
        raise ValueError(f"asked for -classad, it ended with exit status {status}")
    ad = parse_old(said[:ANSWER_BYTES].decode("utf-8", "replace"))
    if not get_bool(ad, "MultipleFileSupport", False):
        raise ValueError("it does not have HTCondor's multi-file protocol (MultipleFileSupport)")
    methods = [method.strip().lower() for method in get_str(ad, "SupportedMethods").split(",")]
    return {method: path for method in methods if method}
