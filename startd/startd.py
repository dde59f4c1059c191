"""One startd: its parts put together, started in order, ended in order. Wiring; the rules are in the parts."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import attrs
import trio
from classad2 import ClassAd

from cedar.errors import PeerFault
from cedar.server import Server
from cedar.sessions import SessionTable
from cedar.sinful import Sinful
from pilot.configuration import load
from pilot.findings import Validation
from pilot.inquiry import ask_pilot
from pilot.ledger import Ledger
from pilot.settings import Settings, SettingsError
from pilot.switch import Switch
from pilot.threads import in_thread
from startd import cronjobs, plugins, portsecurity
from startd.administration import Administration
from startd.advertise import Advertiser
from startd.authorisation import Rules
from startd.broker import Broker, reached_by
from startd.claimagent import ClaimAgent
from startd.claims import Claims
from startd.commands import Commands
from startd.contact import AddressFile, collector_addresses, follow_shared_port, listen, where_now, with_alias
from startd.cron import Cron
from startd.currentads import CurrentAds
from startd.discovery import discover
from startd.health import Health
from startd.healthlook import HealthWatch
from startd.held import Held, Slots
from startd.janitor import Janitor
from startd.machine import cores, describe, resources
from startd.machineupdate import MachineUpdate
from startd.master import READY_WITHIN_S, Master
from startd.measuring import tell_jobs
from startd.namesake import living_namesakes
from startd.owncredentials import OwnCredentials
from startd.pilotend import SIGNALS, PilotEnd
from startd.pilotproxy import PilotProxy
from startd.polling import PolicyWatch
from startd.poolsecurity import PoolSecurity
from startd.processes import Spawner, degradations, procd_socket, run_procd
from startd.proxykeys import ProxyKeys
from startd.reconfigure import merge
from startd.refusals import Refusals
from startd.report import Job, Report, outcome_of
from startd.reportfiles import write_report
from startd.slotads import Machine
from startd.slotsettings import slot_settings
from startd.slottypes import plan
from startd.starterends import StarterEnds
from startd.supplements import Supplements
from startd.switchwatch import SwitchWatch
from starter import messages

# Brokers that are there answer at once; a pilot starts without those that are not.
BROKERS_WITHIN_S = 20.0


class CannotStart(Exception):
    """Start-up ends here; the text says why and what to do."""


class Startd:
    """``run`` once."""

    report: Report
    _rereads: int = 0
    """How often reading the settings again was asked for since the last reading was done."""
    _nursery: trio.Nursery
    _procd_socket: Path
    _slots: Slots
    _spawner: Spawner
    _starter_ends: StarterEnds
    _claims: Claims
    _janitor: Janitor
    _switch_watch: SwitchWatch
    _ads: CurrentAds
    _policy: PolicyWatch
    _health: HealthWatch
    _administration: Administration
    _end: PilotEnd
    _server: Server

    def __init__(
        self,
        settings: Settings,
        config: Path | None,
        switch: Switch,
        validation: Validation,
        log: logging.LoggerAdapter[logging.Logger],
        master: Master | None = None,
    ) -> None:
        """Raises SettingsError: programs of STARTD_CRON_JOBLIST that cannot be run as described."""
        self._master = master
        self._validation = validation
        self.settings, self.config, self.switch, self.log = settings, config, switch, log
        self._advertisers: list[Advertiser] = []
        self._supplements, self._machine_update = Supplements(), MachineUpdate()
        self._supplements.reconfigure(settings)
        self._address_file = AddressFile(settings.startd_address_file, log)
        self._cron = Cron(
            cronjobs.parse(settings),
            settings.startd_cron_max_job_load,
            settings.startd_cron_autopublish,
            ad=lambda: self._ads.own(self._slots.first),
            changed=self._changed,
            log=log,
            measured=lambda: tell_jobs(self._claims, self._cron.published, self._ads.of_claim),
        )
        self._cron.published.meters.uptime = settings.advertise_cmr_uptime_seconds
        self._own_names = portsecurity.own_names(settings, master.accounts() if master else ())

    async def run(self, ready: Callable[[], None]) -> int:
        """Until a signal ends it; the exit status.

        Raises:
            CannotStart: a living namesake, or no port.
            SettingsError: the machine does not have what its slots are to have.
        """
        settings = self.settings
        collectors = collector_addresses(settings.collector_host)
        try:
            listeners, sinful = await listen(settings, self._master, self._collectors_now(collectors), self.log)
        except OSError as fault:
            raise CannotStart(
                f"cannot listen on {settings.network_interface}:{settings.startd_port}: {fault.strerror or fault}."
                " Set NETWORK_INTERFACE to an address of this machine, and STARTD_PORT to a free port or to 0"
            ) from fault
        self._behind = sinful
        self._direct = with_alias(sinful, settings.host_alias)
        address = str(self._direct)
        found = await discover(settings, self.log)
        total = resources(settings, found)
        divided = slot_settings(settings)
        plans = plan(divided.types, total)
        for name in divided.unused:
            self.log.warning("%s is not acted on", name)
        sessions = SessionTable()
        machine = attrs.evolve(
            describe(settings, self.switch, address, total, self._validation),
            slots=len(plans),
            starts=divided.starts,
            devices={each.name: each.devices for each in found},
            detected=_joined([each.more for each in found]),
            plugins=await plugins.ask(plugins.named(settings), self.log),
        )
        self.report = Report(settings.startd_name, time.time(), total.cpus)
        self._slots = Slots(settings.startd_name, address, machine.start_time, sessions, plans, cores=cores(settings))
        await self._refuse_namesake(self._collectors_now(collectors), address)
        with procd_socket(settings.sailplane_run_dir) as self._procd_socket:
            await self._run(ready, machine, sessions, collectors, listeners)
        self._address_file.remove()
        self.report.calls = self._switch_watch.ledger.counts()
        write_report(self.report, self.settings.log, reason=self._end.reason, status=self._end.status, log=self.log)
        return self._end.status

    async def _run(
        self,
        ready: Callable[[], None],
        machine: Machine,
        sessions: SessionTable,
        collectors: list[Sinful],
        listeners: list[trio.abc.Listener[trio.SocketStream]],
    ) -> None:
        async with trio.open_nursery() as nursery:
            self._build(nursery, machine, sessions, collectors)
            if self._master is not None:
                for session in self._master.sessions():
                    sessions.add(session)
            with trio.open_signal_receiver(*SIGNALS) as signals:
                await self._start_parts(nursery, [*listeners, *self._brokers])
                nursery.start_soon(self._appear, nursery, ready)
                await self._end.until_ended(signals)
            nursery.cancel_scope.cancel()

    def _collectors_now(self, collectors: list[Sinful]) -> list[Sinful]:
        """Those whose address is known at this moment."""
        known = []
        for collector in collectors:
            with suppress(PeerFault):
                known.append(where_now(collector, self.settings.collector_address_file))
        return known

    async def _refuse_namesake(self, collectors: list[Sinful], address: str) -> None:
        for collector, other in await living_namesakes(collectors, self._slots.first.name, address):
            raise CannotStart(
                f"a startd named {self.settings.startd_name} runs at {other} and is in the pool {collector}:"
                " set STARTD_NAME to a name of its own (for a glidein: with its job id), or end the other one"
            )

    def _build(self, nursery: trio.Nursery, machine: Machine, sessions: SessionTable, collectors: list[Sinful]) -> None:
        self._nursery = nursery
        self._build_claims(nursery)
        self._build_ads(machine)
        self._build_server(nursery, sessions)
        self._build_ways_out(machine.address, collectors)

    def _build_claims(self, nursery: trio.Nursery) -> None:
        """The claims, and what starts, ends and cleans up after their starters."""
        settings = self.settings
        self._spawner = Spawner(
            self.config,
            self.log,
            heard=lambda message: self._starter_ends.heard(message),
            lost=lambda: self._starter_ends.lost(),
            starter_command=settings.sailplane_starter_command,
        )
        self._claims = Claims(
            settings=settings,
            slots=self._slots,
            spawner=self._spawner,
            nursery=nursery,
            log=self.log,
            changed=self._changed,
            destroyed=self._destroyed,
            account_seen=lambda pid, uid: self._janitor.account_seen(pid, uid),
            retirement_s=lambda held: self._ads.retirement_s(held),
            job_begun=lambda held: self._cron.published.meters.begin(held.name, int(time.time())),
            job_ended=self._note_job,
            statistics=self._supplements.statistics,
            usage_seen=lambda held: self._policy.look(held),
            ending=lambda held: self._policy.ending(held),
        )
        self._janitor = Janitor(settings.sailplane_run_dir, self._spawner.clean, self.log)
        self._starter_ends = StarterEnds(self._claims, self._janitor, self.log)
        self._health = HealthWatch(
            Health(settings.sailplane_min_free_disk >> 10, settings.sailplane_black_hole_jobs),
            settings.execute,
            self._claims,
            self._changed,
            self.log,
        )

    def _build_ads(self, machine: Machine) -> None:
        """What the slots show, and what is watched for it."""
        self._switch_watch = SwitchWatch(
            ledger=Ledger.of(self.settings.sailplane_run_dir),
            ask=partial(ask_pilot, self.switch, self.settings.sailplane_switch_deadline),
            changed=self._changed,
            log=self.log,
        )
        self._ads = CurrentAds(
            machine=machine,
            switch=self.switch,
            claims=self._claims,
            switch_watch=self._switch_watch,
            janitor=self._janitor,
            cron=self._cron.published,
            supplements=self._supplements,
            update_by_hand=self._machine_update,
            put_load=lambda ad, held: self._policy.put_load(ad, held),
            capability=self._capability,
        )
        self._policy = PolicyWatch(self._claims, self._ads.of_claim, self._ads.own, self.log)

    def _build_server(self, nursery: trio.Nursery, sessions: SessionTable) -> None:
        """What answers at the port, once the claims are there."""
        settings = self.settings
        proxy_keys = ProxyKeys(wanted=settings.sailplane_proxy_key == "rsa")
        nursery.start_soon(proxy_keys.run)
        commands = Commands(
            claims=self._claims,
            procd_socket=str(self._procd_socket),
            proxy_keys=proxy_keys,
            plugins=self._ads.machine.plugins,
            slot_ads=self._ads.of_slots,
            daemon_ad=self._ads.of_daemon,
            own_ad=self._ads.own,
            held_ad=self._ads.of_claim,
            agent=ClaimAgent(self._claims, self._machine_update, self.log, self._changed),
            log=self.log,
        )
        self._administration = Administration(
            claims=self._claims,
            ads=self._ads.of_slots,
            shut_down=lambda reason, fast, again: self._end.told(reason, fast, again),
            reconfigure=self._reconfigure,
            nursery=nursery,
            log=self.log,
        )
        self._end = PilotEnd(
            claims=self._claims,
            credentials=OwnCredentials(settings.sailplane_pilot_proxy, settings.sec_token_directory),
            master=self._master,
            manner=lambda: self._administration.manner,
            own_ad=self._ads.of_first_slot,
            reconfigure=self._reconfigure,
            changed=self._changed,
            log=self.log,
        )
        policy = portsecurity.policy(settings, self._rules, self.log)
        self._server = Server(
            {**commands.table(), **self._administration.table()}, sessions, policy, report=Refusals(self.log).report
        )

    def _build_ways_out(self, address: str, collectors: list[Sinful]) -> None:
        """To the collectors and the brokers."""
        settings = self.settings
        pool_security = PoolSecurity.of(settings)
        self._advertisers = [
            Advertiser(
                collector=collector,
                wishes=pool_security.wishes,
                own_address=address,
                ads=partial(self._ads.update, itertools.count(1)),
                interval_s=settings.update_interval,
                log=self.log,
                address_file=settings.collector_address_file,
                family=self._master.family if self._master else None,
            )
            for collector in collectors
        ]
        self._brokers = [
            Broker(
                partial(where_now, broker, settings.collector_address_file),
                pool_security.wishes,
                settings.startd_name,
                settings.ccb_heartbeat_interval,
                self.log,
                moved=self._moved,
            )
            for broker in collector_addresses(settings.ccb_address, "CCB_ADDRESS")
        ]

    async def _start_parts(self, nursery: trio.Nursery, listeners: list[trio.abc.Listener[trio.SocketStream]]) -> None:
        async with trio.open_nursery() as starting:
            starting.start_soon(nursery.start, run_procd, self._procd_socket, self.config, self.log)
            starting.start_soon(nursery.start, self._spawner.run)
        lacks = await degradations(self._procd_socket, self.log)
        degraded = tuple(dict.fromkeys((*self._validation.degraded, *lacks)))
        self._ads.machine = attrs.evolve(self._ads.machine, degraded=degraded)
        nursery.start_soon(self._starter_ends.reap)
        nursery.start_soon(self._janitor.run)
        if (keeper := PilotProxy.of(self.settings, self.log)) is not None:
            nursery.start_soon(keeper.run)
        self._janitor.look()
        nursery.start_soon(self._claims.watch_leases)
        nursery.start_soon(self._policy.run)
        nursery.start_soon(self._health.run)
        nursery.start_soon(self._switch_watch.run)
        nursery.start_soon(self._cron.run)
        await nursery.start(self._server.serve, listeners)

    async def _appear(self, nursery: trio.Nursery, ready: Callable[[], None]) -> None:
        """From here on others know of us. A pilot may be ended before."""
        await self._find_brokers(nursery)
        for advertiser in self._advertisers:
            nursery.start_soon(advertiser.run)
        self._attend_master(nursery, self._slots.address)
        self._address_file.write(self._slots.address)
        ready()
        self.log.info("ready at %s as %s", self._slots.address, self.settings.startd_name)

    async def _find_brokers(self, nursery: trio.Nursery) -> None:
        """Before anybody learns our address: with one broker that knows us we can be reached. A pool that is away does
        not end a pilot; the address is told anew when it is back."""
        for broker in self._brokers:
            nursery.start_soon(broker.run)
        with trio.move_on_after(BROKERS_WITHIN_S):
            for broker in self._brokers:
                await broker.registered.wait()

    def _shared_port_moved(self, now: Sinful) -> None:
        self.log.warning("the shared port is at another address: we are at %s now", now)
        self._direct = with_alias(now, self.settings.host_alias)
        self._moved()

    def _moved(self) -> None:
        """A broker knows us by another id: so does everybody who is told our address from now on."""
        address = str(reached_by(self._direct, self._brokers, self.settings.private_network_name))
        self._slots.move(address)
        self._ads.machine = attrs.evolve(self._ads.machine, address=address)
        for advertiser in self._advertisers:
            advertiser.own_address = address
        self._address_file.write(address)
        self._changed()

    def _attend_master(self, nursery: trio.Nursery, address: str) -> None:
        """Signs of life and readiness for the master that started us, if one did."""
        if self._master is None:
            return
        self.log.info("started by the master with pid %d at %s", self._master.pid, self._master.address)
        timeout_s = self.settings.startd_not_responding_timeout
        nursery.start_soon(self._master.tell_alive, timeout_s, address, self.log)
        nursery.start_soon(self._tell_ready, self._master, address)
        if self._master.endpoint is not None:
            ad_file = self.settings.shared_port_daemon_ad_file
            nursery.start_soon(follow_shared_port, self._behind, ad_file, self._shared_port_moved)

    async def _tell_ready(self, master: Master, address: str) -> None:
        with trio.move_on_after(READY_WITHIN_S):
            for advertiser in self._advertisers:
                await advertiser.advertised.wait()
        await master.tell_ready(address, self.log)

    def _note_job(self, held: Held, seconds: float, words: messages.Ended | None) -> None:
        """One more for the report, and a word about the node."""
        job = Job(
            verdict=words.verdict if words else "",
            wait_status=words.exit_status if words else None,
            seconds=seconds,
            cpus=held.resources.cpus,
            cpu_s=words.cpu_s if words else 0.0,
            rss_peak_kb=words.rss_peak_kb if words else 0,
        )
        self.report.add(job)
        self._supplements.statistics.measure("JobBusyTime", seconds, now_s=trio.current_time())
        if words is not None and words.duration_s is not None:
            self._supplements.statistics.measure("JobDuration", words.duration_s, now_s=trio.current_time())
        self._health.job_ended(outcome_of(job), words.code if words else 0)

    def _reconfigure(self) -> None:
        """Once more after a reading that is under way: that one may have begun before the change, and must not come
        last."""
        self._rereads += 1
        if self._rereads == 1:
            self._nursery.start_soon(self._reread)

    async def _reread(self) -> None:
        while self._rereads:
            wanted = self._rereads
            await self._read_settings()
            self._rereads = 0 if self._rereads == wanted else 1

    async def _read_settings(self) -> None:
        """Settings that cannot be read change nothing."""
        try:
            read = await in_thread(partial(load, self.config))
            programs = cronjobs.parse(read)
        except (SettingsError, OSError) as fault:  # OSError: no process, no memory, no working directory any more
            self.log.error("settings not read again, everything stays as it is: %s", fault)
            return
        merged = merge(self.settings, read)
        self.settings = now = self._claims.settings = merged.settings
        self._cron.reconfigure(programs, now.startd_cron_max_job_load, now.startd_cron_autopublish)
        self._ads.machine = attrs.evolve(
            self._ads.machine,
            start=merged.settings.start,
            rank=merged.settings.rank,
            max_retirement=merged.settings.maxjobretirementtime,
            attributes=merged.settings.attributes,
        )
        self._policy.reconfigure()
        self._supplements.reconfigure(self.settings)
        for advertiser in self._advertisers:
            advertiser.interval_s = merged.settings.update_interval
        self.log.info("settings read again: %s", ", ".join(merged.taken) or "nothing has changed")
        if merged.left:
            self.log.warning("changed, but taken over by a restart only: %s", ", ".join(merged.left))
        self._claims.look_again()
        self._changed()

    def _rules(self) -> Rules:
        return Rules.of(self.settings, self._own_names)

    def _capability(self) -> str:
        """For the pool's administrators; empty where the settings want none."""
        return self._administration.capability() if self.settings.sec_enable_remote_administration else ""

    def _changed(self) -> None:
        for advertiser in self._advertisers:
            advertiser.wake()

    def _destroyed(self, name: str) -> None:
        self._cron.published.meters.forget(name)
        for advertiser in self._advertisers:
            advertiser.gone(name)


def _joined(ads: Sequence[ClassAd]) -> ClassAd:
    together = ClassAd()
    for ad in ads:
        together.update(ad)
    return together
