"""Whether a job may have commands of its own run before and after it: STARTER_ALLOW_JOB_PRE_AND_POST_CMD. Pure."""

from __future__ import annotations

from classad2 import ClassAd, ExprTree

from cedar.classads import evaluate, get_str

COMMANDS = ("PreCmd", "PostCmd")


def named(job: ClassAd) -> list[str]:
    """Those of the two commands that the job's ad names."""
    return [name for name in COMMANDS if get_str(job, name, "")]


def allowed(expression: str, slot_ad: str, job: ClassAd) -> bool:
    """What the knob says, with the slot's ad as MY and the job's as TARGET. What is neither true nor false lets nothing
    run."""
    ad = ClassAd(slot_ad) if slot_ad else ClassAd()
    ad["SailplaneAllow"] = ExprTree(expression)
    return evaluate(ad, "SailplaneAllow", job) is True
