"""Is this file the site's alone? Asked of everything that the root part believes.

Looks at owners and modes only; never at a file that a caller named.
"""

import errno
import os
import stat

from glexec.codes import INTERNAL, Failure, reason

_LIMIT_BYTES = 1 << 20  # a configuration or policy; the largest seen in the field are a few KiB
_LIMIT_LINKS = 40  # as the kernel


def _wrong(path: str, found: os.stat_result, is_last: bool) -> str:
    """Why somebody else than root could change this one entry; empty if nobody can."""
    if found.st_uid != 0:
        return "%s belongs to uid %d" % (path, found.st_uid)
    if stat.S_ISLNK(found.st_mode):
        return ""  # root's own link: its target is walked to
    writable = found.st_mode & (stat.S_IWOTH | (stat.S_IWGRP if found.st_gid != 0 else 0))
    # In a sticky directory nobody can replace root's entry; what is asked about must be stricter.
    if writable and (is_last or not found.st_mode & stat.S_ISVTX):
        return "%s can be written by others" % path
    return ""


def problem(path: str) -> str:
    """Why others could change `path` or redirect a way to it; empty if only root can.

    The way is the kernel's: every link on it is an entry of a directory that somebody may own.
    """
    if not path.startswith("/"):
        return "%s is no absolute path: it would lead to wherever the caller is" % path
    try:
        return _walked(path)
    except OSError as error:
        return "%s: %s" % (path, reason(error))


def _walked(path: str) -> str:
    here, to_come, links = "/", _parts(path), 0
    wrong = _wrong(here, os.lstat(here), not to_come)
    while to_come and not wrong:
        part = to_come.pop()
        if part == "..":
            here = os.path.dirname(here)
            continue
        step = os.path.join(here, part)
        found = os.lstat(step)
        wrong = _wrong(step, found, not to_come)
        if not stat.S_ISLNK(found.st_mode):
            here = step
            continue
        links += 1
        if links > _LIMIT_LINKS:
            raise OSError(errno.ELOOP, "too many links")
        target = os.readlink(step)
        here = "/" if target.startswith("/") else here
        to_come += _parts(target)
    return wrong


def _parts(path: str) -> "list[str]":
    """The last one first."""
    return [part for part in reversed(path.split("/")) if part not in ("", ".")]


def require(path: str) -> None:
    """Failure(202) unless only root can change this file or directory."""
    wrong = problem(path)
    if wrong:
        raise Failure(INTERNAL, wrong)


def read(path: str) -> bytes:
    """The bytes of a file that only root can change; Failure(202) otherwise."""
    require(path)
    try:
        with open(path, "rb") as file:
            data = file.read(_LIMIT_BYTES + 1)
    except OSError as error:
        raise Failure(INTERNAL, "%s: %s" % (path, reason(error))) from None
    if len(data) > _LIMIT_BYTES:
        raise Failure(INTERNAL, "%s is larger than %d bytes" % (path, _LIMIT_BYTES))
    return data
