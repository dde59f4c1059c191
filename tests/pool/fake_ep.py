"""A small execution point for the pool's tests: one partitionable slot, 'jobs' are functions in this process.

What it does, and a real startd with its starters does too (the pool relies on no more):
  advertises its slot with a private ad over one kept, token-authenticated connection;
  gives the presented claim id to a dynamic slot, answers with slot and leftovers, mints the next id first;
  answers ACTIVATE_CLAIM and then calls on that connection: -63, -77, 288, -81, input by 61000, -78,
  output by 61001, -65;
  answers DEACTIVATE at once; ends a claim at RELEASE_CLAIM; answers [int 0] to an unknown claim id.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import classad2
import trio
from attrs import define, field

from cedar import classads, delegation, filetransfer
from cedar.claims import SUBMIT_SIDE, ClaimId, filetransfer_session
from cedar.client import Negotiate, Resume, connect
from cedar.commands import VERSION, Command, Syscall, condor_version_text
from cedar.errors import PeerFault
from cedar.filetransfer import File
from cedar.server import Request, Served, Server, ServerPolicy
from cedar.sessions import SessionTable
from cedar.sinful import Sinful
from cedar.stream import CedarStream

Body = Callable[["FakeStarter"], Awaitable[None]]


@define
class MemorySink:
    """Keeps what arrives."""

    files: dict[str, bytes] = field(factory=dict)
    modes: dict[str, int] = field(factory=dict)
    directories: list[str] = field(factory=list)
    order: list[str] = field(factory=list)

    async def directory(self, name: str, mode: int) -> None:
        self.directories.append(name)
        self.order.append(name)

    async def file(self, name: str, mode: int, size: int, chunks: AsyncIterator[bytes]) -> None:
        self.files[name] = b"".join([bytes(chunk) async for chunk in chunks])
        self.modes[name] = mode
        self.order.append(name)

    async def url(self, name: str, url: str) -> None:
        raise PeerFault("state", "a fake starter fetches no URLs")

    async def finish(self) -> dict[str, int | str]:
        return {}

    async def proxy(self, name: str, exchange: Callable[[bytes], Awaitable[bytes]]) -> None:
        from pilot import credentials

        pending = credentials.make_request()
        self.files[name] = pending.complete(await exchange(pending.der))
        self.order.append(name)


class FakeStarter:
    """One activation, seen from the starter; a body calls these in its own order."""

    def __init__(self, ep: FakeEP, claim: ClaimId, stream: CedarStream, activation: Any) -> None:
        self.ep = ep
        self.claim = claim
        self.stream = stream
        self.activation = activation
        self.ad: Any = None
        self.sink = MemorySink()
        self.stopped = trio.Event()
        self.killed = trio.Event()

    async def call(self, op: int, *arguments: Any) -> Any:
        await self.stream.put(op, *arguments)
        reader = await self.stream.get()
        if (rval := reader.int()) < 0:
            raise OSError(reader.int(), f"call {op} answered {rval}")
        return reader

    async def begin(self) -> None:
        """Everything up to the point at which the job would run."""
        self.ad = (await self.call(Syscall.GET_JOB_INFO)).ad()
        info = classads.parse_old('Name = "slot1_1@fake"\nHasReconnect = false\n')
        await self.call(Syscall.REGISTER_STARTER_INFO, info)
        reader = await self.call(Syscall.GET_SEC_SESSION_INFO, "", "")
        self.parts = [reader.string() for _ in range(6)]
        await self.call(Syscall.REGISTER_JOB_INFO, classads.parse_old("CpusProvisioned = 1\n"))

    async def fetch_proxy(self) -> bytes:
        """303 and its frames: certificates as they come."""
        from pilot import credentials

        await self.stream.put(Syscall.GET_DELEGATED_PROXY, "", int(time.time()) + 600)
        pending = credentials.make_request()
        return pending.complete(await delegation.receive(self.stream, pending.der))

    async def _transfer(self, command: Command, key: str | None = None) -> CedarStream:
        session = filetransfer_session(self.claim)
        address = Sinful.parse(classads.get_str(self.ad, "TransferSocket"))
        return await filetransfer.open_transfer(
            address, command, session, key or classads.get_str(self.ad, "TransferKey")
        )

    async def stage_in(self, key: str | None = None) -> tuple[Any, Any]:
        async with await self._transfer(Command.FILETRANS_UPLOAD, key) as stream:
            return await filetransfer.receive_files(stream, self.sink)

    async def run(self, pid: int = 4711) -> None:
        await self.call(Syscall.BEGIN_EXECUTION)
        await self.call(Syscall.REGISTER_JOB_INFO, classads.parse_old(f'JobState = "Running"\nJobPid = {pid}\n'))

    async def stage_out(self, files: dict[str, bytes], *, final: bool = True) -> tuple[Any, Any]:
        async def items() -> AsyncIterator[filetransfer.Item]:
            for name, data in files.items():
                if name.endswith("/"):
                    yield filetransfer.Directory(name.rstrip("/"), 0o755)
                else:
                    yield File(name, 0o644, len(data), pieces(data))

        async with await self._transfer(Command.FILETRANS_DOWNLOAD) as stream:
            return await filetransfer.send_files(stream, items(), final=final, sandbox_bytes=1)

    async def exit(self, status: int = 0, reason: int = 100) -> None:
        await self.call(Syscall.JOB_EXIT, status, reason, classads.parse_old("ExitBySignal = false\n"))

    async def report(self, code: int, subcode: int, text: str) -> None:
        ad = classads.parse_old(
            f'MyType = "RemoteErrorEvent"\nEventTypeNumber = 21\n'
            f"HoldReasonCode = {code}\nHoldReasonSubCode = {subcode}\n"
        )
        classads.set_str(ad, "ErrorMsg", text)
        await self.stream.put(Syscall.ULOG, ad)


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    if data:
        yield data


async def echo(starter: FakeStarter) -> None:
    """The plain job: its output is its input, in upper case."""
    await starter.begin()
    await starter.stage_in()
    await starter.run()
    text = b"".join(data for name, data in sorted(starter.sink.files.items()) if name.endswith(".txt"))
    await starter.stage_out({"_condor_stdout": text.upper(), "_condor_stderr": b""})
    await starter.exit()


@define(eq=False)
class _Dynamic:
    claim: ClaimId
    name: str
    schedd: Sinful
    starter: FakeStarter | None = None


class FakeEP:
    """One startd. `body` is what every job does; change it between jobs."""

    def __init__(
        self, pool: Sinful, tokens_dir: Path, *, name: str = "fake", cpus: int = 2, version: str = "24.7.0"
    ) -> None:
        self.pool = pool
        self.tokens_dir = tokens_dir
        self.name = name
        self.cpus = cpus
        self.version = version
        self.body: Body = echo
        self.starters: list[FakeStarter] = []
        self.log: list[tuple[str, str]] = []  # (command, claim's public id)
        self.answer_activate = [1]
        self.keep_claims = True
        self._sessions = SessionTable()
        self._dynamic: dict[str, _Dynamic] = {}
        self._started = int(time.time())
        self._sequence = 0
        self._children = 0
        self._collector: CedarStream | None = None
        self._advertising = trio.Lock()
        self.changed = trio.Event()

    # Life

    @asynccontextmanager
    async def running(self) -> AsyncIterator[FakeEP]:
        try:
            async with trio.open_nursery() as nursery:
                listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
                port = listeners[0].socket.getsockname()[1]
                self.address = str(Sinful("127.0.0.1", port, {"noUDP": ""}))
                self._claim = self._mint()
                server = Server(self._table(), self._sessions, ServerPolicy())
                await nursery.start(server.serve, listeners)
                await self.advertise()
                yield self
                nursery.cancel_scope.cancel()
        finally:
            if self._collector is not None:
                with trio.CancelScope(shield=True):
                    await trio.aclose_forcefully(self._collector)

    def _table(self) -> dict[int, Served]:
        return {
            int(Command.REQUEST_CLAIM): Served("DAEMON", self._request),
            int(Command.ACTIVATE_CLAIM): Served("DAEMON", self._activate),
            int(Command.DEACTIVATE_CLAIM): Served("DAEMON", self._deactivate),
            int(Command.DEACTIVATE_CLAIM_FORCIBLY): Served("DAEMON", self._deactivate),
            int(Command.DEACTIVATE_CLAIM_JOB_DONE): Served("DAEMON", self._deactivate),
            int(Command.RELEASE_CLAIM): Served("DAEMON", self._release),
        }

    def _mint(self) -> ClaimId:
        self._sequence += 1
        claim = ClaimId.mint(self.address, self._started, self._sequence, self.version)
        self._sessions.add(claim.session(SUBMIT_SIDE))
        return claim

    def _note(self, what: str, claim: str) -> None:
        self.log.append((what, claim))
        self.changed.set()
        self.changed = trio.Event()

    async def seen(self, what: str, times: int = 1, seconds: float = 60.0) -> None:
        """Wait until a command has come so often."""
        with trio.fail_after(seconds):
            while sum(1 for name, _ in self.log if name == what) < times:
                await self.changed.wait()

    # Advertising

    def slot_ad(self) -> Any:
        free = self.cpus - len(self._dynamic)
        text = f"""MyType = "Machine"
