"""Files between the shadow and the sandbox. Input: the wire becomes a tar stream on the fly. Output: an untrusted tar
stream becomes items on the wire. The user's files never lie on the pilot's disk.
"""

from __future__ import annotations

import errno
import os
import posixpath
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

import attrs
import trio

from cedar.commands import Command, HoldCode
from cedar.filetransfer import (
    Ack,
    Directory,
    File,
    Item,
    SentByUrl,
    StoreFailed,
    TransferLimits,
    open_transfer,
    receive_files,
    send_files,
)
from cedar.sessions import Session
from cedar.sinful import Sinful
from pilot.credentials import MAX_PEM_BYTES, CredentialError
from starter.credential import Keys, ProxyUnusable, receive_proxy
from starter.description import NULL_DEVICE, OWN_NAMES, Description
from starter.plugins import Judged, NoPlugin, Order, Plugins, Wish, judge
from starter.sandbox import Inward, Manifest, OutDirectory, OutFile, Outward

# What a replacement that was killed leaves beside the proxy (jobwrapper.replace_proxy).
PROXY_LEFT_OVER = ".tmp"
T = TypeVar("T")


@attrs.frozen
class Route:
    """Where and how the shadow's file transfer is reached."""

    address: Sinful
    session: Session
    key: str = attrs.field(repr=False)


class Progress:
    """A transfer's patience: it is given up when nothing moves for ``limit_s`` seconds.

    Waiting in the submit side's queue counts as standing still.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self.scope = trio.CancelScope()

    def made(self) -> None:
        """Something moved."""
        self.scope.deadline = trio.current_time() + self._limit_s

    def allow(self, more_s: float) -> None:
        """What begins now shows no progress, and has a limit of its own of ``more_s`` seconds."""
        self.scope.deadline = trio.current_time() + self._limit_s + more_s

    async def watched(self, chunks: AsyncIterator[T]) -> AsyncIterator[T]:
        """The same chunks; each counts as progress."""
        async for chunk in chunks:
            self.made()
            yield chunk
        self.made()

    def check(self, what: str) -> None:
        """Raises TransferFailed when the patience was at its end."""
        if self.scope.cancelled_caught:
            raise TransferFailed(_stalled(f"{what} stood still for {self._limit_s:.0f} s"), "the transfer")


def _stalled(reason: str) -> Ack:
    return Ack(ok=False, hold_code=0, hold_subcode=errno.ETIMEDOUT, reason=reason, retry=True, files=0, bytes=0)


class TransferFailed(Exception):
    """A transfer ended with a negative acknowledgement of either side. ``retry``: the same may work again soon."""

    def __init__(self, ack: Ack, who: str) -> None:
        super().__init__(f"{who}: {ack.reason}")
        self.ack, self.who = ack, who


# --- input -------------------------------------------------------------------------------------------------------


@attrs.define
class InputSink:
    """Stores what comes off the wire into the sandbox, through the far side. ``begun`` is called with each item.

    ``plugins`` is asked, with whether the job's proxy is there, once there is a URL to be fetched.
    """

    inward: Inward
    job: Description
    check_proxy: Callable[[bytes], object]
    progress: Progress
    keys: Keys
    begun: Callable[[], None] = lambda: None
    plugins: Callable[[bool], Plugins] | None = None
    wishes: list[Wish] = attrs.field(factory=list)
    judged: list[Judged] = attrs.field(factory=list)
    proxy_stored: bool = False
    proxy_copied: bool = False

    async def directory(self, name: str, mode: int) -> None:
        self.begun()
        self.progress.made()
        await self.inward.directory(name, mode)

    async def file(self, name: str, mode: int, size: int, chunks: AsyncIterator[bytes]) -> None:
        self.begun()
        if self.job.proxy_name is not None and name == self.job.proxy_name:
            await self._copied_proxy(name, size, chunks)
            return
        if name in OWN_NAMES:
            text = f"an input file is called {name}, a name that the starter uses itself: rename it"
            raise StoreFailed(HoldCode.DOWNLOAD_FILE_ERROR, errno.EEXIST, text)
        runs = name == self._executable or name in self.job.files.plugin_names
        await self.inward.file(name, 0o755 if runs else mode, size, self.progress.watched(chunks))

    @property
    def _executable(self) -> str:
        return posixpath.basename(self.job.program) if self.job.transfer_executable else ""

    async def url(self, name: str, url: str) -> None:
        """Noted; fetched by a plugin when all else has come."""
        self.begun()
        self.wishes.append(Wish(name, url))

    async def finish(self) -> Mapping[str, int | str]:
        """Fetch what comes from URLs: plugins in the sandbox, at the job's account. All are asked, as in stock, also
        when one has failed: what each says is for the job's owner."""
        stats: dict[str, int | str] = {}
        if not self.wishes or self.plugins is None:
            return stats
        try:
            orders = self.plugins(self.proxy_stored).orders(self.wishes, upload=False, executable=self._executable)
        except NoPlugin as lack:
            raise StoreFailed(HoldCode.DOWNLOAD_FILE_ERROR, lack.subcode, str(lack)) from lack
        for order in orders:
            self.progress.allow(order.limit_s)
            judged = judge(order, await self.inward.run_plugin(order), self.plugins(self.proxy_stored).host)
            self.judged.append(judged)
            stats |= judged.stats
        failure = next((judged.failure for judged in self.judged if judged.failure is not None), None)
        if failure is not None:
            raise StoreFailed(failure.hold_code, failure.hold_subcode, failure.reason)
        self.progress.made()
        return stats

    async def proxy(self, name: str, exchange: Callable[[bytes], Awaitable[bytes]]) -> None:
        """The proxy as an item of its own: answered always, compared before it enters the sandbox."""
        self.begun()
        pem = await receive_proxy(exchange, self.keys)
        await self._store_proxy(name, pem)

    async def _copied_proxy(self, name: str, size: int, chunks: AsyncIterator[bytes]) -> None:
        if size > MAX_PEM_BYTES:
            raise StoreFailed(HoldCode.UPLOAD_FILE_ERROR, errno.EFBIG, f"the proxy {name} has {size} bytes")
        await self._store_proxy(name, b"".join([chunk async for chunk in chunks]))
        self.proxy_copied = True

    async def _store_proxy(self, name: str, pem: bytes) -> None:
        try:
            self.check_proxy(pem)
        except (CredentialError, ProxyUnusable) as fault:
            raise StoreFailed(HoldCode.CORRUPTED_CREDENTIAL, 0, str(fault)) from fault
        await self.inward.file(name, 0o600, len(pem), _once(pem))
        self.proxy_stored = True


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def fetch_input(route: Route, sink: InputSink, limits: TransferLimits) -> Ack:
    """Input from the shadow into the sandbox; the own acknowledgement.

    Raises:
        TransferFailed: a side said no.
        PeerFault, Refused: the connection failed.
    """
    stream = await open_transfer(route.address, Command.FILETRANS_UPLOAD, route.session, route.key)
    try:
        sink.progress.made()
        with sink.progress.scope:
            own, peer = await receive_files(stream, sink, limits=limits)
    finally:
        await stream.aclose()
    sink.progress.check("the input transfer")
    if peer.hold_code and not peer.ok:  # what the sender could not send is missing here; it knows why
        raise TransferFailed(peer, "the submit side")
    _raise_if_failed(own, peer)
    return own


