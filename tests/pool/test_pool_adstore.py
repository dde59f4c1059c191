"""The store of ads: keys, privacy, expiry, queries."""

from __future__ import annotations

from typing import Any

import pytest

from cedar import classads
from pool import adstore
from pool.adstore import AdStore, BadAd, StoreFull


def ad(**said: str) -> Any:
    more = {"MyType": '"Machine"', "Name": '"slot1@x"', "Machine": '"x"', "MyAddress": '"<10.0.0.1:5>"', "SlotID": "1"}
    return classads.parse_old("".join(f"{key} = {value}\n" for key, value in (more | said).items()))


def query(text: str = "") -> Any:
    return classads.parse_old(f'MyType = "Query"\n{text}\n')


def stored(*ads: Any, now: float = 100.0) -> AdStore:
    store = AdStore()
    for each in ads:
        store.update(each, ad(ClaimId='"secret"'), identity="condor@d", method="TOKEN", now=now)
    return store


def names(store: AdStore, text: str = "") -> list[str]:
    return sorted(classads.get_str(found, "Name") for found in store.query(query(text)))


def test_private_attributes_never_stay_in_the_public_ad() -> None:
    store = stored(ad(ClaimId='"a"', Capability='"b"', _condor_PrivRemoteAdminCapability='"c"', Cpus="2"))
    (found,) = store.query(query())
    assert not any(classads.is_private(name) for name in found)
    (kept,) = store.slots()
    assert classads.get_str(kept.private, "ClaimId") == "secret"
    assert classads.get_str(kept.private, "_condor_PrivRemoteAdminCapability") == "c"


def test_the_connection_says_who_sent_it() -> None:
    store = stored(ad(AuthenticatedIdentity='"root@all"', AuthenticationMethod='"GUESS"'))
    (found,) = store.query(query())
    assert classads.get_str(found, "AuthenticatedIdentity") == "condor@d"
    assert classads.get_str(found, "AuthenticationMethod") == "TOKEN"
    assert classads.get_int(found, "LastHeardFrom") == 100


def test_an_update_replaces_the_ad_of_the_same_name_and_host() -> None:
    other = ad(MyAddress='"<10.0.0.2:5>"')
    store = stored(ad(Cpus="1"), ad(Cpus="2"), other)
    assert len(store.query(query())) == 2
    assert names(store, "Requirements = TARGET.Cpus == 2") == ["slot1@x"]


def test_an_ad_without_a_name() -> None:
    with pytest.raises(BadAd):
        stored(classads.parse_old("Cpus = 1\n"))
    store = stored(classads.parse_old('Machine = "y"\nSlotID = 3\n'))
    assert adstore.key_of(next(iter(store.slots())).public) == ("y:3", "")


def test_the_store_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adstore, "MAX_ADS", 1)
    store = stored(ad())
    store.update(ad(Cpus="9"), None, identity="i", method="m", now=1.0)  # a known one may change
    with pytest.raises(StoreFull):
        store.update(ad(Name='"slot2@x"', SlotID="2"), None, identity="i", method="m", now=1.0)


def test_invalidation_by_name_and_by_requirements() -> None:
    store = stored(ad(), ad(Name='"slot2@x"', SlotID="2"))
    assert store.invalidate(query('Name = "slot1@x"\nMyAddress = "<10.0.0.1:6>"')) == []  # another startd's word
    gone = store.invalidate(query('Name = "slot1@x"\nMyAddress = "<10.0.0.1:5>"'))
    assert len(gone) == 1
    assert names(store) == ["slot2@x"]
    assert store.invalidate(query("Requirements = TARGET.SlotID == 2"))
    assert names(store) == []


def test_silence_expires_an_ad() -> None:
    store = stored(ad(), ad(Name='"slot2@x"', SlotID="2", ClassAdLifetime="10"))
    assert store.expire(109.0) == []
    assert len(store.expire(111.0)) == 1
    assert len(store.expire(1001.0)) == 1


def test_daemon_ads_are_derived_and_asked_for() -> None:
    store = stored(ad())
    assert names(store, 'TargetType = "StartD"') == ["x"]
    assert names(store, 'TargetType = "Machine"') == ["slot1@x"]
    assert set(names(store, 'LocationQuery = "x"\nRequirements = TARGET.Machine == "x"')) == {"x", "slot1@x"}
    store.invalidate(query('Name = "slot1@x"\nMyAddress = "<10.0.0.1:5>"'))
    assert names(store, 'TargetType = "StartD"') == []


def test_limit_and_projection() -> None:
    store = stored(*[ad(Name=f'"slot{i}@x"', SlotID=str(i)) for i in range(5)])
    assert len(store.query(query("LimitResults = 2"))) == 2
    (found,) = store.query(query('LimitResults = 1\nProjection = "Name, SlotID"'))
    assert set(found) == {"Name", "SlotID", "MyType"}
    (found,) = store.query(query('LimitResults = 1\nProjection = strcat("Mach", "ine")'))
    assert set(found) == {"Machine", "MyType"}
