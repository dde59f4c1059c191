"""A job while it runs: its usage is told to the shadow, and it is suspended and continued. Acting; no rules here."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import attrs
import trio

from cedar.errors import PeerFault
from pilot.rpc import RpcFault, RpcRefused
from starter import keptfiles, updates
from starter.chirp import as_ad
from starter.description import UPDATE_AD_NAME
from starter.furnish import as_file
from starter.life import State
from starter.messages import JobUpdate
from starter.shadow import ShadowRefused
from starter.work import PROCD_FAULTS, Work


@attrs.define(eq=False)
class RunningJob:
    """``proxy_words``: what became of its proxy's last renewal. ``say``: to the startd."""

    work: Work
    state: Callable[[], State]
    proxy_words: Callable[[], str]
    say: Callable[[object], Awaitable[None]]
    log: logging.LoggerAdapter[logging.Logger]
    _wishes: int = 0
    _obeyed: int = 0
    _still: bool = False
    _turn: trio.Lock = attrs.field(factory=trio.Lock)

    async def tell_usage(self) -> None:
        """The first update early, then by interval (execute-side reference 4.7)."""
        settings = self.work.settings
        await trio.sleep(settings.starter_initial_update_interval)
        while True:
            if self.state() in (State.RUNNING, State.SUSPENDED):
                await self.update()
            await trio.sleep(settings.starter_update_interval)

    async def update(self) -> None:
        work = self.work
        try:
            usage = work.used(await work.procd.usage(work.family))
        except (RpcRefused, RpcFault) as fault:
            # The family is over meanwhile, or procd is away: neither is a reason to end the job.
            self.log.info("no usage now: %s", fault)
            return
        ad = updates.running(usage, suspended=work.stands_still, address=work.activation.startd_address)
        delayed = work.chirp.delayed.pending() if work.chirp else {}
        updates.add_delayed(ad, as_ad(delayed), work.shadow_version)
        updates.put_proxy(ad, work.credential, self.proxy_words())
        updates.add_disk(ad, work.disk)
        ad.update(dict(work.measured))
        try:
            await work.shadow.update_job_info(ad)
        except (PeerFault, ShadowRefused) as fault:
            self.log.info("no update now: %s", fault)  # a lost shadow is reported by the task that reads
            return
        if work.chirp:
            work.chirp.delayed.sent(delayed)
        keptfiles.overwrite(work.kept.get(UPDATE_AD_NAME), as_file(ad))
        await self.say(JobUpdate(str(ad)))

    def wish(self, *, still: bool) -> None:
        """That it stands still, or goes on, from now on: the last wish counts. ``obey`` carries it out."""
        self._wishes, self._still = self._wishes + 1, still

    async def obey(self) -> None:
        """One after the other: what is wished while procd is asked would else overtake it."""
        async with self._turn:
            if self._obeyed == self._wishes:
                return
            self._obeyed = self._wishes
            await (self._suspend() if self._still else self._resume())

    async def _suspend(self) -> None:
        self.work.suspended = True
        if await self._to_families(self.work.procd.suspend, "suspended"):
            self.work.stands_still = True
            await self.update()

    async def _resume(self) -> None:
        if await self._to_families(self.work.procd.resume, "continued"):
            self.work.suspended = self.work.stands_still = False
            await self.update()

    async def _to_families(self, act: Callable[[str], Awaitable[None]], what: str) -> bool:
        """The job's, and its owner's sessions. That it cannot be done is no reason to end the job: the shadow is not
        told what is not so."""
        for family in (self.work.family, *self.work.guests.families):
            try:
                await act(family)
            except PROCD_FAULTS as fault:
                self.log.warning("the job could not be %s: %s", what, fault)
                return False
        return True
