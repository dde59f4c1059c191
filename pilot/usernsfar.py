"""The middle of the switch `userns`: from the pilot's account into a user namespace, and to a sub-uid of it.

A helper, one for each sub-uid in use, single-threaded, at the pilot's uid. It is started by `pilot.userns`, makes a
namespace in which the pilot is 0 and the job's sub-uid is itself, says so, and then starts calls as it is told: making
the namespace takes four times as long as a call in it. A call is a process of its own, and a child of whoever has the
helper, who waits for it, signals it and learns its exact end; it lives on when the helper ends. With a pid namespace
("own") pid 1 stands below it, at the pilot's uid, where the job can't touch it: it forwards signals, reaps, obeys the
control socket (the words of glexec's root part) and takes all of the tree with it when it ends. Without one ("host")
the call sees the host's pids: that is for signals to the account's processes.

The helper ends when nobody holds the other end of its socket, and after a while without a further call.

Standard library only, and C modules (_signal, _socket, _ctypes) instead of their Python fronts, each of which costs
milliseconds at the start. Helper and call exit with 201 or 202, and words, when nothing was run; a call else as what
it ran.
"""

from __future__ import annotations

import _ctypes
import os
from _socket import (
    AF_UNIX,
    CMSG_SPACE,
    MSG_CMSG_CLOEXEC,
    MSG_DONTWAIT,
    MSG_NOSIGNAL,
    SHUT_RD,
    SOCK_SEQPACKET,
    socket,
)
from errno import EINVAL, EPERM

# As typing.TYPE_CHECKING, which costs an import.
TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable
    from typing import NoReturn

    _Data = _ctypes._SimpleCData[int]
    _Long_ = _ctypes._SimpleCData[int]
else:
    import _signal

    _Data = _ctypes._SimpleCData
    _Long_ = _Data

MISUSED, UNAVAILABLE = 201, 202
# Of a call. ASK_FD is the helper's, whose own 0 to 2 are the null device.
CONTROL_FD, LEASE_FD, ASK_FD = 3, 4, 5
# A command line that is longer is refused by the near side; a datagram of this size fits into any socket's buffer.
REQUEST_BYTES = 128 * 1024
# Standard input, output and error of a call, and its control socket.
_MOST_FDS = 4
# <sched.h>, <sys/mount.h>, <sys/prctl.h>
_NEWNS, _NEWIPC, _NEWUSER, _NEWPID = 0x00020000, 0x08000000, 0x10000000, 0x20000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_BIND, _MS_REC, _MS_SLAVE = 2, 4, 8, 0x1000, 0x4000, 0x80000
_MNT_DETACH = 2
# As pilot.farside names such an account, too, where a host lets nobody mount.
ACCOUNT_PREFIX = "userns-"
# Lists of accounts on the largest of hosts; what is beyond is left out.
_MOST_ACCOUNTS_BYTES = 1 << 20
_CLONE_PARENT = 0x00008000
# The system call clone(2) by machine; <asm/unistd.h>.
_SYS_CLONE = {"x86_64": 56, "aarch64": 220, "riscv64": 220, "ppc64le": 120}
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38
_FORWARDED = (
    _signal.SIGHUP, _signal.SIGINT, _signal.SIGQUIT, _signal.SIGTERM, _signal.SIGUSR1, _signal.SIGUSR2,
    _signal.SIGCONT,
)  # fmt: skip


class _Int(_Data):
    _type_ = "i"


class _Long(_Long_):
    _type_ = "l"


class _Function(_ctypes.CFuncPtr):
    _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO
    _restype_ = _Int


_LIBC = _ctypes.dlopen(None, 0)  # type: ignore[arg-type]


class suppress:
    """contextlib.suppress; that module costs two milliseconds."""

    def __init__(self, *faults: type[BaseException]) -> None:
        self._faults = faults

    def __enter__(self) -> None:
        pass

    def __exit__(self, fault: type[BaseException] | None, _value: object, _trace: object) -> bool:
        return fault is not None and issubclass(fault, self._faults)


