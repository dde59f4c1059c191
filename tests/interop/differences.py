"""What may differ between a job on a stock execution point and on ours, and why. All else must be the same."""

from __future__ import annotations

from typing import Any

from tests.joblist import MB
from tests.userlog import EXECUTING, HELD, SUBMITTED, TERMINATED


def _because(reasons: dict[str, str]) -> dict[str, str]:
    """By attribute, of names by reason."""
    return {name: reason for reason, names in reasons.items() for name in names.split()}


# Of the job ad, in the queue or the history: these differ in a run of all kinds.
AD = _because(
    {
        "two jobs, each with a number, files, slot and time": "ClusterId Cmd Iwd GlobalJobId UserLog JobSubmitFile"
        " Requirements AutoClusterId QDate EnteredCurrentStatus CompletionDate FirstJobMatchDate InitialWaitDuration"
        " JobStartDate JobCurrentStartDate JobCurrentStartExecutingDate JobCurrentStartTransferInputDate"
        " JobCurrentFinishTransferInputDate JobCurrentStartTransferOutputDate JobCurrentFinishTransferOutputDate"
        " JobFinishedHookDone LastJobLeaseRenewal LastMatchTime LastPublicClaimId LastRemoteHost LastVacateTime"
        " ServerTime TransferInStarted TransferInFinished TransferOutStarted TransferOutFinished",
        "stock counts blocks of its first process, we where the kernel lets the pilot see them":
            "BlockReadKbytes BlockReads BlockWriteKbytes BlockWrites RecentBlockReadKbytes RecentBlockReads"
            " RecentBlockWriteKbytes RecentBlockWrites RecentStatsLifetimeStarter StatsLifetimeStarter",
        "measured by another method": "ImageSize ImageSize_RAW ResidentSetSize ResidentSetSize_RAW CpusUsage",
        "stock counts its own log and ads in the scratch directory; the pilot cannot look into a sandbox of another"
        " account without a call of the switch": "DiskUsage DiskUsage_RAW ScratchDirFileCount StdoutMtime StderrMtime",
        "there are no GPUs to provide": "GPUsProvisioned",
        "the scratch directory is never encrypted, and we do not say so": "ExecuteDirWasEncrypted",
        "only for jobs that were spooled": "SpooledOutputFiles",
        "the proxy is delegated as an item of its own, and counted": "TransferInputStats TransferOutputStats",
        "words with the name of the slot in them": "HoldReason VacateReason",
        "a program that is not there: stock begins the execution first, we find out first":
            "NumJobStarts NumVacatesByReasonPreExecution NumVacatesPreExecution",
        "input that is lost: stock asks the shadow for another try": "NumOutputTransferStarts",
        "stock reports the end of a job that is held by a call of its own": "ExitReason JobCoreDumped",
    }
)  # fmt: skip
# These differ in some runs only: what took time, what the negotiator did meanwhile.
SOMETIMES = _because(
    {
        "durations, in whole seconds": "ActivationDuration ActivationSetupDuration ActivationExecutionDuration"
        " ActivationTeardownDuration CommittedTime CommittedSlotTime CumulativeSlotTime LastRemoteWallClockTime"
        " RemoteWallClockTime RemoteUserCpu RemoteSysCpu CumulativeRemoteUserCpu CumulativeRemoteSysCpu"
        " CumulativeRemoteCPU CommittedSuspensionTime CumulativeSuspensionTime",
        "when a job that ran twice began the first time": "JobLastStartDate",
        "whether the one slot of a side was busy when the negotiator looked": "LastRejMatchNegotiator"
        " LastRejMatchReason LastRejMatchTime",
        "a stock shadow reports a hold of its own once more for each try to end the job": "NumHolds NumHoldsByReason"
        " NumVacates NumVacatesByReason",
    }
)
# Event numbers of the user's log.
EVENTS = {6: "an update of the image's size: it comes with an update of usage, at times of each side's own"}
# Events of file transfers are counted, and their order among the others is left out: a shadow hears of a transfer's end
# from the process that made it, and of the job's beginning or end from the starter. Which it reads first is chance, the
# more so where the starter goes on at once.
# By kind of job: why its log has other events.
EVENTS_OF = {
    "lacks a token": "the shadow holds the job; stock's starter has a word of its own to it",
    "leaves a named pipe in its output": "stock leaves it out without a word",
    "has no program": "stock begins the execution first",
}
_HELD_FIRST = "the shadow may hold the job before it has written the transfer's end"
# By kind of job: why its log has more or fewer events of file transfers.
TRANSFERS_OF = {
    "streams its output": "stock has nothing to transfer at the end",
    "has too much output": _HELD_FIRST,
    "does not make its output": _HELD_FIRST,
    "sends a link to a directory": _HELD_FIRST,
    "wants a URL that is not there": "stock tries the transfer twice",
    "lost its input": "stock tries the transfer twice",
}
# Of commands before and after the job.
_COMMAND_ENDS = _because(
    {
        "ours says how the command ended; stock's is 0, whatever it was": "HoldReasonSubCode VacateReasonSubCode",
        "stock's names for how the one before it ended; ours says it in the reason of the hold": "PreExitBySignal"
        " PreExitCode",
        "stock's is the command's where that failed, ours the job's own": "ExitCode",
    }
)
# By kind of job: attributes of its ad that may differ, and why.
AD_OF: dict[str, dict[str, str]] = {
    "is deferred": {"DeferralTime": "a time for each side"},
    "has a command before it that fails": _COMMAND_ENDS,
    "has a command after it that fails": _COMMAND_ENDS,
    "takes too much memory": _because(
        {
            "34 as with a cgroup; a stock startd's policy says 21": "HoldReasonCode VacateReasonCode",
            "it was killed for it, and ours says so": "ExitBySignal ExitSignal",
        }
    ),
    "lacks a token": {"ExitCode": "ours reports the end that the shadow asked for, stock's its own problem only"},
    "moves files by URL": {"TransferOutputRemaps": "a URL for each side"},
    "speaks chirp": {"BytesSent": "the outputs differ, see there"},
}
# By kind of job: files that may differ, and why.
FILES_OF: dict[str, dict[str, str]] = {
    "has too much output": {
        "two": "stock sends what is below the limit; ours nothing of a file that is not sent whole"
    },
    "speaks chirp": {"out": "stock takes get_job_attr_delayed for get_job_attr of a name '_delayed'"},
}
# A stock shadow knows of no hold while its job runs.
_REMOVE_KILL_SIG = {"back": {"heard": b"USR2\n"}}
# What went before the file that cannot be sent has come.
_STREAMS = {"out": "", "err": ""}
# By kind of job: what is otherwise than in the list, on both sides.
IN_A_STOCK_POOL: dict[str, dict[str, Any]] = {
    "hears of its hold": _REMOVE_KILL_SIG,
    "hears of its hold by a periodic expression": _REMOVE_KILL_SIG,
    "does not make its output": _STREAMS,
    "has too much output": _STREAMS,
    "sends a link to a directory": _STREAMS,
}
# By kind of job: what is otherwise than in the list on the stock execution point.
ON_STOCK: dict[str, dict[str, Any]] = {
    "has no program": {"events": (SUBMITTED, EXECUTING, HELD)},
    "has a command before it that fails": {"hold": (43, 0)},
    "has a command after it that fails": {"hold": (44, 0)},
    # Without a cgroup stock leaves memory to the startd's policy, whose code is 21 whatever it looked at.
    "takes too much memory": {"hold": (21, 102)},
    "speaks chirp": {"out": "7\nUNDEFINED\nword\nb'2345'\nNotAuthorized\n"},
    "has too much output": {"back": {"two": bytes(MB)}},
    "leaves a named pipe in its output": {"events": (SUBMITTED, EXECUTING, TERMINATED)},
}
