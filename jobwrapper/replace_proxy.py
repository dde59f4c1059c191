"""replace-proxy: put a renewed proxy in the place of the job's old one, in one step.

Frame in: {"path": sandbox, "name": file in it, "pem": content}. Frame out: {"done": true} or {"failed": ...}. Whoever
reads the file finds the old one or the new one, whole. A link in its place is replaced, not followed.
"""

import os

from jobwrapper.frames import Gone, Line, to_bytes, trouble

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# What HTCondor's starter calls it; one that was left is removed, and never sent back as output.
SUFFIX = b".tmp"


def main() -> int:
    line = Line()
    try:
        line.hello()
        wanted = line.receive()
        try:
            replace(to_bytes(wanted["path"]), to_bytes(wanted["name"]), wanted["pem"].encode("ascii"))
        except OSError as error:
            line.send({"failed": trouble("replace", error, to_bytes(wanted["name"]))})
            return 1
        line.send({"done": True})
        return 0
    except Gone:
        return 1


def replace(sandbox: bytes, name: bytes, content: bytes) -> None:
    """The file `name` of the directory, 0600. OSError: the old one is still there."""
    directory = os.open(sandbox, _DIRECTORY)
    try:
        if os.fstat(directory).st_uid != os.geteuid():
            raise PermissionError(1, "the sandbox is somebody else's")
        try:  # noqa: SIM105 - contextlib costs an import
            os.unlink(name + SUFFIX, dir_fd=directory)
        except FileNotFoundError:
            pass
        fd = os.open(name + SUFFIX, _NEW, 0o600, dir_fd=directory)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(content)
            os.rename(name + SUFFIX, name, src_dir_fd=directory, dst_dir_fd=directory)
        except OSError:
            os.unlink(name + SUFFIX, dir_fd=directory)
            raise
    finally:
        os.close(directory)