def _call(name: str, *arguments: object) -> None:
    """A function of the C library that returns 0 or sets errno."""
    function = _Function(_ctypes.dlsym(_LIBC, name))
    if function(*arguments) != 0:
        number = _ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def main(words: list[str]) -> NoReturn:
    """`UID GID IDLE_MS NEWUIDMAP NEWGIDMAP`: a helper, which leaves after a time without a further call."""
    uid, gid, idle_ms, newuidmap, newgidmap = words
    for fd in (LEASE_FD, ASK_FD):
        os.set_inheritable(fd, False)
    if os.uname().machine not in _SYS_CLONE:
        _fail(MISUSED, f"user namespaces on a {os.uname().machine}: its number of clone(2) is not known here")
    try:
        _enter(int(uid), int(gid), newuidmap, newgidmap)
    except OSError as error:
        _fail(MISUSED if error.errno in (EPERM, EINVAL) else UNAVAILABLE, error.strerror or str(error))
    asked = socket(AF_UNIX, SOCK_SEQPACKET, 0, ASK_FD)
    try:
        asked.send(b"ready", MSG_NOSIGNAL)
        _let_go(2)
        _serve(asked, int(uid), int(gid), int(idle_ms))
    except OSError:
        pass  # nobody is there any more
    os._exit(0)


def _serve(asked: socket, uid: int, gid: int, idle_ms: int) -> None:
    """Start calls until nobody can ask for any, or no further one is asked for. OSError when the other end is gone."""
    from select import POLLIN, poll

    waiting = poll()
    waiting.register(asked, POLLIN)
    # Who started us has a call for us, however late a busy machine lets it ask.
    waiting.poll()
    while True:
        if not waiting.poll(idle_ms):
            # From here on nothing more can be sent to us, and what was sent before is still carried out.
            asked.shutdown(SHUT_RD)
        words, ancillary, _flags, _address = asked.recvmsg(REQUEST_BYTES, CMSG_SPACE(4 * _MOST_FDS), MSG_CMSG_CLOEXEC)
        if not words:
            return
        fds = [fd for _level, _kind, data in ancillary for fd in memoryview(data).cast("i")]
        pid = _be_born()
        if pid == 0:
            _begin(words, fds, uid, gid)
        for fd in fds:
            os.close(fd)
        asked.send(b"%d" % pid, MSG_NOSIGNAL)


def _be_born() -> int:
    """A fork whose child is not ours, but a sibling: a child of whoever started us."""
    function = _Function(_ctypes.dlsym(_LIBC, "syscall"))
    pid = int(function(_Long(_SYS_CLONE[os.uname().machine]), _Long(_CLONE_PARENT | _signal.SIGCHLD), *[_Long(0)] * 3))
    if pid < 0:
        number = _ctypes.get_errno()
        raise OSError(number, f"clone: {os.strerror(number)}")
    return pid


def _begin(words: bytes, fds: list[int], uid: int, gid: int) -> NoReturn:
    """A fresh call: its descriptors in their places, and on with it."""
    try:
        os.setsid()
        for target, fd in enumerate(fds):
            os.dup2(fd, target, inheritable=target < CONTROL_FD)
            os.close(fd)
        if len(fds) <= CONTROL_FD:
            with suppress(OSError):
                os.close(CONTROL_FD)
        os.close(ASK_FD)
        style, *command = [os.fsdecode(word) for word in words.split(b"\0")]
        _run(style, command, uid, gid)
    finally:
        os._exit(UNAVAILABLE)


def _run(style: str, command: list[str], uid: int, gid: int) -> NoReturn:
    try:
        if style == "host":
            status = _run_beside(command, uid, gid)
        else:
            _call("unshare", _NEWPID | _NEWIPC)
            status = _run_inside(command, uid, gid, control=style == "own+control")
    except OSError as error:
        _fail(MISUSED if error.errno in (EPERM, EINVAL) else UNAVAILABLE, error.strerror or str(error))
    _end_as(status)


def _fail(status: int, words: str) -> NoReturn:
    os.write(2, words.encode("utf-8", "replace") + b"\n")
    os._exit(status)


def _end_as(wait_status: int) -> NoReturn:
    """The same end that the command had, without a core of our own."""
    if os.WIFSIGNALED(wait_status):
        number = os.WTERMSIG(wait_status)
        _call("prctl", _PR_SET_DUMPABLE, 0, 0, 0, 0)
        if number != _signal.SIGKILL:
            _signal.signal(number, _signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.WEXITSTATUS(wait_status))


