"""signal: deliver one signal to a family at the job's account.

Request: {"signal": n, "targets": [[pid, start tick], ...], "tree": bool, "deadline_ms": n,
          "farewell": {"signal": n, "to": [pid, start tick], "grace_ms": n} or null}.
Answer:  {"sent": n, "denied": n, "gone": n, "left": [[pid, tick], ...], "left_count": n, "rounds": n}.

A farewell comes first: one signal to one process, and time until it has ended; so that ending a job softly and
then surely is one call.

Kill and stop always go to the targets and all their descendants. A chase goes down the trees by the kernel's children
files and stops each process before it asks for its children, which cannot change any more then; it is repeated while
it finds somebody new, because orphans of what ended meanwhile turn up below their sub-reaper. Then all of /proc is
read as the check. For kill all of them are killed and looked for until none is left or the time is over. Other
signals go to the targets, and with "tree" to their descendants, once.

A process is (pid, start tick); the tick is compared before every signal. `left` names
survivors (of stop: those not stopped). Nobody outside the family is touched, and never ourselves or those who
started us.

The job could attack this process, which has its uid: it is not dumpable, so it cannot be traced, and blocks
what can be blocked. It cannot be saved from SIGKILL and SIGSTOP; the pilot then tries again. Stopped, it does not stay:
it has a process group of its own, and a stopped group is woken and hung up by the kernel when the last parent in the
same session has ended (_exit(2): orphaned process groups). That is the switch's front, which the pilot can kill.
"""

import os
from time import monotonic, sleep

from jobwrapper.frames import Gone, Line
from jobwrapper.processes import (
    REFUSED,
    SENT,
    Process,
    aim,
    is_held,
    is_hidden,
    ourselves,
    read_all,
    read_children,
    read_process,
    shoot,
)

# As typing.TYPE_CHECKING, which costs an import; so does the front of _signal.
TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
else:
    import _signal

PR_SET_DUMPABLE = 4
# An answer stays short; the rest is counted.
NAMED = 1000
PAUSE_S, LONGEST_PAUSE_S = 0.001, 0.05
# These two belong to the C library; Python warns of them.
LIBRARYS = {32, 33}
# Stopping comes to an end within a second, unless somebody wakes the stopped.
STOP_S = 3.0
# Enough for any family that is no bomb.
MOST_HANDLES = 16384
# Then a look tells what is still there; what hangs in the kernel may stay for long.
LONGEST_WAIT_S = 0.2
# Processes that fork and leave at once show in one chase of a few; more are for the next look at everybody.
CHASES = 200


def main() -> int:
    _signal.pthread_sigmask(_signal.SIG_BLOCK, set(range(1, _signal.NSIG)) - LIBRARYS)
    _be_hung_up()
    line = Line()
    try:
        line.hello()
        wanted = line.receive()
        _hide()
        line.send(carry_out(wanted))
        return 0
    except Gone:
        return 1


def _be_hung_up() -> None:
    _signal.pthread_sigmask(_signal.SIG_UNBLOCK, {_signal.SIGHUP})
    try:  # noqa: SIM105 - contextlib costs an import
        os.setpgid(0, 0)
    except PermissionError:  # there is no front: this process leads its session
        pass


def _hide() -> None:
    import ctypes

    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def carry_out(wanted: "dict") -> "dict":  # type: ignore[type-arg]
    family = Family({int(pid): int(tick) for pid, tick in wanted["targets"]})
    if wanted.get("farewell"):
        family.farewell(wanted["farewell"])
    end_s = monotonic() + wanted["deadline_ms"] / 1000.0
    number = wanted["signal"]
    if number == _signal.SIGKILL:
        # What hangs in the kernel does not stop, and does not fork either: leave time for the rest.
        family.stop_all(min(monotonic() + STOP_S, (monotonic() + end_s) / 2), look=False)
        family.kill_all(end_s)
    elif number == _signal.SIGSTOP:
        family.hold_all(end_s)
    else:
        family.look()
        for pid in family.members if wanted.get("tree") else family.given:
            family.send(pid, number)
    return family.answer(number)


