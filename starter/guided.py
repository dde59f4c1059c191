"""Asks the shadow what is to be done before and after the input, and does it: the acting side of ``starter.guidance``.

Every wait can be cancelled; a shadow that asks for one again and again is bounded by the job's limits and its claim.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable

import attrs
import trio
from classad2 import ClassAd

from cedar.commands import VacateCode, condor_version_text
from starter import guidance, updates
from starter.events import Event, StagedIn, StepFailed
from starter.guidance import (
    JOB_ENVIRONMENT,
    JOB_SETUP,
    Abort,
    AskAgain,
    CarryOn,
    Guidance,
    RetryTransfer,
    RunDiagnostic,
    SetUpAgain,
    StartJob,
    Unable,
)
from starter.places import Unsafe, empty_place
from starter.verdict import Requeue
from starter.work import Work

# A shadow whose own side of the transfer has not ended for it yet has us ask again in 5 s (wire reference T15). It
# takes milliseconds: so the first questions come sooner, and the delay that it names holds from then on.
SOON_S = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
# Each costs a call of the switch; a submit side that fails so often in a row fails.
MAX_REFILLS = 3
# Commands other than to ask again, in one conversation: more are no conversation.
MAX_COMMANDS = 50


@attrs.frozen
class Filled:
    """What came of one try to fill the sandbox. ``of_transfer``: it failed, if it did, with the submit side's files."""

    event: Event
    of_transfer: bool = False


async def set_up(work: Work, context: ClassAd | None = None) -> Requeue | None:
    """Before the input: None to go on, or why the job is not started.

    Raises:
        PeerFault, ShadowRefused: the shadow is lost.
    """
    if not guidance.knows_guidance(work.shadow_version):
        return None
    for _ in range(MAX_COMMANDS):
        match await _ask_patiently(work, JOB_SETUP, context):
            case Abort():
                return _called_off(work)
            case Unable(command):
                context = guidance.unable(command, errno.ENOTSUP)
            case _:
                return None
    return _called_off(work)


async def fill(work: Work, fill_once: Callable[[], Awaitable[Filled]]) -> Event:
    """The sandbox is filled, and the submit side says what follows: by itself the fact of ``fill_once``.

    Raises:
        PeerFault, ShadowRefused: the shadow is lost.
    """
    if work.called_off is not None:
        return StepFailed(work.called_off, sandbox=False)
    for _ in range(MAX_REFILLS):
        filled = await fill_once()
        again, event = await _after(work, filled)
        if not again:
            return event
        try:
            empty_place(work.place)
        except (OSError, Unsafe) as fault:  # other jobs of this account can put something there
            work.note(f"the input is not fetched again, since its sandbox is not empty: {fault}")
            return event
    return (await fill_once()).event


async def _after(work: Work, filled: Filled) -> tuple[bool, Event]:
    """Whether to fill the sandbox again; otherwise the fact."""
    ready = isinstance(filled.event, StagedIn)
    if not (ready or filled.of_transfer) or work.shadow.lost or not guidance.knows_guidance(work.shadow_version):
        return False, filled.event
    for _ in range(MAX_COMMANDS):
        match await _ask_patiently(work, JOB_ENVIRONMENT, None, soon=ready):
            case RetryTransfer() if not ready:
                return True, filled.event
            case Abort() if ready:
                return False, StepFailed(_called_off(work), sandbox=True)
            case RunDiagnostic(name):
                await work.shadow.notify(guidance.diagnostic_result(name, _told(work, filled.event)))
            case SetUpAgain():
                if (verdict := await set_up(work, guidance.environment_ready())) is not None:
                    return False, StepFailed(verdict, sandbox=True)
            case _:
                return False, filled.event
    return False, filled.event


async def _ask_patiently(work: Work, kind: str, context: ClassAd | None, *, soon: bool = False) -> Guidance:
    """One answer that is not to ask again. ``soon``: what is waited for is over in a moment, whatever is said."""
    sooner = iter(SOON_S if soon else ())
    while True:
        answer = guidance.guidance(kind, *await work.shadow.request_guidance(guidance.question(kind, context)))
        match answer:
            case AskAgain(after_s, given):
                await trio.sleep(min(next(sooner, after_s), after_s) or 1.0)
                context = given if given is not None else context
            case CarryOn(unknown):
                if unknown:
                    work.note(f"the shadow's guidance {unknown[:40]!a} is not known here: carried on")
                return answer
            case StartJob():
                return answer
            case _:
                work.note(f"the shadow's guidance: {type(answer).__name__}")
                return answer


def _called_off(work: Work) -> Requeue:
    text = f"the submit side called off the start of job {work.description.job_id} on {work.host}"
    return Requeue(VacateCode.JOB_NOT_STARTED, updates.one_line(text))


def _told(work: Work, event: Event) -> str:
    """What the submit side hears of this side: of this job only, and no more than its event log says anyway."""
    verdict = f"\n{event.verdict.text}" if isinstance(event, StepFailed) and isinstance(event.verdict, Requeue) else ""
    return f"{condor_version_text()}\n{work.activation.slot} {work.host}\n{work.story()}{verdict}\n"
