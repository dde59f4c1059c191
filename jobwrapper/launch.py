"""launch: become the job.

After the hello the pilot sends what to run, and then one end of a fresh pipe that closes on exec. On that
pipe goes either one byte, 'going', just before execve, or the reason why not (JSON: step, errno, text). End
of file after 'going' tells the pilot that the job runs. The socket itself can tell nothing: a lingering
switch keeps copies of it. A command before or after the job (jobwrapper.around) is run from here, too; the byte
'waiting' then says that it takes its time.
"""

import os
import resource
import stat
from _socket import CMSG_SPACE, MSG_CMSG_CLOEXEC, SCM_RIGHTS, SOL_SOCKET
from sys import byteorder as _byteorder

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
# Where output begins: anew, or behind what an earlier leg of the same job has written.
_ANEW, _BEHIND = os.O_WRONLY | os.O_CREAT | os.O_TRUNC, os.O_WRONLY | os.O_CREAT | os.O_APPEND
# Files of the sandbox that the pilot gets a descriptor of, by what it does with them.
_OPENED = {"read": os.O_RDONLY, "write": os.O_WRONLY}


def main() -> int:
    line = Line()
    try:
        line.hello()
        wanted = line.receive()
        report = _receive_descriptor(line)
        if wanted.get("connection"):
            wanted["connection"] = _receive_descriptor(line)
        wanted["given"] = {name: _receive_descriptor(line) for name in wanted.get("streamed", ())}
    except Gone:
        return 1
    step = "prepare"
    try:
        for name, act in STEPS:
            step = name
            act(wanted)
        step = "files"
        _hand_files(line, wanted)
        if wanted.get("manifest"):
            from jobwrapper import manifest

            known = {to_bytes(name): to_bytes(value) for name, value in wanted["environment"].items()}
            manifest.write(to_bytes(wanted["manifest"]), b"environment", [manifest.environment(known)])
        if wanted.get("pre") or wanted.get("post"):
            from jobwrapper import around

            step = "pre"
            around.before(wanted, report)
            step = "post"
            if around.stay(wanted, report, line):
                return 0
        step = "exec"
        _exec(wanted, report)
    except Exception as error:  # whatever it is, the pilot must not take our end for the job's
        reason = error if isinstance(error, OSError) else OSError(22, "%s: %s" % (type(error).__name__, error))
        os.write(report, dumps(trouble(step, reason)).encode("ascii"))
        for fd in wanted.get("kept", ()):
            os.write(fd, b"x")
    return 1


def _receive_descriptor(line: Line) -> int:
    _data, ancillary, _flags, _address = line.socket.recvmsg(1, CMSG_SPACE(_INT_BYTES), MSG_CMSG_CLOEXEC)
    for level, kind, value in ancillary:
        if level == SOL_SOCKET and kind == SCM_RIGHTS and len(value) == _INT_BYTES:
            return int.from_bytes(value, _byteorder)
    raise Gone()


def _enter(wanted: "dict") -> None:  # type: ignore[type-arg]
    os.chdir(to_bytes(wanted["cwd"]))


def _own_session(wanted: "dict") -> None:  # type: ignore[type-arg]
    """Away from the pilot's process group and terminal: `kill 0` and TIOCSTI reach nobody else."""
    try:  # noqa: SIM105 - contextlib costs an import
        os.setsid()
    except PermissionError:  # already a leader
        pass


def _stdin(wanted: "dict") -> None:  # type: ignore[type-arg]
    os.umask(wanted["umask"])
    given = _open(wanted["stdin"], os.O_RDONLY) if wanted["stdin"] is not None else os.open(os.devnull, os.O_RDONLY)
    if wanted.get("connection"):  # a server of one connection: in and out are that
        given = wanted["connection"]
        os.set_blocking(given, True)
    wanted["streams"] = [given]


def _stdout(wanted: "dict") -> None:  # type: ignore[type-arg]
    given = wanted.get("connection") or wanted["given"].get("stdout")
    wanted["streams"].append(given or _open_output(wanted, "stdout"))


def _stderr(wanted: "dict") -> None:  # type: ignore[type-arg]
    """One open file for both where they have one name, so that neither overwrites the other."""
    same = wanted["stderr"] == wanted["stdout"]
    given = wanted["given"].get("stderr")
    if given is None and same and "stdout" not in wanted["given"]:
        given = wanted["streams"][1]
    wanted["streams"].append(given or _open_output(wanted, "stderr"))
    for target, fd in enumerate(wanted["streams"]):
        os.dup2(fd, target)  # inheritable


def _open_output(wanted: "dict", name: str) -> int:  # type: ignore[type-arg]
    return _open(wanted[name], _BEHIND if wanted.get("append") else _ANEW)


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


def _cpus(wanted: "dict") -> None:  # type: ignore[type-arg]
    if wanted.get("cpus"):
        os.sched_setaffinity(0, wanted["cpus"])


def _oom_score(wanted: "dict") -> None:  # type: ignore[type-arg]
    """When memory is short the kernel is to take the job, and not what looks after it. Anybody may raise it."""
    try:
        fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, b"%d" % wanted.get("oom_score", 0))
        finally:
            os.close(fd)
    except OSError:  # a host that hides it, or a score that is higher already
        pass


def _hand_files(line: Line, wanted: "dict") -> None:  # type: ignore[type-arg]
    """One message each: its number, and the descriptor. A file that is not there is left out."""
    for number, (name, use) in enumerate(wanted.get("files", ())):
        try:
            fd = _open(name, _OPENED[use])
        except OSError:
            continue
        try:
            line.socket.sendmsg([b"%c" % number], [(SOL_SOCKET, SCM_RIGHTS, fd.to_bytes(_INT_BYTES, _byteorder))])
        finally:
            os.close(fd)


def _signals(wanted: "dict") -> None:  # type: ignore[type-arg]
    """The defaults for all, none blocked: Python ignores two, and whoever called us may have ignored more."""
    for number in range(1, _signal.NSIG):
        if number not in _UNCHANGEABLE:
            _signal.signal(number, _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())


def _exec(wanted: "dict", report: int) -> None:  # type: ignore[type-arg]
    argv = [to_bytes(word) for word in wanted["argv"]]
    environment = {to_bytes(name): to_bytes(value) for name, value in wanted["environment"].items()}
    close_others(report, *wanted.get("kept", ()))
    _limits(wanted)
    os.write(report, GOING)
    os.execve(argv[0], argv, environment)


STEPS = (
    ("cwd", _enter),
    ("session", _own_session),
    ("stdin", _stdin),
    ("stdout", _stdout),
    ("stderr", _stderr),
    ("nice", _nice),
    ("cpus", _cpus),
    ("memory", _oom_score),
    ("signals", _signals),
)
