"""From the settings' slot types to the slots that a startd has (SLOT_TYPE_N, NUM_SLOTS_TYPE_N, NUM_SLOTS). Pure.

A type describes each of its slots: sizes, shares of the machine (``25%``, ``1/4``), or ``auto``, an equal share of what
the others leave.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction

import attrs

from pilot.knobs import SettingsError
from startd.resources import Amount, Resources, choose

MAX_SLOTS = 1024
# What a description may be at most.
MAX_DESCRIPTION = 4096

_ALLOWED = "name=value with commas between, or one share for all; a value is a number, 25%, 1/4 or auto"
_PARTS = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)\s*%|([0-9]{1,9})\s*/\s*([0-9]{1,9})")
_NUMBER = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?)\s*([kmgt]?)b?", re.IGNORECASE)
_UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
# The power of 1024 that a number without a unit is in.
_NATIVE = {"memory": 2, "disk": 1}
# Any beginning of these names is the name (c=1, r=25%), as HTCondor reads them; of swap there is nothing to give.
_WORDS = {"cpus": "cpus", "memory": "memory", "ram": "memory", "disk": "disk", "swap": "", "virtualmemory": ""}


@attrs.frozen
class Share:
    """What a slot gets of one resource: a part of the machine's, an amount, or (neither) an equal part of the rest."""

    part: Fraction | None = None
    amount: int | None = None


AUTO = Share()


@attrs.frozen
class SlotType:
    """N, its description (empty: all auto), how many slots there are of it, and of which kind."""

    number: int
    description: str
    slots: int
    partitionable: bool


@attrs.frozen
class Plan:
    """One slot as it is to be made."""

    slot_id: int
    type_number: int
    partitionable: bool
    resources: Resources


def slot_types(
    number_of_slots: int | None, descriptions: Mapping[int, str], counts: Mapping[int, int], kinds: Mapping[int, bool]
) -> list[SlotType]:
    """The types that have slots; without any, type 0, which divides the machine evenly.

    Raises:
        SettingsError: type 0 is described, or there would be too many slots.
    """
    for knob, values in (("SLOT_TYPE_0", descriptions), ("NUM_SLOTS_TYPE_0", counts)):
        if 0 in values:
            raise SettingsError(knob, str(values[0]), "a type from 1 on; type 0 is that of NUM_SLOTS, and auto")
    types = [
        SlotType(number, descriptions.get(number, ""), slots, kinds.get(number, False))
        for number, slots in sorted(counts.items())
        if slots
    ]
    if not types:
        kind = kinds.get(0, True)
        types = [SlotType(0, "", number_of_slots or 1, kind)]
    total = sum(each.slots for each in types)
    if total > MAX_SLOTS:
        raise SettingsError("NUM_SLOTS_TYPE_N", str(total), f"at most {MAX_SLOTS} slots in all")
    return types


def parse(each: SlotType, names: Sequence[str]) -> dict[str, Share]:
    """The share of each resource that a type's description gives; ``names``: the machine's custom resources.

    Raises:
        SettingsError: it is no description, or wants some of a resource that this machine does not have.
    """
    knob, text = f"SLOT_TYPE_{each.number}", each.description
    if len(text) > MAX_DESCRIPTION:
        raise SettingsError(knob, text[:80] + "...", f"at most {MAX_DESCRIPTION} characters")
    default, shares = AUTO, dict[str, Share]()
    for item in _items(text):
        name, equals, value = (part.strip() for part in item.partition("="))
        if not equals:
            default = _share(knob, text, name, 0)
            if default.amount is not None:
                raise SettingsError(knob, text, _ALLOWED)
            continue
        resource = _resource(name, names)
        share = _share(knob, text, value, _NATIVE.get(resource or "", 0))
        if resource is None and share.amount:
            there = ", ".join(("cpus", "memory", "disk", *names))
            raise SettingsError(knob, text, f"a share of what this machine has ({there}), but it names {name!r}")
        if resource:
            shares[resource] = share
    return {name: shares.get(name, default) for name in ("cpus", "memory", "disk", *names)}


def _items(text: str) -> Iterator[str]:
    separator = "\n" if "\n" in text else "," if "," in text else None
    yield from (item.strip() for item in text.split(separator) if item.strip())


def _resource(name: str, names: Sequence[str]) -> str | None:
    """The machine's own word for a resource; empty: one that is not divided; None: it has none such."""
    lower = name.lower()
    for custom in names:
        if custom.lower() == lower:
            return custom
    return next((meant for word, meant in _WORDS.items() if lower and word.startswith(lower)), None)


