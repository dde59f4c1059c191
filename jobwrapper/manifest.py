"""What a job may want to be told of its sandbox (manifest, manifest_dir): the files there before it ran and after, and
its environment. Loaded by the verbs that write it, for such jobs only; no job fails because it cannot be written.

All of it is the job's own: names and variables that it knows, in a directory of its sandbox.
"""

import os

# As typing.TYPE_CHECKING, which costs an import.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# A person reads these lists; of a job that has made more files the rest is left out, and the last line says so.
MOST_NAMES = 100 * 1000
DEPTH = 64
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEEDS_QUOTES = b" \t\n\r'"


def record(directory: bytes, name: bytes) -> None:
    """All in the working directory that is no directory, with its path, a line each."""
    write(directory, name, _lines())


def write(directory: bytes, name: bytes, lines: "Iterable[bytes]") -> None:
    """A file of the directory, which is made if it is not there; nothing where a link or a pipe is in its place."""
    try:
        try:  # noqa: SIM105 - contextlib costs an import
            os.mkdir(directory, 0o700)
        except FileExistsError:
            pass
        above = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fd = os.open(name, _FLAGS, 0o644, dir_fd=above)
        finally:
            os.close(above)
        with open(fd, "wb") as file:
            for line in lines:
                file.write(line + b"\n")
    except OSError:
        return


def environment(variables: "dict[bytes, bytes]") -> bytes:
    """On one line, as in a submit description."""
    words = (name + b"=" + value for name, value in variables.items())
    return b" ".join(b"'" + word.replace(b"'", b"''") + b"'" if _quoted(word) else word for word in words)


def _quoted(word: bytes) -> bool:
    return any(byte in _NEEDS_QUOTES for byte in word)


def _lines() -> "Iterator[bytes]":
    count = 0
    waiting = [(b".", 1)]
    while waiting:
        above, depth = waiting.pop()
        try:
            found = sorted(os.scandir(above), key=lambda entry: entry.name)
        except OSError:
            continue
        for entry in found:
            path = above + b"/" + entry.name
            if entry.is_dir(follow_symlinks=False):
                if depth < DEPTH:
                    waiting.append((path, depth + 1))
                continue
            if count == MOST_NAMES:
                yield b"... and more"
                return
            count += 1
            yield path.replace(b"\n", b"?")
