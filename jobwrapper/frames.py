"""The far side's end of the conversation: descriptors, the hello, frames.

Frame: u32 length (big endian), then that many bytes of ASCII JSON. File names and everything else that is
bytes to the kernel travel as UTF-8 with surrogateescape, whatever this machine's locale is.
"""

import os
import sys
from _socket import AF_UNIX, SHUT_RDWR, SOCK_STREAM, socket

PROTOCOL = 1
# The pilot is trusted with more than this; a length beyond it means that we do not talk to the pilot.
FRAME_LIMIT_BYTES = 64 * 1024 * 1024


def _python_json() -> "tuple":  # type: ignore[type-arg]
    import json

    def decode(text: str, _start: int) -> "tuple":  # type: ignore[type-arg]
        return json.loads(text), len(text)

    return json.dumps, decode


try:
    from _json import encode_basestring_ascii as _quote
    from _json import make_scanner

    class _Rules:
        """What the C scanner wants to know of a decoder."""

        strict = True
        object_hook = None
        object_pairs_hook = None
        parse_float = float
        parse_int = int
        parse_constant = float

    _scan = make_scanner(_Rules())  # type: ignore[arg-type]
except ImportError:
    _quote, _scan = _python_json()


def dumps(value: object) -> str:
    """JSON for what we send: dictionaries, lists, strings, integers, booleans, None."""
    if isinstance(value, str):
        return _quote(value)
    if value is None or value is True or value is False:
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int):
        return str(value)
    if isinstance(value, dict):
        return "{" + ",".join([_quote(key) + ":" + dumps(item) for key, item in value.items()]) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join([dumps(item) for item in value]) + "]"
    raise TypeError(type(value).__name__)


def loads(text: str) -> "dict":  # type: ignore[type-arg]
    value, end = _scan(text, 0)
    if end != len(text) or not isinstance(value, dict):
        raise ValueError("not one JSON object")
    return value


def to_bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def to_text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


class Gone(Exception):
    """The pilot hung up."""


class Line:
    """The socket on descriptor 0, moved out of the way of the standard descriptors."""

    def __init__(self) -> None:
        _fill_standard_descriptors()
        # A switch that knows no control socket lets ours through: its end of file is what the pilot waits
        # for.
        close_others()
        fd = os.dup(0)  # close-on-exec
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.close(null)
        self.socket = socket(AF_UNIX, SOCK_STREAM, 0, fd)

    def hello(self, name: str = "") -> None:
        """Say that we run. The kernel adds who we are; the start tick is for a host that hides us from the pilot."""
        version = list(sys.version_info[:3])
        self.send({"hello": PROTOCOL, "name": name, "python": version, "ticks": own_start_ticks()})

    def send(self, value: "dict") -> None:  # type: ignore[type-arg]
        body = dumps(value).encode("ascii")
        self.send_bytes(len(body).to_bytes(4, "big") + body)

    def send_bytes(self, data: "bytes | bytearray | memoryview") -> None:
        try:
            self.socket.sendall(data)
        except OSError:
            raise Gone() from None

    def receive(self) -> "dict":  # type: ignore[type-arg]
        length = int.from_bytes(self.exactly(4), "big")
        if length > FRAME_LIMIT_BYTES:
            raise Gone()
        return loads(self.exactly(length).decode("ascii"))

    def exactly(self, count: int) -> bytearray:
        data = bytearray(count)
        view = memoryview(data)
        while view:
            got = self.receive_into(view)
            if not got:
                raise Gone()
            view = view[got:]
        return data

    def receive_into(self, view: memoryview) -> int:
        """At least one byte into `view`; 0 at end of file."""
        try:
            return self.socket.recv_into(view)
        except OSError:
            return 0

    def close(self) -> None:
        try:  # noqa: SIM105 - contextlib costs an import
            self.socket.shutdown(SHUT_RDWR)
        except OSError:
            pass
        self.socket.close()


def own_start_ticks() -> int:
    """With the pid, our name; 0 where there is no /proc."""
    try:
        fd = os.open("/proc/self/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        return int(os.read(fd, 4096).rpartition(b")")[2].split(None, 20)[19])
    finally:
        os.close(fd)


def account_name() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def trouble(step: str, error: OSError, name: "bytes | None" = None) -> "dict":  # type: ignore[type-arg]
    """A system call's refusal, for the wire."""
    where = {} if name is None else {"name": to_text(name)}
    return dict(step=step, errno=error.errno or 0, text=error.strerror or str(error), **where)


def close_others(*kept: int) -> None:
    """Close everything but the standard descriptors and `kept`."""
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        if fd > 2 and fd not in kept:
            try:  # noqa: SIM105 - contextlib costs an import
                os.close(fd)
            except OSError:  # the listing's own
                pass


def _fill_standard_descriptors() -> None:
    """A caller may have started us with 1 or 2 closed: what we open next must not land there."""
    while True:
        fd = os.open(os.devnull, os.O_RDWR)
        if fd > 2:
            os.close(fd)
            return
        os.set_inheritable(fd, True)
