"""Listen for commands: handshake, then the command's handler. One task a connection, a limited number."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from attrs import field, frozen

from cedar import handshake, security_server, tokens
from cedar.commands import VERSION
from cedar.errors import PeerFault, Refused
from cedar.security import HANDSHAKE_DEADLINE_S, MAX_HANDSHAKE_BYTES
from cedar.security_server import Caller, SslSide
from cedar.sessions import Session, SessionTable, is_stranger
from cedar.stream import CedarStream

# Kept connections (one a startd at a pool) count too. Each costs about 100 KiB here and a descriptor: never more than
# half of what this process may open, or any account of the machine could leave it without one.
MAX_CONNECTIONS = 4_096
# A handshake costs about 1 ms of CPU; strangers must not crowd out the rest.
MAX_HANDSHAKES = 256
# Who has waited so long for his turn takes that of the slowest: who means it needs some round trips, no seconds.
TURN_WITHIN_S = 2.0
# Who told no name has so long for the whole command: the longest query of a tool over a slow line.
ANONYMOUS_DEADLINE_S = 60.0
_SWEEP_S = 60.0


@frozen
class Request:
    """One command, ready for its payload."""

    command: int
    stream: CedarStream
    session: Session
    identity: str
    method: str
    permits: Callable[[int], bool]  # may a later command come on this connection?
    fresh: bool = False  # the peer has shown who it is; else its first message will show that it has the key


def _admit_all(session: Session) -> bool:
    return True


@frozen
class Served:
    """A command's level and handler.

    `admit` is asked when a session is resumed for it, before the peer sends its payload: False is DENIED in
    the answer, and the session stays good.
    """

    level: str
    handle: Callable[[Request], Awaitable[None]]
    admit: Callable[[Session], bool] = _admit_all


def _readers(caller: Caller, level: str) -> bool:
    return level == "READ"


@frozen
class ServerPolicy:
    """Who may negotiate a new session, and for what.

    methods in our order of preference; ssl is needed for SSL. authorise decides about every level; at anonymous_levels
    somebody without a name may ask, too.
    """

    signing_keys_dir: Path | None = None
    trust_domain: str = "localhost"
    methods: tuple[str, ...] = ("TOKEN",)
    authorise: Callable[[Caller, str], bool] = _readers
    anonymous_levels: frozenset[str] = field(default=frozenset({"READ"}), converter=frozenset)
    pool_key_file: Path | None = None  # the signing key named POOL, when it is elsewhere
    ssl: SslSide | None = None


def _ignore(peer: str, error: Exception) -> None:
    return None


def _affordable() -> int:
    """Half of the descriptors that this process may open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else max(1, soft // 2)


class Server:
    """Serves a table of commands. New commands may be added to the table while it runs."""

    def __init__(
        self,
        table: Mapping[int, Served],
        sessions: SessionTable,
        policy: ServerPolicy,
        *,
        version: str = VERSION,
        max_connections: int = MAX_CONNECTIONS,
        max_handshakes: int = MAX_HANDSHAKES,
        handshake_deadline_s: float = HANDSHAKE_DEADLINE_S,
        anonymous_deadline_s: float = ANONYMOUS_DEADLINE_S,
        report: Callable[[str, Exception], None] = _ignore,
    ) -> None:
        """`report(peer, error)` hears of every connection that ended in PeerFault or Refused."""
        self._table = table
        self._sessions = sessions
        self._policy = policy
        self._version = version
        self._max_connections = min(max_connections, _affordable())
        self._anonymous_s = anonymous_deadline_s
        self._strangers: dict[trio.CancelScope, None] = {}  # handshakes under way, the oldest first
        self._handshakes = trio.Semaphore(max_handshakes)
        self._turns: dict[trio.CancelScope, None] = {}  # those whose turn it is, the oldest first
        self._deadline_s = handshake_deadline_s
        self._report = report
        self._connections = 0

    async def serve(
        self,
        listeners: Sequence[trio.abc.Listener[trio.SocketStream]],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until cancelled; started when it accepts. Cancelling closes all connections and listeners.

        An exception of a handler other than PeerFault and Refused ends the server: it is our bug.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._sweep)
            await nursery.start(trio.serve_listeners, self._connection, listeners)
            task_status.started()

    async def _sweep(self) -> None:
        while True:
            await trio.sleep(_SWEEP_S)
            self._sessions.expire(trio.current_time())

    async def _connection(self, transport: trio.SocketStream) -> None:
        if self._connections >= self._max_connections and not self._drop_a_stranger():
            await trio.aclose_forcefully(transport)
            return
        stream = CedarStream(transport, handshake_limit_bytes=MAX_HANDSHAKE_BYTES)
        self._connections += 1
        try:
            await self._serve_stream(stream)
        finally:
            self._connections -= 1
            with trio.CancelScope(shield=True):  # closing a socket does not wait
                await stream.aclose()

    def _drop_a_stranger(self) -> bool:
        """Give up the oldest handshake for a newcomer: whoever means it takes milliseconds for his."""
        scope = next(iter(self._strangers), None)
        if scope is None:
            return False
        del self._strangers[scope]
        scope.cancel()
        return True

    async def _serve_stream(self, stream: CedarStream) -> None:
        try:
            request = await self._accept(stream)
            if request is None:
                return
            limit_s = self._anonymous_s if is_stranger(request.identity) else math.inf
            with trio.move_on_after(limit_s) as scope:
                await self._table[request.command].handle(request)
            if scope.cancelled_caught:
                raise PeerFault("timeout", "a command of somebody without a name took too long")
        except (PeerFault, Refused) as error:
            self._report(stream.peer, error)

    async def _accept(self, stream: CedarStream) -> Request | None:
        """The command that comes; None for a client that only asked what it may (condor_ping)."""
        with trio.move_on_after(self._deadline_s) as scope:
            self._strangers[scope] = None
            try:
                first = await stream.get()  # waiting for it costs nothing, so it takes nobody's turn
                async with self._turn(scope):
                    accepted = await handshake.run(stream, security_server.accept(first, self._side(stream)))
            finally:
                self._strangers.pop(scope, None)
        if scope.cancelled_caught:
            raise PeerFault("timeout", "the handshake took too long, or newcomers needed its place")
        stream.lift_limit()
        session = accepted.session
        stream.session = session
        if accepted.only_asked:
            return None
        permits = self._permits(session)
        return Request(
            accepted.command, stream, session, session.identity, session.method, permits, fresh=accepted.fresh
        )

    @asynccontextmanager
    async def _turn(self, scope: trio.CancelScope) -> AsyncIterator[None]:
        """So many handshakes at a time; those that began theirs and say no more must not keep out the others."""
        while True:
            with trio.move_on_after(TURN_WITHIN_S) as waiting:
                await self._handshakes.acquire()
            if not waiting.cancelled_caught:
                break
            slowest = next(iter(self._turns), None)
            if slowest is not None:
                del self._turns[slowest]
                slowest.cancel()
        self._turns[scope] = None
        try:
            yield
        finally:
            self._turns.pop(scope, None)
            self._handshakes.release()

    def _permits(self, session: Session) -> Callable[[int], bool]:
        def permits(command: int) -> bool:
            served = self._table.get(command)
            return served is not None and session.permits(command, served.level)

        return permits

    def _side(self, stream: CedarStream) -> security_server.Side:
        policy, table = self._policy, self._table
        return security_server.Side(
            levels={command: served.level for command, served in table.items()},
            sessions=self._sessions,
            methods=policy.methods,
            trust_domain=policy.trust_domain,
            authorise=policy.authorise,
            anonymous_levels=policy.anonymous_levels,
            admit=lambda command, session: table[command].admit(session),
            version=self._version,
            now_s=trio.current_time(),
            now_unix_s=time.time(),
            signing_keys=tokens.load_signing_keys(policy.signing_keys_dir, policy.pool_key_file),
            ssl=policy.ssl,
            host=stream.endpoints()[1][0],
        )
