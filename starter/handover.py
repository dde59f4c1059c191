"""What the forerunner of a starter (``starter.forerunner``) tells it over a local socket.

When the input is there it hands over everything that the rest of the activation needs. The messages hold secrets (the
syscall socket's key, tokens, the proxy): they are never logged.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
from classad2 import ClassAd

from cedar.stream import CedarStream
from pilot.credentials import Credential
from pilot.rpc import Protocol
from pilot.settings import Settings
from pilot.switch import Switch
from procd.client import ProcdClient
from starter.ahead import Ahead
from starter.credential import Keys
from starter.description import Description
from starter.life import Entry, Life, State
from starter.messages import Activation
from starter.sandbox import Account, Catalogue, CatalogueEntry, Place
from starter.shadow import Shadow
from starter.tokens import Tokens
from starter.transfer import Route
from starter.work import Work

# With these many, and names of 255 bytes, a message stays far below what a channel takes.
ROWS_IN_ONE = 1_000


@attrs.frozen
class OpenLaunch:
    """The call of the launch may be opened (``starter.ahead``), with what it will be made with."""

    audit_id: str
    credential: Path | None
    root: Path | None


@attrs.frozen
class DropLaunch:
    """It is not wanted any more."""


@attrs.frozen
class Catalogued:
    """Entries of the sandbox as stage-in left it: name, kind, mode, size, modification time. As many messages as it
    takes, before the hand-over."""

    rows: Any


@attrs.frozen
class Reached:
    """How far the life of the activation has come: up to its launch."""

    has_proxy: bool
    output_on_evict: bool
    to_stand_still: bool
    number: int
    story: tuple[Entry, ...]

    @classmethod
    def of(cls, life: Life) -> Reached:
        assert life.state is State.LAUNCHING
        return cls(life.has_proxy, life.output_on_evict, life.to_stand_still, life.number, tuple(life.story))

    def life(self) -> Life:
        """The same life, to go on with."""
        made = Life(State.LAUNCHING, None, self.has_proxy, self.output_on_evict, sandbox=True, number=self.number)
        made.to_stand_still = self.to_stand_still
        made.story.extend(self.story)
        return made


@attrs.frozen
class HandOver:
    """The input is there, and the job is to be launched. Descriptors: the syscall socket; that on which the job's chirp
    is served, if any.

    Times are of the clocks that ``Work`` has them of; ``heard_s`` and ``began_s`` monotonic. ``place`` as in
    ``starter.places.Place``. ``proxy_words`` and ``proxy_stale``: what has become of renewals so far, and whether the
    sandbox has an older proxy than we.
    """

    reached: Reached
    stream_state: dict[str, Any] = attrs.field(repr=False)
    heard_s: float
    began_s: float
    since_ns: int
    private_dir: Path
    place: tuple[Path, Path, int, int]
    job_ad: str = attrs.field(repr=False)
    description: Description
    route: Route
    credential: Credential | None
    account: Account
    proxy_in_sandbox: bool
    proxy_copied: bool
    proxy_words: str
    proxy_stale: bool
    proxy_keys: tuple[bytes, ...] = attrs.field(repr=False)
    tokens: Mapping[str, bytes] | None = attrs.field(repr=False)
    chirp_wishes: frozenset[str] = frozenset()
    chirp_cookie: str = attrs.field(default="", repr=False)


HANDOVER = Protocol(OpenLaunch, DropLaunch, Catalogued, HandOver)


def catalogued(work: Work) -> Iterator[Catalogued]:
    """What stage-in left, where the output will be held against it."""
    if work.catalogue is None or work.description.output_names is not None:
        return
    rows = [[e.name, e.kind, e.mode, e.size, e.mtime_ns] for e in work.catalogue.entries]
    for at in range(0, len(rows), ROWS_IN_ONE):
        yield Catalogued(rows[at : at + ROWS_IN_ONE])


def entries_in(piece: Catalogued) -> Iterator[CatalogueEntry]:
    """And back."""
    return (CatalogueEntry(*row) for row in piece.rows)


def hand_over(work: Work, reached: Reached, began_s: float, *, words: str, stale: bool) -> tuple[HandOver, list[int]]:
    """Everything of an activation whose input is there, and the descriptors that go with it.

    Raises:
        PeerFault: the shadow has gone.
    """
    assert work.job_ad is not None
    assert work.account is not None
    syscalls, stream_state = work.shadow.export()
    chirp, place = work.chirp, work.place
    message = HandOver(
        reached=reached,
        stream_state=stream_state,
        heard_s=work.shadow.heard_s,
        began_s=began_s,
        since_ns=work.since_ns,
        private_dir=work.private_dir,
        place=(place.path, place.root, place.device, place.inode),
        job_ad=str(work.job_ad),
        description=work.description,
        route=work.route,
        credential=work.credential,
        account=work.account,
        proxy_in_sandbox=work.proxy_in_sandbox,
        proxy_copied=work.proxy_copied,
        proxy_words=words,
        proxy_stale=stale,
        proxy_keys=tuple(work.keys.ahead),
        tokens=None if work.tokens is None else work.tokens.files,
        chirp_wishes=frozenset() if chirp is None else chirp.wishes,
        chirp_cookie="" if chirp is None else chirp.cookie,
    )
    return message, [syscalls.detach(), *([] if chirp is None else [chirp.detach()])]


def take_over(
    message: HandOver,
    fds: list[int],
    catalogue: Catalogue,
    *,
    settings: Settings,
    activation: Activation,
    switch: Switch,
    procd: ProcdClient,
    ahead: Ahead,
) -> Work:
    """The same activation in the process that launches it."""
    shadow = Shadow(CedarStream.adopt(socket.socket(fileno=fds[0]), message.stream_state))
    shadow.heard_s = message.heard_s
    work = Work(
        settings=settings,
        activation=activation,
        switch=switch,
        procd=procd,
        shadow=shadow,
        private_dir=message.private_dir,
        host=activation.slot,
        place=Place(*message.place),
        credential=message.credential,
        account=message.account,
        catalogue=catalogue,
        proxy_in_sandbox=message.proxy_in_sandbox,
        tokens=None if message.tokens is None else Tokens(message.tokens),
        proxy_copied=message.proxy_copied,
        keys=Keys(list(message.proxy_keys), rsa=settings.sailplane_proxy_key == "rsa"),
        since_ns=message.since_ns,
        ahead=ahead,
    )
    work.know(ClassAd(message.job_ad), message.description)
    work.know_route(message.route)
    if message.chirp_cookie:
        work.chirp = work.chirp_server(message.chirp_wishes)
        work.chirp.cookie = message.chirp_cookie
        work.chirp.adopt(fds[1])
    return work
