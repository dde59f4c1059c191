"""The spawner: a preloaded process that forks one starter per activation.

Imports are paid once, here. It runs no event loop and no threads, so that forking is safe; it is a sub-reaper, so that
the tree of a starter that died falls to it (procd, which knew the members, kills it). It ends when the startd is gone
and its last starter has ended.

One starter is forked ahead of its activation, when the spawner has been quiet for a moment: the spare has warmed up
when its activation comes, and is used for that one only. It may die or stand still at any time: then a starter is
forked as before. So that exactly one of both runs the job, the activation is the spare's only once it has said so.
"""

from __future__ import annotations

import gc
import logging
import os
import select
import signal
import socket
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import attrs

from pilot import logs
from pilot.rpc import ChannelClosed, receive_blocking, send_blocking
from starter import layout
from starter.messages import (
    SPAWNER,
    Activation,
    CleanUp,
    SpawnerReady,
    StarterEnded,
    StarterFailed,
    StarterStarted,
    StartStarter,
)
from starter.orphans import become_subreaper, die_with_parent
from starter.private import ticks_of
from starter.spare import Offer, Spare, call_itself, take

# What a starter's process is given: its activation, the connection to the shadow, its channel to the startd.
RunStarter = Callable[[Activation, socket.socket, socket.socket], int]
RunCleanUp = Callable[[Path], int]
# Another spare is forked so long after a request: by then the activation waits for its first call of the switch, which
# takes as long again, and both halves of the site's decision have begun, which need a core each for a moment.
SPARE_AFTER_S = 0.04
# Our own bug, by the exit codes of the design.
EXIT_BUG = 101


