"""The near side of a conversation with jobwrapper: frames, the kernel-told hello, one call with its retries.

A call is: start the switch with one end of a socket pair as the far side's standard input, and wait for its
hello. Who is speaking is what the kernel attaches to the hello (SCM_CREDENTIALS), not what it says. Until the
hello nothing has happened at the far side, so until then, and only until then, a failed call is tried again
here.

Everything read here comes from the job's account: lengths and shapes are checked, nothing is trusted.
Frame: u32 length (big endian), then that many bytes of ASCII JSON. File names are UTF-8 with surrogateescape.
"""

from __future__ import annotations

import json
import os
import re
import socket
import struct
from functools import partial
from pathlib import Path
from typing import Any

import trio
from attrs import evolve, frozen

from pilot.calls import Call, CannotCall, Running
from pilot.inquiry import Patience, Whose, ask_pilot, end_in_count, inquire
from pilot.ledger import identity_of
from pilot.outcomes import Broken, Denied, Exited, Misused, Outcome, Signalled, Unavailable
from pilot.standing import Rules
from pilot.switch import Switch, SwitchSettings, draw, make_retries, wrapper_argv

# Frames from the far side are short: long lists come in many of them. A hostile frame of this size parses
# into a few MB at most.
FRAME_BYTES = 256 * 1024
HELLO_BYTES = 1024
PROTOCOL = 1
# How long a call that has failed or is done may take to end before it is killed.
END_GRACE_S = 5.0
# The kernel doubles it, and allows everybody 208 KiB: a piece of a file fits in whole, so that each side wakes half as
# often as with the default.
SEND_BUFFER_BYTES = 256 * 1024
_INT = struct.Struct("=i")
_UCRED = struct.Struct("3i")
_ACCOUNT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@$-]{0,63}\Z")


class CallFailed(Exception):
    """A call came to nothing.

    `code` is a stable word: "denied", "unavailable", "misused", "broken" (from `outcome`, nothing has
    happened at the far side); "timeout", "closed", "framing" (it stopped in mid-conversation); others are the
    raiser's. `errno` is that of the far side's system call that failed, or 0.
    """

    def __init__(self, code: str, text: str, outcome: Outcome | None = None, *, errno: int = 0) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code
        self.text = text
        self.outcome = outcome
        self.errno = errno


@frozen
class Hello:
    """Who is at the far side. pid, uid and gid are the kernel's; `name` is what it calls itself, for
    people; so is its start tick, for hosts that hide it from us (0: it does not say)."""

    pid: int
    uid: int
    gid: int
    name: str
    ticks: int = 0


@frozen
class Asking:
    """What every call of one job has in common. `place` and `uid` as in pilot.calls.Call; `patience` for calls that
    the standing of the node's users stands behind."""

    switch: Switch
    settings: SwitchSettings
    audit_id: str
    credential: Path | None
    place: Path | None = None
    uid: int | None = None
    patience: Patience | None = None


class FarSide:
    """One end of the conversation. Not for two tasks at once in the same direction."""

    def __init__(self, running: Running, stream: trio.SocketStream, raw: socket.socket, hello: Hello) -> None:
        self.running = running
        self.stream = stream
        self.hello = hello
        self._socket = raw

    async def send(self, value: Any) -> None:
        """Send one frame; CallFailed("closed") when the far side is gone."""
        body = json.dumps(value).encode("ascii")
        await self.send_bytes(len(body).to_bytes(4, "big") + body)

    async def send_bytes(self, data: bytes | bytearray | memoryview) -> None:
        try:
            await self.stream.send_all(data)
        except trio.BrokenResourceError as error:
            raise self.gone() from error

    async def send_descriptor(self, fd: int) -> None:
        """Pass a copy of one descriptor, with one byte."""
        while True:
            try:
                socket.send_fds(self._socket, [b"\0"], [fd])
                return
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._socket)
            except OSError as error:
                raise self.gone() from error

    async def receive(self, limit: int = FRAME_BYTES) -> dict[str, Any]:
        """One frame, which must be a JSON object of at most `limit` bytes."""
        length = int.from_bytes(await self.receive_exactly(4), "big")
        if length > limit:
            raise CallFailed("framing", f"a frame of {length} bytes, allowed are {limit}")
        return parse_object(await self.receive_exactly(length))

    async def receive_exactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            data += await self.receive_some(count - len(data)) or self._raise_gone()
        return bytes(data)

    async def receive_some(self, limit: int) -> bytes:
        """Up to `limit` bytes; empty at end of file."""
        try:
            return bytes(await self.stream.receive_some(limit))
        except trio.BrokenResourceError:
            return b""

    async def receive_into(self, view: memoryview) -> int:
        """At least one byte into `view`; 0 at end of file. For content: it saves a copy."""
        try:
            return await self.stream.socket.recv_into(view)
        except OSError:
            return 0

    def take_descriptor(self) -> tuple[int, int] | None:
        """A descriptor that the far side has passed, with the byte that came with it; None when none waits.

        It is the caller's, and closes on exec. Nothing that is sent otherwise may wait before it.
        """
        try:
            data, ancillary, _flags, _address = self._socket.recvmsg(
                1, socket.CMSG_SPACE(_INT.size), socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
            )
        except OSError:
            return None
        fds = [
            _INT.unpack_from(value, at)[0]
            for level, kind, value in ancillary
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
            for at in range(0, len(value) - len(value) % _INT.size, _INT.size)
        ]
        if len(data) == 1 and len(fds) == 1:
            return data[0], fds[0]
        for fd in fds:
            os.close(fd)
        return None

    def pending(self) -> bool:
        """Whether the far side has said something (or hung up) that nobody has read yet."""
        try:
            self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    def gone(self) -> CallFailed:
        return CallFailed("closed", "the far side went away" + _words(self.running))

    async def end(self, grace_s: float | None = None) -> Outcome | None:
        """Hang up, see the call out and give everything back; at most 2 * `grace_s` (END_GRACE_S)
        seconds, also when cancelled."""
        self.hang_up()
        outcome = await self.running.end(END_GRACE_S if grace_s is None else grace_s)
        self.running.close()
        return outcome

    def hang_up(self) -> None:
        """End of file for the far side. No checkpoint: this is for clean-up, where one could be cancelled."""
        self.stream.socket.close()

    def _raise_gone(self) -> bytes:
        raise self.gone()


