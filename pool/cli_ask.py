"""What the commands of `sailplane` share: how the pool is asked, and how its answer and what goes wrong are told."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import trio

from pilot import configuration, rpc
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
