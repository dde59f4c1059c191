"""Whether this node is fit for jobs. Pure: what was seen in, a reason not to match out.

A node that ends every job at once takes all that a pool has: a black hole. So after a row of jobs that the node itself
failed it takes none for a while, then one as a try. A job that ends badly by its own fault says nothing about the node.
"""

from __future__ import annotations

from collections import deque

import attrs

from cedar.commands import HoldCode

# Pauses of a black hole, doubled from the first to the last.
FIRST_PAUSE_S, LAST_PAUSE_S = 300.0, 3600.0
# Ends that may be the node's fault, in the report's words: given back by this side, or gone without a last word.
_BACK, _LOST = "given back", "lost"
# Of what is given back, these are transfers that failed: the submit side may be to blame as well.
TRANSFER_CODES = frozenset({HoldCode.DOWNLOAD_FILE_ERROR, HoldCode.UPLOAD_FILE_ERROR})
# A disk that was too full is taken for usable again only with so much more free, or it would flap.
MARGIN = 1.25


@attrs.frozen
class Look:
    """What a look at the node found. fault: why EXECUTE cannot be used; free_kb: what could still be written there."""

    free_kb: int = 0
    fault: str = ""


@attrs.define
class Health:
    """``least_free_kb`` and ``bad_row`` as the settings say; 0 is no limit."""

    least_free_kb: int
    bad_row: int
    _ends: deque[bool] = attrs.field(init=False)
    _closed_until_s: float | None = None
    _pause_s: float = FIRST_PAUSE_S
    _full: bool = False
    _look: Look | None = None

    def __attrs_post_init__(self) -> None:
        self._ends = deque(maxlen=max(1, self.bad_row))

    def job_ended(self, outcome: str, code: int, *, now_s: float) -> None:
        """One activation is over; ``outcome`` as in the report, ``code`` that of a hold or of a job given back."""
        if outcome == "evicted" or (outcome == _BACK and code in TRANSFER_CODES):
            return  # which says nothing about the node
        if outcome not in (_BACK, _LOST):
            self._ends.clear()
            self._closed_until_s, self._pause_s = None, FIRST_PAUSE_S
            return
        self._ends.append(True)
        if self.bad_row and len(self._ends) >= self.bad_row:
            self._closed_until_s = now_s + self._pause_s
            self._pause_s = min(2 * self._pause_s, LAST_PAUSE_S)

    def looked(self, look: Look) -> None:
        """A look at the disk."""
        self._look = look
        if self.least_free_kb:
            limit_kb = self.least_free_kb * (MARGIN if self._full else 1.0)
            self._full = look.free_kb < limit_kb

    def reason(self, *, now_s: float) -> str:
        """Why no job is to match now; empty if the node is fit, or one job is to try."""
        if self._look is not None and self._look.fault:
            return self._look.fault
        if self._look is not None and self._full:
            return (
                f"only {self._look.free_kb >> 10} MB are free below EXECUTE"
                f" (SAILPLANE_MIN_FREE_DISK is {self.least_free_kb >> 10} MB)"
            )
        if self._closed_until_s is not None and now_s < self._closed_until_s:
            return f"the last {len(self._ends)} jobs failed here through no fault of theirs; the next may try later"
        return ""
