"""The `sailplane` command: submit, q, status, rm, wait, fetch, history.

Exit codes: 0 done, 1 the request failed, 100 wrong usage or settings, 101 our bug, 111 the pool is not reachable.
Commands that list take --json. What a command does is in `cli_submit`, `cli_fetch`, `cli_act` and the like.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import trio

from pilot import configuration, rpc, settings
from pool import messages as m
from pool.model import JobId

DONE, FAILED, WRONG_USAGE, OUR_BUG, TRY_AGAIN = 0, 1, 100, 101, 111
T = TypeVar("T")
Ask = Callable[[rpc.Channel], Awaitable[T]]


class Failed(Exception):
    """The request failed: the text says who, what, which value, what to do."""


class Unreachable(Exception):
    """No pool answers at the socket."""


class TargetType(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """'12' is a cluster, '12.3' a job."""

    name = "ID"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> m.Target:
        if isinstance(value, m.Target):
            return value
        try:
            found = JobId.parse(value if "." in value else f"{value}.0")
        except ValueError:
            self.fail(f"{value!r} is no job: say CLUSTER or CLUSTER.PROC, for example 12 or 12.0", param, ctx)
        return m.Target(found.cluster, found.proc if "." in value else None)


TARGET = TargetType()
as_json = click.option("--json", "json_", is_flag=True, help="Print JSON.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--config", type=click.Path(path_type=Path, dir_okay=False), help="Settings file; default: $SAILPLANE_CONFIG."
)
@click.option(
    "--socket",
    "socket_",
    type=click.Path(path_type=Path),
    help="The pool's socket; default: SAILPLANE_POOL_SOCKET of the settings.",
)
@click.pass_context
def cli(context: click.Context, config: Path | None, socket_: Path | None) -> None:
    """Run jobs on the embedded pool of this machine.

    \b
    sailplane submit count.sub      hand in the jobs of a submit file
    sailplane q                     look at your jobs
    sailplane wait 12               wait until cluster 12 is done
    sailplane fetch 12              get its output
    """
    context.obj = (config, socket_)


def ask(context: click.Context, what: Ask[T]) -> T:
    """Connect, ask, and turn what goes wrong into words. Raises Failed, Unreachable, SettingsError."""
    config, path = context.obj
    if path is None:
        path = configuration.load(config).sailplane_pool_socket
    return trio.run(_ask, path, what)


async def _ask(path: Path, what: Ask[T]) -> T:
    try:
        channel = await rpc.connect(path, m.POOL, max_fds=m.MAX_FDS)
    except rpc.ChannelClosed as error:
        raise Unreachable(
            f"no pool answers at {path} ({error.text}). Start it with 'sailplane-pool', or name its socket"
            " with --socket or SAILPLANE_POOL_SOCKET, then try again."
        ) from error
    async with channel:
        try:
            return await what(channel)
        except rpc.RpcRefused as refused:
            raise Failed(refused.text) from refused
        except rpc.ChannelClosed as error:
            raise Unreachable("the pool closed the connection; see its log, then try again.") from error


def show_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=True))


def say(text: str) -> None:
    click.echo(f"sailplane: {text}", err=True)


def main(arguments: list[str] | None = None) -> int:
    """The console script; returns its exit code."""
    from pool import (
        cli_act,
        cli_fetch,
        cli_renew,
        cli_show,
        cli_site,
        cli_submit,
        cli_validate,
    )  # each adds its commands

    for module in (cli_submit, cli_renew, cli_show, cli_fetch, cli_act, cli_site, cli_validate):
        module.add_to(cli)
    try:
        result = cli.main(arguments, prog_name="sailplane", standalone_mode=False)
        return result if isinstance(result, int) else DONE
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.UsageError as error:
        error.show()
        return WRONG_USAGE
    except settings.SettingsError as error:
        say(str(error))
        return WRONG_USAGE
    except (Failed, click.ClickException) as error:
        say(str(error) if isinstance(error, Failed) else error.format_message())
        return FAILED
    except Unreachable as error:
        say(str(error))
        return TRY_AGAIN
    except rpc.RpcFault as fault:
        say(f"the pool and this command do not understand each other ({fault}); they must be of one version")
        return OUR_BUG
    except (click.Abort, KeyboardInterrupt):
        say("interrupted")
        return FAILED
    except BrokenPipeError:
        # The reader of our output is gone (a pager was left): nothing more to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


if __name__ == "__main__":
    from pool import cli as imported  # the module that the commands know; this one is called __main__

    sys.exit(imported.main())