# --- output ------------------------------------------------------------------------------------------------------


def missing_output(manifest: Manifest, host: str) -> Ack | None:
    """Code 13: we could not read output (wire reference 4.5, T34); ENOENT where it is not there."""
    if not manifest.missing:
        return None
    not_there = os.strerror(errno.ENOENT)
    absent = [name for name, why in zip(manifest.missing, manifest.reasons, strict=True) if why == not_there]
    if absent:
        word = "file" if len(absent) == 1 else "files"
        text = f"the job did not make its output {word} {_some(absent)} (transfer_output_files) on {host}: {not_there}"
    else:
        found = [f"{name}: {why}" for name, why in zip(manifest.missing, manifest.reasons, strict=True)]
        text = f"output (transfer_output_files) cannot be sent from {host}: {_some(found)}"
    code, number = HoldCode.UPLOAD_FILE_ERROR, errno.ENOENT if absent else _errno_of(manifest.reasons[0])
    return Ack(ok=False, hold_code=code, hold_subcode=number, reason=text, retry=False, files=0, bytes=0)


def _errno_of(reason: str) -> int:
    """For the hold's subcode; EISDIR for a link to a directory, as stock has it."""
    known = {os.strerror(number): number for number in (errno.EACCES, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)}
    return errno.EISDIR if "directory;" in reason else known.get(reason, errno.EINVAL)


def left_out(manifest: Manifest, host: str) -> str:
    """What the owner is told of what lies among the output and cannot be sent; "" when there is nothing."""
    if not manifest.left_out:
        return ""
    return f"left out of the output on {host}: " + _some([f"{name} ({why})" for name, why in manifest.left_out])


def _some(words: Sequence[str]) -> str:
    return ", ".join(words[:SHOWN]) + (f" and {len(words) - SHOWN} more" if len(words) > SHOWN else "")


# Of many names a person reads the first ones.
SHOWN = 5


