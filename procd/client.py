"""The client of procd, for starters and the startd: one connection a call, and a procd that may be restarted.

Every call can be made by any task at any time. When procd is away, calls wait for it (`patience_s`); when it
has been restarted, it does not know our families: the client registers them again, with what the last one had
told, and goes on. `keep` does that at once instead of at the next call, and lets calls that follow one another have
one connection.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Literal, Self, TypeVar

import attrs
import trio

from pilot.rpc import Channel, ChannelClosed, RpcFault, RpcRefused, connect
from procd.messages import (
    PROCD,
    Describe,
    Description,
    Done,
    Families,
    FamilyState,
    GetUsage,
    Identity,
    List,
    Memory,
    Register,
    Registered,
    Resume,
    Signal,
    Stop,
    Stopped,
    Suspend,
    Unregister,
    Usage,
)
from procd.proc import ProcReader

# A restarted procd is back within a second; the rest is for a loaded machine.
PATIENCE_S = 20.0
_FIRST_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 0.5
# A procd that dies at each of so many attempts does so because of the request.
_ATTEMPTS = 4
_Reply = TypeVar("_Reply")


@attrs.define
class _Registration:
    """What is needed to register a family again."""

    request: Register
    control_fd: int | None
    memory: Memory | None = None

    def again(self) -> Register:
        return attrs.evolve(self.request, memory=self.memory)

    def remember(self, usage: Usage) -> None:
        if self.memory is not None:
            self.memory = attrs.evolve(self.memory, usage=usage)

    def close(self) -> None:
        if self.control_fd is not None:
            os.close(self.control_fd)
            self.control_fd = None


class ProcdClient:
    """Calls to procd. All of them raise RpcRefused (procd said no), and ChannelClosed when it stays away.

    Cancelling a call leaves procd at it: a stop goes on to its end.
    """

    def __init__(self, path: str | os.PathLike[str], *, patience_s: float = PATIENCE_S) -> None:
        self._path = path
        self._patience_s = patience_s
        self._registrations: dict[str, _Registration] = {}
        # of the last call, for the next one; kept while somebody sees to its end
        self._idle: Channel | None = None
        self._keeping = False

    @classmethod
    async def connect(cls, path: str | os.PathLike[str], *, patience_s: float = PATIENCE_S) -> Self:
        """A client of the procd at `path`, which is there (ChannelClosed when not within `patience_s`)."""
        client = cls(path, patience_s=patience_s)
        await (await client._connect()).aclose()
        return client

    def expect_no_other(self) -> None:
        """The startd is gone, and nobody starts another procd: from now on one that is away stays away."""
        self._patience_s = 0.0

    def close(self) -> None:
        """Give back descriptors. Families stay registered as long as their starter lives."""
        for registration in self._registrations.values():
            registration.close()
        self._registrations.clear()

    async def aclose(self) -> None:
        """As `close`."""
        self.close()
        await trio.lowlevel.checkpoint()

    async def register(
        self,
        family: str,
        *,
        root_pid: int,
        root_ticks: int,
        starter_pid: int,
        starter_ticks: int | None = None,
        credential: str | None,
        audit_id: str,
        control_fd: int | None,
        uid: int | None = None,
        memory_limit_kb: int | None = None,
        tasks_limit: int | None = None,
    ) -> None:
        """Have a tree tracked; when this returns its root may run.

        Args:
            family: a name, unique at this procd: printable ASCII without blanks, at most 200 characters.
            root_pid, root_ticks: the process whose descendants are the family, and itself.
            starter_pid, starter_ticks: the sub-reaper; when it dies the family is stopped. Ticks None: read
                here.
            credential: path of the proxy for calls of the switch; procd reads nothing from it.
            audit_id: GLEXEC_ID of such calls.
            control_fd: near end of the control socket of a lingering switch. procd gets a duplicate, and only
                ever writes to it: what the far side says there stays the caller's.
            uid: the root's account; needed only where /proc does not show other accounts' processes.
            memory_limit_kb, tasks_limit: what the kernel is to hold the family to, where it has a cgroup of its own;
                `Usage` says whether it does.

        Raises:
            RpcRefused: "already-registered", "no-such-process", "hidden".
        """
        starter = Identity(starter_pid, _ticks_of(starter_pid) if starter_ticks is None else starter_ticks)
        request = Register(
            family,
            Identity(root_pid, root_ticks),
            starter,
            credential,
            audit_id,
            uid=uid,
            memory_limit_kb=memory_limit_kb,
            tasks_limit=tasks_limit,
        )
        registration = _Registration(request, os.dup(control_fd) if control_fd is not None else None)
        try:
            registration.memory = (await self._register(registration, request)).memory
        except BaseException:  # nothing was registered, as far as we know; raised again at once
            registration.close()
            raise
        self._forget(family)
        self._registrations[family] = registration

    async def usage(self, family: str, *, exactly: bool = False) -> Usage:
        """What the family uses and has used, from a fresh snapshot. exactly: with `own_kb`."""
        usage = await self._ask(family, GetUsage(family, exactly), Usage)
        self._remember(family, usage)
        return usage

    async def signal(self, family: str, number: int, to: Literal["root", "all"]) -> None:
        """Send one signal, soft or not, by the cheapest route. Through the switch this takes an authorised
        call.

        Raises:
            RpcRefused: "no-route" when the switch failed; nobody may have got the signal then.
        """
        await self._ask(family, Signal(family, number, to), Done)

    async def suspend(self, family: str) -> None:
        """SIGSTOP all of the family. As `signal`."""
        await self._ask(family, Suspend(family), Done)

    async def resume(self, family: str) -> None:
        """SIGCONT all of the family. As `signal`."""
        await self._ask(family, Resume(family), Done)

    async def stop(
        self,
        family: str,
        *,
        urgent: bool = False,
        deadline_s: float,
        soft: int = 0,
        grace_s: float = 0.0,
        forget: bool = False,
    ) -> Stopped:
        """SIGKILL until a full scan proves that nobody is left, or `deadline_s` seconds are over.

        With `soft`, that signal to the root comes first, and at most `grace_s` seconds for it to end. With `forget` an
        empty family is unregistered as well: then the answer has its last usage.
        """
        stopped = await self._ask(family, Stop(family, urgent, deadline_s, soft, grace_s, forget), Stopped)
        if stopped.usage is not None:
            self._forget(family)
        return stopped

    async def unregister(self, family: str) -> Usage:
        """Have the family forgotten; its last usage."""
        usage = await self._ask(family, Unregister(family), Usage)
        self._forget(family)
        return usage

    async def families(self) -> tuple[FamilyState, ...]:
        """Everything that procd tracks."""
        return (await self._ask(None, List(), Families)).families

    async def be_ready(self) -> None:
        """Connect ahead of a call that somebody will wait for. A procd that is away is the matter of that call."""
        if self._keeping and self._idle is None:
            with suppress(ChannelClosed):
                self._spare(await connect(self._path, PROCD))

    async def describe(self) -> Description:
        """How procd works on this host, and what the host does not give."""
        return await self._ask(None, Describe(), Description)

    async def keep(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled: when procd goes away, wait for the next one (as long as it takes) and register
        again."""
        task_status.started()
        self._keeping = True
        try:
            while True:
                try:
                    async with await self._connect() as channel:
                        await self._register_all()
                        await channel.receive()  # procd never speaks first: this is the end of file
                except RpcFault:
                    await trio.sleep(_FIRST_PAUSE_S)
        finally:
            self._keeping = False
            if self._idle is not None:
                self._idle.close()
                self._idle = None

    # --- calls ----------------------------------------------------------------------------------------------

    async def _ask(self, family: str | None, request: Any, kind: type[_Reply]) -> _Reply:
        try:
            return await self._call(request, kind)
        except RpcRefused as refused:
            if refused.code != "unknown-family" or family not in self._registrations:
                raise
        await self._register_again(self._registrations[family])
        return await self._call(request, kind)

    async def _register_all(self) -> None:
        for registration in list(self._registrations.values()):
            try:
                await self._register_again(registration)
            except RpcRefused:
                continue  # it ended meanwhile; whoever asks next is told

    async def _register_again(self, registration: _Registration) -> None:
        await self._register(registration, registration.again())

    async def _register(self, registration: _Registration, request: Register) -> Registered:
        fds = () if registration.control_fd is None else (registration.control_fd,)
        return await self._call(request, Registered, fds)

    async def _call(self, request: Any, kind: type[_Reply], fds: Sequence[int] = ()) -> _Reply:
        """One request and its reply; once more when procd was restarted in the middle of it."""
        for attempt in range(_ATTEMPTS):
            try:
                reply = await self._exchange(request, fds)
                break
            except ChannelClosed:
                if attempt == _ATTEMPTS - 1:
                    raise
                await trio.sleep(_FIRST_PAUSE_S)
        if not isinstance(reply, kind):
            raise RpcFault("type", f"{kind.__name__} expected from procd")
        return reply

    async def _exchange(self, request: Any, fds: Sequence[int]) -> Any:
        channel, self._idle = self._idle, None
        if channel is None:
            channel = await self._connect()
        try:
            reply = await channel.call(request, fds)
        except RpcRefused:
            self._spare(channel)
            raise
        except BaseException:  # cancelled too: a reply that comes later would be taken for that of another call
            channel.close()
            raise
        self._spare(channel)
        return reply

    def _spare(self, channel: Channel) -> None:
        if self._keeping and self._idle is None:
            self._idle = channel
        else:
            channel.close()

    async def _connect(self) -> Channel:
        """Connect, waiting for a procd that is being restarted."""
        give_up_s = trio.current_time() + self._patience_s
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                return await connect(self._path, PROCD)
            except ChannelClosed:
                if trio.current_time() + pause_s > give_up_s:
                    raise
            await trio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _remember(self, family: str, usage: Usage) -> None:
        if family in self._registrations:
            self._registrations[family].remember(usage)

    def _forget(self, family: str) -> None:
        registration = self._registrations.pop(family, None)
        if registration is not None:
            registration.close()


def _ticks_of(pid: int) -> int:
    reader = ProcReader()
    try:
        ticks = reader.ticks(pid)
    finally:
        reader.close()
    if ticks is None:
        raise RpcRefused("no-such-process", f"process {pid} is not there")
    return ticks
