"""The last step of an activation: the shadow is told how it ended."""

from __future__ import annotations

import datetime
from collections.abc import Awaitable, Callable
from contextlib import suppress

import trio
from classad2 import ClassAd

from cedar.errors import PeerFault
from starter import updates
from starter.chirp import as_ad
from starter.events import Event, JobEnded, Reported, ShadowLost
from starter.shadow import ShadowRefused
from starter.verdict import Exited, Hold, Killed, Requeue, Verdict, job_exit_reason
from starter.work import Work

# After an error event the shadow closes, or says to the startd that it waits for our end (24.7 and later); we wait this
# long so that the event is surely read.
SHADOW_CLOSES_WITHIN_S = 10.0


def now() -> str:
    """As events have it: this host's clock and zone."""
    return datetime.datetime.now().isoformat(timespec="seconds")


async def report(work: Work, verdict: Verdict, ended: JobEnded | None, story: str = "") -> Event:
    """The shadow is told how it ended. A shadow that does not hear it changes nothing any more."""
    try:
        await _tell_usage(work, verdict, ended)
        if isinstance(verdict, Hold | Requeue):
            await work.shadow.log_event(updates.error_event(verdict, work.host, now(), story))
            with trio.move_on_after(SHADOW_CLOSES_WITHIN_S):
                await _heard(work)
        else:
            update = _final(work, verdict, ended)
            if work.chirp is not None:
                updates.add_delayed(update, as_ad(work.chirp.delayed.pending()), work.shadow_version)
            wait_status = ended.wait_status if ended else 0
            if work.suspended:  # a stock shadow does not know a way from suspended to exited (wire reference 4.4)
                await work.shadow.register_job_info(updates.resumed())
            await work.shadow.job_exit(wait_status, job_exit_reason(verdict), update)
    except (PeerFault, ShadowRefused) as fault:
        return ShadowLost(str(fault))
    return Reported()


async def _heard(work: Work) -> None:
    """Until the shadow has had the last word: one that waits for us would be waited for in turn."""
    async with trio.open_nursery() as nursery:

        async def first(wait: Callable[[], Awaitable[None]]) -> None:
            await wait()
            nursery.cancel_scope.cancel()

        nursery.start_soon(first, work.shadow.wait_gone)
        nursery.start_soon(first, work.last_word_heard.wait)


async def tell_usage_ahead(work: Work, verdict: Verdict, ended: JobEnded | None) -> None:
    """The last update of a job that has ended, before what else has to be done for ``report``; what does not get
    through is that one's matter."""
    if ended is None or not isinstance(verdict, Exited) or work.stands_still:
        return
    takes = work.shadow.takes
    with suppress(PeerFault, ShadowRefused):
        await work.shadow.update_job_info(_final(work, verdict, ended))
        work.usage_told = takes


async def _tell_usage(work: Work, verdict: Verdict, ended: JobEnded | None) -> None:
    """The last update of a job that has ended: also of one that is held, whose owner wants to know what it used."""
    if work.stands_still and work.usage is not None:
        # A shadow does not understand the end of a job that it knows as suspended (wire reference 4.4).
        address = work.activation.startd_address
        await work.shadow.register_job_info(updates.running(work.usage, suspended=False, address=address))
    if ended is not None and not isinstance(verdict, Killed) and work.usage_told != work.shadow.takes:
        await work.shadow.register_job_info(_final(work, verdict, ended))


def _final(work: Work, verdict: Verdict, ended: JobEnded | None) -> ClassAd:
    update = updates.final(verdict, ended, work.usage, work.duration_s)
    update.update(dict(work.measured))
    after = work.launched.after if work.launched else None
    if ended is not None and after is not None:
        updates.put_command_after(update, after.wait_status)
    return update
