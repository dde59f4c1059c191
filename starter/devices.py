"""Which devices a job has, in its environment: by HTCondor's names, and by those that device libraries know. Pure.

ENVIRONMENT_FOR_Assigned<NAME> makes variables of a resource's ids: ``NAME=/pattern/replacement/``, several with blanks
between; without a pattern the variable has the ids as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial

import attrs
from classad2 import ClassAd, ExprTree

from cedar.classads import evaluate, get_str
from pilot.knobs import SettingsError
from pilot.settings import Settings

FOR, VALUE_FOR_NONE = "ENVIRONMENT_FOR_ASSIGNED", "ENVIRONMENT_VALUE_FOR_UNASSIGNED"
# HTCondor's own: ids of older discoveries (CUDA0, OCL1) become numbers; no GPU is a number that no card has.
_DEFAULTS = {
    f"{FOR}GPUS": "GPU_DEVICE_ORDINAL=/(CUDA|OCL)//  CUDA_VISIBLE_DEVICES=/CUDA//",
    f"{VALUE_FOR_NONE}GPUS": "10000",
}
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_GROUP = re.compile(r"\$([0-9])")
_ALLOWED = "NAME or NAME=/pattern/replacement/ with blanks between"
# Variables that take numbers only, where nothing is said of how.
_NUMBERS = frozenset({"CUDA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL"})


@attrs.frozen
class Template:
    """One variable made of ids; ``pattern`` None: of the ids as they are."""

    variable: str
    pattern: re.Pattern[str] | None = None
    replacement: str = ""

    def value(self, ids: Sequence[str]) -> str:
        return ",".join(map(self._one, ids))

    def _one(self, device: str) -> str:
        if self.pattern is None:
            return "".join(re.findall("[0-9]", device)) if self.variable in _NUMBERS else device
        return self.pattern.sub(partial(_replaced, self.replacement), device, count=1)


def _replaced(replacement: str, match: re.Match[str]) -> str:
    def group(number: re.Match[str]) -> str:
        index = int(number[1])
        return (match[index] or "") if index <= match.re.groups else ""

    return _GROUP.sub(group, replacement)


def templates(settings: Settings) -> dict[str, tuple[Template, ...]]:
    """By the resource's name in upper case.

    Raises:
        SettingsError: one that cannot be read.
    """
    texts = {**_DEFAULTS, **settings.family}
    named = {knob.removeprefix(FOR): (knob, text) for knob, text in texts.items() if knob.startswith(FOR)}
    return {name: _parse(settings.spelled.get(knob, knob), text) for name, (knob, text) in named.items()}


def _parse(knob: str, text: str) -> tuple[Template, ...]:
    found, rest = [], text.strip()
    while rest:
        name = _VARIABLE.match(rest)
        if name is None:
            raise SettingsError(knob, text, _ALLOWED)
        rest = rest[name.end() :].lstrip()
        if not rest.startswith("="):
            found.append(Template(name[0]))
            continue
        rest = rest[1:].lstrip()
        parts = rest[1:].split(rest[0], 2) if rest else []
        if len(parts) < 3:
            raise SettingsError(knob, text, _ALLOWED)
        found.append(_template(knob, text, name[0], parts[0], parts[1]))
        rest = parts[2].lstrip().removeprefix(",").lstrip()
    return tuple(found)


def _template(knob: str, text: str, variable: str, pattern: str, replacement: str) -> Template:
    if not pattern:
        return Template(variable)
    try:
        return Template(variable, re.compile(pattern), replacement)
    except re.error as fault:
        raise SettingsError(knob, text, f"{_ALLOWED}; the pattern is no regular expression: {fault}") from None


def variables(slot: ClassAd, settings: Settings) -> dict[str, str]:
    """What a job's environment says of the devices of its slot; also that it has none of a kind that is there."""
    made = templates(settings)
    environment: dict[str, str] = {}
    names = get_str(slot, "MachineResources", "").split()
    for name in names:
        assigned = get_str(slot, f"Assigned{name}", None)
        of_this = made.get(name.upper(), ())
        if assigned is None and not (of_this and name in slot):
            continue
        value = _of_none(settings, name) if assigned is None else assigned
        ids = [each.strip() for each in value.split(",") if each.strip()]
        environment |= {template.variable: template.value(ids) for template in of_this}
        environment[f"_CONDOR_Assigned{name}"] = value
    if settings.auto_set_nvidia_visible_devices and "gpus" in (name.lower() for name in names):
        environment |= _nvidia(slot)
    return environment


def _of_none(settings: Settings, name: str) -> str:
    knob = f"{VALUE_FOR_NONE}{name.upper()}"
    return settings.family.get(knob, _DEFAULTS.get(knob, ""))


def _nvidia(slot: ClassAd) -> Mapping[str, str]:
    """The libraries of today know cards by their full ids alone; of a divided card that is its part's."""
    asking = ClassAd()
    asking.update(slot)
    asking["_Uuids"] = ExprTree('join(",", evalInEachContext(DeviceUuid, AvailableGPUs))')
    uuids = evaluate(asking, "_Uuids")
    if not isinstance(uuids, str) or not uuids:
        return {"NVIDIA_VISIBLE_DEVICES": "none"}
    full = ",".join(each if each.startswith("MIG-") else f"GPU-{each}" for each in uuids.split(","))
    return {"NVIDIA_VISIBLE_DEVICES": full, "CUDA_VISIBLE_DEVICES": full}
