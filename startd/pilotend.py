"""The end of a pilot: who asks for it, how it goes, and what its exit status is. Acting; when a pilot ends by itself is
``startd.lifetime``'s to say.
"""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import AsyncIterator, Callable

import attrs
import trio
from classad2 import ClassAd, ExprTree

from cedar.classads import evaluate
from startd import lifetime
from startd.administration import Manner
from startd.claimevents import Shutdown
from startd.claims import CODE_SHUTDOWN, Claims
from startd.master import Master
from startd.owncredentials import OwnCredentials

# A signal's orderly end is 0; glidein scripts expect 99 for one that the startd came to by itself.
EXIT_DONE, EXIT_END_OF_LIFE = 0, 99
SIGNALS = (signal.SIGTERM, signal.SIGQUIT, signal.SIGINT, signal.SIGHUP)
# Who signals every process of a pilot signals its script, too, which passes it on: one TERM that comes twice.
ONE_TERM_S = 5.0
# After the last claim has ended fast, starters need this long at most to be reaped.
FAST_END_WITHIN_S = 60.0


@attrs.define(eq=False)
class PilotEnd:
    """``until_ended`` once; ``status`` and ``reason`` hold from its return on.

    manner: how an administrator wants a graceful end. own_ad: for DAEMON_SHUTDOWN and its kin. reconfigure, changed:
    called on SIGHUP, and when the ads should be sent again.
    """

    claims: Claims
    credentials: OwnCredentials
    master: Master | None
    manner: Callable[[], Manner]
    own_ad: Callable[[], ClassAd]
    reconfigure: Callable[[], None]
    changed: Callable[[], None]
    log: logging.LoggerAdapter[logging.Logger]
    status: int = EXIT_DONE
    reason: str = ""
    _begun: trio.Event = attrs.field(factory=trio.Event)

    async def until_ended(self, signals: AsyncIterator[int]) -> None:
        """TERM: gracefully. QUIT, INT, a second TERM (not the same one again): fast. Or when the pilot's life is over
        (``startd.lifetime``).

        HUP: the settings are read again. A master says by QUIT when it means fast, and its end is ours.
        """
        async with trio.open_nursery() as ending:
            ending.start_soon(self._see_claims_end, ending.cancel_scope)
            ending.start_soon(self._watch_life)
            if self.master is not None:
                ending.start_soon(self._follow_master, self.master)
            term_s = -math.inf
            async for number in signals:
                if number == signal.SIGHUP:
                    self.reconfigure()
                    continue
                if number == signal.SIGTERM:
                    if trio.current_time() - term_s < ONE_TERM_S:
                        continue
                    term_s = trio.current_time()
                again = self.claims.draining and self.master is None
                fast = number != signal.SIGTERM or again
                self._shut_down(signal.Signals(number).name, fast=fast, status=EXIT_DONE)

    def told(self, reason: str, fast: bool, again: bool) -> None:
        """By an administrator, who may be sooner than ``until_ended``: the port answers while brokers are looked for.

        A master starts us again after an exit with 0, and holds us after one with 99.
        """
        status = EXIT_DONE if again and self.master is not None else EXIT_END_OF_LIFE
        self._shut_down(reason, fast=fast, status=status)

    async def _follow_master(self, master: Master) -> None:
        await master.wait_end()
        self._shut_down(f"the master (pid {master.pid}) has ended", fast=True, status=EXIT_DONE)

    def _shut_down(self, reason: str, *, fast: bool, status: int) -> None:
        """Begin to end, or make an end that has begun a fast one. The first reason decides about the exit status."""
        claims, manner = self.claims, self.manner()
        fast = fast or manner is Manner.FORCE
        if not claims.draining:
            claims.draining, self.status, self.reason = True, status, reason
            self._begun.set()
        elif not fast:
            return
        self.log.info("%s: shutting down %s", reason, "fast" if fast else "gracefully")
        if fast:
            claims.handle_all(Shutdown(fast=True))
        else:
            limit_s = math.inf if manner is Manner.PEACEFUL else self._longest_retirement_s()
            claims.retire_all(
                limit_s, f"the pilot shuts down ({reason})", CODE_SHUTDOWN, whole=manner is Manner.PEACEFUL
            )
        self.changed()

    def _longest_retirement_s(self) -> float:
        """After it a job still has its vacate time within SHUTDOWN_GRACEFUL_TIMEOUT."""
        settings = self.claims.settings
        return max(0.0, settings.shutdown_graceful_timeout - settings.machinemaxvacatetime)

    async def _see_claims_end(self, waiting: trio.CancelScope) -> None:
        """Once the end has begun: ends ``waiting`` when no claim is left, or nothing more can be done."""
        await self._begun.wait()
        peaceful = self.manner() is Manner.PEACEFUL
        if not await self._no_claims_within(math.inf if peaceful else self.claims.settings.shutdown_graceful_timeout):
            self.log.warning("claims did not end within SHUTDOWN_GRACEFUL_TIMEOUT; ending them fast")
            self.claims.handle_all(Shutdown(fast=True))
            await self._no_claims_within(FAST_END_WITHIN_S)
        waiting.cancel()

    async def _no_claims_within(self, limit_s: float) -> bool:
        with trio.move_on_after(limit_s):
            while self.claims.slots.held or self.claims.leaving:
                await self.claims.wait_change()
            return True
        return False

    # --- by itself -----------------------------------------------------------------------------------------------

    async def _watch_life(self) -> None:
        """Until the pilot shuts down."""
        idle_since_s = trio.current_time()
        while not self.claims.draining:
            if self.claims.slots.held:
                idle_since_s = trio.current_time()
            decision = lifetime.decide(self._limits(), self._facts(trio.current_time() - idle_since_s))
            match decision.wish:
                case lifetime.Wish.RETIRE if not self.claims.retiring:
                    self.log.info("no more jobs: %s", decision.reason)
                    self.claims.take_no_more(decision.reason)
                case lifetime.Wish.END_GRACEFULLY | lifetime.Wish.END_FAST:
                    fast = decision.wish is lifetime.Wish.END_FAST
                    if decision.for_all and self.master is not None:
                        self.master.end()
                    self._shut_down(decision.reason, fast=fast, status=EXIT_END_OF_LIFE)
            with trio.move_on_after(lifetime.LOOK_EVERY_S):
                await self._claims_come_or_go()

    async def _claims_come_or_go(self) -> None:
        """Not what becomes of their jobs, which changes many times a second."""
        claims = len(self.claims.slots.held)
        while len(self.claims.slots.held) == claims and not self.claims.draining:
            await self.claims.wait_change()

    def _limits(self) -> lifetime.Limits:
        settings = self.claims.settings
        return lifetime.Limits(
            retire_at=settings.glidein_toretire,
            die_at=settings.glidein_todie,
            noclaim_s=settings.startd_noclaim_shutdown,
            credential_margin_s=settings.sailplane_proxy_margin,
        )

    def _facts(self, idle_s: float) -> lifetime.Facts:
        ad, settings = self.own_ad(), self.claims.settings
        ad["DaemonShutdown"] = ExprTree(settings.daemon_shutdown)
        ad["DaemonShutdownFast"] = ExprTree(settings.daemon_shutdown_fast)
        return lifetime.Facts(
            now=time.time(),
            claims=len(self.claims.slots.held),
            idle_s=idle_s,
            credential_ends_at=self.credentials.ends_at(),
            shutdown=evaluate(ad, "DaemonShutdown") is True,
            shutdown_fast=evaluate(ad, "DaemonShutdownFast") is True,
        )
