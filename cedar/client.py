"""Connect to a daemon and start a command."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import trio
from attrs import field, frozen

from cedar import handshake, security_client, tokens
from cedar.commands import VERSION, Command
from cedar.errors import PeerFault
from cedar.security import HANDSHAKE_DEADLINE_S, MAX_HANDSHAKE_BYTES, METHOD_BITS, Handshake
from cedar.sessions import Session
from cedar.sinful import Sinful
from cedar.stream import CedarStream
from cedar.tls import ClientTls

# The shared port's name for the process that listens itself: no other process takes over.
_SHARED_PORT_SELF = "self"
_NO_DEADLINE = -1


@frozen
class Resume:
    """Use a session that both ends know."""

    session: Session
    want_response: bool = True  # False only for peers older than 9.9


@frozen
class Negotiate:
    """Make a new session. `authentication`: REQUIRED, PREFERRED, OPTIONAL or NEVER."""

    tokens_dir: Path | None = None
    methods: tuple[str, ...] = field(default=("TOKEN", "FS"))
    authentication: str = "REQUIRED"
    trust_domain: str | None = None
    # For SSL, and for SCITOKENS without our certificate; the second gives the token. Each may raise MethodFailed.
    tls: ClientTls | None = None
    anonymous_tls: ClientTls | None = None
    scitoken: Callable[[], str] | None = None

    @methods.validator
    def _known(self, attribute: object, value: tuple[str, ...]) -> None:
        if unknown := set(value) - set(METHOD_BITS):
            raise ValueError(f"unknown authentication methods: {', '.join(sorted(unknown))}")


async def connect(
    address: Sinful,
    command: int,
    security: Resume | Negotiate,
    *,
    subsystem: str,
    own_address: str | None = None,
    deadline_s: float = HANDSHAKE_DEADLINE_S,
    version: str = VERSION,
) -> CedarStream:
    """A keyed stream on which the command's payload may follow; `stream.session` is the session.

    Args:
        address: where to; behind a shared port with its `sock`.
        command: sent in the handshake, not again.
        security: a known session, or how to make one.
        subsystem: what we are: "STARTD", "STARTER", "TOOL", ...
        own_address: the caller's own sinful string, for daemons.
        deadline_s: for connection and handshake together.
        version: what we say we are; peers adapt to it.

    Raises Refused when the peer says no (its code, "TOKEN", "METHODS"), PeerFault otherwise ("closed" when
    nobody listens, "timeout"). Cancelling closes the connection.
    """
    try:
        with trio.fail_after(deadline_s):
            return await _connect(address, command, security, subsystem, own_address, version)
    except trio.TooSlowError as error:
        where = f"{address.host}:{address.port}"
        raise PeerFault("timeout", f"no connection to {where} in {deadline_s:g} s") from error


async def _connect(
    address: Sinful,
    command: int,
    security: Resume | Negotiate,
    subsystem: str,
    own_address: str | None,
    version: str,
) -> CedarStream:
    opening = security_client.Opening(command, str(address), subsystem, version, own_address, os.getpid())
    stream = await dial(address, subsystem)
    try:
        stream.session = await handshake.run(stream, _handshake(address, opening, security))
        stream.lift_limit()
    except BaseException:  # cancelled too: nobody else would close it
        await trio.aclose_forcefully(stream)
        raise
    return stream


async def dial(address: Sinful, own_name: str) -> CedarStream:
    """A connection on which nothing was said yet to whom it leads; `own_name` is for the log of a shared port.

    Raises PeerFault "closed", "address". Cancelling closes the connection.
    """
    stream = await _dial(address)
    try:
        await _pass_shared_port(stream, address, own_name)
    except BaseException:  # cancelled too: nobody else would close it
        await trio.aclose_forcefully(stream)
        raise
    return stream


async def _dial(address: Sinful) -> CedarStream:
    try:
        transport = await trio.open_tcp_stream(address.host, address.port)
    except UnicodeError as error:  # the resolver's word for an empty or too long part of a name
        raise PeerFault("address", "the host of an address is no name that could be looked up") from error
    except OSError as error:
        where = f"{address.host}:{address.port}"
        raise PeerFault("closed", f"cannot connect to {where}: {_reason(error)}") from error
    return CedarStream(transport, handshake_limit_bytes=MAX_HANDSHAKE_BYTES)


def _reason(error: OSError) -> str:
    """trio says of many addresses that all failed, and keeps the reason as the cause."""
    causes = getattr(error.__cause__, "exceptions", None)
    inner = causes[0] if causes else error.__cause__ or error
    return str(inner)


async def _pass_shared_port(stream: CedarStream, address: Sinful, own_name: str) -> None:
    if address.sock is None:
        return
    stream.shared_port = address.sock
    await stream.put(int(Command.SHARED_PORT_CONNECT), address.sock, own_name, _NO_DEADLINE, 0)
    if address.sock != _SHARED_PORT_SELF:
        stream.reset_digests()


def _handshake(address: Sinful, opening: security_client.Opening, security: Resume | Negotiate) -> Handshake[Session]:
    match security:
        case Resume(session, want_response):
            yield from security_client.resume(opening, session, want_response=want_response)
            return session
        case Negotiate():
            wishes = security_client.Wishes(
                security.methods,
                security.authentication,
                tokens.load_tokens(security.tokens_dir) if security.tokens_dir is not None else (),
                security.trust_domain,
                security.tls.context if security.tls else None,
                security.anonymous_tls.context if security.anonymous_tls else None,
                address.params.get("alias") or address.host,
                security.scitoken,
            )
            return (
                yield from security_client.negotiate(opening, wishes, now_s=trio.current_time(), now_unix_s=time.time())
            )
