"""Validation: the identity switch and the node are tried before anything is advertised. Acting; what it means is
judged by `pilot.findings`.

With glexec: the two tests of the glidein scripts, exactly, and one call of the wrapper's verb `probe`, all with the
pilot's own proxy (the user's is tried by the first call of each job). With userns: the probe at a fresh sub-uid.
"""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import trio
from attrs import define, evolve, field

from pilot import findings, userns
from pilot.calls import Call, CannotCall
from pilot.control import read_linger
from pilot.farside import Asking, CallFailed, open_call, text_of
from pilot.findings import Finding, Node, Target, Validation
from pilot.leases import LeaseFault, read_ranges
from pilot.outcomes import Broken, Denied, Misused, Outcome, Unavailable
from pilot.switch import Switch, SwitchSettings

AUDIT_ID = "sailplane-validation"
TEST = f'id && echo "{findings.HELLO}"'
# Resolved, since glexec refuses a symbolic link.
SHELL = os.path.realpath("/bin/sh")
TEST_FILE = "glexec_test2.sh"
# `id` of an account with a thousand groups; a switch that prints without end is stopped here.
PRINTED_BYTES = 65_536
# As in the launch of a job: our root part speaks while the wrapper still starts.
LINGER_WITHIN_S = 0.3
END_GRACE_S = 1.0


class ValidationSettings(SwitchSettings, Protocol):
    """The knobs that this module reads."""

    @property
    def execute(self) -> Path: ...
    @property
    def sailplane_switch_deadline(self) -> float: ...


@define
class _Findings:
    """What is known so far."""

    settings: ValidationSettings
    switch: Switch
    all: list[Finding] = field(factory=list)
    commands: list[str] = field(factory=list)
    linger: str = ""
    mapped: bool = False

    @property
    def failed(self) -> bool:
        return any(finding.status == "failed" for finding in self.all)


class UseSettings(Protocol):
    """The knobs that decide which switch is used."""

    @property
    def sailplane_switch(self) -> str: ...
    @property
    def glexec(self) -> Path | None: ...
    @property
    def glidein_glexec_use(self) -> str: ...
    @property
    def glidein_require_glexec_use(self) -> bool: ...


def agreed_switch(settings: UseSettings) -> str:
    """The switch that pool and site agree on; findings.UseRefused when they do not."""
    return findings.decide_switch(
        settings.sailplane_switch,
        settings.glidein_glexec_use,
        tool=settings.glexec is not None and os.access(settings.glexec, os.X_OK),
        required=settings.glidein_require_glexec_use,
    )


async def examine(settings: ValidationSettings, switch: Switch) -> Validation:
    """Try everything; at most four times SAILPLANE_SWITCH_DEADLINE. Raises nothing for what it finds."""
    began_at = time.time()
    found = _Findings(settings, switch)
    if not switch.isolates and not switch.needs_credential:
        text = "identity switch 'none': jobs run at this account, nothing is isolated"
        found.all.append(Finding("switch", "degraded", text, "no-switch"))
    found.all += findings.judge_node(look_at_node(settings, switch), switch.name)
    if switch.name == "userns":
        await _examine_userns(found)
    elif switch.needs_credential:
        await _examine_glexec(found)
    return Validation(
        switch.name, tuple(found.all), found.mapped, found.linger, began_at, time.time(), tuple(found.commands)
    )


async def _examine_userns(found: _Findings) -> None:
    if found.failed:
        return
    await _probe(found, of_pilot=False)
    if not found.failed:
        text = "identity switch 'userns': each job runs at a sub-uid of this account's"
        found.all.append(Finding("switch", "ok", text))


async def _examine_glexec(found: _Findings) -> None:
    settings = found.settings
    if settings.glexec is None or not os.access(settings.glexec, os.X_OK):
        text = (
            f"GLEXEC = {settings.glexec} is no executable file: name the site's glexec, or set SAILPLANE_SWITCH = none"
            " to run every job at this account"
        )
        found.all.append(Finding("switch", "failed", text, "no-tool", "Config"))
        return
    if settings.sailplane_pilot_proxy is None:
        text = "no pilot proxy: the switch is first used with a user's own"
        found.all.append(Finding("switch", "degraded", text, "no-pilot-proxy"))
        return
    if not await _test(found, "test 1", (SHELL, "-c", TEST)):
        return
    with _test_file(settings.execute) as path:
        if not await _test(found, "test 2", (str(path),)):
            return
    found.mapped = True
    await _probe(found, of_pilot=True)
    if not found.failed:
        found.all.append(Finding("switch", "ok", "the identity switch works with the pilot's proxy"))


