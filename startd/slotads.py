"""The ads of slots, public and private. Pure: state in, ads out (wire reference 3.1, 3.2).

Names and shapes are HTCondor's; what is Sailplane's own starts with ``Sailplane``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import attrs
from classad2 import ClassAd, ExprTree

from cedar.claims import ClaimId
from cedar.classads import set_str
from cedar.commands import condor_version_text
from cedar.expressions import new_literal
from startd.resources import Resources, device_attribute

# condor_status knows these words; the claim's own states are finer.
SHOWN: Mapping[str, tuple[str, str]] = {
    "idle": ("Claimed", "Idle"), "starting": ("Claimed", "Busy"), "busy": ("Claimed", "Busy"),
    "suspended": ("Claimed", "Suspended"), "retiring": ("Claimed", "Retiring"), "vacating": ("Claimed", "Busy"),
    "closing": ("Preempting", "Vacating"), "killing": ("Preempting", "Killing"), "gone": ("Claimed", "Idle"),
}  # fmt: skip
# What breaks a slot here: processes of a job that nothing ends (25.x: SlotBrokenCode).
BROKEN_BY_PROCESSES = 6
# MyType of a slot's ad, and of the startd's own.
SLOT, DAEMON = "Machine", "StartD"
# The resources of every slot.
_ALWAYS = ("Cpus", "Memory", "Disk")
# What ``$$(CondorScratchDir)`` becomes; the starter replaces it.
_SCRATCH_MARKER = "#CoNdOrScRaTcHdIr#"


@attrs.frozen
class Machine:
    """What does not change while the startd lives."""

    name: str
    fqdn: str
    address: str
    arch: str
    os: str
    os_version: str
    uid_domain: str
    start_time: int
    total: Resources
    start: str
    rank: str
    switch: str
    switch_isolates: bool
    needs_proxy: bool
    max_retirement: str = "0"
    has_sshd: bool = False
    job_plugins: bool = False
    """Whether jobs may bring programs for URLs along."""
    plugins: Mapping[str, str] = attrs.field(factory=dict)
    """The program for each scheme of URLs."""
    attributes: Mapping[str, str] = attrs.field(factory=dict)
    """Expressions of the settings' own, by name (STARTD_ATTRS)."""
    slots: int = 1
    """How many slots the machine is divided into."""
    starts: Mapping[int, str] = attrs.field(factory=dict)
    """What stands in place of ``start`` for a slot type, by its number."""
    devices: Mapping[str, Mapping[str, ClassAd]] = attrs.field(factory=dict)
    """What is known of each device, by custom resource and id."""
    detected: ClassAd = attrs.field(factory=ClassAd)
    """What was found out about custom resources besides that, for every ad."""
    degraded: tuple[str, ...] = ()
    """What the host does not give us, one word each."""
    linger: str = ""
    """How the switch stands by a job, as in ``pilot.findings.linger_of``; empty where nobody knows."""


@attrs.frozen
class BrokenPart:
    """What of a slot is withheld, whose job it was, and since when (unix time)."""

    name: str
    job: str
    user: str
    at: int
    resources: Resources

    @property
    def why(self) -> str:
        """In words for administrators."""
        return (
            f"{self.name} has something left of {f'job {self.job}' if self.job else 'a job'} that could not be removed"
        )


@attrs.frozen
class SlotState:
    """What changes: one slot as it is now. ``resources``: what it has to give, or what its job has; ``total``: what it
    has in all, without what is ``withheld``; ``user``: that of the claim."""

    name: str
    slot_id: int
    type_number: int
    kind: Literal["Partitionable", "Static", "Dynamic"]
    dynamic_id: int | None
    resources: Resources
    total: Resources
    claim: ClaimId
    claimed: bool
    state: str
    entered_at: int
    """Since when it is in its state, and in its activity (``activity_at``, where that is another time)."""
    activity_at: int | None = None
    withheld: Resources | None = None
    broken: Sequence[BrokenPart] = ()
    children: int = 0
    user: str = ""
    job_id: str = ""
    job_account_uid: int | None = None
    refused_users: Sequence[str] = ()
    left_elsewhere: str = ""
    switch_down: str = ""
    only_user: str = ""
    left_behind: int = 0
    draining: bool = False
    trouble: str = ""
    """What is out of order, but is no reason to take no job."""
    unhealthy: str = ""
    """Why the node takes no job."""
    retiring: str = ""
    drain_request: str = ""
    drain_start: str = ""
    """What a drain has in the place of START; empty where it takes no job."""
    accepted_while_draining: bool = False
    usage: Mapping[str, object] = attrs.field(factory=dict)


