"""stage-out: say what is there, send it as a tar stream, and do as told afterwards.

Frames: {"entries": [[name, kind, mode, size, mtime_ns], ...]} as often as needed, then {"missing": [[name,
why], ...]} and {"left_out": [[name, why], ...]} as often as needed, then {"done": true}; then a GNU tar
stream of exactly these entries in this order. Then a word is awaited: AGAIN (all of it once more), REMOVE
(empty the sandbox, report), end of file = KEEP.

Names in `entries` are those at the destination: what is asked for goes there by its last component, a
directory with all that is in it, and `dir/` by its contents; where paths are preserved, by its whole name
below the directories above it. Left out is what lies in such a directory and is neither file nor directory.
"""

import errno
import os
import stat

from jobwrapper.frames import Gone, Line, to_bytes, to_text, trouble
from jobwrapper.stage_in import BLOCK, NAMES_BYTES, row_of

# As typing.TYPE_CHECKING, which costs an import.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

BUFFER_BYTES = 1024 * 1024
# Deeper than anything that is meant.
DEPTH = 64
# The owner is told of these; more say nothing more.
LEFT_OUT = 20
# Octal sizes end here (11 digits).
OCTAL_LIMIT = 8**11


class Item:
    """One entry: where it comes from, and what it is."""

    __slots__ = ("mode", "row", "size", "source")

    def __init__(self, source: bytes, found: os.stat_result) -> None:
        self.source = source
        self.row = row_of(found)
        self.mode = stat.S_IMODE(found.st_mode) & 0o777
        self.size = found.st_size if stat.S_ISREG(found.st_mode) else 0

    @property
    def plain(self) -> bool:
        return bool(self.row[0] == "file")


class Selection:
    """What is asked for, as found: destination name -> item, in the order of sending."""

    def __init__(self) -> None:
        self.items = {}  # type: dict[bytes, Item]
        self.missing = []  # type: list[tuple[bytes, str]]
        self.left_out = []  # type: list[tuple[bytes, str]]

    def add(self, name: bytes, source: bytes, found: os.stat_result) -> bool:
        """Take one entry; false when it cannot be taken."""
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
            self.missing.append((source, "it is " + _kind(found.st_mode)))
            return False
        if not os.access(source, os.R_OK):
            self.missing.append((source, "Permission denied"))
            return False
        self.items.pop(name, None)  # of two with one destination the later one counts
        self.items[name] = Item(source, found)
        return True


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
        fd = _enter(to_bytes(wanted["path"]))
    except OSError as error:
        line.send({"failed": trouble("enter", error)})
        return 1
    if wanted.get("manifest"):
        from jobwrapper import manifest

        manifest.record(to_bytes(wanted["manifest"]), b"out")
    if wanted.get("ask"):
        _upload(line, wanted)
    while True:
        selection = select(wanted)
        _send_manifest(line, selection)
        _send_tar(line, selection)
        told = line.receive()
        word = told.get("word")
        if word == "REMOVE":
            return _remove(line, fd, told.get("elsewhere"))
        if word != "AGAIN":
            return 1


def _upload(line: Line, wanted: "dict") -> None:  # type: ignore[type-arg]
    """Tell what would be sent, by its names here; run the plugins that the pilot then wants; leave out what they
    have sent."""
    from jobwrapper import plugins

    selection = select(wanted)
    _send_list(line, "entries", ([to_text(item.source), *item.row] for item in selection.items.values()))
    line.send({"done": True})
    order = line.receive()
    for plugin in order["plugins"]:
        line.send(plugins.run(line, plugin))
    wanted["except"] = {to_bytes(name) for name in order["except"]}


