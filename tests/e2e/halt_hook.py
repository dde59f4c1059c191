"""Copied into a site as its Python's `sitecustomize`: a starter stops itself (SIGSTOP) at the very line of its log that
tells of a rule of its life, where a test waits for that rule.

A spare does so before it says that it has taken an activation (OFFERED), or behind that (TAKEN).

The file RULE beside this module is the wish; it becomes RULE.PID. Nothing of this is in a daemon's own code, and no
daemon waits: the process stands still as one that gets no processor.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
from pathlib import Path
from typing import Any

WISHES = Path(__file__).parent
PASSED = "job: %s -> %s (rule %d)"
OFFERED, TAKEN = "offered", "taken"
# As in starter.spare, which is not to be imported by each Python.
_WORD = b"+"
_handle, _sendall = logging.Logger.handle, socket.socket.sendall


def _handle_and_halt(self: logging.Logger, record: logging.LogRecord) -> None:
    _handle(self, record)
    if record.msg == PASSED and isinstance(record.args, tuple):
        _halt(str(record.args[2]))


def _sendall_and_halt(self: socket.socket, data: Any, *flags: int) -> None:
    is_word = data == _WORD and Path("/proc/self/comm").read_text() == "spare\n"
    if is_word:
        _halt(OFFERED)
    _sendall(self, data, *flags)
    if is_word:
        _halt(TAKEN)


def _halt(moment: str) -> None:
    try:
        os.rename(WISHES / moment, WISHES / f"{moment}.{os.getpid()}")
    except FileNotFoundError:
        return
    os.kill(os.getpid(), signal.SIGSTOP)


logging.Logger.handle = _handle_and_halt  # type: ignore[method-assign]
socket.socket.sendall = _sendall_and_halt  # type: ignore[method-assign]