def public_ad(machine: Machine, slot: SlotState, *, now: int, sequence: int) -> ClassAd:
    """The ad that everybody may see."""
    ad = ClassAd()
    _identity(ad, machine, slot)
    _sizes(ad, machine, slot)
    _policy(ad, machine, slot)
    _activity(ad, slot)
    ad["MyCurrentTime"] = now
    ad["UpdateSequenceNumber"] = sequence
    ad["SlotType"] = slot.kind
    ad["SlotTypeID"] = slot.type_number
    if slot.kind == "Partitionable":
        ad["PartitionableSlot"] = True
        ad["NumDynamicSlots"] = slot.children
    elif slot.kind == "Dynamic":
        _dynamic(ad, slot)
    if slot.claimed:
        _claim(ad, slot)
    for name, value in slot.usage.items():
        ad[name] = value
    for name, text in machine.attributes.items():
        ad[name] = ExprTree(text)
    return ad


# What a partitionable slot tells of its dynamic ones, in lists of the same order: for the negotiator, and for
# condor_status -compact.
_ROLLED_UP = (
    "Name", "DSlotId", "State", "Activity", "EnteredCurrentState", "RemoteUser", "RemoteOwner", "AccountingGroup",
    "CurrentRank", "RetirementTimeRemaining", "Cpus", "Memory", "Disk",
)  # fmt: skip


def roll_up(ad: ClassAd, children: Sequence[ClassAd]) -> None:
    """Child<Attribute> of a partitionable slot, from the ads of its dynamic slots."""
    ad["PslotRollupInformation"] = True
    names = (*_ROLLED_UP, *str(ad["MachineResources"]).split()[len(_ALWAYS) :])
    for name in names:
        values = [str(child.lookup(name)) if name in child else "undefined" for child in children]
        ad[f"Child{name}"] = ExprTree("{ " + ", ".join(values) + " }")


def private_ad(public: ClassAd, claim: ClaimId, children: Sequence[ClaimId] | None = None) -> ClassAd:
    """What only the collector keeps: the claim id. Name and MyAddress join it to the public ad (T12).

    ``children``, of a partitionable slot: the ids by which its dynamic ones, in the order of ``roll_up``, make room.
    """
    ad = ClassAd()
    for name in ("MyType", "Name", "MyAddress"):
        ad[name] = public[name]
    set_str(ad, "ClaimId", claim.text)
    set_str(ad, "Capability", claim.text)
    if children is not None:
        ad["NumDynamicSlots"] = len(children)
        ad["ChildClaimIds"] = ExprTree("{ " + ", ".join(new_literal(child.text) for child in children) + " }")
    return ad


def daemon_ad(machine: Machine, slots: Sequence[SlotState], *, now: int, sequence: int) -> ClassAd:
    """The ad of the startd itself, by which tools find it under its own name. It has no claim, and no private ad."""
    ad = ClassAd()
    _identity(ad, machine, slots[0])
    ad["MyType"], ad["Name"] = DAEMON, machine.name
    del ad["SlotID"], ad["TargetType"], ad["HasStartDaemonAd"]
    _machine_sizes(ad, machine)
    ad.update(machine.detected)
    for name in machine.total.custom:
        ad[f"Total{name}"] = machine.total.count(name)
        if machine.total.ids(name):
            _describe_devices(ad, machine, name, machine.total.ids(name))
            attributes = [device_attribute(name, device) for device in dict.fromkeys(machine.total.ids(name))]
            ad[f"Detected{name}"] = ExprTree("{ " + ", ".join(attributes) + " }")
    _tell_broken(ad, [part for slot in slots for part in slot.broken])
    for name, text in machine.attributes.items():
        ad[name] = ExprTree(text)
    ad["MyCurrentTime"], ad["UpdateSequenceNumber"] = now, sequence
    return ad


