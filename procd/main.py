"""The command `sailplane-procd`: the daemon. Wiring only; for `ctl`, which asks a running one, see `procd.ctl`."""

import os
import resource
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path

import click
import trio

from pilot import logs
from pilot.configuration import load
from pilot.ledger import Ledger
from pilot.settings import Settings, SettingsError
from pilot.switch import Switch, make_switch
from procd.ctl import DONE, FAILED, WRONG_USAGE, Group, ctl
from procd.facts import sees_jobs
from procd.families import Families
from procd.lookout import Lookout
from procd.planner import Planner, Spread
from procd.probe import look_around
from procd.proc import ProcReader
from procd.process import ProcessId
from procd.routes import OwnRight, SwitchCalls
from procd.server import Service
from procd.signaller import Signaller
from procd.trackers import FAMILY_VARIABLE, Trackers

# Each job takes up to five: two processes that are watched, two connections, a control socket.
MOST_DESCRIPTORS = 65_536


@click.group(
    name="sailplane-procd",
    cls=Group,
    invoke_without_command=True,
    epilog="The startd starts it. Examples: sailplane-procd --socket run/procd --log - serves in the foreground;"
    " sailplane-procd ctl --socket run/procd tree shows what it tracks.",
)
@click.option("--socket", "path", type=click.Path(path_type=Path), help="Where to serve; 0600, own account only.")
@click.option("--lifeline-fd", type=int, help="End of file on this descriptor stops all families, then procd.")
@click.option("--config", type=click.Path(path_type=Path), help="Configuration file in HTCondor's language.")
@click.option("--log", type=click.Path(path_type=Path), help="Log file; - is standard error. [LOG/ProcLog]")
@click.option("--ready-fd", type=int, help="Descriptor that gets the line 'ready' once clients can connect.")
@click.pass_context
def main(
    context: click.Context,
    path: Path | None,
    lifeline_fd: int | None,
    config: Path | None,
    log: Path | None,
    ready_fd: int | None,
) -> None:
    """Track the processes of jobs, and signal them.

    Ready when the socket answers. SIGINT, the lifeline's end, and without a lifeline SIGTERM stop all families, then
    procd. Exit status: 0 all families were empty, 1 something survived, 100 wrong usage or settings.
    """
    if context.invoked_subcommand is not None:
        return
    try:
        if path is None:
            raise click.UsageError("--socket is missing")
        settings = load(config)
        daemon = Daemon(settings, path, lifeline_fd=lifeline_fd, ready_fd=ready_fd)
        logger = logs.start("procd", _log_path(settings, log), limit_bytes=settings.max_procd_log)
        _want_descriptors()
    except (click.UsageError, SettingsError, ValueError) as wrong:
        click.echo(f"sailplane-procd: {wrong}", err=True)
        sys.exit(WRONG_USAGE)
    _ignore_signals(startds=lifeline_fd is not None)
    sys.exit(DONE if trio.run(daemon.run, logger) else FAILED)


def _ignore_signals(*, startds: bool) -> None:
    """SIGHUP is the kernel's, when the startd dies while one of this process group is stopped: there is work to do.
    SIGTERM may be a batch system's, to all of a pilot: the startd ends that in order, and needs us for it."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if startds:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _want_descriptors() -> None:
    """As many as the host lets us have: the usual soft limit is too low for a node with hundreds of slots."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _log_path(settings: Settings, given: Path | None) -> Path | None:
    if given is not None:
        return None if str(given) == "-" else given
    return settings.log / "ProcLog" if settings.log.is_dir() else None


