"""Whether a job may have commands of its own run before and after it: STARTER_ALLOW_JOB_PRE_AND_POST_CMD. Pure."""

from __future__ import annotations

from classad2 import ClassAd, ExprTree

from cedar.classads import evaluate, get_str
from cedar.commands import VERSION

# Up to 25.10 HTCondor ran them unasked; from here on its knob decides, False where it is not set (HTCONDOR-3721).
IGNORED_SINCE = (25, 11)
COMMANDS = ("PreCmd", "PostCmd")


def named(job: ClassAd) -> list[str]:
    """Those of the two commands that the job's ad names."""
    return [name for name in COMMANDS if get_str(job, name, "")]


def allowed(expression: str | None, slot_ad: str, job: ClassAd, version: str = VERSION) -> bool:
    """What the knob says, with the slot's ad as MY and the job's as TARGET; without it, what HTCondor of ``version``
    does. What is neither true nor false lets nothing run."""
    if expression is None:
        return tuple(map(int, version.split(".")[:2])) < IGNORED_SINCE
    ad = ClassAd(slot_ad) if slot_ad else ClassAd()
    ad["SailplaneAllow"] = ExprTree(expression)
    return evaluate(ad, "SailplaneAllow", job) is True