class _test_file:
    """The second test's script: it lies where jobs will, so that it fails where the way there is closed."""

    def __init__(self, execute: Path) -> None:
        self._path = execute / f".{secrets.token_hex(8)}-{TEST_FILE}"

    def __enter__(self) -> Path:
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o700)
        with open(fd, "w", encoding="ascii") as script:
            script.write(f"#!/bin/sh\n{TEST}\n")
            os.fchmod(fd, 0o755)
        return self._path

    def __exit__(self, *_fault: object) -> None:
        with suppress(FileNotFoundError):
            self._path.unlink()


async def _test(found: _Findings, check: str, argv: tuple[str, ...]) -> bool:
    """Whether the next one is worth a call."""
    found.commands.append(shlex.join(argv))
    outcome, printed, errors = await run_captured(found.switch, argv, found.settings.sailplane_switch_deadline)
    finding = findings.judge_test(check, outcome, printed, errors)
    found.all.append(finding)
    if isinstance(outcome, Denied):
        text = "the site does not map the pilot itself; the switch is first used with a user's own proxy"
        found.all.append(Finding("switch", "degraded", text, "pilot-not-mapped"))
        return False
    return finding.status != "failed"


async def run_captured(switch: Switch, argv: tuple[str, ...], deadline_s: float) -> tuple[Outcome, str, str]:
    """One call on the pilot's own behalf: its end, and what it printed; too much, or too late, and it is killed."""
    nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    near, far = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    os.set_blocking(far, True)
    try:
        running = await switch.start(Call(argv, AUDIT_ID, None, stdin=nothing, stdout=far))
    except CannotCall as refusal:
        os.close(near)
        return refusal.outcome, "", ""
    except OSError as error:
        os.close(near)
        return Misused(f"cannot start {switch.name}: {error.strerror}"), "", ""
    finally:
        os.close(nothing)
        os.close(far)
    printed = bytearray()
    outcome: Outcome | None = None
    try:
        with trio.move_on_after(deadline_s):
            if await _read(near, printed):
                outcome = await running.wait()
            else:
                outcome = Broken(f"it printed more than {PRINTED_BYTES} bytes")
        if not running.ended:
            running.kill()
            await running.end(END_GRACE_S)
        outcome = outcome or Unavailable(f"no answer within {deadline_s:g} s")
        return outcome, printed.decode("utf-8", "replace"), running.errors()
    finally:
        running.close()
        os.close(near)


async def _read(fd: int, into: bytearray) -> bool:
    """To the end of file; False when there is more than there may be."""
    while len(into) <= PRINTED_BYTES:
        try:
            piece = os.read(fd, PRINTED_BYTES)
        except BlockingIOError:
            await trio.lowlevel.wait_readable(fd)
            continue
        if not piece:
            return True
        into += piece
    return False


# -- the probe ----


async def _probe(found: _Findings, *, of_pilot: bool) -> None:
    settings, switch = found.settings, found.switch
    found.commands.append("jobwrapper probe")
    asking = Asking(switch=switch, settings=settings, audit_id=AUDIT_ID, credential=None)
    try:
        target, found.linger = await _ask_target(asking, settings)
    except CallFailed as failure:
        found.all.append(_probe_failed(failure, settings))
        return
    judged = findings.judge_target(target, switch=switch.name, own_uid=os.geteuid(), of_pilot=of_pilot)
    if not switch.isolates:  # a glexec that only logs: that is what was asked for
        judged = [each if each.check != "account" else _log_only(each) for each in judged]
    found.all += judged
    if found.linger == "stays":
        text = "the switch stays beside the job without a control socket: exit codes 201 to 204 may show as 204"
        found.all.append(Finding("linger", "degraded", text, "switch-stays"))
    else:
        found.all.append(Finding("linger", "ok", found.linger))


def _log_only(finding: Finding) -> Finding:
    text = "the site authorises and logs each user, and the job runs at this account: authorised, not isolated"
    return evolve(finding, status="degraded", text=text, cause="authorised-not-isolated", kind="")