def _tell_broken(ad: ClassAd, parts: Sequence[BrokenPart]) -> None:
    """As HTCondor's startd tells of its broken slots: for each a reason, and an ad of what and whose it was."""
    tags = [part.name.partition("@")[0] for part in parts]
    for tag, part in zip(tags, parts, strict=True):
        set_str(ad, f"{tag}BrokenReason", part.why)
        context = ClassAd()
        context["Id"], context["Code"], context["Time"] = tag, BROKEN_BY_PROCESSES, part.at
        for name, value in (("Reason", part.why), ("JobId", part.job), ("RemoteUser", part.user)):
            set_str(context, name, value)
        context.update(_counts(part.resources))
        ad[f"{tag}BrokenContext"] = context
    if parts:
        ad["BrokenReasons"] = ExprTree("{ " + ", ".join(f"{tag}BrokenReason" for tag in tags) + " }")
        ad["BrokenContextAds"] = ExprTree("{ " + ", ".join(f"{tag}BrokenContext" for tag in tags) + " }")


def _counts(resources: Resources) -> dict[str, int]:
    sizes = {"Cpus": resources.cpus, "Memory": resources.memory_mb, "Disk": resources.disk_kb}
    return sizes | {name: resources.count(name) for name in resources.custom}


def invalidation(name: str, address: str, kind: str = SLOT) -> ClassAd:
    """The query of INVALIDATE_STARTD_ADS for one slot, or for the startd's own ad (``DAEMON``)."""
    ad = ClassAd()
    ad["MyType"] = "Query"
    ad["TargetType"] = kind
    set_str(ad, "Name", name)
    set_str(ad, "MyAddress", address)
    ad["Requirements"] = ExprTree(f"TARGET.Name == {new_literal(name)}")
    return ad


def _identity(ad: ClassAd, machine: Machine, slot: SlotState) -> None:
    ad["MyType"] = SLOT
    ad["TargetType"] = "Job"
    ad["Name"] = slot.name
    ad["Machine"] = machine.fqdn
    ad["MyAddress"] = machine.address
    ad["StartdIpAddr"] = machine.address
    ad["CondorVersion"] = condor_version_text()
    ad["CondorPlatform"] = f"$CondorPlatform: {machine.arch}_{machine.os_version} $"
    ad["Arch"] = machine.arch
    ad["OpSys"] = machine.os
    ad["OpSysAndVer"] = machine.os_version
    ad["UidDomain"] = machine.uid_domain
    ad["FileSystemDomain"] = machine.fqdn
    ad["DaemonStartTime"] = machine.start_time
    ad["DaemonLastReconfigTime"] = machine.start_time
    ad["SlotID"] = slot.slot_id
    ad["HasStartDaemonAd"] = True
    ad["SailplaneSwitch"] = machine.switch
    ad["SailplaneIsolated"] = machine.switch_isolates
    set_str(ad, "SailplaneIsolation", isolation(machine))
    if machine.linger:
        set_str(ad, "SailplaneSwitchLingers", machine.linger)
    # A string list, as HTCondor's own: stringListMember("hidepid", SailplaneDegraded).
    set_str(ad, "SailplaneDegraded", ",".join(machine.degraded))


def isolation(machine: Machine) -> str:
    """What becomes of a job's account, in words for people who choose slots."""
    if machine.switch_isolates:
        return "isolated"
    return "authorised, not isolated" if machine.needs_proxy else "not isolated"


