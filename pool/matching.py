"""Matching: which idle job goes to which slot. Pure: ads and values in, choices out.

Jobs are taken in order of submission. A match is both Requirements true, seen from both ads. Jobs whose
ads say the same to a slot share one trial per slot, so a thousand equal jobs cost one.

The book of offers keeps, per slot, the one claim id that may be asked for: an id is used once, and one
from a leftovers reply is newer than any ad with an id that is used up.
"""

from __future__ import annotations

import re
import sys
from bisect import bisect_left, insort
from collections.abc import Callable, Generator
from enum import Enum
from typing import Any

from attrs import define, field, frozen

from pool.ads import host_of, is_number, matches, text_of, value_of
from pool.model import JobId

# Attributes that differ from job to job without a slot caring; they count again when a slot's expressions name them.
_PRIVATE_TEXT = """
ClusterId ProcId GlobalJobId QDate Arguments Args Environment Env In Out Err Cmd Iwd TransferInput TransferOutput
TransferOutputRemaps NumJobStarts JobBatchName JobDescription JobStatus ExecutableSize TransferInputSizeMB
"""
PRIVATE = tuple(sorted(_PRIVATE_TEXT.lower().split()))
_PRIVATE = frozenset(PRIVATE)
_WORD = re.compile(r"[a-z_][a-z0-9_]*")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')

# Used ids that are remembered for a startd: even a thousand claims an hour cannot push one out between two ads.
_USED_LIMIT = 4096


# A startd: its name (what follows '@' in its slots' names) and its host.
StartdKey = tuple[str, str]


@frozen
class Waiting:
    """An idle job as matching sees it. `private`: what few slots ask for, in the order of PRIVATE. `proxy_end`: Unix
    time. Without its ad: there may be a hundred thousand of these."""

    id: JobId
    user: str
    proxy_end: int | None = None
    private: tuple[str, ...] = field(default=(), repr=False)


@frozen
class Prepared:
    """A job that comes to wait; `common` is all of it that any slot can see."""

    job: Waiting
    common: str = field(repr=False)
    ad: Any = field(repr=False)


def prepare(job: JobId, ad: Any) -> Prepared:
    """Read a queue ad for matching; paid once a job, not once a pass."""
    texts = {name.lower(): str(ad.lookup(name)) for name in ad}
    # What the job's own expressions refer to decides with them: its Requirements, and whatever these or a slot's name.
    own = {
        word
        for name, text in texts.items()
        if name not in _PRIVATE and not text.isdecimal()
        for word in _WORD.findall(_STRING.sub("", text).lower())
    }
    common = "\n".join(f"{name}={texts[name]}" for name in sorted(texts) if name not in _PRIVATE or name in own)
    end = value_of(ad, "x509UserProxyExpiration")
    private = tuple(sys.intern(texts.get(name, "")) for name in PRIVATE)  # most jobs of a submission say the same
    return Prepared(Waiting(job, text_of(ad, "User"), end if isinstance(end, int) else None, private), common, ad)


@define
class Line:
    """Jobs of which most slots see the same, in order of submission; the ad is that of the first one that came."""

    common: str = field(repr=False)
    ad: Any = field(repr=False)
    jobs: list[Waiting] = field(factory=list)


@define
class Lines:
    """Jobs that wait, as many lines as there are different ones: a thousand equal jobs cost a slot one trial."""

    _lines: dict[str, Line] = field(factory=dict)
    _places: dict[JobId, tuple[Line, Waiting]] = field(factory=dict)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, job: JobId) -> bool:
        return job in self._places

    def waiting(self, job: JobId) -> Waiting | None:
        """As it waits now."""
        place = self._places.get(job)
        return place[1] if place is not None else None

    def add(self, new: Prepared) -> None:
        """At its place by order of submission; one that waits already is replaced."""
        self.take(new.job.id)
        line = self._lines.setdefault(new.common, Line(new.common, new.ad))
        insort(line.jobs, new.job, key=_by_submission)
        self._places[new.job.id] = line, new.job

    def take(self, job: JobId) -> None:
        """It waits no more; one that does not wait is no error."""
        line, waiting = self._places.pop(job, (None, None))
        if line is None or waiting is None:
            return
        del line.jobs[bisect_left(line.jobs, job, key=_by_submission)]
        if not line.jobs:
            del self._lines[line.common]

    def first_for(self, slot: Any, ad_of: Callable[[JobId], Any]) -> Generator[None, None, Waiting | None]:
        """The first job in order of submission that the slot takes and that takes the slot.

        It stops before each trial, which may take milliseconds, and bears what is added and taken meanwhile: who was
        found may be gone. ``ad_of``: a job's own ad, or None; asked only for a slot whose expressions name what differs
        from job to job.
        """
        look = _private_names_in(slot)
        lines = [(line.ad, line.jobs[:] if look else line.jobs[:1]) for line in self._lines.values()]
        found: Waiting | None = None
        for ad, jobs in sorted(lines, key=lambda line: line[1][0].id):
            seen: dict[tuple[str, ...], bool] = {}
            for job in jobs:
                if found is not None and found.id < job.id:
                    break
                signature = tuple(job.private[at] for at in look)
                if signature not in seen:
                    yield
                    own = ad_of(job.id) if look else ad
                    seen[signature] = own is not None and matches(own, slot)
                if seen[signature]:
                    found = job
                    break
        return found


