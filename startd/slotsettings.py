"""What the settings say of slot types: their names carry the type's number. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import attrs

from pilot.knobs import Kind, Knob, SettingsError, expression, integer, text, yes_or_no
from pilot.settings import Settings
from startd.slottypes import MAX_SLOTS, SlotType, slot_types

MAX_TYPES = 99
_NAME = re.compile(r"(NUM_SLOTS_TYPE|SLOT_TYPE)_([0-9]+)(?:_([A-Z0-9_]+))?")
_KINDS: Mapping[tuple[str, str | None], Kind] = {
    ("NUM_SLOTS_TYPE", None): integer(0, MAX_SLOTS),
    ("SLOT_TYPE", None): text(r"[^\x00]*"),
    ("SLOT_TYPE", "PARTITIONABLE"): yes_or_no(),
    ("SLOT_TYPE", "START"): expression(),
}


@attrs.frozen
class SlotSettings:
    """The types; START of those that have their own; names of settings that nothing is made of."""

    types: tuple[SlotType, ...]
    starts: Mapping[int, str]
    unused: tuple[str, ...]


def slot_settings(settings: Settings) -> SlotSettings:
    """Read and check them.

    Raises:
        SettingsError: a value that cannot be.
    """
    found: dict[tuple[str, str | None], dict[int, Any]] = {key: {} for key in _KINDS}
    unused = []
    for name, value in settings.family.items():
        match = _NAME.fullmatch(name)
        if match is None or not value:
            continue
        key = match[1], match[3]
        if key not in _KINDS:
            unused.append(name)
            continue
        if len(match[2]) > 4 or int(match[2]) > MAX_TYPES:
            raise SettingsError(name, value, f"a slot type from 1 to {MAX_TYPES}")
        found[key][int(match[2])] = Knob(name, _KINDS[key], "", "", "").value(value)
    types = slot_types(
        settings.num_slots,
        found["SLOT_TYPE", None],
        found["NUM_SLOTS_TYPE", None],
        found["SLOT_TYPE", "PARTITIONABLE"],
    )
    return SlotSettings(tuple(types), found["SLOT_TYPE", "START"], tuple(sorted(unused)))
