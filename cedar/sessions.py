"""Security sessions: what a later connection resumes. Pure; time comes in as monotonic seconds."""

from __future__ import annotations

from attrs import define, field

from cedar.errors import Refused

# Whom nothing is known of.
ANONYMOUS = "unauthenticated@unmapped"
# Whoever is known to a method, as by a certificate, but to nobody here, is of this domain.
_UNMAPPED = "@unmapped"
# Their sessions last a minute; more of them at once are somebody's flood, which must not crowd out claims.
MAX_ANONYMOUS = 1_000
# A startd has a handful a slot; a pool of 1,000 pilots with 64 slots each stays below.
MAX_SESSIONS = 200_000
MAX_SID_CHARS = 4_096


# What a level includes, as in stock's hierarchy.
_IMPLIED = {
    "WRITE": frozenset({"WRITE", "READ"}),
    "NEGOTIATOR": frozenset({"NEGOTIATOR", "READ"}),
    "ADMINISTRATOR": frozenset({"ADMINISTRATOR", "WRITE", "READ"}),
    "DAEMON": frozenset({"DAEMON", "WRITE", "READ", "ADVERTISE_STARTD", "ADVERTISE_SCHEDD", "ADVERTISE_MASTER"}),
}


def is_stranger(identity: str) -> bool:
    """Whether it is nobody's here."""
    return identity.endswith(_UNMAPPED)


def implied(level: str) -> frozenset[str]:
    """The level and all that it includes."""
    return _IMPLIED.get(level, frozenset({level}))


@define(eq=False)
class Session:
    """One session. Whoever has id and key is the peer."""

    sid: str
    key: bytes = field(repr=False)
    identity: str
    method: str
    commands: frozenset[int] | None = None  # None: by level
    level: str = "READ"
    expires_s: float | None = None
    # Without use for so long it is dropped too; None: never.
    lease_s: float | None = None
    used_s: float | None = None
    # Of somebody known who may do no more than a stranger, as any account of this machine.
    common: bool = False
    # Of `commands` those without a payload, where the id is a secret, too: nothing on the connection shows that the
    # peer has the key, and the id comes in clear. So they count on the first connection that shows the id, and never
    # again.
    once: frozenset[int] = frozenset()
    shown: bool = False

    def permits(self, command: int, level: str) -> bool:
        """True when a command of this level may be called with it."""
        if self.shown and command in self.once:
            return False
        if self.commands is not None:
            return command in self.commands
        return level in implied(self.level)

    def over(self, now_s: float) -> bool:
        """True when expired, or not used within its lease."""
        if self.expires_s is not None and now_s >= self.expires_s:
            return True
        return self.lease_s is not None and self.used_s is not None and now_s >= self.used_s + self.lease_s


class SessionTable:
    """Sessions by id, at most `limit` of them."""

    def __init__(self, *, limit: int = MAX_SESSIONS) -> None:
        self._limit = limit
        self._sessions: dict[str, Session] = {}
        self._anonymous: dict[str, None] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def add(self, session: Session) -> None:
        """Replaces one of the same id. Raises Refused("FULL") at the limit; of strangers' and of those who may do no
        more than they the oldest makes room."""
        if session.sid not in self._sessions and len(self._sessions) >= self._limit:
            raise Refused("FULL", "too many security sessions")
        if len(session.sid) > MAX_SID_CHARS:
            raise Refused("SID", "a session id is too long")
        self._sessions[session.sid] = session
        if session.common or is_stranger(session.identity):
            self._anonymous[session.sid] = None
            if len(self._anonymous) > MAX_ANONYMOUS:
                self.drop(next(iter(self._anonymous)))

    def get(self, sid: str, now_s: float) -> Session | None:
        """A session that is not over; counts as a use of it."""
        session = self._sessions.get(sid)
        if session is None:
            return None
        if session.over(now_s):
            self.drop(sid)
            return None
        session.used_s = now_s
        return session

    def drop(self, sid: str) -> None:
        """Forget a session; an unknown one is no error."""
        self._sessions.pop(sid, None)
        self._anonymous.pop(sid, None)

    def expire(self, now_s: float) -> int:
        """Forget all that are over; how many."""
        over = [sid for sid, session in self._sessions.items() if session.over(now_s)]
        for sid in over:
            self.drop(sid)
        return len(over)
