"""The collector's store of ads. Pure: ads and times in, ads out.

Public and private ad of a slot share one key: name and the host of its address. Private attributes never
stay in a public ad. What the sender claims about its own authentication is replaced by the connection's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from attrs import define, field, frozen

from cedar import classads
from cedar.classads import wanted
from cedar.errors import PeerFault
from pool.ads import ClassAd, copy_of, evaluate, host_of, is_number, put, text_of, value_of

# The collector's classic default (wire reference 6.3).
DEFAULT_LIFETIME_S = 900.0
# A pilot of 256 slots sends some 260 ads; this is a pool of 100 such pilots, in some 300 MB.
MAX_ADS = 30_000

Key = tuple[str, str]


class StoreFull(Exception):
    """More ads than the store takes: the update is refused, nothing is dropped for it."""


class BadAd(ValueError):
    """The ad has no name to be found under."""


@frozen
class Stored:
    public: Any
    private: Any
    heard_at: float
    identity: str

    @property
    def lifetime_s(self) -> float:
        wanted = value_of(self.public, "ClassAdLifetime")
        return float(wanted) if is_number(wanted) and wanted > 0 else DEFAULT_LIFETIME_S


def key_of(ad: Any) -> Key:
    """(name, host) under which an ad is kept; BadAd when it has no name."""
    name = text_of(ad, "Name")
    if not name:
        machine, slot = text_of(ad, "Machine"), value_of(ad, "SlotID")
        if not machine:
            raise BadAd("an ad needs Name or Machine")
        name = f"{machine}:{slot}" if isinstance(slot, int) else machine
    return name, host_of(text_of(ad, "MyAddress") or text_of(ad, "StartdIpAddr"))


@define
class AdStore:
    """Slot ads and daemon ads, each with its private ad beside it."""

    _slots: dict[Key, Stored] = field(factory=dict)
    _daemons: dict[Key, Stored] = field(factory=dict)

    def update(self, public: Any, private: Any | None, *, identity: str, method: str, now: float) -> Stored:
        """Store an update. Raises BadAd or StoreFull; nothing has changed then."""
        key = key_of(public)
        table = self._daemons if is_daemon(public) else self._slots
        if key not in table and len(table) >= MAX_ADS:
            raise StoreFull(f"{MAX_ADS} ads are stored")
        stored = _as_stored(public, private, identity=identity, method=method, now=now)
        table[key] = stored
        if table is self._slots and _makes_daemon_ad(public):
            self._daemons[_daemon_key(key, public)] = _daemon_of(stored)
        return stored

    def invalidate(self, query: Any) -> list[Stored]:
        """Drop what an invalidation names: by Name and address, or by Requirements only when it has no Name."""
        if text_of(query, "Name"):
            keys = [key for key in (key_of(query),) if self._is_from(query, key)]
        else:
            keys = [key for key, stored in self._slots.items() if _wanted(query, stored.public)]
        return [stored for key in keys if (stored := self._drop(key)) is not None]

    def _is_from(self, query: Any, key: Key) -> bool:
        """A second startd of the same name takes only its own ads away."""
        stored = self._slots.get(key) or self._daemons.get(key)
        said = text_of(query, "MyAddress")
        return stored is None or not said or said == text_of(stored.public, "MyAddress")

    def expire(self, now: float) -> list[Stored]:
        """Drop ads not heard of for their lifetime."""
        for key in [key for key, stored in self._daemons.items() if now - stored.heard_at > stored.lifetime_s]:
            del self._daemons[key]
        keys = [key for key, stored in self._slots.items() if now - stored.heard_at > stored.lifetime_s]
        return [stored for key in keys if (stored := self._drop(key)) is not None]

    def _drop(self, key: Key) -> Stored | None:
        stored = self._slots.pop(key, None)
        if stored is None:
            self._daemons.pop(key, None)
        elif _makes_daemon_ad(stored.public):
            self._daemons.pop(_daemon_key(key, stored.public), None)
        return stored

    def slots(self) -> Iterable[Stored]:
        return self._slots.values()

    def query(self, query: Any) -> list[Any]:
        """The public ads that a query asks for, projected, limited."""
        limit = value_of(query, "LimitResults")
        found: list[Any] = []
        for stored in self._tables(query):
            if isinstance(limit, int) and 0 < limit <= len(found):
                break
            if _wanted(query, stored.public):
                found.append(project(query, stored.public))
        return found

    def _tables(self, query: Any) -> Iterable[Stored]:
        target = text_of(query, "TargetType").lower()
        if "LocationQuery" in query:
            return [*self._daemons.values(), *self._slots.values()]
        if target in ("startd", "startdaemon"):
            return list(self._daemons.values())
        return list(self._slots.values())


def is_daemon(public: Any) -> bool:
    return text_of(public, "MyType").lower() == "startd"


def _makes_daemon_ad(public: Any) -> bool:
    first = value_of(public, "SlotID") == 1 and value_of(public, "DynamicSlot") is not True
    return first and value_of(public, "HasStartDaemonAd") is not True


def _daemon_key(key: Key, public: Any) -> Key:
    return text_of(public, "Machine", key[0]), key[1]


def _daemon_of(stored: Stored) -> Stored:
    ad = copy_of(stored.public)
    ad["MyType"] = "StartD"
    if "Machine" in ad:
        ad["Name"] = ad.lookup("Machine")
    return Stored(ad, ClassAd(), stored.heard_at, stored.identity)


def _as_stored(public: Any, private: Any | None, *, identity: str, method: str, now: float) -> Stored:
    kept, hidden = copy_of(public), ClassAd() if private is None else copy_of(private)
    for name in list(kept):
        if classads.is_private(name):
            if name not in hidden:
                hidden[name] = kept.lookup(name)
            del kept[name]
    put(kept, "AuthenticatedIdentity", identity)
    put(kept, "AuthenticationMethod", method)
    kept["LastHeardFrom"] = int(now)
    for name in ("MyType", "MyAddress", "Name"):
        if name in kept:
            hidden[name] = kept.lookup(name)
    return Stored(kept, hidden, now, identity)


def _wanted(query: Any, public: Any) -> bool:
    try:
        return wanted(query, public)
    except PeerFault:
        return False


def project(query: Any, ad: Any) -> Any:
    """The attributes that a query's Projection names; all when it has none."""
    names = _projection(query, ad)
    if not names:
        return ad
    wanted = {name.lower() for name in names} | {"mytype", "targettype"}
    result = ClassAd()
    for name in ad:
        if name.lower() in wanted:
            result[name] = ad.lookup(name)
    return result


def _projection(query: Any, ad: Any) -> list[str]:
    if "Projection" not in query:
        return []
    value = evaluate(query, "Projection", ad)
    return re.split(r"[\s,]+", value.strip()) if isinstance(value, str) and value.strip() else []