Name = "slot1@{self.name}"
Machine = "{self.name}"
MyAddress = "{self.address}"
StartdIpAddr = "{self.address}"
PartitionableSlot = true
SlotType = "Partitionable"
SlotID = 1
State = "Unclaimed"
Activity = "Idle"
Cpus = {free}
Memory = {free * 1024}
Disk = {free * 1000000}
Arch = "X86_64"
OpSys = "LINUX"
HasFileTransfer = true
DaemonStartTime = {self._started}
Start = true
Requirements = Start && TARGET.RequestCpus <= Cpus && TARGET.RequestMemory <= Memory && TARGET.RequestDisk <= Disk
CondorVersion = "{condor_version_text(VERSION)}"
"""
        return classads.parse_old(text)

    async def advertise(self, claim: str | None = None, *, anew: bool = False) -> None:
        """One update; `anew`: on a new connection, as after the pool was away."""
        public = self.slot_ad()
        private = classad2.ClassAd()
        private["Name"], private["MyAddress"] = public["Name"], self.address
        private["ClaimId"] = claim or self._claim.text
        async with self._advertising:
            try:
                if self._collector is None or anew:
                    await self._connect_collector()
                    await self._collector_stream().put(public, private)
                else:
                    await self._collector.put(int(Command.UPDATE_STARTD_AD), public, private)
            except PeerFault:
                if anew:
                    raise

    async def _connect_collector(self) -> None:
        if self._collector is not None:
            await self._collector.aclose()
        security = Negotiate(self.tokens_dir, ("TOKEN",))
        self._collector = await connect(
            self.pool, Command.UPDATE_STARTD_AD, security, subsystem="STARTD", own_address=self.address
        )

    def _collector_stream(self) -> CedarStream:
        assert self._collector is not None
        return self._collector

    # Commands

    async def _request(self, request: Request) -> None:
        reader = await request.stream.get()
        claim_id, ad, schedd = reader.string(), reader.ad(), reader.string()
        self._note("request", request.session.sid)
        if claim_id != self._claim.text or len(self._dynamic) >= self.cpus or not classads.matches(self.slot_ad(), ad):
            await request.stream.put(0)
            return
        self._children += 1
        dynamic = _Dynamic(self._claim, f"slot1_{self._children}@{self.name}", Sinful.parse(schedd))
        self._dynamic[request.session.sid] = dynamic
        self._claim = self._mint()
        await request.stream.put(7, dynamic.claim.text, self._dynamic_ad(dynamic), 5, self._claim.text, self.slot_ad())

    def _dynamic_ad(self, dynamic: _Dynamic) -> Any:
        ad = self.slot_ad()
        ad["Name"] = dynamic.name
        ad["DynamicSlot"] = True
        ad["PartitionableSlot"] = False
        ad["State"] = "Claimed"
        ad["Cpus"], ad["Memory"], ad["Disk"] = 1, 1024, 1000000
        return ad

    async def _activate(self, request: Request) -> None:
        reader = await request.stream.get()
        claim_id, _, ad = reader.string(), reader.int(), reader.ad()
        self._note("activate", request.session.sid)
        dynamic = self._dynamic.get(request.session.sid)
        code = self.answer_activate.pop(0) if len(self.answer_activate) > 1 else self.answer_activate[0]
        if dynamic is None or claim_id != dynamic.claim.text:
            code = 0
        if code != 1 or dynamic is None:
            await request.stream.put(code, classads.parse_old('VacateReason = "not now"\nVacateReasonCode = 1031\n'))
            return
        await request.stream.put(1)
        starter = dynamic.starter = FakeStarter(self, dynamic.claim, request.stream, ad)
        self.starters.append(starter)
        try:
            await self.body(starter)
        except PeerFault as fault:
            self._note("starter-" + fault.code, request.session.sid)
        finally:
            dynamic.starter = None

    async def _deactivate(self, request: Request) -> None:
        await request.stream.get()
        self._note({403: "soft", 404: "hard", 413: "done"}[request.command], request.session.sid)
        dynamic = self._dynamic.get(request.session.sid)
        answer = classad2.ClassAd()
        answer["Start"] = dynamic is not None and self.keep_claims
        await request.stream.put(answer)
        if dynamic is not None and dynamic.starter is not None:
            (dynamic.starter.stopped if request.command == 403 else dynamic.starter.killed).set()
        if not self.keep_claims:
            self._dynamic.pop(request.session.sid, None)
            await self.advertise()

    async def _release(self, request: Request) -> None:
        await request.stream.get()
        dynamic = self._dynamic.pop(request.session.sid, None)
        self._note("release", request.session.sid)
        if dynamic is not None:
            if dynamic.starter is not None:
                dynamic.starter.killed.set()
                await dynamic.starter.stream.aclose()
            await self.advertise()

    async def alive(self, claim: ClaimId, schedd: Sinful) -> int:
        """One ALIVE to the pool; its answer."""
        session = claim.session(SUBMIT_SIDE)
        async with await connect(schedd, Command.ALIVE, Resume(session), subsystem="STARTD") as stream:
            await stream.put(claim.text)
            answer: int = (await stream.get()).int()
            return answer

    async def release_to_pool(self, claim: ClaimId, schedd: Sinful) -> None:
        self._dynamic.pop(claim.session_id, None)
        async with await connect(
            schedd, Command.RELEASE_CLAIM, Resume(claim.session(SUBMIT_SIDE)), subsystem="STARTD"
        ) as stream:
            await stream.put(claim.text)
