"""Evaluations whose cost nobody can tell, in a process of their own with a limit of processor time.

The library cannot be interrupted, so the kernel has to. A fork has both ads already, and gives back one plain value.
Whoever may put an ad before a daemon could ask for one such evaluation after another: all of them together get a
share of this process's time, and what exceeds that is an error, too.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import resource
import select
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from attrs import define
from classad2 import Value

# An honest evaluation takes far less than 1 ms. The clock is for hosts where nothing gets a processor.
CPU_S, CLOCK_S = 0.03, 0.5
# Beyond what this process has. An honest evaluation needs none.
MEMORY_BYTES = 64 << 20
MAX_ANSWER_BYTES = 1 << 16
# Of the time of the thread that asks: so much at once, and this share of it as time goes on.
AT_ONCE_S, SHARE = 0.25, 0.1


@define
class Allowance:
    """How long this process may still wait for such evaluations."""

    left_s: float = AT_ONCE_S
    seen_s: float = 0.0

    def ask(self, now_s: float) -> bool:
        """Whether one more may begin."""
        self.left_s = min(AT_ONCE_S, self.left_s + SHARE * max(0.0, now_s - self.seen_s))
        self.seen_s = now_s
        return self.left_s > 0

    def spend(self, seconds: float) -> None:
        """One has taken so long."""
        self.left_s -= seconds


shared = Allowance()


def evaluate(work: Callable[[], Any]) -> Any:
    """What ``work`` gives, called in a fork: a number, a string, a truth value or undefined.

    All else is Value.Error: what takes more than CPU_S, more than CLOCK_S by the clock, too much memory, dies, or comes
    too soon after others.
    """
    began_s = time.monotonic()
    if not shared.ask(began_s):
        return Value.Error
    try:
        answer = _in_a_fork(work, began_s + CLOCK_S)
    except OSError:  # no process, no descriptor to be had now
        answer = b""
    shared.spend(time.monotonic() - began_s)
    return _decoded(answer)


def _in_a_fork(work: Callable[[], Any], until_s: float) -> bytes:
    """What it says. It is reaped before anybody else can see it: nothing else runs in this thread meanwhile."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    try:
        try:
            pid = os.fork()
            if pid == 0:
                _far_side(work, writing)
        finally:
            os.close(writing)
        try:
            return _read(reading, until_s)
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    finally:
        os.close(reading)


def _far_side(work: Callable[[], Any], writing: int) -> None:
    """Does not return. Nothing of the daemon's is cleaned up here, and nothing of it is seen outside."""
    try:
        faulthandler.disable()
        gc.disable()  # looking through all that the daemon has would take all of the time
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
        signal.setitimer(signal.ITIMER_PROF, CPU_S)
        _limit_memory()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os.write(writing, _encoded(work()))
    finally:
        os._exit(0)


def _limit_memory() -> None:
    with open("/proc/self/statm", encoding="ascii") as file:
        pages = int(file.read().split()[0])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    most = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY_BYTES
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard == resource.RLIM_INFINITY or hard > most:
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _read(reading: int, until_s: float) -> bytes:
    """To its end; nothing, if that is not in time or too long."""
    answer = b""
    poll = select.poll()
    poll.register(reading, select.POLLIN)
    while (left_s := until_s - time.monotonic()) > 0 and poll.poll(left_s * 1000):
        more = os.read(reading, MAX_ANSWER_BYTES)
        if not more:
            return answer
        answer += more
        if len(answer) > MAX_ANSWER_BYTES:
            break
    return b""


def _encoded(value: Any) -> bytes:
    if isinstance(value, Value):
        return b"[null]" if value == Value.Undefined else b""
    if not isinstance(value, bool | int | float | str):
        return b""
    text = json.dumps([value]).encode()
    return text if len(text) <= MAX_ANSWER_BYTES else b""


def _decoded(answer: bytes) -> Any:
    with suppress(ValueError):
        match json.loads(answer):
            case [None]:
                return Value.Undefined
            case [bool() | int() | float() | str() as value]:
                return value
    return Value.Error
