"""The tool's own exit statuses, and the one exception that carries them.

Decides nothing about payloads except how their status is masked.
"""

import os

# The contract's table: whose fault it was, so whether a caller should try again.
CLIENT = 201  # the caller must fix something
INTERNAL = 202  # the site must fix something, or a retry may help
DENIED = 203  # not authorised
MASKED = 204  # the payload itself exited with one of these four
NOT_EXECUTABLE = 126
NOT_FOUND = 127
OWN = (CLIENT, INTERNAL, DENIED)


class Failure(Exception):
    """The call ends here: with this status and these words on stderr and in the log."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


def masked(code: int) -> int:
    """The payload's exit code as the caller sees it."""
    return MASKED if CLIENT <= code <= MASKED else code


def reason(error: OSError) -> str:
    """An OSError in the few words that fit a line (no path: the caller of this knows it)."""
    return os.strerror(error.errno) if error.errno else type(error).__name__
