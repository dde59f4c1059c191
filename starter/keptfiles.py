"""Files of the sandbox that stay open here while the job runs: `.update.ad` is kept up to date, and the site's job
wrapper can leave a word, without a call of the switch.

The descriptors come from the far side, so each is looked at before it is used: a plain file of the job's account on the
sandbox's own file system. What else it may be (a pipe, a device, a file of a file system that the job serves itself)
could block the starter or write elsewhere. The job may do with these files what it likes; only its own view suffers.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping

# One page: a file system that is not asked for more than one at a time shows a reader the old text or the new one.
PAGE_BYTES = 4096
FILE_BYTES = 4 * PAGE_BYTES


def trusted(files: Mapping[str, int], *, uid: int, device: int) -> dict[str, int]:
    """Those that are what they are to be; the others are closed."""
    kept = {}
    for name, fd in files.items():
        found = os.fstat(fd)
        if stat.S_ISREG(found.st_mode) and found.st_uid == uid and found.st_dev == device:
            os.set_blocking(fd, False)
            kept[name] = fd
        else:
            os.close(fd)
    return kept


def overwrite(fd: int | None, text: bytes) -> bool:
    """Replace a file's content in place by one write, filled up with line ends; whether that was possible."""
    if fd is None or len(text) > FILE_BYTES:
        return False
    size = max(PAGE_BYTES, -(-len(text) // PAGE_BYTES) * PAGE_BYTES)
    try:
        done = os.pwrite(fd, text.ljust(size, b"\n"), 0)
        os.ftruncate(fd, size)
    except OSError:
        return False
    return done == size


def text_of(fd: int | None) -> str:
    """What a file says, its first page at most; empty when there is none or it cannot be read."""
    if fd is None:
        return ""
    try:
        return os.pread(fd, PAGE_BYTES, 0).decode("utf-8", "replace").strip()
    except OSError:
        return ""


def close(files: dict[str, int]) -> None:
    """Close all."""
    while files:
        os.close(files.popitem()[1])