class Daemon:
    """procd as a process: made before anything is served, so that wrong settings end it first.

    Raises:
        ValueError: a switch that the settings do not describe.
    """

    def __init__(self, settings: Settings, path: Path, *, lifeline_fd: int | None, ready_fd: int | None = None) -> None:
        self._path = path
        self._lifeline_fd = lifeline_fd
        self._ready_fd = ready_fd
        for fd in (lifeline_fd, ready_fd):
            if fd is not None:
                os.set_inheritable(fd, False)
        self._check_every_s = settings.sailplane_full_scan_interval
        switch = make_switch(settings)
        self._calls = _calls_of(switch, settings)
        self._always = ExitStack()
        reader = ProcReader()
        self._always.callback(reader.close)
        own = ProcessId(os.getpid(), reader.ticks(os.getpid()) or 0)
        self._families = Families(
            os.geteuid(), [own], alike=reader.alike, cookie=lambda pid: reader.cookie(pid, FAMILY_VARIABLE)
        )
        self._trackers = _trackers_of(self._families, reader, switch, settings)
        self._lookout = Lookout(
            self._families,
            reader,
            told=self._trackers.told,
            after_scan=self._trackers.note_scan,
            sees_jobs=sees_jobs(self._trackers.facts, isolates=switch.isolates),
        )
        self._signaller = Signaller(
            self._families,
            self._lookout,
            OwnRight(reader),
            self._calls,
            pilot_uid=os.geteuid(),
            owns_sub_uids=switch.name == "userns",
            group=self._trackers.group,
        )

    async def run(self, log: logs.Contextual) -> bool:
        """Serve until the lifeline's end, or SIGINT or (without one) SIGTERM, then stop all families; True when all are
        empty."""
        service = Service(
            self._families, self._lookout, self._signaller, self._trackers, log, check_every_s=self._check_every_s
        )
        wanted = {signal.SIGINT, signal.SIGTERM} if self._lifeline_fd is None else {signal.SIGINT}
        with self._always, trio.open_signal_receiver(*wanted) as signals:
            async with trio.open_nursery() as nursery:
                if self._calls is not None:
                    await nursery.start(self._calls.run)
                await nursery.start(_serve, service, self._path)
                self._say_ready()
                log.info("ready at %s", self._path)
                log.info("%s: stopping all families", await self._reason_to_end(signals))
                empty = await service.stop_all()
                nursery.cancel_scope.cancel()
            self._signaller.close()
        log.info("end, %s", "all families are empty" if empty else "something is left")
        return empty

    def _say_ready(self) -> None:
        if self._ready_fd is not None:
            os.write(self._ready_fd, b"ready\n")
            os.close(self._ready_fd)

    async def _reason_to_end(self, signals: AsyncIterator[int]) -> str:
        reasons: list[str] = []
        async with trio.open_nursery() as nursery:

            async def signalled() -> None:
                async for number in signals:
                    reasons.append(signal.Signals(number).name)
                    nursery.cancel_scope.cancel()

            async def lifeline() -> None:
                if self._lifeline_fd is not None:
                    await _end_of_file(self._lifeline_fd)
                    reasons.append("the startd is gone")
                    nursery.cancel_scope.cancel()

            nursery.start_soon(signalled)
            nursery.start_soon(lifeline)
        return reasons[0]


def _calls_of(switch: Switch, settings: Settings) -> SwitchCalls | None:
    """None where jobs run at our own account: no switch leads to them."""
    if not switch.isolates:
        return None
    return SwitchCalls(
        switch,
        settings,
        Planner(spread_of(settings)),
        answer_s=settings.sailplane_switch_deadline,
        ledger=Ledger.of(settings.sailplane_run_dir),
    )


def _trackers_of(families: Families, reader: ProcReader, switch: Switch, settings: Settings) -> Trackers:
    return Trackers(
        families,
        look_around(reader, cgroup=settings.sailplane_cgroup),
        logs.get("procd"),
        dedicated=settings.sailplane_dedicated_accounts,
        isolates=switch.isolates,
        owns=switch.name in ("none", "userns"),
    )


def spread_of(settings: Settings) -> Spread:
    """The knobs that say how calls of the switch are spread."""
    return Spread(
        jitter_s=settings.sailplane_kill_jitter,
        window_s=settings.sailplane_kill_window,
        rate_per_s=settings.sailplane_switch_rate,
        burst=settings.sailplane_switch_burst,
    )


async def _serve(service: Service, path: Path, task_status: trio.TaskStatus[None]) -> None:
    await service.run(path, allowed_uid=os.geteuid(), task_status=task_status)


async def _end_of_file(fd: int) -> None:
    """Until the other end of a pipe or socket is closed everywhere."""
    while True:
        await trio.lowlevel.wait_readable(fd)
        if not os.read(fd, 4096):
            return


main.add_command(ctl)
