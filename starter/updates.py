"""The ads that a starter sends to its shadow: what it is, how the job is doing, how it ended. Pure."""

from __future__ import annotations

import math
import signal

from classad2 import ClassAd, ExprTree

from cedar.classads import get_int, get_str, set_str
from cedar.commands import VERSION, condor_version_text
from pilot.credentials import Credential
from procd.messages import Usage
from starter.events import JobEnded
from starter.guidance import version_of
from starter.messages import Activation
from starter.verdict import Hold, Killed, Requeue, Verdict

# A hold reason longer than this says no more to a person, and ads are limited (wire reference 4.5).
MAX_REASON_LENGTH = 1_024
# What every slot has.
RESOURCES = "Cpus Memory Disk"
# Stock: 3 times without an update and the shadow gives up (T23); we promise the interval of our own updates.
NO_PROMISE = -1


def starter_info(
    activation: Activation, sandbox: str, uid_domain: str, *, reconnects: bool, version: str = VERSION
) -> ClassAd:
    """register_starter_info (-77). Tools, and a shadow that comes back, reach the starter at the startd's one port.
    ``version``: what this shadow is told (``guidance.told_version``)."""
    ad = ClassAd()
    ad["Name"] = activation.slot
    ad["StarterIpAddr"] = activation.startd_address
    ad["MyAddress"] = activation.startd_address
    ad["CondorVersion"] = condor_version_text(version)
    ad["CondorScratchDir"] = sandbox
    ad["UidDomain"] = uid_domain
    ad["FileSystemDomain"] = uid_domain
    ad["HasReconnect"] = reconnects
    ad["Cpus"] = activation.cpus
    ad["Memory"] = activation.memory_mb
    ad["Disk"] = activation.disk_kb
    ad["MachineResources"] = RESOURCES
    ad.update(_custom(activation, ""))
    return ad


def provisioned(activation: Activation) -> ClassAd:
    """The register_job_info before the input transfer: resources only, no JobState (wire reference 4.2, T31)."""
    ad = ClassAd()
    ad["CpusProvisioned"] = activation.cpus
    ad["MemoryProvisioned"] = activation.memory_mb
    ad["DiskProvisioned"] = activation.disk_kb
    ad["ProvisionedResources"] = RESOURCES
    custom = _custom(activation, "Provisioned")
    if custom:
        ad.update(custom)
        ad["ProvisionedResources"] = ad["MachineResources"]
        del ad["MachineResources"]
    ad["_condor_JOBINFO_MAXINTERVAL"] = NO_PROMISE
    return ad


def _custom(activation: Activation, suffix: str) -> ClassAd:
    """Of GPUs and the like: how many, which, and the names of all resources; empty where the machine has none."""
    found = ClassAd()
    slot = ClassAd(activation.slot_ad) if activation.slot_ad else found
    names = get_str(slot, "MachineResources", RESOURCES)
    for name in names.split():
        if name in RESOURCES.split():
            continue
        found["MachineResources"] = names
        found[f"{name}{suffix}"] = get_int(slot, name, 0)
        if (assigned := get_str(slot, f"Assigned{name}", "")) and suffix:
            set_str(found, f"Assigned{name}", assigned)
    return found


def running(usage: Usage, *, suspended: bool, address: str) -> ClassAd:
    """A periodic update. Every one repeats the true JobState (T16)."""
    ad = _usage_ad(usage)
    ad["JobState"] = "Suspended" if suspended else "Running"
    ad["StarterIpAddr"] = address
    ad["_condor_JOBINFO_MAXINTERVAL"] = NO_PROMISE
    return ad


def resumed() -> ClassAd:
    """Of a job that ends while it is suspended."""
    ad = ClassAd()
    ad["JobState"] = "Running"
    ad["_condor_JOBINFO_MAXINTERVAL"] = NO_PROMISE
    return ad


def add_disk(ad: ClassAd, disk: tuple[int, int] | None) -> None:
    """KB and entries of the sandbox, once they were measured."""
    if disk is not None:
        ad["DiskUsage"], ad["ScratchDirFileCount"] = disk


def checkpointed(usage: Usage | None, number: int, leg_s: float | None, now_s: int) -> ClassAd:
    """After a checkpoint: its number, and how much of the run is safe now."""
    ad = ClassAd() if usage is None else _usage_ad(usage)
    ad["JobState"] = "Running"
    ad["CheckpointNumber"] = number
    ad["JobLastCheckpointTime"] = now_s
    ad["NewlyCommittedTime"] = int(leg_s or 0)
    ad["_condor_JOBINFO_MAXINTERVAL"] = NO_PROMISE
    return ad


def put_proxy(ad: ClassAd, credential: Credential | None, renewal: str) -> None:
    """When the job's proxy ends, and what came of the last renewal, if there was one."""
    if credential is None:
        return
    ad["SailplaneProxyExpiration"] = int(credential.usable_until)
    if renewal:
        ad["SailplaneProxyRenewal"] = one_line(renewal)


