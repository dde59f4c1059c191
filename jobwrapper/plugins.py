"""A file transfer plugin of HTCondor's (multi-file protocol), run in the sandbox at the job's account; loaded by
`stage_in` and `stage_out` for jobs that have URLs.

The pilot says which program, with what text in its -infile and which environment. Answered is how it ended, the
end of what it printed, and what it wrote to its -outfile, unread: to the pilot all of that is a job's word.
"""

import os
import select
import signal
import stat
import time

from jobwrapper.frames import Gone, Line, close_others, to_bytes, to_text, trouble

OUTFILE_BYTES = 64 * 1024
SAID_BYTES = 2048
# How soon an end is seen of a plugin that has left its output to somebody else.
LOOK_MS = 100


def run(line: Line, order: "dict") -> "dict":  # type: ignore[type-arg]
    """One plugin, to its end. Raises Gone when the pilot hangs up; the plugin is killed then."""
    program = to_bytes(order["program"])
    base = b"." + os.path.basename(program)
    infile, outfile = base + b".in", base + b".out"
    try:
        for name, text in ((infile, order["infile"]), (outfile, "")):
            _write(name, to_bytes(text))
        here = os.getcwdb()
        argv = [program, b"-infile", os.path.join(here, infile), b"-outfile", os.path.join(here, outfile)]
        if order["upload"]:
            argv.append(b"-upload")
        answer = _watch(line, argv, order)
        answer["result"] = _read(outfile)
        if order.get("executable") and answer.get("status") == 0:
            os.chmod(to_bytes(order["executable"]), 0o755)
    except OSError as error:
        return {"plugin": {"failed": trouble("plugin", error, program)}}
    finally:
        for name in (infile, outfile):
            try:  # noqa: SIM105 - contextlib costs an import
                os.unlink(name)
            except OSError:
                pass
    return {"plugin": answer}


def _write(name: bytes, text: bytes) -> None:
    try:  # noqa: SIM105 - contextlib costs an import
        os.unlink(name)
    except FileNotFoundError:
        pass
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        while text:
            text = text[os.write(fd, text) :]
    finally:
        os.close(fd)


def _read(name: bytes) -> str:
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(22, "the plugin's -outfile is no file any more")
        return to_text(os.read(fd, OUTFILE_BYTES))
    finally:
        os.close(fd)


def _watch(line: Line, argv: "list[bytes]", order: "dict") -> "dict[str, object]":  # type: ignore[type-arg]
    readable, writable = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        _become(argv, order, writable)
    os.close(writable)
    end_s = time.monotonic() + order["limit_s"]
    said, status = b"", None
    poll = select.poll()
    poll.register(readable, select.POLLIN)
    poll.register(line.socket.fileno(), select.POLLIN)
    try:
        while status is None:
            for fd, _event in poll.poll(LOOK_MS):
                if fd != readable:  # the pilot says nothing while a plugin runs: it has hung up
                    raise Gone()
                piece = os.read(readable, 65536)
                said = (said + piece)[-SAID_BYTES:]
                if not piece:
                    poll.unregister(readable)
            done, found = os.waitpid(pid, os.WNOHANG)
            if done:
                status = found
            elif time.monotonic() > end_s:
                return {"timed_out": True, "said": to_text(said)}
    finally:
        os.killpg(pid, signal.SIGKILL) if _is_group(pid) else None
        if status is None:
            os.waitpid(pid, 0)
        os.close(readable)
    return {"status": status, "said": to_text(said)}


def _is_group(pid: int) -> bool:
    try:
        os.killpg(pid, 0)
        return True
    except OSError:
        return False


def _become(argv: "list[bytes]", order: "dict", output: int) -> None:  # type: ignore[type-arg]
    try:
        os.setsid()
        os.dup2(output, 1)
        os.dup2(output, 2)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        close_others()
        environment = {to_bytes(name): to_bytes(value) for name, value in order["environment"].items()}
        os.execve(argv[0], argv, environment)
    except OSError as error:
        os.write(1, ("%s: %s" % (argv[0].decode("ascii", "replace"), error.strerror)).encode("utf-8", "replace"))
    finally:
        os._exit(127)
