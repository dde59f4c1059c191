"""Our client against our server over real sockets."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from attrs import define, evolve, field

from cedar import server, tokens
from cedar.claims import SUBMIT_SIDE, ClaimId
from cedar.classads import from_wire
from cedar.client import Negotiate, Resume, connect
from cedar.commands import VERSION, Command
from cedar.errors import PeerFault, Refused
from cedar.security import MAX_HANDSHAKE_BYTES, Put
from cedar.security_client import Opening, Wishes, negotiate
from cedar.security_server import Caller
from cedar.server import Request, Served, Server, ServerPolicy
from cedar.sessions import Session, SessionTable
from cedar.sinful import Sinful
from cedar.stream import CedarStream

KEY = tokens.new_signing_key()
DOMAIN = "pool.example"
UPDATE, QUERY, DRAIN, HELD = 60, 5, 512, 500


@define
class Site:
    """A server with four commands, and what it told of failures."""

    directory: Path
    sessions: SessionTable
    table: dict[int, Served]
    address: Sinful = field(factory=lambda: Sinful("127.0.0.1", 0))
    faults: list[Exception] = field(factory=list)
    requests: list[Request] = field(factory=list)
    server: Server = field(init=False)

    def token(self, subject: str = f"condor@{DOMAIN}", key: bytes = KEY, **more: object) -> Path:
        """A directory with one token."""
        text = tokens.mint(key, "POOL", subject, DOMAIN, now_unix_s=time.time(), **more)  # type: ignore[arg-type]
        where = self.directory / f"tokens{len(list(self.directory.iterdir()))}"
        where.mkdir()
        (where / "token").write_text(f"# for tests\n{text}\n")
        return where


async def echo(request: Request) -> None:
    reader = await request.stream.get()
    await request.stream.put(1, reader.string())


def authorise(caller: Caller, level: str) -> bool:
    return level == "READ" or caller.identity == f"condor@{DOMAIN}"


@asynccontextmanager
async def site(tmp_path: Path, **options: object) -> AsyncIterator[Site]:
    keys = tmp_path / "keys"
    keys.mkdir()
    (keys / "POOL").write_bytes(KEY)
    here = Site(tmp_path, SessionTable(), {})

    async def handle(request: Request) -> None:
        here.requests.append(request)
        await echo(request)

    here.table |= {
        UPDATE: Served("ADVERTISE_STARTD", handle),
        QUERY: Served("READ", handle),
        DRAIN: Served("ADMINISTRATOR", handle),
        HELD: Served("WRITE", handle, admit=lambda session: False),
    }
    policy = ServerPolicy(keys, DOMAIN, ("TOKEN", "FS"), authorise)
    here.server = Server(
        here.table,
        here.sessions,
        policy,
        report=lambda peer, error: here.faults.append(error),
        **options,  # type: ignore[arg-type]
    )
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        here.address = Sinful("127.0.0.1", listeners[0].socket.getsockname()[1])
        await nursery.start(here.server.serve, listeners)
        yield here
        nursery.cancel_scope.cancel()


async def call(stream: CedarStream, text: str = "hello") -> tuple[int, str]:
    async with stream:
        await stream.put(text)
        reader = await stream.get()
        answer = reader.int(), reader.string()
        reader.end()
        return answer


async def test_token_then_resume(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        wishes = Negotiate(here.token(), ("TOKEN",))
        stream = await connect(here.address, UPDATE, wishes, subsystem="STARTD", own_address="<127.0.0.1:1>")
        assert stream.keyed
        session = stream.session
        assert session is not None
        assert await call(stream) == (1, "hello")
        assert session.method == "TOKEN"
        assert session.commands == {UPDATE, QUERY, DRAIN, HELD}
        again = await connect(here.address, UPDATE, Resume(session), subsystem="STARTD")
        assert await call(again, "again") == (1, "again")
        first, second = here.requests
        assert first.session is second.session
        assert (second.identity, second.method) == (f"condor@{DOMAIN}", "TOKEN")
        assert first.session.key == session.key


async def test_resume_without_response(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        claim = ClaimId.mint(str(here.address), 1, 1, "24.0.1")
        here.sessions.add(claim.session(SUBMIT_SIDE))
        quiet = Resume(claim.session(SUBMIT_SIDE), want_response=False)
        assert await call(await connect(here.address, QUERY, quiet, subsystem="SHADOW")) == (1, "hello")
        assert here.requests[0].identity == SUBMIT_SIDE


async def refusal(here: Site, command: int, security: Negotiate | Resume) -> Refused:
    with trio.fail_after(30), pytest.raises(Refused) as caught:
        await connect(here.address, command, security, subsystem="TOOL")
    return caught.value


async def test_wrong_tokens_are_refused_at_once(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        other_key = here.token(key=tokens.new_signing_key())
        expired = here.token(lifetime_s=3600.0)
        old = tokens.mint(KEY, "POOL", f"condor@{DOMAIN}", DOMAIN, None, 1.0, now_unix_s=1.0)
        (expired / "token").write_text(old)
        other_domain = here.token()
        foreign = tokens.mint(KEY, "POOL", "condor@x", "elsewhere", now_unix_s=time.time())
        (other_domain / "token").write_text(foreign)
        for directory in (other_key, expired, other_domain, tmp_path / "missing"):
            error = await refusal(here, UPDATE, Negotiate(directory, ("TOKEN",)))
            assert error.code == "TOKEN"
        assert len(here.sessions) == 0
        assert here.requests == []


async def test_scope_and_identity_limit_what_may_be_called(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        scoped = Negotiate(here.token(scope=("ADVERTISE_STARTD",)), ("TOKEN",))
        stream = await connect(here.address, UPDATE, scoped, subsystem="STARTD")
        assert stream.session is not None
        assert stream.session.commands == {UPDATE, QUERY}
        await call(stream)
        assert (await refusal(here, DRAIN, scoped)).code == "DENIED"
        stranger = Negotiate(here.token(subject=f"mallory@{DOMAIN}"), ("TOKEN",))
        assert (await refusal(here, UPDATE, stranger)).code == "DENIED"
        assert (await refusal(here, DRAIN, Resume(stream.session))).code == "DENIED"


async def test_anonymous_only_reads(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        nobody = Negotiate(None, (), "OPTIONAL")
        assert await call(await connect(here.address, QUERY, nobody, subsystem="TOOL")) == (1, "hello")
        assert here.requests[0].identity == "unauthenticated@unmapped"
        with pytest.raises(PeerFault):
            await connect(here.address, UPDATE, nobody, subsystem="TOOL")
        # An optional authentication that fails goes on anonymously.
        wrong = Negotiate(here.token(key=tokens.new_signing_key()), ("TOKEN",), "PREFERRED")
        assert await call(await connect(here.address, QUERY, wrong, subsystem="TOOL")) == (1, "hello")
        assert here.requests[1].identity == "unauthenticated@unmapped"


async def test_fs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cedar.handshake._FS_PARENT", str(tmp_path))
    async with site(tmp_path) as here:
        stream = await connect(here.address, QUERY, Negotiate(None, ("FS",)), subsystem="TOOL")
        await call(stream)
        assert here.requests[0].method == "FS"
        assert here.requests[0].identity.endswith(f"@{DOMAIN}")
        assert [name for name in os.listdir(tmp_path) if name.startswith("FS_")] == []


async def test_unknown_sessions_commands_and_declined_ones(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        ghost = Session("ghost", bytes(32), "", "")
        assert (await refusal(here, QUERY, Resume(ghost))).code == "SID_NOT_FOUND"
        claim = ClaimId.mint(str(here.address), 1, 1, "24.0.1").session(SUBMIT_SIDE)
        here.sessions.add(claim)
        assert (await refusal(here, HELD, Resume(claim))).code == "DENIED"
        # A new session is asked the same, whatever its level.
        assert (await refusal(here, HELD, Negotiate(here.token()))).code == "DENIED"
        assert (await refusal(here, 9999, Resume(claim))).code == "CMD_NOT_FOUND"
        with pytest.raises(PeerFault):
            await connect(here.address, 9999, Negotiate(here.token()), subsystem="TOOL")
        assert await call(await connect(here.address, QUERY, Resume(claim), subsystem="X")) == (1, "hello")
        wrong_key = evolve(claim, key=bytes(32))
        stream = await connect(here.address, QUERY, Resume(wrong_key), subsystem="X")
        with pytest.raises(PeerFault) as caught:
            await call(stream)
        assert caught.value.code == "closed"


async def raw(here: Site) -> CedarStream:
    transport = await trio.open_tcp_stream("127.0.0.1", here.address.port)
    return CedarStream(transport)


async def wait_for(condition: Callable[[], bool]) -> None:
    with trio.fail_after(30):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await trio.sleep(0.005)


@pytest.mark.parametrize("items", [(Command.QUERY_STARTD_ADS,), (b"x",), (60010, 7), ("text",)])
async def test_raw_commands_and_nonsense_are_closed(tmp_path: Path, items: tuple[object, ...]) -> None:
    async with site(tmp_path) as here:
        stream = await raw(here)
        await stream.put(*items)  # type: ignore[arg-type]
        with trio.fail_after(30), pytest.raises(PeerFault) as caught:
            await stream.get()
        assert caught.value.code == "closed"
        await wait_for(lambda: len(here.faults) == 1)
        await stream.aclose()


async def test_oversized_first_message_is_refused_before_it_arrives(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        transport = await trio.open_tcp_stream("127.0.0.1", here.address.port)
        await transport.send_all(b"\1" + (MAX_HANDSHAKE_BYTES * 2).to_bytes(4, "big"))
        with trio.fail_after(30):
            assert await transport.receive_some(1) == b""
        await wait_for(lambda: len(here.faults) == 1)
        await transport.aclose()
        fault = here.faults[0]
        assert isinstance(fault, PeerFault)
        assert fault.code == "limit"


async def test_a_first_message_of_expressions_is_refused(tmp_path: Path) -> None:
    """Reading 60 KB of tokens takes 30 ms, thirty times what a handshake takes: nobody gets that for nothing."""
    ad = from_wire([f"B{number} = " + "+".join(["x"] * 300) for number in range(4)])
    async with site(tmp_path) as here:
        stream = await raw(here)
        await stream.put(int(Command.AUTHENTICATE), ad)
        with trio.fail_after(30), pytest.raises(PeerFault):
            await stream.get()
        await wait_for(lambda: len(here.faults) == 1)
        await stream.aclose()
        fault = here.faults[0]
        assert isinstance(fault, PeerFault)
        assert (fault.code, "too long" in str(fault)) == ("limit", True)


async def test_silent_clients_are_dropped_and_kept_ones_are_not(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        kept = await connect(here.address, UPDATE, Negotiate(here.token()), subsystem="STARTD")
        await wait_for(lambda: len(here.requests) == 1)
        here.server._deadline_s = 0.2  # from now on: its handshake may take its time
        silent = await raw(here)
        with trio.fail_after(30), pytest.raises(PeerFault):
            await silent.get()
        await wait_for(lambda: len(here.faults) == 1)
        assert await call(kept) == (1, "hello")
        await silent.aclose()


async def test_connections_are_limited(tmp_path: Path) -> None:
    async with site(tmp_path, max_connections=1) as here:
        one = await connect(here.address, UPDATE, Negotiate(here.token()), subsystem="STARTD")
        with pytest.raises(PeerFault):
            await connect(here.address, UPDATE, Negotiate(here.token()), subsystem="STARTD")
        assert await call(one) == (1, "hello")


async def test_strangers_make_room_for_those_who_mean_it(tmp_path: Path) -> None:
    async with site(tmp_path, max_connections=3, max_handshakes=1) as here:
        silent = [await raw(here) for _ in range(5)]
        for _ in range(3):
            stream = await connect(here.address, UPDATE, Negotiate(here.token()), subsystem="STARTD")
            assert await call(stream) == (1, "hello")
        await wait_for(lambda: len(here.faults) >= 2)
        assert {fault.code for fault in here.faults if isinstance(fault, PeerFault)} == {"timeout"}
        for stream in silent:
            await stream.aclose()


async def test_who_may_do_no_more_than_a_stranger_is_marked_so(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        for subject, common in ((f"alice@{DOMAIN}", True), (f"condor@{DOMAIN}", False)):
            stream = await connect(here.address, QUERY, Negotiate(here.token(subject)), subsystem="TOOL")
            assert await call(stream) == (1, "hello")
            assert here.requests[-1].session.common is common


async def test_who_begins_a_handshake_and_says_no_more_keeps_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "TURN_WITHIN_S", 0.2)
    async with site(tmp_path, max_handshakes=1) as here:
        begun = [await raw(here) for _ in range(3)]
        opening = Opening(UPDATE, str(here.address), "STARTD", VERSION, None, 1)
        for stream in begun:
            action = next(negotiate(opening, Wishes(("FS",), "REQUIRED", ()), now_s=0.0, now_unix_s=0.0))
            assert isinstance(action, Put)
            await stream.put(*action.items)
        one = await connect(here.address, UPDATE, Negotiate(here.token()), subsystem="STARTD")
        assert await call(one) == (1, "hello")
        for stream in begun:
            await stream.aclose()


async def test_connections_never_take_the_last_descriptors(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (120, hard))
    try:
        async with site(tmp_path) as here:
            silent = [await raw(here) for _ in range(30)]  # both ends are in this process
            stream = await connect(here.address, UPDATE, Negotiate(here.token()), subsystem="STARTD")
            assert await call(stream) == (1, "hello")
            assert len(os.listdir("/proc/self/fd")) < 120
            for other in silent:
                await other.aclose()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_somebody_without_a_name_does_not_stay(tmp_path: Path) -> None:
    async with site(tmp_path, anonymous_deadline_s=0.2) as here:
        kept = await connect(here.address, UPDATE, Negotiate(here.token()), subsystem="STARTD")
        nobody = await connect(here.address, QUERY, Negotiate(None, (), "NEVER"), subsystem="TOOL")
        with trio.fail_after(30), pytest.raises(PeerFault):
            await nobody.get()
        await nobody.aclose()
        assert await call(kept) == (1, "hello")


@pytest.mark.parametrize("host", ["a..b", "." * 3, "x" * 64])
async def test_a_name_that_cannot_be_looked_up_is_the_peers_fault(host: str) -> None:
    with pytest.raises(PeerFault) as caught:
        await connect(Sinful.parse(f"<{host}:1>"), QUERY, Negotiate(), subsystem="TOOL")
    assert caught.value.code == "address"


async def test_nobody_listens() -> None:
    with pytest.raises(PeerFault) as caught:
        await connect(Sinful("127.0.0.1", 1), QUERY, Negotiate(), subsystem="TOOL")
    assert caught.value.code == "closed"
    assert "refused" in caught.value.text


async def test_a_silent_server_is_a_timeout() -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    address = Sinful("127.0.0.1", listeners[0].socket.getsockname()[1])
    with pytest.raises(PeerFault) as caught:
        await connect(address, QUERY, Negotiate(), subsystem="TOOL", deadline_s=0.05)
    assert caught.value.code == "timeout"
    await listeners[0].aclose()