def _enter(path: bytes) -> int:
    """The sandbox as working directory and descriptor, whatever rights the job has left itself."""
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        if found.st_mode & 0o700 != 0o700 and found.st_uid == os.geteuid():
            os.chmod("/proc/self/fd/%d" % fd, 0o700)
        opened = os.open("/proc/self/fd/%d" % fd, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        os.close(fd)
    os.fchdir(opened)
    return opened


def _remove(line: Line, fd: int, elsewhere: "dict | None") -> int:  # type: ignore[type-arg]
    from jobwrapper.clear import clear

    left = clear(fd)
    answer = {"left": left.count, "named": _texts(left.named)}  # type: dict[str, object]
    if elsewhere is not None:
        answer["elsewhere"] = _sweep(elsewhere)
    line.send(answer)
    return 1 if left.count else 0


def _sweep(elsewhere: "dict") -> "dict[str, object]":  # type: ignore[type-arg]
    from jobwrapper.elsewhere import sweep

    try:
        found = sweep(elsewhere["since_ns"], elsewhere["alone"])
    except Exception as error:  # whatever it is: the sandbox is empty, and the job's end must not hang on this
        return {"removed": 0, "left": 1, "named": [["", "%s: %s" % (type(error).__name__, error)]]}
    return {"removed": found.removed, "left": found.count, "named": _texts(found.named)}


def _texts(named: "list[tuple[bytes, str]]") -> "list[list[str]]":
    return [[to_text(name), why] for name, why in named]


def select(wanted: "dict") -> Selection:  # type: ignore[type-arg]
    """Listed names, or else what is new or changed in the top directory."""
    selection = Selection()
    if "listed" in wanted:
        for name in wanted["listed"]:
            _listed(selection, to_bytes(name), bool(wanted.get("preserve")))
    else:
        _changed(selection, {to_bytes(row[0]): row for row in wanted["changed"]})
    manifest = to_bytes(wanted.get("manifest", ""))
    if manifest and os.path.isdir(manifest) and not os.path.islink(manifest):
        _listed(selection, manifest, False)
    for name in [name for name, item in selection.items.items() if item.source in wanted.get("except", ())]:
        del selection.items[name]
    return selection


def _changed(selection: Selection, before: "dict[bytes, list[object]]") -> None:
    """Plain files only, directories and links never: the rule of HTCondor's file transfer."""
    for text in sorted(os.listdir(".")):
        name = os.fsencode(text)
        found = os.lstat(name)
        if stat.S_ISREG(found.st_mode):
            old = before.get(name)
            if old is None or old[3] != found.st_size or old[4] != found.st_mtime_ns:
                selection.add(name, name, found)


def _kind(mode: int) -> str:
    for test, word in _KINDS:
        if test(mode):
            return word
    return "neither a file nor a directory"


_KINDS = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISLNK, "a link"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def _listed(selection: Selection, asked: bytes, preserve: bool) -> None:
    """A file, a directory with its contents, or (`dir/`) the contents alone. Links to files are followed, as the
    job's user; one to a directory only where the slash asks for its contents (so does stock)."""
    path = os.path.normpath(asked) if asked else b""
    if not asked or asked.startswith(b"/") or path.split(b"/", 1)[0] == b"..":
        selection.missing.append((asked, "not inside the sandbox"))
        return
    try:
        found = os.stat(path)
        inside = asked.endswith(b"/") or path == b"."
        if inside and not stat.S_ISDIR(found.st_mode):
            raise NotADirectoryError(20, "Not a directory")
        if stat.S_ISDIR(found.st_mode) and not inside and os.path.islink(path):
            selection.missing.append((asked, "it is a link to a directory; end its name with a slash"))
            return
        if preserve and path != b".":
            _parents(selection, path)
            inside, name = False, path
        else:
            name = b"" if inside else os.path.basename(path)
        if (inside or selection.add(name, path, found)) and stat.S_ISDIR(found.st_mode):
            _descend(selection, name, path)
    except OSError as error:
        selection.missing.append((asked, error.strerror or str(error)))


def _parents(selection: Selection, path: bytes) -> None:
    """The directories above something that keeps its path, from the top, each once."""
    parts = path.split(b"/")
    for count in range(1, len(parts)):
        above = b"/".join(parts[:count])
        if above not in selection.items:
            selection.add(above, above, os.stat(above))


def _descend(selection: Selection, name: bytes, source: bytes) -> None:
    """All below a directory. Inside, links to directories are not followed: they could lead round in
    circles."""
    waiting = [(name, source, 1)]
    while waiting:
        name, source, depth = waiting.pop()
        try:
            inner_names = sorted(os.listdir(source))
        except OSError as error:
            selection.missing.append((source, error.strerror or str(error)))
            continue
        for inner in inner_names:
            path = os.path.join(source, inner)
            target = os.path.join(name, inner) if name else inner
            if _take(selection, target, path):
                if depth < DEPTH:
                    waiting.append((target, path, depth + 1))
                else:
                    selection.missing.append((path, "too many directories in one another"))


def _take(selection: Selection, target: bytes, path: bytes) -> bool:
    """Add one entry; true when it is a directory to descend into."""
    try:
        found = os.lstat(path)
        if stat.S_ISLNK(found.st_mode):
            found = os.stat(path)
            if stat.S_ISDIR(found.st_mode):
                selection.left_out.append((path, "a link to a directory"))
                return False
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
            selection.left_out.append((path, _kind(found.st_mode)))
            return False
        return selection.add(target, path, found) and stat.S_ISDIR(found.st_mode)
    except OSError as error:
        selection.missing.append((path, error.strerror or str(error)))
        return False


def _send_manifest(line: Line, selection: Selection) -> None:
    rows = ([to_text(name), *item.row] for name, item in selection.items.items())
    _send_list(line, "entries", rows)
    _send_list(line, "missing", ([to_text(name), why] for name, why in selection.missing))
    _send_list(line, "left_out", ([to_text(name), why] for name, why in selection.left_out[:LEFT_OUT]))
    line.send({"done": True})


def _send_list(line: Line, key: str, rows: "Iterator[list[object]]") -> None:
    batch = []  # type: list[list[object]]
    size = 0
    for row in rows:
        batch.append(row)
        size += len(str(row[0])) + 64
        if size > NAMES_BYTES:
            line.send({key: batch})
            batch, size = [], 0
    if batch:
        line.send({key: batch})


def _send_tar(line: Line, selection: Selection) -> None:
    out = Out(line)
    for name, item in selection.items.items():
        if item.plain:
            _send_file(out, name, item)
        else:
            out.add(header(name, item.mode, 0, b"5"))
    out.add(bytes(2 * BLOCK))
    out.flush()


def _send_file(out: "Out", name: bytes, item: Item) -> None:
    """One file, exactly as long as announced: what is not that long any more ends the call."""
    fd = os.open(item.source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        out.add(header(name, item.mode, item.size, b"0"))
        left = item.size
        while left:
            got = out.read(fd, left) if left < BUFFER_BYTES else out.pass_on(fd, item.size - left, left)
            if not got:
                raise OSError(5, "a file became shorter while it was sent: " + to_text(item.source))
            left -= got
        out.add(bytes(-item.size % BLOCK))
    finally:
        os.close(fd)


class Out:
    """One buffer between many small files and the line."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self.buffer = memoryview(bytearray(BUFFER_BYTES))
        self.used = 0

    def add(self, data: bytes) -> None:
        if self.used + len(data) > BUFFER_BYTES:
            self.flush()
        self.buffer[self.used : self.used + len(data)] = data
        self.used += len(data)

    def read(self, fd: int, limit: int) -> int:
        if self.used + BLOCK > BUFFER_BYTES:
            self.flush()
        got = os.readv(fd, [self.buffer[self.used : self.used + limit]])
        self.used += got
        return got

    def pass_on(self, fd: int, offset: int, limit: int) -> int:
        """A large piece from file to line, which the kernel does without copying it to us; 0 at end of file."""
        self.flush()
        try:
            got = os.sendfile(self.line.socket.fileno(), fd, offset, limit)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOSYS):
                raise
            got = self.read(fd, limit)  # a file system that cannot
        else:
            os.lseek(fd, offset + got, os.SEEK_SET)
        return got

    def flush(self) -> None:
        self.line.send_bytes(self.buffer[: self.used])
        self.used = 0


def header(name: bytes, mode: int, size: int, kind: bytes) -> bytes:
    """The header of one entry, in GNU's dialect: a name over 99 bytes goes before it as an entry of its
    own."""
    before = b""
    if len(name) > 99:
        text = name + b"\0"
        before = _header(b"././@LongLink", 0o644, len(text), b"L") + text + bytes(-len(text) % BLOCK)
        name = name[:99]
    return before + _header(name, mode, size, kind)


def _header(name: bytes, mode: int, size: int, kind: bytes) -> bytes:
    length = b"%011o\0" % size if size < OCTAL_LIMIT else b"\x80" + size.to_bytes(11, "big")
    head = b"%s%07o\0%07o\0%07o\0%s%011o\0" % (name.ljust(100, b"\0"), mode, 0, 0, length, 0)
    tail = b"%s%s%s" % (kind, bytes(100), b"ustar  \0")
    total = sum(head) + sum(tail) + 8 * 32
    return (head + b"%06o\0 " % total + tail).ljust(BLOCK, b"\0")