async def open_call(asking: Asking, verb: str, *, deadline_s: float, control: bool = False) -> FarSide:
    """Start a wrapper verb at the job's account and hear its hello.

    An attempt takes at most `deadline_s` seconds. Without patience it is tried again as `pilot.switch.Retries` says;
    with patience until it is known what is wrong: CallFailed with code "denied" then means that the user is refused.
    Raises CallFailed with the last outcome. Cancelling ends the attempt under way (END_GRACE_S at most).
    """
    if asking.patience is None or asking.credential is None:
        return await _open_plainly(asking, verb, deadline_s, control)
    key, identity = identity_of(asking.credential)
    rules = Rules(asking.settings.glexec_retries, asking.settings.glexec_retry_delay)
    result = await inquire(
        partial(_counted_attempt, asking, verb, deadline_s, control),
        partial(ask_pilot, asking.switch, deadline_s),
        Whose(key, identity),
        rules,
        asking.patience,
    )
    if isinstance(result, FarSide):
        return result
    raise failure_of(result)


async def _open_plainly(asking: Asking, verb: str, deadline_s: float, control: bool) -> FarSide:
    retries = make_retries(asking.settings)
    failures = 0
    while True:
        attempt = await _counted_attempt(asking, verb, deadline_s, control)
        if isinstance(attempt, FarSide):
            return attempt
        failures += 1
        pause_s = retries.pause_s(failures, attempt, draw())
        if pause_s is None:
            raise failure_of(attempt)
        await trio.sleep(pause_s)


def failure_of(outcome: Outcome) -> CallFailed:
    """The exception for a call that never got as far as its hello."""
    match outcome:
        case Denied(text):
            return CallFailed("denied", text or "the switch refused", outcome)
        case Unavailable(text):
            return CallFailed("unavailable", text or "the switch is out of order", outcome)
        case Misused(text):
            return CallFailed("misused", text or "the switch objects to how it was called", outcome)
        case Broken(text):
            return CallFailed("broken", text, outcome)
        case Exited() | Signalled():
            return CallFailed("broken", "the switch ended before the far side spoke", outcome)


def without_hello(outcome: Outcome | None, printed: str) -> Outcome:
    """What the end of a call means whose far side never spoke: an exit status has no meaning then."""
    words = f": {printed}" if printed else ""
    match outcome:
        case None:
            return Unavailable("the switch neither answers nor ends" + words)
        case Exited(status):
            return Broken(f"exit status {status} before the wrapper spoke" + words)
        case Signalled(number):
            return Broken(f"killed by signal {number} before the wrapper spoke" + words)
        case _:
            return outcome


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object in a frame; CallFailed("framing") for anything else."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise CallFailed("framing", "a frame that is not JSON") from None
    if not isinstance(value, dict):
        raise CallFailed("framing", "a frame that is not an object")
    return value


def text_of(value: Any, limit: int = 300) -> str:
    """A word or sentence of the far side, fit for a log line."""
    return "".join(c if c.isprintable() else "?" for c in str(value)[:limit])


def start_ticks(pid: int, told: int = 0) -> int:
    """The start tick of a process: with its pid, its name. CallFailed("closed") when it is gone.

    told: its own word, taken where /proc hides it from us although it is there.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        if told and _is_there(pid):
            return told
        raise CallFailed("closed", f"process {pid} is gone") from None
    return int(stat.rpartition(b")")[2].split()[19])


def named(hello: Hello, switch: Switch) -> Hello:
    """A sub-uid has no entry in the system's list of accounts: then it is named by switch and number."""
    if switch.name == "userns" and hello.name == str(hello.uid):
        return evolve(hello, name=f"{switch.name}-{hello.uid}")
    return hello


