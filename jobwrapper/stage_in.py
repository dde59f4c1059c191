"""stage-in: make the sandbox, say ready, unpack what follows on the same socket, report what lies there.

The stream is the pilot's own (GNU tar: files and directories), names already checked there. An entry of kind X is
an order: to run a file transfer plugin, which is answered at once, or to note what lies there by now. If the stream
ends before its end mark the pilot has given up: then everything unpacked is removed again.
"""

import os
import stat

from jobwrapper.frames import Gone, Line, account_name, loads, to_bytes, to_text, trouble

# As typing.TYPE_CHECKING, which costs an import.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK = 512
BUFFER_BYTES = 1024 * 1024
# What a frame of the catalogue holds at most; names are up to 4096 bytes, up to 6 characters each in JSON.
NAMES_BYTES = 24 * 1024
OPEN_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def main() -> int:
    line = Line()
    try:
        line.hello(account_name())
        return _serve(line)
    except Gone:
        return 1


def _serve(line: Line) -> int:
    wanted = line.receive()
    os.umask(0o022)
    try:
        sandbox = make_directory(to_bytes(wanted["parent"]), to_bytes(wanted["name"]), wanted["mode"])
    except OSError as error:
        line.send({"failed": trouble("mkdir", error)})
        return 1
    found = os.fstat(sandbox)
    line.send({"ready": {"dev": found.st_dev, "ino": found.st_ino, "uid": found.st_uid}})
    os.fchdir(sandbox)
    unpacker = Unpacker(Source(line))
    try:
        unpacker.run()
        if unpacker.failure is None:
            for frame in catalogue(sandbox):
                line.send(frame)
            line.send({"done": True})
            return 0
    except Gone:
        pass
    _clear(sandbox)
    return 1


def make_directory(parent: bytes, name: bytes, mode: int) -> int:
    """A new directory, never one that exists; returns its descriptor."""
    above = os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.mkdir(name, 0o700, dir_fd=above)
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
    finally:
        os.close(above)
    if os.fstat(fd).st_uid != os.geteuid():
        raise PermissionError(1, "the new directory is somebody else's")
    os.fchmod(fd, mode)
    return fd


def catalogue(sandbox: int) -> "Iterator[dict[str, object]]":
    """The top directory, in frames: [name, kind, mode, size, mtime_ns] for each entry."""
    rows = []
    size = 0
    for name in os.listdir(sandbox):
        found = os.lstat(name)  # the sandbox is the working directory
        rows.append([to_text(os.fsencode(name)), *row_of(found)])
        size += len(name) + 64
        if size > NAMES_BYTES:
            yield {"entries": rows}
            rows, size = [], 0
    if rows:
        yield {"entries": rows}


def row_of(found: os.stat_result) -> "tuple":  # type: ignore[type-arg]
    return kind_of(found.st_mode), stat.S_IMODE(found.st_mode), found.st_size, found.st_mtime_ns


def kind_of(mode: int) -> str:
    if stat.S_ISREG(mode):
        return "file"
    return "dir" if stat.S_ISDIR(mode) else "other"


def _clear(sandbox: int) -> None:
    from jobwrapper.clear import clear

    clear(sandbox)


class Source:
    """Bytes from the line, through one buffer."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self.buffer = bytearray(BUFFER_BYTES)
        self.view = memoryview(self.buffer)
        self.start = self.stop = 0

    def some(self, limit: int) -> memoryview:
        """At least one and at most `limit` bytes; valid until the next call."""
        if self.start == self.stop:
            self.start = 0
            self.stop = self.line.receive_into(self.view)
            if not self.stop:
                raise Gone()
        end = min(self.stop, self.start + limit)
        piece = self.view[self.start : end]
        self.start = end
        return piece

    def block(self) -> bytes:
        """One header block."""
        piece = bytes(self.some(BLOCK))
        while len(piece) < BLOCK:
            piece += bytes(self.some(BLOCK - len(piece)))
        return piece

    def skip(self, count: int) -> None:
        while count:
            count -= len(self.some(count))


class Unpacker:
    """Writes a tar stream below the working directory. After the first failure it only reads on, to the
    end."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.failure = None  # type: dict[str, object] | None

    def run(self) -> None:
        long_name = b""
        while True:
            header = self.source.block()
            if header == bytes(BLOCK):
                return
            size = number(header[124:136])
            kind = header[156:157]
            if kind == b"L":
                long_name = self._text(size)
                continue
            name, long_name = long_name or header[:100].split(b"\0", 1)[0], b""
            mode = number(header[100:108])
            if kind == b"X":
                self._order(size)
            elif kind == b"5":
                self._directory(name, mode)
            else:
                self._file(name, mode, size)

    def _text(self, size: int) -> bytes:
        text = b""
        while len(text) < size:
            text += bytes(self.source.some(size - len(text)))
        self.source.skip(-size % BLOCK)
        return text.rstrip(b"\0")

    def _order(self, size: int) -> None:
        order = loads(self._text(size).decode("ascii"))
        if self.failure is not None:
            return
        if "manifest" in order:
            from jobwrapper import manifest

            manifest.record(to_bytes(order["manifest"]), b"in")
            return
        from jobwrapper import plugins

        self.source.line.send(plugins.run(self.source.line, order))

    def _directory(self, name: bytes, mode: int) -> None:
        if self.failure is None:
            try:
                os.makedirs(name, exist_ok=True)
                os.chmod(name, mode | 0o700)
            except OSError as error:
                self._fail("mkdir", error, name)

    def _file(self, name: bytes, mode: int, size: int) -> None:
        fd = self._open(name, mode) if self.failure is None else -1
        left = size
        try:
            while left:
                piece = self.source.some(left)
                left -= len(piece)
                if fd >= 0:
                    fd = self._write(fd, piece, name)
        finally:
            if fd >= 0:
                os.close(fd)
        self.source.skip(-size % BLOCK)

    def _open(self, name: bytes, mode: int) -> int:
        for parents in (False, True):
            try:
                if parents:
                    os.makedirs(os.path.dirname(name), exist_ok=True)
                fd = os.open(name, OPEN_FLAGS, mode | 0o200)
                if not mode & 0o200:
                    os.fchmod(fd, mode & ~0o022)
                return fd
            except FileNotFoundError as error:
                if parents:
                    self._fail("open", error, name)
            except OSError as error:
                self._fail("open", error, name)
                break
        return -1

    def _write(self, fd: int, piece: memoryview, name: bytes) -> int:
        try:
            while piece:
                piece = piece[os.write(fd, piece) :]
            return fd
        except OSError as error:
            os.close(fd)
            self._fail("write", error, name)
            return -1

    def _fail(self, step: str, error: OSError, name: bytes) -> None:
        self.failure = trouble(step, error, name)
        self.source.line.send({"failed": self.failure})


def number(field: bytes) -> int:
    """A header's number: octal, or base 256 when the first bit is set."""
    if field[0] & 0x80:
        return int.from_bytes(field[1:], "big")
    return int(field.split(b"\0", 1)[0].strip() or b"0", 8)