def final(verdict: Verdict, ended: JobEnded | None, usage: Usage | None, duration_s: float | None) -> ClassAd:
    """The last update, also sent with job_exit."""
    ad = ClassAd() if usage is None else _usage_ad(usage)
    ad["JobState"] = "Exited"
    ad["NumPids"] = 0
    ad["_condor_JOBINFO_MAXINTERVAL"] = NO_PROMISE
    if duration_s is not None:
        ad["JobDuration"] = duration_s
    if ended is not None:
        _put_wait_status(ad, ended)
    if isinstance(verdict, Killed):
        ad["VacateReason"] = verdict.reason[:MAX_REASON_LENGTH]
        ad["VacateReasonCode"] = verdict.vacate_code
        ad["VacateReasonSubCode"] = 0
    return ad


def _put_wait_status(ad: ClassAd, ended: JobEnded) -> None:
    number = ended.wait_status & 0x7F
    ad["ExitBySignal"] = bool(number)
    if number:
        ad["ExitSignal"] = number
        if ended.wait_status & 0x80:
            ad["JobCoreDumped"] = True
        ad["ExitReason"] = f"died on signal {number} ({signal.strsignal(number) or 'of no name'})"
    else:
        ad["ExitCode"] = ended.wait_status >> 8
        ad["SailplaneExitCodeExact"] = ended.exact


def put_command_after(ad: ClassAd, wait_status: int | None) -> None:
    """How the command after the job (+PostCmd) ended, by HTCondor's names; None: there was none, or it did not run."""
    if wait_status is None:
        return
    number = wait_status & 0x7F
    ad["PostExitBySignal"] = bool(number)
    ad["PostExitSignal" if number else "PostExitCode"] = number or wait_status >> 8


def add_delayed(ad: ClassAd, delayed: ClassAd, shadow_version: str) -> None:
    """Attributes that the job set by chirp: to shadows since 25.4 as an ad of their own, before that as they are."""
    if not len(delayed):
        return
    if version_of(shadow_version) >= NESTED_SINCE:
        ad["ChirpDelayedAttrs"] = delayed
        return
    for name in delayed:
        if name not in ad:
            ad[name] = delayed[name]


# The first release that reads them there; stock starters send them so from 25.3.0 on, which no shadow of 25.3 heeds.
NESTED_SINCE = (25, 4)


def error_event(verdict: Hold | Requeue, host: str, event_time: str, story: str = "") -> ClassAd:
    """The ulog (284) that ends a job as held, or as idle again (wire reference 4.5). ``story``: for whoever debugs it;
    the reason is for the job's owner."""
    ad = _remote_error(verdict.text, host, event_time)
    if story:
        ad["SailplaneStory"] = one_line(
            story if len(story) <= MAX_REASON_LENGTH else f"…{story[1 - MAX_REASON_LENGTH :]}"
        )
    ad["HoldReasonCode"] = verdict.code
    ad["HoldReasonSubCode"] = int(verdict.subcode)
    return ad


def note_event(text: str, host: str, event_time: str) -> ClassAd:
    """A ulog (284) that ends nothing: a line for the owner in the job's event log."""
    ad = _remote_error(text, host, event_time)
    ad["CriticalError"] = False
    return ad


def _remote_error(text: str, host: str, event_time: str) -> ClassAd:
    ad = ClassAd()
    ad["MyType"] = "RemoteErrorEvent"
    ad["EventTypeNumber"] = 21
    ad["EventTime"] = event_time
    ad["Daemon"] = "starter"
    ad["ExecuteHost"] = host
    ad["ErrorMsg"] = one_line(text)
    return ad


def one_line(text: str) -> str:
    """A reason without control characters (they could forge an ad or log line), of bounded length."""
    clean = "".join(c if c.isprintable() else " " for c in text)
    return clean if len(clean) <= MAX_REASON_LENGTH else clean[: MAX_REASON_LENGTH - 1] + "…"


def _usage_ad(usage: Usage) -> ClassAd:
    ad = ClassAd()
    ad["NumPids"] = usage.processes
    ad["RemoteUserCpu"] = usage.user_s
    ad["RemoteSysCpu"] = usage.system_s
    ad["ImageSize"] = math.ceil(usage.image_kb)
    ad["ResidentSetSize"] = math.ceil(usage.rss_peak_kb)
    ad["MemoryUsage"] = ExprTree("((ResidentSetSize + 1023) / 1024)")
    if usage.pss_kb is not None:
        ad["ProportionalSetSizeKb"] = math.ceil(usage.pss_kb)
    if usage.read_kb is not None and usage.written_kb is not None:
        ad["BlockReadKbytes"] = usage.read_kb
        ad["BlockWriteKbytes"] = usage.written_kb
    return ad
