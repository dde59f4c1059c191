"""Ctrl-C, SIGTERM and SIGHUP while something is half done: held back, or past changing anything.

Their handlers raise wherever the main thread is: between a fork and the note of the child, inside
trio's loop, while useradd writes. What is made there would be lost or broken.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """One of them came; everything is taken away on the way out."""


def listen() -> None:
    """From now on the first of them raises Interrupted, and further ones change nothing.

    What the caller's parent ignores (nohup, a shell's background job) stays ignored.
    """
    came: list[int] = []

    def interrupt(number: int) -> None:
        if not came:
            came.append(number)
            raise Interrupted(number)

    _handle(interrupt)


@contextmanager
def held() -> Iterator[None]:
    """They take effect at the end of the block, which should be short. Children are not held."""
    came: list[int] = []
    with _instead(came.append):
        yield
    for number in came[:1]:
        signal.raise_signal(number)


@contextmanager
def ignored() -> Iterator[None]:
    """They change nothing within the block: for what is on its way out."""
    with _instead(lambda _number: None):
        yield


@contextmanager
def _instead(handler: Callable[[int], None]) -> Iterator[None]:
    """Another handler for the block; in other threads than the main one, which gets no signals, nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _NUMBERS}
    try:
        _handle(handler)
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _handle(handler: Callable[[int], None]) -> None:
    """Python's handlers, and never SIG_IGN, which children would inherit."""

    def handle(number: int, _frame: FrameType | None) -> None:
        handler(number)

    for number in _NUMBERS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handle)
