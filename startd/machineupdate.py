"""What an administrator adds to the ads of all slots (CA_UPDATE_MACHINE_AD, condor_update_machine_ad). Pure.

It stays until the startd ends; a later update adds to it, or replaces single attributes. Whom a slot takes, what it is
and what opens its claim is not to be had this way: an update with one of those changes nothing at all.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs
from classad2 import ClassAd

from cedar.classads import is_private
from pilot.configuration import RESERVED

# A few facts about a node; each ad of each slot goes to every collector at every change.
MAX_ATTRIBUTES, MAX_CHARS = 200, 64 * 1024
# Of the command itself.
_OF_THE_COMMAND = frozenset({"command", "mytype", "targettype", "servertime"})
# Of a custom resource, before its name.
_OF_A_RESOURCE = ("", "Total", "TotalSlot", "Assigned", "Available", "Detected")
# What stock keeps account of itself: universes that are out of order.
_OF_UNIVERSES = ("offlineuniverses", "offlinereason", "offlinetime")


class UpdateRefused(Exception):
    """Nothing has changed; the text is for the administrator."""


@attrs.define
class MachineUpdate:
    """One startd's."""

    _attributes: ClassAd = attrs.field(factory=ClassAd)

    def take(self, ad: ClassAd, resources: Iterable[str] = ()) -> int:
        """Add what ``ad`` has; how many attributes that were. ``resources``: the machine's custom ones.

        Raises:
            UpdateRefused: one of them is not for an administrator to say, or they are too many.
        """
        wanted = {name: ad.lookup(name) for name in ad if _is_payload(name)}
        reserved = RESERVED | _of_resources(resources)
        for name in wanted:
            if _is_reserved(name, reserved):
                raise UpdateRefused(f"{name[:80]} is the slot's own and cannot be set; nothing was changed")
        together = ClassAd()
        together.update(self._attributes)
        for name, expression in wanted.items():
            together[name] = expression
        if len(together) > MAX_ATTRIBUTES or len(str(together)) > MAX_CHARS:
            text = f"more than {MAX_ATTRIBUTES} attributes or {MAX_CHARS >> 10} KB in all; nothing was changed"
            raise UpdateRefused(text)
        self._attributes = together
        return len(wanted)

    def merge_into(self, ad: ClassAd) -> None:
        """Into the ad of a slot, or of the startd."""
        ad.update(self._attributes)


def _is_payload(name: str) -> bool:
    lower = name.lower()
    return lower not in _OF_THE_COMMAND and not any(word in lower for word in _OF_UNIVERSES)


def _of_resources(resources: Iterable[str]) -> frozenset[str]:
    """How much of each a slot has, and which devices."""
    return frozenset(f"{what}{name}".lower() for name in resources for what in _OF_A_RESOURCE)


def _is_reserved(name: str, reserved: frozenset[str]) -> bool:
    """Ours besides the settings' list: what tells who is isolated from whom."""
    return name.lower() in reserved or name.lower().startswith(("_condor", "sailplane")) or is_private(name)
