"""Entry points of the starter's processes: the spawner, one starter, one clean-up. Wiring only."""

from __future__ import annotations

import codecs
import fcntl
import logging
import os
import socket
import sys
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import click
import trio
from classad2 import ClassAd

from cedar.classads import get_str
from cedar.stream import CedarStream
from pilot import credentials, logs
from pilot.configuration import load
from pilot.credentials import CredentialError
from pilot.inquiry import Patience
from pilot.ledger import Ledger
from pilot.rpc import Channel
from pilot.settings import Settings, SettingsError
from pilot.switch import make_switch
from procd.client import ProcdClient
from procd.messages import PROCD
from starter import devices
from starter.credential import Keys
from starter.events import EXIT_FAILURE, EXIT_NORMAL
from starter.job import Job
from starter.leftovers import search, words
from starter.messages import SPAWNER, STARTER, Activation
from starter.orphans import become_subreaper
from starter.private import NOTE, PROXY, make_private_dir, own_identity, read_note, remove_private_dir, write_note
from starter.rehearsal import rehearse
from starter.sandbox import Context, Left, Limits, Listed, Place, StageFailed, make_place, remove_place, stage_out
from starter.shadow import Shadow
from starter.spawner import Spawner, ignore_terminal
from starter.work import PROCD_FAULTS, Work

# Wrong usage or settings, by the exit codes of the design.
EXIT_USAGE = 100
# A clean-up that comes too early for the job's end is tried again by the janitor.
JOB_ENDS_WITHIN_S, JOB_LOOK_EVERY_S = 60.0, 0.5


def warm_up(settings: Settings) -> None:
    """What every starter would otherwise do for the first time by itself: lazy imports, message codecs (15 ms)."""
    "localhost".encode("idna").decode("ascii")  # codecs are imported with the first text in them
    codecs.lookup("ascii")
    devices.templates(settings)
    list(Path("/nonexistent").glob("*"))
    for protocol in (SPAWNER, STARTER, PROCD):
        protocol.prepare()
    credentials.make_request("ec")


def run_starter(settings: Settings, activation: Activation, shadow: socket.socket, startd: socket.socket) -> int:
    """One activation in this process, which the spawner has just forked; returns its exit status."""
    become_subreaper()
    return trio.run(_activation, settings, activation, shadow, startd)


async def _activation(
    settings: Settings, activation: Activation, shadow_socket: socket.socket, startd_socket: socket.socket
) -> int:
    log = logs.get("starter", slot=activation.slot.partition("@")[0])
    channel = Channel(trio.socket.from_stdlib_socket(startd_socket), STARTER)
    shadow = Shadow(CedarStream.adopt(shadow_socket, activation.stream_state))
    try:
        private_dir, place = _make_places(settings, ClassAd(activation.job_ad))
    except OSError as fault:
        log.error("no job can run here now: %s: %s", fault.filename, fault.strerror)
        return EXIT_FAILURE
    procd = ProcdClient(activation.procd_socket)
    work = Work(
        settings=settings,
        activation=activation,
        switch=make_switch(settings),
        procd=procd,
        shadow=shadow,
        private_dir=private_dir,
        host=activation.slot,
        place=place,
        keys=Keys(list(activation.proxy_keys), rsa=settings.sailplane_proxy_key == "rsa"),
    )
    status = await Job(work, channel, log).run()
    await shadow.aclose()
    procd.close()
    _tidy(work, log)
    return status


def _make_places(settings: Settings, job_ad: ClassAd) -> tuple[Path, Place]:
    """The private directory and the sandbox's; neither is there if one of them, or its note, cannot be."""
    private_dir = make_private_dir(settings.sailplane_run_dir, *own_identity())
    with ExitStack() as on_failure:
        on_failure.callback(remove_private_dir, private_dir)
        place = make_place(settings.execute)
        on_failure.callback(remove_place, place)
        write_note(private_dir, place, str(get_str(job_ad, "GlobalJobId", "unknown")))
        on_failure.pop_all()
    return private_dir, place


def _tidy(work: Work, log: logging.LoggerAdapter[logging.Logger]) -> None:
    """The pilot's own directories; what is the user's is gone by now, or stays noted for the clean-up."""
    try:
        remove_place(work.place)
    except Left as left:
        log.warning("%s; leaving the note for the clean-up", left)
        return
    remove_private_dir(work.private_dir)


def run_clean_up(settings: Settings, private_dir: Path) -> int:
    """Empty and remove the sandbox that a dead starter left; 0 when nothing is left."""
    become_subreaper()
    return trio.run(_clean_up, settings, private_dir)


