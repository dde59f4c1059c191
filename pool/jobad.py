"""Job ads: what a user may say about a job, what only the pool says, and the ad that an execution point gets.

Pure: text and ads in, text and ads out. What a user sent is hostile until `accept` has passed it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import classad2
from attrs import frozen

from cedar import classads
from cedar.errors import PeerFault
from pool.ads import complete, is_number, text_of, value_of
from pool.model import Cluster, Entry, Job, JobState

# A stock job ad has about 100 attributes of some 5 kB; five times that is room for a user's own.
MAX_ATTRIBUTES = 500
MAX_AD_BYTES = 128 * 1024
MAX_NAME = 128
MAX_TRANSFER_NAME = 1024

# Attributes that say who somebody is, what became of a job, or how the pool is reached: the pool's word only.
_POOL_ONLY = """
Owner User OsUser NtDomain AcctGroup AcctGroupUser AccountingGroup ClusterId ProcId GlobalJobId QDate JobStatus
LastJobStatus EnteredCurrentStatus HoldReason HoldReasonCode HoldReasonSubCode RemoveReason ReleaseReason
x509userproxy x509userproxysubject x509UserProxyExpiration x509UserProxyEmail x509UserProxyVOName
x509UserProxyFirstFQAN x509UserProxyFQAN DelegatedProxyExpiration
TransferKey TransferSocket ShadowIpAddr ShadowVersion MyAddress UidDomain ScheddName ScheddIpAddr ClaimId
PublicClaimId ClaimIds ClaimIdList ChildClaimIds Capability RemoteHost RemoteSlotID RemoteUser RemoteOwner
StartdIpAddr StarterIpAddr NumJobStarts NumShadowStarts NumRestarts JobStartDate JobCurrentStartDate
CompletionDate ExitCode ExitSignal ExitBySignal ExitStatus JobRunCount MyType TargetType CondorVersion
CondorPlatform CurrentHosts MaxHosts MinHosts ImageSize ExecutableSize DiskUsage ResidentSetSize MemoryUsage
TransferInputSizeMB JobUniverse ShouldTransferFiles StreamIn
AuthenticatedIdentity AuthenticationMethod RemoteUserCpu RemoteSysCpu RemoteWallClockTime CumulativeRemoteUserCpu
CumulativeRemoteSysCpu CumulativeSlotTime CumulativeSuspensionTime CommittedTime CommittedSlotTime
CommittedSuspensionTime TotalSuspensions LastSuspensionTime NumCkpts NumJobCompletions NumSystemHolds
CheckpointNumber JobLastCheckpointTime
JobSubmitMethod LeaveJobInQueue JobNotification UserLog
"""
POOL_ONLY = frozenset(_POOL_ONLY.lower().split())

# A passphrase in an ad would be in files, lists and logs.
_SECRETS = frozenset({"myproxypassword", "myproxycryptpwd"})

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")

# Attribute -> type that a set value must evaluate to.
_STRINGS = (
    "Cmd",
    "Iwd",
    "Arguments",
    "Args",
    "Environment",
    "Env",
    "In",
    "Out",
    "Err",
    "TransferInput",
    "TransferOutput",
)
_STRINGS_2 = (
    "TransferOutputRemaps", "KillSig", "JobBatchName", "JobDescription", "WhenToTransferOutput", "OutputDestination",
    "TransferPlugins",
)  # fmt: skip
_BOOLS = ("TransferExecutable", "TransferIn", "StreamOut", "StreamErr", "PreserveRelativePaths")
_WHEN = ("ON_EXIT", "ON_SUCCESS", "ON_EXIT_OR_EVICT")
_WHOLE = ("JobPrio", "JobMaxVacateTime", "JobLeaseDuration", "DelegateJobGSICredentialsLifetime")


class BadJob(ValueError):
    """What a user asked for cannot be a job; the text names attribute, value and what to do."""


@frozen
class Accepted:
    """An ad that passed: text to keep, and the facts that the pool needs from it."""

    text: str
    executable: str | None  # basename under which it travels; None when it is the node's own


def accept(text: str) -> Accepted:
    """Check a submitted ad, old ClassAd text, one attribute a line. Raises BadJob; nothing is changed."""
    if len(text) > MAX_AD_BYTES:
        raise BadJob(f"the job's ad has more than {MAX_AD_BYTES // 1024} KiB; pass large values in a file")
    try:
        return _accept(text)
    except BadJob:
        raise
    except PeerFault as fault:  # the ClassAd limits' word
        raise BadJob(f"the job's ad is not usable: {fault.text}") from fault
    except ValueError as error:  # text that an ad cannot hold
        raise BadJob(f"the job's ad is not usable: {error}") from error


def with_attributes(text: str, more: Mapping[str, str]) -> str:
    """A submitted ad with attributes (expressions, old syntax) set anew. Raises BadJob where that would be no job."""
    names = {name.lower() for name in more}
    kept = [line for line in text.split("\n") if line and line.partition(" ")[0].lower() not in names]
    lines = [*kept, *(f"{name} = {expression}" for name, expression in more.items())]
    return accept("".join(f"{line}\n" for line in lines)).text


def _accept(text: str) -> Accepted:
    ad = classads.parse_old(text)
    if len(ad) > MAX_ATTRIBUTES:
        raise BadJob(f"the job's ad has {len(ad)} attributes; at most {MAX_ATTRIBUTES} are taken")
    for name in ad:
        _check_name(name)
    _check_types(ad)
    _check_requests(ad)
    _check_names(ad)
    return Accepted(text, executable_name(ad))


def _check_name(name: str) -> None:
    if len(name) > MAX_NAME or not _NAME.match(name):
        raise BadJob(f"{name[:MAX_NAME]!r} is not an attribute's name")
    lower = name.lower()
    if lower in _SECRETS:
        raise BadJob(
            f"{name} is not taken: a passphrase in a job's ad is read by everybody who sees the ad. Store the proxy so"
            " that the pool may renew it without one (myproxy-init -R)"
        )
    if lower in POOL_ONLY or lower.startswith("_condor"):
        raise BadJob(f"{name} is set by the pool only; take it out of the submit file")


def _check_types(ad: Any) -> None:
    for name in (*_STRINGS, *_STRINGS_2):
        if name in ad and not isinstance(value_of(ad, name), str):
            raise BadJob(f"{name} = {ad.lookup(name)}: must be a string")
    for name in _BOOLS:
        if name in ad and not isinstance(value_of(ad, name), bool):
            raise BadJob(f"{name} = {ad.lookup(name)}: must be true or false")
    for name in _WHOLE:
        if name in ad and not (is_number(value_of(ad, name)) and abs(value_of(ad, name)) < 2**31):
            raise BadJob(f"{name} = {ad.lookup(name)}: must be a whole number")
    if not text_of(ad, "Cmd"):
        raise BadJob("the job has no executable (Cmd); say 'executable = FILE' in the submit file")


def _check_requests(ad: Any) -> None:
    trial = complete(ad, {"ImageSize": 1, "DiskUsage": 1})
    for name, least, unit in (
        ("RequestCpus", 1, "cores"),
        ("RequestMemory", 0, "megabytes"),
        ("RequestDisk", 0, "kilobytes"),
    ):
        value = value_of(trial, name) if name in trial else least
        if not is_number(value) or not least <= value < 2**50:
            raise BadJob(f"{name} = {trial.lookup(name)}: must be a number of {unit}, at least {least}")
    for name in ad:
        if name.lower().startswith("request"):
            value = value_of(trial, name)
            if isinstance(value, str) or (is_number(value) and not 0 <= value < 2**50):
                raise BadJob(f"{name} = {ad.lookup(name)}: must be a number, at least 0")


def _check_names(ad: Any) -> None:
    for attribute, command in _LISTS.items():
        for name in split_list(text_of(ad, attribute)):
            check_relative(name.rstrip("/") or name, command)
    for source, target in remaps(text_of(ad, "TransferOutputRemaps")).items():
        check_relative(source, "transfer_output_remaps")
        if not is_url(target):
            check_relative(target, "transfer_output_remaps")
    for url in filter(is_url, split_list(text_of(ad, "TransferInput"))):
        check_relative(url_name(url), "transfer_input_files")
    if (when := text_of(ad, "WhenToTransferOutput", "ON_EXIT")).upper() not in _WHEN:
        raise BadJob(f"WhenToTransferOutput = {when!r}: must be one of {', '.join(_WHEN)}")
    for stream, name in (("StreamOut", "Out"), ("StreamErr", "Err")):
        if value_of(ad, stream) is True and "/" in text_of(ad, name) and text_of(ad, name) != "/dev/null":
            raise BadJob(f"{name} = {text_of(ad, name)!r}: a stream goes to a plain name; 'fetch' brings it")


_LISTS = {"TransferOutput": "transfer_output_files", "TransferCheckpoint": "transfer_checkpoint_files"}


def check_relative(name: str, where: str) -> None:
    """Raise BadJob unless the name stays below the directory it is used in."""
    parts = name.split("/")
    if not name or name.startswith("/") or "\0" in name or ".." in parts or len(name) > MAX_TRANSFER_NAME:
        raise BadJob(f"{where}: {name!r} must be a relative name without '..'")
    if "://" in name:
        raise BadJob(f"{where}: {name!r} is a URL; this pool moves files only")


def is_url(text: str) -> bool:
    """Whether a file is moved by a plugin at the node, and not by this pool."""
    return re.match(r"[A-Za-z][A-Za-z0-9.+-]*://", text) is not None


def url_name(url: str) -> str:
    """The name in the sandbox of what comes from a URL."""
    return re.split(r"[?#]", url, maxsplit=1)[0].rstrip("/").rsplit("/", 1)[-1]


def split_list(text: str) -> list[str]:
    """HTCondor's comma list: blanks around the names do not count."""
    return [part.strip() for part in text.split(",") if part.strip()]


