"""`sailplane renew`: a fresh proxy for jobs that are queued or run. It is delegated; its key stays in this process."""

from __future__ import annotations

import os
import time
from pathlib import Path

import click

from pilot import rpc
from pool import cli_ask
from pool import messages as m
from pool.cli_submit import read_proxy, sign


def add_to(group: click.Group) -> None:
    group.add_command(renew)


@click.command()
@click.argument("clusters", nargs=-1, required=True, type=click.IntRange(min=1))
@click.option(
    "--proxy",
    type=click.Path(path_type=Path),
    help="The fresh proxy; default: X509_USER_PROXY, else /tmp/x509up_uUID.",
)
@cli_ask.as_json
@click.pass_context
def renew(context: click.Context, clusters: tuple[int, ...], proxy: Path | None, json_: bool) -> int:
    """Give jobs a proxy that lives longer: of the same identity, CA and primary FQAN as theirs.

    Waiting jobs start with it; running ones get it at once, in the pilot's hands and in their sandbox.

    \b
    Examples:
        voms-proxy-init -voms demo -hours 48
        sailplane renew 12
        sailplane renew 12 13 --proxy ~/long.proxy
    """
    pem = read_proxy(str(proxy or default_proxy()))

    async def give(channel: rpc.Channel) -> list[m.Renewed]:
        return [await _renew(channel, cluster, pem) for cluster in clusters]

    replies = cli_ask.ask(context, give)
    if json_:
        rows = zip(clusters, replies, strict=True)
        cli_ask.show_json([{"cluster": c, "expires_at": r.expires_at, "running": r.running} for c, r in rows])
        return cli_ask.DONE
    for cluster, reply in zip(clusters, replies, strict=True):
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(reply.expires_at))
        sent = f"; on its way to {reply.running} running" if reply.running else ""
        click.echo(f"cluster {cluster}: renewed until {when}{sent}.")
    return cli_ask.DONE


def default_proxy() -> Path:
    """Where grid tools put it."""
    return Path(os.environ.get("X509_USER_PROXY") or f"/tmp/x509up_u{os.getuid()}")


async def _renew(channel: rpc.Channel, cluster: int, pem: bytes) -> m.Renewed:
    begun: m.Renewing = await channel.call(m.Renew(cluster))
    done: m.Renewed = await channel.call(m.GiveProxy(sign(pem, begun.request), ""))
    return done
