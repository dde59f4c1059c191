"""The front's second half: waits for sudo's process and reports its end exactly.

Runs at the caller's uid, in place of the shell that started sudo. It passes signals on to a
lingering root part and mirrors the end: the exit status, or death by the same signal. It decides
nothing about who may run what. It never stops with the payload: a stopped supervisor that nobody
continues is worse than a shell that does not notice.
"""

import os
import sys

from glexec import codes, signals, word
from glexec.descriptors import close_all_but

_REFUSED = "denied: sudo did not run the root part (see its message above)"


def main() -> None:
    """`front CHILD WORDFD`, as the last step of the front's shell."""
    child, fd = int(sys.argv[1]), int(sys.argv[2])
    watched = (signals.SIGCHLD, *signals.FORWARDED)
    signals.pthread_sigmask(signals.SIG_BLOCK, watched)
    signals.signal(signals.SIGCHLD, signals.SIG_DFL)  # if it was ignored, statuses would be lost
    _let_go(keep=fd)
    word.add(fd, word.WATCHING)
    status = _watch(child, fd, watched)
    _report(status, word.read(fd))


def _let_go(keep: int) -> None:
    """Hold none of the caller's streams, so that an end of file reaches whoever waits for it.

    Standard error stays: it is where a refusal is explained.
    """
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    try:
        os.fstat(2)
    except OSError:
        os.dup2(null, 2)
    close_all_but({0, 1, 2, keep})


def _watch(child: int, fd: int, watched: "tuple[int, ...]") -> "int | None":
    """The child's wait status; None if a shell reaped it before us (bash may, at its death)."""
    while True:
        try:
            pid, status = os.waitpid(child, os.WNOHANG)
        except ChildProcessError:
            return None
        if pid:
            return status
        info = signals.sigwaitinfo(watched)
        if info.si_signo != signals.SIGCHLD and info.si_code != signals.SI_KERNEL:
            _forward(fd, info.si_signo)


def _forward(fd: int, number: int) -> None:
    """Pass a signal on. Without linger there is nobody to pass it to, and it is dropped."""
    name = word.name_in(word.read(fd))
    if name is None:
        return
    import _socket  # the C half: `socket` costs 6 ms

    door = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_NONBLOCK)
    try:
        door.sendto(b"%d" % number, name)
    except OSError:
        return  # it has just ended, and its status says more than this signal
    finally:
        door.close()


def verdict(status: "int | None", started: bool) -> "tuple[int, int, str]":
    """What the front does at the end: (exit code, signal to die by or 0, words for stderr)."""
    if started:
        if status is None:  # cannot be: the root part starts nothing before we can reap
            return codes.INTERNAL, 0, "the payload's exit status was lost"
        if os.WIFSIGNALED(status):
            return 128 + os.WTERMSIG(status), os.WTERMSIG(status), ""
        # A lingering root part has masked 201 to 204 already; without linger the status is the payload's own, exactly.
        return os.WEXITSTATUS(status), 0, ""
    if status is None:
        return codes.DENIED, 0, _REFUSED
    if os.WIFSIGNALED(status):
        return codes.INTERNAL, 0, "the root part died by signal %d" % os.WTERMSIG(status)
    code = os.WEXITSTATUS(status)
    if code == 0 or code in codes.OWN:
        return code, 0, ""  # 0: authorised, and no command was asked for
    if code in (codes.NOT_EXECUTABLE, codes.NOT_FOUND):
        return codes.INTERNAL, 0, "sudo could not be run"
    return codes.DENIED, 0, _REFUSED


def _report(status: "int | None", value: int) -> None:
    code, number, text = verdict(status, bool(value & word.STARTED))
    if text:
        os.write(2, b"glexec: %s\n" % text.encode())
    if number:
        signals.die_by(number)
    os._exit(code)
