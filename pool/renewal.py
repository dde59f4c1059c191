"""Fresh proxies for jobs that are queued or run: from their users, or from MyProxy; and on to the execution points.

A renewed proxy must be of the same identity, CA and primary FQAN as the one that came with the jobs. It is delegated to
running jobs at once (500), as a stock shadow does; the copy with the private key (487) is never sent.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio
from attrs import define, field, frozen

from cedar.errors import PeerFault, Refused
from pilot import credentials, myproxy
from pilot.credentials import Credential, CredentialError, PendingRequest
from pool.claims import Claim, ClaimClient
from pool.spool import Spool
from pool.submission import MAX_CERTIFICATES_BYTES, Rejected, Rules
from pool.transfers import proxy_signer

# A delegated proxy with less than this part of its life gone is fresh (DELEGATE_JOB_GSI_CREDENTIALS_REFRESH).
REFRESH_PART = 0.25
# A push that failed: the starter may just have begun, or the node may be away.
FIRST_PAUSE_S, LAST_PAUSE_S = 2.0, 300.0
# Proxies that end at one moment are not renewed at one moment.
JITTER_PART = 0.2


# --- from the user -------------------------------------------------------------------------------------------------


@define
class Renewal:
    """A user brings a fresh proxy for one cluster: `request` goes out, the certificates come back."""

    spool: Spool
    rules: Rules
    cluster: int
    pending: PendingRequest

    @classmethod
    async def begin(cls, spool: Spool, rules: Rules, cluster: int) -> Renewal:
        """A fresh key. The cluster must have a proxy; the caller has checked whose it is."""
        return cls(spool, rules, cluster, await trio.to_thread.run_sync(credentials.make_request))

    async def finish(self, certificates: bytes) -> Credential:
        """Complete, verify, compare and store. Raises Rejected; nothing has changed then."""
        if len(certificates) > MAX_CERTIFICATES_BYTES:
            raise Rejected("proxy-too-big", "the proxy's certificates are larger than 64 KiB")
        return await trio.to_thread.run_sync(self._finish, certificates)

    def _finish(self, certificates: bytes) -> Credential:
        try:
            return store(self.spool, self.rules, self.cluster, self.pending.complete(certificates))
        except CredentialError as error:
            raise Rejected(f"proxy-{error.code}", f"the pool does not accept your proxy: {error}") from error


def store(spool: Spool, rules: Rules, cluster: int, pem: bytes) -> Credential:
    """Put a verified proxy of the same person and role in the old one's place; blocks.

    Raises:
        CredentialError: it is not to be believed.
        Rejected: another's, or no longer than the old one.
    """
    path = spool.proxy(cluster)
    assert rules.certificates_dir is not None
    new = credentials.verify(pem, rules.certificates_dir, now=time.time())
    old = credentials.load(path.read_bytes())
    change = credentials.change_of(old, new)
    if change:
        raise Rejected("proxy-another", f"this is no renewal: {change}. Submit the jobs anew with it")
    if new.expires_at <= old.expires_at:
        ends = credentials.when(old.expires_at)
        raise Rejected("proxy-shorter", f"it does not live longer than the jobs' proxy, which ends on {ends}")
    credentials.store_private(path, pem)
    return new


# --- to running jobs -----------------------------------------------------------------------------------------------


@define(eq=False)
class Push:
    """Keeps the delegated proxy of one run fresh. `run` until cancelled; `renewed` says that there is a new one."""

    client: ClaimClient
    claim: Claim
    source: Path
    lifetime_s: int
    log: logging.LoggerAdapter[logging.Logger]
    _renewed: trio.Event = field(factory=trio.Event)

    def renewed(self) -> None:
        self._renewed.set()

    async def run(self) -> None:
        delegated_until = self._delegated_until()
        pause_s = FIRST_PAUSE_S
        while True:
            with trio.move_on_after(self._due_in_s(delegated_until)):
                await self._renewed.wait()
            self._renewed = trio.Event()
            if await self._push():
                delegated_until, pause_s = self._delegated_until(), FIRST_PAUSE_S
                continue
            with trio.move_on_after(pause_s):
                await self._renewed.wait()
            self._renewed.set()  # it is still to be pushed
            pause_s = min(2 * pause_s, LAST_PAUSE_S)

    async def _push(self) -> bool:
        sign = proxy_signer(self.source, lifetime_s=self.lifetime_s)
        try:
            taken = await self.client.delegate(self.claim, sign)
        except (PeerFault, Refused) as fault:
            self.log.info("the renewed proxy was not delegated now (%s); trying again", fault)
            return False
        if taken:
            self.log.info("the renewed proxy was delegated")
        return taken

    def _delegated_until(self) -> float:
        """What a copy that is made now lives to."""
        wanted = time.time() + self.lifetime_s if self.lifetime_s else math.inf
        return min(wanted, self._source_end())

    def _source_end(self) -> float:
        try:
            return credentials.load(self.source.read_bytes()).expires_at
        except (OSError, CredentialError):
            return 0.0

    def _due_in_s(self, delegated_until: float) -> float:
        """As stock: after a quarter of the copy's life, if the source lives longer than the copy."""
        if self._source_end() <= delegated_until + 1:
            return math.inf
        return max(FIRST_PAUSE_S, REFRESH_PART * (delegated_until - time.time()))


