"""Delegated cgroups (v2): one group a family, made where the pilot may make them.

What is in a group stays in it, whatever it forks, and another account can't leave it: membership, CPU and the proof
of emptiness come from the kernel, and a kill or a freeze costs one write. Acting; who is put in is decided elsewhere.

A root is moved in at registration, before it runs anything of the job. What is above it (the switch) stays out.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import attrs

from procd.facts import CgroupLack
from procd.process import ProcessId

_PREFIX = "sailplane-job-"
# A group of our making with more below it than this was divided by the job itself; the rest is left to the kernel.
_MAX_GROUPS = 10_000
_US_PER_S = 1_000_000


class GroupFailed(Exception):
    """The kernel refused; the text is for logs."""


@attrs.frozen
class Counted:
    """What the kernel counted for a group, since it was made. Memory is None without the controller, and has the page
    cache in it."""

    user_s: float
    system_s: float
    memory_peak_kb: int | None = None
    memory_limit_kb: int | None = None
    oom_kills: int | None = None


@attrs.frozen
class Bounds:
    """What the kernel is to hold a group to, as far as its controllers are there; None: nothing. Threads are tasks."""

    memory_kb: int | None = None
    tasks: int | None = None


NO_BOUNDS = Bounds()


@attrs.frozen
class Found:
    """Where groups can be made, or why nowhere. hybrid: without the controller for memory."""

    parent: Path | None = None
    lack: CgroupLack = "none"
    hybrid: bool = False


class Group:
    """The group of one family."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, root: ProcessId) -> None:
        """Move a process in; GroupFailed when the kernel says no."""
        self._write("cgroup.procs", str(root.pid))

    def bound(self, bounds: Bounds) -> None:
        """Hold it to this. What has no controller here stays unbounded; whoever runs out of memory ends as a whole."""
        wanted = {"pids.max": bounds.tasks, "memory.max": None if bounds.memory_kb is None else bounds.memory_kb << 10}
        for name, value in wanted.items():
            if value is not None and (self.path / name).exists():
                self._write(name, str(value))
        if bounds.memory_kb is not None and (self.path / "memory.oom.group").exists():
            self._write("memory.oom.group", "1")

    def kill(self) -> None:
        """SIGKILL to everybody in it, also to those that are being forked."""
        self._write("cgroup.kill", "1")

    def freeze(self) -> None:
        """Have everybody stopped, also those that are being forked; `settled` when it is done (2 ms)."""
        self._write("cgroup.freeze", "1")

    def thaw(self) -> None:
        """Undo `freeze`."""
        self._write("cgroup.freeze", "0")

    @property
    def frozen(self) -> bool:
        """Whether a freeze was asked for, and not taken back."""
        return self._read("cgroup.freeze").strip() == "1"

    @property
    def settled(self) -> bool:
        """Whether everybody in it is stopped."""
        return self._events().get("frozen") == "1"

    @property
    def populated(self) -> bool:
        """Whether anybody lives in it; zombies do not."""
        return self._events().get("populated", "0") == "1"

    def pids(self) -> list[int]:
        """Numbers of everybody in it, zombies too; 0 stands for those of another pid namespace and is left out."""
        found: list[int] = []
        for path in self._tree():
            try:
                found.extend(pid for pid in map(int, (path / "cgroup.procs").read_text().split()) if pid)
            except OSError:
                continue
        return found

    def counted(self) -> Counted | None:
        """Usage as the kernel counted it; None when the group is gone."""
        numbers = self._numbers("cpu.stat")
        if "user_usec" not in numbers or "system_usec" not in numbers:
            return None
        peak, limit = self._read("memory.peak").strip(), self._read("memory.max").strip()
        kills = self._numbers("memory.events").get("oom_kill", "")
        return Counted(
            user_s=int(numbers["user_usec"]) / _US_PER_S,
            system_s=int(numbers["system_usec"]) / _US_PER_S,
            memory_peak_kb=int(peak) >> 10 if peak.isdecimal() else None,
            memory_limit_kb=int(limit) >> 10 if limit.isdecimal() else None,
            oom_kills=int(kills) if kills.isdecimal() else None,
        )

    def remove(self) -> bool:
        """Take the group away, with those that the job made in it; False while somebody lives in it."""
        try:
            for path in reversed(list(self._tree())):
                path.rmdir()
        except OSError:
            return not self.path.exists()
        return True

    def _tree(self) -> Iterator[Path]:
        """This group and those below it, parents first."""
        waiting, given = [self.path], 0
        while waiting and given < _MAX_GROUPS:
            path = waiting.pop()
            given += 1
            yield path
            try:
                with os.scandir(path) as entries:
                    waiting.extend(Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False))
            except OSError:
                continue

    def _events(self) -> dict[str, str]:
        return self._numbers("cgroup.events")

    def _numbers(self, name: str) -> dict[str, str]:
        return dict(line.split(None, 1) for line in self._read(name).splitlines() if " " in line)

    def _read(self, name: str) -> str:
        try:
            return (self.path / name).read_text(encoding="ascii", errors="replace")
        except OSError:
            return ""

    def _write(self, name: str, text: str) -> None:
        try:
            fd = os.open(self.path / name, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, text.encode("ascii"))
            finally:
                os.close(fd)
        except OSError as error:
            raise GroupFailed(f"{self.path / name}: {error.strerror}") from None


