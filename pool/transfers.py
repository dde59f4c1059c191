"""The file transfer server: input out of the spool, output into it. One connection a direction and run.

The sessions are made from claim ids; a transfer key names the run on top. Names that a job chose are checked and kept
in a list; on disk a file is a number.
"""

from __future__ import annotations

import hmac
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path

import trio
from attrs import define, field

from cedar import filetransfer
from cedar.claims import EXECUTE_SIDE, ClaimId, filetransfer_session
from cedar.commands import Command, HoldCode
from cedar.errors import PeerFault, Refused
from cedar.filetransfer import Directory, File, Item, Link, ProxyItem
from cedar.server import Request
from cedar.sessions import SessionTable
from pilot import credentials
from pool.claims import SESSION_AFTERLIFE_S
from pool.jobad import BadJob, check_relative, url_name
from pool.model import Checkpoint, Entry, OutputFile
from pool.spool import Spool, SpoolTrouble, read, sync_directory, sync_files, write

# How long a delegated proxy may live beyond ours: never; and at most this (DELEGATE_JOB_GSI_CREDENTIALS_LIFETIME).
PROXY_LIFETIME_S = 86400
# Why a delegation failed: the stored proxy itself is no good any more, so no other try can help.
UNUSABLE_PROXY = "CREDENTIAL"
CANNOT_STORE = 12  # on the wire: the action that failed (4.5)
EPERM, EIO, ENOSPC = 1, 5, 28
# How long what has arrived may take to be entered; as OUTPUT_ENTRY_S of the shadow.
ENTRY_S = 20.0


# Given the directory, the names there and the next number: (name, size, number) of what comes beside the output.
Beside = Callable[[Path, set[str], int], list[tuple[str, int, int]]]


def proxy_signer(
    path: Path, *, lifetime_s: int = PROXY_LIFETIME_S, end: float | None = None
) -> Callable[[bytes], Awaitable[bytes]]:
    """Delegates from the proxy file as it is when asked. Raises Refused at that time."""

    async def sign(request: bytes) -> bytes:
        wanted = time.time() + lifetime_s if lifetime_s else None
        not_after = min((moment for moment in (wanted, end) if moment is not None), default=None)
        return await trio.to_thread.run_sync(_sign, path, request, not_after)

    return sign


def _sign(path: Path, request: bytes, not_after: float | None) -> bytes:
    try:
        return credentials.sign_request(path.read_bytes(), request, not_after=not_after)
    except credentials.CredentialError as error:
        raise Refused(UNUSABLE_PROXY, f"the job's proxy cannot be delegated: {error}") from error
    except OSError as error:
        raise Refused("DELEGATION", f"the job's proxy cannot be read: {error}") from error


