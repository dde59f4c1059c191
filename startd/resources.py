"""What a machine has, what a request gets of it. Pure.

Custom resources (GPUs and the like) are counted, or are devices with ids; an id may stand there more than once, for a
device that several jobs share. An amount is a number or a tuple of ids accordingly.
"""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

import attrs
from classad2 import ClassAd, ExprTree, Value

from cedar.classads import evaluate

# What a job gets that says nothing (execute-side reference 3.5).
MEMORY_STEP_MB = 128
DISK_STEP_KB = 1024
# No machine has more of anything; a request beyond it is nonsense.
MOST = 2**50

_QUESTION = "SailplaneQuestion"

Amount = int | tuple[str, ...]


@attrs.frozen
class Resources:
    """Cpus, memory in MB, disk in KB, and an amount of each custom resource by its name."""

    cpus: int
    memory_mb: int
    disk_kb: int
    custom: Mapping[str, Amount] = attrs.field(factory=dict)

    def __add__(self, other: Resources) -> Resources:
        names = {**self.custom, **other.custom}
        return Resources(
            self.cpus + other.cpus, self.memory_mb + other.memory_mb, self.disk_kb + other.disk_kb,
            {name: _sum(self.custom.get(name), other.custom.get(name)) for name in names},
        )  # fmt: skip

    def __sub__(self, other: Resources) -> Resources:
        """Raises ValueError: an id is to be taken that is not there."""
        custom = {name: _difference(have, other.custom.get(name)) for name, have in self.custom.items()}
        return Resources(self.cpus - other.cpus, self.memory_mb - other.memory_mb, self.disk_kb - other.disk_kb, custom)

    def holds(self, other: Resources) -> bool:
        """Whether ``other`` fits."""
        sizes = self.cpus >= other.cpus and self.memory_mb >= other.memory_mb and self.disk_kb >= other.disk_kb
        return sizes and all(_holds(self.custom.get(name), wanted) for name, wanted in other.custom.items())

    def count(self, name: str) -> int:
        """How many of a custom resource."""
        return count(self.custom.get(name, 0))

    def ids(self, name: str) -> tuple[str, ...]:
        """The ids of a custom resource; none where it is only counted."""
        amount = self.custom.get(name, 0)
        return amount if isinstance(amount, tuple) else ()

    @property
    def nothing(self) -> Resources:
        """The same resources, none of each."""
        return Resources(0, 0, 0, {name: () if isinstance(have, tuple) else 0 for name, have in self.custom.items()})

    def __str__(self) -> str:
        words = [f"{self.cpus} cpus", f"{self.memory_mb} MB of memory", f"{self.disk_kb} KB of disk"]
        return ", ".join(words + [f"{count(amount)} {name}" for name, amount in self.custom.items()])


def count(amount: Amount) -> int:
    """How many."""
    return len(amount) if isinstance(amount, tuple) else amount


def _sum(left: Amount | None, right: Amount | None) -> Amount:
    if left is None or right is None:
        return right if left is None else left  # type: ignore[return-value]
    if isinstance(left, tuple) and isinstance(right, tuple):
        return tuple(sorted(left + right))
    return count(left) + count(right)


def _difference(have: Amount, taken: Amount | None) -> Amount:
    if not isinstance(have, tuple) or not isinstance(taken, tuple):
        return have if taken is None else count(have) - count(taken)
    left = list(have)
    for each in taken:
        left.remove(each)
    return tuple(left)


def _holds(have: Amount | None, wanted: Amount) -> bool:
    if isinstance(have, tuple) and isinstance(wanted, tuple):
        return Counter(wanted) <= Counter(have)
    return count(have or 0) >= count(wanted)


@attrs.frozen
class Rounding:
    """MODIFY_REQUEST_EXPR_REQUESTCPUS, -MEMORY, -DISK: what a request becomes, as expressions in the job's ad with the
    slot's as target; ``must``: also where the job fits as it asked, but not as it was rounded."""

    cpus: str = "quantize(RequestCpus,{1})"
    memory: str = "quantize(RequestMemory,{128})"
    disk: str = "quantize(RequestDisk,{1024})"
    must: bool = False


class DoesNotFit(Exception):
    """A request larger than what is left; the text has both."""


