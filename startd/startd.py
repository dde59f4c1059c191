"""One startd: its parts put together, started in order, ended in order. Wiring; the rules are in the parts."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import attrs
import trio
from classad2 import ClassAd

from cedar.claims import ClaimId
from cedar.classads import evaluate, parse_expression
from cedar.errors import PeerFault
from cedar.server import Server
from cedar.sessions import SessionTable
from cedar.sinful import Sinful
from pilot.calls import may_reap, own_children
from pilot.findings import Validation
from pilot.inquiry import ask_pilot
from pilot.ledger import Ledger
from pilot.settings import Settings, SettingsError, load
from pilot.switch import Switch
from pilot.threads import in_thread
from startd import claimevents as events
from startd import cronjobs, lifetime, plugins, portsecurity
from startd.administration import CAPABILITY, Administration, Manner
from startd.advertise import Advertiser
from startd.authorisation import Rules
from startd.broker import Broker, reached_by
from startd.claims import CODE_SHUTDOWN, Claims
from startd.commands import Commands
from startd.contact import AddressFile, collector_addresses, follow_shared_port, listen, where_now, with_alias
from startd.cron import Cron
from startd.discovery import discover
from startd.health import Health, Look
from startd.healthlook import LOOK_EVERY_S, LOOK_WITHIN_S, look_at
from startd.held import Held, Slot, Slots
from startd.janitor import Janitor
from startd.machine import cores, describe, resources
from startd.master import READY_WITHIN_S, Master
from startd.namesake import living_namesakes
from startd.owncredentials import OwnCredentials
from startd.pilotproxy import PilotProxy, parse_myproxy
from startd.polling import PolicyWatch
from startd.poolsecurity import PoolSecurity
from startd.processes import Spawner, degradations, owned_pids, procd_socket, run_procd
from startd.proxykeys import ProxyKeys
from startd.reconfigure import merge
from startd.report import Job, Report, outcome_of
from startd.slotads import Machine, SlotState, daemon_ad, private_ad, public_ad, roll_up
from startd.slotsettings import slot_settings
from startd.slottypes import plan
from startd.supplements import Supplements
from startd.switchwatch import SwitchWatch
from starter import messages
from starter.updates import one_line

# A signal's orderly end is 0; glidein scripts expect 99 for one that the startd came to by itself.
EXIT_DONE, EXIT_END_OF_LIFE = 0, 99
SIGNALS = (signal.SIGTERM, signal.SIGQUIT, signal.SIGINT, signal.SIGHUP)
# Who signals every process of a pilot signals its script, too, which passes it on: one TERM that comes twice.
ONE_TERM_S = 5.0
# Brokers that are there answer at once; a pilot starts without those that are not.
BROKERS_WITHIN_S = 20.0
REAP_EVERY_S = 0.5
# Refusals at the port that are logged in a minute; strangers must not fill the log.
MAX_REPORTS_A_MINUTE = 20
# As HTCondor's integers: a retirement without end is this long in an ad.
MAX_SECONDS = 2**31 - 1
# After the last claim has ended fast, starters need this long at most to be reaped.
FAST_END_WITHIN_S = 60.0


class CannotStart(Exception):
    """Start-up ends here; the text says why and what to do."""


class Startd:
    """``run`` once."""

    _machine: Machine
    _slots: Slots
    _spawner: Spawner
    _claims: Claims
    _janitor: Janitor
    _switch_watch: SwitchWatch
    _policy: PolicyWatch
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
        self._procd_socket: Path
        self._advertisers: list[Advertiser] = []
        self._sequence = 0
        self._supplements = Supplements()
        self._supplements.reconfigure(settings)
        self._status = EXIT_DONE
        self._reason = ""
        self._reports_minute = self._reports = 0
        self._administration: Administration
        self._address_file = AddressFile(settings.startd_address_file, log)
        self._health = Health(settings.sailplane_min_free_disk >> 10, settings.sailplane_black_hole_jobs)
        self._cron = Cron(
            cronjobs.parse(settings),
            settings.startd_cron_max_job_load,
            settings.startd_cron_autopublish,
            ad=lambda: self._own_ad(self._slots.first),
            changed=self._changed,
            log=log,
        )
        self._own_names = portsecurity.own_names(settings, master.accounts() if master else ())
        self._own_credentials = OwnCredentials(settings.sailplane_pilot_proxy, settings.sec_token_directory)

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
        self._machine: Machine = describe(settings, self.switch, address, total, self._validation)
        self._machine = attrs.evolve(
            self._machine,
            slots=len(plans),
            starts=divided.starts,
            devices={each.name: each.devices for each in found},
            detected=_joined([each.more for each in found]),
            plugins=await plugins.ask(plugins.named(settings), self.log),
        )
        self.report = Report(settings.startd_name, time.time(), total.cpus)
        self._slots = Slots(
            settings.startd_name, address, self._machine.start_time, sessions, plans, cores=cores(settings)
        )
        await self._refuse_namesake(self._collectors_now(collectors), address)
        with procd_socket(settings.sailplane_run_dir) as self._procd_socket:
            await self._run(ready, sessions, address, collectors, listeners)
        self._address_file.remove()
        self._write_report()
        return self._status

    async def _run(
        self,
        ready: Callable[[], None],
        sessions: SessionTable,
        address: str,
        collectors: list[Sinful],
        listeners: list[trio.abc.Listener[trio.SocketStream]],
    ) -> None:
        async with trio.open_nursery() as nursery:
            self._build(nursery, sessions, address, collectors)
            if self._master is not None:
                for session in self._master.sessions():
                    sessions.add(session)
            with trio.open_signal_receiver(*SIGNALS) as signals:
                await self._start_parts(nursery, [*listeners, *self._brokers])
                self._attend_master(nursery, self._slots.address)
                self._address_file.write(self._slots.address)
                ready()
                self.log.info("ready at %s as %s", self._slots.address, self.settings.startd_name)
                await self._until_ended(signals)
            nursery.cancel_scope.cancel()

    def _collectors_now(self, collectors: list[Sinful]) -> list[Sinful]:
        """Those whose address is known at this moment."""
        known = []
        for collector in collectors:
            with suppress(PeerFault):
                known.append(where_now(collector, self.settings.collector_address_file))
        return known

    def _write_report(self) -> None:
        """A table for people, and files for scripts beside the logs. One that cannot be written ends no pilot badly."""
        now, status, reason = time.time(), self._status, self._reason
        self.report.calls = self._switch_watch.ledger.counts()
        print(self.report.as_table(now=now, reason=reason), end="", flush=True)
        files = {
            "pilot-report.json": json.dumps(self.report.as_json(now=now, reason=reason, status=status), indent=1)
            + "\n",
            "pilot-report.xml": self.report.as_xml(now=now, reason=reason, status=status),
        }
        for name, text in files.items():
            try:
                (self.settings.log / name).write_text(text, encoding="utf-8")
            except OSError as fault:
                self.log.warning("%s: %s", self.settings.log / name, fault.strerror)

    async def _refuse_namesake(self, collectors: list[Sinful], address: str) -> None:
        for collector, other in await living_namesakes(collectors, self._slots.first.name, address):
            raise CannotStart(
                f"a startd named {self.settings.startd_name} runs at {other} and is in the pool {collector}:"
                " set STARTD_NAME to a name of its own (for a glidein: with its job id), or end the other one"
            )

    def _build(self, nursery: trio.Nursery, sessions: SessionTable, address: str, collectors: list[Sinful]) -> None:
        settings = self.settings
        self._nursery = nursery
        self._spawner = Spawner(
            self.config,
            self.log,
            heard=self._heard_spawner,
            lost=self._lost_spawner,
            starter_command=self.settings.sailplane_starter_command,
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
            retirement_s=self._retirement_s,
            job_ended=self._note_job,
            statistics=self._supplements.statistics,
            usage_seen=lambda held: self._policy.look(held),
            ending=lambda held: self._policy.ending(held),
        )
        self._policy = PolicyWatch(self._claims, self._held_ad, self._own_ad, self.log)
        self._switch_watch = SwitchWatch(
            ledger=Ledger.of(settings.sailplane_run_dir),
            ask=partial(ask_pilot, self.switch, settings.sailplane_switch_deadline),
            changed=self._changed,
            log=self.log,
        )
        self._janitor = Janitor(settings.sailplane_run_dir, self._spawner.clean, self.log)
        self._build_server(nursery, sessions)
        self._build_ways_out(address, collectors)

    def _build_server(self, nursery: trio.Nursery, sessions: SessionTable) -> None:
        """What answers at the port, once the claims are there."""
        settings = self.settings
        proxy_keys = ProxyKeys(wanted=settings.sailplane_proxy_key == "rsa")
        nursery.start_soon(proxy_keys.run)
        commands = Commands(
            claims=self._claims,
            procd_socket=str(self._procd_socket),
            proxy_keys=proxy_keys,
            plugins=self._machine.plugins,
            slot_ads=self._slot_ads,
            daemon_ad=self._daemon_ad,
            own_ad=self._own_ad,
            held_ad=self._held_ad,
            log=self.log,
        )
        self._administration = Administration(
            claims=self._claims,
            ads=self._slot_ads,
            shut_down=self._told_to_end,
            reconfigure=self._reconfigure,
            nursery=nursery,
            log=self.log,
        )
        policy = portsecurity.policy(settings, self._rules, self.log)
        self._server = Server(
            {**commands.table(), **self._administration.table()}, sessions, policy, report=self._report_refusal
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
                ads=self._all_ads,
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
        self._machine = attrs.evolve(self._machine, degraded=tuple(dict.fromkeys((*self._validation.degraded, *lacks))))
        nursery.start_soon(self._reap)
        nursery.start_soon(self._janitor.run)
        self._start_pilot_proxy(nursery)
        self._janitor.look()
        nursery.start_soon(self._claims.watch_leases)
        nursery.start_soon(self._policy.run)
        nursery.start_soon(self._watch_health)
        nursery.start_soon(self._switch_watch.run)
        nursery.start_soon(self._cron.run)
        await nursery.start(self._server.serve, listeners)
        await self._find_brokers(nursery)
        for advertiser in self._advertisers:
            nursery.start_soon(advertiser.run)

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
        self._machine = attrs.evolve(self._machine, address=address)
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

    def _start_pilot_proxy(self, nursery: trio.Nursery) -> None:
        settings = self.settings
        if settings.sailplane_pilot_proxy is None:
            return
        server, username = parse_myproxy(settings.sailplane_pilot_myproxy)
        keeper = PilotProxy(
            settings.sailplane_pilot_proxy,
            settings.sailplane_certificates_dir,
            self.log,
            source=settings.sailplane_pilot_proxy_source,
            server=server,
            username=username,
        )
        nursery.start_soon(keeper.run)

    # --- the end -------------------------------------------------------------------------------------------------

    async def _until_ended(self, signals: AsyncIterator[int]) -> None:
        """TERM: gracefully. QUIT, INT, a second TERM (not the same one again): fast. Or when the pilot's life is over
        (``startd.lifetime``).

        HUP: the settings are read again. A master says by QUIT when it means fast, and its end is ours.
        """
        async with trio.open_nursery() as ending:
            self._ending = ending
            ending.start_soon(self._watch_life)
            if self._master is not None:
                ending.start_soon(self._follow_master, self._master)
            term_s = -math.inf
            async for number in signals:
                if number == signal.SIGHUP:
                    self._reconfigure()
                    continue
                if number == signal.SIGTERM:
                    if trio.current_time() - term_s < ONE_TERM_S:
                        continue
                    term_s = trio.current_time()
                again = self._claims.draining and self._master is None
                fast = number != signal.SIGTERM or again
                self._shut_down(signal.Signals(number).name, fast=fast, status=EXIT_DONE)

    async def _follow_master(self, master: Master) -> None:
        await master.wait_end()
        self._shut_down(f"the master (pid {master.pid}) has ended", fast=True, status=EXIT_DONE)

    def _told_to_end(self, reason: str, fast: bool, again: bool) -> None:
        """By an administrator. A master starts us again after an exit with 0, and holds us after one with 99."""
        status = EXIT_DONE if again and self._master is not None else EXIT_END_OF_LIFE
        self._shut_down(reason, fast=fast, status=status)

    def _shut_down(self, reason: str, *, fast: bool, status: int) -> None:
        """Begin to end, or make an end that has begun a fast one. The first reason decides about the exit status."""
        claims, manner = self._claims, self._administration.manner
        fast = fast or manner is Manner.FORCE
        if not claims.draining:
            claims.draining, self._status, self._reason = True, status, reason
            self._ending.start_soon(self._see_claims_end, self._ending.cancel_scope)
        elif not fast:
            return
        self.log.info("%s: shutting down %s", reason, "fast" if fast else "gracefully")
        if fast:
            claims.handle_all(events.Shutdown(fast=True))
        else:
            limit_s = math.inf if manner is Manner.PEACEFUL else self._longest_retirement_s()
            claims.retire_all(
                limit_s, f"the pilot shuts down ({reason})", CODE_SHUTDOWN, whole=manner is Manner.PEACEFUL
            )
        self._changed()

    def _longest_retirement_s(self) -> float:
        """After it a job still has its vacate time within SHUTDOWN_GRACEFUL_TIMEOUT."""
        settings = self.settings
        return max(0.0, settings.shutdown_graceful_timeout - settings.machinemaxvacatetime)

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
        self._health.job_ended(outcome_of(job), words.code if words else 0, now_s=trio.current_time())
        self._judge_health()

    def _judge_health(self) -> None:
        """Jobs match, or do not; said when it changes."""
        reason = self._health.reason(now_s=trio.current_time())
        if reason != self._claims.unhealthy:
            if reason:
                self.log.warning("no job matches here: %s", reason)
            else:
                self.log.info("jobs match here again")
            self._claims.unhealthy = reason
            self._changed()

    async def _watch_health(self) -> None:
        """Until cancelled. A disk that does not answer holds up the look, not the startd."""
        while True:
            look = Look(fault=f"EXECUTE ({self.settings.execute}) does not answer")
            with trio.move_on_after(LOOK_WITHIN_S):
                look = await self._look_at_disk()
            self._health.looked(look)
            self._judge_health()
            await trio.sleep(LOOK_EVERY_S)

    async def _look_at_disk(self) -> Look:
        try:
            return await in_thread(partial(look_at, self.settings.execute), abandon_on_cancel=True)
        except BlockingIOError as fault:
            return Look(fault=f"{fault.strerror}: its limit of processes is reached")

    def _retirement_s(self, held: Held) -> float:
        return lifetime.retirement_s(self._held_ad(held), held.job_ad)

    async def _watch_life(self) -> None:
        """Until the pilot shuts down."""
        idle_since_s = trio.current_time()
        while not self._claims.draining:
            if self._slots.held:
                idle_since_s = trio.current_time()
            decision = lifetime.decide(self._life_limits(), self._life_facts(trio.current_time() - idle_since_s))
            match decision.wish:
                case lifetime.Wish.RETIRE if not self._claims.retiring:
                    self.log.info("no more jobs: %s", decision.reason)
                    self._claims.take_no_more(decision.reason)
                case lifetime.Wish.END_GRACEFULLY | lifetime.Wish.END_FAST:
                    fast = decision.wish is lifetime.Wish.END_FAST
                    if decision.for_all and self._master is not None:
                        self._master.end()
                    self._shut_down(decision.reason, fast=fast, status=EXIT_END_OF_LIFE)
            with trio.move_on_after(lifetime.LOOK_EVERY_S):
                await self._claims_come_or_go()

    async def _claims_come_or_go(self) -> None:
        """Not what becomes of their jobs, which changes many times a second."""
        claims = len(self._slots.held)
        while len(self._slots.held) == claims and not self._claims.draining:
            await self._claims.wait_change()

    def _life_limits(self) -> lifetime.Limits:
        settings = self.settings
        return lifetime.Limits(
            retire_at=settings.glidein_toretire,
            die_at=settings.glidein_todie,
            noclaim_s=settings.startd_noclaim_shutdown,
            credential_margin_s=settings.sailplane_proxy_margin,
        )

    def _life_facts(self, idle_s: float) -> lifetime.Facts:
        self._slot_ads()  # what DAEMON_SHUTDOWN finds of the other slots is what they are now
        ad = self._own_ad(self._slots.first)
        ad["DaemonShutdown"] = parse_expression(self.settings.daemon_shutdown)
        ad["DaemonShutdownFast"] = parse_expression(self.settings.daemon_shutdown_fast)
        return lifetime.Facts(
            now=time.time(),
            claims=len(self._slots.held),
            idle_s=idle_s,
            credential_ends_at=self._own_credentials.ends_at(),
            shutdown=evaluate(ad, "DaemonShutdown") is True,
            shutdown_fast=evaluate(ad, "DaemonShutdownFast") is True,
        )

    def _reconfigure(self) -> None:
        self._nursery.start_soon(self._read_settings)

    async def _read_settings(self) -> None:
        """Settings that cannot be read change nothing."""
        try:
            read = await in_thread(partial(load, self.config))
        except (SettingsError, BlockingIOError) as fault:
            self.log.error("settings not read again, everything stays as it is: %s", fault)
            return
        merged = merge(self.settings, read)
        self.settings = self._claims.settings = merged.settings
        self._machine = attrs.evolve(
            self._machine,
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

    def _report_refusal(self, peer: str, error: Exception) -> None:
        """Somebody at the port was refused, or broke off: said while that is not a flood."""
        minute = int(trio.current_time() // 60)
        if minute != self._reports_minute:
            self._reports_minute, self._reports = minute, 0
        self._reports += 1
        if self._reports <= MAX_REPORTS_A_MINUTE:
            self.log.info("%s: %s", peer, one_line(str(error)))

    async def _see_claims_end(self, waiting: trio.CancelScope) -> None:
        """Ends ``waiting`` when no claim is left, or nothing more can be done."""
        peaceful = self._administration.manner is Manner.PEACEFUL
        if not await self._no_claims_within(math.inf if peaceful else self.settings.shutdown_graceful_timeout):
            self.log.warning("claims did not end within SHUTDOWN_GRACEFUL_TIMEOUT; ending them fast")
            self._claims.handle_all(events.Shutdown(fast=True))
            await self._no_claims_within(FAST_END_WITHIN_S)
        waiting.cancel()

    async def _no_claims_within(self, limit_s: float) -> bool:
        with trio.move_on_after(limit_s):
            while self._slots.held:
                await self._claims.wait_change()
            return True
        return False

    # --- ads -----------------------------------------------------------------------------------------------------

    def _own_ad(self, slot: Slot) -> ClassAd:
        """Of a partitionable slot, or of a static one that nobody has."""
        state = self._slots.state(
            slot,
            left_elsewhere=self._claims.left_elsewhere,
            draining=self._claims.draining or self._claims.drain is not None,
            drain_request=self._claims.drain.request_id if self._claims.drain else "",
            refused_users=self._switch_watch.refused(),
            switch_down=self._switch_watch.down,
            trouble=self._claims.trouble,
            unhealthy=self._claims.unhealthy,
            retiring=self._claims.retiring,
        )
        state = attrs.evolve(state, left_behind=self._janitor.waiting, only_user=self._only_user())
        return self._public_ad(state, None)

    def _held_ad(self, held: Held) -> ClassAd:
        state = attrs.evolve(
            held.slot_state(self._claims.draining),
            refused_users=self._switch_watch.refused(),
            switch_down=self._switch_watch.down,
            only_user=self._only_user(),
        )
        return self._public_ad(state, held)

    def _public_ad(self, state: SlotState, held: Held | None) -> ClassAd:
        ad = public_ad(self._machine, state, now=int(time.time()), sequence=self._sequence)
        self._policy.put_load(ad, held)
        if held is not None:
            left_s = lifetime.retirement_s(ad, held.job_ad) - held.clocks.ran_s(trio.current_time())
            ad["RetirementTimeRemaining"] = int(min(max(0.0, left_s), MAX_SECONDS)) if held.job_ad is not None else 0
        self._cron.published.merge_into(ad)
        job = held.job_ad if held is not None else None
        self._supplements.put(ad, job, now_s=trio.current_time(), now=int(time.time()))
        return ad

    def _only_user(self) -> str:
        """Without a switch all jobs share an account: one user's, unless the settings say that others may."""
        shared = self.switch.isolates or self.switch.needs_credential or self.settings.sailplane_shared_account
        return "" if shared else self._claims.first_user

    def _slot_ads(self) -> list[ClassAd]:
        return [ad for ad, _ in self._ads_with_claims()]

    def _ads_with_claims(self) -> list[tuple[ClassAd, ClaimId]]:
        """Of every slot, with the id that claims it next; a static slot that is claimed has one ad, as it is."""
        claimed = [(held, self._held_ad(held)) for held in self._slots.held.values()]
        own = []
        for slot in self._slots.own:
            if slot.claimed_whole:
                continue
            ad = self._own_ad(slot)
            if slot.partitionable:
                roll_up(ad, [child for held, child in claimed if held.parent is slot])
            own.append((ad, slot.current))
        ads = own + [(ad, self._slots.next_id(held)) for held, ad in claimed]
        self._supplements.crosspost([ad for ad, _ in ads])
        return ads

    def _all_ads(self) -> list[tuple[ClassAd, ClassAd | None]]:
        self._sequence += 1
        slots = [(self._with_capability(ad), private_ad(ad, claim)) for ad, claim in self._ads_with_claims()]
        return [*slots, (self._with_capability(self._daemon_ad()), None)]

    def _daemon_ad(self) -> ClassAd:
        states = [self._slots.state(slot, refused_users=(), draining=False, trouble="") for slot in self._slots.own]
        return daemon_ad(self._machine, states, now=int(time.time()), sequence=self._sequence)

    def _with_capability(self, ad: ClassAd) -> ClassAd:
        """For the collector, which shows it to administrators alone; never in an answer of our own."""
        ad[CAPABILITY] = self._administration.capability()
        return ad

    def _changed(self) -> None:
        for advertiser in self._advertisers:
            advertiser.wake()

    def _destroyed(self, name: str) -> None:
        for advertiser in self._advertisers:
            advertiser.gone(name)

    # --- the spawner and its starters ----------------------------------------------------------------------------

    def _heard_spawner(self, message: object) -> None:
        match message:
            case messages.StarterStarted(ticket=ticket, pid=pid):
                self._claims.starter_runs(ticket, pid)
            case messages.StarterFailed(ticket=ticket, text=text):
                self._claims.starter_not_started(ticket, text)
            case messages.StarterEnded(pid=pid, wait_status=wait_status):
                self._starter_ended(pid, wait_status)

    def _starter_ended(self, pid: int, wait_status: int) -> None:
        if self._claims.starter_ended(pid, wait_status):
            self._janitor.look()

    def _lost_spawner(self) -> None:
        """Its starters live on; as the nearest sub-reaper we are their parent now, and reap them ourselves."""
        self.log.warning("the spawner is gone; its starters go on")
        for held in list(self._slots.held.values()):
            if held.ticket is not None and held.starter_pid is None:
                self._claims.starter_not_started(held.ticket, "the spawner ended before it could fork")

    async def _reap(self) -> None:
        """Wait for adopted children: starters whose spawner died, and what falls to us of their trees."""
        while True:
            await trio.sleep(REAP_EVERY_S)
            for pid in _children() - owned_pids() - own_children() if may_reap() else ():
                ended, wait_status = _try_wait(pid)
                if ended:
                    self._starter_ended(pid, wait_status)


def _joined(ads: Sequence[ClassAd]) -> ClassAd:
    together = ClassAd()
    for ad in ads:
        together.update(ad)
    return together


def _children() -> set[int]:
    found: set[int] = set()
    for thread in os.listdir("/proc/self/task"):
        try:
            found.update(map(int, Path(f"/proc/self/task/{thread}/children").read_text().split()))
        except FileNotFoundError:
            continue
    return found


def _try_wait(pid: int) -> tuple[bool, int]:
    try:
        ended, wait_status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return False, 0
    return ended == pid, wait_status
