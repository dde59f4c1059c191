"""The caller's and the target's files: reading a credential, leaving a copy of a proxy.

Runs with the identity of the account whose files they are (`identity.Borrowed`), and never
follows a link that somebody else than root made.
"""

import errno
import os
import stat

from glexec.codes import CLIENT, Failure, reason
from glexec.conf import DISABLED, FLOCK
from glexec.identity import Account

# The largest chains with several attribute certificates are below 100 KiB.
_LIMIT_BYTES = 256 << 10
_PATH = os.O_PATH | os.O_CLOEXEC
_MAX_TRIES = 8
_LOCK_S = 5.0  # who holds the lock longer does not renew a proxy
_LOCK_LOOK_S = 0.02


def _open_directory(path: str) -> int:
    """Descriptor of the directory part of an absolute path, step by step without links."""
    here = os.open("/", _PATH | os.O_DIRECTORY)
    for part in path.split("/")[1:-1]:
        if part in ("", "."):
            continue
        following = os.open(part, _PATH | os.O_NOFOLLOW, dir_fd=here)
        found = os.fstat(following)
        if stat.S_ISLNK(found.st_mode) and found.st_uid == 0:  # the system's own layout
            os.close(following)
            following = os.open(part, _PATH, dir_fd=here)
            found = os.fstat(following)
        os.close(here)
        here = following
        if not stat.S_ISDIR(found.st_mode):
            os.close(here)
            raise OSError(errno.ENOTDIR, "not a directory")
    return here


def read_credential(path: str, owner: int, variable: str, lock: str = DISABLED) -> bytes:
    """The bytes of a credential file of the caller; Failure(201) says what is wrong with it.

    `lock`: how whoever renews the file in place keeps readers away (conf.FLOCK, FCNTL, DISABLED).
    """
    if not path.startswith("/") or path.endswith("/") or "\0" in path:
        raise Failure(CLIENT, "%s is not the absolute path of a file" % variable)
    try:
        directory = _open_directory(path)
        try:
            # O_NONBLOCK: a FIFO in the file's place must not hold us up.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            file = os.open(os.path.basename(path), flags, dir_fd=directory)
        finally:
            os.close(directory)
    except OSError as error:
        text = "is a symbolic link" if error.errno == errno.ELOOP else reason(error)
        raise Failure(CLIENT, "%s: %s" % (variable, text)) from None
    try:
        _check(os.fstat(file), owner, variable)
        _lock(file, lock, variable, shared=True)
        data = _read_unchanged(file, variable)
    except OSError as error:
        raise Failure(CLIENT, "%s: %s" % (variable, reason(error))) from None
    finally:
        os.close(file)
    if not data or len(data) > _LIMIT_BYTES:
        raise Failure(CLIENT, "%s: %s" % (variable, "is too large" if data else "is empty"))
    return data


def _lock(file: int, how: str, variable: str, *, shared: bool) -> None:
    """Wait a little for the lock, which closing the file gives back."""
    if how == DISABLED:
        return
    import fcntl
    import time

    take = fcntl.flock if how == FLOCK else fcntl.lockf
    until_s = time.monotonic() + _LOCK_S
    while True:
        try:
            take(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP):
                return  # a file system without locks: nobody can hold one
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
        if time.monotonic() > until_s:
            raise Failure(CLIENT, "%s: somebody holds a lock on it" % variable)
        time.sleep(_LOCK_LOOK_S)


def _read_unchanged(file: int, variable: str) -> bytes:
    """What the file holds; half of an old and half of a new credential is none."""
    before = os.fstat(file)
    data = _read(file)
    after = os.fstat(file)
    if (before.st_mtime_ns, before.st_ctime_ns, before.st_size) != (
        after.st_mtime_ns,
        after.st_ctime_ns,
        after.st_size,
    ):
        raise Failure(CLIENT, "%s: changed while it was read; replace it by a rename" % variable)
    return data


def _read(file: int) -> bytes:
    """What the file holds, one byte more than allowed at most."""
    data = b""
    while len(data) <= _LIMIT_BYTES:
        more = os.read(file, _LIMIT_BYTES + 1 - len(data))
        if not more:
            break
        data += more
    return data


def _check(found: os.stat_result, owner: int, variable: str) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise Failure(CLIENT, "%s: is not a regular file" % variable)
    if found.st_uid != owner:
        raise Failure(CLIENT, "%s: does not belong to the caller" % variable)
    if found.st_mode & 0o7077:
        raise Failure(CLIENT, "%s: group or others have access (mode must be 0600)" % variable)


def write_target(path: str, pem: bytes, account: Account, lock: str = DISABLED) -> None:
    """Put a copy of the proxy at `path`, 0600, atomically; Failure(201) if it must not be.

    Another account's file is never replaced, and the directory must be the target's or root's.
    """
    name = os.path.basename(path)
    if not path.startswith("/") or not name or "\0" in path:
        raise Failure(CLIENT, "GLEXEC_TARGET_PROXY is not the absolute path of a file")
    try:
        directory = _open_directory(path)
        try:
            _check_place(directory, name, account.uid)
            old = _locked(directory, name, lock)
            _replace(directory, name, pem)
            if old >= 0:
                os.close(old)
        finally:
            os.close(directory)
    except OSError as error:
        raise Failure(CLIENT, "GLEXEC_TARGET_PROXY: %s" % reason(error)) from None


def _check_place(directory: int, name: str, uid: int) -> None:
    found = os.fstat(directory)
    if found.st_uid not in (0, uid):
        raise Failure(CLIENT, "GLEXEC_TARGET_PROXY: its directory is neither the target's nor root's")
    if found.st_mode & (stat.S_IWOTH | stat.S_IWGRP) and not found.st_mode & stat.S_ISVTX:
        raise Failure(CLIENT, "GLEXEC_TARGET_PROXY: its directory can be written by others")
    try:
        old = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return
    if old.st_uid != uid or not stat.S_ISREG(old.st_mode):
        raise Failure(CLIENT, "GLEXEC_TARGET_PROXY: something of another account is there")


def _locked(directory: int, name: str, lock: str) -> int:
    """The old copy, locked against others who renew it; -1: there is none, none can be had, or none is wanted."""
    if lock == DISABLED:
        return -1
    try:
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        old = os.open(name, flags, dir_fd=directory)
    except (FileNotFoundError, PermissionError):
        return -1  # its owner may have taken its own rights away; replacing it needs none
    _lock(old, lock, "GLEXEC_TARGET_PROXY", shared=False)
    return old


def _replace(directory: int, name: str, pem: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    for _ in range(_MAX_TRIES):
        temporary = ".%s.%s" % (name[:200], os.urandom(8).hex())
        try:
            file = os.open(temporary, flags, 0o600, dir_fd=directory)
            break
        except FileExistsError:
            continue
    else:
        raise FileExistsError(errno.EEXIST, "no free name")
    try:
        with open(file, "wb") as stream:
            stream.write(pem)
            stream.flush()
            os.fchmod(stream.fileno(), 0o600)
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:  # whatever it was: no half copy of a credential stays behind
        os.unlink(temporary, dir_fd=directory)
        raise


def require_command(path: str) -> None:
    """Failure(201) if there is no such file for the target; the rest is execve's business."""
    if "/" not in path:
        raise Failure(CLIENT, "the command is not given as a path")
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise Failure(CLIENT, "the command does not exist") from None
    except (OSError, ValueError):
        return  # 126 or 127, from execve itself