class Family:
    """The targets, and whoever was ever seen to descend from one of them."""

    def __init__(self, targets: "dict[int, int]") -> None:
        self.members = dict(targets)
        self.given = dict(targets)
        self.alive = {}  # type: dict[int, Process]
        self.sent = self.denied = self.rounds = 0
        self.refusing = set()  # type: set[tuple[int, int]]
        self.met = set()  # type: set[tuple[int, int]]
        self.handles = {}  # type: dict[tuple[int, int], int]
        self.room = _room()
        self.mine = ourselves()

    def farewell(self, wanted: "dict") -> None:  # type: ignore[type-arg]
        """Send one signal to one process, and wait until it has ended or the time is over."""
        pid, tick = wanted["to"]
        self.members.setdefault(pid, tick)
        self.send(pid, wanted["signal"])
        end_s, pause_s = monotonic() + wanted["grace_ms"] / 1000.0, PAUSE_S
        while monotonic() < end_s:
            process = read_process(pid)
            if process is None or process.tick != tick or process.dead:
                return
            sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def look(self) -> None:
        """Read /proc: who of the family lives, and who is new in it."""
        self.rounds += 1
        processes = read_all()
        children = {}  # type: dict[int, list[int]]
        for pid, process in processes.items():
            children.setdefault(process.parent, []).append(pid)
        waiting = [pid for pid, tick in self.members.items() if pid in processes and processes[pid].tick == tick]
        for pid in self.given:
            if pid not in processes and is_hidden(pid):
                waiting.extend(children.get(pid, ()))
        self.alive = {}
        while waiting:
            pid = waiting.pop()
            process = processes[pid]
            if pid in self.alive or pid in self.mine:
                continue
            self.alive[pid] = process
            self.members[pid] = process.tick
            waiting.extend(children.get(pid, ()))
        self.alive = {pid: process for pid, process in self.alive.items() if not process.dead}

    def reachable(self) -> "list[int]":
        """Who lives and has not refused a signal of ours (the switch's own processes may be among the
        targets)."""
        return [pid for pid in self.alive if (pid, self.members[pid]) not in self.refusing]

    def stop_all(self, end_s: float, *, look: bool = True) -> None:
        """Signal everybody to stop, until a look finds nobody new: what has the signal can't fork, if only because
        fork(2) starts again with a signal pending.

        A look at everybody can be left out where the sub-reaper is among the targets and will be asked again.
        """
        new = list(self.given)
        while new and monotonic() < end_s:
            self.chase(new, end_s)
            if self._refused() and not look:
                return
            self.look()
            new = [pid for pid in self.reachable() if (pid, self.members[pid]) not in self.met]

    def hold_all(self, end_s: float) -> None:
        """Stop everybody, until a look finds only stopped processes."""
        pause_s = PAUSE_S
        while True:
            self.stop_all(end_s)
            running = [pid for pid in self.reachable() if not is_held(pid, self.alive[pid])]
            if not running or monotonic() > end_s:
                return
            # A stop takes effect at once, except where the machine is busy or a disk is slow.
            sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            if pause_s == LONGEST_PAUSE_S:  # or somebody wakes them
                for pid in running:
                    self.send(pid, _signal.SIGSTOP)

    def chase(self, start: "list[int]", end_s: float) -> None:
        """Stop these and all below them, and again all below those that we may not signal, while that finds any.

        Among the latter is the sub-reaper, where the children of whatever ends meanwhile turn up.
        """
        for _ in range(CHASES):
            caught = self._descend(start)
            start = self._refused()
            if not (caught and start) or monotonic() > end_s:
                return

    def _refused(self) -> "list[int]":
        return [pid for pid, tick in self.given.items() if (pid, tick) in self.refusing]

    def _descend(self, start: "list[int]") -> bool:
        """Stop, then go on to the children. True if anybody is new, or was listed and has gone already."""
        moved = False
        seen = set(self.mine)
        waiting = [(pid, 0) for pid in start]
        while waiting:
            pid, parent = waiting.pop()
            if pid in seen or (parent and (pid, self.members.get(pid)) in self.met):
                continue
            seen.add(pid)
            process = self._catch(pid, parent)
            if process is None:
                moved = True
                continue
            moved = moved or (pid, process.tick) not in self.met
            self.met.add((pid, process.tick))
            waiting.extend((child, pid) for child in read_children(pid))
        return moved

    def _catch(self, pid: int, parent: int) -> "Process | None":
        """Stop a process if it is of the family: known, or listed as a child of `parent`; None if it is not."""

        def is_ours(process: Process) -> bool:
            return process.tick == self.members.get(pid) or (
                parent != 0 and (process.parent == parent or process.parent in self.members)
            )

        number = 0 if (pid, self.members.get(pid)) in self.refusing else _signal.SIGSTOP
        process, outcome, handle = aim(pid, is_ours, number, keep=len(self.handles) < self.room)
        if process is not None:
            self.members[pid] = process.tick
            self._count(pid, outcome)
            if handle >= 0:
                self._keep((pid, process.tick), handle)
        return process

    def _keep(self, key: "tuple[int, int]", handle: int) -> None:
        """For the next signal, and to see its end."""
        if key in self.handles:
            os.close(handle)
        else:
            self.handles[key] = handle

    def kill_all(self, end_s: float) -> None:
        """Kill everybody, and look until nobody is left."""
        pause_s = PAUSE_S
        killed = set()  # type: set[tuple[int, int]]
        new = [(pid, tick) for pid, tick in self.met if self.members.get(pid) == tick]
        while True:
            for pid, tick in new:
                if (pid, tick) not in self.refusing:
                    self.send(pid, _signal.SIGKILL)
            killed.update(new)
            self.chase(self._refused(), end_s)
            self.wait(new, min(LONGEST_WAIT_S, end_s - monotonic()))
            self.look()
            left = self.reachable()
            if not left or monotonic() > end_s:
                return
            new = [(pid, self.members[pid]) for pid in left if (pid, self.members[pid]) not in killed]
            if not new:  # once is enough, but dying takes its time
                sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def send(self, pid: int, number: int) -> None:
        """Signal a member, by its handle if there is one: that can't be anybody else's."""
        tick = self.members[pid]
        handle = self.handles.get((pid, tick))
        if handle is None:
            outcome = aim(pid, lambda process: process.tick == tick, number)[1]
        else:
            outcome = shoot(handle, pid, number)
        self._count(pid, outcome)

    def wait(self, keys: "list[tuple[int, int]]", limit_s: float) -> None:
        """Until those of them that have handles have ended, or the time is over. One after the other: a call that waits
        for a thousand costs the cores that the dying need.
        """
        import select

        end_s = monotonic() + limit_s
        for key in keys:
            left_ms = int((end_s - monotonic()) * 1000)
            if left_ms <= 0:
                return
            if key in self.handles and key not in self.refusing:
                poll = select.poll()
                poll.register(self.handles[key], select.POLLIN)
                poll.poll(left_ms)

    def _count(self, pid: int, outcome: int) -> None:
        if outcome == SENT:
            self.sent += 1
        elif outcome == REFUSED:
            self.denied += 1
            self.refusing.add((pid, self.members[pid]))

    def answer(self, number: int) -> "dict":  # type: ignore[type-arg]
        left = []
        if number == _signal.SIGKILL:
            left = sorted(self.alive)
        elif number == _signal.SIGSTOP:
            left = sorted(pid for pid, process in self.alive.items() if not is_held(pid, process))
        return {
            "sent": self.sent,
            "denied": self.denied,
            "gone": len(self.members) - len(self.alive),
            "left": [[pid, self.members[pid]] for pid in left[:NAMED]],
            "left_count": len(left),
            "rounds": self.rounds,
        }


def _room() -> int:
    """How many descriptors of processes may be held open: as many as we get, less some for our own use."""
    import resource

    _now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_HANDLES if most == resource.RLIM_INFINITY else min(most, MOST_HANDLES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most - 32
