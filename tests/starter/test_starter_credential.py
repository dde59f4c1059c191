"""What the shadow is asked for when the job's proxy is fetched."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, cast

import pytest
from classad2 import ClassAd

from cedar.codec import encode
from cedar.errors import PeerFault
from demo.grid import make_grid, make_proxy
from pilot.credentials import CredentialError
from starter.credential import MAX_LIFETIME_S, Keys, ProxyUnusable, Trust, check_proxy, fetch_proxy
from starter.description import describe
from starter.shadow import Shadow

NOBODY = Trust(Path("/nonexistent"), Path("/nonexistent"))


class FakeShadow:
    """Notes the expiration that it is asked for, and has no proxy."""

    expiration = 0

    async def fetch_proxy(self, expiration: int, exchange: Any) -> bytes:
        self.expiration = expiration
        raise PeerFault("closed", "no")


@pytest.mark.parametrize(
    ("asked_s", "got_s"), [(600, 600), (0, MAX_LIFETIME_S), (-5, MAX_LIFETIME_S), (2**62, MAX_LIFETIME_S)]
)
async def test_the_expiration_is_never_none_and_fits_the_wire(asked_s: int, got_s: int) -> None:
    ad = ClassAd({"ClusterId": 1, "ProcId": 0, "Cmd": "/x", "DelegateJobGSICredentialsLifetime": asked_s})
    shadow = FakeShadow()
    with pytest.raises(PeerFault):
        await fetch_proxy(cast(Shadow, shadow), describe(ad), NOBODY, Keys())
    assert encode([shadow.expiration], keyed=True)
    assert abs(shadow.expiration - time.time() - got_s) < 60


def test_a_proxy_that_is_not_the_ads_is_refused_with_both_names(tmp_path: Path) -> None:
    grid = make_grid(tmp_path)
    alice, bob = grid.user("Alice Adams"), grid.user("Bob Baker")
    said = {"x509userproxy": "/tmp/proxy", "x509userproxysubject": alice.identity}
    job = describe(ClassAd({"ClusterId": 1, "ProcId": 0, "Cmd": "/x", **said}))
    trust = Trust(grid.certificates_dir, tmp_path)
    own = check_proxy(make_proxy(alice).pem, job, trust)
    assert own.identity == alice.identity
    with pytest.raises(ProxyUnusable) as refused:
        check_proxy(make_proxy(bob).pem, job, trust)
    assert alice.identity in str(refused.value)
    assert bob.identity in str(refused.value)
    with pytest.raises(CredentialError) as late:
        check_proxy(make_proxy(alice, lifetime_s=-60).pem, job, trust)
    assert late.value.code == "expired"


@pytest.mark.parametrize("user", ["/DC=org/DC=sailplane-demo/CN=Bob Baker@pool", "/CN=nobody@pool"])
def test_a_user_that_the_submit_side_names_by_dn_must_be_the_proxys(tmp_path: Path, user: str) -> None:
    grid = make_grid(tmp_path)
    alice, trust = grid.user("Alice Adams"), Trust(grid.certificates_dir, tmp_path)
    ad = {"ClusterId": 1, "ProcId": 0, "Cmd": "/x", "x509userproxy": "/tmp/proxy", "User": user}
    with pytest.raises(ProxyUnusable, match="the submit side says that the user is"):
        check_proxy(make_proxy(alice).pem, describe(ClassAd(ad)), trust)
    for own in (f"{alice.identity}@pool", "alice@pool"):
        check_proxy(make_proxy(alice).pem, describe(ClassAd({**ad, "User": own})), trust)
