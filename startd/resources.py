"""What a machine has, what a request gets of it. Pure."""

from __future__ import annotations

import math

import attrs
from classad2 import ClassAd

from cedar.classads import get_int

# MODIFY_REQUEST_EXPR_REQUEST*: sizes are rounded up to these, if the result still fits (execute-side reference 3.5).
MEMORY_STEP_MB = 128
DISK_STEP_KB = 1024


@attrs.frozen
class Resources:
    """Cpus, memory in MB, disk in KB."""

    cpus: int
    memory_mb: int
    disk_kb: int

    def __add__(self, other: Resources) -> Resources:
        return Resources(self.cpus + other.cpus, self.memory_mb + other.memory_mb, self.disk_kb + other.disk_kb)

    def __sub__(self, other: Resources) -> Resources:
        return Resources(self.cpus - other.cpus, self.memory_mb - other.memory_mb, self.disk_kb - other.disk_kb)

    def holds(self, other: Resources) -> bool:
        """Whether ``other`` fits."""
        return self.cpus >= other.cpus and self.memory_mb >= other.memory_mb and self.disk_kb >= other.disk_kb

    @property
    def empty(self) -> bool:
        """Nothing more can be carved from it."""
        return self.cpus < 1 or self.memory_mb < 1 or self.disk_kb < 1


class DoesNotFit(Exception):
    """A request larger than what is left; the text has both."""


def requested(ad: ClassAd, free: Resources) -> Resources:
    """What a job asks for, rounded up where the rounded sizes still fit.

    Raises:
        DoesNotFit: more than there is, or nonsense (zero or less).
    """
    exact = Resources(
        cpus=get_int(ad, "RequestCpus", 1),
        memory_mb=get_int(ad, "RequestMemory", MEMORY_STEP_MB),
        disk_kb=get_int(ad, "RequestDisk", DISK_STEP_KB),
    )
    if min(exact.cpus, exact.memory_mb, exact.disk_kb) < 0 or exact.cpus == 0 or not free.holds(exact):
        raise DoesNotFit(f"{exact} does not fit into {free}")
    rounded = Resources(exact.cpus, _up(exact.memory_mb, MEMORY_STEP_MB), _up(exact.disk_kb, DISK_STEP_KB))
    return rounded if free.holds(rounded) else exact


def _up(value: int, step: int) -> int:
    return max(step, math.ceil(value / step) * step)
