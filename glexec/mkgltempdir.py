"""mkgltempdir: make, or remove, a directory that belongs to the account that glexec maps to.

    mkgltempdir [-t MODE] [-m PARENTMODE] [DIRECTORY]      prints its path
    mkgltempdir -r [-f] PATH                               -f: with all that is in it; may come after PATH

Runs at the caller's uid. The code is that of the starter's sandboxes: the installation copies
`starter/places.py` (the caller's side: who made what, checked by device and inode, no link followed) and
`jobwrapper/` (the target's side, run by glexec) beside this package. It prints nothing but the path on
success, because callers take any other word for a failure.
"""

import json
import os
import stat
import sys

from glexec.codes import OWN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_USAGE = "usage: mkgltempdir [-h] [-r [-f] gltmp_dir] [-t targetdir-mode] [-m parentmode] [directory]"
_WRONG_USAGE, _FAILED = 100, 1
_TARGET_MODE, _PARENT_MODE = 0o700, 0o755
_DEADLINE_S = 300.0  # the site's decision, and the removal of a large tree
_LIMIT_FRAME_BYTES = 1 << 20
_LIMIT_RECORD_BYTES = 64 << 10
_END_OF_TAR = bytes(1024)
_UCRED_BYTES = 12  # struct ucred: pid, uid, gid


class Trouble(Exception):
    """It was not done: exit status and words."""

    def __init__(self, text: str, code: int = _FAILED) -> None:
        super().__init__(text)
        self.code = code


class Wanted:
    """The command line."""

    def __init__(self, arguments: "list[str]") -> None:
        import getopt

        try:
            options, operands = getopt.gnu_getopt(arguments, "hrft:m:")
        except getopt.GetoptError as error:
            raise Trouble("%s\n%s" % (error, _USAGE), _WRONG_USAGE) from None
        given = dict(options)
        self.help = "-h" in given
        self.remove, self.force = "-r" in given, "-f" in given
        self.target_mode = _mode(given.get("-t"), _TARGET_MODE)
        self.parent_mode = _mode(given.get("-m"), _PARENT_MODE)
        if self.help:
            return
        if len(operands) > 1 or (self.remove and not operands) or (self.force and not self.remove):
            raise Trouble(_USAGE, _WRONG_USAGE)
        if not self.parent_mode & stat.S_IXOTH or self.parent_mode & stat.S_IWOTH:
            raise Trouble("-m: others must be able to enter, and not to write", _WRONG_USAGE)
        self.place = operands[0] if operands else os.environ.get("TMPDIR") or "/tmp"


def _mode(text: "str | None", default: int) -> int:
    if text is None:
        return default
    if not 1 <= len(text) <= 4 or set(text) - set("01234567") or int(text, 8) > 0o1777:
        raise Trouble("%s is not a mode from 0 to 1777" % text[:20], _WRONG_USAGE)
    return int(text, 8)


def main(front: str, library: str) -> None:
    """Entry of the installed program; ends the process."""
    try:
        wanted = Wanted(sys.argv[1:])
        if wanted.help:
            print(_USAGE)
        elif wanted.remove:
            _remove(front, library, wanted.place, wanted.force)
        else:
            print(_make(front, library, wanted))
            sys.stdout.flush()
    except Trouble as trouble:
        sys.stderr.write("mkgltempdir: %s\n" % trouble)
        sys.exit(trouble.code)
    except OSError as error:
        sys.stderr.write("mkgltempdir: %s\n" % error)
        sys.exit(_FAILED)


def _shared(library: str) -> "Any":
    """The starter's places.py, as copied."""
    sys.path.insert(0, library)
    return __import__("places")


def _make(front: str, library: str, wanted: Wanted) -> str:
    from pathlib import Path

    places = _shared(library)
    base = os.path.realpath(wanted.place)
    _let_through(base)
    try:
        place = places.make_place(Path(base))
    except places.Unsafe as error:
        raise Trouble(str(error)) from None
    try:
        _make_inner(places, place, front, library, wanted.target_mode)
        for directory in (place.sticky, place.root):
            os.chmod(str(directory), wanted.parent_mode)
    except BaseException as error:  # whatever it was: no half of it stays
        try:
            places.remove_place(place)
        except places.Left as left:
            raise Trouble("%s; %s" % (error, left)) from None
        if isinstance(error, places.Unsafe):
            raise Trouble(str(error)) from None
        raise
    return str(place.path)


def _let_through(base: str) -> None:
    """Let the target pass: o+x (never o+r) on the caller's own directories, from the base upwards."""
    here = base
    while here != "/":
        found = os.lstat(here)
        if found.st_uid != os.geteuid():
            return
        if not found.st_mode & stat.S_IXOTH:
            os.chmod(here, stat.S_IMODE(found.st_mode) | stat.S_IXOTH)
        here = os.path.dirname(here)


def _make_inner(places: "Any", place: "Any", front: str, library: str, mode: int) -> None:
    far = Far(front, library, "stage-in")
    try:
        uid = far.hello()
        places.open_window(place)
        try:
            far.send({"parent": str(place.sticky), "name": place.token, "mode": mode})
            ready = far.receive().get("ready")
        finally:
            places.close_window(place)
        if not isinstance(ready, dict):
            raise Trouble("the target cannot make a directory in %s" % place.sticky)
        places.check_made(place, places.Made(ready.get("dev"), ready.get("ino")), uid)
        record = {"id": os.environ.get("GLEXEC_ID", ""), "uid": uid, "pid": os.getpid()}
        record.update(device=ready["dev"], inode=ready["ino"], isolated=uid != os.geteuid())
        places.write_record(place, record)
        far.socket.sendall(_END_OF_TAR)
        while far.receive().get("done") is not True:
            continue
    finally:
        far.end()