async def _clean_up(settings: Settings, private_dir: Path) -> int:
    log = logs.get("clean-up", starter=private_dir.name)
    directory = os.open(private_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return EXIT_NORMAL  # another clean-up is at it
    if not await _job_is_over(settings, private_dir.name):
        log.info("the job is not ended yet; its proxy is needed for that")
        return EXIT_FAILURE
    try:
        note = read_note(private_dir)
    except OSError as fault:
        log.warning("%s: nobody knows what was left; see the execute directory", fault)
        return EXIT_FAILURE
    if note is None:
        remove_private_dir(private_dir)
        return EXIT_NORMAL
    proxy = private_dir / PROXY if note.has_proxy else None
    if proxy is not None and _has_ended(proxy) and note.place.path.exists():
        log.warning("%s stays for now: %s has ended, and no later job ran at that account", note.place.root, proxy)
        return EXIT_FAILURE
    context = Context(
        switch=make_switch(settings),
        settings=settings,
        audit_id=note.audit_id,
        credential=proxy,
        place=note.place.root,
        patience=Patience(Ledger.of(settings.sailplane_run_dir), 0.0, waits=True, once=True),
    )
    try:
        if note.place.path.exists():
            deadline_s = settings.sailplane_switch_deadline
            limits = Limits(max_bytes=0, max_files=0)
            async with stage_out(context, note.place, Listed(()), limits=limits, deadline_s=deadline_s) as outward:
                since_ns = (private_dir / NOTE).stat().st_mtime_ns
                found = await outward.remove(search(settings, context.switch, note.place, since_ns))
                if found.left:
                    log.warning("%s", words(found))
        remove_place(note.place)
    except (StageFailed, Left) as fault:
        log.warning("%s: %s", note.place.root, fault)
        return EXIT_FAILURE
    remove_private_dir(private_dir)
    log.info("removed %s", note.place.root)
    return EXIT_NORMAL


async def _job_is_over(settings: Settings, family: str) -> bool:
    """Whether procd has ended the dead starter's family, and forgotten it; waits for it for a while. Without the proxy
    that lies here procd could call no switch, and a sandbox is not taken away from under a job."""
    with trio.move_on_after(JOB_ENDS_WITHIN_S):
        try:
            procd = await ProcdClient.connect(settings.sailplane_run_dir / "procd")
            while any(each.family == family for each in await procd.families()):  # noqa: ASYNC110 - it tells nobody
                await trio.sleep(JOB_LOOK_EVERY_S)
        except PROCD_FAULTS:
            return False
        return True
    return False


def _has_ended(proxy: Path) -> bool:
    """Asking the site with such a one would only cost it a refusal."""
    try:
        return credentials.load(proxy.read_bytes()).expires_at <= time.time()
    except (OSError, CredentialError):
        return True


EXAMPLE = """
\b
Started by sailplane-startd. By hand it makes no sense: what it needs (the job's activation, the connection to the
shadow, its channel to the startd) comes over the descriptor. To debug starters let the startd run each of them as a
process of its own:

\b
    _CONDOR_SAILPLANE_STARTER_COMMAND='strace -f -o /tmp/starter.trace sailplane-starter --one' sailplane-startd

\b
The code is the same, but for the fork; starting takes as long as Python's imports do.
"""


@click.command(name="sailplane-starter", epilog=EXAMPLE)
@click.option("--spawner-fd", type=int, required=True, help="Descriptor of the socket to the startd that owns us.")
@click.option("--one", is_flag=True, help="Run one starter in this process, instead of forking one per activation.")
@click.option("--config", type=click.Path(path_type=Path), help="Configuration file, as the startd's.")
def main(spawner_fd: int, one: bool, config: Path | None) -> None:
    """The spawner: forks one starter per activation."""
    try:
        settings = load(config)
    except SettingsError as fault:
        click.echo(f"sailplane-starter: {fault}", err=True)
        sys.exit(EXIT_USAGE)
    log = logs.start("starter", settings.starter_log, limit_bytes=settings.max_starter_log)
    ignore_terminal()
    spawner = Spawner(
        startd=socket.socket(fileno=spawner_fd),
        run_starter=partial(run_starter, settings),
        run_clean_up=partial(run_clean_up, settings),
        warm_up=partial(warm_up, settings),
        rehearse=partial(rehearse, settings),
        log=log,
    )
    if one:
        sys.exit(spawner.serve_one())
    spawner.serve()


if __name__ == "__main__":
    main()
