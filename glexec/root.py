"""The root part: one call from sudo to the payload. The order of the steps is the policy.

    settings and log are the site's alone      else 202
    the caller is on the white list            else 203
    the variables and the files are right      else 201, read with the caller's rights
    the site's policy maps the credential      else 201, 202, 203; in a child
    the target's side is right                 else 201, touched with the target's rights
    linger: fork, supervise, mirror; otherwise become the payload

The deciding child was there before all that (glexec.start): loading its libraries takes as long as the rest.
Every call that reaches an open log leaves exactly one `decision` line there.
"""

import os
import resource
import sys
import time

from glexec import (
    codes,
    conf,
    decision,
    family,
    files,
    frontpid,
    identity,
    limits,
    payload,
    policy,
    request,
    rootlog,
    trust,
    word,
)
from glexec.codes import CLIENT, DENIED, INTERNAL, Failure
from glexec.descriptors import close_all_but

_RESULTS = {CLIENT: "client error", INTERNAL: "internal error", DENIED: "denied"}
_FRONT_DEADLINE_S = 30.0  # for the front's second half to start; it has begun before sudo
_FRONT_LOOK_S = 0.001
_LIMIT_COMMAND_CHARS = 1000  # of a command line in the log, and of the library's last words


class Call:
    """What sudo handed over: the front's pid, the shared word, the control socket, the command."""

    def __init__(self, arguments: "list[str]") -> None:
        numbers = [item for item in arguments[:3] if item == "-" or (item.isdecimal() and len(item) < 10)]
        if len(numbers) != 3 or numbers[0] == "-" or numbers[1] == "-":
            raise Failure(INTERNAL, "the root part is started by the front only")
        self.front_pid = int(numbers[0])
        self.word = int(numbers[1])
        self.control = None if numbers[2] == "-" else int(numbers[2])
        self.command = arguments[3:]
        self.is_silent = False
        self.umask = os.umask(0o077)
        self.limits = limits.lift()


def main(conf_path: str, decider: "decision.Decider | None") -> None:
    """The root part after its start; ends the process."""
    code, call = INTERNAL, None
    try:
        if os.getuid() or os.geteuid():
            raise Failure(INTERNAL, "the root part does not run as root")
        call = Call(sys.argv[1:])
        code = _run(call, conf_path, decider or decision.Decider())
    except Failure as failure:
        code = failure.code
        if call is None or not call.is_silent:
            _say(failure.text)
    except Exception as error:  # our own bug: the caller gets the contract's code, not a traceback
        _say("internal fault (%s: %s)" % (type(error).__name__, str(error)[:200]))
    os._exit(code)


def _say(text: str) -> None:
    plain = "".join(char if char.isprintable() else "?" for char in text)
    try:
        os.write(2, ("glexec: %s\n" % plain).encode("utf-8", "replace"))
    except OSError:
        return  # nobody listens


def _run(call: Call, conf_path: str, decider: decision.Decider) -> int:
    _only_our_descriptors(call, decider.fds)
    settings = conf.parse(trust.read(conf_path))
    call.is_silent = settings.is_silent
    log = _open_log(settings)
    log.fields = {"id": os.environ.get("GLEXEC_ID", "")}
    if not settings.linger and call.control is not None:
        os.close(call.control)  # end of file tells the caller that it has no control
        call.control = None
    try:
        wish, account, pem = _decide(call, settings, log, decider)
    except Failure as failure:
        _log_refusal(log, call, settings, failure)
        decider.leave()
        raise
    ready = _prepare_target(call, settings, log, wish, account, pem)
    del pem
    decider.leave()
    if ready is None:
        return 0
    return _linger(call, settings, log, ready) if settings.linger else _become(call, log, ready)


def _open_log(settings: conf.Settings) -> rootlog.Log:
    if settings.log_destination == "syslog":
        return rootlog.Syslog(settings.syslog_facility)
    trust.require(os.path.dirname(settings.log_file))
    return rootlog.File(settings.log_file)


