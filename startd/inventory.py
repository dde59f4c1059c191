"""Custom resources of a machine: what the settings and the commands that they name say of them. Pure.

``MACHINE_RESOURCE_<NAME>`` is a number or a list of ids; ``MACHINE_RESOURCE_INVENTORY_<NAME>`` a command that prints
what condor_gpu_discovery does: ``Detected<NAME>``, a nested ad ``Common``, and one for each device.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import attrs
from classad2 import ClassAd, Value

from cedar.classads import evaluate, get_str, parse_old
from cedar.errors import PeerFault
from pilot.configuration import RESERVED
from pilot.knobs import SettingsError, integer
from pilot.settings import Settings
from startd.resources import Amount, device_attribute

_PREFIX, _INVENTORY, _OFFLINE = "MACHINE_RESOURCE_", "MACHINE_RESOURCE_INVENTORY_", "OFFLINE_MACHINE_RESOURCE_"
_NAMES = "MACHINE_RESOURCE_NAMES"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_DEVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/+-]{0,127}")
_FRACTION = re.compile(r"[0-9]*\.[0-9]*")
# A machine with more shares of devices than this has a mistake in its settings.
MAX_DEVICES = 1024
MAX_COUNT = 2**40
# HTCondor's own words for what is no custom resource.
_BUILT_IN = frozenset({"cpu", "cpus", "disk", "swap", "mem", "memory", "ram", "virtualmemory", "inventory", "names"})
# However it is written, people and jobs know it so.
_USUAL = {"gpus": "GPUs"}
_ID_ALLOWED = "a whole number, or ids of letters, digits and _.:/+- with commas between"


@attrs.frozen
class Source:
    """Where a resource's amount is said: by a setting itself, or by the command in it. ``offline``: what of it is not
    to be given to anybody."""

    name: str
    knob: str
    value: str
    is_command: bool
    offline: str = ""


@attrs.frozen
class Found:
    """What there is of a resource. ``devices``: what is known of each; ``more``: attributes for every slot's ad."""

    name: str
    amount: Amount
    devices: Mapping[str, ClassAd] = attrs.field(factory=dict)
    more: ClassAd = attrs.field(factory=ClassAd)


def sources(settings: Settings) -> list[Source]:
    """The machine's custom resources by the settings, in the order of their names.

    Raises:
        SettingsError: a name that cannot be, or a resource that is said twice.
    """
    wanted = {name.lower() for name in settings.machine_resource_names}
    found: dict[str, Source] = {}
    for knob, value in sorted(settings.family.items()):
        if not knob.startswith(_PREFIX) or knob == _NAMES or not value:
            continue
        spelled = settings.spelled.get(knob, knob)
        is_command = knob.startswith(_INVENTORY)
        name = spelled[len(_INVENTORY if is_command else _PREFIX) :]
        lower = name.lower()
        if not _NAME.fullmatch(name) or lower in _BUILT_IN or lower in RESERVED:
            raise SettingsError(spelled, value, "a resource name of letters, digits and _ that HTCondor does not use")
        if wanted and lower not in wanted:
            continue
        if lower in found:
            raise SettingsError(spelled, value, f"either this or {found[lower].knob}, not both")
        offline = settings.family.get(f"{_OFFLINE}{name.upper()}", "")
        found[lower] = Source(_USUAL.get(lower, name), spelled, value, is_command, offline)
    return list(found.values())


def by_value(source: Source) -> Found:
    """From the setting itself. Raises SettingsError."""
    if "\n" in source.value:
        return by_answer(source, source.value)
    amount = _without(source, _amount(source, source.value))
    return Found(source.name, amount, {device: ClassAd() for device in _ids(amount)}, _detected(source.name, amount))


def by_answer(source: Source, said: str) -> Found:
    """From an inventory command's output. Raises SettingsError, with what it printed."""
    name = source.name
    try:
        ad = parse_old("\n".join(line for line in said.splitlines() if not line.lstrip().startswith("#")))
        detected = evaluate(ad, f"Detected{name}")
    except PeerFault as fault:
        raise _unreadable(source, said, fault.text) from fault
    if isinstance(detected, str):
        amount = _amount(source, detected)
    elif isinstance(detected, int) and not isinstance(detected, Value) and 0 <= detected <= MAX_COUNT:
        amount = int(detected)
    else:
        raise _unreadable(source, said, f"it has no Detected{name}")
    offline = get_str(ad, f"Offline{name}", source.offline)
    amount = _without(attrs.evolve(source, offline=offline), amount)
    nested = {key: value for key, value in _nested(ad)}
    more = ClassAd()
    for key in ad:
        if key not in nested and key.lower() not in (name.lower(), *RESERVED) and not key.lower().startswith("_condor"):
            more[key] = ad.lookup(key)
    return Found(name, amount, _devices(name, _ids(amount), nested), more)


def _nested(ad: ClassAd) -> Iterator[tuple[str, ClassAd]]:
    for key in ad:
        value = evaluate(ad, key)
        if isinstance(value, ClassAd):
            yield key, value