def requested(job: ClassAd, slot: ClassAd, free: Resources, rounding: Rounding) -> Resources:
    """What a job gets of a slot that has ``free`` left: its sizes rounded where that still fits, and the devices that
    suit it (Require<Name>).

    Raises:
        DoesNotFit: more than there is, or nonsense (zero cores, a negative size).
    """
    custom = {name: _custom(job, slot, name, free) for name in free.custom}
    cpus = _asked(job, slot, "Cpus", 1)
    memory_mb, disk_kb = _asked(job, slot, "Memory", MEMORY_STEP_MB), _asked(job, slot, "Disk", DISK_STEP_KB)
    exact = Resources(cpus, memory_mb, disk_kb, custom)
    rounded = attrs.evolve(
        exact,
        cpus=_rounded(job, slot, rounding.cpus, cpus),
        memory_mb=_rounded(job, slot, rounding.memory, memory_mb),
        disk_kb=_rounded(job, slot, rounding.disk, disk_kb),
    )
    for wanted in (rounded,) if rounding.must else (rounded, exact):
        if exact.cpus > 0 and wanted.cpus > 0 and free.holds(wanted):
            return wanted
    raise DoesNotFit(f"a request for {exact} does not fit into {free}")


def _asked(job: ClassAd, slot: ClassAd, name: str, default: int) -> int:
    """A size; what a schedd asks for in its own name (_condor_Request<Name>) wins over the user's."""
    for attribute in (f"_condor_Request{name}", f"Request{name}"):
        value = evaluate(job, attribute, slot)
        if value is Value.Undefined:
            continue
        number = _whole(value)
        if number is None:
            raise DoesNotFit(f"{attribute} is not a number from 0 to {MOST}")
        return number
    return default


def _whole(value: object) -> int | None:
    """A number as HTCondor takes it, rounded up; None for what is none that can be meant."""
    if isinstance(value, Value) or not isinstance(value, int | float) or not 0 <= value <= MOST:
        return None
    return math.ceil(value)


def _rounded(job: ClassAd, slot: ClassAd, expression: str, exact: int) -> int:
    value = _whole(_asked_of(job, expression, slot))
    return exact if value is None else value


def _asked_of(ad: ClassAd, expression: str, target: ClassAd) -> object:
    """The value of an expression in an ad. Set and taken back in the ad itself: a copy costs a millisecond."""
    ad[_QUESTION] = _tree(expression)
    try:
        return evaluate(ad, _QUESTION, target)
    finally:
        del ad[_QUESTION]


@functools.lru_cache(maxsize=64)
def _tree(expression: str) -> ExprTree:
    return ExprTree(expression)


# --- devices -----------------------------------------------------------------------------------------------------


def device_attribute(name: str, device: str) -> str:
    """The attribute of a slot's ad that describes a device, as HTCondor makes it of resource and id."""
    return re.sub("__+", "_", re.sub("[^A-Za-z0-9_]", "_", f"{name}_{device}"))


def _custom(job: ClassAd, slot: ClassAd, name: str, free: Resources) -> Amount:
    wanted = _asked(job, slot, name, 0)
    if not isinstance(free.custom[name], tuple):
        return wanted
    require = f"Require{name}"
    suits = _suitability(job, slot, name) if wanted and require in job else None
    return choose(free.ids(name), wanted, suits)


def _suitability(job: ClassAd, slot: ClassAd, name: str) -> Callable[[str], bool]:
    """Whether a device's description satisfies the job: by the same function that the match was made with."""
    question = f"countMatches(MY.Require{name}, TARGET.Available{name})"

    def suits(device: str) -> bool:
        attribute = device_attribute(name, device)
        if attribute not in slot:
            return False
        target = ClassAd()
        target[attribute] = slot.lookup(attribute)
        target[f"Available{name}"] = ExprTree(f"{{ {attribute} }}")
        return bool(_asked_of(job, question, target) == 1)

    return suits


def choose(free: Iterable[str], wanted: int, suits: Callable[[str], bool] | None = None) -> tuple[str, ...]:
    """``wanted`` of the free ids: different ones as long as there are, those with the most free shares first.

    Raises:
        DoesNotFit: there are not so many, or not so many that suit.
    """
    left = Counter(free)
    usable = {device: shares for device, shares in left.items() if suits is None or suits(device)}
    if sum(usable.values()) < wanted:
        words = "suitable devices" if suits else "devices"
        raise DoesNotFit(f"a request for {wanted} {words}: {sum(usable.values())} are free")
    chosen: list[str] = []
    while len(chosen) < wanted:
        in_order = sorted((device for device in usable if usable[device]), key=lambda device: (-usable[device], device))
        for device in in_order[: wanted - len(chosen)]:
            usable[device] -= 1
            chosen.append(device)
    return tuple(sorted(chosen))