def is_sent(name: str, job: Description) -> bool:
    """What the starter or the credential put there never goes back, nor what is below it: tokens."""
    top = name.partition("/")[0]
    return top not in (*OWN_NAMES, job.proxy_name, f"{job.proxy_name}{PROXY_LEFT_OVER}")


@attrs.define
class UrlOutput:
    """Output that goes to URLs (transfer_output_remaps, output_destination), sent by plugins in the sandbox."""

    job: Description
    plugins: Plugins
    sent: list[SentByUrl] = attrs.field(factory=list)
    judged: list[Judged] = attrs.field(factory=list)
    failure: Ack | None = None

    @classmethod
    def of(cls, job: Description, plugins: Callable[[], Plugins], *, final: bool) -> UrlOutput | None:
        """None for a job without any. What is not final goes to the submit side only."""
        return cls(job, plugins()) if final and (job.files.urls or job.files.destination) else None

    def orders(self, manifest: Manifest) -> list[Order]:
        """For what there is."""
        found = [(entry.name, self._url(entry.name)) for entry in manifest.entries if entry.kind == "file"]
        try:
            return self.plugins.orders([Wish(name, url) for name, url in found if url], upload=True)
        except NoPlugin as lack:
            code, text = HoldCode.UPLOAD_FILE_ERROR, str(lack)
            self.failure = Ack(ok=False, hold_code=code, hold_subcode=lack.subcode, reason=text)
            return []

    def _url(self, name: str) -> str:
        if not is_sent(name, self.job):
            return ""
        if not self.job.files.destination:
            return self.job.files.urls.get(name, "")
        return "" if name in (self.job.stdout, self.job.stderr) else f"{self.job.files.destination.rstrip('/')}/{name}"

    def answered(self, order: Order, answer: object) -> None:
        """What became of one plugin's files."""
        judged = judge(order, answer, self.plugins.host)
        self.judged.append(judged)
        self.failure = self.failure or judged.failure
        for wish in order.wishes:
            self.sent.append(SentByUrl(posixpath.basename(wish.name), wish.url, judged.errors.get(wish.name, "")))

    @property
    def stats(self) -> dict[str, int | str]:
        return {name: value for judged in self.judged for name, value in judged.stats.items()}


async def output_items(
    outward: Outward, job: Description, progress: Progress, uploads: UrlOutput | None = None
) -> AsyncIterator[Item]:
    """The untrusted stream as items; what is not sent is drained. What has gone to URLs comes first, as in stock."""
    for report in uploads.sent if uploads is not None else ():
        yield report
    async for entry in outward.entries():
        progress.made()
        match entry:
            case OutDirectory() if is_sent(entry.name, job):
                yield Directory(entry.name, entry.mode)
            case OutFile() if is_sent(entry.name, job):
                yield File(entry.name, entry.mode, entry.size, progress.watched(entry.chunks))
            case OutFile():
                async for _ in entry.chunks:
                    pass


async def send_output(
    route: Route,
    outward: Outward,
    job: Description,
    own: Ack | None,
    progress: Progress,
    *,
    final: bool = True,
    uploads: UrlOutput | None = None,
    max_bytes: int | None = None,
) -> None:
    """Output to the shadow; not ``final``: to be kept for the job's next start. Beyond ``max_bytes`` nothing is sent.

    Raises:
        TransferFailed: a side said no; ``own`` is this side's, known before the first byte (missing files).
        PeerFault, Refused, StageFailed: a connection or the far side failed.
    """
    stream = await open_transfer(route.address, Command.FILETRANS_DOWNLOAD, route.session, route.key)
    try:
        progress.made()
        with progress.scope:
            mine, peer = await send_files(
                stream,
                output_items(outward, job, progress, uploads),
                final=final,
                sandbox_bytes=sum(entry.size for entry in outward.manifest.entries),
                own_failure=lambda: own,
                max_bytes=max_bytes,
                stats=uploads.stats if uploads is not None else None,
            )
    finally:
        await stream.aclose()
    progress.check("the output transfer")
    _raise_if_failed(mine, peer)


def _raise_if_failed(own: Ack, peer: Ack) -> None:
    if not own.ok:
        raise TransferFailed(own, "the execute side")
    if not peer.ok:
        raise TransferFailed(peer, "the submit side")


def wanted_names(job: Description, *, failed: bool = False) -> tuple[str, ...] | None:
    """Names to fetch: the listed ones and the standard streams; None means whatever is new or changed.

    failed: the job's own success counts (ON_SUCCESS, success_exit_code), and it had none.
    """
    names = job.files.failure_names if failed else job.output_names
    if names is None:
        return None
    streams = dict.fromkeys(name for name in (job.stdout, job.stderr) if name != NULL_DEVICE)
    return (*streams, *(name for name in names if name not in streams))