@attrs.define
class Spawner:
    """One spawner over the socket to its startd."""

    startd: socket.socket
    run_starter: RunStarter
    run_clean_up: RunCleanUp
    warm_up: Callable[[], None]
    rehearse: Callable[[], None]
    log: logging.LoggerAdapter[logging.Logger]
    starters: set[int] = attrs.field(factory=set)
    spare: Spare | None = None
    offers: list[Offer] = attrs.field(factory=list)
    # no more than one for each activation, however often they die
    spare_due: bool = True
    startd_gone: bool = False

    def serve(self) -> None:
        """Until the startd and all starters are gone."""
        become_subreaper()
        self.warm_up()
        self.log.info("the spawner is ready")
        self._answer(SpawnerReady())
        self._settle()
        wakeup = _wakeup_on_child()
        while not self.startd_gone or self.starters or self.offers:
            self._wait(wakeup)
            self._reap()
        self._dismiss_spare()

    def _settle(self) -> None:
        """Last thing before the first fork; an activation that is there already waits for it, some 40 ms."""
        try:
            layout.settle(self.rehearse)
        except Exception:
            self.log.warning("each starter will need more memory: no rehearsal: %s", traceback.format_exc())
        gc.collect()
        gc.freeze()

    def serve_one(self) -> int:
        """One activation in this very process, without a fork: for debugging. The starter's exit status."""
        self.warm_up()
        self._answer(SpawnerReady())
        request, fds = receive_blocking(self.startd, SPAWNER)
        match request, fds:
            case StartStarter(ticket=ticket, activation=activation), [shadow, startd]:
                self._answer(StarterStarted(ticket, os.getpid(), ticks_of(os.getpid()) or 0))
                status = self._be_starter(activation, shadow, startd)
            case _:
                raise RuntimeError(f"{type(request).__name__} is not for one starter")
        self._answer(StarterEnded(os.getpid(), status << 8))
        return status

    def _wait(self, wakeup: int) -> None:
        sources = [wakeup, *(offer.spare.channel.fileno() for offer in self.offers)]
        if not self.startd_gone:
            sources.append(self.startd.fileno())
        ready, _, _ = select.select(sources, [], [], self._pause_s())
        if not ready and self._spare_wanted():
            self._fork_spare()
        if wakeup in ready:
            os.read(wakeup, 4096)
        self._settle_offers(ready)
        if self.startd.fileno() in ready:
            self._serve_one()

    def _pause_s(self) -> float | None:
        """How long to wait for something to happen."""
        pauses = [max(0.0, offer.until_s - time.monotonic()) for offer in self.offers]
        return min([*pauses, SPARE_AFTER_S] if self._spare_wanted() else pauses, default=None)

    def _spare_wanted(self) -> bool:
        return self.spare_due and not self.startd_gone

    def _serve_one(self) -> None:
        try:
            request, fds = receive_blocking(self.startd, SPAWNER)
        except ChannelClosed:
            self.startd_gone = True
            return
        if isinstance(request, StartStarter):
            self.spare_due = True
            if self._offer(request, fds):
                return
        self._fork_and_close(request, fds)

    def _fork_and_close(self, request: object, fds: list[int]) -> None:
        try:
            self._fork(request, fds)
        finally:
            for fd in fds:
                os.close(fd)

    def _fork(self, request: object, fds: list[int]) -> None:
        match request, fds:
            case StartStarter(ticket=ticket, activation=activation), [shadow, startd]:
                self._fork_for(ticket, lambda: self._be_starter(activation, shadow, startd), fds)
            case CleanUp(ticket=ticket, private_dir=private_dir), []:
                self._fork_for(ticket, lambda: self.run_clean_up(Path(private_dir)), fds)
            case _:
                raise RuntimeError(f"{type(request).__name__} with {len(fds)} descriptors is not for a spawner")

    def _be_starter(self, activation: Activation, shadow: int, startd: int) -> int:
        return self.run_starter(activation, socket.socket(fileno=shadow), socket.socket(fileno=startd))

    def _fork_for(self, ticket: int, work: Callable[[], int], fds: list[int]) -> None:
        """The answer comes from the parent; the child ends with the work's status and never returns."""
        try:
            pid = os.fork()
        except OSError as fault:
            self._answer(StarterFailed(ticket, f"fork: {fault.strerror}"))
            return
        if pid == 0:
            self._be_child(work, fds)
        self._started(ticket, pid)

    def _started(self, ticket: int, pid: int) -> None:
        self.starters.add(pid)
        ticks = 0
        with suppress(OSError):  # a job can take all descriptors that a host has
            ticks = ticks_of(pid) or 0
        self._answer(StarterStarted(ticket, pid, ticks))

    def _offer(self, request: StartStarter, fds: list[int]) -> bool:
        """Give the activation to the spare, if there is one that lives; the descriptors are the offer's then."""
        spare, self.spare = self.spare, None
        if spare is None:
            return False
        if not spare.give(request, fds):
            spare.dismiss()
            return False
        self.offers.append(Offer(spare, request, fds))
        return True

    def _settle_offers(self, ready: list[int]) -> None:
        for offer in list(self.offers):
            is_due = offer.spare.channel.fileno() in ready or offer.until_s <= time.monotonic()
            if is_due and not self._settle_offer(offer):
                offer.spare.dismiss()

    def _settle_offer(self, offer: Offer) -> bool:
        """Whether the spare has taken the activation by now; if not, a starter is forked for it."""
        self.offers.remove(offer)
        if offer.spare.has_taken():
            self._started(offer.request.ticket, offer.spare.pid)
            for fd in offer.fds:
                os.close(fd)
            return True
        self.log.warning("the spare starter %d did not take its job; forking another", offer.spare.pid)
        self._fork_and_close(offer.request, offer.fds)
        return False

    def _fork_spare(self) -> None:
        self.spare_due = False
        if self.spare is not None:
            return
        try:
            near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError as fault:
            self.log.info("no spare starter now: a channel: %s", fault.strerror)
            return
        with far:
            try:
                pid = os.fork()
            except OSError as fault:
                self.log.info("no spare starter now: fork: %s", fault.strerror)
                near.close()
                return
            if pid == 0:
                self._be_child(lambda: self._be_spare(far), [far.fileno()])
        self.spare = Spare(pid, near)

    def _be_spare(self, channel: socket.socket) -> int:
        """Warm up, and wait for the one activation; 0 if the spawner is gone, or has none."""
        die_with_parent(True)  # one that stands still, from here on, would not see its channel's end
        call_itself("spare")
        self._rehearse()
        try:
            request, fds = take(channel)
        except ChannelClosed:
            return 0
        call_itself("starter")
        match request, fds:
            case StartStarter(activation=activation), [shadow, startd]:
                return self._be_starter(activation, shadow, startd)
        raise RuntimeError(f"{type(request).__name__} with {len(fds)} descriptors is not for a spare starter")

    def _rehearse(self) -> None:
        """That it fails, or takes too long on a machine that stood still, is no fault of an activation that may have
        come meanwhile."""
        try:
            self.rehearse()
        except Exception:
            self.log.warning("a spare starter had no rehearsal: %s", traceback.format_exc())

    def _dismiss_spare(self) -> None:
        spare, self.spare = self.spare, None
        if spare is not None:
            spare.dismiss()

    def _be_child(self, work: Callable[[], int], fds: list[int]) -> None:
        status = EXIT_BUG
        try:
            _forget_parent(keep={0, 1, 2, *fds, *logs.descriptors()})
            status = work()
        except BaseException:  # whatever it was: the process ends here, and must not go on as a second spawner
            self.log.error("starter failed: %s", traceback.format_exc())
        finally:
            logging.shutdown()
            os._exit(status)

    def _reap(self) -> None:
        """Wait for every child that has ended: starters, spares, and orphans of starters that died."""
        while True:
            try:
                pid, wait_status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for offer in [offer for offer in self.offers if offer.spare.pid == pid]:
                self._settle_offer(offer)  # it may have taken it before it died
            if pid in self.starters:
                self.starters.discard(pid)
                self._answer(StarterEnded(pid, wait_status))
            elif self.spare is not None and pid == self.spare.pid:
                self.log.warning("the spare starter %d ended before it had a job, wait status %d", pid, wait_status)
                self.spare.forget()
                self.spare = None

    def _answer(self, message: object) -> None:
        if self.startd_gone:
            return
        try:
            send_blocking(self.startd, SPAWNER, message)
        except (ChannelClosed, OSError):
            self.startd_gone = True


def _wakeup_on_child() -> int:
    """A descriptor that becomes readable when a child has ended."""
    readable, writable = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
    return readable


def _forget_parent(keep: set[int]) -> None:
    """The child's own state: no wakeup, default signals, no descriptor of the spawner's."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in keep:
            try:
                os.close(int(name))
            except OSError:
                continue  # the listing's own descriptor


def ignore_terminal() -> None:
    """The startd decides what becomes of its starters: not Ctrl-C at a terminal, which goes to the whole process group,
    not a batch system that sends SIGTERM to all of a pilot, and not SIGHUP, which the kernel sends to the group when
    the startd dies while one of us is stopped (setpgid(2))."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
