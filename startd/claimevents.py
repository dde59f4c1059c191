"""What happens to a claim, and what follows: the events that ``startd.claim`` takes, and the commands that it gives.

Plain values. Requests may be refused, facts have a rule in every state.
"""

from __future__ import annotations

from enum import Enum
from typing import Literal

import attrs

How = Literal["graceful", "fast", "final-transfer"]


class Cause(Enum):
    """What a job is retired for. An order cannot be called off, nor can PREEMPT once it was true."""

    ORDER = "order"
    PREEMPT = "PREEMPT"
    DRAIN = "drain"
    WANTED = "wanted"


@attrs.frozen
class HoldWish:
    """WANT_HOLD: the job goes on hold, with code 21 (StartdHeldJob), this subcode and these words."""

    subcode: int
    text: str


@attrs.frozen
class Ending:
    """How policy wants a job ended whose retirement time is over."""

    how: How = "graceful"
    hold: HoldWish | None = None


# --- requests: may be refused ------------------------------------------------------------------------------------


@attrs.frozen
class Activate:
    """The shadow wants a starter. ``ticket``: our number for it."""

    ticket: int


@attrs.frozen
class Suspend:
    """The schedd wants the job stopped for a while; CONTINUE does not end that."""


@attrs.frozen
class Continue:
    """The end of the schedd's suspension; not of one by policy."""


# --- facts: have a rule in every state ---------------------------------------------------------------------------


@attrs.frozen
class StarterRuns:
    """The spawner forked the starter."""

    pid: int


@attrs.frozen
class StarterNotStarted:
    """The spawner could not fork, or is gone."""

    text: str


@attrs.frozen
class StarterGone:
    """The starter was reaped, or said that nothing of its activation is left but its own process, which ends.
    ``broken``: it left something that makes the slot unusable."""

    wait_status: int
    broken: bool


@attrs.frozen
class Deactivated:
    """403, 404 or 561: the shadow wants the job ended; the claim stays unless ``worklife_over``."""

    how: How
    worklife_over: bool


@attrs.frozen
class Released:
    """The schedd gave the claim back."""


@attrs.frozen
class LeaseOver:
    """Nothing was heard of the schedd for a whole lease, or it says that it does not know the claim."""

    text: str


@attrs.frozen
class Shutdown:
    """The claim has to go at once: gracefully or fast."""

    fast: bool
    reason: str = "the pilot shuts down"
    vacate_code: int = 1013


@attrs.frozen
class Retire:
    """The claim takes no further job; the present one may go on for ``limit_s`` (MaxJobRetirementTime)."""

    limit_s: float
    reason: str
    vacate_code: int
    cause: Cause = Cause.ORDER


@attrs.frozen
class RetireTimer:
    """The time given to the job with ``serial`` is over; it is ended as policy says by now."""

    serial: int
    ending: Ending = Ending()


@attrs.frozen
class Unretire:
    """One thing that the claim was retired for is called off."""

    cause: Cause = Cause.DRAIN


@attrs.frozen
class SuspendWanted:
    """WANT_SUSPEND and SUSPEND are true."""


@attrs.frozen
class ContinueWanted:
    """CONTINUE is true."""


@attrs.frozen
class KillWanted:
    """KILL is true."""


@attrs.frozen
class KillTimer:
    """The time given to the starter with ``serial`` is over."""

    serial: int


Event = (
    Activate | Suspend | Continue | StarterRuns | StarterNotStarted | StarterGone | Deactivated | Released
    | LeaseOver | Shutdown | Retire | RetireTimer | Unretire | SuspendWanted | ContinueWanted | KillWanted | KillTimer
)  # fmt: skip
REQUESTS: tuple[type, ...] = (Activate, Suspend, Continue)
FACTS: tuple[type, ...] = (
    StarterRuns, StarterNotStarted, StarterGone, Deactivated, Released, LeaseOver, Shutdown, Retire, RetireTimer,
    Unretire, SuspendWanted, ContinueWanted, KillWanted, KillTimer,
)  # fmt: skip


# --- commands ----------------------------------------------------------------------------------------------------


@attrs.frozen
class StartStarter:
    """Ask the spawner for a starter."""

    ticket: int


@attrs.frozen
class EndJob:
    """Tell the starter to end the job, or to put it on hold."""

    how: How
    reason: str
    vacate_code: int
    hold: HoldWish | None = None


@attrs.frozen
class SuspendJob:
    """Tell the starter."""


@attrs.frozen
class ContinueJob:
    """Tell the starter."""


@attrs.frozen
class ArmKill:
    """Report KillTimer(serial) when the time for this way of ending is over."""

    serial: int
    how: How


@attrs.frozen
class ArmRetire:
    """Report RetireTimer(serial) in ``limit_s`` seconds."""

    serial: int
    limit_s: float


@attrs.frozen
class KillStarter:
    """SIGKILL to the starter; procd stops its family."""


@attrs.frozen
class TellSchedd:
    """RELEASE_CLAIM to the schedd: we end the claim, and nobody has told it so (wire reference T39)."""


@attrs.frozen
class Destroy:
    """The claim is over: give the slot back. ``broken``: withhold its resources."""

    broken: bool


Command = StartStarter | EndJob | SuspendJob | ContinueJob | ArmKill | ArmRetire | KillStarter | TellSchedd | Destroy
