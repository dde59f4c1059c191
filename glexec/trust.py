"""Is this file the site's alone? Asked of everything that the root part believes.

Looks at owners and modes only; never at a file that a caller named.
"""

import os
import stat

from glexec.codes import INTERNAL, Failure, reason

_LIMIT_BYTES = 1 << 20  # a configuration or policy; the largest seen in the field are a few KiB


def _wrong(path: str, is_last: bool) -> str:
    """Why somebody else than root could change this one entry; empty if nobody can."""
    found = os.lstat(path)
    if found.st_uid != 0:
        return "belongs to uid %d" % found.st_uid
    if stat.S_ISLNK(found.st_mode):
        return ""  # root's own link: its target is looked at by its own path
    writable = found.st_mode & (stat.S_IWOTH | (stat.S_IWGRP if found.st_gid != 0 else 0))
    # In a sticky directory nobody can replace root's entry; what is asked about must be stricter.
    if writable and (is_last or not found.st_mode & stat.S_ISVTX):
        return "can be written by others"
    return ""


def _steps(path: str) -> "list[str]":
    parts = [part for part in path.split("/") if part]
    return ["/"] + ["/" + "/".join(parts[: n + 1]) for n in range(len(parts))]


def problem(path: str) -> str:
    """Why others could change `path` or redirect a way to it; empty if only root can."""
    path = os.path.normpath(path)
    ways = {path, os.path.realpath(path)}
    try:
        for way in sorted(ways):
            steps = _steps(way)
            for step in steps:
                wrong = _wrong(step, step == way)
                if wrong:
                    return "%s %s" % (step, wrong)
    except OSError as error:
        return "%s: %s" % (path, reason(error))
    return ""


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
