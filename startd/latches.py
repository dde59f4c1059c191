"""Since when an attribute of a slot has its value (STARTD_LATCH_EXPRS): ``<Name>Value`` and ``<Name>Time``. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import attrs
from classad2 import ClassAd, Value

from cedar.classads import evaluate


@attrs.frozen
class Latched:
    """One attribute of one slot. ``changed_at`` as in time.time(); None while nobody has seen it change."""

    value: int | None = None
    changed_at: int | None = None


@attrs.define
class Latches:
    """Of all slots. A value counts as a whole number; what is none (undefined, text) has no value."""

    names: Sequence[str]
    _seen: dict[str, dict[str, Latched]] = attrs.field(factory=dict)
    """By the slot's name and the attribute's."""

    def put(self, ad: ClassAd, *, now: int) -> None:
        """Look at the ad of a slot, and say in it since when each attribute is as it is."""
        if not self.names:
            return
        slot = self._seen.setdefault(str(ad["Name"]), {})
        for name in self.names:
            before = slot.get(name, Latched())
            value = _whole(evaluate(ad, name))
            latched = before if value == before.value else Latched(value, now)
            slot[name] = latched
            if latched.value is not None:
                ad[f"{name}Value"] = latched.value
            if latched.changed_at is not None:
                ad[f"{name}Time"] = latched.changed_at

    def keep(self, slots: Collection[str]) -> None:
        """Forget slots that are not among these."""
        for gone in self._seen.keys() - set(slots):
            del self._seen[gone]


def _whole(value: object) -> int | None:
    if isinstance(value, Value) or not isinstance(value, bool | int | float):
        return None
    try:
        return int(value)
    except (ValueError, OverflowError):  # not a number, or without an end
        return None
