"""Arguments and environment of a job's ad: ``Arguments`` and ``Environment`` are V2, ``Args`` and ``Env`` V1. Pure."""

from __future__ import annotations

from classad2 import ClassAd

from cedar.classads import get_str
from pilot.quoting import check_words, environment_v1, environment_v2, split_v1, split_v2


def arguments_of(ad: ClassAd, prefix: str = "") -> tuple[str, ...]:
    """The arguments, without the program. ``prefix``: "Pre" or "Post" for the commands around the job.

    Raises:
        ValueError: a quote that does not end, a NUL character, more than fits.
    """
    if f"{prefix}Arguments" in ad:
        words = split_v2(get_str(ad, f"{prefix}Arguments"))
    else:
        words = split_v1(get_str(ad, f"{prefix}Args", ""))
    check_words(words, "the arguments")
    return tuple(words)


def environment_of(ad: ClassAd, prefix: str = "") -> dict[str, str]:
    """The variables; of two with one name the later one counts.

    Raises:
        ValueError: an entry that is not NAME=VALUE, a quote that does not end, a NUL character, more than fits.
    """
    if f"{prefix}Environment" in ad:
        return environment_v2(get_str(ad, f"{prefix}Environment"))
    return environment_v1(get_str(ad, f"{prefix}Env", ""), get_str(ad, f"{prefix}EnvDelim", "")[:1])
