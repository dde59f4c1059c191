"""probe: what this account can do on this node, for the pilot's validation. Changes nothing.

Frame in: {"search": [path, ...], "run": [path, ...]}, then one descriptor with one byte.
Frame out: {"closed": [path, ...], "unusable": [path, ...], "descriptor": bool, "groups": n, "no_new_privs": bool}.
"""

import os
import sys

from jobwrapper.frames import Gone, Line, to_bytes

_INT_BYTES = 4


def main() -> int:
    line = Line()
    try:
        line.hello()
        wanted = line.receive()
        line.send(
            {
                "closed": [path for path in wanted["search"] if not _may(path, os.X_OK)],
                "unusable": [path for path in wanted["run"] if not _may(path, os.R_OK | os.X_OK)],
                "descriptor": _takes_descriptor(line),
                "groups": len(os.getgroups()),
                "no_new_privs": _no_new_privs(),
            }
        )
    except Gone:
        return 1
    return 0


def _may(path: str, mode: int) -> bool:
    """By the rights of this account, as the kernel sees them."""
    return os.access(to_bytes(path), mode)


def _takes_descriptor(line: Line) -> bool:
    """Whether a descriptor arrives by SCM_RIGHTS; a word is written to it."""
    import socket

    _data, ancillary, _flags, _address = line.socket.recvmsg(1, socket.CMSG_SPACE(_INT_BYTES))
    for level, kind, value in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS) and len(value) == _INT_BYTES:
            fd = int.from_bytes(value, sys.byteorder)
            try:
                os.write(fd, b"probe")
            finally:
                os.close(fd)
            return True
    return False


def _no_new_privs() -> bool:
    try:
        with open("/proc/self/status", "rb") as status:
            return b"\nNoNewPrivs:\t1\n" in status.read()
    except OSError:
        return False