def _sizes(ad: ClassAd, machine: Machine, slot: SlotState) -> None:
    have, mine, total = slot.resources, slot.total, machine.total
    ad["Cpus"], ad["Memory"], ad["Disk"] = have.cpus, have.memory_mb, have.disk_kb
    _machine_sizes(ad, machine)
    ad["TotalSlotCpus"], ad["TotalSlotMemory"], ad["TotalSlotDisk"] = mine.cpus, mine.memory_mb, mine.disk_kb
    ad["VirtualMemory"] = have.memory_mb * 1024
    ad["SlotWeight"] = ExprTree("Cpus")
    ad["LoadAvg"] = ad["CondorLoadAvg"] = 0.0
    ad["KeyboardIdle"] = ad["ConsoleIdle"] = 0
    ad.update(machine.detected)
    for name in total.custom:
        _custom(ad, machine, slot, name)
    if slot.broken and slot.withheld is not None:
        _broken(ad, slot.broken[-1].why, slot.withheld)


def _machine_sizes(ad: ClassAd, machine: Machine) -> None:
    total = machine.total
    ad["TotalCpus"] = ad["DetectedCpus"] = total.cpus
    ad["TotalMemory"] = ad["DetectedMemory"] = total.memory_mb
    ad["TotalDisk"] = total.disk_kb
    ad["TotalSlots"] = machine.slots
    ad["MachineResources"] = " ".join((*_ALWAYS, *total.custom))


def _custom(ad: ClassAd, machine: Machine, slot: SlotState, name: str) -> None:
    """A custom resource: how much of it, and which devices with what properties."""
    ad[name] = slot.resources.count(name)
    ad[f"TotalSlot{name}"] = slot.total.count(name)
    ad[f"Total{name}"] = machine.total.count(name)
    if not machine.total.ids(name):
        return
    attributes = [device_attribute(name, device) for device in slot.resources.ids(name)]
    ad[f"Available{name}"] = ExprTree("{ " + ", ".join(attributes) + " }")
    mine = slot.total.ids(name)
    if not mine:
        return
    set_str(ad, f"Assigned{name}", ",".join(mine))
    for attribute, expression in _common([machine.devices.get(name, {}).get(device, ClassAd()) for device in mine]):
        ad[f"{name}_{attribute}"] = expression
    _describe_devices(ad, machine, name, mine)


def _describe_devices(ad: ClassAd, machine: Machine, name: str, devices: Sequence[str]) -> None:
    """A nested ad for each."""
    descriptions = {device: machine.devices.get(name, {}).get(device, ClassAd()) for device in devices}
    for device, known in descriptions.items():
        described = ClassAd()
        described.update(known)
        set_str(described, "Id", device)
        ad[device_attribute(name, device)] = described


def _common(descriptions: Sequence[ClassAd]) -> Iterator[tuple[str, object]]:
    """What is the same for all devices."""
    first, *others = descriptions
    for name in first:
        text = str(first.lookup(name))
        if all(name in other and str(other.lookup(name)) == text for other in others):
            yield name, first.lookup(name)


def _broken(ad: ClassAd, why: str, withheld: Resources) -> None:
    """What nobody gets any more of this slot."""
    ad["SlotBrokenCode"] = BROKEN_BY_PROCESSES
    set_str(ad, "SlotBrokenReason", why)
    ad.update({f"BrokenSlot{name}": size for name, size in _counts(withheld).items()})


