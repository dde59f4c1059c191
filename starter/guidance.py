"""What a shadow wants done at two points of an activation (call 305): its words, and what they mean here. Pure.

Before the input moves ("JobSetup") and when it has come or failed ("JobEnvironment") a starter asks; the answer is an
ad with a Command. What is unknown means to carry on, as it does in a stock starter.
"""

from __future__ import annotations

import base64
import re

import attrs
from classad2 import ClassAd

from cedar.classads import get_int, get_str, set_str
from cedar.commands import VERSION

JOB_SETUP, JOB_ENVIRONMENT = "JobSetup", "JobEnvironment"
# An older shadow does not know the call, answers nothing, and is out of step from then on (wire reference T33).
ASKED_SINCE = (24, 5)
# Common files of several jobs are offered to a starter of this version or later by a shadow between these two, which
# leaves them out of the ordinary input then. Before, no shadow looks at it; after, the schedd asks the slot's ad.
STARTER_STAGES_SINCE, SCHEDD_STAGES_SINCE = (25, 2), (25, 10)
# The last release that such a shadow knows to want its common files with all the others.
WITHOUT_STAGING = "25.1.0"
# Version of the transfer of common files (HasCommonFilesTransfer): none.
COMMON_FILES = 0
# Of a command that cannot be carried out (RequestResultCode): stock's InternalError; the errno goes along.
INTERNAL_ERROR = 1
# RetryDelay where the shadow names none, as in stock; and what a delay may be at most.
DEFAULT_DELAY_S, MAX_DELAY_S = 20, 3600
# What is sent of this side's story at most, before base64.
MAX_DIAGNOSTIC_BYTES = 24 * 1024
# The one diagnostic that shadows of 25.x ask for.
SEND_EP_LOGS = "send_ep_logs"
# Commands that move common files: refused in so many words, since going on would start a job without them.
_STAGING = ("StageCommonFiles", "MapCommonFiles", "ColorSlot")


@attrs.frozen
class CarryOn:
    """As if nobody had been asked."""

    unknown: str = ""


@attrs.frozen
class StartJob:
    """The job may start."""


@attrs.frozen
class Abort:
    """The job is not to be started here."""


@attrs.frozen
class RetryTransfer:
    """Fetch the input again."""


@attrs.frozen
class RunDiagnostic:
    """Send the result of this diagnostic, then ask again."""

    name: str


@attrs.frozen
class AskAgain:
    """After so many seconds, with this context."""

    after_s: float
    context: ClassAd | None = None


@attrs.frozen
class SetUpAgain:
    """The conversation about the job's setup is not over: have it now, then ask about the environment again."""


@attrs.frozen
class Unable:
    """A command that is not served: the shadow is told so, in the context of the next question."""

    command: str


Guidance = CarryOn | StartJob | Abort | RetryTransfer | RunDiagnostic | AskAgain | SetUpAgain | Unable


def knows_guidance(shadow_version: str) -> bool:
    """Whether a shadow may be asked. ``shadow_version``: its `$CondorVersion: …$`, empty if it does not say."""
    return version_of(shadow_version) >= ASKED_SINCE


def told_version(shadow_version: str) -> str:
    """The version that a shadow is told, so that it sends common files with all other input."""
    between = STARTER_STAGES_SINCE <= version_of(shadow_version) < SCHEDD_STAGES_SINCE
    return WITHOUT_STAGING if between else VERSION


def version_of(text: str) -> tuple[int, ...]:
    """(major, minor) in a `$CondorVersion: 25.8.2 … $`; (0, 0) if there is none."""
    found = re.search(r"\b([0-9]{1,4})\.([0-9]{1,4})\.", text)
    return tuple(map(int, found.groups())) if found else (0, 0)


def question(kind: str, context: ClassAd | None = None) -> ClassAd:
    """The request ad; ``context`` is what a shadow's last command led to."""
    ad = ClassAd()
    ad["RequestType"] = kind
    if kind == JOB_SETUP:
        ad["HasCommonFilesTransfer"] = COMMON_FILES
        ad["ContextAd"] = ClassAd() if context is None else context
    return ad


def guidance(kind: str, result: int, ad: ClassAd) -> Guidance:
    """What an answer means. ``result``: 0, or negative for a question that the shadow did not understand.
    Attributes of the wrong type count as missing."""
    if result != 0:
        return CarryOn()
    command = get_str(ad, "Command", "")
    match command:
        case "CarryOn" | "":
            return CarryOn()
        case "Abort":
            return Abort()
        case "RetryReqest" | "RetryRequest":  # the first is how it is spelled
            delay_s = min(max(get_int(ad, "RetryDelay", DEFAULT_DELAY_S), 0), MAX_DELAY_S)
            return AskAgain(delay_s, _context_in(ad))
        case _ if kind == JOB_SETUP and command in _STAGING:
            return Unable(command)
        case _ if kind == JOB_SETUP:
            return CarryOn(command)
    return _environment(command, ad)


def _environment(command: str, ad: ClassAd) -> Guidance:
    match command:
        case "StartJob":
            return StartJob()
        case "RetryTransfer":
            return RetryTransfer()
        case "DoJobSetup":
            return SetUpAgain()
        case "RunDiagnostic":
            name = get_str(ad, "Diagnostic", "")
            return RunDiagnostic(name) if name else CarryOn("RunDiagnostic without a name")
        case _:
            return CarryOn(command)


def _context_in(ad: ClassAd) -> ClassAd | None:
    found = ad.get("ContextAd", None)
    return found if isinstance(found, ClassAd) else None


def unable(command: str, errno: int) -> ClassAd:
    """The context that says that a command was not carried out."""
    ad = ClassAd()
    set_str(ad, "Command", command)
    ad["Result"] = False
    ad["RequestResultCode"], ad["RequestResultSubCode"] = INTERNAL_ERROR, errno
    return ad


def environment_ready() -> ClassAd:
    """The context of a setup that goes on when the input is there."""
    ad = ClassAd()
    ad["JobEnvironmentReady"] = True
    return ad


def diagnostic_result(name: str, story: str) -> ClassAd:
    """The event (304) with what a diagnostic found. No program is run for one: what there is to tell is known here."""
    ad = ClassAd()
    ad["EventType"] = "DiagnosticResult"
    set_str(ad, "Diagnostic", name)
    if name != SEND_EP_LOGS:
        ad["Result"] = "Error - Unregistered"
        return ad
    ad["Result"], ad["ExitStatus"] = "Completed", 0
    ad["Contents"] = base64.b64encode(story.encode("utf-8", "replace")[-MAX_DIAGNOSTIC_BYTES:]).decode("ascii")
    return ad