def _by_submission(job: Waiting) -> JobId:
    return job.id


@frozen
class Offer:
    """A slot that may be claimed, and with which secret id."""

    slot: str
    startd: StartdKey
    ad: Any
    claim_id: str

    def __repr__(self) -> str:
        return f"Offer({self.slot})"


class Seen(Enum):
    """What an ad says about the startd behind it."""

    FIRST = "first"  # not known in this life of the pool
    KNOWN = "known"
    ANEW = "anew"  # started again: every older claim id of this name is dead
    SECOND = "second"  # an older one of the same name still speaks: two run at the same time


@define
class _Startd:
    started_at: int = 0
    address: str = ""
    used: dict[str, None] = field(factory=dict)


@define
class OfferBook:
    """Claim ids that may be used, by slot. Fed by ads and by leftovers; an id given out is never given again."""

    _offers: dict[tuple[StartdKey, str], Offer] = field(factory=dict)
    _startds: dict[StartdKey, _Startd] = field(factory=dict)

    def speaks(self, startd: StartdKey, address: str, started_at: int) -> Seen:
        """Who sends this ad. SECOND: the ad is to be refused, the newer startd has the name."""
        known = self._startds.get(startd)
        if known is None:
            self._startds[startd] = _Startd(started_at, address)
            return Seen.FIRST
        if (started_at, address) == (known.started_at, known.address):
            return Seen.KNOWN
        if started_at <= known.started_at and address != known.address:
            return Seen.SECOND
        self.forget_startd(startd)
        self._startds[startd] = _Startd(started_at, address)
        return Seen.ANEW

    def advertised(self, offer: Offer, *, claimable: bool) -> None:
        """An ad of a startd that `speaks` has passed."""
        known = self._startds.setdefault(offer.startd, _Startd())
        if offer.claim_id in known.used:
            return
        key = (offer.startd, offer.slot)
        if claimable and offer.claim_id:
            self._offers[key] = offer
        else:
            self._offers.pop(key, None)

    def take(self, offer: Offer) -> bool:
        """Use an offer up. False when it is not there any more."""
        key = (offer.startd, offer.slot)
        if self._offers.get(key) != offer:
            return False
        del self._offers[key]
        self._use(offer)
        return True

    def left_over(self, offer: Offer) -> None:
        """A leftovers reply: newer than any ad seen so far."""
        self._offers[(offer.startd, offer.slot)] = offer

    def withdrawn(self, startd: StartdKey, slot: str) -> None:
        self._offers.pop((startd, slot), None)

    def forget_startd(self, startd: StartdKey) -> None:
        self._startds.pop(startd, None)
        for key in [key for key in self._offers if key[0] == startd]:
            del self._offers[key]

    def offers(self) -> list[Offer]:
        return sorted(self._offers.values(), key=lambda offer: offer.slot)

    def _use(self, offer: Offer) -> None:
        used = self._startds.setdefault(offer.startd, _Startd()).used
        used[offer.claim_id] = None
        while len(used) > _USED_LIMIT:
            del used[next(iter(used))]


def claimable(ad: Any) -> bool:
    """Whether to claim a slot: a pslot with something left, or a static slot nobody has; never a dynamic one."""
    if value_of(ad, "DynamicSlot") is True:
        return False
    if value_of(ad, "PartitionableSlot") is True:
        return all(_positive(ad, name) for name in ("Cpus", "Memory", "Disk"))
    return text_of(ad, "State") == "Unclaimed"


def _positive(ad: Any, name: str) -> bool:
    value = value_of(ad, name)
    return is_number(value) and value > 0


def _private_names_in(slot: Any) -> tuple[int, ...]:
    """Which of PRIVATE the slot's own expressions mention anywhere."""
    said = {word for name in slot for word in _WORD.findall(str(slot.lookup(name)).lower())}
    return tuple(at for at, name in enumerate(PRIVATE) if name in said)


def in_turn(first: Waiting | None, user: str) -> Waiting | None:
    """The first job that fits an idle claim of ``user``, if it is this user's; another user's was before all of his."""
    return first if first is not None and first.user == user else None


def startd_key(ad: Any) -> StartdKey:
    name = text_of(ad, "Name")
    return name.partition("@")[2] or name, host_of(text_of(ad, "MyAddress") or text_of(ad, "StartdIpAddr"))