def remaps(text: str) -> dict[str, str]:
    """'a=b;c=d' -> {'a': 'b', 'c': 'd'}; BadJob when an entry has no '='."""
    found = {}
    for part in text.split(";"):
        if not part.strip():
            continue
        source, equals, target = part.partition("=")
        if not equals:
            raise BadJob(f"transfer_output_remaps: {part.strip()!r} is not NAME=NEWNAME")
        found[source.strip()] = target.strip()
    return found


def executable_name(ad: Any) -> str | None:
    """The name under which the executable travels, None when the node's own program is meant."""
    if value_of(ad, "TransferExecutable") is False:
        return None
    return text_of(ad, "Cmd").rsplit("/", 1)[-1]


@frozen
class PoolFacts:
    """What the pool says about itself in every job's ad."""

    host: str
    uid_domain: str
    address: str  # sinful of the one listener
    version: str  # "$CondorVersion: ... $"
    lease_s: int


def queue_ad(ad: Any, job: Job, entries: list[Entry], facts: PoolFacts) -> Any:
    """The ad that matching and claiming use: the user's word and, over it, the pool's."""
    cluster = job.cluster
    size = sum(entry.size for entry in entries)
    program = next((e.size for e in entries if e.key is not None and e.name == executable_name(ad)), 0)
    more: dict[str, object] = {
        "MyType": "Job",
        "TargetType": "Machine",
        "ClusterId": job.id.cluster,
        "ProcId": job.id.proc,
        "GlobalJobId": f"{facts.host}#{job.id}#{int(cluster.submitted_at)}",
        "QDate": int(cluster.submitted_at),
        "Owner": cluster.owner,
        "User": f"{cluster.owner}@{facts.uid_domain}",
        "OsUser": cluster.owner,
        "UidDomain": facts.uid_domain,
        "FileSystemDomain": facts.host,
        "JobUniverse": 5,
        "JobStatus": int(JobState.RUNNING),
        "JobLeaseDuration": facts.lease_s,
        "ShouldTransferFiles": "YES",
        "WhenToTransferOutput": text_of(ad, "WhenToTransferOutput", "ON_EXIT").upper(),
        # What the submit language's own Requirements of a deferred job want to know: how late a match may come.
        "ScheddInterval": 0,
        "StreamIn": False,
        "NumJobStarts": job.runs,
        "ExecutableSize": kib(program),
        "ImageSize": max(1, kib(program)),
        "DiskUsage": max(1, kib(size)),
        "TransferInputSizeMB": size // 2**20,
        **_proxy_attributes(cluster),
    }
    return complete(ad, {**_defaults(ad), **more, "JobLeaseDuration": _lease(ad, facts)})