def _policy(ad: ClassAd, machine: Machine, slot: SlotState) -> None:
    """Requirements must be there, or the slot never matches (T13)."""
    ad["Start"] = ExprTree(start_expression(machine, slot))
    ad["Rank"] = ExprTree(machine.rank)
    ad["MaxJobRetirementTime"] = ExprTree(machine.max_retirement)
    ad["CurrentRank"] = 0.0
    ad["WithinResourceLimits"] = ExprTree(
        "(TARGET.RequestCpus =?= undefined || MY.Cpus >= TARGET.RequestCpus)"
        " && MY.Memory >= TARGET.RequestMemory && MY.Disk >= TARGET.RequestDisk"
        " && MY.Cpus > 0 && MY.Memory > 0 && MY.Disk > 0"
        + "".join(
            f" && (TARGET.Request{name} =?= undefined || MY.{name} >= TARGET.Request{name})"
            for name in machine.total.custom
        )
    )
    ad["Requirements"] = ExprTree("Start && WithinResourceLimits")
    ad["HasFileTransfer"] = True
    ad["HasJobTransferPlugins"] = machine.job_plugins
    if machine.plugins:
        ad["HasFileTransferPluginMethods"] = ",".join(sorted(machine.plugins))
    ad["HasJobDeferral"] = True
    ad["HasReconnect"] = True
    ad["HasSelfCheckpointTransfers"] = True
    ad["HasSshd"] = machine.has_sshd
    ad["CondorScratchDir"] = _SCRATCH_MARKER


def start_expression(machine: Machine, slot: SlotState) -> str:
    """The knob START (the slot type's own, if it has one; a drain's in its place, if it takes jobs), and what cannot
    run here: jobs without a proxy, users refused lately, a second user at one account; any job when draining, when the
    site's authorisation is down, or when a schedd is on its way."""
    terms = [f"({slot.drain_start or machine.starts.get(slot.type_number, machine.start)})"]
    if machine.needs_proxy:
        terms.append("(TARGET.x509userproxysubject =!= undefined)")
    if slot.refused_users:
        names = ", ".join(new_literal(user) for user in slot.refused_users)
        terms.append(f"(member(TARGET.x509userproxysubject, {{ {names} }}) =!= true)")
    if slot.only_user:
        terms.append(f"(TARGET.User =?= {new_literal(slot.only_user)})")
    drained = slot.draining and not slot.drain_start
    if drained or slot.unhealthy or slot.retiring or slot.switch_down or slot.state == "Matched":
        terms.append("false")
    return " && ".join(terms)


def idle_activity(state: str, jobs: bool) -> str:
    """Of a slot that nobody has; a drained one may still have ``jobs`` in its dynamic slots."""
    return "Retiring" if state == "Drained" and jobs else "Idle"


def _activity(ad: ClassAd, slot: SlotState) -> None:
    if slot.claimed:
        ad["State"], ad["Activity"] = SHOWN[slot.state]
    else:
        ad["State"] = slot.state
        ad["Activity"] = idle_activity(slot.state, bool(slot.children))
    ad["EnteredCurrentState"] = slot.entered_at
    ad["EnteredCurrentActivity"] = slot.entered_at if slot.activity_at is None else slot.activity_at
    ad["AcceptedWhileDraining"] = slot.accepted_while_draining
    if slot.drain_request:
        ad["Draining"] = True
        set_str(ad, "DrainingRequestId", slot.drain_request)
    if slot.retiring:
        set_str(ad, "SailplaneRetiring", slot.retiring)
    if slot.switch_down:
        set_str(ad, "SailplaneSwitchDown", slot.switch_down)
    if slot.unhealthy:
        set_str(ad, "SailplaneUnhealthy", slot.unhealthy)
    if slot.trouble:
        set_str(ad, "SailplaneTrouble", slot.trouble)
    if slot.left_behind:
        ad["SailplaneLeftBehind"] = slot.left_behind
    if slot.left_elsewhere:
        set_str(ad, "SailplaneLeftElsewhere", slot.left_elsewhere)


def _dynamic(ad: ClassAd, slot: SlotState) -> None:
    ad["DynamicSlot"] = True
    ad["DSlotID"] = slot.dynamic_id
    ad["ParentSlotId"] = slot.slot_id
    ad["PslotRollupInformation"] = True


def _claim(ad: ClassAd, slot: SlotState) -> None:
    ad["PublicClaimId"] = slot.claim.public
    if slot.user:
        set_str(ad, "RemoteUser", slot.user)
        set_str(ad, "RemoteOwner", slot.user)
    if slot.job_id:
        set_str(ad, "JobId", slot.job_id)
    if slot.job_account_uid is not None:
        ad["SailplaneJobUid"] = slot.job_account_uid
