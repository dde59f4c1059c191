"""Calls of the switch that are opened before they are needed, while something else has to be waited for anyway.

Most of a short job's time is the switch: its front, sudo, the site's decision, an interpreter. The launch's call is
opened before a short input is asked for, that of stage-out while the family is being proved empty. Until it is taken
the far side has said its hello and waits: it has done nothing, and knows nothing of the job. The first call of a job is
never opened ahead: nothing moves before its authorisation stands.

A call that is not taken in time was one too many for the site, so it is opened only where the wait is surely short.
Whether a submit side lets input wait in its queue nobody knows before: once a call has got too old for that, the node's
next ones are opened when their input has begun to arrive, for a while.
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from pathlib import Path

import attrs
import trio

from pilot.farside import Asking, CallFailed, FarSide, open_call
from starter.events import Step

LAUNCH, STAGE_OUT = "launch", "stage-out"
# While these steps run a call for the verb may still be wanted.
WANTED_IN = {
    LAUNCH: frozenset({Step.STAGE_IN, Step.LAUNCH}),
    STAGE_OUT: frozenset({Step.STOP_HARD, Step.STAGE_OUT, Step.CLEAN}),
}
# An input of at most so many MiB is surely here before the call for the launch is too old.
SHORT_INPUT_MB = 1
# What an authorisation was worth some seconds ago it is worth now; an older one is asked for again.
MAX_AGE_S = 15.0
# In the run directory: its time is when a launch's call last got too old. For so long input is likely to wait again.
WAITED, WAITS_FOR_S = "input-waited", 600.0


def is_short(input_mb: object) -> bool:
    """Whether an input is over soon once it has begun. ``input_mb``: the ad's TransferInputSizeMB, if any."""
    return isinstance(input_mb, int) and 0 <= input_mb <= SHORT_INPUT_MB


@attrs.define(eq=False)
class _Opened:
    verb: str
    far: FarSide | None = None
    answered: trio.Event = attrs.field(factory=trio.Event)
    settled: trio.Event = attrs.field(factory=trio.Event)


@attrs.define(eq=False)
class Ahead:
    """At most one call at a time, opened in ``nursery``; the end of the nursery ends a call that nobody took.
    ``run_dir``: the pilot's, where its starters tell one another that input has waited."""

    nursery: trio.Nursery
    log: logging.LoggerAdapter[logging.Logger]
    run_dir: Path
    _opened: _Opened | None = None

    def open(self, asking: Asking, verb: str, *, deadline_s: float, control: bool = False) -> None:
        """Begin to open a call for `verb`; one that is open already is dropped if it is for another verb."""
        if self._opened is not None:
            if self._opened.verb == verb:
                return
            self.drop()
        self._opened = opened = _Opened(verb)
        self.nursery.start_soon(self._keep, opened, asking, deadline_s, control)

    def input_comes_at_once(self) -> bool:
        """As far as this node knows: no input has waited lately."""
        try:
            return abs(time.time() - (self.run_dir / WAITED).stat().st_mtime) > WAITS_FOR_S
        except OSError:
            return True

    async def take(self, verb: str) -> FarSide | None:
        """The call for `verb`, which is the caller's from now on; None if there is none that can be used.

        Cancelling leaves it to `drop`.
        """
        opened = self._opened
        if opened is None or opened.verb != verb:
            return None
        await opened.answered.wait()
        far, opened.far = opened.far, None
        if self._opened is opened:
            self._opened = None
        opened.settled.set()
        if far is not None and far.pending():  # it has hung up meanwhile, or speaks out of turn
            await far.end()
            return None
        return far

    def drop(self) -> None:
        """What is open is not wanted any more."""
        if self._opened is not None:
            self._opened.settled.set()
            self._opened = None

    def see_out(self, far: FarSide) -> None:
        """A call that is done with: nobody waits for its end but the job's own."""
        self.nursery.start_soon(far.end)

    def step_begins(self, step: Step) -> None:
        """Drop what this step leaves no use for."""
        if self._opened is not None and step not in WANTED_IN[self._opened.verb]:
            self.drop()

    async def _keep(self, opened: _Opened, asking: Asking, deadline_s: float, control: bool) -> None:
        try:
            with trio.CancelScope() as opening:
                self.nursery.start_soon(_cancel_when, opened.settled, opening)
                opened.far = await open_call(asking, opened.verb, deadline_s=deadline_s, control=control)
        except CallFailed as failure:
            self.log.info("the call for %s could not be opened ahead: %s", opened.verb, failure)
        try:
            opened.answered.set()
            with trio.move_on_after(MAX_AGE_S) as waiting:
                await opened.settled.wait()
            if waiting.cancelled_caught and opened.far is not None:
                self._note_too_old(opened.verb)
        finally:
            opened.settled.set()
            if self._opened is opened:
                self._opened = None
            far, opened.far = opened.far, None
            if far is not None:
                await far.end()

    def _note_too_old(self, verb: str) -> None:
        self.log.info("the call for %s was opened %.0f s too early", verb, MAX_AGE_S)
        if verb == LAUNCH:
            with suppress(OSError):  # a full disk costs the site a call more
                (self.run_dir / WAITED).touch(mode=0o600)


async def _cancel_when(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


async def taken(ahead: Ahead | None, verb: str) -> FarSide | None:
    """The call for `verb` of a job that may have nobody to keep one."""
    return None if ahead is None else await ahead.take(verb)