def _defaults(ad: Any) -> dict[str, object]:
    wanted: dict[str, object] = {
        "RequestCpus": 1,
        "RequestMemory": 128,
        "RequestDisk": classad2.ExprTree("DiskUsage"),
        "Requirements": True,
    }
    wanted |= {"StreamOut": False, "StreamErr": False, "Out": "/dev/null", "Err": "/dev/null", "Iwd": "/", "Rank": 0.0}
    return {name: value for name, value in wanted.items() if name not in ad}


def _lease(ad: Any, facts: PoolFacts) -> int:
    wanted = value_of(ad, "JobLeaseDuration")
    # A user may want a shorter lease than the pool's, never a longer one: it is how long a lost job may block.
    return min(max(20, int(wanted)), facts.lease_s) if is_number(wanted) else facts.lease_s


def _proxy_attributes(cluster: Cluster) -> dict[str, object]:
    if cluster.proxy_name is None:
        return {}
    return {
        "x509userproxy": cluster.proxy_name,
        "x509userproxysubject": cluster.identity or "",
        "x509UserProxyExpiration": int(cluster.proxy_expires_at or 0),
    }


def kib(size_bytes: int) -> int:
    return -(-size_bytes // 1024)


def activation_ad(queued: Any, facts: PoolFacts, *, checkpoint: int | None = None) -> Any:
    """The ad of ACTIVATE_CLAIM. The transfer key is not in it: only get_job_info's answer has it. ``checkpoint``: the
    number of the job's last one."""
    return complete(
        queued,
        {
            "CheckpointNumber": checkpoint,
            "ShadowIpAddr": facts.address,
            "ShadowVersion": facts.version,
            "MyAddress": facts.address,
            "TransferSocket": facts.address,
            "_condor_send_activation_failure_ad": True,
        },
    )


def job_info_ad(activated: Any, transfer_key: str) -> Any:
    """get_job_info's answer: the activation's ad and the secret key of its file transfers."""
    return complete(activated, {"TransferKey": transfer_key, "_condor_send_activation_failure_ad": None})


def request_ad(queued: Any, facts: PoolFacts, schedd_name: str) -> Any:
    """The ad of REQUEST_CLAIM."""
    return complete(
        queued,
        {
            "JobStatus": int(JobState.IDLE),
            "_condor_SEND_LEFTOVERS": True,
            "_condor_SECURE_CLAIM_ID": True,
            "_condor_SEND_CLAIMED_AD": True,
            "_condor_NUM_DYNAMIC_SLOTS": 1,
            "_condor_CLAIM_PARTITIONABLE_SLOT": False,
            "_condor_StartdHandlesAlives": True,
            "StartdSendsAlives": True,
            "ScheddName": schedd_name,
        },
    )
