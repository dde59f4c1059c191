"""How a call of the identity switch ends: typed outcomes instead of a bare number. Pure: values in, values out."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from attrs import frozen

# What glexec exits with on its own account (glexec manual, 0.6.0 and later).
MISUSED, UNAVAILABLE, DENIED, MASKED = 201, 202, 203, 204
# A pipe's capacity on Linux is 64 KiB; of it people want to read the end.
ERROR_BYTES = 2048


@frozen
class Exited:
    """The far side ran and exited. `masked`: a 204 that may stand for any of 201 to 204."""

    status: int
    masked: bool = False


@frozen
class Signalled:
    """The far side, or the switch itself, died by a signal."""

    number: int
    core: bool = False


@frozen
class Denied:
    """The switch said no, or could not ask: glexec's 203 means both."""

    text: str


@frozen
class Unavailable:
    """The switch is out of order, or did not answer in time."""

    text: str


@frozen
class Misused:
    """We (or the credential we were given) did not satisfy the switch's contract; trying again is useless."""

    text: str


@frozen
class Broken:
    """The call ended in a way that has no meaning in the contract."""

    text: str


Outcome = Exited | Signalled | Denied | Unavailable | Misused | Broken


def classify(wait_status: int, text: str, *, authorised: bool) -> Outcome:
    """What the wait status of a glexec call means.

    `authorised` is true once the far side has spoken: from then on 201 to 203 are the payload's own words (a
    switch that exec'ed shows them as they are), and 204 may hide any of them.
    """
    if os.WIFSIGNALED(wait_status):
        return Signalled(os.WTERMSIG(wait_status), os.WCOREDUMP(wait_status))
    status = os.waitstatus_to_exitcode(wait_status)
    if authorised:
        return Exited(status, masked=status == MASKED)
    refusals: Mapping[int, Callable[[str], Outcome]] = {
        MISUSED: Misused,
        UNAVAILABLE: Unavailable,
        DENIED: Denied,
        MASKED: lambda text: Exited(MASKED, masked=True),
    }
    return refusals[status](text) if status in refusals else Exited(status)


def classify_plain(wait_status: int, text: str, *, authorised: bool) -> Outcome:
    """The same where nothing stands between us and the far side: every status is its own."""
    if os.WIFSIGNALED(wait_status):
        return Signalled(os.WTERMSIG(wait_status), os.WCOREDUMP(wait_status))
    return Exited(os.waitstatus_to_exitcode(wait_status))


def clean_text(raw: bytes, limit: int = ERROR_BYTES) -> str:
    """The end of what a program printed, as one line that can forge nothing in a log or an ad."""
    text = raw[-limit:].decode("utf-8", "replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # glibc noise that old glexec versions print on success (HTCondor strips the same line).
    kept = [line for line in lines if "pthread_mutex_init" not in line]
    return "".join(c if c.isprintable() else "?" for c in "; ".join(kept))
