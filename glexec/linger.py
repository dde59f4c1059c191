"""The lingering root part: waits for the payload, steers its family, ends it, mirrors its end.

Holds none of the caller's streams. The family ends with whoever is responsible for it: with a
control socket, when its near end is closed everywhere; without, when the front is gone (the
kernel's parent-death signal is no use here: it is not delivered from an unprivileged parent to a
root child, so the front is watched by a pidfd). Decides nothing about who may run what.
"""

import _socket
import os
import resource
import select
import struct

from glexec import codes, control, family, frontpid, rootlog, signals, word

TYPE_CHECKING = False  # the typing module costs milliseconds
if TYPE_CHECKING:
    from collections.abc import Callable

_KILL_DEADLINE_S = 15.0  # after SIGKILL; a process in D state may never die
_LOOK_AT_FRONT_MS = 500  # only where pidfds are missing (Linux < 5.3, Python < 3.9)
_PASSED_ON = (signals.SIGHUP, signals.SIGTERM, signals.SIGUSR1, signals.SIGUSR2, signals.SIGCONT)
# The terminal sends these to the whole group, the payload included: once is enough.
_IGNORED = (signals.SIGINT, signals.SIGQUIT, signals.SIGTSTP, signals.SIGTTIN, signals.SIGTTOU)
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_PDEATHSIG = 1
_SO_DOMAIN = 39  # asm-generic/socket.h; not among the names of _socket


class Door:
    """Where the front sends the signals that it was sent."""

    def __init__(self, front: int, caller_uid: int) -> None:
        self._front = (front, caller_uid)
        self.socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_NONBLOCK)
        self.socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_PASSCRED, 1)
        self.socket.bind("")  # the kernel gives a free abstract name

    def name_bits(self) -> int:
        return word.name_bits(self.socket.getsockname())

    def receive(self) -> int:
        """A signal's number; 0 if this was not the front, or not a signal that is passed on."""
        try:
            data, ancillary, _, _ = self.socket.recvmsg(16, _socket.CMSG_SPACE(_CREDENTIALS.size))
        except OSError:
            return 0
        senders = [_CREDENTIALS.unpack(item)[:2] for _, kind, item in ancillary if kind == _socket.SCM_CREDENTIALS]
        if senders != [self._front] or not data.isdigit():
            return 0
        return int(data) if int(data) in signals.FORWARDED else 0


def prepare() -> "Callable[[], None]":
    """Become the sub-reaper, before anything of the payload exists.

    Returns what the payload's process calls after its uid has changed (the change clears it), so
    that root's own death ends the payload.
    """
    import ctypes

    prctl = ctypes.CDLL(None).prctl
    if prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise codes.Failure(codes.INTERNAL, "cannot become a sub-reaper")
    for number in _IGNORED:
        signals.signal(number, signals.SIG_IGN)
    for number in (signals.SIGCHLD, *_PASSED_ON):
        signals.signal(number, _nothing)
    root = os.getpid()

    def die_with_root() -> None:
        prctl(_PR_SET_PDEATHSIG, signals.SIGKILL, 0, 0, 0)
        if os.getppid() != root:
            os._exit(codes.INTERNAL)

    return die_with_root


def let_go() -> None:
    """Hold none of the caller's streams: an end of file must reach whoever waits for it."""
    null = os.open("/dev/null", os.O_RDWR)
    for std in (0, 1, 2):
        os.dup2(null, std)
    os.close(null)


