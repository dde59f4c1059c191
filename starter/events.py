"""What can happen to an activation, and what ``starter.life`` may order: the words of its table. Pure values."""

from __future__ import annotations

from enum import Enum

import attrs

from starter.verdict import Hold, Requeue, Verdict

# --- events ------------------------------------------------------------------------------------------------------


@attrs.frozen
class JobKnown:
    """The shadow has told the job. ``refusal``: why it cannot run here at all, if so."""

    has_proxy: bool
    output_on_evict: bool
    refusal: Verdict | None = None


@attrs.frozen
class CredentialStored:
    """The job's proxy was fetched, verified and stored at the pilot's side."""


@attrs.frozen
class StagedIn:
    """The sandbox is complete."""


@attrs.frozen
class Started:
    """The job's program replaced the wrapper: exec succeeded."""


@attrs.frozen
class StepFailed:
    """The step of the current state failed. ``sandbox``: something may lie in the user's sandbox directory."""

    verdict: Verdict
    sandbox: bool


@attrs.frozen
class JobEnded:
    """The job's first process ended with this wait status. ``verdict``: where that does not decide what becomes of
    the job, since what ran around it failed (the command after it, or the site's USER_JOB_WRAPPER)."""

    wait_status: int
    exact: bool
    verdict: Verdict | None = None


@attrs.frozen
class FamilyStopped:
    """The family was stopped. ``survivors``: pids that even SIGKILL did not end within its deadline."""

    survivors: tuple[int, ...]


@attrs.frozen
class StagedOut:
    """The other end has every output file, and the sandbox was removed (or ``left`` says why not)."""

    left: str


@attrs.frozen
class Cleaned:
    """The sandbox was removed without output, or ``left`` says why it was not."""

    left: str


@attrs.frozen
class Reported:
    """The shadow took the final report, or its connection ended on it."""


@attrs.frozen
class Disconnected:
    """The syscall socket is gone. A shadow may come back while the job's lease lasts."""

    text: str


@attrs.frozen
class Reconnected:
    """A shadow has taken the job up again, on a new syscall socket."""


@attrs.frozen
class ShadowLost:
    """The shadow is given up: none has come back while the lease lasted, or a step failed with it."""

    text: str


@attrs.frozen
class StartdLost:
    """The startd is gone: nobody may command this job any more."""


@attrs.frozen
class ProxyEnding:
    """The job's proxy ends within the safety margin; afterwards the site would let us do nothing for the job."""

    text: str


@attrs.frozen
class IdentityChanged:
    """A renewed proxy that is not the same person's (or group's) came, and the settings say that the job must end.

    ``verdict``: a hold, or another try with the new proxy."""

    verdict: Hold | Requeue


@attrs.frozen
class DeactivateAsked:
    """The startd wants the job ended.

    ``soft``: with the job's own signal and grace; ``output``: fetch output whatever the job says.
    """

    reason: str
    vacate_code: int
    soft: bool
    output: bool


@attrs.frozen
class LimitExceeded:
    """The job went over a limit: of its own (wall clock), or of the slot's (memory, disk, processes, WANT_HOLD).

    ``soft``: it has its signal and its grace; what exhausts the node is stopped hard.
    """

    hold: Hold
    soft: bool


@attrs.frozen
class CheckpointReached:
    """The job's first process ended as the job says that it does once its checkpoint is written: it is to be started
    again, here or elsewhere."""

    ended: JobEnded


@attrs.frozen
class CheckpointSent:
    """The checkpoint's files were offered to the shadow. Where that failed for a while only, the job goes on all the
    same: the next checkpoint may fare better. ``go_on``: whether its claim would take it again."""

    go_on: bool = True


@attrs.frozen
class SuspendAsked:
    """Stop every process of the job for a while."""


@attrs.frozen
class ContinueAsked:
    """The end of a suspension."""


Event = (
    JobKnown
    | CredentialStored
    | StagedIn
    | Started
    | StepFailed
    | JobEnded
    | FamilyStopped
    | StagedOut
    | Cleaned
    | Reported
    | Disconnected
    | Reconnected
    | ShadowLost
    | StartdLost
    | ProxyEnding
    | IdentityChanged
    | DeactivateAsked
    | LimitExceeded
    | CheckpointReached
    | CheckpointSent
    | SuspendAsked
    | ContinueAsked
)

# Facts come from the kernel, a peer or the clock at any moment: each has a rule in every state. The other events are
# the outcome of a step and come only while that step runs.
FACTS: tuple[type, ...] = (
    JobEnded, Disconnected, Reconnected, ShadowLost, StartdLost, ProxyEnding, IdentityChanged, DeactivateAsked,
    LimitExceeded, CheckpointReached, SuspendAsked, ContinueAsked,
)  # fmt: skip


# --- commands ----------------------------------------------------------------------------------------------------


class Step(Enum):
    """Work that reports one fact when it is over. A new step cancels the one before it."""

    ASK = "ask the shadow"
    FETCH_CREDENTIAL = "fetch the credential"
    STAGE_IN = "stage in"
    LAUNCH = "launch"
    STOP_SOFTLY = "stop softly"
    STOP_HARD = "stop hard"
    CHECKPOINT = "send the checkpoint"
    STAGE_OUT = "stage out"
    CLEAN = "clean"
    REPORT = "report"


@attrs.frozen
class Begin:
    """Cancel the current step, if any, and begin this one."""

    step: Step


@attrs.frozen
class Suspend:
    """Stop the family's processes; the shadow is told."""


@attrs.frozen
class Resume:
    """Continue the family's processes; the shadow is told."""


@attrs.frozen
class DeclareBroken:
    """Tell the startd that the slot cannot be used until somebody has looked."""

    text: str


@attrs.frozen
class LeaveToJanitor:
    """Tell the startd that the sandbox could not be removed: its janitor tries again; the slot stays in use."""

    text: str


@attrs.frozen
class Exit:
    """The starter ends; its exit status is ``EXIT_*`` of HTCondor's starter (execute-side reference 3.8)."""

    status: int


Command = Begin | Suspend | Resume | DeclareBroken | LeaveToJanitor | Exit

EXIT_NORMAL, EXIT_FAILURE, EXIT_LOST_SHADOW, EXIT_UNKILLABLE = 0, 1, 2, 16
