"""peek: read pieces of some of the job's files, for the job's owner.

Frame in: {"path": sandbox, "files": [[name, offset], ...], "limit": bytes in all}; an offset of -1 means the end.
Frame out: {"found": [[index, offset, size], ...], "missing": [[name, why], ...]}, then the bytes of those found, in
their order.

Only plain files inside the sandbox are read. What was opened counts, not the name that led there: a link that is
turned round between a look and the opening gains nothing.
"""

import os
import stat

from jobwrapper.frames import Gone, Line, to_bytes, trouble

FROM_THE_END = -1
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def main() -> int:
    line = Line()
    try:
        line.hello()
        return _serve(line)
    except Gone:
        return 1


def _serve(line: Line) -> int:
    wanted = line.receive()
    try:
        sandbox = os.path.realpath(to_bytes(wanted["path"]))
        os.chdir(sandbox)
    except OSError as error:
        line.send({"failed": trouble("enter", error)})
        return 1
    left = wanted["limit"]
    found, missing, contents = [], [], []
    for index, (name, offset) in enumerate(wanted["files"]):
        try:
            offset, content = read_piece(sandbox, to_bytes(name), offset, left)
        except OSError as error:
            missing.append([name, error.strerror or str(error)])
            continue
        left -= len(content)
        found.append([index, offset, len(content)])
        contents.append(content)
    line.send({"found": found, "missing": missing})
    for content in contents:
        line.send_bytes(content)
    return 0


def read_piece(sandbox: bytes, name: bytes, offset: int, limit: int) -> "tuple[int, bytes]":
    """At most `limit` bytes from `offset`, or the last ones; where they begin, and they. OSError when not to be
    had."""
    fd = os.open(os.path.join(sandbox, name), _READ)
    try:
        if not os.readlink(b"/proc/self/fd/%d" % fd).startswith(sandbox + b"/"):
            raise PermissionError(1, "not inside the sandbox")
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(22, "not a plain file")
        begin = max(0, found.st_size - limit) if offset == FROM_THE_END else min(offset, found.st_size)
        content = b""
        while len(content) < limit:
            piece = os.pread(fd, limit - len(content), begin + len(content))
            if not piece:
                break
            content += piece
        return begin, content
    finally:
        os.close(fd)
