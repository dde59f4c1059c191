"""Which signal a soft stop begins with: `kill_sig`, or what the job wants for a removal or a hold.

The startd is told to end a job, never why; the shadow knows. It is asked only for a job that makes a difference of it,
and an answer that takes long is not waited for. (A stock shadow keeps the status that the job had when it was started.
Then it is `remove_kill_sig`, where the job has one, for every soft stop, as with a stock starter: a removal is what
such a job wants to know of.)
"""

from __future__ import annotations

from contextlib import suppress

import trio

from cedar.commands import Syscall
from cedar.errors import PeerFault
from starter.description import Description
from starter.shadow import ShadowRefused
from starter.work import Work

# The job's grace begins after it, so it is short.
ASK_S = 3.0
HELD = "5"


def signal_for(job: Description, status: str) -> int:
    """``status``: the JobStatus that the shadow tells, or anything else where it does not."""
    wanted = job.hold_kill_signal if status.strip() == HELD else job.remove_kill_signal
    return wanted or job.kill_signal


async def soft_signal(work: Work) -> int:
    """Asks the shadow where that matters."""
    job = work.description
    if signal_for(job, HELD) == signal_for(job, ""):
        return signal_for(job, "")
    told: list[str] = []
    answered = trio.Event()

    async def ask() -> None:
        with suppress(PeerFault, ShadowRefused):
            told.append((await work.shadow.remote(Syscall.GET_JOB_ATTR, "JobStatus"))[1].string())
        answered.set()

    if work.ahead is not None:  # in the job's nursery: a call to the shadow cannot be cut off, only left alone
        work.ahead.nursery.start_soon(ask)
        with trio.move_on_after(ASK_S):
            await answered.wait()
    return signal_for(job, told[0] if told else "")
