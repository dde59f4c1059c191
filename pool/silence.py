"""How long nothing was heard of an execution point, in time in which this process could hear. Pure.

A pool that stands still itself (its disk keeps a commit waiting, somebody has stopped it) reads nothing meanwhile:
signs of life lie in its sockets when it goes on, and must be read before a lease is called over.
"""

from __future__ import annotations

from attrs import define, field

# Of a lease: no more than this passes between two looks, and no look counts more, however late it comes.
LOOKS = 8


@define
class Silence:
    """``heard_s`` and ``now_s``: monotonic, of one clock. Looked at again at ``next_look_s``."""

    lease_s: float
    _heard_s: float
    _looked_s: float = field(init=False)
    _silent_s: float = field(init=False, default=0.0)

    def __attrs_post_init__(self) -> None:
        self._looked_s = self._heard_s

    @property
    def next_look_s(self) -> float:
        return self._looked_s + min(self._longest_s, self.lease_s - self._silent_s)

    @property
    def _longest_s(self) -> float:
        return self.lease_s / LOOKS

    def over(self, heard_s: float, now_s: float) -> bool:
        """Look once: whether it has lasted for a lease."""
        if heard_s > self._heard_s:
            self._heard_s, self._looked_s, self._silent_s = heard_s, max(heard_s, self._looked_s), 0.0
        self._silent_s += min(now_s - self._looked_s, self._longest_s)
        self._looked_s = now_s
        return self._silent_s >= self.lease_s
