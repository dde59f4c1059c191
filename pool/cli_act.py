"""`sailplane hold`, `release`, `vacate`, `suspend`, `continue`: what becomes of jobs that stay in the queue."""

from __future__ import annotations

import click

from pilot import rpc
from pool import cli_ask
from pool import messages as m

# Verb, what is said of the jobs then, and the help's first paragraph.
_VERBS: tuple[tuple[m.Verb, str, str], ...] = (
    ("hold", "held", "Take jobs out of the matching; running ones are stopped, and lose what they have not saved."),
    ("release", "released", "Let held jobs run again. Look at 'sailplane q ID' first: the cause has to be gone."),
    ("vacate", "vacated", "Stop running jobs where they are; they run again, perhaps somewhere else."),
    ("suspend", "suspended", "Stop every process of running jobs for a while; their slots stay taken."),
    ("continue", "continued", "Let suspended jobs go on."),
)


def add_to(group: click.Group) -> None:
    for verb, done, text in _VERBS:
        group.add_command(_command(verb, done, text))


def _command(verb: m.Verb, done: str, text: str) -> click.Command:
    @click.argument("ids", nargs=-1, required=True, type=cli_ask.TARGET)
    @cli_ask.as_json
    @click.pass_context
    def command(context: click.Context, ids: tuple[m.Target, ...], json_: bool) -> int:
        async def act(channel: rpc.Channel) -> list[m.Acted]:
            return [await channel.call(m.Act(target, verb)) for target in ids]

        replies = cli_ask.ask(context, act)
        jobs, left = sum(reply.jobs for reply in replies), sum(reply.left for reply in replies)
        if json_:
            cli_ask.show_json({done: jobs, "left": left})
        else:
            click.echo(f"{jobs} {done}" + (f", {left} in no state for it" if left else "") + ".")
        return cli_ask.DONE

    example = f"\n\n\b\nExamples:\n    sailplane {verb} 12\n    sailplane {verb} 12.3 13"
    return click.command(name=verb, help=text + example)(command)
