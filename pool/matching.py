"""Matching: which idle job goes to which slot. Pure: ads and values in, choices out.

Jobs are taken in order of submission. A match is both Requirements true, seen from both ads. Jobs whose
ads say the same to a slot share one trial per slot ("signature"), so a thousand equal jobs cost one.

The book of offers keeps, per slot, the one claim id that may be asked for: an id is used once, and one
from a leftovers reply is newer than any ad with an id that is used up.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
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
_PRIVATE = frozenset(_PRIVATE_TEXT.lower().split())
_WORD = re.compile(r"[a-z_][a-z0-9_]*")

# Used ids that are remembered for a startd: even a thousand claims an hour cannot push one out between two ads.
_USED_LIMIT = 4096


# A startd: its name (what follows '@' in its slots' names) and its host.
StartdKey = tuple[str, str]


@frozen
class Waiting:
    """An idle job as matching sees it; `common` is all that any slot can see, `private` what few slots ask for."""

    id: JobId
    user: str
    ad: Any
    common: str = field(repr=False)
    private: Mapping[str, str] = field(repr=False)


def waiting(job: JobId, ad: Any) -> Waiting:
    """Prepare a queue ad for matching; paid once a job, not once a pass."""
    texts = sorted((name.lower(), str(ad.lookup(name))) for name in ad)
    # What the job's own expressions refer to decides with them.
    own = {word for name, text in texts if name.startswith(("request", "rank")) for word in _WORD.findall(text.lower())}
    common = "\n".join(f"{name}={text}" for name, text in texts if name not in _PRIVATE or name in own)
    return Waiting(job, text_of(ad, "User"), ad, common, {name: text for name, text in texts if name in _PRIVATE})


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


class Matcher:
    """Trials of one pass, remembered by what the slot can see of a job."""

    def __init__(self, jobs: Iterable[Waiting]) -> None:
        self._waiting = sorted(jobs, key=lambda job: job.id)
        self._gone: set[JobId] = set()

    def first_for(self, slot: Any) -> Waiting | None:
        """The first waiting job in order of submission that the slot takes and that takes the slot."""
        seen: dict[object, bool] = {}
        look = _private_names_in(slot)
        for job in self._waiting:
            if job.id in self._gone:
                continue
            signature = (job.common, *(job.private.get(name) for name in look))
            if signature not in seen:
                seen[signature] = matches(job.ad, slot)
            if seen[signature]:
                return job
        return None

    def taken(self, job: JobId) -> None:
        self._gone.add(job)

    def left(self) -> int:
        return len(self._waiting) - len(self._gone)


def _private_names_in(slot: Any) -> tuple[str, ...]:
    """Per-job attributes that the slot's own expressions mention anywhere."""
    said = {word for name in slot for word in _WORD.findall(str(slot.lookup(name)).lower())}
    return tuple(sorted(_PRIVATE & said))


def assign(jobs: Iterable[Waiting], offers: Iterable[Offer]) -> Iterator[tuple[Offer, Waiting]]:
    """Pairs for one pass: each offer gets the first job that fits, each job at most one offer."""
    matcher = Matcher(jobs)
    for offer in offers:
        if not matcher.left():
            return
        job = matcher.first_for(offer.ad)
        if job is not None:
            matcher.taken(job.id)
            yield offer, job


def next_for_claim(jobs: Iterable[Waiting], slot: Any, user: str) -> Waiting | None:
    """The job that goes to an idle claim of `user`: the first that fits, if it is this user's.

    None means that the claim is given back: nobody waits for such a slot, or another user was first.
    """
    job = Matcher(jobs).first_for(slot)
    return job if job is not None and job.user == user else None


def startd_key(ad: Any) -> StartdKey:
    name = text_of(ad, "Name")
    return name.partition("@")[2] or name, host_of(text_of(ad, "MyAddress") or text_of(ad, "StartdIpAddr"))
