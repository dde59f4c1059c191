"""What validation found: one finding a check, and what a set of them means. Pure: answers in, findings out.

A cause is one word for programs (slot ads, the JSON report), the text is for people: who did what with which value,
and what to do next.
"""

from __future__ import annotations

import os
from typing import Literal

from attrs import field, frozen

from pilot.outcomes import Broken, Denied, Exited, Misused, Outcome, Signalled, Unavailable

Status = Literal["ok", "degraded", "failed", "skipped"]
# Of the report format: what kind of thing is at fault.
Kind = Literal["", "WN_Resource", "Config", "VO_Config", "VO_Proxy"]
HELLO = "Hello World"


@frozen
class Finding:
    """One check. `passing`: a failure that may go away by itself."""

    check: str
    status: Status
    text: str
    cause: str = ""
    kind: Kind = ""
    passing: bool = False


@frozen
class Validation:
    """All of a validation. `pilot_mapped`: the pilot's own call passes, and can vouch for the site later."""

    switch: str
    findings: tuple[Finding, ...]
    pilot_mapped: bool = False
    linger: str = ""
    began_at: float = 0.0
    ended_at: float = 0.0
    commands: tuple[str, ...] = field(factory=tuple)

    @property
    def failures(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.status == "failed")

    @property
    def passing(self) -> bool:
        """Whether all that failed may work later."""
        return all(finding.passing for finding in self.failures)

    @property
    def degraded(self) -> tuple[str, ...]:
        """Causes of what works less well than it could; for the slot ad."""
        return tuple(dict.fromkeys(each.cause for each in self.findings if each.status == "degraded"))

    @property
    def words(self) -> str:
        """One line."""
        if self.failures:
            return "; ".join(finding.text for finding in self.failures)
        shown = [each.text for each in self.findings if each.check == "switch"]
        return "; ".join(shown) or f"identity switch '{self.switch}' works"


# -- the policy of pool and site (glideinWMS) ----


class UseRefused(Exception):
    """Pool and site do not agree about the switch; the text says which knob says what."""


def decide_use(use: str, *, tool: bool, required: bool) -> bool:
    """Whether glexec is used: GLIDEIN_Glexec_Use, is there a tool, GLIDEIN_REQUIRE_GLEXEC_USE.

    There is no falling back once it is used. Raises UseRefused.
    """
    use = use.upper()
    if use == "NEVER" and required:
        raise UseRefused("the pool says GLIDEIN_Glexec_Use = NEVER, the site GLIDEIN_REQUIRE_GLEXEC_USE = True")
    if use == "NEVER":
        return False
    if tool:
        return True
    if use == "REQUIRED":
        raise UseRefused(
            "GLIDEIN_Glexec_Use is REQUIRED, but there is no glexec: GLEXEC must name the site's, or"
            " SAILPLANE_SWITCH another switch"
        )
    if required:
        raise UseRefused(
            "GLIDEIN_REQUIRE_GLEXEC_USE is True, but there is no glexec: GLEXEC must name the site's, or"
            " SAILPLANE_SWITCH another switch"
        )
    return False


def decide_switch(wanted: str, use: str, *, tool: bool, required: bool) -> str:
    """The switch, from what SAILPLANE_SWITCH wants and pool and site say. Raises UseRefused."""
    if not wanted.startswith("glexec"):
        if required:
            raise UseRefused(f"GLIDEIN_REQUIRE_GLEXEC_USE is True, but SAILPLANE_SWITCH is {wanted}")
        return wanted
    if wanted == "glexec-log-only" and use.upper() == "REQUIRED":
        raise UseRefused(
            "GLIDEIN_Glexec_Use is REQUIRED, and a glexec that only logs (SAILPLANE_SWITCH = glexec-log-only) isolates"
            " nothing: set GLIDEIN_Glexec_Use = OPTIONAL if the pool is content with that"
        )
    return wanted if decide_use(use, tool=tool, required=required) else "none"


# -- the two tests of the glidein scripts ----


def passed(outcome: Outcome, printed: str) -> bool:
    """Status 0, and the last line says hello."""
    lines = printed.rstrip("\n").split("\n")
    return outcome == Exited(0) and lines[-1] == HELLO


def judge_test(check: str, outcome: Outcome, printed: str, errors: str) -> Finding:
    """One of the two. A refusal is no fault: many sites do not map pilots."""
    said = f" It said: {errors}" if errors else ""
    match outcome:
        case Exited(0) if passed(outcome, printed):
            if errors:
                return Finding(check, "degraded", f"works, but prints on standard error: {errors}", "noisy-switch")
            return Finding(check, "ok", "works")
        case Denied(text):
            text = f"the site does not map the pilot itself ({text}); users may still be mapped"
            return Finding(check, "degraded", text, "pilot-not-mapped")
        case Unavailable(text):
            text = f"the identity switch is not available: {text}. Try again later."
            return Finding(check, "failed", text, "switch-unavailable", "WN_Resource", passing=True)
        case Misused(text):
            return Finding(
                check, "failed",
                f"the identity switch refused the pilot's proxy: {text}."
                " Check SAILPLANE_PILOT_PROXY: own file, mode 0600, not expired, with its key.",
                "pilot-proxy-refused", "VO_Proxy",
            )  # fmt: skip
        case Exited(0):
            last = printed.rstrip("\n").rpartition("\n")[2][:80]
            text = f"ended well, but its last line is '{last}' instead of '{HELLO}': it garbles commands.{said}"
            return Finding(check, "failed", text, "switch-garbles", "Config")
        case Exited(status):
            text = f"the command ended with status {status}: the target account could not run it.{said}"
            return Finding(check, "failed", text, _STATUS_CAUSES.get(status, "test-failed"), "Config")
        case Signalled(number):
            return Finding(check, "failed", f"killed by signal {number}.{said}", "test-failed", "Config")
        case Broken(text):
            return Finding(check, "failed", f"{text}.{said}", "test-failed", "Config")