def _devices(name: str, ids: Sequence[str], nested: Mapping[str, ClassAd]) -> dict[str, ClassAd]:
    """What is known of each device: what is common to all, and its own, which is found by its id."""
    common = next((ad for key, ad in nested.items() if key.lower() == "common"), ClassAd())
    own: dict[str, ClassAd] = {}
    for key, ad in nested.items():
        own[get_str(ad, "Id", key)] = ad
    devices = {}
    for device in dict.fromkeys(ids):
        known = ClassAd()
        known.update(common)
        known.update(own.get(device, nested.get(device_attribute("", device).lstrip("_"), ClassAd())))
        if "Id" in known:
            del known["Id"]
        devices[device] = known
    return devices


def _detected(name: str, amount: Amount) -> ClassAd:
    ad = ClassAd()
    ad[f"Detected{name}"] = ", ".join(amount) if isinstance(amount, tuple) else amount
    return ad


def _ids(amount: Amount) -> tuple[str, ...]:
    return amount if isinstance(amount, tuple) else ()


def _amount(source: Source, text: str) -> Amount:
    try:
        return int(integer(0, MAX_COUNT).parse(text.strip()))
    except ValueError:
        pass
    ids = [part for part in re.split(r"[,\s]+", text) if part]
    if _FRACTION.fullmatch(text.strip()) or len(ids) > MAX_DEVICES or not all(_DEVICE.fullmatch(each) for each in ids):
        raise SettingsError(source.knob, text[:200], f"{_ID_ALLOWED}, at most {MAX_DEVICES}")
    _tell_apart(source, text, ids)
    return tuple(sorted(ids))


def _tell_apart(source: Source, text: str, ids: Sequence[str]) -> None:
    """Two ids that make one attribute could not be told apart in an ad."""
    seen: dict[str, str] = {}
    for each in ids:
        if seen.setdefault(device_attribute(source.name, each).lower(), each) != each:
            raise SettingsError(source.knob, text[:200], f"ids that differ in letters or digits, as {each!r} does not")


def _without(source: Source, amount: Amount) -> Amount:
    """What is left without what is offline: ids in all their shares, or a number."""
    if not source.offline:
        return amount
    off = _amount(attrs.evolve(source, knob=f"{_OFFLINE}{source.name}"), source.offline)
    if isinstance(amount, tuple):
        return tuple(device for device in amount if device not in _ids(off))
    return max(0, amount - (off if isinstance(off, int) else 0))


def _unreadable(source: Source, said: str, why: str) -> SettingsError:
    words = " ".join(said.split())[:200]
    what = f"a command that prints Detected{source.name} = ... and nested ads; {why}; it printed: {words or 'nothing'}"
    return SettingsError(source.knob, source.value[:200], what)


# --- nvidia-smi --------------------------------------------------------------------------------------------------

_CARD = re.compile(r"GPU ([0-9]{1,4}): (.{1,200}?) \(UUID: GPU-([0-9a-fA-F-]{8,64})\)")
_PART = re.compile(r"\s+MIG (\S{1,40})\s+Device\s+[0-9]{1,4}: \(UUID: (MIG-[0-9A-Za-z/-]{8,100})\)")


def by_nvidia_smi(said: str, visible: str | None) -> Found:
    """GPUs by ``nvidia-smi -L``, with the ids that condor_gpu_discovery gives them; a divided card stands as its parts.

    visible: CUDA_VISIBLE_DEVICES, by which a batch system says which are ours; None where it says nothing.
    """
    cards: list[_Card] = []
    for line in said.splitlines()[:MAX_DEVICES]:
        if (card := _CARD.fullmatch(line.rstrip())) is not None:
            cards.append(_Card(card[1], card[2], card[3]))
        elif (part := _PART.fullmatch(line.rstrip())) is not None and cards:
            cards[-1].parts.append((part[1], part[2]))
    devices: dict[str, ClassAd] = {}
    for each in cards:
        if visible is None or _is_visible(each.index, f"GPU-{each.uuid}", visible):
            devices.update(_of_card(each))
        else:
            devices.update((key, ad) for key, ad in _of_card(each) if _is_visible(None, key, visible))
    amount = tuple(sorted(devices))
    return Found("GPUs", amount, devices, _detected("GPUs", amount))


@attrs.define
class _Card:
    index: str
    name: str
    uuid: str
    parts: list[tuple[str, str]] = attrs.field(factory=list)


def _of_card(card: _Card) -> list[tuple[str, ClassAd]]:
    """HTCondor's ids: the first eight digits of a card's, all of a part's."""
    if not card.parts:
        return [(f"GPU-{card.uuid[:8]}", ClassAd({"DeviceName": card.name, "DeviceUuid": card.uuid}))]
    return [
        (uuid, ClassAd({"DeviceName": f"{card.name} MIG {profile}", "DeviceUuid": uuid}))
        for profile, uuid in card.parts
    ]


def _is_visible(index: str | None, uuid: str, visible: str) -> bool:
    named = [each.strip() for each in visible.split(",")]
    return index in named or any(len(each) > 4 and uuid.lower().startswith(each.lower()) for each in named)