def _share(knob: str, text: str, value: str, native: int) -> Share:
    if value.lower() in ("auto", "automatic"):
        return AUTO
    if (found := _PARTS.fullmatch(value)) is not None:
        percent, above, below = found.groups()
        if percent is None and not int(below):
            raise SettingsError(knob, text, _ALLOWED)
        part = Fraction(percent) / 100 if percent is not None else Fraction(int(above), int(below))
        if part > 1:
            raise SettingsError(knob, text, "no more than the whole machine (100%, 1/1)")
        return Share(part=part)
    if (found := _NUMBER.fullmatch(value)) is None:
        raise SettingsError(knob, text, _ALLOWED)
    scale = Fraction(1024) ** (_UNITS[found[2].lower()] - native) if found[2] else Fraction(1)
    return Share(amount=int(Fraction(found[1]) * scale))


# --- the slots ---------------------------------------------------------------------------------------------------

_SIZES = {"cpus": "cpus", "memory": "memory_mb", "disk": "disk_kb"}


def plan(types: Sequence[SlotType], machine: Resources) -> list[Plan]:
    """The slots of a machine, numbered from 1 by type.

    Raises:
        SettingsError: the machine does not have what the types want.
    """
    names = tuple(machine.custom)
    wanted = [(each, parse(each, names)) for each in types for _ in range(each.slots)]
    fixed = [_fixed(shares, machine) for _, shares in wanted]
    left = {name: _amount(machine, name) for name in ("cpus", "memory", "disk", *names)}
    for (each, _), sizes in zip(wanted, fixed, strict=True):
        for name, size in sizes.items():
            if size > left[name]:
                raise _too_much(each, machine, f"only {left[name]} of {name} is left for it")
            left[name] -= size
    _divide_rest(wanted, fixed, left, names)
    devices = dict(machine.custom)
    plans = []
    for slot_id, ((each, _), sizes) in enumerate(zip(wanted, fixed, strict=True), start=1):
        if min(sizes["cpus"], sizes["memory"]) < 1 or sizes["disk"] < 0:
            raise _too_much(each, machine, "nothing is left of cpus or memory for one of its slots")
        custom = {name: _take(devices, name, sizes[name]) for name in names}
        resources = Resources(sizes["cpus"], sizes["memory"], sizes["disk"], custom)
        plans.append(Plan(slot_id, each.number, each.partitionable, resources))
    return plans


def _amount(machine: Resources, name: str) -> int:
    return int(getattr(machine, _SIZES[name])) if name in _SIZES else machine.count(name)


def _fixed(shares: Mapping[str, Share], machine: Resources) -> dict[str, int]:
    """Amounts of what does not depend on the other slots; of cores and memory a slot has at least 1."""
    sizes = {}
    for name, share in shares.items():
        least = 1 if name in ("cpus", "memory") else 0
        if share.amount is not None:
            sizes[name] = max(least, share.amount)
        elif share.part is not None:
            sizes[name] = max(least, int(share.part * _amount(machine, name)))
    return sizes


def _divide_rest(
    wanted: Sequence[tuple[SlotType, Mapping[str, Share]]],
    fixed: Sequence[dict[str, int]],
    left: Mapping[str, int],
    names: Sequence[str],
) -> None:
    """What is left, in equal parts; of custom resources the first slots have one more where it does not divide."""
    for name, rest in left.items():
        without = [sizes for (_, shares), sizes in zip(wanted, fixed, strict=True) if shares[name] == AUTO]
        for done, sizes in enumerate(without):
            parts = len(without) - done
            sizes[name] = -(-rest // parts) if name in names else left[name] // len(without)
            rest -= sizes[name]


def _take(devices: dict[str, Amount], name: str, number: int) -> Amount:
    have = devices[name]
    if not isinstance(have, tuple):
        return number
    ids = choose(have, number)
    rest = list(have)
    for device in ids:
        rest.remove(device)
    devices[name] = tuple(rest)
    return ids


def _too_much(each: SlotType, machine: Resources, why: str) -> SettingsError:
    if each.number == 0:
        return SettingsError("NUM_SLOTS", str(each.slots), f"what this machine has for it: {machine}; {why}")
    return SettingsError(
        f"SLOT_TYPE_{each.number}",
        f"{each.description or 'auto'} ({each.slots} slots)",
        f"what this machine has with all types together: {machine}; {why}",
    )
