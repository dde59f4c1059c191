"""What a call of the switch or a transfer that failed makes of the job. Pure."""

from __future__ import annotations

from cedar.commands import HoldCode, HoldSubcode
from pilot.outcomes import Denied, Misused, Outcome, Unavailable
from starter import updates
from starter.transfer import TransferFailed
from starter.verdict import Hold, Requeue, Verdict, hold_for_user_refused
from starter.work import Work


def switch_verdict(work: Work, outcome: Outcome | None, text: str) -> Verdict:
    """Denied holds the job, also before it started unless GLEXEC_HOLD_ON_INITIAL_FAILURE is False; everything else
    is the site's trouble and sends it back to idle."""
    if isinstance(outcome, Denied):
        who = work.credential.identity if work.credential else work.description.user
        hold = hold_for_user_refused(who, work.host, updates.one_line(outcome.text))
        if work.launched is None and not work.settings.glexec_hold_on_initial_failure:
            return Requeue(hold.code, hold.text)
        return hold
    if isinstance(outcome, Unavailable):
        text = f"the site's authorisation is not available on {work.host}: {outcome.text}"
    elif isinstance(outcome, Misused):
        text = f"the identity switch of {work.host} cannot be used for this job: {outcome.text}"
    return Requeue(HoldCode.GLEXEC_CHOWN_SANDBOX_TO_USER, updates.one_line(text))


def transfer_verdict(fault: TransferFailed, code: HoldCode) -> Verdict:
    """A failure that may pass, or is this node's (a plugin that it lacks, or that does not work here), is tried again,
    perhaps elsewhere."""
    ack = fault.ack
    if ack.retry or ack.hold_subcode <= HoldSubcode.REQUEUE:
        return Requeue(ack.hold_code or code, ack.reason, min(ack.hold_subcode, HoldSubcode.REQUEUE))
    return Hold(ack.hold_code or code, ack.hold_subcode, ack.reason)
