"""`sailplane site-install`: hands over to the site's side, which is a program of its own.

No package but the demo imports `glexec`, so this one runs it: with this interpreter, isolated, so that
neither the current directory nor the environment of root chooses the code.
"""

from __future__ import annotations

import subprocess
import sys

import click


@click.command(
    "site-install", add_help_option=False, context_settings={"ignore_unknown_options": True, "allow_extra_args": True}
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def site_install(arguments: tuple[str, ...]) -> int:
    """Install glexec and mkgltempdir on this node (as root; shows first, --apply does it)."""
    return subprocess.call([sys.executable, "-I", "-m", "glexec.siteinstall", *arguments])


def add_to(group: click.Group) -> None:
    """Make it one of the `sailplane` commands."""
    group.add_command(site_install)
