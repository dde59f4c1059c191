"""The step that stops the job's family until it is empty, proved by a full scan."""

from __future__ import annotations

import math
import time
from contextlib import suppress

import trio

from pilot import standing
from pilot.ledger import identity_of
from pilot.rpc import RpcRefused
from starter import orphans
from starter.events import Event, FamilyStopped
from starter.killsignal import soft_signal
from starter.work import PROCD_FAULTS, Work

# The end of the job's first process is known to the kernel when its family is empty; the switch needs a moment to tell.
END_KNOWN_WITHIN_S = 10.0
# A kill that failed for the switch is repeated after so long; procd has tried for KILLING_TIMEOUT.
BETWEEN_KILLS_S = 5.0
# Within what the startd allows beyond KILLING_TIMEOUT (``startd.claims.END_MARGIN_S``), with time to report.
ASKED_KILL_S = 45.0


async def stop(work: Work, *, soft: bool) -> Event:
    """The family is stopped until it is empty, proved by a full scan."""
    if not work.registered:
        return FamilyStopped(())
    try:
        return await _stop(work, soft=soft)
    except PROCD_FAULTS:
        return await _stopped_without_procd(work)


async def _stopped_without_procd(work: Work) -> FamilyStopped:
    """procd ends with the startd, and stops every family before: what of the job is left would be below us by now.

    Where somebody is left, or the job's end cannot be seen, the slot is not used until somebody has looked.
    """
    if work.launched is not None:
        with trio.move_on_after(END_KNOWN_WITHIN_S):
            await work.ended.wait()
    if work.launched is None or work.ended.is_set():
        left = orphans.strangers()
        return FamilyStopped(tuple(sorted(left)))
    return FamilyStopped((work.launched.pid,))


async def _stop(work: Work, *, soft: bool) -> Event:
    if soft and work.suspended:
        with suppress(RpcRefused):  # one that cannot be woken is killed asleep
            await work.procd.resume(work.family)
    soft = soft and not work.ended.is_set()
    stopped = await work.procd.stop(
        work.family,
        urgent=not soft,
        deadline_s=work.settings.killing_timeout,
        soft=await soft_signal(work) if soft else 0,
        grace_s=_grace_s(work),
        # Sessions are families within this one; and a stop that was asked for may be overtaken by a harder one.
        forget=work.ended.is_set() and not work.guests.families,
    )
    # Nobody waits for a job that has ended by itself; for others the startd does, and kills a starter that is late.
    give_up_s = math.inf if work.ended.is_set() else trio.current_time() + ASKED_KILL_S
    while not stopped.empty and trio.current_time() < give_up_s and await _switch_may_come_back(work):
        stopped = await work.procd.stop(work.family, urgent=True, deadline_s=work.settings.killing_timeout)
    left = await _stop_guests(work)
    if stopped.empty and work.launched is not None:
        with trio.move_on_after(END_KNOWN_WITHIN_S):
            await work.ended.wait()
    if stopped.empty:
        work.usage = work.used(stopped.usage or await work.procd.unregister(work.family))
        work.registered = False
    return FamilyStopped((*stopped.survivors, *left))


async def _switch_may_come_back(work: Work) -> bool:
    """Whether it was the switch that kept us from a kill, and there is time for another one; waits a little."""
    if work.credential is None or work.credential_path is None or work.credential.usable_until <= time.time():
        return False
    key, _ = identity_of(work.credential_path)
    if not standing.in_doubt(work.ledger.read(), key):
        return False
    await trio.sleep(BETWEEN_KILLS_S)
    return True


async def _stop_guests(work: Work) -> list[int]:
    """Sessions of the job's owner end with the job, and hard."""
    left: list[int] = []
    for family in sorted(work.guests.families):
        try:
            stopped = await work.procd.stop(family, urgent=True, deadline_s=work.settings.killing_timeout)
        except RpcRefused:  # it ended by itself meanwhile
            continue
        left += stopped.survivors
    return left


def _grace_s(work: Work) -> float:
    """As much time as job and slot agree on, and no more than half of what the proxy has left: the other half is for
    the kill, the output and the sandbox."""
    asked_s, most_s = work.description.vacate_s, work.activation.vacate_max_s
    agreed_s = most_s if asked_s < 0 else min(asked_s, most_s)
    if work.credential is None:
        return agreed_s
    return min(agreed_s, max(0.0, (work.credential.usable_until - time.time()) / 2))
