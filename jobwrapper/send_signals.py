"""signal: deliver one signal to a family at the job's account.

Request: {"signal": n, "targets": [[pid, start tick], ...], "tree": bool, "deadline_ms": n,
          "farewell": {"signal": n, "to": [pid, start tick], "grace_ms": n} or null}.
Answer:  {"sent": n, "denied": n, "gone": n, "left": [[pid, tick], ...], "left_count": n, "rounds": n}.

A farewell comes first: one signal to one process, and time until it has ended; so that ending a job softly and
then surely is one call.

Kill and stop always go to the targets and all their descendants: everybody is stopped first, /proc is read
again until nobody new turns up (what is stopped cannot fork), and for kill all of them are killed and looked
for until none is left or the time is over. Other signals go to the targets, and with "tree" to their
descendants, once. A process is (pid, start tick); the tick is compared before every signal. `left` names
survivors (of stop: those not stopped). Nobody outside the family is touched, and never ourselves or those who
started us.

The job could attack this process, which has its uid: it is not dumpable, so it cannot be traced, and blocks
what can be blocked. It cannot be saved from SIGKILL and SIGSTOP; the pilot then tries again.
"""

import os
from time import monotonic, sleep

from jobwrapper.frames import Gone, Line

# As typing.TYPE_CHECKING, which costs an import; so does the front of _signal.
TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
else:
    import _signal

PR_SET_DUMPABLE = 4
# An answer stays short; the rest is counted.
NAMED = 1000
PAUSE_S = 0.001
DEAD = b"ZXx"
STOPPED = b"Tt"


def main() -> int:
    _signal.pthread_sigmask(_signal.SIG_BLOCK, range(1, _signal.NSIG))
    line = Line()
    try:
        line.hello()
        wanted = line.receive()
        _hide()
        line.send(carry_out(wanted))
        return 0
    except Gone:
        return 1


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
        family.stop_all((monotonic() + end_s) / 2)
        family.kill_all(end_s)
    elif number == _signal.SIGSTOP:
        family.stop_all(end_s)
    else:
        family.look()
        for pid in family.members if wanted.get("tree") else family.given:
            family.send(pid, number)
    return family.answer(number)


class Process:
    """One line of /proc/PID/stat."""

    __slots__ = ("dead", "parent", "state", "tick")

    def __init__(self, stat: bytes) -> None:
        words = stat[stat.rindex(b")") + 2 :].split(None, 20)
        self.state = words[0]
        self.parent = int(words[1])
        self.tick = int(words[19])
        # A leader that has ended while other threads run on looks like a zombie, and is none.
        self.dead = self.state in DEAD and int(words[17]) <= 1


def read_process(pid: int) -> "Process | None":
    try:
        fd = os.open("/proc/%d/stat" % pid, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return Process(os.read(fd, 4096))
    except (OSError, ValueError, IndexError):
        return None
    finally:
        os.close(fd)


def read_all() -> "dict[int, Process]":
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            process = read_process(int(name))
            if process is not None:
                found[int(name)] = process
    return found


class Family:
    """The targets, and whoever was ever seen to descend from one of them."""

    def __init__(self, targets: "dict[int, int]") -> None:
        self.members = dict(targets)
        self.given = dict(targets)
        self.alive = {}  # type: dict[int, Process]
        self.sent = self.denied = self.rounds = 0
        self.refusing = set()  # type: set[int]

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
            pause_s = min(2 * pause_s, 0.05)

    def look(self) -> None:
        """Read /proc: who of the family lives, and who is new in it."""
        self.rounds += 1
        processes = read_all()
        children = {}  # type: dict[int, list[int]]
        for pid, process in processes.items():
            children.setdefault(process.parent, []).append(pid)
        mine = _ourselves(processes)
        waiting = [pid for pid, tick in self.members.items() if pid in processes and processes[pid].tick == tick]
        self.alive = {}
        while waiting:
            pid = waiting.pop()
            process = processes[pid]
            if pid in self.alive or pid in mine:
                continue
            self.alive[pid] = process
            self.members[pid] = process.tick
            waiting.extend(children.get(pid, ()))
        self.alive = {pid: process for pid, process in self.alive.items() if not process.dead}

    def reachable(self) -> "list[int]":
        """Who lives and has not refused a signal of ours (the switch's own processes may be among the
        targets)."""
        return [pid for pid in self.alive if pid not in self.refusing]

    def stop_all(self, end_s: float) -> None:
        """Stop everybody, until a look finds only stopped processes: a fork that was under way has shown by then."""
        stopped = set()  # type: set[tuple[int, int]]
        while True:
            self.look()
            new = [pid for pid in self.reachable() if (pid, self.members[pid]) not in stopped]
            running = [pid for pid in self.reachable() if self.alive[pid].state not in STOPPED + DEAD]
            if not (new or running) or monotonic() > end_s:
                return
            if not new:  # a stop takes effect at once, except where the machine is busy or a disk is slow
                sleep(PAUSE_S)
            for pid in new:
                stopped.add((pid, self.members[pid]))
                self.send(pid, _signal.SIGSTOP)

    def kill_all(self, end_s: float) -> None:
        """Kill everybody, and look until nobody is left."""
        pause_s = PAUSE_S
        while True:
            for pid in self.reachable():
                self.send(pid, _signal.SIGKILL)
            self.look()
            if not self.reachable() or monotonic() > end_s:
                return
            sleep(pause_s)
            pause_s = min(2 * pause_s, 0.05)

    def send(self, pid: int, number: int) -> None:
        try:
            if _send(pid, self.members[pid], number):
                self.sent += 1
        except PermissionError:
            self.denied += 1
            self.refusing.add(pid)
        except OSError:  # gone
            pass

    def answer(self, number: int) -> "dict":  # type: ignore[type-arg]
        left = []
        if number == _signal.SIGKILL:
            left = sorted(self.alive)
        elif number == _signal.SIGSTOP:
            left = sorted(pid for pid, process in self.alive.items() if process.state not in STOPPED)
        return {
            "sent": self.sent,
            "denied": self.denied,
            "gone": len(self.members) - len(self.alive),
            "left": [[pid, self.members[pid]] for pid in left[:NAMED]],
            "left_count": len(left),
            "rounds": self.rounds,
        }


def _ourselves(processes: "dict[int, Process]") -> "set[int]":
    mine = set()
    pid = os.getpid()
    while pid in processes and pid not in mine:
        mine.add(pid)
        pid = processes[pid].parent
    return mine


def _send(pid: int, tick: int, number: int) -> bool:
    """Signal (pid, tick) and nobody else; by a descriptor of the process where the kernel has them."""
    if not hasattr(os, "pidfd_open"):
        process = read_process(pid)
        if process is None or process.tick != tick:
            return False
        os.kill(pid, number)
        return True
    fd = os.pidfd_open(pid)
    try:
        process = read_process(pid)
        if process is None or process.tick != tick:
            return False
        _signal.pidfd_send_signal(fd, number)
        return True
    finally:
        os.close(fd)