def _only_our_descriptors(call: Call, more: "set[int]") -> None:
    kept = {0, 1, 2, call.word, *more}
    if call.control is not None:
        if call.control in more:  # the number was free, and is ours now
            raise Failure(CLIENT, "GLEXEC_CONTROL_FD is not open")
        kept.add(call.control)
    close_all_but(kept)
    try:
        for fd in kept - {0, 1, 2}:
            os.set_inheritable(fd, False)
        word.read(call.word)
    except OSError:
        raise Failure(CLIENT, "GLEXEC_CONTROL_FD is not open") from None


def _decide(
    call: Call, settings: conf.Settings, log: rootlog.Log, decider: decision.Decider
) -> "tuple[request.Request, identity.Account, bytes]":
    """Everything up to the yes, which is logged; Failure otherwise."""
    caller = identity.caller(dict(os.environ))
    log.fields.update(caller=caller.name, caller_uid=caller.uid)
    if not identity.is_listed(caller, settings.callers):
        raise Failure(DENIED, "denied: %s may not use glexec here" % caller.name)
    wish = request.understand(dict(os.environ), call.command)
    with identity.Borrowed(caller):
        certificate = files.read_credential(wish.certificate, caller.uid, "GLEXEC_CLIENT_CERT", settings.input_lock)
        source = certificate
        if wish.source != wish.certificate:
            source = files.read_credential(wish.source, caller.uid, "GLEXEC_SOURCE_PROXY", settings.input_lock)
    text = _policy(settings)
    mapping = decider.decide(certificate, settings, text, _load_linger if settings.linger else _load_nothing)
    log.fields["dn"] = mapping.dn
    account = identity.target(mapping.uid, mapping.gids, mapping.secondary)
    log.fields.update(uid=account.uid, gid=account.gid, groups=account.groups, account=account.name)
    more = {"by": mapping.by}  # type: dict[str, object]
    more.update((key, value) for key, value in (("fqans", mapping.fqans), ("lease", mapping.lease)) if value)
    if settings.log_only:
        more["log_only"] = True  # the mapping is in the log; nobody's identity changes
        account = caller
    elif account.uid == caller.uid and wish.certificate != os.environ.get("X509_USER_PROXY"):
        # A pilot may be mapped to itself (probes do that with its own credential), its users may not.
        raise Failure(INTERNAL, "the mapping names the caller's own account; refused")
    more.update(_about(call, settings))
    log.write("decision", result="mapped", **more)
    return wish, account, source


def _load_linger() -> None:
    from glexec import linger  # noqa: F401  (for later: loading it costs time that is free now)


def _load_nothing() -> None:
    """Becoming the payload needs no more modules."""


def _policy(settings: conf.Settings) -> str:
    """The db's text, if it and everything that it makes us believe is the site's alone."""
    text = trust.read(settings.db_file).decode("utf-8", "surrogateescape")
    text = policy.adapted(text, settings.policy, settings.warnings)
    policy.require_policy(text, settings.policy)
    believed = policy.believed(text)
    if settings.certificates_dir:
        believed.append(settings.certificates_dir)
    if os.path.lexists(settings.voms_dir):
        believed.append(settings.voms_dir)
    if settings.epilogue:
        believed.append(settings.epilogue)
    believed += [place for place in policy.plugin_places(text) if os.path.lexists(place)]
    for path in believed:
        trust.require(path)
    return text


def _about(call: Call, settings: conf.Settings) -> "dict[str, object]":
    about = {
        "pid": os.getpid(),
        "command": _command(call),
        "linger": settings.linger,
        "nproc": call.limits[resource.RLIMIT_NPROC][0],
    }  # type: dict[str, object]
    if settings.warnings:
        about["warnings"] = settings.warnings
    return about


