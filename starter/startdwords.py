"""What starter and startd say to one another of an activation, in the words of each. Pure."""

from __future__ import annotations

from cedar.commands import HoldCode
from pilot.rpc import RpcFault
from starter import updates
from starter.events import ContinueAsked, DeactivateAsked, Event, JobEnded, LimitExceeded, SuspendAsked
from starter.messages import ContinueJob, Deactivate, Ended, HoldJob, SuspendJob
from starter.verdict import Exited, Hold, Requeue, Verdict, words
from starter.work import Work


def asked(message: object) -> Event:
    """What the startd wants, as a fact.

    Raises:
        RpcFault: nothing that a startd says to a starter.
    """
    match message:
        case Deactivate(how=how, reason=reason, vacate_code=code):
            return DeactivateAsked(reason, code, soft=how != "fast", output=how == "final-transfer")
        case HoldJob(soft=soft, subcode=subcode, reason=reason):
            return LimitExceeded(Hold(HoldCode.STARTD_HELD_JOB, subcode, reason), soft=soft)
        case SuspendJob():
            return SuspendAsked()
        case ContinueJob():
            return ContinueAsked()
        case _:
            raise RpcFault("unexpected", f"{type(message).__name__} is not for a starter")


def ended(work: Work, verdict: Verdict | None, end: JobEnded | None, *, sandbox: bool = True) -> Ended:
    """The last word of a starter: how it went, and what the job used. ``sandbox``: something of it may be left."""
    usage = work.usage
    return Ended(
        type(verdict).__name__,
        verdict_words(verdict),
        None if end is None else end.wait_status,
        cpu_s=usage.user_s + usage.system_s if usage else 0.0,
        rss_peak_kb=usage.rss_peak_kb if usage else 0,
        code=verdict.code if isinstance(verdict, Hold | Requeue) else 0,
        duration_s=work.duration_s,
        nothing_left=not sandbox and isinstance(verdict, Exited) and _no_process_left(work),
    )


def _no_process_left(work: Work) -> bool:
    """Nor an account: one that was lent to the job by the switch is given back by the end of this process."""
    return not work.registered and not work.guests.families and work.switch.name != "userns"


def verdict_words(verdict: Verdict | None) -> str:
    """In one line."""
    return updates.one_line(words(verdict)) if verdict else "nothing was decided"
