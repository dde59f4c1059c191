"""What a job left outside its sandbox: files in directories where anybody may make some, System V IPC.

Loaded by stage-out once the sandbox is empty. Only what belongs to our account and has been changed since the job
began is looked at, and it is removed only if the account has no other process on the node: otherwise it may be
another job's, and is named. Links are not followed, other file systems not entered.
"""

import os
import stat
from time import monotonic

# Where any account may make entries, and POSIX queues; shared memory and semaphores of POSIX are files of /dev/shm.
PLACES = (b"/tmp", b"/var/tmp", b"/dev/shm", b"/dev/mqueue", b"/run/lock")
# A time of the kernel's clock for files may lie a tick behind that of the pilot's.
TICK_NS = 20 * 1000 * 1000
LIMIT_S = 20.0
DEPTH = 64
NAMED = 20
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# <bits/ipc.h>: IPC_RMID. By file of /proc/sysvipc: its column of numbers, and the function that removes.
_IPC_RMID = 0
_IPC = {"shm": ("shmid", "shmctl"), "msg": ("msqid", "msgctl"), "sem": ("semid", "semctl")}


class Sweep:
    """What was found. `remove`: take it away; otherwise it is named only."""

    def __init__(self, since_ns: int, remove: bool, limit_s: float = LIMIT_S) -> None:
        self.since_ns = since_ns - TICK_NS
        self.remove = remove
        self.end_s = monotonic() + limit_s
        self.removed = 0
        self.count = 0
        self.named = []  # type: list[tuple[bytes, str]]

    def left(self, path: bytes, why: str) -> None:
        self.count += 1
        if len(self.named) < NAMED:
            self.named.append((path, why))

    def mine(self, found: os.stat_result) -> bool:
        """Of our account, and touched since the job began."""
        return found.st_uid == os.geteuid() and found.st_ctime_ns >= self.since_ns


def sweep(since_ns: int, alone: bool, places: "tuple[bytes, ...]" = PLACES) -> Sweep:
    """Look, and remove if nobody else of our account is there. `alone`: as far as the pilot knows."""
    looked = _look(Sweep(since_ns, False), places)
    if not looked.count or not alone or others():
        return looked
    return _look(Sweep(since_ns, True), places)


def _look(found: Sweep, places: "tuple[bytes, ...]") -> Sweep:
    for place in places:
        try:
            fd = os.open(place, _DIRECTORY)
        except OSError:
            continue
        try:
            _directory(found, fd, place, os.fstat(fd).st_dev, 0)
        finally:
            os.close(fd)
    _ipc(found)
    return found


def _directory(found: Sweep, fd: int, path: bytes, device: int, depth: int) -> None:
    try:
        names = os.listdir(fd)
    except OSError:
        return
    for name in map(os.fsencode, names):
        if monotonic() > found.end_s:
            found.left(path, "out of time")
            return
        try:
            entry = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if entry.st_dev == device:
                _entry(found, fd, path + b"/" + name, name, entry, depth)
        except FileNotFoundError:
            continue
        except OSError as error:
            found.left(path + b"/" + name, error.strerror or str(error))


def _entry(found: Sweep, fd: int, path: bytes, name: bytes, entry: os.stat_result, depth: int) -> None:
    if stat.S_ISDIR(entry.st_mode):
        mine = entry.st_uid == os.geteuid()
        # Somebody else's is entered only where all may make entries: ours may be in it.
        if depth < DEPTH and (mine or entry.st_mode & 0o002):
            _enter(found, fd, path, name, entry, depth)
        if not found.mine(entry):
            return
        if found.remove:
            os.rmdir(name, dir_fd=fd)
    elif not found.mine(entry):
        return
    elif found.remove:
        os.unlink(name, dir_fd=fd)
    if found.remove:
        found.removed += 1
    else:
        found.left(path, "of the job's account, which has other processes here")


def _enter(found: Sweep, above: int, path: bytes, name: bytes, entry: os.stat_result, depth: int) -> None:
    if found.remove and found.mine(entry) and entry.st_mode & 0o700 != 0o700:
        path_fd = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
        try:
            os.chmod("/proc/self/fd/%d" % path_fd, 0o700)
        finally:
            os.close(path_fd)
    try:
        fd = os.open(name, _DIRECTORY, dir_fd=above)
    except OSError:
        return
    try:
        _directory(found, fd, path, entry.st_dev, depth + 1)
    finally:
        os.close(fd)


def others() -> bool:
    """Whether another process of our account lives on this node, as far as the host shows it."""
    uid, own = os.geteuid(), _own_line()
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) in own:
            continue
        words = _status("/proc/" + name)
        if words.get("Uid", "").split()[:1] == [str(uid)] and words.get("State", "").strip()[:1] not in ("Z", "X"):
            return True
    return False


def _own_line() -> "set[int]":
    """Ourselves and who stands above us: a switch may leave processes of its own at our account."""
    line, pid = set(), os.getpid()
    while pid > 1 and pid not in line:
        line.add(pid)
        pid = int(_status("/proc/%d" % pid).get("PPid", "0"))
    return line


def _status(directory: str) -> "dict[str, str]":
    try:
        with open(directory + "/status", encoding="utf-8", errors="replace") as file:
            return dict(line.split(":", 1) for line in file if ":" in line)
    except OSError:
        return {}


def _ipc(found: Sweep) -> None:
    for kind, rows in ((kind, _ipc_rows(kind)) for kind in sorted(_IPC)):
        for row in rows:
            uid, made, changed_s = int(row["uid"]), int(row["cuid"]), int(row["ctime"])
            if os.geteuid() not in (uid, made) or (changed_s + 1) * 10**9 <= found.since_ns:
                continue
            number = int(row[_IPC[kind][0]])
            path = b"System V %s %d" % (kind.encode("ascii"), number)
            if not found.remove:
                found.left(path, "of the job's account, which has other processes here")
            elif _ipc_remove(kind, number):
                found.removed += 1
            else:
                found.left(path, "could not be removed")


def _ipc_rows(kind: str) -> "list[dict[str, str]]":
    try:
        with open("/proc/sysvipc/" + kind, encoding="ascii") as file:
            lines = [line.split() for line in file]
    except OSError:
        return []
    return [dict(zip(lines[0], words)) for words in lines[1:]]  # noqa: B905 - Python 3.6


def _ipc_remove(kind: str, number: int) -> bool:
    import ctypes  # dear, and seldom needed

    arguments = [number, 0, _IPC_RMID] if kind == "sem" else [number, _IPC_RMID, None]
    return bool(getattr(ctypes.CDLL(None), _IPC[kind][1])(*arguments) == 0)
