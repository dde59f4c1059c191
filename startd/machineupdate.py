"""What an administrator adds to the ads of all slots (CA_UPDATE_MACHINE_AD, condor_update_machine_ad). Pure.

It stays until the startd ends; a later update adds to it, or replaces single attributes. Whom a slot takes, what it is
and what opens its claim is not to be had this way: an update with one of those changes nothing at all.
"""

from __future__ import annotations

import attrs
from classad2 import ClassAd

from cedar.classads import is_private
from pilot.configuration import RESERVED

# A few facts about a node; each ad of each slot goes to every collector at every change.
MAX_ATTRIBUTES, MAX_CHARS = 200, 64 * 1024
# Of the command itself.
_OF_THE_COMMAND = frozenset({"command", "mytype", "targettype", "servertime"})
# What stock keeps account of itself: universes that are out of order.
_OF_UNIVERSES = ("offlineuniverses", "offlinereason", "offlinetime")


class UpdateRefused(Exception):
    """Nothing has changed; the text is for the administrator."""


@attrs.define
class MachineUpdate:
    """One startd's."""

    _attributes: ClassAd = attrs.field(factory=ClassAd)

    def take(self, ad: ClassAd) -> int:
        """Add what ``ad`` has; how many attributes that were.

        Raises:
            UpdateRefused: one of them is not for an administrator to say, or they are too many.
        """
        wanted = {name: ad.lookup(name) for name in ad if _is_payload(name)}
        for name in wanted:
            if _is_reserved(name):
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


def _is_reserved(name: str) -> bool:
    """Ours besides the settings' list: what tells who is isolated from whom."""
    return name.lower() in RESERVED or name.lower().startswith(("_condor", "sailplane")) or is_private(name)
