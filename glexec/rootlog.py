"""The root-owned log: one JSON line an event, appended whole.

Written so that no text of a caller can forge a line or a field, and no line grows without limit.
The json module is not used: its import costs 7 ms on every call.
"""

import os
import stat
import time

from glexec.codes import INTERNAL, Failure, reason

_LIMIT_TEXT_CHARS = 1024  # characters of one field: enough for a DN or a job id, told when it is cut
_NOTICE = 5  # syslog's severity
_SYSLOG_S = 5.0  # a daemon that does not read for that long does not log
_PLAIN = frozenset(chr(code) for code in range(0x20, 0x7F)) - frozenset('"\\')


def quoted(text: str) -> str:
    """A JSON string in plain ASCII; control characters, quotes and undecodable bytes escaped."""
    if len(text) > _LIMIT_TEXT_CHARS:
        text = "%s...(%d characters)" % (text[:_LIMIT_TEXT_CHARS], len(text))
    return '"%s"' % "".join(char if char in _PLAIN else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    code = ord(char)
    if code < 0x10000:
        return "\\u%04x" % code
    code -= 0x10000
    return "\\u%04x\\u%04x" % (0xD800 | code >> 10, 0xDC00 | code & 0x3FF)


def _value(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (int, float)):
        return "%.6g" % value if isinstance(value, float) else "%d" % value
    if isinstance(value, (list, tuple)):
        return "[%s]" % ",".join(_value(item) for item in value[:64])
    return quoted(str(value))


def line(event: str, time_s: float, fields: "dict[str, object]") -> bytes:
    """One line of the log, with its newline."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(time_s))
    parts = ['"time":"%s.%03dZ"' % (stamp, int(time_s % 1 * 1000)), '"event":%s' % quoted(event)]
    parts += ["%s:%s" % (quoted(name), _value(value)) for name, value in fields.items()]
    return ("{%s}\n" % ",".join(parts)).encode("ascii")


class Log:
    """The open log. `fields` go into every line of this call."""

    def __init__(self) -> None:
        self.fields = {}  # type: dict[str, object]

    def write(self, event: str, **more: object) -> None:
        """Append one event; Failure(202) if it cannot be kept, so that nothing runs unrecorded."""
        fields = dict(self.fields)
        fields.update(more)
        data = line(event, time.time(), fields)
        try:
            written = self._append(data)
        except OSError as error:
            raise Failure(INTERNAL, "log: %s" % reason(error)) from None
        if written != len(data):
            raise Failure(INTERNAL, "log: disk full")

    def _append(self, data: bytes) -> int:
        """One line; how many of its bytes are kept."""
        raise NotImplementedError


class File(Log):
    """A file that only root can write."""

    def __init__(self, path: str) -> None:
        super().__init__()
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            self._fd = os.open(path, flags, 0o640)
            found = os.fstat(self._fd)
        except OSError as error:
            raise Failure(INTERNAL, "log %s: %s" % (path, reason(error))) from None
        if found.st_uid != 0 or found.st_mode & 0o022 or not stat.S_ISREG(found.st_mode):
            raise Failure(INTERNAL, "log %s can be written by others" % path)

    def _append(self, data: bytes) -> int:
        return os.write(self._fd, data)  # one write: O_APPEND keeps concurrent lines whole


class Syslog(Log):
    """The node's log daemon, by a datagram for each event."""

    def __init__(self, facility: int, path: str = "/dev/log") -> None:
        import _socket  # the C half: `socket` costs 6 ms

        super().__init__()
        self._priority = facility | _NOTICE
        self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM)
        self._socket.settimeout(_SYSLOG_S)
        try:
            self._socket.connect(path)
        except OSError as error:
            raise Failure(INTERNAL, "log %s: %s" % (path, reason(error))) from None

    def _append(self, data: bytes) -> int:
        self._socket.send(b"<%d>glexec[%d]: %s" % (self._priority, os.getpid(), data[:-1]))
        return len(data)
