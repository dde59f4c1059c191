"""Copied into a site as its Python's `sitecustomize`: a starter stops itself (SIGSTOP) at the very line of its log that
tells of a rule of its life, where a test waits for that rule.

The file RULE beside this module is the wish; it becomes RULE.PID. Nothing of this is in a daemon's own code, and no
daemon waits: the process stands still as one that gets no processor.
"""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path

WISHES = Path(__file__).parent
PASSED = "job: %s -> %s (rule %d)"
_handle = logging.Logger.handle


def _handle_and_halt(self: logging.Logger, record: logging.LogRecord) -> None:
    _handle(self, record)
    if record.msg == PASSED and isinstance(record.args, tuple):
        try:
            os.rename(WISHES / str(record.args[2]), WISHES / f"{record.args[2]}.{os.getpid()}")
        except FileNotFoundError:
            return
        os.kill(os.getpid(), signal.SIGSTOP)


logging.Logger.handle = _handle_and_halt  # type: ignore[method-assign]
