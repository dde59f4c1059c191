"""Counts processes that were born and had ended before anybody looked. Pure: it is given the kernel's events.

An event has a number only, no start tick; but the kernel tells of ends and births in their order, so a number means
one process at a time. When events were lost, what is known is dropped, and learnt again from the next look.
"""

from collections.abc import Iterable


class Births:
    """Who was born in which family since somebody looked last. Families are names here."""

    def __init__(self) -> None:
        self._family_of: dict[int, str] = {}
        self._unlooked: set[int] = set()
        self._unseen: dict[str, int] = {}

    def learn(self, family: str, pids: Iterable[int]) -> None:
        """These are members: somebody has looked. Zombies too, whose birth may not have been told yet."""
        for pid in pids:
            self._family_of[pid] = family
            self._unlooked.discard(pid)

    def born(self, pid: int, parent: int) -> None:
        """A fork."""
        family = self._family_of.get(parent)
        if family is None:
            self._forget(pid)  # a member had this number, and its end came before we learnt of it
        elif pid not in self._family_of:
            self._family_of[pid] = family
            self._unlooked.add(pid)

    def ended(self, pid: int) -> None:
        """The end of a process."""
        family = self._family_of.get(pid)
        if family is not None and pid in self._unlooked:
            self._unseen[family] = self._unseen.get(family, 0) + 1
        self._forget(pid)

    def unseen(self, family: str) -> int:
        """How many of a family nobody ever saw."""
        return self._unseen.get(family, 0)

    def lost(self) -> None:
        """Some events did not reach us."""
        self._family_of.clear()
        self._unlooked.clear()

    def forget(self, family: str) -> None:
        """The family is not tracked any more."""
        self._unseen.pop(family, None)
        for pid in [pid for pid, name in self._family_of.items() if name == family]:
            self._forget(pid)

    def _forget(self, pid: int) -> None:
        self._family_of.pop(pid, None)
        self._unlooked.discard(pid)
