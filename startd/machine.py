"""What this machine is and has: read once at the start, off the hot path."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from pilot.findings import Validation
from pilot.settings import Settings
from pilot.switch import Switch
from startd.inventory import Found
from startd.resources import Resources
from startd.slotads import Machine
from starter import sshprograms

# HTCondor's names of architectures.
_ARCH = {"x86_64": "X86_64", "aarch64": "aarch64", "ppc64le": "ppc64le"}


def resources(settings: Settings, found: Sequence[Found] = ()) -> Resources:
    """The knobs, or what this process may use; and the custom resources."""
    return Resources(
        custom={each.name: each.amount for each in found},
        cpus=settings.num_cpus or len(os.sched_getaffinity(0)),
        memory_mb=settings.memory or psutil.virtual_memory().total >> 20,
        disk_kb=settings.disk if settings.disk is not None else shutil.disk_usage(settings.execute).free >> 10,
    )


def cores(settings: Settings) -> tuple[int, ...]:
    """The cores that jobs are bound to one by one; none where no knob asks for it."""
    wanted = settings.assign_cpu_affinity or settings.enforce_cpu_affinity
    return tuple(sorted(os.sched_getaffinity(0))) if wanted else ()


def describe(settings: Settings, switch: Switch, address: str, total: Resources, report: Validation) -> Machine:
    """For the slots' ads."""
    return Machine(
        name=settings.startd_name,
        fqdn=socket.gethostname(),
        address=address,
        arch=_ARCH.get(platform.machine(), platform.machine()),
        os="LINUX",
        os_version=_os_version(),
        uid_domain=settings.uid_domain,
        start_time=int(time.time()),
        total=total,
        start=settings.start,
        rank=settings.rank,
        max_retirement=settings.maxjobretirementtime,
        switch=switch.name,
        switch_isolates=switch.isolates,
        needs_proxy=switch.needs_credential,
        attributes=settings.attributes,
        degraded=report.degraded,
        linger=report.linger,
        has_sshd=sshprograms.available(),
        job_plugins=settings.enable_url_transfers,
    )


def _os_version() -> str:
    """HTCondor's OpSysAndVer: name and major version, as Debian12."""
    words = {}
    for line in Path("/etc/os-release").read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition("=")
        words[key] = value.strip('"')
    name = words.get("ID", "linux").capitalize()
    return f"{name}{words.get('VERSION_ID', '').partition('.')[0]}"
