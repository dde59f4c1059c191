"""Being reached through a broker (HTCondor's CCB): by a daemon that nobody can connect to, but that can connect out.

The daemon keeps a connection to the broker. Who wants to reach it asks the broker, the broker tells it, and it connects
to whoever asked and is the *server* on that connection (wire reference 5.2).
"""

from __future__ import annotations

import trio
from attrs import field, frozen
from classad2 import ClassAd

from cedar.classads import evaluate, get_int, get_str, set_str
from cedar.client import dial
from cedar.commands import Command
from cedar.errors import PeerFault
from cedar.sinful import MAX_CHARS, Sinful
from cedar.stream import CedarStream

# A broker's number and its own address; cookies and ids are some ten digits.
MAX_ID_CHARS = 4_096


@frozen
class Registration:
    """What a broker knows us by: ``ccbid`` is ADDRESS#NUMBER, part of our address; the cookie keeps it ours."""

    ccbid: str
    cookie: str = field(default="", repr=False)


@frozen
class Request:
    """Somebody at ``address`` waits for us to connect; ``connect_id`` shows that we are who was asked.

    Both are a stranger's words, which the broker passes on as they are.
    """

    address: str
    connect_id: str = field(repr=False)
    request_id: str


async def register(stream: CedarStream, name: str, earlier: Registration | None) -> Registration:
    """The first message on a connection for CCB_REGISTER. Who brings what an earlier connection was given keeps its id.

    Raises PeerFault: "closed", "ccb" for an answer that is none. Cancelling leaves the connection of no use.
    """
    ad = ClassAd({"Command": int(Command.CCB_REGISTER)})
    set_str(ad, "Name", name)
    if earlier is not None:
        set_str(ad, "CCBID", earlier.ccbid)
        set_str(ad, "ClaimId", earlier.cookie)
    await stream.put(ad)
    answer = (await stream.get()).ad()
    ccbid, cookie = get_str(answer, "CCBID", ""), get_str(answer, "ClaimId", "")
    if get_int(answer, "Command", 0) != Command.CCB_REGISTER or not _is_ccbid(ccbid):
        raise PeerFault("ccb", "the broker does not say by which id we are known")
    if len(cookie) > MAX_ID_CHARS:
        raise PeerFault("ccb", f"the broker's cookie has {len(cookie)} characters, more than {MAX_ID_CHARS}")
    return Registration(ccbid, cookie)


def _is_ccbid(text: str) -> bool:
    broker, _, number = text.rpartition("#")
    return len(text) <= MAX_ID_CHARS and number.isdecimal() and not set(broker) & set("<> \t\n") and bool(broker)


def heartbeat() -> ClassAd:
    """What each end says from time to time."""
    return ClassAd({"Command": int(Command.ALIVE)})


def request_of(ad: ClassAd) -> Request | None:
    """What a broker's message asks for; None for its sign of life.

    Raises PeerFault("ccb") for what no broker says. What only the one who asks can have said is for ``call_back`` to
    refuse: it must not cost the connection to the broker.
    """
    command = get_int(ad, "Command", 0)
    if command == Command.ALIVE:
        return None
    if command != Command.CCB_REQUEST:
        raise PeerFault("ccb", f"the broker says {command}, which is nothing that a broker says")
    names = ("ClaimId", "RequestID")
    connect_id, request_id = (str(evaluate(ad, name)) if name in ad else "" for name in names)
    if not request_id or len(request_id) > MAX_ID_CHARS:
        raise PeerFault("ccb", "a request without its id")
    return Request(get_str(ad, "MyAddress", "")[:MAX_CHARS], connect_id[:MAX_ID_CHARS], request_id)


def _as_ad(request: Request) -> ClassAd:
    ad = ClassAd()
    set_str(ad, "ClaimId", request.connect_id)
    set_str(ad, "RequestID", request.request_id)
    set_str(ad, "MyAddress", request.address)
    return ad


def outcome(request: Request, fault: str = "") -> ClassAd:
    """What the broker is told of a request; it tells whoever asked."""
    ad = _as_ad(request)
    ad["Result"] = not fault
    if fault:
        set_str(ad, "ErrorString", fault)
    return ad


async def call_back(request: Request, own_name: str, deadline_s: float) -> trio.SocketStream:
    """The connection that somebody waits for; he speaks first on it.

    Raises PeerFault: "closed", "timeout", "address", "ccb". Cancelling closes it.
    """
    if not 0 < len(request.connect_id) < MAX_ID_CHARS:
        raise PeerFault("ccb", "a request without an id that could be shown to who asked")
    address = Sinful.parse(request.address)
    try:
        with trio.fail_after(deadline_s):
            stream = await dial(address, own_name)
            try:
                await stream.put(int(Command.CCB_REVERSE_CONNECT), _as_ad(request))
                return stream.detach()
            except BaseException:
                await trio.aclose_forcefully(stream)
                raise
    except trio.TooSlowError as error:
        where = f"{address.host}:{address.port}"
        raise PeerFault("timeout", f"no connection to {where} in {deadline_s:g} s") from error
