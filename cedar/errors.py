"""What can go wrong between us and a peer.

Two classes, sorted by what the reader of the error does next: after a
`PeerFault` the connection is closed and stays closed; a `Refused` is an answer,
and nothing has changed. Foreign exceptions are translated here and nowhere else.
"""

from __future__ import annotations


class _Worded(Exception):
    """An error with a stable machine word and a text for people."""

    def __init__(self, code: str, text: str = "") -> None:
        super().__init__(code, text)
        self.code = code
        self.text = text

    def __str__(self) -> str:
        return f"{self.code}: {self.text}" if self.text else self.code


class PeerFault(_Worded):
    """The peer broke the protocol, or went away.

    Codes: "framing" (packets), "codec" (items of a message), "classad" (an ad's
    text or a missing attribute), "crypto" (a packet that does not verify),
    "handshake" (security negotiation), "closed" (end of file, reset, or use after
    an interrupted write), "timeout", "limit" (larger, deeper or more than allowed),
    "address" (a sinful string or claim id), "state" (an adopted stream's state),
    "inherit" (what a parent daemon left in the environment), "ccb" (what no broker says).
    """


class Refused(_Worded):
    """The peer answered no.

    Codes are the peer's own words where it has any ("DENIED", "SID_NOT_FOUND",
    "CMD_NOT_FOUND"), else one of "TOKEN" (no token fits, or it was not accepted), another method's
    name, "METHODS" (no common one), "TRANSFER_KEY" (of a file transfer, not known to the peer),
    "DELEGATION" (no proxy was asked for or given), and of our own table of sessions "FULL", "SID" (too long an id).
    """