# -- the namespace ----


def _enter(uid: int, gid: int, newuidmap: str, newgidmap: str) -> None:
    """Into a fresh user namespace; the maps are written from outside, where the set-uid tools are that."""
    own = os.getuid(), os.getgid()
    go, go_far = os.pipe()
    mapper = os.fork()
    if mapper == 0:
        os.close(go_far)
        if not os.read(go, 1):
            os._exit(1)
        target = str(os.getppid())
        tools = [_map(newuidmap, target, own[0], uid), _map(newgidmap, target, own[1], gid)]
        os._exit(max(os.waitstatus_to_exitcode(os.waitpid(tool, 0)[1]) != 0 for tool in tools))
    os.close(go)
    try:
        _call("unshare", _NEWUSER)
        os.write(go_far, b"g")
    finally:
        os.close(go_far)
        mapped = os.waitpid(mapper, 0)[1] == 0
    if not mapped:
        _fail(UNAVAILABLE, "the namespace got no map of ids")


def _map(tool: str, target: str, own: int, sub: int) -> int:
    return os.posix_spawn(tool, [tool, target, "0", str(own), "1", str(sub), str(sub), "1"], {})


def _become(command: list[str], uid: int, gid: int) -> NoReturn:
    """In a fresh child: the job's account, for good, and the command."""
    try:
        _signal.set_wakeup_fd(-1)
        for number in (_signal.SIGPIPE, _signal.SIGXFSZ):  # Python ignores these
            _signal.signal(number, _signal.SIG_DFL)
        os.setsid()
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        os.execve(command[0], command, {"PATH": os.environ["PATH"]})  # Python itself may add a locale
    except OSError as error:
        _fail(MISUSED, f"cannot run {command[0]} at the job's account: {error.strerror}")
    finally:
        os._exit(MISUSED)


def _run_beside(command: list[str], uid: int, gid: int) -> int:
    child = os.fork()
    if child == 0:
        # The parent has all rights over this namespace, so that the kernel delivers what it leaves behind.
        _become(command, uid, gid)
    _forward_to(child)
    _let_go(0, 1)
    return os.waitpid(child, 0)[1]


def _let_go(*fds: int) -> None:
    """What belongs to the call: its end of file is what somebody waits for."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in fds:
        os.dup2(null, fd)
    os.close(null)


def _forward_to(pid: int) -> None:
    def forward(number: int, _frame: object) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, number)

    for number in _FORWARDED:
        _signal.signal(number, forward)


# -- pid 1 ----


def _run_inside(command: list[str], uid: int, gid: int, *, control: bool) -> int:
    """The wait status of the command; SIGKILL's when pid 1 was killed."""
    report, report_far = os.pipe()
    init = os.fork()
    if init == 0:
        try:
            os.close(report)
            os.write(report_far, _init(report_far, command, uid, gid, control=control).to_bytes(4, "little"))
        finally:
            os._exit(0)
    _forward_to(init)
    os.close(report_far)
    if control:
        os.close(CONTROL_FD)
    _let_go(0, 1)
    said = b""
    while piece := os.read(report, 16):
        said += piece
    os.waitpid(init, 0)
    return int.from_bytes(said[1:], "little") if len(said) == 5 else int(_signal.SIGKILL)


def _init(report: int, command: list[str], uid: int, gid: int, *, control: bool) -> int:
    """Pid 1: the wait status of the command, when nobody is left in the namespace."""
    _call("prctl", _PR_SET_PDEATHSIG, _signal.SIGKILL, 0, 0, 0)
    os.write(report, b"r")  # fails when the parent died before the line above
    _own_mounts(uid, gid)
    wake, wake_far = os.pipe()
    for fd in (wake, wake_far):
        os.set_blocking(fd, False)
    for number in (_signal.SIGCHLD, *_FORWARDED):
        _signal.signal(number, lambda _number, _frame: None)
    _signal.set_wakeup_fd(wake_far, warn_on_full_buffer=False)
    job = os.fork()
    if job == 0:
        _become(command, uid, gid)
    _let_go(0, 1, 2)
    os.chdir("/")
    line = _Control(job) if control else None
    status = _watch(job, wake, line)
    _everybody(_signal.SIGKILL)
    with suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)
    if line is not None:
        used = os.times()
        words = b'{"ended": %d, "left": 0, "user_ms": %d, "system_ms": %d}'
        line.send(words % (status, round(used[2] * 1000), round(used[3] * 1000)))
    return status


