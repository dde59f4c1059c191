"""The job's tokens: fetched from the shadow, laid into the sandbox, and renewed there while the job runs.

They are secrets: in no log, no argument, no environment; files 0600 of the job's account in a directory 0700 that
``_CONDOR_CREDS`` names. Renewal costs a call of the switch only when a token has changed.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager

import attrs
import trio
from classad2 import ClassAd

from cedar.classads import get_str
from cedar.errors import PeerFault
from pilot.farside import CallFailed, open_call
from starter.description import CREDENTIALS_NAME
from starter.entries import STALL_S, Context, deadline, raise_if_failed
from starter.peek import NotShown
from starter.shadow import Shadow, ShadowRefused

# More than any token has.
MAX_TOKEN_BYTES = 64 * 1024
_SERVICE = re.compile(r"[A-Za-z0-9_+@][A-Za-z0-9_.*+@-]{0,199}\Z")


class TokensUnusable(Exception):
    """The submit side has no tokens for the job, or sends what is none; the text is for the job's owner."""


@attrs.frozen
class Tokens:
    """File name -> content."""

    files: Mapping[str, bytes] = attrs.field(repr=False)

    def changed(self, before: Tokens) -> Tokens:
        """Those that are new or different."""
        return Tokens({name: data for name, data in self.files.items() if before.files.get(name) != data})


async def fetch(shadow: Shadow, *, wait: bool = True) -> Tokens:
    """All tokens of the job. ``wait``: for a shadow, where there is none now.

    Raises:
        PeerFault: the shadow is gone.
        TokensUnusable: it has not all of them (a stock one holds the job then), or sends what is none.
    """
    try:
        found = await shadow.get_credentials(wait=wait)
    except ShadowRefused as refused:
        raise TokensUnusable("the submit side has not all the tokens that the job needs") from refused
    try:
        return Tokens(dict(map(_file, found)))
    except PeerFault as fault:  # an ad without what it must have; the connection is fine
        raise TokensUnusable(f"the submit side's tokens cannot be used: {fault}") from fault


def _file(ad: ClassAd) -> tuple[str, bytes]:
    """An ad {Service, Data}: the file's name as stock has it, ``*`` as ``_``; older shadows name the file itself."""
    service = get_str(ad, "Service").removesuffix(".use")
    if not _SERVICE.match(service):
        raise TokensUnusable("the submit side sends a token of a service whose name cannot be a file's")
    try:
        data = base64.b64decode(get_str(ad, "Data"), validate=False)
    except (binascii.Error, ValueError):
        raise TokensUnusable(f"the submit side's token for {service} is not base64") from None
    if not 0 < len(data) <= MAX_TOKEN_BYTES:
        raise TokensUnusable(
            f"the submit side's token for {service} has {len(data)} bytes, allowed are 1 to {MAX_TOKEN_BYTES}"
        )
    return service.replace("*", "_") + ".use", data


async def replace(context: Context, sandbox: str, tokens: Tokens, *, deadline_s: float) -> None:
    """A call of the switch: these files are replaced in the sandbox, each at one stroke.

    Raises StageFailed.
    """
    far = await open_call(context, "replace-tokens", deadline_s=deadline_s)
    try:
        with deadline("replace the tokens", STALL_S):
            files = [[name, base64.b64encode(data).decode("ascii")] for name, data in tokens.files.items()]
            await far.send({"directory": f"{sandbox}/{CREDENTIALS_NAME}", "files": files})
            raise_if_failed(await far.receive())
    finally:
        await far.end()


# A look that fails because of one of these is made again.
RENEWAL_FAULTS = (PeerFault, CallFailed, TokensUnusable)
Turn = Callable[[str], AbstractAsyncContextManager[Context]]


@attrs.define(eq=False)
class Renewal:
    """Keeps the tokens of a running job fresh. ``turn`` gives the context for a call beside the job's own three."""

    shadow: Shadow
    sandbox: str
    every_s: float
    deadline_s: float
    turn: Turn
    tokens: Tokens = attrs.field(repr=False)

    async def run(self, failed: Callable[[str], None]) -> None:
        """Until cancelled. A look that fails is told, and made again at the next time: what the job has may still be
        good. So it is, untold, where the job does not run just now: it may again, after its checkpoint."""
        while self.every_s > 0:
            await trio.sleep(self.every_s)
            try:
                await self._look()
            except NotShown:
                continue
            except RENEWAL_FAULTS as fault:
                failed(str(fault))

    async def _look(self) -> None:
        fresh = await fetch(self.shadow, wait=False)
        changed = fresh.changed(self.tokens)
        if changed.files:
            async with self.turn("tokens") as context:
                await replace(context, self.sandbox, changed, deadline_s=self.deadline_s)
            self.tokens = fresh