_STATUS_CAUSES = {126: "target-cannot-execute", 127: "target-cannot-find"}


# -- what the target account says of the node ----


@frozen
class Target:
    """The far side's word, and the kernel's (uid, gid). `linger` as in `linger_of`."""

    uid: int
    gid: int
    closed: tuple[str, ...] = ()
    unusable: tuple[str, ...] = ()
    descriptor: bool = True
    no_new_privs: bool = False


def judge_target(target: Target, *, switch: str, own_uid: int, of_pilot: bool) -> list[Finding]:
    """`of_pilot`: the call was the pilot's own, which a site may well map to the account that it has already."""
    findings = [_judge_uid(target, switch, own_uid, of_pilot)]
    for path in target.closed:
        text = f"the target account cannot pass {path}: every directory above must let other accounts in (o+x)"
        findings.append(Finding("path", "failed", text, "closed-path", "Config"))
    for path in target.unusable:
        text = f"the target account cannot run {path}: it must be readable and executable for every account"
        findings.append(Finding("interpreter", "failed", text, "unusable-interpreter", "Config"))
    if not target.closed:
        findings.append(Finding("path", "ok", "every directory lets the target account pass"))
    if not target.unusable:
        findings.append(Finding("interpreter", "ok", "the target account can run shell and interpreter"))
    if target.descriptor:
        findings.append(Finding("descriptors", "ok", "descriptors can be passed to the far side"))
    else:
        text = "a descriptor did not arrive at the far side: the switch does not leave standard input as it is"
        findings.append(Finding("descriptors", "failed", text, "no-descriptors", "Config"))
    return findings


def _judge_uid(target: Target, switch: str, own_uid: int, of_pilot: bool) -> Finding:
    if 0 in (target.uid, target.gid):
        text = f"{switch} maps to root (uid {target.uid}, gid {target.gid}): nothing of ours may run there"
        return Finding("account", "failed", text, "maps-to-root", "Config")
    if target.uid != own_uid:
        return Finding("account", "ok", f"another account: uid {target.uid}, gid {target.gid}")
    if of_pilot:
        text = (
            f"the site maps the pilot to the account that it has (uid {own_uid}), or its tool only logs; a user whom it"
            " leads here is refused"
        )
        return Finding("account", "degraded", text, "pilot-keeps-account")
    return Finding("account", "failed", f"{switch} leaves the uid unchanged ({own_uid})", "not-isolated", "Config")


def linger_of(*, control: bool, switch_pid: int, far_pid: int) -> str:
    """How the switch stands by: our own root part on its control socket; the far side in its place; or unknown."""
    if control:
        return "control"
    return "exec" if switch_pid == far_pid else "stays"


# -- what the node takes away ----


@frozen
class Node:
    """Facts of a node, as its files say them. `nosuid`: set-uid programs on file systems that ignore that."""

    no_new_privs: bool = False
    nosuid: tuple[str, ...] = ()
    userns: str = ""
    subuids: str = ""
    hidepid: bool = False
    masked_proc: bool = False


def judge_node(node: Node, switch: str) -> list[Finding]:
    """One finding for each thing that a node may take away; a failure only where this switch cannot do without."""
    rows: list[tuple[str, bool, bool, str, str]] = [
        ("privileges", node.no_new_privs, switch == "userns", "no-new-privs",
         "this process may gain no privileges (NoNewPrivs): set-uid programs, as sudo and newuidmap, do not work"),
        ("set-uid programs", bool(node.nosuid), switch == "userns", "nosuid",
         f"on a file system mounted nosuid: {', '.join(node.nosuid)}"),
        ("user namespaces", bool(node.userns), switch == "userns", "no-userns", node.userns),
        ("sub-uids", bool(node.subuids), switch == "userns", "no-subuids", node.subuids),
        ("hidepid", node.hidepid, False, "hidepid", "/proc hides other accounts' processes (hidepid)"),
        ("/proc", node.masked_proc, False, "masked-proc",
         "parts of /proc are masked: a pid namespace keeps the host's /proc"),
    ]  # fmt: skip
    findings = []
    for check, lacks, needed, cause, text in rows:
        if not lacks:
            findings.append(Finding(check, "ok", "as needed"))
        elif needed:
            findings.append(Finding(check, "failed", text, cause, "WN_Resource"))
        else:
            findings.append(Finding(check, "degraded", text, cause))
    return findings


def mount_of(mountinfo: str, path: str) -> dict[str, str]:
    """Options of the mount that is exactly at `path` (the last one wins); empty when there is none."""
    found: dict[str, str] = {}
    for line in mountinfo.splitlines():
        words = line.split(" ")
        if len(words) > 5 and words[4] == path:
            options = ",".join([words[5], words[-1]]).split(",")
            found = {name: value for name, _, value in (option.partition("=") for option in options)}
    return found


def masks_proc(mountinfo: str) -> bool:
    """Whether something is mounted over parts of /proc: the kernel then refuses a fresh one in a user namespace."""
    places = [words[4] for words in (line.split(" ") for line in mountinfo.splitlines()) if len(words) > 4]
    return any(place.startswith("/proc/") and place != "/proc/sys/fs/binfmt_misc" for place in places)


def parents_of(path: str) -> list[str]:
    """The path and all above it, from the top."""
    found = [path]
    while found[-1] != os.path.dirname(found[-1]):
        found.append(os.path.dirname(found[-1]))
    return found[::-1]
