"""Signals without the enums of `signal`, whose import costs 4 ms on every call.

`_signal` is the C module under it: same functions, plain numbers; present from Python 3.5 on.
"""

from _signal import (  # type: ignore[import-not-found,unused-ignore]
    NSIG,
    SIG_BLOCK,
    SIG_DFL,
    SIG_IGN,
    SIG_SETMASK,
    SIGCHLD,
    SIGCONT,
    SIGHUP,
    SIGINT,
    SIGKILL,
    SIGPIPE,
    SIGQUIT,
    SIGSTOP,
    SIGTERM,
    SIGTSTP,
    SIGTTIN,
    SIGTTOU,
    SIGUSR1,
    SIGUSR2,
    pthread_sigmask,
    set_wakeup_fd,
    signal,
    sigtimedwait,
    sigwaitinfo,
)

try:
    from _signal import pidfd_send_signal
except ImportError:  # before Python 3.9

    def pidfd_send_signal(pidfd: int, number: int) -> None:
        raise AssertionError("asked only where os.pidfd_open exists")


__all__ = [
    "FORWARDED",
    "NSIG",
    "SIGCHLD",
    "SIGCONT",
    "SIGHUP",
    "SIGINT",
    "SIGKILL",
    "SIGPIPE",
    "SIGQUIT",
    "SIGSTOP",
    "SIGTERM",
    "SIGTSTP",
    "SIGTTIN",
    "SIGTTOU",
    "SIGUSR1",
    "SIGUSR2",
    "SIG_BLOCK",
    "SIG_DFL",
    "SIG_IGN",
    "SIG_SETMASK",
    "SI_KERNEL",
    "die_by",
    "fresh",
    "pidfd_send_signal",
    "pthread_sigmask",
    "set_wakeup_fd",
    "signal",
    "sigtimedwait",
    "sigwaitinfo",
]

# What the front passes on to a lingering payload (1.11 of the contract).
FORWARDED = (SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGCONT, SIGTSTP)
SI_KERNEL = 0x80  # si_code of a signal that nobody sent: the terminal's go to the whole group


def fresh() -> None:
    """Every signal at its default and none blocked, as a new payload should find them.

    Also undoes what Python (PIPE, XFSZ) and a shell (INT, QUIT of a background job) ignore.
    """
    for number in range(1, NSIG):
        try:
            signal(number, SIG_DFL)
        except (OSError, ValueError):
            continue  # KILL, STOP and the two that libc keeps for itself
    pthread_sigmask(SIG_SETMASK, ())


def die_by(number: int) -> None:
    """Die by this signal without leaving a core file; returns if the signal does not kill."""
    import os
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    fresh()
    os.kill(os.getpid(), number)
