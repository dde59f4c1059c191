"""The identity switch `userns`: each job at a sub-uid of the pilot's own, without anything privileged of ours.

What it needs of a host: a range in /etc/subuid and /etc/subgid, newuidmap and newgidmap (package uidmap), and user
namespaces that an ordinary account may make. Where one is missing every call fails, and says which.

The account of a job goes with its sandbox (`pilot.leases`). Calls are started by a helper that stays for a while
(`pilot.usernsfar`), because a namespace takes its time to be made.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
from contextlib import ExitStack
from pathlib import Path

import trio
from attrs import field, frozen

from pilot.calls import SWITCH_PATH, Call, CannotCall, Running, call_descriptors, spawn, starting
from pilot.leases import Lease, LeaseFault, Leases, TableBusy, read_ranges, usual_directory
from pilot.outcomes import MISUSED, UNAVAILABLE, Misused, Outcome, Unavailable, classify_plain

# As in pilot.usernsfar, which is not for this side.
LEASE_FD, ASK_FD, REQUEST_BYTES = 4, 5, 128 * 1024
# A namespace takes 15 ms, a call 1 ms; a busy machine a hundred times as long.
_BEGIN_S, _ANSWER_S = 20.0, 10.0
# Others hold the table for a fraction of a millisecond each.
_TABLE_PATIENCE_S = 10.0
_TABLE_LOOK_S = 0.002
_PYTHON = os.path.realpath(sys.executable)
_PROGRAM = str(Path(__file__).with_name("usernsstart.py"))


@frozen
class Host:
    """What of a host decides whether namespaces can be made: files that say so, tools by name."""

    proc: Path = Path("/proc")
    tools: str = SWITCH_PATH


def obstacle(host: Host) -> str | None:
    """Why no call can succeed here, in words for an administrator; None when nothing is known against it."""
    for tool in ("newuidmap", "newgidmap"):
        if shutil.which(tool, path=host.tools) is None:
            return f"{tool} is not there: install the package uidmap (shadow-utils)"
    if _says(host.proc / "sys/user/max_user_namespaces", "0"):
        return "user namespaces are off: sysctl user.max_user_namespaces is 0"
    if _says(host.proc / "sys/kernel/unprivileged_userns_clone", "0"):
        return "user namespaces are for root only: sysctl kernel.unprivileged_userns_clone is 0"
    if _no_new_privileges(host.proc / "self/status"):
        return "this process may gain no privileges (NoNewPrivs), so newuidmap cannot do its work"
    return None


def hint(host: Host) -> str:
    """What may be to blame when a namespace was refused all the same."""
    if _says(host.proc / "sys/kernel/apparmor_restrict_unprivileged_userns", "1"):
        return " (sysctl kernel.apparmor_restrict_unprivileged_userns is 1: AppArmor must allow it to this program)"
    return ""


def _says(path: Path, value: str) -> bool:
    try:
        return path.read_text().strip() == value
    except OSError:  # not every kernel has each
        return False


def _no_new_privileges(status: Path) -> bool:
    try:
        return "\nNoNewPrivs:\t1\n" in status.read_text()
    except OSError:
        return False


def classify_userns(wait_status: int, text: str, *, authorised: bool) -> Outcome:
    """201 and 202 are the helper's own words until the far side has spoken; everything else is the command's."""
    if not authorised and os.WIFEXITED(wait_status):
        status = os.WEXITSTATUS(wait_status)
        if status == MISUSED:
            return Misused(text + hint(Host()))
        if status == UNAVAILABLE:
            return Unavailable(text)
    return classify_plain(wait_status, text, authorised=authorised)


class Helper:
    """A process that stays in a job's namespace and starts calls there: it has the lease, and makes children of ours.

    It ends by itself after a while without a further call, and when this is closed.
    """

    def __init__(self, running: Running, near: socket.socket) -> None:
        self._running = running
        self._near = near
        self._turn = trio.Lock()

    @classmethod
    async def begin(cls, lease: Lease, tools: list[str], *, idle_s: float, deadline_s: float) -> Helper:
        """Start one, which ends `idle_s` after its latest call. CannotCall when it gets no namespace."""
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        near.setblocking(False)
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        argv = (_PYTHON, "-IS", _PROGRAM, str(lease.uid), str(lease.gid), str(int(idle_s * 1000)), *tools)
        try:
            running = spawn(
                argv,
                {"PATH": SWITCH_PATH},
                Call(argv, "", None, stdin=null),
                control=False,
                classify=classify_userns,
                more={LEASE_FD: lease.fd, ASK_FD: far.fileno()},
            )
        finally:
            far.close()
            os.close(null)
        helper = cls(running, near)
        try:
            await helper._until_ready(deadline_s)
        except BaseException:
            with trio.CancelScope(shield=True):
                running.kill()
                await running.wait()
            helper.close()
            raise
        return helper

    async def _until_ready(self, deadline_s: float) -> None:
        with trio.move_on_after(deadline_s):
            if await self._heard():
                return
            outcome = await self._running.wait()
            words = self._running.errors()
            raise CannotCall(outcome if isinstance(outcome, Misused) else Unavailable(words or str(outcome)))
        raise CannotCall(Unavailable(f"no user namespace within {deadline_s:g} s"))

    async def ask(self, style: str, call: Call, fds: list[int], deadline_s: float) -> int | None:
        """The pid of a new call, a child of ours; None when this helper has ended, and nothing was begun.

        Raises:
            CannotCall: it does not answer, or has ended in mid-call.
        """
        words = b"\0".join(os.fsencode(word) for word in (style, *call.argv))
        if len(words) > REQUEST_BYTES:
            raise CannotCall(Misused(f"a command line of {len(words)} bytes, allowed are {REQUEST_BYTES}"))
        async with self._turn:
            if self._near.fileno() < 0:  # given up below
                return None
            try:
                # Cancelled after this the call would run unknown to us.
                with trio.CancelScope(shield=True), starting(), trio.move_on_after(deadline_s):
                    socket.send_fds(self._near, [words], fds)
                    if pid := await self._heard():
                        return int(pid)
            except (BrokenPipeError, ConnectionError):
                return None
            self._running.kill()
            self._near.close()
        raise CannotCall(Unavailable("the helper in the user namespace does not answer"))

    async def _heard(self) -> bytes:
        """One datagram; empty when the helper has ended."""
        while True:
            try:
                return self._near.recv(64)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._near)
            except ConnectionError:
                return b""

    @property
    def ended(self) -> bool:
        """Whether it has ended; waits for it then, and gives back its descriptors."""
        self._running.reap()
        if self._running.ended:
            self._running.close()
        return self._running.ended

    def close(self) -> None:
        """Have it end; `ended` tells when it has."""
        self._near.close()


@frozen
class UsernsSwitch:
    """User namespaces. Keeps lease and helper of each sandbox that it was called for while the sandbox is there."""

    directory: Path = field(factory=usual_directory)
    host: Host = Host()
    # A helper holds 3 MB; the next one costs 15 ms.
    idle_s: float = 30.0
    _kept: dict[Path, int] = field(factory=dict, init=False, repr=False)
    _helpers: dict[Path | int, Helper] = field(factory=dict, init=False, repr=False)
    _leaving: list[Helper] = field(factory=list, init=False, repr=False)
    # Calls of one sandbox that come at once have one helper: a second one would take it away from the first.
    _turns: dict[Path | int, trio.Lock] = field(factory=dict, init=False, repr=False)

    name = "userns"
    isolates = True
    needs_credential = False

    async def start(self, call: Call) -> Running:
        """Start the call; CannotCall with the outcome when the host does not let us, or has no sub-uid left.

        Takes a millisecond where the sandbox's last call was a moment ago, else 15.
        """
        self._forget_the_gone()
        key = call.place if call.uid is None else call.uid
        with ExitStack() as always, ExitStack() as on_failure:
            fds, errors, near = call_descriptors(call, always, on_failure)
            style = "host" if call.uid is not None else "own+control" if call.control else "own"
            pid = await (self._ask_once(style, call, fds) if key is None else self._ask(key, style, call, fds))
            if pid is None:
                raise CannotCall(Unavailable("the helper in the user namespace ended at once"))
            running = Running(pid, errors=errors, control=near, classify=classify_userns)
            on_failure.pop_all()
        return running

    async def _ask(self, key: Path | int, style: str, call: Call, fds: list[int]) -> int | None:
        """The sandbox's helper, or a new one where that has ended."""
        async with self._turns.setdefault(key, trio.Lock()):
            helper = self._helpers.get(key)
            pid = await helper.ask(style, call, fds, _ANSWER_S) if helper is not None else None
            if pid is None:
                self._leave(key)
                helper = self._helpers[key] = await self._begin(call)
                pid = await helper.ask(style, call, fds, _ANSWER_S)
            return pid

    async def _ask_once(self, style: str, call: Call, fds: list[int]) -> int | None:
        helper = await self._begin(call)
        self._leaving.append(helper)
        try:
            return await helper.ask(style, call, fds, _ANSWER_S)
        finally:
            helper.close()

    async def _begin(self, call: Call) -> Helper:
        words = obstacle(self.host)
        if words is not None:
            raise CannotCall(Misused(words))
        lease = await self._lease(call)
        try:
            tools = [shutil.which(tool, path=self.host.tools) or tool for tool in ("newuidmap", "newgidmap")]
            return await Helper.begin(lease, tools, idle_s=self.idle_s, deadline_s=_BEGIN_S)
        finally:
            os.close(lease.fd)

    def _forget_the_gone(self) -> None:
        """Leases and helpers of sandboxes that are not there any more; and wait for helpers that have ended."""
        for path in [path for path in self._kept if not os.path.lexists(path)]:
            os.close(self._kept.pop(path))
            self._leave(path)
        for key in [key for key, helper in self._helpers.items() if not self._turns[key].locked() and helper.ended]:
            self._leave(key)
        for key in [key for key, turn in self._turns.items() if key not in self._helpers and not turn.locked()]:
            del self._turns[key]
        self._leaving[:] = [helper for helper in self._leaving if not helper.ended]

    def _leave(self, key: Path | int) -> None:
        helper = self._helpers.pop(key, None)
        if helper is not None:
            helper.close()
            self._leaving.append(helper)

    async def _lease(self, call: Call) -> Lease:
        try:
            leases = Leases(self.directory, read_ranges())
            with trio.fail_after(_TABLE_PATIENCE_S):
                while True:
                    try:
                        lease = leases.take(call.place) if call.uid is None else leases.join(call.uid)
                        break
                    except TableBusy:
                        await trio.sleep(_TABLE_LOOK_S)
        except LeaseFault as fault:
            raise CannotCall(Unavailable(str(fault)) if fault.passing else Misused(str(fault))) from fault
        except trio.TooSlowError:
            words = f"the table of sub-uids in {self.directory} was busy for {_TABLE_PATIENCE_S:g} s"
            raise CannotCall(Unavailable(words)) from None
        self._keep(call.place, lease)
        return lease

    def _keep(self, place: Path | None, lease: Lease) -> None:
        """Between two calls nobody else holds the lock, and not every pilot sees our sandboxes."""
        if place is not None and place not in self._kept:
            self._kept[place] = os.dup(lease.fd)
