"""The pool's directories, keys and tokens: made at the first start, checked at every one.

Everything is 0700 and 0600 and of the pool's account; what is not is refused in words, not repaired.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time
from pathlib import Path

from attrs import frozen

from cedar import tokens

POOL_KEY = "POOL"
# A startd advertises; its other commands are on sessions of its own claim ids. READ is for its own checks.
STARTD_SCOPE = ("ADVERTISE_STARTD", "READ")


class BadPlace(Exception):
    """A directory or file cannot be used as it is; the text says which, why and what to do."""


@frozen
class Places:
    root: Path
    spool: Path

    @property
    def keys(self) -> Path:
        return self.root / "keys.d"

    @property
    def tokens(self) -> Path:
        return self.root / "tokens.d"

    @property
    def startd_token(self) -> Path:
        return self.tokens / "startd.token"

    @property
    def queue(self) -> Path:
        return self.root / "queue.sqlite"

    @property
    def address_file(self) -> Path:
        return self.root / "collector_address"


def prepare(places: Places, socket: Path, *, trust_domain: str) -> int:
    """Directories, signing key, the startds' token. Returns a lock's descriptor: the pool holds it while it lives.

    Raises BadPlace, OSError.
    """
    _root_directory(places.root, entered_by_others=socket.parent == places.root)
    if socket.parent != places.root:
        _socket_directory(socket.parent)
    lock = _lock(places.root)
    private_directory(places.spool, tighten=True)
    for path in (places.keys, places.tokens):
        private_directory(path)
    key = places.keys / POOL_KEY
    if not key.exists():
        write_private(key, tokens.new_signing_key())
        places.startd_token.unlink(missing_ok=True)  # one that an older key signed
    check_private(key)
    if not places.startd_token.exists():
        made = tokens.mint(
            key.read_bytes(),
            POOL_KEY,
            f"condor@{trust_domain}",
            trust_domain,
            scope=STARTD_SCOPE,
            now_unix_s=time.time(),
        )
        write_private(places.startd_token, made.encode() + b"\n")
    check_private(places.startd_token)
    return lock


def private_directory(path: Path, *, tighten: bool = False) -> None:
    """Ours, and nobody else may look into it. An open one that holds no keys yet may be tightened."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = path.stat()
    _check_owner(path, status)
    if status.st_mode & 0o077:
        if not tighten:
            raise BadPlace(f"{path} is open to other accounts (mode {stat.S_IMODE(status.st_mode):o}); chmod it to 700")
        path.chmod(0o700)


def _root_directory(path: Path, *, entered_by_others: bool) -> None:
    """What holds the rest: nobody else may write there; with the users' socket in it they must pass through."""
    path.mkdir(mode=0o711 if entered_by_others else 0o700, parents=True, exist_ok=True)
    status = path.stat()
    _check_owner(path, status)
    if status.st_mode & 0o022:
        raise BadPlace(
            f"{path} can be written by other accounts (mode {stat.S_IMODE(status.st_mode):o}); chmod it to 711"
        )
    if entered_by_others and not status.st_mode & 0o001:
        path.chmod(stat.S_IMODE(status.st_mode) | 0o011)


def _check_owner(path: Path, status: os.stat_result) -> None:
    if status.st_uid != os.geteuid():
        raise BadPlace(
            f"{path} belongs to uid {status.st_uid}, the pool runs as uid {os.geteuid()}; use another directory"
        )


def _socket_directory(path: Path) -> None:
    path.mkdir(mode=0o711, parents=True, exist_ok=True)
    status = path.stat()
    if status.st_uid not in (0, os.geteuid()) or (status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX):
        raise BadPlace(
            f"{path} is not safe for the users' socket: others could replace it there; set SAILPLANE_POOL_SOCKET"
        )


def check_private(path: Path) -> None:
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise BadPlace(f"{path} must be a plain file of the pool's account with mode 0600; it holds a secret")


def write_private(path: Path, data: bytes) -> None:
    """A new file, 0600, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(fd)
    os.replace(temporary, path)


def write_public(path: Path, text: str) -> None:
    """A file that others may read, whole or not at all."""
    write_private(path, text.encode())
    path.chmod(0o644)


def _lock(root: Path) -> int:
    fd = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise BadPlace(
            f"another pool is running in {root}; stop it, or set SAILPLANE_POOL_DIR to another directory"
        ) from None
    return fd
