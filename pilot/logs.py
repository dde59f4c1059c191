"""Logs of the daemons: one line a record, UTC times, nothing in a message that could forge a line.

Uses the standard library's logging. Deciding modules and libraries do not log; daemons do.
Proxies, keys and jobs' environments never belong in a log.
"""

from __future__ import annotations

import fcntl
import logging
import logging.handlers
import os
import re
import sys
import time
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

# Control characters (C0, DEL, C1), the line separators that some viewers break at, and bidi
# overrides by which a line can be made to read differently from what it says.
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# A longer record is cut: a peer's text must not fill the disk.
MAX_RECORD_CHARS = 8192


def clean(text: str, limit_chars: int = MAX_RECORD_CHARS) -> str:
    """`text` on one line: control characters as escapes, cut at `limit_chars`."""
    if len(text) > limit_chars:
        text = text[:limit_chars] + " ... (cut)"
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape", "surrogatepass").decode("ascii"), text)


class LineFormatter(logging.Formatter):
    """`2024-05-01T12:00:00.123Z LEVEL name[pid] message`, tracebacks folded into the line."""

    def __init__(self) -> None:
        super().__init__(
            "%(asctime)s %(levelname)s %(name)s[%(process)d] %(context)s%(message)s", defaults={"context": ""}
        )

    converter = staticmethod(time.gmtime)

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """UTC with milliseconds, for people and for sorting."""
        return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"

    def format(self, record: logging.LogRecord) -> str:
        """The whole record as one line."""
        return clean(super().format(record))


class Contextual(logging.LoggerAdapter[logging.Logger]):
    """Puts its context in front of each message: `[slot=1_2 claim=ab12] text`."""

    def __init__(self, logger: logging.Logger, context: Mapping[str, object]) -> None:
        super().__init__(logger, dict(context))
        inside = " ".join(f"{key}={value}" for key, value in context.items())
        self.prefix = f"[{inside}] " if inside else ""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Hands the context to the formatter: in the message a per cent sign of it would be a format."""
        kwargs["extra"] = {"context": self.prefix}
        return msg, kwargs


class LogFile(logging.handlers.WatchedFileHandler):
    """A log that several processes append to. It goes on when its disk is full (standard error may be a file of the
    batch system's on the same disk), and is renamed to ``.old`` when it has grown beyond a limit."""

    _failed = 0

    def __init__(self, path: Path, limit_bytes: int = 0) -> None:
        super().__init__(path, encoding="utf-8", errors="backslashreplace")
        self._limit_bytes = limit_bytes

    def _open(self) -> Any:
        """Nobody else's to read, also the file that takes the place of one that has become ``.old``."""
        return open(self.baseFilename, self.mode, encoding=self.encoding, errors=self.errors, opener=_private)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; after a failure, say how many may be missing as soon as one can be written."""
        before = self._failed
        try:
            super().emit(record)
        except OSError:  # the file was to be opened anew, and cannot be: no directory, no descriptor
            self._failed += 1
        if before and self._failed == before:
            self._failed = 0
            text = f"{before} records before this one could not be written at once, some may be missing"
            super().emit(
                logging.LogRecord(record.name, logging.WARNING, record.pathname, record.lineno, text, None, None)
            )
        if self._limit_bytes and self.stream is not None:
            fd = self.stream.fileno()
            if os.fstat(fd).st_size > self._limit_bytes:  # tell() would write what the full disk has not taken
                rotate(Path(self.baseFilename), fd)

    def handleError(self, record: logging.LogRecord) -> None:
        """Of the disk's failures nothing is printed; a bug in a message still is."""
        if isinstance(sys.exc_info()[1], OSError):
            self._failed += 1
        else:
            super().handleError(record)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def rotate(path: Path, fd: int) -> None:
    """Rename a log to ``.old``, in place of the one that was there, unless another process does so at this moment or
    has done so; ``fd`` is of the file that has grown. What cannot be renamed goes on growing. Never waits: whoever may
    open the file could keep it locked for ever."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            if os.path.samestat(os.fstat(fd), os.stat(path)):
                path.rename(f"{path}.old")
        finally:
            fcntl.flock(fd, fcntl.LOCK_UN)
    except OSError:
        return


def get(name: str, **context: object) -> Contextual:
    """A logger with context that need not be repeated in messages."""
    return Contextual(logging.getLogger(f"sailplane.{name}"), context)


def descriptors() -> set[int]:
    """Descriptors of the log that `start` opened: what a forked child must keep to go on writing it."""
    streams = [
        each.stream for each in logging.getLogger("sailplane").handlers if isinstance(each, logging.StreamHandler)
    ]
    return {stream.fileno() for stream in streams if stream is not None}  # none where it cannot be opened anew now


def start(name: str, path: Path | None = None, *, level: int = logging.INFO, limit_bytes: int = 0) -> Contextual:
    """Send this process's records to a file (0600, appended), or to standard error.

    Args:
        name: the daemon's name, which stands in every line of its own logger.
        path: the file; its directory must exist. None is standard error.
        level: records below it are dropped.
        limit_bytes: how far the file may grow before it becomes ``.old``; 0 is without an end.
    """
    handler: logging.Handler
    if path is None:
        handler = logging.StreamHandler(sys.stderr)
    else:
        path.touch(mode=0o600)
        handler = LogFile(path, limit_bytes)
    handler.setFormatter(LineFormatter())
    # Nothing of this is in our lines, and looking for it walks the stack and other modules (the library's own advice).
    logging._srcfile = None
    logging.logThreads = logging.logMultiprocessing = False
    root = logging.getLogger("sailplane")
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(level)
    root.propagate = False
    return get(name)
