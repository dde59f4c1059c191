"""Attributes that every slot's ad has of every slot (STARTD_SLOT_ATTRS): ``slot1_State``, ``slot1_2_Activity``. Pure.

Glidein pools end a pilot by what its slots are doing: ``Slot1_Activity == "Idle"`` in DAEMON_SHUTDOWN.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from classad2 import ClassAd, Value

from cedar.classads import evaluate

Scalar = bool | int | float | str


def crossposts(ads: Iterable[ClassAd], names: Sequence[str]) -> Mapping[str, Scalar]:
    """What is told of these slots: values as they are now. An attribute that has none (or a list) is left out."""
    found: dict[str, Scalar] = {}
    for ad in ads if names else ():
        slot = str(ad["Name"]).partition("@")[0]
        for name in names:
            value = evaluate(ad, name) if name in ad else None
            if isinstance(value, Scalar) and not isinstance(value, Value):
                found[f"{slot}_{name}"] = value
    return found
