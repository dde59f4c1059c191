"""How an activation ends, and what the shadow is told of it. Pure values; no I/O, no clock."""

from __future__ import annotations

import attrs

from cedar.commands import ExitReason, HoldCode, HoldSubcode


@attrs.frozen
class Exited:
    """The job's own end. ``wait_status`` as wait(2) gives it; ``exact`` is False where a foreign switch masks codes."""

    wait_status: int
    exact: bool = True


@attrs.frozen
class Hold:
    """The job cannot run until a person has done something: goes on hold with these codes and words.

    ``output``: of a job that was stopped for it, what it has made so far is fetched first; ``final``: as its last, to
    where the owner wants it."""

    code: int
    subcode: int
    text: str
    output: bool = False
    final: bool = False


@attrs.frozen
class Requeue:
    """Nobody's fault on the job's side: the job goes back to idle. ``code`` is the hold code that stock would use,
    sent with a ``subcode`` of -1000 or below so that the shadow requeues (wire reference 4.5)."""

    code: int
    text: str
    subcode: int = HoldSubcode.REQUEUE


@attrs.frozen
class Killed:
    """The startd's side ended it (rm, hold, vacate, shutdown). ``output``: fetch the sandbox's output first; ``final``:
    for the job's owner, and not to be started again from."""

    reason: str
    vacate_code: int
    output: bool
    final: bool = False


@attrs.frozen
class Abandoned:
    """The shadow or the startd is gone: nobody is left to report to."""

    text: str


Verdict = Exited | Hold | Requeue | Killed | Abandoned


def wants_output(verdict: Verdict) -> bool:
    """Whether the sandbox's output is fetched before the sandbox is removed."""
    return isinstance(verdict, Exited) or (isinstance(verdict, Killed | Hold) and verdict.output)


def is_final(verdict: Verdict) -> bool:
    """Whether the output goes to where the owner wants it. Otherwise the submit side keeps it for the next start."""
    return isinstance(verdict, Exited) or (isinstance(verdict, Killed | Hold) and verdict.final)


def words(verdict: Verdict) -> str:
    """One line for logs and for the startd."""
    match verdict:
        case Exited(wait_status=status):
            return f"exited, wait status {status}"
        case Hold(code=code, subcode=subcode, text=text):
            return f"hold {code}/{subcode}: {text}"
        case Requeue(code=code, text=text):
            return f"requeue ({code}): {text}"
        case Killed(reason=reason):
            return f"killed: {reason}"
        case Abandoned(text=text):
            return f"abandoned: {text}"


def hold_for_user_refused(user: str, site: str, tool_words: str) -> Hold:
    """Code 28 (GlexecChownSandboxToUser): the site refused this user, or has no account for him."""
    said = f" The site's tool said: {tool_words}" if tool_words else ""
    return Hold(
        HoldCode.GLEXEC_CHOWN_SANDBOX_TO_USER,
        0,
        f"{site} refused to run jobs of {user}, or has no account for that identity.{said}"
        " Ask the site's administrator to authorise it, or release the job with requirements that avoid this site.",
    )


def job_exit_reason(verdict: Verdict) -> int:
    """The reason code of job_exit (-65), wire reference 4.3.

    A job that this side ended asks for another try: JOB_KILLED makes a stock schedd remove it from its queue, unless
    the submit side itself had asked for the end (it then knows better than either code).
    """
    if isinstance(verdict, Exited):
        dumped_core = bool(verdict.wait_status & 0x80) and bool(verdict.wait_status & 0x7F)
        return ExitReason.JOB_COREDUMPED if dumped_core else ExitReason.JOB_EXITED
    return ExitReason.JOB_SHOULD_REQUEUE
