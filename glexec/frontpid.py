"""The front's process as the root part sees it: started by it, and still there?"""

import os

from glexec import family
from glexec.codes import INTERNAL, Failure


class Front:
    """The front's process; Failure(202) if it is not the one above us. `fd` is a pidfd, or -1."""

    def __init__(self, pid: int) -> None:
        opener = getattr(os, "pidfd_open", None)
        self.pid = pid
        self.fd = -1
        self._first = family.look(pid)
        try:
            self.fd = opener(pid) if opener else -1
        except OSError:
            self.fd = -1  # an old kernel, or gone: the next look tells
        if not self._is_above_us():
            raise Failure(INTERNAL, "the front is gone, or did not start the root part")

    def _is_above_us(self) -> bool:
        """Our parent; or its parent, where the site's sudo stays between."""
        parent = os.getppid()
        above = family.look(parent)
        return self.pid == parent or (above is not None and above.parent == self.pid)

    def is_gone(self) -> bool:
        """Has it ended? For looking once, or where there is no pidfd to wait on."""
        now = family.look(self.pid)
        return now is None or self._first is None or now.ticks != self._first.ticks or now.dead
