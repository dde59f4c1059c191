"""Counts processes that were born and had ended before anybody looked. Pure: it is given the kernel's events.

An event has a number only, no start tick; but the kernel tells of ends and births in their order, so a number means
one process at a time. When events were lost, what is known is dropped, and learnt again from the next look.

Nobody waits for some of them at once: then a look may still find what had ended before, and that one is not unseen.
"""

from collections import Counter
from collections.abc import Iterable

# Of those whose end is told, and who may be zombies yet: more are counted as unseen for good.
MOST_ENDED = 10_000


class Births:
    """Who was born in which family since somebody looked last. Families are names here."""

    def __init__(self) -> None:
        self._family_of: dict[int, str] = {}
        self._unlooked: set[int] = set()
        self._ended: dict[int, str] = {}
        self._unseen: Counter[str] = Counter()
        self._stirred: set[str] = set()

    def learn(self, family: str, pids: Iterable[int]) -> None:
        """These are members: somebody has looked. Zombies too, whose birth may not have been told yet."""
        for pid in pids:
            self._family_of[pid] = family
            self._unlooked.discard(pid)
            self._ended.pop(pid, None)

    def born(self, pid: int, parent: int) -> None:
        """A fork."""
        gone = self._ended.pop(pid, None)
        if gone is not None:
            self._unseen[gone] += 1
        family = self._family_of.get(parent)
        if family is None:
            self._forget(pid)  # a member had this number, and its end came before we learnt of it
        elif pid not in self._family_of:
            self._family_of[pid] = family
            self._unlooked.add(pid)
            self._stirred.add(family)

    def ended(self, pid: int) -> None:
        """The end of a process."""
        family = self._family_of.get(pid)
        if family is not None:
            self._stirred.add(family)
            if pid in self._unlooked:
                self._ended[pid] = family
        self._forget(pid)
        if len(self._ended) > MOST_ENDED:
            self._unseen.update(self._ended.values())
            self._ended.clear()

    def stirred(self) -> set[str]:
        """Families that had a birth or an end since this was asked last."""
        found, self._stirred = self._stirred, set()
        return found

    def unseen(self, family: str) -> int:
        """How many of a family nobody ever saw."""
        return self._unseen[family] + sum(name == family for name in self._ended.values())

    def lost(self) -> None:
        """Some events did not reach us."""
        self._family_of.clear()
        self._unlooked.clear()

    def forget(self, family: str) -> None:
        """The family is not tracked any more."""
        self._unseen.pop(family, None)
        self._stirred.discard(family)
        self._ended = {pid: name for pid, name in self._ended.items() if name != family}
        for pid in [pid for pid, name in self._family_of.items() if name == family]:
            self._forget(pid)

    def _forget(self, pid: int) -> None:
        self._family_of.pop(pid, None)
        self._unlooked.discard(pid)