class Groups:
    """Makes groups below `parent`. Empty ones of an earlier procd are taken away first."""

    def __init__(self, parent: Path) -> None:
        self.parent = parent
        for path in parent.glob(_PREFIX + "*"):
            Group(path).remove()

    def place(self, root: ProcessId, *, new: bool, bounds: Bounds = NO_BOUNDS) -> Group:
        """A new group, held to `bounds`, with this process in it, or the one that an earlier procd has made for it.

        Raises:
            GroupFailed: the kernel let us not; then there is no group.
        """
        group = Group(self.parent / f"{_PREFIX}{root.pid}-{root.start_ticks}")
        if group.path.is_dir():
            return group
        if not new:  # it runs already, and what it has forked would stay out
            raise GroupFailed(f"{group.path} is not there")
        try:
            group.path.mkdir()
        except OSError as error:
            raise GroupFailed(f"{group.path}: {error.strerror}") from None
        try:
            group.bound(bounds)
            group.add(root)
        except GroupFailed:
            group.remove()
            raise
        return group


# --- where ----------------------------------------------------------------------------------------------------------


def find_groups(given: Path | None = None) -> Found:
    """Where this process may make groups and move its descendants into them.

    Args:
        given: the only place to try (the knob); None tries the parent of our own group, where a batch system's
            delegation leaves room for siblings, then our own.
    """
    mount = _mount()
    if mount is None:
        return Found()
    own = mount / _own_group().lstrip("/")
    places = [given] if given is not None else [own.parent, own]
    lack: CgroupLack = "not-delegated"
    for parent in places:
        if parent == mount and os.geteuid() == 0 and given is None:
            continue  # root might divide the whole machine's; that is never what was delegated
        if not parent.is_relative_to(mount) or not _may_divide(parent, own):
            continue
        if not _can_kill(parent):
            lack = "too-old"
            continue
        _want_controllers(parent)
        return Found(parent, "", hybrid=not _has(parent, "memory"))
    return Found(None, lack)


def _mount() -> Path | None:
    for line in _lines("/proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        if after.startswith("cgroup2 ") and len(words := before.split()) >= 5:
            return Path(words[4])
    return None


def _own_group() -> str:
    return next((line[3:] for line in _lines("/proc/self/cgroup") if line.startswith("0::")), "/")


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _may_divide(parent: Path, own: Path) -> bool:
    """A move needs the right over the nearest group that holds both ends (cgroup v2, "Delegation Containment")."""
    common = Path(os.path.commonpath([parent, own]))
    return os.access(parent, os.W_OK | os.X_OK) and os.access(common / "cgroup.procs", os.W_OK)


def _can_kill(parent: Path) -> bool:
    trial = parent / f"{_PREFIX}trial-{os.getpid()}"
    try:
        trial.mkdir()
    except OSError:
        return False
    try:
        return (trial / "cgroup.kill").exists()
    finally:
        trial.rmdir()


def _want_controllers(parent: Path) -> None:
    """Have memory and tasks counted where that is ours to say; a group with processes of its own refuses, and so be
    it."""
    for name in ("memory", "pids"):
        try:
            if name in (parent / "cgroup.controllers").read_text().split() and not _has(parent, name):
                (parent / "cgroup.subtree_control").write_text("+" + name)
        except OSError:
            continue


def _has(parent: Path, controller: str) -> bool:
    try:
        return controller in (parent / "cgroup.subtree_control").read_text().split()
    except OSError:
        return False
