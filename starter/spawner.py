"""The spawner: a preloaded process that forks one starter per activation.

Imports are paid once, here. It runs no event loop and no threads, so that forking is safe; it is a sub-reaper, so that
the tree of a starter that died falls to it (procd, which knew the members, kills it). It ends when the startd is gone
and its last starter has ended.

One starter is forked ahead of its activation, when the spawner has been quiet for a moment: the spare has warmed up
when its activation comes, and is used for that one only. It may die at any time: then a starter is forked as before.
"""

from __future__ import annotations

import gc
import logging
import os
import select
import signal
import socket
import traceback
from collections.abc import Callable
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
from starter.orphans import become_subreaper
from starter.private import ticks_of
from starter.spare import Spare, call_itself

# What a starter's process is given: its activation, the connection to the shadow, its channel to the startd.
RunStarter = Callable[[Activation, socket.socket, socket.socket], int]
RunCleanUp = Callable[[Path], int]
# Another spare is forked so long after a request: by then the activation waits for its first call of the switch, which
# takes as long again.
SPARE_AFTER_S = 0.03
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
        while not (self.startd_gone and not self.starters):
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
        sources = [wakeup] if self.startd_gone else [wakeup, self.startd.fileno()]
        quiet_s = SPARE_AFTER_S if self.spare_due and not self.startd_gone else None
        ready, _, _ = select.select(sources, [], [], quiet_s)
        if not ready:
            self._fork_spare()
        if wakeup in ready:
            os.read(wakeup, 4096)
        if self.startd.fileno() in ready:
            self._serve_one()

    def _serve_one(self) -> None:
        try:
            request, fds = receive_blocking(self.startd, SPAWNER)
        except ChannelClosed:
            self.startd_gone = True
            return
        try:
            self._fork(request, fds)
        finally:
            for fd in fds:
                os.close(fd)

    def _fork(self, request: object, fds: list[int]) -> None:
        match request, fds:
            case StartStarter(ticket=ticket, activation=activation), [shadow, startd]:
                self.spare_due = True
                if not self._use_spare(request, fds):
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
        self._answer(StarterStarted(ticket, pid, ticks_of(pid) or 0))

    def _use_spare(self, request: StartStarter, fds: list[int]) -> bool:
        """Give the activation to the spare, if there is one that lives."""
        spare, self.spare = self.spare, None
        if spare is None:
            return False
        if not spare.give(request, fds):
            spare.dismiss()
            return False
        self._started(request.ticket, spare.pid)
        return True

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
        call_itself("spare")
        self._rehearse()
        try:
            request, fds = receive_blocking(channel, SPAWNER)
        except ChannelClosed:
            return 0
        channel.close()
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
        """Wait for every child that has ended: starters, and orphans of starters that died."""
        while True:
            try:
                pid, wait_status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
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
