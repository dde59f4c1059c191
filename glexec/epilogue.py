"""The site's epilogue: a trusted program after the end of a lingering payload.

Runs as root or as `epilogue_user`, with streams on /dev/null, the payload's GLEXEC_* variables, its own
account's HOME, and GLEXEC_EPILOG_* of the call. Whether others could change it was looked at before the
payload ran. Everything it leaves behind is killed.
"""

import os
import time

from glexec import codes, conf, family, identity, payload, rootlog, signals
from glexec.codes import INTERNAL, Failure
from glexec.descriptors import close_all_but

_PASSED = (b"PATH", b"X509_USER_PROXY")
_AFTER_TERM_S = 5.0
_KILL_DEADLINE_S = 15.0


def run(settings: conf.Settings, ready: payload.Payload, status: int, log: rootlog.Log) -> int:
    """0, or the exit code that the call gets instead of the payload's: 202, or 204 as for a payload."""
    started_s = time.monotonic()
    try:
        account = _account(settings)
    except Failure as failure:
        log.write("epilogue", result="failed", reason=failure.text)
        return failure.code
    signals.pthread_sigmask(signals.SIG_BLOCK, (signals.SIGCHLD,))
    pid = os.fork()
    if pid == 0:
        try:
            _become(settings, account, ready, status)
        finally:
            os._exit(INTERNAL)
    ended, in_time = _wait(pid, settings.epilogue_timeout_s)
    left = family.kill(os.getpid(), _reap, _KILL_DEADLINE_S)
    code = _verdict(ended, in_time)
    try:
        log.write(
            "epilogue",
            result="failed" if code else "done",
            status=ended,
            in_time=in_time,
            left=left,
            wall_s=time.monotonic() - started_s,
        )
    except Failure:
        return code  # the disk is full: the caller still gets its payload's status
    return code


def _verdict(status: int, in_time: bool) -> int:
    if in_time and status == 0:
        return 0
    own = os.WIFEXITED(status) and codes.masked(os.WEXITSTATUS(status)) == codes.MASKED
    return codes.MASKED if own and in_time else INTERNAL


def _account(settings: conf.Settings) -> identity.Account:
    import grp
    import pwd

    try:
        entry = pwd.getpwnam(settings.epilogue_user)
        gid = grp.getgrnam(settings.epilogue_group).gr_gid if settings.epilogue_group else entry.pw_gid
    except KeyError:
        raise Failure(INTERNAL, "epilogue_user or epilogue_group does not exist") from None
    return identity.Account(entry.pw_name, entry.pw_uid, gid, [gid], entry.pw_dir or "/")


def _become(settings: conf.Settings, account: identity.Account, ready: payload.Payload, status: int) -> None:
    environment = _environment(ready.environment, account)
    name, value = ("SIGNAL", os.WTERMSIG(status)) if os.WIFSIGNALED(status) else ("STATUS", os.WEXITSTATUS(status))
    facts = {name: value, "USER": ready.account.name, "UID": ready.account.uid, "GID": ready.account.gid}
    environment.update((b"GLEXEC_EPILOG_%s" % key.encode(), str(fact).encode()) for key, fact in facts.items())
    if account.uid:
        identity.become(account)
    else:
        os.setgroups(account.groups)
        os.setresgid(account.gid, account.gid, account.gid)
    os.chdir("/")
    close_all_but({0, 1, 2})
    signals.fresh()
    os.execve(settings.epilogue, [settings.epilogue], environment)


def _environment(payloads: "dict[bytes, bytes]", account: identity.Account) -> "dict[bytes, bytes]":
    """The payload's, without what would let its user choose code for root.

    The home is the epilogue's account's, because interpreters load code from there; and of the variables that an
    administrator preserves for payloads none is passed on.
    """
    kept = {key: value for key, value in payloads.items() if key.startswith(b"GLEXEC_") or key in _PASSED}
    own = {"HOME": account.home, "USER": account.name, "LOGNAME": account.name}
    kept.update((key.encode(), value.encode("utf-8", "surrogateescape")) for key, value in own.items())
    return kept


def _wait(pid: int, timeout_s: float) -> "tuple[int, bool]":
    """Wait status, and whether it ended by itself."""
    for number, patience_s in ((0, timeout_s), (signals.SIGTERM, _AFTER_TERM_S), (signals.SIGKILL, _KILL_DEADLINE_S)):
        if number:
            os.kill(pid, number)
        until_s = time.monotonic() + patience_s
        while time.monotonic() < until_s:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return status, number == 0
            signals.sigtimedwait((signals.SIGCHLD,), max(0.0, until_s - time.monotonic()))
    return signals.SIGKILL, False


def _reap() -> bool:
    """Collect the dead; true when nobody is left."""
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                return False
        except ChildProcessError:
            return True