def _own_mounts(uid: int, gid: int) -> None:
    """What the namespace alone sees: a /proc of its own pids, and its account in the lists of accounts and groups.

    Where the host masks parts of its /proc, that stays. What the kernel does not allow is done without.
    """
    with suppress(OSError):
        _call("unshare", _NEWNS)
        _call("mount", b"none", b"/", None, _MS_REC | _MS_SLAVE, None)
        with suppress(OSError):
            _name_account(uid, gid)
        _call("mount", b"proc", b"/proc", b"proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, None)


def _name_account(uid: int, gid: int) -> None:
    """The host's lists with one line more, over the host's. Their files lie where nobody finds them: in memory, below
    the /proc that is mounted next."""
    name = f"{ACCOUNT_PREFIX}{uid}"
    lines = {b"/etc/passwd": f"{name}:x:{uid}:{gid}:job:/:/bin/sh\n", b"/etc/group": f"{name}:x:{gid}:\n"}
    _call("mount", b"tmpfs", b"/proc", b"tmpfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, b"size=4m,mode=0755")
    try:
        for place, line in lines.items():
            copy = b"/proc/" + os.path.basename(place)
            with open(place, "rb") as host, open(copy, "wb") as own:
                text = host.read(_MOST_ACCOUNTS_BYTES)
                own.write(text + (b"" if text.endswith(b"\n") or not text else b"\n") + line.encode())
            os.chmod(copy, 0o644)
            _call("mount", copy, place, None, _MS_BIND, None)
    finally:  # the copies live on in their new places
        _call("umount2", b"/proc", _MNT_DETACH)


def _watch(job: int, wake: int, line: _Control | None) -> int:
    """Until the command has ended: forward, obey, reap."""
    from select import POLLIN, poll

    waiting = poll()
    waiting.register(wake, POLLIN)
    if line is not None:
        waiting.register(CONTROL_FD, POLLIN)
        line.send(b'{"linger": true, "pid": %d, "root_pid": %d}' % (job, os.getpid()))
    while True:
        for fd, _event in waiting.poll():
            if fd == wake:
                for number in os.read(wake, 4096):
                    if number in _FORWARDED:
                        os.kill(job, number)
            elif line is not None and not line.obey():
                waiting.unregister(CONTROL_FD)
        status = _reap(job)
        if status is not None:
            return status


def _reap(job: int) -> int | None:
    """Wait for all who have ended; the command's status if it is among them."""
    found = None
    with suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            if pid == job:
                found = status
    return found


def _everybody(number: int) -> None:
    """A signal to all of the namespace but its pid 1; anywhere else -1 would mean all of an account."""
    if os.getpid() == 1:
        with suppress(ProcessLookupError):
            os.kill(-1, number)


class _Control:
    """The far end of the control socket. Nothing is answered: whoever orders looks at the processes."""

    def __init__(self, job: int) -> None:
        self._job = job
        self._socket = socket(AF_UNIX, SOCK_SEQPACKET, 0, CONTROL_FD)

    def send(self, words: bytes) -> None:
        with suppress(OSError):
            self._socket.send(words, MSG_DONTWAIT | MSG_NOSIGNAL)

    def obey(self) -> bool:
        """One order. Its end of file ends the family; False then."""
        try:
            words = self._socket.recv(4096, MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            words = b""
        if not words:
            _everybody(_signal.SIGKILL)
            return False
        with suppress(ValueError, KeyError, TypeError, AttributeError, OSError):
            self._carry_out(words)
        return True

    def _carry_out(self, words: bytes) -> None:
        from json import loads  # only here: a call without an order is spared its import

        order = loads(words)
        whole: dict[str, Callable[[], None]] = {
            "stop": lambda: _everybody(_signal.SIGSTOP),
            "cont": lambda: _everybody(_signal.SIGCONT),
            "kill-all": lambda: _everybody(_signal.SIGKILL),
        }
        if order["do"] == "signal" and order["to"] == "root":
            os.kill(self._job, int(order["number"]))
        elif order["do"] == "signal":
            _everybody(int(order["number"]))
        else:
            whole[order["do"]]()