def _command(call: Call) -> str:
    """What the log shows of it; at least one character of each argument, so no more of these are looked at."""
    shown = (item[:_LIMIT_COMMAND_CHARS] for item in call.command[:_LIMIT_COMMAND_CHARS])
    return " ".join(shown)[:_LIMIT_COMMAND_CHARS]


def _log_refusal(log: rootlog.Log, call: Call, settings: conf.Settings, failure: Failure) -> None:
    more = {"result": _RESULTS[failure.code], "code": failure.code, "reason": failure.text}  # type: dict[str, object]
    if isinstance(failure, decision.Refusal):
        more.update(dn=failure.dn, details=failure.details[-_LIMIT_COMMAND_CHARS:])
    more.update(_about(call, settings))
    log.write("decision", **more)


def _prepare_target(
    call: Call,
    settings: conf.Settings,
    log: rootlog.Log,
    wish: request.Request,
    account: identity.Account,
    pem: bytes,
) -> "payload.Payload | None":
    """The target's side, with its rights: command and copy of the proxy. None: no command."""
    place = request.copy_place(wish, account.uid) if settings.create_target_proxy else None
    with identity.Borrowed(account):
        if wish.command:
            files.require_command(wish.command[0])
        if place is not None:
            files.write_target(place, pem, account, settings.target_lock)
    if not wish.command:
        return None
    environment = request.payload_environment(
        dict(os.environb), settings.kept_variables, account.name, account.home, place
    )
    return payload.Payload(wish.command, environment, account, call.umask, call.limits, call.word)


def _await_front(call: Call, front: frontpid.Front) -> None:
    """Until the front can reap: a payload that ended earlier would leave no exact status."""
    until_s = time.monotonic() + _FRONT_DEADLINE_S
    while not word.read(call.word) & word.WATCHING:
        if front.is_gone() or time.monotonic() > until_s:
            raise Failure(INTERNAL, "the front is gone")
        time.sleep(_FRONT_LOOK_S)


def _process(pid: int) -> "dict[str, object]":
    """Which process, and of which session: what a batch system knows its jobs by."""
    found = family.look(pid)
    return {"pid": pid, "ticks": found.ticks if found else 0, "session": os.getsid(0)}


def _become(call: Call, log: rootlog.Log, ready: payload.Payload) -> int:
    _await_front(call, frontpid.Front(call.front_pid))
    log.write("start", command=_command(call), **_process(os.getpid()))
    payload.start(ready)
    return INTERNAL


def _linger(call: Call, settings: conf.Settings, log: rootlog.Log, ready: payload.Payload) -> int:
    from glexec import linger

    front = frontpid.Front(call.front_pid)
    near = None if call.control is None else linger.near_end(call.control)
    die_with_root = linger.prepare()
    door = linger.Door(call.front_pid, int(os.environ["SUDO_UID"]))
    _await_front(call, front)
    word.add(call.word, door.name_bits())
    pid = os.fork()
    if pid == 0:
        try:
            payload.start(ready, die_with_root)
        finally:
            os._exit(INTERNAL)
    linger.let_go()
    supervisor = linger.Supervisor(pid, log, front, door, near)
    try:
        log.write("start", command=_command(call), **_process(pid))
    except Failure:
        supervisor.end_family("log failed")  # nothing runs unrecorded
        word.drop(call.word, word.STARTED)
        raise
    status = supervisor.run()
    if settings.epilogue:
        from glexec import epilogue

        code = epilogue.run(settings, ready, status, log)
        if code:
            return code
    return _mirror(call, status)


def _mirror(call: Call, status: int) -> int:
    """The payload's end as our own. A child that never became the payload is our failure."""
    from glexec import signals

    if not word.read(call.word) & word.STARTED:
        return INTERNAL
    if os.WIFSIGNALED(status):
        signals.die_by(os.WTERMSIG(status))
        return 128 + os.WTERMSIG(status)
    return codes.masked(os.WEXITSTATUS(status))
