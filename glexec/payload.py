"""From root to the payload: identity, signals, descriptors, directory, execve."""

import errno
import os

from glexec import codes, identity, limits, signals, word
from glexec.descriptors import close_all_but

TYPE_CHECKING = False  # the typing module costs milliseconds
if TYPE_CHECKING:
    from collections.abc import Callable


class Payload:
    """Everything that the step to the payload needs, decided before it."""

    def __init__(
        self,
        command: "list[str]",
        environment: "dict[bytes, bytes]",
        account: identity.Account,
        umask: int,
        limits: "dict[int, tuple[int, int]]",
        front_word: int,
    ) -> None:
        self.command = command
        self.environment = environment
        self.account = account
        self.umask = umask
        self.limits = limits
        self.front_word = front_word


def start(payload: Payload, after_switch: "Callable[[], None] | None" = None) -> None:
    """Become the payload; never returns. What execve refuses is the payload's own 126 or 127."""
    identity.become(payload.account)
    if after_switch is not None:
        after_switch()
    os.umask(payload.umask)
    limits.restore(payload.limits)
    _enter_directory(payload.account.home)
    close_all_but({0, 1, 2, payload.front_word})  # the word is close-on-exec
    signals.fresh()
    word.add(payload.front_word, word.STARTED)
    try:
        os.execve(payload.command[0], payload.command, payload.environment)
    except (OSError, ValueError) as error:
        number = error.errno if isinstance(error, OSError) else errno.ENOENT
        os._exit(_explain(number or 0))


def _enter_directory(home: str) -> None:
    """The caller's directory if the target may be there, else its home, else the root."""
    for place in (".", home, "/"):
        try:
            os.chdir(place)
            return
        except OSError:
            continue


def _explain(number: int) -> int:
    text = "glexec: cannot execute the command: %s\n" % os.strerror(number)
    code = codes.NOT_FOUND if number == errno.ENOENT else codes.NOT_EXECUTABLE
    try:
        os.write(2, text.encode("utf-8", "replace"))
    except OSError:
        return code  # nobody listens
    return code