def _remove(front: str, library: str, path: str, force: bool) -> None:
    places = _shared(library)
    place, record = _found(places, os.path.abspath(path))
    sticky = os.open(str(place.sticky), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        try:
            os.rmdir(place.token, dir_fd=sticky)
        except FileNotFoundError:
            pass  # an earlier call came so far
        except OSError as error:
            if not force:
                raise Trouble("%s: %s; -f removes it with what is in it" % (path, error.strerror)) from None
            _empty(place, front, library, record)
            os.rmdir(place.token, dir_fd=sticky)
    finally:
        os.close(sticky)
    try:
        places.remove_place(place)
    except places.Left as left:
        raise Trouble(str(left)) from None


def _found(places: "Any", path: str) -> "tuple[Any, dict[str, Any]]":
    """The place around a path that we printed once, and its record; Trouble if it is something else."""
    from pathlib import Path

    inner = Path(path)
    root = inner.parent.parent
    if inner.parent.name != places.STICKY:
        raise Trouble("%s was not made by mkgltempdir" % path)
    fd = os.open(str(root), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        above = os.fstat(fd)
        with open(os.open(places.RECORD, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=fd), "rb") as file:
            owner = os.fstat(file.fileno()).st_uid
            record = json.loads(file.read(_LIMIT_RECORD_BYTES).decode("ascii"))
    except (OSError, ValueError):
        raise Trouble("%s was not made by mkgltempdir, or is gone" % path) from None
    finally:
        os.close(fd)
    if {owner, above.st_uid} != {os.geteuid()} or not isinstance(record, dict):
        raise Trouble("%s belongs to somebody else" % path)
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        found = None
    made = tuple(record.get(key) for key in ("device", "inode", "uid"))
    if found is not None and (found.st_dev, found.st_ino, found.st_uid) != made:
        raise Trouble("%s is not the directory that was made there" % path)
    return places.Place(inner, root, above.st_dev, above.st_ino), record


def _empty(place: "Any", front: str, library: str, record: "dict[str, Any]") -> None:
    """Remove what is in it, at the account that it belongs to. Never follows a link or leaves the file system."""
    far = Far(front, library, "stage-out")
    try:
        if far.hello() != record.get("uid"):
            raise Trouble(
                "%s belongs to uid %s, and this credential is mapped to another" % (place.path, record["uid"])
            )
        far.send({"path": str(place.path), "listed": []})
        while True:
            answer = far.receive()
            if "failed" in answer:
                raise Trouble("%s cannot be entered by its owner" % place.path)
            if answer.get("done") is True:
                break
        far.exactly(len(_END_OF_TAR))
        far.send({"word": "REMOVE"})
        left = far.receive().get("left")
        if left != 0:
            raise Trouble("%s: %s entries cannot be removed" % (place.path, left))
    finally:
        far.end()


class Far:
    """The target's side: jobwrapper behind glexec, and a socket to it."""

    def __init__(self, front: str, library: str, verb: str) -> None:
        import socket
        import subprocess

        self.socket, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(_DEADLINE_S)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        environment = dict(os.environ, GLEXEC_TARGET_PROXY="/dev/null")  # these calls need no copy of a proxy
        environment.pop("GLEXEC_CONTROL_FD", None)
        command = [front, sys.executable, "-IS", os.path.join(library, "jobwrapper"), verb]
        self.process = subprocess.Popen(command, stdin=far.fileno(), stdout=subprocess.DEVNULL, env=environment)
        far.close()

    def hello(self) -> int:
        """The uid at the other end, as the kernel tells it; Trouble with glexec's own code if there is none."""
        import struct

        data, ancillary, _, _ = self.socket.recvmsg(4, 64)
        if len(data) < 4 or not ancillary:
            code = self.process.wait()
            raise Trouble("glexec failed (exit status %d)" % code, code if code in OWN else _FAILED)
        uid = struct.unpack("3i", ancillary[0][2][:_UCRED_BYTES])[1]
        self._object(data)
        return int(uid)

    def send(self, value: "dict[str, Any]") -> None:
        body = json.dumps(value).encode("ascii")
        self.socket.sendall(len(body).to_bytes(4, "big") + body)

    def receive(self) -> "dict[str, Any]":
        return self._object(self.exactly(4))

    def _object(self, head: bytes) -> "dict[str, Any]":
        size = int.from_bytes(head, "big")
        if size > _LIMIT_FRAME_BYTES:
            raise Trouble("the target's side talks nonsense")
        try:
            value = json.loads(self.exactly(size).decode("ascii"))
        except (ValueError, RecursionError):
            raise Trouble("the target's side talks nonsense") from None
        if not isinstance(value, dict):
            raise Trouble("the target's side talks nonsense")
        return value

    def exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self.socket.recv(count - len(data))
            if not more:
                raise Trouble("the target's side is gone")
            data += more
        return data

    def end(self) -> None:
        """Hang up and wait; what it has to say it has said."""
        self.socket.close()
        self.process.wait()
