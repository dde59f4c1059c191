"""launch: become the job.

After the hello the pilot sends what to run, and then one end of a fresh pipe that closes on exec. On that
pipe goes either one byte, 'going', just before execve, or the reason why not (JSON: step, errno, text). End
of file after 'going' tells the pilot that the job runs. The socket itself can tell nothing: a lingering
switch keeps copies of it.
"""

import os
import resource
import stat
from _socket import CMSG_SPACE, MSG_CMSG_CLOEXEC, SCM_RIGHTS, SOL_SOCKET

from jobwrapper.frames import Gone, Line, close_others, dumps, to_bytes, trouble

# As typing.TYPE_CHECKING, which costs an import; so does the front of _signal.
TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
else:
    import _signal

GOING = b"g"
# The descriptors' size in a control message: one C int.
_INT_BYTES = 4
# Kill and stop cannot be changed; 32 and 33 belong to the C library.
_UNCHANGEABLE = {_signal.SIGKILL, _signal.SIGSTOP, 32, 33}
_OUT = os.O_WRONLY | os.O_CREAT | os.O_TRUNC


def main() -> int:
    line = Line()
    try:
        line.hello()
        wanted = line.receive()
        report = _receive_descriptor(line)
        if wanted.get("connection"):
            wanted["connection"] = _receive_descriptor(line)
    except Gone:
        return 1
    step = "prepare"
    try:
        for name, act in STEPS:
            step = name
            act(wanted)
        step = "exec"
        _exec(wanted, report)
    except Exception as error:  # whatever it is, the pilot must not take our end for the job's
        reason = error if isinstance(error, OSError) else OSError(22, "%s: %s" % (type(error).__name__, error))
        os.write(report, dumps(trouble(step, reason)).encode("ascii"))
    return 1


def _receive_descriptor(line: Line) -> int:
    _data, ancillary, _flags, _address = line.socket.recvmsg(1, CMSG_SPACE(_INT_BYTES), MSG_CMSG_CLOEXEC)
    for level, kind, value in ancillary:
        if level == SOL_SOCKET and kind == SCM_RIGHTS and len(value) == _INT_BYTES:
            import sys

            return int.from_bytes(value, sys.byteorder)
    raise Gone()


def _enter(wanted: "dict") -> None:  # type: ignore[type-arg]
    os.chdir(to_bytes(wanted["cwd"]))


def _own_session(wanted: "dict") -> None:  # type: ignore[type-arg]
    """Away from the pilot's process group and terminal: `kill 0` and TIOCSTI reach nobody else."""
    try:  # noqa: SIM105 - contextlib costs an import
        os.setsid()
    except PermissionError:  # already a leader
        pass


def _stdio(wanted: "dict") -> None:  # type: ignore[type-arg]
    os.umask(wanted["umask"])
    given = _open(wanted["stdin"], os.O_RDONLY) if wanted["stdin"] is not None else os.open(os.devnull, os.O_RDONLY)
    if wanted.get("connection"):  # a server of one connection: in and out are that
        given = out = wanted["connection"]
        os.set_blocking(given, True)
    else:
        out = _open(wanted["stdout"], _OUT)
    err = out if wanted["stderr"] == wanted["stdout"] else _open(wanted["stderr"], _OUT)
    for fd, target in ((given, 0), (out, 1), (err, 2)):
        os.dup2(fd, target)  # inheritable


def _open(name: str, flags: int) -> int:
    """Open a stream's file. In the sandbox no link is followed; O_NONBLOCK, because a fifo would wait for
    ever."""
    path = to_bytes(name)
    if not path.startswith(b"/"):
        flags |= os.O_NOFOLLOW
    fd = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, 0o644)
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        raise IsADirectoryError(21, "Is a directory")
    os.set_blocking(fd, True)
    return fd


def _limits(wanted: "dict") -> None:  # type: ignore[type-arg]
    """Limits, never above the hard one that we have."""
    for name, (soft, hard) in wanted["rlimits"].items():
        number = getattr(resource, "RLIMIT_" + name.upper())
        _now, ceiling = resource.getrlimit(number)
        hard = _lower(hard, ceiling)
        resource.setrlimit(number, (_lower(soft, hard), hard))


def _lower(one: int, other: int) -> int:
    if one == resource.RLIM_INFINITY:
        return other
    return one if other == resource.RLIM_INFINITY else min(one, other)


def _nice(wanted: "dict") -> None:  # type: ignore[type-arg]
    if wanted["nice"]:
        os.nice(wanted["nice"])


def _signals(wanted: "dict") -> None:  # type: ignore[type-arg]
    """The defaults for all, none blocked: Python ignores two, and whoever called us may have ignored more."""
    for number in range(1, _signal.NSIG):
        if number not in _UNCHANGEABLE:
            _signal.signal(number, _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())


def _exec(wanted: "dict", report: int) -> None:  # type: ignore[type-arg]
    argv = [to_bytes(word) for word in wanted["argv"]]
    environment = {to_bytes(name): to_bytes(value) for name, value in wanted["environment"].items()}
    close_others(report)
    _limits(wanted)
    os.write(report, GOING)
    os.execve(argv[0], argv, environment)


STEPS = (
    ("cwd", _enter),
    ("session", _own_session),
    ("stdio", _stdio),
    ("nice", _nice),
    ("signals", _signals),
)