def _probe_failed(failure: CallFailed, settings: ValidationSettings) -> Finding:
    match failure.outcome:
        case Unavailable(text):
            words = f"the identity switch is not available now: {text}"
            return Finding("probe", "failed", words, "switch-unavailable", "WN_Resource", passing=True)
        case Misused(text):
            words = (
                f"the identity switch cannot work here: {text}."
                " Or set SAILPLANE_SWITCH = none to run every job at this account"
            )
            return Finding("probe", "failed", words, "switch-unusable", "WN_Resource")
    words = (
        f"the target account cannot run the wrapper in SAILPLANE_WRAPPER_DIR = {settings.sailplane_wrapper_dir} with"
        f" SAILPLANE_WRAPPER_PYTHON = {settings.sailplane_wrapper_python} ({failure}): every directory above must let"
        " other accounts pass (o+x), and the files be readable"
    )
    return Finding("probe", "failed", words, "wrapper-unusable", "Config")


async def _ask_target(asking: Asking, settings: ValidationSettings) -> tuple[Target, str]:
    deadline_s = settings.sailplane_switch_deadline
    far = await open_call(asking, "probe", deadline_s=deadline_s, control=True)
    near, handed = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        with trio.fail_after(deadline_s):
            control = await _hears_control(far.running.control)
            linger = findings.linger_of(control=control, switch_pid=far.running.pid, far_pid=far.hello.pid)
            await far.send({"search": _ways(settings), "run": _programs(settings)})
            await far.send_descriptor(handed)
            said = await far.receive()
            arrived = said.get("descriptor") is True and os.read(near, 16) == b"probe"
        return (
            Target(
                far.hello.uid, far.hello.gid, closed=_strings(said.get("closed")),
                unusable=_strings(said.get("unusable")), descriptor=arrived,
                no_new_privs=said.get("no_new_privs") is True,
            ),
            linger,
        )  # fmt: skip
    except trio.TooSlowError:
        raise CallFailed("timeout", f"no answer to the probe within {deadline_s:g} s") from None
    except BlockingIOError:
        raise CallFailed("framing", "the far side says that it has written to a descriptor, and has not") from None
    finally:
        os.close(near)
        os.close(handed)
        await far.end()


async def _hears_control(control: object) -> bool:
    import socket

    if not isinstance(control, socket.socket):
        return False
    with trio.move_on_after(LINGER_WITHIN_S):
        return await read_linger(control) is not None
    return False


def _strings(value: object) -> tuple[str, ...]:
    words = value if isinstance(value, list) else []
    return tuple(text_of(word) for word in words[:100] if isinstance(word, str))


def _ways(settings: ValidationSettings) -> list[str]:
    ways = findings.parents_of(os.path.realpath(settings.execute))
    ways += findings.parents_of(os.path.realpath(settings.sailplane_wrapper_dir))
    return list(dict.fromkeys(ways))


def _programs(settings: ValidationSettings) -> list[str]:
    return [SHELL, os.path.realpath(settings.sailplane_wrapper_python)]


# -- the node ----


def look_at_node(settings: SwitchSettings, switch: Switch, read: Callable[[str], str] | None = None) -> Node:
    """What the node's files say."""
    read = read or _text
    mountinfo = read("/proc/self/mountinfo")
    return Node(
        no_new_privs="\nNoNewPrivs:\t1\n" in read("/proc/self/status"),
        nosuid=tuple(str(path) for path in _set_uid_programs(settings, switch) if _is_nosuid(path)),
        userns=_userns_lack(switch),
        subuids=_subuid_lack() if switch.name == "userns" else "",
        hidepid=findings.mount_of(mountinfo, "/proc").get("hidepid", "0") not in ("0", "off"),
        masked_proc=findings.masks_proc(mountinfo),
    )


def _userns_lack(switch: Switch) -> str:
    words = userns.obstacle(switch.host if isinstance(switch, userns.UsernsSwitch) else userns.Host())
    return words if words is not None and "NoNewPrivs" not in words else ""


def _subuid_lack() -> str:
    try:
        read_ranges()
    except LeaseFault as fault:
        return str(fault)
    return ""


def _set_uid_programs(settings: SwitchSettings, switch: Switch) -> list[Path]:
    names: tuple[str, ...] = ()
    if switch.name == "userns":
        names = ("newuidmap", "newgidmap")
    elif switch.needs_credential:
        names = ("sudo",)
    found = [Path(path) for path in (shutil.which(name) for name in names) if path]
    if switch.needs_credential and settings.glexec is not None:
        found.append(Path(settings.glexec))
    return found


def _is_nosuid(path: Path) -> bool:
    try:
        mode, flags = path.stat().st_mode, os.statvfs(path).f_flag
    except OSError:
        return False
    return bool(mode & stat.S_ISUID and flags & os.ST_NOSUID)


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
