"""Resource limits: the root part has its own, the payload gets the caller's back.

A caller could otherwise end the root part by a limit on time, or keep it from its log by one on file
sizes. Lifting the limit on processes while the uid changes has a reason of its own: the kernel notes
an account over its limit at that moment and would refuse the next execve (EAGAIN), and then a fork
bomb could not be killed through a new call.
"""

import resource

_LIFTED = (
    resource.RLIMIT_CPU,
    resource.RLIMIT_FSIZE,
    resource.RLIMIT_DATA,
    resource.RLIMIT_AS,
    resource.RLIMIT_NOFILE,
    resource.RLIMIT_NPROC,
)


def lift() -> "dict[int, tuple[int, int]]":
    """Set the process free as far as root may; returns the limits that it had."""
    saved = {limit: resource.getrlimit(limit) for limit in _LIFTED}
    for limit, (_, hard) in saved.items():
        # Without CAP_SYS_RESOURCE (containers) the hard limit is the most there is. That of open
        # files cannot be without end.
        if limit == resource.RLIMIT_NOFILE or not _set(limit, resource.RLIM_INFINITY):
            _set(limit, hard)
    saved[resource.RLIMIT_CORE] = resource.getrlimit(resource.RLIMIT_CORE)
    # No core file of a process that holds private keys.
    resource.setrlimit(resource.RLIMIT_CORE, (0, saved[resource.RLIMIT_CORE][1]))
    return saved


def _set(limit: int, value: int) -> bool:
    try:
        resource.setrlimit(limit, (value, value))
    except (OSError, ValueError):
        return False
    return True


def restore(saved: "dict[int, tuple[int, int]]") -> None:
    """Give the limits back; an ordinary account may do that, since it only lowers them."""
    for limit, values in saved.items():
        resource.setrlimit(limit, values)