@define(eq=False)
class Transfer:
    """What one run moves, and what has been moved. `outputs` is None until the final output is stored.
    `input_again`: the input did not arrive, for a reason that may be gone already."""

    spool: Spool
    cluster: int
    run: int
    entries: list[Entry]
    executable: str | None
    proxy_name: str | None
    limits: filetransfer.TransferLimits
    on_output: Callable[[], None]
    proc: int = 0
    urls: tuple[str, ...] = ()
    checkpoint: Checkpoint | None = None
    on_checkpoint: Callable[[Checkpoint], None] = lambda checkpoint: None
    key: str = field(factory=lambda: secrets.token_hex(32), repr=False)
    beside: Beside | None = None
    input_sent: bool = False
    input_again: bool = False
    outputs: list[OutputFile] | None = None
    _busy: dict[int, trio.Event] = field(factory=dict)
    _entering: bool = False

    async def items(self) -> AsyncIterator[Item]:
        """The proxy first, directories before their files, the executable last of them; then URLs, for the node."""
        if self.proxy_name is not None:
            yield ProxyItem(self.proxy_name, proxy_signer(self.spool.proxy(self.cluster)))
        kept = () if self.checkpoint is None else self.checkpoint.files
        replaced = {file.name for file in kept}
        entries = [entry for entry in self.entries if entry.name not in replaced]
        own = sorted(entries, key=lambda entry: entry.name == self.executable)
        items: list[Entry | OutputFile] = [*kept, *own]
        for item in items:
            if item.key is None:
                yield Directory(item.name, item.mode)
            else:
                mode = item.mode | 0o755 if item.name == self.executable else item.mode
                yield File(item.name, mode, item.size, read(self._path(item, item.key)))
        for url in self.urls:
            if url_name(url) not in replaced:
                yield Link(url_name(url), url)

    def _path(self, item: Entry | OutputFile, key: int) -> Path:
        if isinstance(item, Entry):
            return self.spool.input(self.cluster, key)
        assert self.checkpoint is not None
        return self.spool.kept(self.cluster, self.checkpoint.directory) / str(key)

    async def send(self, request: Request) -> None:
        """61000: the execution point receives."""
        size = sum(entry.size for entry in self.entries)
        self.input_sent, self.input_again = False, True
        own, peer = await filetransfer.send_files(
            request.stream,
            self.items(),
            final=False,
            sandbox_bytes=size,
            over_limit_code=HoldCode.MAX_TRANSFER_INPUT_SIZE,
        )
        self.input_sent = own.ok and peer.ok
        self.input_again = not self.input_sent and (own.ok or own.retry) and (peer.ok or peer.retry)

    async def receive(self, request: Request) -> None:
        """61001: the execution point sends; a second time replaces what the first brought. What is not final is what
        the job is started again from: a checkpoint, or its files at an eviction."""
        if self.spool.outputs(self.cluster, self.run).exists():
            await trio.to_thread.run_sync(self.spool.remove_outputs, self.cluster, self.run)
        directory = self.spool.make_outputs(self.cluster, self.run)
        self.outputs = None
        sink = _Sink(directory)
        stated: list[bool] = []
        own, peer = await filetransfer.receive_files(
            request.stream, sink, limits=self.limits, on_header=lambda final, size: stated.append(final)
        )
        self._entering = own.ok and peer.ok
        try:
            if self._entering and stated == [True]:
                if self.beside is not None:
                    await self._add_beside(self.beside, directory, sink.files)
                self.outputs = sink.files
                self.on_output()
            elif self._entering and stated == [False]:
                await self._keep(directory, tuple(sink.files))
        finally:
            self._entering = False

    async def _add_beside(self, beside: Beside, directory: Path, files: list[OutputFile]) -> None:
        more = beside(directory, {file.name for file in files}, len(files))
        files += [OutputFile(name, 0o644, size, number) for name, size, number in more]
        if more:
            await trio.to_thread.run_sync(sync_directory, directory)

    async def _keep(self, directory: Path, files: tuple[OutputFile, ...]) -> None:
        before = self.checkpoint
        number = 0 if before is None else before.number + 1
        name = f"{self.proc}.{number}"
        await trio.to_thread.run_sync(self.spool.keep, directory, self.cluster, name)
        self.checkpoint = Checkpoint(number, name, files)
        self.on_checkpoint(self.checkpoint)
        if before is not None:
            await trio.to_thread.run_sync(self.spool.remove_kept, self.cluster, before.directory)

    async def serve(self, request: Request) -> None:
        """One connection; a second one of the same direction at the same time is refused. One that comes when the
        execution point has our acknowledgement of the first waits until that is entered: a checkpoint may be the next
        after a moment."""
        if self._entering and request.command == Command.FILETRANS_DOWNLOAD:
            with trio.move_on_after(ENTRY_S):
                await self.received()
        if request.command in self._busy:
            await filetransfer.refuse_transfer(request.stream)
            return
        ended = self._busy[request.command] = trio.Event()
        try:
            await (self.send(request) if request.command == Command.FILETRANS_UPLOAD else self.receive(request))
        except OSError as error:  # a full disk, a spool that is gone: this run's trouble, not the pool's end
            raise Refused("SPOOL", f"the pool's spool fails: {error}") from error
        finally:
            del self._busy[request.command]
            ended.set()

    async def received(self) -> None:
        """Return when no output is on its way in."""
        await self._over(Command.FILETRANS_DOWNLOAD)

    async def sent(self) -> None:
        """Return when no input is on its way out."""
        await self._over(Command.FILETRANS_UPLOAD)

    async def _over(self, command: Command) -> None:
        while (ended := self._busy.get(command)) is not None:
            await ended.wait()


