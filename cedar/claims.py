"""Claim ids: a startd's address, a counter, and a secret that is the claim's session key.

`<session id>#[session info]<secret>`. `#` may stand in the address: the last one counts. Who holds the
text controls the slot, so its repr shows the public part only.
"""

from __future__ import annotations

import re
import secrets

from attrs import field, frozen

from cedar import crypto
from cedar.errors import PeerFault
from cedar.sessions import Session
from cedar.sinful import Sinful

MAX_CHARS = 16_384
_SECRET_BYTES = 32
_INFO = re.compile(r"\[([^\[\]]*)\]")
# Identities that both ends of a claim's session give each other.
EXECUTE_SIDE = "execute-side@matchsession"
SUBMIT_SIDE = "submit-side@matchsession"
METHOD = "MATCH"


@frozen
class ClaimId:
    """One claim id, or any other text of the same form (capabilities, owner sessions)."""

    text: str = field(repr=False)
    session_id: str
    secret: str = field(repr=False)
    info: str = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> ClaimId:
        """Raises PeerFault("address") on anything of another form."""
        session_id, mark, rest = text.rpartition("#")
        if not mark or not session_id or len(text) > MAX_CHARS or not text.isprintable():
            raise PeerFault("address", "not a claim id")
        return cls(text, session_id, *_split_info(rest))

    @classmethod
    def from_parts(cls, session_id: str, info: str, secret: str) -> ClaimId:
        """One whose three parts came apart (remote call 288); `info` with its brackets or empty."""
        return cls.parse(f"{session_id}#{info}{secret}")

    @classmethod
    def mint(cls, address: str, start_time: int, sequence: int, version: str) -> ClaimId:
        """A new one with a random secret, for a startd at `address` (a sinful string)."""
        info = f'[Encryption="YES";Integrity="YES";CryptoMethods="AES";ShortVersion="{version}";]'
        return cls.parse(f"{address}#{start_time}#{sequence}#{info}{secrets.token_hex(_SECRET_BYTES)}")

    @property
    def public(self) -> str:
        """What logs and `PublicClaimId` may show."""
        return f"{self.session_id}#..."

    @property
    def address(self) -> Sinful:
        """The startd's address at the front."""
        return Sinful.parse(self.session_id[: self.session_id.find(">") + 1])

    def attributes(self) -> dict[str, str]:
        """The session info by lower-case name, without quotes."""
        pairs = (part.partition("=") for part in self.info.strip("[]").split(";"))
        return {name.strip().lower(): value.strip().strip('"') for name, _, value in pairs if name.strip()}

    def key(self) -> bytes:
        """The AES key: from the secret's text, not from the bytes that it spells."""
        return crypto.session_key(self.secret.encode())

    def session(self, identity: str, *, commands: frozenset[int] | None = None) -> Session:
        """The session that both ends derive; `identity` is the other end's (SUBMIT_SIDE, EXECUTE_SIDE)."""
        return Session(self.session_id, self.key(), identity, METHOD, commands, "DAEMON")


def _split_info(rest: str) -> tuple[str, str]:
    """(secret, info); AES must be among the methods when there is any info."""
    found = _INFO.match(rest)
    info = found[0] if found else ""
    secret = rest[len(info) :]
    if not secret or "[" in secret or "]" in secret:
        raise PeerFault("address", "not a claim id")
    return secret, info


def filetransfer_session(claim: ClaimId, identity: str = SUBMIT_SIDE) -> Session:
    """The session for file transfer that the shadow derives from a claim: same key, own id."""
    return Session(f"filetrans.{claim.session_id}", claim.key(), identity, METHOD, None, "DAEMON")
