"""The collector's commands: updates, invalidations and queries of ads, on top of the pure store.

Updates come on one kept connection a startd; every later command on it is checked against the levels of its identity.
"""

from __future__ import annotations

import time
from typing import Any

import trio

from cedar.codec import Reader
from cedar.commands import VERSION, Command, condor_version_text
from cedar.errors import PeerFault
from cedar.server import Request, Served
from pilot import logs
from pool.ads import ClassAd, put, text_of, whole_of
from pool.adstore import AdStore, BadAd, Stored, StoreFull, is_daemon, project
from pool.matching import Seen, claimable, startd_key
from pool.scheduler import Scheduler

EXPIRE_INTERVAL_S = 5.0


class Collector:
    """Handlers for 0, 60, 13 (level ADVERTISE_STARTD) and 5, 48, 20 (level READ)."""

    def __init__(self, store: AdStore, scheduler: Scheduler, *, address: str, name: str) -> None:
        self._store = store
        self._scheduler = scheduler
        self._address = address
        self._name = name
        self._started_at = int(time.time())
        self._log = logs.get("collector")
        self._seconds: set[tuple[str, str]] = set()  # (name, address) of second startds that were warned about

    def table(self) -> dict[int, Served]:
        return {
            int(Command.UPDATE_STARTD_AD): Served("ADVERTISE_STARTD", self._updates),
            int(Command.UPDATE_STARTD_AD_WITH_ACK): Served("ADVERTISE_STARTD", self._updates),
            int(Command.INVALIDATE_STARTD_ADS): Served("ADVERTISE_STARTD", self._updates),
            int(Command.QUERY_STARTD_ADS): Served("READ", self._query),
            int(Command.QUERY_ANY_ADS): Served("READ", self._query),
            int(Command.QUERY_COLLECTOR_ADS): Served("READ", self._query_self),
        }

    async def expire(self) -> None:
        """Drop ads of startds that fell silent; for ever."""
        while True:
            await trio.sleep(EXPIRE_INTERVAL_S)
            self._gone(self._store.expire(time.time()), "not heard of for its lifetime")

    # Updates

    async def _updates(self, request: Request) -> None:
        """The first command's payload, then [command, payload] for as long as the peer keeps the connection."""
        command, reader = request.command, await request.stream.get()
        while True:
            if not await self._one(request, command, reader):
                return
            try:
                reader = await request.stream.get()
            except PeerFault as fault:
                if fault.code == "closed":
                    return
                raise
            command = reader.int()
            if not request.permits(command):
                raise PeerFault("state", f"command {command} is not allowed on this connection")

    async def _one(self, request: Request, command: int, reader: Reader) -> bool:
        """Carry out one command; whether the connection is kept."""
        match command:
            case Command.UPDATE_STARTD_AD:
                self._update(request, reader)
                return True
            case Command.UPDATE_STARTD_AD_WITH_ACK:
                if self._update(request, reader):
                    await request.stream.put(1)
                return False
            case Command.INVALIDATE_STARTD_ADS:
                self._gone(self._store.invalidate(reader.ad()), "invalidated")
                return True
            case _:
                raise PeerFault("state", f"command {command} does not follow an update")

    def _update(self, request: Request, reader: Reader) -> bool:
        public = reader.ad()
        # Some tools send a slot without its private ad: it is shown, and never claimed.
        private = None if is_daemon(public) or not reader.remaining() else reader.ad()
        if private is None:
            return self._keep(request, public, private) is not None
        startd, address = startd_key(public), text_of(public, "MyAddress")
        started_at = whole_of(public, "DaemonStartTime")
        seen = self._scheduler.book.speaks(startd, address, started_at)
        if seen is Seen.SECOND:
            self._warn_second(startd[0], address)
            return False
        stored = self._keep(request, public, private)
        if stored is None:
            return False
        if seen is not Seen.KNOWN:
            self._scheduler.startd_started(startd, address, started_at, anew=seen is Seen.ANEW)
        claim_id = text_of(private, "ClaimId") or text_of(private, "Capability")
        self._scheduler.slot_updated(stored.public, claim_id, startd=startd, claimable=claimable(stored.public))
        return True

    def _keep(self, request: Request, public: Any, private: Any | None) -> Stored | None:
        try:
            return self._store.update(
                public, private, identity=request.identity, method=request.method, now=time.time()
            )
        except (BadAd, StoreFull) as error:
            self._log.warning("update from %s at %s: %s; ignoring it", request.identity, request.stream.peer, error)
            return None

    def _warn_second(self, name: str, address: str) -> None:
        if (name, address) not in self._seconds:
            self._seconds.add((name, address))
            self._log.warning(
                "a second execution point called %s speaks from %s while a younger one has the name; ignoring it."
                " Give each its own STARTD_NAME.",
                name,
                address,
            )

    def _gone(self, gone: list[Stored], why: str) -> None:
        slots = [(startd_key(stored.public), text_of(stored.public, "Name")) for stored in gone]
        for _, slot in slots:
            self._log.info("slot %s is gone: %s", slot, why)
        self._scheduler.slots_gone(slots)

    # Queries

    async def _query(self, request: Request) -> None:
        query = (await request.stream.get()).ad()
        items: list[Any] = []
        for ad in self._store.query(query):
            items += (1, ad)
        await request.stream.put(*items, 0)

    async def _query_self(self, request: Request) -> None:
        query = (await request.stream.get()).ad()
        await request.stream.put(1, project(query, self._own_ad()), 0)

    def _own_ad(self) -> Any:
        ad = ClassAd()
        for name, value in (
            ("MyType", "Collector"),
            ("Name", self._name),
            ("Machine", self._name),
            ("MyAddress", self._address),
            ("CollectorIpAddr", self._address),
            ("CondorVersion", condor_version_text(VERSION)),
            ("DaemonStartTime", self._started_at),
            ("SlotAds", sum(1 for _ in self._store.slots())),
        ):
            put(ad, name, value)
        return ad