# --- from MyProxy --------------------------------------------------------------------------------------------------


@frozen
class Where:
    """What a job's ad says of MyProxy (submit commands of HTCondor's: MyProxyHost and so on)."""

    server: myproxy.Server
    username: str
    name: str
    threshold_s: float
    lifetime_s: float


# MyProxyRefreshThreshold and MyProxyNewProxyLifetime where the job says nothing: ask from a quarter of a usual proxy's
# twelve hours on.
THRESHOLD_S, LIFETIME_S = 3 * 3600.0, 12 * 3600.0
# A server that does not answer, or refuses, is asked again after this; a user may correct it meanwhile.
ASK_AGAIN_S = 600.0
LOOK_EVERY_S = 60.0


@define(eq=False)
class Renewer:
    """Asks MyProxy for the proxies of queued and running jobs before they end.

    `clusters`: number, where, and end of each that is not over and wants it. `credential`: the pool's own, which the
    server's policy names as a renewer. `taken`: a cluster's new proxy is stored.
    """

    spool: Spool
    rules: Rules
    credential: Path
    clusters: Callable[[], list[tuple[int, Where, float]]]
    taken: Callable[[int, Credential], object]
    log: logging.LoggerAdapter[logging.Logger]
    fetch: Callable[..., bytes] = myproxy.logon
    _not_before: dict[int, float] = field(factory=dict)
    _spread: dict[int, float] = field(factory=dict)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.look()
            await trio.sleep(LOOK_EVERY_S)

    async def look(self) -> None:
        """Once: what is due, one after the other."""
        wanted = self.clusters()
        numbers = {number for number, _, _ in wanted}
        self._not_before = {number: s for number, s in self._not_before.items() if number in numbers}
        self._spread = {number: part for number, part in self._spread.items() if number in numbers}
        for number, where, ends_at in wanted:
            if due_in_s(where, ends_at, time.time(), self._spread.setdefault(number, random.random())) > 0:
                continue
            if trio.current_time() < self._not_before.get(number, -math.inf):
                continue
            self._not_before[number] = trio.current_time() + ASK_AGAIN_S
            await self._renew(number, where)

    async def _renew(self, number: int, where: Where) -> None:
        try:
            new = await trio.to_thread.run_sync(self._ask, number, where, abandon_on_cancel=True)
        except (myproxy.MyProxyError, CredentialError, Rejected, OSError) as fault:
            self.log.warning("cluster %d: no new proxy from MyProxy: %s; asking again later", number, fault)
            return
        self.log.info("cluster %d: a new proxy from %s, ends on %s", number, where.server,
                      credentials.when(new.expires_at))  # fmt: skip
        self.taken(number, new)

    def _ask(self, number: int, where: Where) -> Credential:
        assert self.rules.certificates_dir is not None
        client = myproxy.Client(self.rules.certificates_dir, credentials.read_private(self.credential))
        old = self.spool.proxy(number).read_bytes()
        pem = self.fetch(
            where.server, client, where.username, old_pem=old, name=where.name, lifetime_s=where.lifetime_s
        )
        return store(self.spool, self.rules, number, pem)


def due_in_s(where: Where, ends_at: float, now: float, spread: float) -> float:
    """Seconds until a proxy is to be renewed; `spread` from 0 to 1 parts the proxies that end at one time."""
    return ends_at - where.threshold_s * (1 + JITTER_PART * spread) - now


def where_of(read: Callable[[str], Any], owner: str, allowed: tuple[str, ...]) -> Where | None:
    """What a job's ad says, if its server is one of those that the pool may ask. `read` gives an attribute's value."""
    host, subject = read("MyProxyHost"), read("MyProxyServerDN")
    if not isinstance(host, str) or not host:
        return None
    try:
        server = myproxy.Server.parse(host, subject if isinstance(subject, str) else "")
    except ValueError:
        return None
    if str(server) not in allowed and server.host not in allowed:
        return None
    username, name = read("MyProxyUserName"), read("MyProxyCredentialName")
    return Where(
        server,
        username if isinstance(username, str) and username else owner,
        name if isinstance(name, str) else "",
        _seconds(read("MyProxyRefreshThreshold"), 1.0, THRESHOLD_S),
        # HTCondor's own unit: minutes
        _seconds(read("MyProxyNewProxyLifetime"), 60.0, LIFETIME_S),
    )


def _seconds(value: Any, unit_s: float, otherwise: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value * unit_s <= 30 * 86400:
        return otherwise
    return float(value) * unit_s
