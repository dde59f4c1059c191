"""The identity switch `userns`: each job at a sub-uid of the pilot's own, without anything privileged of ours.

What it needs of a host: a range in /etc/subuid and /etc/subgid, newuidmap and newgidmap (package uidmap), and user
namespaces that an ordinary account may make. Where one is missing every call fails, and says which.

The account of a job goes with its sandbox (`pilot.leases`). The call itself is made by `pilot.usernsfar`.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import trio
from attrs import field, frozen

from pilot.leases import Lease, LeaseFault, Leases, TableBusy, read_ranges, usual_directory
from pilot.switch import (
    MISUSED,
    SWITCH_PATH,
    UNAVAILABLE,
    Call,
    CannotCall,
    Misused,
    Outcome,
    Running,
    Unavailable,
    classify_plain,
    spawn,
)

# As in pilot.usernsfar, which is too dear to import for one number.
LEASE_FD = 4
# Others hold the table for a fraction of a millisecond each.
_TABLE_PATIENCE_S = 10.0
_TABLE_LOOK_S = 0.002
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


@frozen
class UsernsSwitch:
    """User namespaces. Keeps the lease of each sandbox that it was called for while both are there."""

    directory: Path = field(factory=usual_directory)
    host: Host = Host()
    _kept: dict[Path, int] = field(factory=dict, init=False, repr=False)

    name = "userns"
    isolates = True
    needs_credential = False

    async def start(self, call: Call) -> Running:
        """Start the call; CannotCall with the outcome when the host does not let us, or has no sub-uid left."""
        words = obstacle(self.host)
        if words is not None:
            raise CannotCall(Misused(words))
        lease = await self._lease(call)
        try:
            argv = self._argv(call, lease)
            return spawn(
                argv,
                {"PATH": SWITCH_PATH},
                call,
                control=call.control,
                classify=classify_userns,
                more={LEASE_FD: lease.fd},
            )
        finally:
            os.close(lease.fd)

    def _argv(self, call: Call, lease: Lease) -> tuple[str, ...]:
        style = "host" if call.uid is not None else "own+control" if call.control else "own"
        tools = [shutil.which(tool, path=self.host.tools) or tool for tool in ("newuidmap", "newgidmap")]
        python = os.path.realpath(sys.executable)
        return (python, "-IS", _PROGRAM, str(lease.uid), str(lease.gid), style, *tools, *call.argv)

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
        for path in [path for path in self._kept if not os.path.lexists(path)]:
            os.close(self._kept.pop(path))
        if place is not None and place not in self._kept:
            self._kept[place] = os.dup(lease.fd)
