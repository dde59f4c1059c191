"""Running a piece of a test as another account: a fork, as the spawner does it."""

from __future__ import annotations

import os
import pickle
import select
import signal
import traceback
import warnings
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from demo.accounts import Account

PATIENCE_S = 60.0


class FailedThere(AssertionError):
    """The piece failed at the other account; the text is its traceback."""


def as_account(
    account: Account, act: Callable[..., Awaitable[Any]], *arguments: Any, before: Callable[[], None] | None = None
) -> Any:
    """Run `act` under trio in a child that is `account` for good; its result, pickled. `before`: what the child does
    first, as this account."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pytest-timeout has a thread; the child does not use it
        pid = os.fork()
    if pid == 0:
        _be(account, write, act, arguments, before)
    os.close(write)
    try:
        answer = _read(read)
    finally:
        os.close(read)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    good, value = pickle.loads(answer)  # noqa: S301 - from our own fork
    if not good:
        raise FailedThere(value)
    return value


def _be(
    account: Account,
    write: int,
    act: Callable[..., Awaitable[Any]],
    arguments: tuple[Any, ...],
    before: Callable[[], None] | None,
) -> None:
    try:
        if before is not None:
            before()
        os.chdir("/")
        os.setgroups([])
        os.setresgid(account.gid, account.gid, account.gid)
        os.setresuid(account.uid, account.uid, account.uid)
        answer = (True, trio.run(act, *arguments))
    except BaseException:  # the parent shows it
        answer = (False, traceback.format_exc())
    data = pickle.dumps(answer)
    while data:
        data = data[os.write(write, data) :]
    os._exit(0)


def _read(fd: int) -> bytes:
    data = b""
    while True:
        ready, _, _ = select.select([fd], [], [], PATIENCE_S)
        assert ready, "the other account does not answer"
        piece = os.read(fd, 65536)
        if not piece:
            return data
        data += piece