class Supervisor:
    """One lingering call, from fork to the payload's end."""

    def __init__(
        self, pid: int, log: rootlog.Log, front: frontpid.Front, door: Door, near: "_socket.socket | None"
    ) -> None:
        self.pid = pid
        self.log = log
        self.front = front
        self.door = door
        self.near = near
        self.phase = control.RUNNING
        self.status = None  # type: int | None
        self.why = "exit"
        self.used = resource.getrusage(resource.RUSAGE_CHILDREN)

    def run(self) -> int:
        """Wait for the end of the payload and of its family; the payload's wait status."""
        wake, wake_child = os.pipe()
        os.set_blocking(wake_child, False)
        os.set_blocking(wake, False)
        signals.set_wakeup_fd(wake_child)
        poller = select.poll()
        for fd in (wake, self.door.socket.fileno(), self.front.fd, self.near.fileno() if self.near else -1):
            if fd >= 0:
                poller.register(fd, select.POLLIN)
        self._tell(control.hello(self.pid, os.getpid()))
        self.reap()
        while self.status is None:
            for fd, _ in poller.poll(None if self.front.fd >= 0 else _LOOK_AT_FRONT_MS):
                self._ready(fd, wake, poller)
            if self.front.fd < 0 and self.near is None and self.front.is_gone():
                self.end_family("front gone")
        left = family.kill(os.getpid(), self.reap, _KILL_DEADLINE_S)
        user_s, system_s, max_rss_kb = self._used()
        self._tell(control.ended(self.status, left, round(user_s * 1000), round(system_s * 1000)))
        try:
            self._record(self.status, left, user_s, system_s, max_rss_kb)
        except codes.Failure:
            return self.status  # the disk is full: the caller still gets its payload's status
        return self.status

    def _ready(self, fd: int, wake: int, poller: "select.poll") -> None:
        if fd == wake:
            for number in os.read(wake, 512):
                self._signalled(number)
        elif fd == self.door.socket.fileno():
            self._pass_on(self.door.receive())
        elif fd == self.front.fd:
            poller.unregister(fd)
            if self.near is None:
                self.end_family("front gone")
        elif self.near is not None and fd == self.near.fileno():
            self._asked(poller)

    def _signalled(self, number: int) -> None:
        if number == signals.SIGCHLD:
            self.reap()
        else:
            self._pass_on(number)

    def _pass_on(self, number: int) -> None:
        process = family.look(self.pid) if number and self.status is None else None
        if process is not None:
            family.send(process, number)

    def _asked(self, poller: "select.poll") -> None:
        """One datagram from the near side: carried out and answered, or the end of the family."""
        assert self.near is not None
        try:
            data = self.near.recv(control.LIMIT_BYTES + 1, _socket.MSG_DONTWAIT)
            if not data:
                raise control.Malformed("control closed")
            asked = control.understand(data)
            self.phase, carried_out = control.RULES[self.phase, asked.verb]
            left = self._carry_out(asked) if carried_out else self._count()
            self.near.send(control.done(asked.verb, left), _socket.MSG_DONTWAIT | _socket.MSG_NOSIGNAL)
        except BlockingIOError:
            self._hang_up(poller, "control not read")
        except (OSError, control.Malformed) as error:
            self._hang_up(poller, str(error) if isinstance(error, control.Malformed) else "control closed")

    def _hang_up(self, poller: "select.poll", why: str) -> None:
        assert self.near is not None
        poller.unregister(self.near.fileno())
        if why != "control closed":
            self.near.close()  # a peer that breaks the rules hears nothing more
            self.near = None
        self.end_family(why)

    def _carry_out(self, asked: control.Ask) -> int:
        if asked.verb == "signal":
            if asked.to_all:
                family.signal_all(os.getpid(), asked.number)
            else:
                self._pass_on(asked.number)
        elif asked.verb == "stop":
            family.stop(os.getpid(), _KILL_DEADLINE_S)
        elif asked.verb == "cont":
            family.signal_all(os.getpid(), signals.SIGCONT)
        else:
            return self.end_family("kill-all")
        return self._count()

    def _count(self) -> int:
        return len(family.alive(family.below(os.getpid())))

    def end_family(self, why: str) -> int:
        """Kill everything below us; how many are left after the deadline."""
        self.why = why
        return family.kill(os.getpid(), self.reap, _KILL_DEADLINE_S)

    def reap(self) -> bool:
        """Collect whoever is dead below us; the payload's status is kept. True: nobody is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return True
            if pid == 0:
                return False
            if pid == self.pid:
                self.status = status

    def _tell(self, message: bytes) -> None:
        if self.near is not None:
            try:
                self.near.send(message, _socket.MSG_DONTWAIT | _socket.MSG_NOSIGNAL)
            except OSError:
                return  # nobody holds the near end any more; its end of file is handled where it is read

    def _used(self) -> "tuple[float, float, int]":
        """CPU seconds (user, system) and peak memory of all that was waited for; this process's own are not in it."""
        used, before = resource.getrusage(resource.RUSAGE_CHILDREN), self.used
        return used.ru_utime - before.ru_utime, used.ru_stime - before.ru_stime, used.ru_maxrss

    def _record(self, status: int, left: int, user_s: float, system_s: float, max_rss_kb: int) -> None:
        is_signal = os.WIFSIGNALED(status)
        self.log.write(
            "end",
            pid=self.pid,
            result="signal" if is_signal else "exit",
            status=os.WTERMSIG(status) if is_signal else os.WEXITSTATUS(status),
            core=bool(is_signal and os.WCOREDUMP(status)),
            why=self.why,
            left=left,
            user_s=user_s,
            system_s=system_s,
            max_rss_kb=max_rss_kb,
        )


def _nothing(number: int, frame: object) -> None:
    """The wake-up descriptor has the number; this only keeps the default action away."""


def near_end(fd: int) -> _socket.socket:
    """The control socket of a caller; Failure(201) if it is something else."""
    try:
        found = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, fd)
        domain, kind = (
            found.getsockopt(_socket.SOL_SOCKET, _SO_DOMAIN),
            found.getsockopt(_socket.SOL_SOCKET, _socket.SO_TYPE),
        )
    except OSError:
        raise codes.Failure(codes.CLIENT, "GLEXEC_CONTROL_FD is not a socket") from None
    if (domain, kind) != (_socket.AF_UNIX, _socket.SOCK_SEQPACKET):
        raise codes.Failure(codes.CLIENT, "GLEXEC_CONTROL_FD is not a Unix socket of datagrams in order")
    return found
