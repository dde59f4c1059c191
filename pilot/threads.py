"""Work beside the event loop, on hosts where a process may be refused a thread.

A job that forks without end fills the limit of tasks that the batch system has given the whole pilot (pids.max): that
must not be the end of a daemon.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TypeVar

import trio

_Result = TypeVar("_Result")
# What the threading module says; it has no error of its own for it.
REFUSAL = "can't start new thread"


async def in_thread(work: Callable[[], _Result], *, abandon_on_cancel: bool = False) -> _Result:
    """As trio.to_thread.run_sync.

    Raises:
        BlockingIOError: the host gives us no thread now; nothing was done.
    """
    try:
        return await trio.to_thread.run_sync(work, abandon_on_cancel=abandon_on_cancel)
    except RuntimeError as error:
        if str(error) != REFUSAL:
            raise
        raise BlockingIOError(errno.EAGAIN, "the host gives us no more threads") from None
