"""Connections of others that the startd hands over: a command for the job arrives at its port, and is served here."""

from __future__ import annotations

import logging
import socket

from cedar.errors import PeerFault
from cedar.stream import CedarStream
from starter.messages import PassedCommand


def adopt(message: PassedCommand, fd: int, what: str, log: logging.LoggerAdapter[logging.Logger]) -> CedarStream | None:
    """The stream on ``fd``, which is its own from now on; None, and ``what`` in the log, where it cannot be used."""
    sock = socket.socket(fileno=fd)
    try:
        return CedarStream.adopt(sock, message.stream_state)
    except PeerFault as fault:
        sock.close()
        log.warning("%s that was passed on cannot be used: %s", what, fault)
        return None
