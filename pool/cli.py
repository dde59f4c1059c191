"""The `sailplane` command: submit, q, status, rm, wait, fetch, history.

Exit codes: 0 done, 1 the request failed, 100 wrong usage or settings, 101 our bug, 111 the pool is not reachable.
Commands that list take --json. What a command does is in `cli_submit`, `cli_fetch`, `cli_act` and the like.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from pilot import rpc, settings
from pool import cli_act, cli_fetch, cli_renew, cli_show, cli_site, cli_submit, cli_validate
from pool.cli_ask import DONE, FAILED, OUR_BUG, TRY_AGAIN, WRONG_USAGE, Failed, Unreachable, say


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


def main(arguments: list[str] | None = None) -> int:
    """The console script; returns its exit code."""
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
    sys.exit(main())
