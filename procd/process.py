"""What a process is to procd: plain values, no I/O."""

from typing import NamedTuple


class ProcessId(NamedTuple):
    """A process: its number and its start time in ticks since boot. A number alone is never a process."""

    pid: int
    start_ticks: int


# The state of a process that /proc does not show us and that lives all the same; its numbers are all 0.
HIDDEN = "?"


class Process(NamedTuple):
    """One line of /proc/PID/stat, as far as families need it. A tuple: a scan makes thousands."""

    id: ProcessId
    parent: int
    state: str
    uid: int
    """Effective uid."""
    threads: int
    user_ticks: int
    system_ticks: int
    reaped_user_ticks: int
    """CPU of children that it has waited for, and of theirs."""
    reaped_system_ticks: int
    rss_kb: int
    image_kb: int

    @property
    def running(self) -> bool:
        """False for zombies: they wait for their parent only, hold nothing and can't be killed.

        A first thread that ended before the others looks like a zombie, and is none.
        """
        return self.state not in "ZXx" or self.threads > 1

    @property
    def stopped(self) -> bool:
        """Stopped by a signal or a tracer."""
        return self.state in "Tt"
