"""The command ``sailplane-startd``: settings, directories, the switch's validation, then the startd. Wiring only."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import trio

from cedar.errors import PeerFault
from pilot import glideinfile, logs
from pilot.configuration import GLIDEIN_SETTINGS, UNDER_MASTER, load
from pilot.glideinconfig import BadGlideinConfig
from pilot.ledger import Ledger
from pilot.settings import Settings, SettingsError
from pilot.switch import compile_wrapper, make_switch
from startd.arguments import Given, under_master
from startd.master import Master
from startd.processes import NotReady
from startd.startd import CannotStart, Startd
from startd.validate import Unusable, settle_switch, validate
from startd.workdir import Unreachable, open_way
from starter.orphans import become_subreaper

# Exit codes of the design.
EXIT_REQUEST_FAILED, EXIT_USAGE, EXIT_BUG, EXIT_TRY_LATER = 1, 100, 101, 111
LOCK = "startd.lock"


class Unfit(Exception):
    """Directories or settings that a startd must not start with."""


@click.command(name="sailplane-startd", epilog="Example: sailplane-startd --config pilot.conf --ready-fd 3 3>ready")
@click.option("--config", type=click.Path(path_type=Path), help="Configuration file in HTCondor's language.")
@click.option(
    "--glidein-config",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A glidein script's file of 'KEY value' lines; what concerns the startd is taken from it, below --config.",
)
@click.option("--ready-fd", type=int, help="Descriptor that gets the line 'ready' once jobs can come.")
@click.option(
    "-f", "-q", "foreground", is_flag=True, help="As a condor_master gives it; the startd never goes to the background."
)
@click.option("-t", "to_terminal", is_flag=True, help="Log to standard error.")
@click.option(
    "-local-name", "local_name", help="Its name in a condor_master's DAEMON_LIST: NAME.KNOB goes before KNOB."
)
@click.option("-sock", "sock", help="Its name behind a shared port; a condor_master gives it.")
@click.option("-a", "-append", "append", help="Added to the log file's name, after a dot.")
@click.option("-p", "-port", "port", type=click.IntRange(0, 65535), help="STARTD_PORT.")
@click.option("-l", "-log", "log_dir", type=click.Path(path_type=Path), help="LOG.")
@click.option("-c", "-config", "condor_config", type=click.Path(path_type=Path), help="As --config.")
def main(
    config: Path | None,
    glidein_config: Path | None,
    ready_fd: int | None,
    **of_master: Any,
) -> None:
    """Join a pool with this machine's resources and run jobs under their users' accounts.

    A condor_master starts it in place of its own startd where STARTD names it; options with one dash are those that a
    master gives. Then CONDOR_CONFIG of the environment is the configuration file.

    SIGTERM ends gracefully, SIGQUIT and SIGINT fast, SIGHUP reads the settings again. Exit status: 0 ended by a signal,
    99 ended by itself in order, 1 a namesake runs, 100 wrong settings, 101 our bug (see StartLog), 111 the identity
    switch is not available now.
    """
    given = Given(**of_master)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # a condor_master blocks all that it would tell us by
    try:
        master = Master.of(os.environ)
        config = under_master(os.environ, given, config, master)
        if glidein_config is not None:
            os.environ[GLIDEIN_SETTINGS] = str(glideinfile.write_settings(glidein_config.absolute()))
        settings = load(None if config is None else config.absolute())
        _prepare(settings)
        sys.exit(_start(settings, config, _announcer(ready_fd), given, master))
    except (SettingsError, Unfit, Unreachable, BadGlideinConfig, ValueError, PeerFault) as fault:
        _fail(str(fault), EXIT_USAGE)
    except Unusable as fault:
        _fail(str(fault), EXIT_TRY_LATER if fault.passing else EXIT_USAGE)
    except (CannotStart, NotReady) as fault:
        _fail(str(fault), EXIT_REQUEST_FAILED)


def _fail(text: str, status: int) -> None:
    click.echo(f"sailplane-startd: {text}", err=True)
    if UNDER_MASTER in os.environ:  # it gives us no standard error, but starts us in its directory of logs
        with suppress(OSError):
            logs.start("startd", Path("StartLog").absolute()).error("%s", text)
    sys.exit(status)


def _prepare(settings: Settings) -> None:
    """Directories of the pilot's own: run and log closed to others."""
    settings.log.mkdir(mode=0o700, parents=True, exist_ok=True)
    settings.execute.mkdir(mode=0o711, parents=True, exist_ok=True)
    settings.sailplane_run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = settings.sailplane_run_dir.stat()
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise Unfit(
            f"SAILPLANE_RUN_DIR = {settings.sailplane_run_dir} must belong to this account and be closed to others"
            f" (mode 0700; it is {stat.S_IMODE(found.st_mode):04o})"
        )


def _lock(settings: Settings) -> int:
    """One startd per run directory; held until the process ends."""
    path = settings.sailplane_run_dir / LOCK
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(fd, 20).decode("ascii", "replace").strip()
        os.close(fd)
        raise Unfit(
            f"another startd (pid {holder}) runs with SAILPLANE_RUN_DIR = {settings.sailplane_run_dir}:"
            " end it, or give this one directories of its own"
        ) from None
    os.ftruncate(fd, 0)
    os.write(fd, b"%d\n" % os.getpid())
    return fd


def _start(
    settings: Settings, config: Path | None, ready: Callable[[], None], given: Given, master: Master | None
) -> int:
    lock = _lock(settings)
    log = logs.start("startd", given.log_file(settings.startd_log), limit_bytes=settings.max_startd_log)
    for warning in settings.warnings:
        log.warning("%s", warning)
    become_subreaper()
    compile_wrapper(settings)
    try:
        way = open_way(settings.execute)
        try:
            return trio.run(_run, settings, None if config is None else config.absolute(), log, ready, master)
        except (CannotStart, NotReady, SettingsError, Unusable, ValueError):
            raise
        except Exception:  # whatever nobody expected: said once, with all that is known, and the end
            log.exception("unexpected; the startd ends")
            click.echo("sailplane-startd: unexpected error, see StartLog", err=True)
            return EXIT_BUG
        finally:
            way.close()
    finally:
        os.close(lock)
        logging.shutdown()


async def _run(
    settings: Settings,
    config: Path | None,
    log: logging.LoggerAdapter[logging.Logger],
    ready: Callable[[], None],
    master: Master | None,
) -> int:
    settings = settle_switch(settings)
    switch = make_switch(settings)
    report = await validate(settings, switch)
    log.info("%s", report.words)
    for finding in report.findings:
        if finding.status == "degraded":
            log.info("%s: %s", finding.check, finding.text)
    Ledger.of(settings.sailplane_run_dir).begin(probe=report.pilot_mapped)
    unready: list[str] = []
    try:
        return await Startd(settings, config, switch, report, log, master).run(ready)
    except* NotReady as group:
        unready += _texts(group)
    raise NotReady("; ".join(unready))


def _texts(group: BaseExceptionGroup[NotReady]) -> Iterator[str]:
    for inner in group.exceptions:
        if isinstance(inner, BaseExceptionGroup):
            yield from _texts(inner)
        else:
            yield str(inner)


def _announcer(ready_fd: int | None) -> Callable[[], None]:
    def announce() -> None:
        if ready_fd is not None:
            os.write(ready_fd, b"ready\n")
            os.close(ready_fd)

    return announce


if __name__ == "__main__":
    main()