@define
class _Sink:
    """Takes what arrives into `place`, under numbers."""

    place: Path
    files: list[OutputFile] = field(factory=list)
    _names: dict[str, bool] = field(factory=dict)  # name -> is a directory

    async def directory(self, name: str, mode: int) -> None:
        self._check(name)
        if self._names.get(name) is True:
            return
        self._enter(name, True)
        self.files.append(OutputFile(name, mode & 0o777, 0, None))

    async def file(self, name: str, mode: int, size: int, chunks: AsyncIterator[bytes]) -> None:
        self._check(name)
        self._enter(name, False)
        key = len(self.files)
        try:
            stored = await write(self.place / str(key), chunks)
        except SpoolTrouble as trouble:
            raise _not_stored(trouble) from trouble
        self.files.append(OutputFile(name, mode & 0o777 or 0o644, stored, key))

    async def url(self, name: str, url: str) -> None:
        raise PeerFault("state", "an execution point names no URLs to the pool")

    async def finish(self) -> Mapping[str, int | str]:
        """All of it is on the disk before it is acknowledged: one wait for many small files, not one for each."""
        keys = [file.key for file in self.files if file.key is not None]
        try:
            await trio.to_thread.run_sync(sync_files, self.place, keys)
        except SpoolTrouble as trouble:
            raise _not_stored(trouble) from trouble
        return {}

    async def proxy(self, name: str, exchange: Callable[[bytes], Awaitable[bytes]]) -> None:
        raise PeerFault("state", "an execution point delegates nothing to the pool")

    def _check(self, name: str) -> None:
        try:
            check_relative(name, "output")
        except BadJob as bad:
            raise filetransfer.StoreFailed(CANNOT_STORE, EPERM, str(bad)) from bad

    def _enter(self, name: str, is_directory: bool) -> None:
        if name in self._names:
            raise filetransfer.StoreFailed(CANNOT_STORE, EPERM, f"{name!r} comes twice")
        parent = name.rpartition("/")[0]
        if parent and self._names.get(parent) is not True:
            raise filetransfer.StoreFailed(CANNOT_STORE, EPERM, f"{name!r} comes before its directory")
        self._names[name] = is_directory


def _not_stored(trouble: SpoolTrouble) -> filetransfer.StoreFailed:
    return filetransfer.StoreFailed(CANNOT_STORE, ENOSPC if trouble.full else EIO, str(trouble))


class TransferServer:
    """Commands 61000 and 61001, for all runs."""

    def __init__(self, sessions: SessionTable) -> None:
        self._sessions = sessions
        self._by_session: dict[str, Transfer] = {}

    def open(self, claim_id: ClaimId, transfer: Transfer) -> None:
        session = filetransfer_session(claim_id, EXECUTE_SIDE)
        session.commands = frozenset({int(Command.FILETRANS_UPLOAD), int(Command.FILETRANS_DOWNLOAD)})
        session.level = "WRITE"
        self._sessions.add(session)
        self._by_session[session.sid] = transfer

    def close(self, claim_id: ClaimId) -> None:
        session = filetransfer_session(claim_id, EXECUTE_SIDE)
        if self._by_session.pop(session.sid, None) is not None:
            session.commands = frozenset({int(Command.FILETRANS_UPLOAD), int(Command.FILETRANS_DOWNLOAD)})
            session.expires_s = trio.current_time() + SESSION_AFTERLIFE_S
            self._sessions.add(session)

    async def serve(self, request: Request) -> None:
        said = await filetransfer.accept_transfer(request.stream)
        transfer = self._by_session.get(request.session.sid)
        if transfer is None or not hmac.compare_digest(said.encode("utf-8", "surrogateescape"), transfer.key.encode()):
            await filetransfer.refuse_transfer(request.stream)
            return
        await transfer.serve(request)
