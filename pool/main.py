"""`sailplane-pool`: the embedded pool's daemon. Reads settings, makes its places, serves until SIGTERM or SIGINT.

Exit codes: 0 an ordered end, 100 wrong settings or places, 101 our bug, 111 the port or socket is not to be had now.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import signal
import sys
from pathlib import Path

import trio

from cedar.commands import VERSION, Command, condor_version_text
from cedar.filetransfer import TransferLimits
from cedar.security_server import Caller
from cedar.server import Served, Server, ServerPolicy
from cedar.sessions import SessionTable
from cedar.sinful import Sinful
from pilot import configuration, logs, settings
from pool.adstore import AdStore
from pool.claims import ClaimClient
from pool.collector import Collector
from pool.jobad import PoolFacts
from pool.life import Parts
from pool.places import BadPlace, Places, prepare, write_public
from pool.queue import Queue, QueueTrouble
from pool.renewal import Renewer
from pool.scheduler import Scheduler
from pool.spool import Spool
from pool.submission import Rules
from pool.transfers import TransferServer
from pool.users import Users

# Users may have 512 conversations with 64 files each under way, startds a connection each.
OPEN_FILES = 65_536
DONE, WRONG_SETTINGS, OUR_BUG, TRY_AGAIN = 0, 100, 101, 111
# Signs of life that fit into one lease; a startd sends one every third of it anyway.
ALIVES_PER_LEASE = 6
LONGEST_ALIVE_S = 300


def main(arguments: list[str] | None = None) -> int:
    """Run the daemon; returns its exit code."""
    options = _options(arguments)
    try:
        config = configuration.load(options.config)
        if not options.foreground:
            config.log.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = None if options.foreground else config.log / "PoolLog"
        log = logs.start("pool", file, limit_bytes=config.max_pool_log)
        for warning in config.warnings:
            log.warning("%s", warning)
        places = Places(config.sailplane_pool_dir, config.spool)
        lock = prepare(places, config.sailplane_pool_socket, trust_domain=config.trust_domain)
    except (settings.SettingsError, BadPlace) as error:
        print(f"sailplane-pool: {error}", file=sys.stderr)
        return WRONG_SETTINGS
    except OSError as error:
        print(f"sailplane-pool: {error.filename}: {error.strerror}", file=sys.stderr)
        return WRONG_SETTINGS
    _raise_open_files()
    try:
        return trio.run(_run, config, places, options.ready_fd, strict_exception_groups=True)
    except Exception:  # whatever nobody expected: said once, with all that is known, and the end
        log.exception("unexpected; the pool ends")
        print("sailplane-pool: unexpected error, see the log", file=sys.stderr)
        return OUR_BUG
    finally:
        os.close(lock)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="sailplane-pool",
        description=__doc__,
        epilog="example:\n  sailplane-pool --config pool.conf --foreground",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config", type=Path, help="configuration file (HTCondor's language); default: SAILPLANE_CONFIG, if set"
    )
    parser.add_argument(
        "--ready-fd",
        type=int,
        metavar="N",
        help="write 'ready' and a line break to this descriptor once users are served",
    )
    parser.add_argument("--foreground", action="store_true", help="log to standard error instead of LOG/PoolLog")
    return parser.parse_args(arguments)


def _raise_open_files() -> None:
    """As many descriptors as the system lets us have: the usual soft limit of 1024 is one user's to use up. The pool
    starts no process that would inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _run(config: settings.Settings, places: Places, ready_fd: int | None) -> int:
    log = logs.get("pool")
    try:
        listeners = await trio.open_tcp_listeners(config.sailplane_pool_port, host=config.network_interface)
        queue = Queue(places.queue)
    except OSError as error:
        print(
            f"sailplane-pool: cannot listen on {config.network_interface}:{config.sailplane_pool_port}: {error}",
            file=sys.stderr,
        )
        return TRY_AGAIN
    except QueueTrouble as trouble:
        print(f"sailplane-pool: {trouble}", file=sys.stderr)
        return WRONG_SETTINGS
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_until_signal, nursery.cancel_scope)
            await serve(config, places, queue, listeners, nursery)
            _say_ready(ready_fd)
            log.info("ready")
    finally:
        queue.close()
    log.info("stopped")
    return DONE


