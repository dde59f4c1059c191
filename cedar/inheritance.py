"""What a daemon that starts another tells it, by two variables of its environment. Texts in, values out.

CONDOR_INHERIT: words between blanks. The parent's pid and address; sockets to go on with, up to a word 0; perhaps the
place behind a shared port; the sockets to listen on, up to a word 0. A socket is the word 1 (TCP) or 2 (UDP) and a word
of fields ended by ``*`` whose first is the descriptor. CONDOR_PRIVATE_INHERIT: SessionKey: and FamilySessionKey:, each
followed by a text of a claim id's form. Which names and in which order: DaemonCore's Inherit and Create_Process.
"""

from __future__ import annotations

import re

from attrs import field, frozen

from cedar.claims import ClaimId
from cedar.errors import PeerFault
from cedar.sessions import Session
from cedar.sinful import Sinful

PUBLIC, PRIVATE = "CONDOR_INHERIT", "CONDOR_PRIVATE_INHERIT"
# The secret directory of the names behind a shared port; it stands in CONDOR_INHERIT, too.
COOKIE = "CONDOR_PRIVATE_SHARED_PORT_COOKIE"
# Seen: 300 and 2,000 characters. The list of commands in a session makes the second long.
MAX_CHARS = 65_536
MAX_WORDS = 64
_TCP, _UDP, _END = "1", "2", "0"
_SHARED_PORT = "SharedPort:"
_SESSION, _FAMILY = "SessionKey:", "FamilySessionKey:"
_PID = re.compile(r"[1-9][0-9]{0,9}")
# As condor_shared_port allows them.
_NAME = re.compile(r"[A-Za-z0-9._-]{1,100}")
_DESCRIPTOR = re.compile(r"([0-9]{1,9})\*")
# Identities of the two sessions: who is at their other end.
PARENT, RELATIVE = "condor@parent", "condor@family"
METHOD = "FAMILY"


@frozen
class Endpoint:
    """A place behind a shared port: the name of the Unix socket, and the descriptor that listens at it."""

    name: str
    fd: int


@frozen
class Inheritance:
    """``listeners`` are TCP; ``unwanted`` are descriptors that nobody here uses and somebody has to close."""

    parent_pid: int
    parent: Sinful
    listeners: tuple[int, ...] = ()
    unwanted: tuple[int, ...] = ()
    endpoint: Endpoint | None = None
    session: ClaimId | None = field(default=None, repr=False)
    family: ClaimId | None = field(default=None, repr=False)


def parse(public: str, private: str) -> Inheritance:
    """Both variables' texts; an empty ``private`` is no secret.

    Raises PeerFault("inherit") on anything of another form.
    """
    if len(public) > MAX_CHARS or len(private) > MAX_CHARS:
        raise _fault("it is too long")
    words = _Words(public.split(" ", MAX_WORDS + 1))
    pid = words.next("the parent's pid")
    if _PID.fullmatch(pid) is None:
        raise _fault("it does not begin with a pid")
    parent = _address(words.next("the parent's address"))
    carried = _sockets(words)
    endpoint = _endpoint(words)
    listeners, others = _sockets(words)
    session, family = _secrets(private)
    return Inheritance(int(pid), parent, listeners, (*carried[0], *carried[1], *others), endpoint, session, family)


class _Words:
    def __init__(self, words: list[str]) -> None:
        if len(words) > MAX_WORDS:
            raise _fault("it has too many words")
        self._left = [word for word in words if word]

    def next(self, what: str) -> str:
        if not self._left:
            raise _fault(f"{what} is missing")
        return self._left.pop(0)

    def takes(self, prefix: str) -> str | None:
        """What follows ``prefix`` in the next word, if it begins so."""
        if not self._left or not self._left[0].startswith(prefix):
            return None
        return self._left.pop(0).removeprefix(prefix)


def usable(claim: ClaimId, identity: str) -> Session | None:
    """The session that both ends know, for commands of an administrator's level; None if it has no AES."""
    said = claim.attributes()
    methods = said.get("cryptomethodslist", said.get("cryptomethods", "")).upper().split(".")
    if "AES" not in methods or said.get("encryption", "").upper() != "YES":
        return None
    return Session(claim.session_id, claim.key(), identity, METHOD, None, "ADMINISTRATOR")


def _sockets(words: _Words) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(TCP, UDP) up to the 0."""
    found: dict[str, list[int]] = {_TCP: [], _UDP: []}
    while (kind := words.next("the end of the sockets")) != _END:
        if kind not in found:
            raise _fault("it has a socket that is neither TCP nor UDP")
        found[kind].append(_descriptor(words.next("a socket")))
    return tuple(found[_TCP]), tuple(found[_UDP])


def _endpoint(words: _Words) -> Endpoint | None:
    text = words.takes(_SHARED_PORT)
    if text is None:
        return None
    path, mark, socket = text.partition("*")
    name = path.rpartition("/")[2]
    if not mark or _NAME.fullmatch(name) is None:
        raise _fault("its place behind a shared port has no name")
    return Endpoint(name, _descriptor(socket))


def _descriptor(text: str) -> int:
    found = _DESCRIPTOR.match(text)
    if found is None:
        raise _fault("a socket has no descriptor")
    return int(found[1])


def _secrets(private: str) -> tuple[ClaimId | None, ClaimId | None]:
    session = family = None
    for word in private.split():
        if word.startswith(_SESSION):
            session = _claim(word.removeprefix(_SESSION))
        elif word.startswith(_FAMILY):
            family = _claim(word.removeprefix(_FAMILY))
    return session, family


def _claim(text: str) -> ClaimId:
    try:
        return ClaimId.parse(text)
    except PeerFault:
        raise _fault("a session is not of the form ID#[INFO]KEY") from None


def _address(text: str) -> Sinful:
    try:
        return Sinful.parse(text)
    except PeerFault:
        raise _fault("the parent's address is none") from None


def _fault(text: str) -> PeerFault:
    return PeerFault("inherit", f"{PUBLIC} or {PRIVATE} is not what a master of HTCondor gives: {text}")