def _is_there(pid: int) -> bool:
    try:
        os.close(os.pidfd_open(pid))
    except OSError:
        return False
    return True


async def _counted_attempt(asking: Asking, verb: str, deadline_s: float, control: bool) -> FarSide | Outcome:
    """One attempt, counted where the node's calls are."""
    end = "abandoned"
    try:
        result = await _attempt(asking, verb, deadline_s, control)
        end = "passed" if isinstance(result, FarSide) else end_in_count(result)
        return result
    finally:
        if asking.patience is not None:
            asking.patience.ledger.count(end)


async def _attempt(asking: Asking, verb: str, deadline_s: float, control: bool) -> FarSide | Outcome:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    near.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    for end in (near, far):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    with far:
        argv = wrapper_argv(asking.settings, verb)
        call = Call(
            argv,
            asking.audit_id,
            asking.credential,
            stdin=far.fileno(),
            control=control,
            place=asking.place,
            uid=asking.uid,
        )
        try:
            running = await asking.switch.start(call)
        except CannotCall as refusal:
            near.close()
            return refusal.outcome
        except OSError as error:  # the node's trouble (no more processes), or the tool is gone: never the user's fault
            near.close()
            return Unavailable(f"cannot start {asking.switch.name}: {error.strerror}")
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(near))
    try:
        with trio.move_on_after(deadline_s) as patience:
            hello = await _receive_hello(near)
            near.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)
            running.authorised = True
            wrong = _refuse_account(asking.switch, hello) if asking.patience is not None else None
            if wrong is not None:
                await _give_up(stream, running)
                return wrong
            return FarSide(running, stream, near, named(hello, asking.switch))
    except CallFailed:
        pass  # no hello: the end of the call says why
    except BaseException:
        await _give_up(stream, running)
        raise
    if patience.cancelled_caught:
        running.kill()
    outcome = await _give_up(stream, running)
    if patience.cancelled_caught:
        return Unavailable(f"no answer within {deadline_s:g} s" + _words(running))
    return without_hello(outcome, running.errors())


def _refuse_account(switch: Switch, hello: Hello) -> Misused | None:
    """An account that no user may have, whatever the site's maps say."""
    if not switch.isolates:
        return None
    if hello.uid == os.geteuid():
        return Misused(f"not isolated: {switch.name} maps this user to the pilot's own account (uid {hello.uid})")
    if 0 in (hello.uid, hello.gid):
        return Misused(f"{switch.name} maps this user to root (uid {hello.uid}, gid {hello.gid})")
    return None


async def _give_up(stream: trio.SocketStream, running: Running) -> Outcome | None:
    stream.socket.close()
    outcome = await running.end(END_GRACE_S)
    running.close()
    return outcome


async def _receive_hello(near: socket.socket) -> Hello:
    """The first frame, all of it from one sender."""
    data = b""
    sender: tuple[int, int, int] | None = None
    wanted = 4
    while len(data) < wanted:
        piece, sender_now = await _receive_with_credentials(near, wanted - len(data))
        if not piece or sender_now is None or sender not in (None, sender_now):
            raise CallFailed("closed", "no hello")
        sender = sender_now
        data += piece
        if len(data) == 4:
            wanted = 4 + int.from_bytes(data, "big")
            if wanted > HELLO_BYTES:
                raise CallFailed("framing", "not a hello")
    return _hello(parse_object(data[4:]), sender)


def _hello(words: dict[str, Any], sender: tuple[int, int, int] | None) -> Hello:
    if sender is None or words.get("hello") != PROTOCOL:
        raise CallFailed("framing", "not a hello")
    pid, uid, gid = sender
    name, ticks = words.get("name"), words.get("ticks")
    return Hello(
        pid,
        uid,
        gid,
        name if isinstance(name, str) and _ACCOUNT.match(name) else str(uid),
        ticks if isinstance(ticks, int) and 0 < ticks < 1 << 62 else 0,
    )


async def _receive_with_credentials(near: socket.socket, count: int) -> tuple[bytes, tuple[int, int, int] | None]:
    while True:
        try:
            data, ancillary, _flags, _address = near.recvmsg(count, socket.CMSG_SPACE(_UCRED.size))
            break
        except BlockingIOError:
            await trio.lowlevel.wait_readable(near)
        except OSError as error:
            raise CallFailed("closed", "no hello") from error
    for level, kind, value in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS and len(value) == _UCRED.size:
            pid, uid, gid = _UCRED.unpack(value)
            return data, (pid, uid, gid)
    return data, None


def _words(running: Running) -> str:
    printed = running.errors()
    return f": {printed}" if printed else ""