async def _until_signal(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            logs.get("pool").info("signal %d: stopping; running jobs keep running until their lease ends", number)
            scope.cancel()
            return


async def serve(
    config: settings.Settings, places: Places, queue: Queue, listeners: list[trio.SocketListener], nursery: trio.Nursery
) -> None:
    """Build the parts and start them in an order in which each finds what it needs."""
    host, port = listeners[0].socket.getsockname()[:2]
    name = platform.node() or "localhost"
    address = str(Sinful(host, port, {"alias": name, "noUDP": ""}))
    sessions = SessionTable()
    lease_s = config.sailplane_pool_lease
    client = ClaimClient(
        sessions, address, alive_interval_s=max(1, min(LONGEST_ALIVE_S, int(lease_s / ALIVES_PER_LEASE)))
    )
    transfers = TransferServer(sessions)
    facts = PoolFacts(name, config.uid_domain, address, condor_version_text(VERSION), max(1, int(lease_s)))
    limits = TransferLimits(max_bytes=config.sailplane_max_output_bytes, max_files=config.sailplane_max_output_files)
    store = AdStore()
    spool = Spool(places.spool)
    tokens_dir = config.sec_credential_directory_oauth
    scheduler = Scheduler(Parts(queue, spool, store, client, transfers, facts, limits, lease_s, VERSION, tokens_dir))
    collector = Collector(store, scheduler, address=address, name=name)
    server = Server(_table(collector, client, transfers), sessions, _policy(config, places), report=_report)
    rules = Rules(config.sailplane_certificates_dir, config.sailplane_pool_owner_from_proxy)
    await nursery.start(server.serve, listeners)
    await nursery.start(scheduler.run)
    nursery.start_soon(collector.expire)
    _start_renewer(config, scheduler, rules, nursery)
    await nursery.start(Users(scheduler, rules).serve, config.sailplane_pool_socket)
    write_public(places.address_file, f"{address}\n{condor_version_text(VERSION)}\n")


def _report(peer: str, error: Exception) -> None:
    logs.get("server").info("connection of %s ended: %s", peer, error)


def _table(collector: Collector, client: ClaimClient, transfers: TransferServer) -> dict[int, Served]:
    return {
        **collector.table(),
        int(Command.ALIVE): Served("DAEMON", client.serve_alive),
        int(Command.RELEASE_CLAIM): Served("DAEMON", client.serve_release),
        int(Command.FILETRANS_UPLOAD): Served("WRITE", transfers.serve),
        int(Command.FILETRANS_DOWNLOAD): Served("WRITE", transfers.serve),
    }


def _policy(config: settings.Settings, places: Places) -> ServerPolicy:
    """Tokens only. Who has one of ours as condor@TRUST_DOMAIN may do what its scope says, never more than advertise."""
    allowed = f"condor@{config.trust_domain}"

    def authorise(caller: Caller, level: str) -> bool:
        advertises = level == "ADVERTISE_STARTD" and (caller.scopes is None or level in caller.scopes)
        return level == "READ" or (caller.identity == allowed and advertises)

    return ServerPolicy(
        signing_keys_dir=places.keys,
        trust_domain=config.trust_domain,
        methods=("TOKEN",),
        authorise=authorise,
    )


def _start_renewer(config: settings.Settings, scheduler: Scheduler, rules: Rules, nursery: trio.Nursery) -> None:
    """Where the settings name servers and a credential that may ask them."""
    servers, credential = config.sailplane_pool_myproxy_servers, config.sailplane_pool_credential
    if not servers or credential is None or rules.certificates_dir is None:
        return
    allowed = tuple(word for word in servers.replace(",", " ").split() if word)
    renewer = Renewer(
        scheduler.spool,
        rules,
        credential,
        clusters=lambda: scheduler.with_myproxy(allowed),
        taken=lambda number, new: scheduler.proxy_renewed(number, new.expires_at),
        log=logs.get("renewer"),
    )
    nursery.start_soon(renewer.run)


def _say_ready(fd: int | None) -> None:
    if fd is not None:
        try:
            os.write(fd, b"ready\n")
        finally:
            os.close(fd)


if __name__ == "__main__":
    sys.exit(main())
