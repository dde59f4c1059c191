"""Commands before and after the job, at the job's account; loaded by `launch` for a job that has one.

Before: run to its end, then the job starts. After: this process stays as the job's parent, hands signals on, runs the
command when the job has ended, and tells the pilot in one frame how both ended. Standard input, output and error of
these commands are the null device, as HTCondor has it. Neither is trusted by the pilot more than the job itself.
"""

import os

from jobwrapper.frames import Gone, Line, close_others, to_bytes, trouble

# As typing.TYPE_CHECKING, which costs an import; so does the front of _signal.
TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
else:
    import _signal

WAITING = b"w"
NOT_RUN = 127
# What a pilot or a job's owner sends; the rest says something about this process itself.
_HANDED_ON = ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGWINCH", "SIGURG", "SIGIO",
              "SIGPWR", "SIGXCPU", "SIGTSTP", "SIGCONT")  # fmt: skip


def before(wanted: "dict", report: int) -> None:  # type: ignore[type-arg]
    """Run the command before the job, if there is one. OSError when the job must not start: the end of a command
    that had to succeed is its errno."""
    command = wanted.get("pre")
    if not command:
        return
    os.write(report, WAITING)
    status = _wait(_run(command, {}))
    if command["success"] is not None and status != command["success"]:
        raise OSError(status >> 8 if status >= 256 else status, "PreCmd " + _words(status))


def stay(wanted: "dict", report: int, line: Line) -> bool:  # type: ignore[type-arg]
    """Fork where a command follows the job: False in the job's process, True in this one once all is over."""
    command = wanted.get("post")
    if not command:
        return False
    numbers = [getattr(_signal, name) for name in _HANDED_ON]
    _signal.pthread_sigmask(_signal.SIG_BLOCK, numbers)  # none is lost while nobody hands them on
    readable, writable = os.pipe2(os.O_CLOEXEC)
    job = os.fork()
    if job == 0:
        _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
        os.setsid()  # `kill 0` of the job's is not for us
        wanted["kept"] = [writable]
        return False
    os.close(report)
    os.close(writable)
    _let_go_of_streams()
    status = _watch(job, numbers)
    if os.read(readable, 1):  # it never became the job; the pilot knows why
        return True
    said = {"ended": status}  # type: dict[str, object]
    try:
        if command["unless"] is None or status & ~0x80 != command["unless"]:
            said["after"] = _wait(_run(command, _mainjob(status)))
    except OSError as error:
        said["failed"] = trouble("post", error)
    try:  # noqa: SIM105 - contextlib costs an import
        line.send(said)
    except Gone:
        pass
    return True


def _run(command: "dict", more: "dict") -> int:  # type: ignore[type-arg]
    """Start a command; OSError when it cannot be."""
    readable, writable = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        try:
            _let_go_of_streams()
            close_others(writable)
            environment = {to_bytes(name): to_bytes(value) for name, value in command["environment"].items()}
            environment.update(more)
            argv = [to_bytes(word) for word in command["argv"]]
            os.execve(argv[0], argv, environment)
        except OSError as error:
            os.write(writable, b"%d" % (error.errno or 0))
        finally:
            os._exit(NOT_RUN)
    os.close(writable)
    said = os.read(readable, 16)
    os.close(readable)
    if said:
        _wait(child)
        raise OSError(int(said), os.strerror(int(said)))
    return child


def _let_go_of_streams() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)


def _watch(job: int, numbers: "list[int]") -> int:
    """Hand signals on until the job has ended; its wait status."""

    def hand_on(number: int, _frame: object) -> None:
        try:  # noqa: SIM105 - contextlib costs an import
            os.kill(job, number)
        except OSError:  # it has just ended
            pass

    for number in numbers:
        _signal.signal(number, hand_on)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
    status = _wait(job)
    for number in numbers:  # the command after it is on its own
        _signal.signal(number, _signal.SIG_DFL)
    return status


def _wait(pid: int) -> int:
    return os.waitpid(pid, 0)[1]


def _mainjob(status: int) -> "dict[bytes, bytes]":
    """HTCondor's names for how the job itself ended."""
    if os.WIFSIGNALED(status):
        return {b"_CONDOR_MAINJOB_EXIT_SIGNAL": b"%d" % os.WTERMSIG(status)}
    return {b"_CONDOR_MAINJOB_EXIT_CODE": b"%d" % os.WEXITSTATUS(status)}


def _words(status: int) -> str:
    if os.WIFSIGNALED(status):
        return "was killed by signal %d" % os.WTERMSIG(status)
    return "ended with exit code %d" % os.WEXITSTATUS(status)
